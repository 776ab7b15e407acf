"""Scoring an image: whole or in sliding windows, at several zooms, mirrored; mean of logits.

As the original's eval.py: at every zoom, and mirrored if wanted, the image is scored whole or in
overlapping windows, logits are brought to the image's own size, and their mean decides.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from model_utils.errors import UserError
from model_utils.segmentation_evaluation import Scorer
from model_utils.windows import WindowMean, fill_up, resize_aligned, windows

from .config import PFNetConfig
from .network import STRIDE


@dataclass(frozen=True)
class Protocol:
    """How an image is scored.

    Attributes:
        scales: zooms whose logits are averaged.
        flip: average with the mirrored image, too.
        window: side of sliding windows at zoom 1, in pixels; at larger zooms they grow with the
            image, at smaller ones they stay. 0 is the whole image.
        overlap: of neighbouring windows, a share of their side below 1 or pixels from 1 on.
        least: images with shorter sides are padded to so many pixels.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int = 0
    overlap: float = 1 / 3
    least: int = STRIDE

    def __post_init__(self) -> None:
        """Check that windows can cover an image.

        Raises:
            UserError: no zoom, or windows that overlap by their whole side.
        """
        if not self.scales:
            raise UserError("there is no scale to evaluate at; [1.0] evaluates images as they are")
        if self.window and self.overlap >= self.window:
            raise UserError(
                f"windows of {self.window} pixels cannot overlap by {self.overlap:g}; take a "
                "share below 1, or fewer pixels than a window has"
            )

    @property
    def single(self) -> bool:
        """Whether the image goes through the network once, as it is."""
        return self.scales == (1.0,) and not self.flip and not self.window

    @classmethod
    def of(cls, config: PFNetConfig) -> "Protocol":
        """The protocol of ``config.evaluate``."""
        keys = config.evaluate
        return cls(
            tuple(keys.scales),
            keys.flip,
            keys.window if keys.inference == "sliding" else 0,
            keys.overlap,
            least_side(config),
        )

    def tile(self, scale: float) -> int:
        """Side of windows at a zoom, in pixels of the zoomed image."""
        return int(self.window * max(scale, 1.0))

    def stride(self, scale: float) -> int:
        """Pixels from one window to the next."""
        tile = self.tile(scale)
        if self.overlap < 1:
            return math.ceil(tile * (1 - self.overlap))
        return tile - int(self.overlap)

    def describe(self) -> str:
        """In words, for reports."""
        parts = ["single scale"]
        if self.scales != (1.0,):
            named = ", ".join(f"{scale:g}" for scale in self.scales)
            parts = [f"mean of logits over scales {named}"]
        if self.flip:
            parts.append("mean of logits with the mirrored image")
        if self.window:
            unit = f"{self.overlap:.0%}" if self.overlap < 1 else f"{self.overlap:g} pixels"
            parts.append(f"windows of {self.window}x{self.window} overlapping by {unit}")
        else:
            parts.append("whole image")
        return ", ".join(parts)


def least_side(config: PFNetConfig) -> int:
    """Shortest side in pixels that the network takes.

    The equal pooling windows of the Jittor port need as many rows and columns as windows at a
    32nd of the size.
    """
    if config.pool_style != "jittor":
        return STRIDE
    sizes = list(config.psp_sizes)
    if config.point_flow:
        sizes += [config.max_pool_size, config.avg_pool_size]
    return STRIDE * max(sizes)


def padded(images: np.ndarray, least: int = STRIDE) -> np.ndarray:
    """Images continued by their reflection below and to the right.

    Args:
        images: (N, 3, H, W).
        least: shortest side wanted.

    Returns:
        (N, 3, H', W'), both sides multiples of 32 and at least ``least``; the same array if
        they are already.
    """
    return fill_up(images, padded_size((images.shape[2], images.shape[3]), least))


def padded_size(size: tuple[int, int], least: int = STRIDE) -> tuple[int, int]:
    """Height and width of :func:`padded` images."""
    height, width = (max(least, -(-side // STRIDE) * STRIDE) for side in size)
    return height, width


def full_logits(scorer: Scorer, images: np.ndarray, least: int = STRIDE) -> np.ndarray:
    """Logits (N, K, H, W) of normalised images (N, 3, H, W) of any size.

    Padded, scored, resized with aligned corners as the network does it, cut again.
    """
    height, width = images.shape[2:]
    images = padded(images, least)
    logits = resize_aligned(scorer(images), (images.shape[2], images.shape[3]))
    return logits[:, :, :height, :width]


def mean_logits(scorer: Scorer, image: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Mean of an image's logits over zooms and mirroring.

    Args:
        scorer: images (N, 3, H, W), sides multiples of 32, to logits (N, K, h, w).
        image: (3, H, W) float32, normalised.
        protocol: zooms, mirroring, windows.

    Returns:
        (K, H, W) float32.
    """
    size = (image.shape[1], image.shape[2])
    total: np.ndarray | None = None
    count = 0
    for scale in protocol.scales:
        zoomed = zoom(image, scale)
        for mirrored in (False, True) if protocol.flip else (False,):
            part = np.ascontiguousarray(zoomed[:, :, ::-1]) if mirrored else zoomed
            if protocol.window:
                logits = _half_pixel_resized(_in_windows(scorer, part, protocol, scale), size)
            else:
                logits = full_logits(scorer, part[None], protocol.least)[0]
                logits = resize_aligned(logits, size)
            logits = logits[:, :, ::-1] if mirrored else logits
            total = logits.copy() if total is None else np.add(total, logits, out=total)
            count += 1
    assert total is not None  # Protocol has at least one scale
    return total / np.float32(count)


def zoom(image: np.ndarray, scale: float) -> np.ndarray:
    """The normalised (3, H, W) image with sides multiplied by ``scale``, rounded down.

    Pillow's bilinear filter, which averages when it shrinks, as the original's. The original
    zooms before it normalises, with 8 bits; here values are not rounded.
    """
    if scale == 1.0:
        return image
    height, width = (max(1, int(side * scale)) for side in image.shape[1:])
    channels = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR)
        for channel in np.ascontiguousarray(image, np.float32)
    ]
    return np.stack([np.asarray(channel) for channel in channels])


def sliding_windows(
    size: tuple[int, int], protocol: Protocol, scale: float = 1.0
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the windows over a zoomed image of height and width ``size``."""
    tile, stride = protocol.tile(scale), protocol.stride(scale)
    return windows(size, (tile, tile), (stride, stride))


def _in_windows(scorer: Scorer, image: np.ndarray, protocol: Protocol, scale: float) -> np.ndarray:
    size = (image.shape[1], image.shape[2])
    mean: WindowMean | None = None
    for place in sliding_windows(size, protocol, scale):
        part = np.ascontiguousarray(image[(slice(None), *place)])
        logits = full_logits(scorer, part[None], protocol.least)[0]
        if mean is None:
            mean = WindowMean((len(logits), *size))
        mean.add(place, logits)
    assert mean is not None  # there is always a window
    return mean.mean()


def _half_pixel_resized(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with half-pixel centres, by OpenCV: the original's way for sliding windows."""
    if logits.shape[1:] == size:
        return logits
    return np.stack([cv2.resize(k, size[::-1], interpolation=cv2.INTER_LINEAR) for k in logits])
