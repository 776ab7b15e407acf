"""Test-time evaluation at several zooms, mirrored, in sliding windows.

The reference adds up exp(logits), without softmax, over zooms. Single precision overflows at
logits of 89, so the sums are kept here as values and, for each pixel, the logarithm of a factor
common to its classes; the result is the same.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from model_utils.augmentation import zoomed_size
from model_utils.errors import UserError
from model_utils.segmentation_evaluation import Scorer
from model_utils.windows import WindowMean, resize_aligned, taps, windows

from .config import SANetConfig


@dataclass(frozen=True)
class Protocol:
    """How an image is scored.

    Attributes:
        scales: zooms relative to ``base_size``, whose scores are added.
        flip: average the logits with those of the mirrored image.
        window: height and width of sliding windows, used at zooms above 1; None is the whole
            image.
        base_size: long side in pixels at zoom 1; 0 is the image's own.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    base_size: int = 0

    @property
    def single(self) -> bool:
        """Whether the image goes through the network once, as it is."""
        return self.scales == (1.0,) and not self.flip

    @classmethod
    def of(cls, config: SANetConfig) -> "Protocol":
        """The protocol of a configuration.

        Raises:
            UserError: no zoom, or a window with one side only.
        """
        keys = config.evaluate
        if not keys.scales:
            raise UserError("evaluate.scales is empty; [1.0] evaluates images as they are")
        sides = (keys.window_height, keys.window_width)
        if min(sides) == 0 < max(sides):
            raise UserError(
                f"a sliding window of {sides[0]}x{sides[1]} has one side only; set both "
                "evaluate.window_height and window_width, or neither"
            )
        return cls(
            tuple(keys.scales), keys.flip, sides if min(sides) else None, config.data.base_size
        )

    def describe(self) -> str:
        """In words, for reports."""
        if self.single:
            return "single scale, whole image"
        base = f"a long side of {self.base_size}" if self.base_size else "the image's own size"
        parts = [f"scores added over scales {_listed(self.scales)} of {base}"]
        if self.flip:
            parts.append("averaged with the mirrored image")
        if self.window and max(self.scales) > 1:
            parts.append(f"windows of {self.window[1]}x{self.window[0]} above scale 1")
        else:
            parts.append("whole image")
        return ", ".join(parts)


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


@dataclass
class ExpScores:
    """Sums of exp(logits): ``values * exp(offset)``.

    Attributes:
        values: (K, H, W) float32, not negative.
        offset: (H, W) float32.
    """

    values: np.ndarray
    offset: np.ndarray

    @classmethod
    def of_logits(cls, logits: np.ndarray) -> "ExpScores":
        """exp of (K, H, W) logits of any magnitude."""
        offset = logits.max(axis=0)
        values = logits - offset
        return cls(np.exp(values, out=values), offset)

    def resized(self, size: tuple[int, int]) -> "ExpScores":
        """Bilinearly resized with aligned corners, as :func:`model_utils.windows.resize_aligned`.

        Neighbours are brought to the larger of their two factors before they are mixed.
        """
        values, offset = self.values, self.offset
        for axis, target in ((-2, size[0]), (-1, size[1])):
            if offset.shape[axis] == target:
                continue
            below, above, weight = taps(offset.shape[axis], target)
            weight = weight[:, None] if axis == -2 else weight
            low, high = np.take(offset, below, axis), np.take(offset, above, axis)
            offset = np.maximum(low, high)
            mixed = np.take(values, below, axis)
            mixed *= (1 - weight) * np.exp(low - offset)
            other = np.take(values, above, axis)
            other *= weight * np.exp(high - offset)
            mixed += other
            values = mixed
        return ExpScores(values, offset)

    def __add__(self, other: "ExpScores") -> "ExpScores":
        """Sum of two scores of one size."""
        offset = np.maximum(self.offset, other.offset)
        values = self.values * np.exp(self.offset - offset)
        values += other.values * np.exp(other.offset - offset)
        return ExpScores(values, offset)

    def log(self) -> np.ndarray:
        """(K, H, W) logarithm of the scores; -inf where a score is too small beside the best."""
        with np.errstate(divide="ignore"):
            return np.log(self.values) + self.offset

    def classes(self) -> np.ndarray:
        """(H, W) uint8 number of the largest score."""
        return self.values.argmax(axis=0).astype(np.uint8)


def exp_scores(scorer: Scorer, image: np.ndarray, protocol: Protocol) -> ExpScores:
    """Scores of one image at its own size, summed over zooms.

    Args:
        scorer: the network.
        image: (3, H, W) float32, normalised.
        protocol: zooms, mirroring, windows.
    """
    size = image.shape[1:]
    total: ExpScores | None = None
    for scale in protocol.scales:
        zoomed = zoom(image, protocol.base_size, scale)
        if scale > 1 and protocol.window is not None:
            scores = _in_windows(scorer, zoomed, protocol.window, protocol.flip)
        else:
            scores = _whole(scorer, zoomed, protocol.flip)
        scores = scores.resized(size)
        total = scores if total is None else total + scores
    if total is None:
        raise UserError("there is no scale to evaluate at; [1.0] evaluates images as they are")
    return total


def zoom(image: np.ndarray, base_size: int, scale: float) -> np.ndarray:
    """The normalised (3, H, W) image with a long side of ``base_size * scale`` pixels.

    Bilinear with half-pixel centres, by OpenCV, like the reference's.
    """
    size = zoomed_size(image.shape[1:], scale, base_size)
    pixels = cv2.resize(
        np.ascontiguousarray(image.transpose(1, 2, 0)), size[::-1], interpolation=cv2.INTER_LINEAR
    )
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _whole(scorer: Scorer, image: np.ndarray, flip: bool) -> ExpScores:
    logits = scorer(image[None])[0]
    if flip:
        mirrored = scorer(np.ascontiguousarray(image[None, :, :, ::-1]))[0]
        # Before resizing: aligned corners are symmetric, and there is less to average.
        logits = (logits + mirrored[:, :, ::-1]) * 0.5
    return ExpScores.of_logits(resize_aligned(logits, image.shape[1:]))


def _in_windows(
    scorer: Scorer, image: np.ndarray, window: tuple[int, int], flip: bool
) -> ExpScores:
    size = image.shape[1:]
    parts = [
        ((rows, columns), _whole(scorer, np.ascontiguousarray(image[:, rows, columns]), flip))
        for rows, columns in windows(size, window)
    ]
    offset = np.full(size, -np.inf, np.float32)
    for place, scores in parts:
        np.maximum(offset[place], scores.offset, out=offset[place])
    mean = WindowMean((len(parts[0][1].values), *size))
    for place, scores in parts:
        mean.add(place, scores.values * np.exp(scores.offset - offset[place]))
    return ExpScores(mean.mean(), offset)
