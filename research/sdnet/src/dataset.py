"""SDNet's samples: from patch archives, or cut on the fly out of registered image pairs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from model_utils.errors import UserError

from .patches import PATCH_SIZE, PatchArchive, open_patches
from .preparing import ImagePair, crop, detect_points, map_parallel, progress, read_pair

log = logging.getLogger("zoo")

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def normalise(patch: np.ndarray, mean: float = 0.5, std: float = 0.5) -> np.ndarray:
    """Stretch a patch to [0, 1] by its own minimum and maximum, then ``(x - mean) / std``.

    With the defaults the result spans [-1, 1], the range of the reconstruction branch's tanh.
    A constant patch becomes 0 before the shift, hence -1 everywhere.

    Args:
        patch: (..., H, W) of any number type; the last two axes are one patch.
        mean: subtracted after stretching.
        std: divisor.

    Returns:
        The same shape, float32.
    """
    values = patch.astype(np.float32)
    low = values.min(axis=(-2, -1), keepdims=True)
    span = values.max(axis=(-2, -1), keepdims=True) - low
    scaled = (values - low) / np.where(span > 0, span, np.float32(1))
    return ((scaled - np.float32(mean)) / np.float32(std)).astype(np.float32)


def symmetry(image: np.ndarray, number: int) -> np.ndarray:
    """One of the 8 symmetries of the square: ``number % 4`` quarter turns, mirrored from 4 on."""
    turned = np.rot90(image, number % 4)
    return np.ascontiguousarray(turned[:, ::-1] if number >= 4 else turned)


def _check_size(image_size: int) -> None:
    if image_size != PATCH_SIZE:
        raise UserError(
            f"imageSize is {image_size}; the 8x8 convolution and the 128-value descriptors of "
            f"SDNet exist for {PATCH_SIZE} only"
        )


class PatchDataset:
    """Rows of a patch archive.

    Args:
        archive: an open archive or its path.
        image_size: side of the network input; must be 64.
        mean: see :func:`normalise`.
        std: see :func:`normalise`.
        augment: apply one random symmetry of the square to both patches.
        require_matching: refuse archives with label-0 rows (training takes every row as a
            true pair).
    """

    def __init__(
        self,
        archive: PatchArchive | str | Path,
        image_size: int = PATCH_SIZE,
        mean: float = 0.5,
        std: float = 0.5,
        augment: bool = False,
        require_matching: bool = False,
    ) -> None:
        _check_size(image_size)
        self.archive = archive if isinstance(archive, PatchArchive) else open_patches(archive)
        self._mean, self._std, self._augment = mean, std, augment
        others = int(np.count_nonzero(self.archive.labels == 0))
        if require_matching and others:
            raise UserError(
                f"{self.archive.path} is used for training but holds {others} non-matching rows; "
                "training takes every row as a true pair, prepare it without label 0"
            )

    def __len__(self) -> int:
        return len(self.archive)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Optical (1, 64, 64) and SAR (1, 64, 64) float32, label int32 (1 = matching)."""
        optical, sar = self.archive.pair(index)
        if self._augment:
            number = int(rng.integers(8))
            optical, sar = symmetry(optical, number), symmetry(sar, number)
        return (
            normalise(optical, self._mean, self._std)[None],
            normalise(sar, self._mean, self._std)[None],
            np.asarray(self.archive.labels[index], np.int32),
        )

    def name(self, index: int) -> str:
        """Image and position of a row, or its number."""
        return self.archive.name(index)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a window cut from a registered image pair; 0 or False = off.

    Attributes:
        point_jitter: the window's centre moves by up to this many pixels from the keypoint.
        symmetries: flips and quarter turns, the same for both images.
        rotation: arbitrary rotation in [-rotation, rotation] degrees, the same for both.
        scale: zoom factor in [1 - scale, 1 + scale], the same for both.
        brightness: grey levels added, in [-brightness, brightness] of 255, for each image
            separately (clipping makes it visible to the per-patch normalisation).
        contrast: factor about the mean in [1 - contrast, 1 + contrast], each image separately.
        gamma: exponent in [1 / (1 + gamma), 1 + gamma], each image separately.
        shift: the SAR window moves by up to this many whole pixels (registration errors).
    """

    point_jitter: int = 8
    symmetries: bool = True
    rotation: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    shift: int = 0

    def check(self) -> None:
        """Raise a UserError for a value out of range."""
        for key, top in (
            ("point_jitter", 4096), ("rotation", 180), ("scale", 0.5), ("brightness", 1),
            ("contrast", 0.99), ("gamma", 10), ("shift", 16),
        ):  # fmt: skip
            if not 0 <= getattr(self, key) <= top:
                raise UserError(f"{key} is {getattr(self, key)}; it must lie in [0, {top}]")


class ImagePairDataset:
    """Matching windows drawn anew each time from registered image pairs; label always 1.

    Index i takes image pair ``i % P``, so shuffled indices spread a batch over all images and
    few windows of a batch overlap (overlapping windows would be false negatives of the
    hardest-in-batch loss). Meant for up to some thousand image pairs, since all are read (and
    searched for keypoints) at the start; for all of SEN1-2 prepare an archive.

    Args:
        pairs: the image pairs.
        length: windows per epoch.
        centres: "sift" (around keypoints) or "any" (anywhere).
        detect: where SIFT looks: "opt", "sar", "both".
        min_distance: distance between two keypoints, in pixels.
        augmentation: random changes.
        image_size: side of the network input; must be 64.
        mean: see :func:`normalise`.
        std: see :func:`normalise`.
        cache: keep all images in memory as uint8 (2 bytes per pixel of a pair); otherwise
            files are read at every sample.
        on_error: "stop" at an unreadable pair or "skip" it with a log line.
    """

    def __init__(
        self,
        pairs: Sequence[ImagePair],
        length: int,
        centres: str = "sift",
        detect: str = "both",
        min_distance: int = 8,
        augmentation: Augmentation | None = None,
        image_size: int = PATCH_SIZE,
        mean: float = 0.5,
        std: float = 0.5,
        cache: bool = True,
        on_error: str = "stop",
    ) -> None:
        _check_size(image_size)
        if centres not in ("sift", "any"):
            raise UserError(f"centres is {centres!r}; it must be sift or any")
        if length < 1:
            raise UserError(f"the number of windows per epoch is {length}; it must be positive")
        self.augmentation = augmentation or Augmentation()
        self.augmentation.check()
        self._mean, self._std, self._length = mean, std, length
        self._pairs: list[ImagePair] = []
        self._points: list[np.ndarray] = []
        self._images: list[tuple[np.ndarray, np.ndarray]] = []

        def load(pair: ImagePair) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
            try:
                optical, sar = read_pair(pair)
            except UserError as error:
                if on_error == "stop":
                    raise
                log.warning("skipped: %s", error)
                return None
            points = np.empty((0, 2), np.int32)
            if centres == "sift":
                points = detect_points(optical, sar, detect, min_distance)
            return optical, sar, points

        for pair, loaded in zip(
            pairs, progress(map_parallel(load, pairs), len(pairs), "reading images"), strict=True
        ):
            if loaded is not None:
                self._pairs.append(pair)
                self._points.append(loaded[2])
                if cache:
                    self._images.append(loaded[:2])
        if not self._pairs:
            raise UserError(f"none of the {len(pairs)} image pairs could be used for training")
        size = sum(image.nbytes for images in self._images for image in images)
        log.info("%d image pairs, %.2f GB of pixels in memory", len(self._pairs), size / 1e9)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        """The image pair of an index (the place in it is random)."""
        return self._pairs[index % len(self._pairs)].name

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Optical (1, 64, 64) and SAR (1, 64, 64) float32 in the normalised range, label 1."""
        number = index % len(self._pairs)
        images = self._images[number] if self._images else read_pair(self._pairs[number])
        # No-data areas: look elsewhere a few times rather than train on a constant patch.
        for attempt in range(8):
            windows = self._windows(images, self._points[number], rng, anywhere=attempt > 3)
            if all(window.min() < window.max() for window in windows):
                break
        optical, sar = (self._change_grey(window, rng) for window in windows)
        return (
            normalise(optical, self._mean, self._std)[None],
            normalise(sar, self._mean, self._std)[None],
            np.asarray(1, np.int32),
        )

    def _windows(
        self,
        images: tuple[np.ndarray, np.ndarray],
        points: np.ndarray,
        rng: np.random.Generator,
        anywhere: bool,
    ) -> list[np.ndarray]:
        """Both windows, uint8 (64, 64), at one place with one geometry."""
        change = self.augmentation
        height, width = images[0].shape
        half = PATCH_SIZE // 2
        x, y = int(rng.integers(width)), int(rng.integers(height))
        if len(points) and not anywhere:
            x, y = points[rng.integers(len(points))] + rng.integers(
                -change.point_jitter, change.point_jitter, size=2, endpoint=True
            )
        x = int(np.clip(x, half, width - half))
        y = int(np.clip(y, half, height - half))
        shift = rng.integers(-change.shift, change.shift, size=2, endpoint=True)
        shifted = (
            int(np.clip(x + shift[0], half, width - half)),
            int(np.clip(y + shift[1], half, height - half)),
        )
        angle = rng.uniform(-change.rotation, change.rotation)
        zoom = rng.uniform(1 - change.scale, 1 + change.scale)
        turn = int(rng.integers(8)) if change.symmetries else 0
        windows = []
        for image, centre in zip(images, ((x, y), shifted), strict=True):
            if change.rotation or change.scale:
                window = _turned_crop(image, centre, angle, zoom)
            else:
                window = crop(image, *centre)
            windows.append(symmetry(window, turn))
        return windows

    def _change_grey(self, window: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        change = self.augmentation
        values = window.astype(np.float32) / 255
        if change.gamma:
            limit = np.log1p(change.gamma)
            values = values ** np.float32(np.exp(rng.uniform(-limit, limit)))
        if change.contrast:
            factor = rng.uniform(1 - change.contrast, 1 + change.contrast)
            values = (values - values.mean()) * np.float32(factor) + values.mean()
        if change.brightness:
            values = values + np.float32(rng.uniform(-change.brightness, change.brightness))
        return np.clip(values, 0, 1)


def _turned_crop(
    image: np.ndarray, centre: tuple[int, int], angle: float, zoom: float
) -> np.ndarray:
    """The window around ``centre`` seen under a rotation (degrees) and a zoom factor.

    Where the turned window leaves the image, the image is mirrored at its border.
    """
    cosine, sine = np.cos(np.deg2rad(angle)) / zoom, np.sin(np.deg2rad(angle)) / zoom
    half = PATCH_SIZE // 2
    # Maps window coordinates to image coordinates; the window's pixel (half, half) to the centre.
    matrix = np.array(
        [
            [cosine, -sine, centre[0] - cosine * half + sine * half],
            [sine, cosine, centre[1] - sine * half - cosine * half],
        ]
    )
    return cv2.warpAffine(
        image,
        matrix,
        (PATCH_SIZE, PATCH_SIZE),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
