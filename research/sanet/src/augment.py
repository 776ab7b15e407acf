"""Random changes of training images, edge maps, normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.segmentation import IGNORE

# Of Canny on the label map: any change of class is an edge.
_CANNY = (0.1, 0.2)


def edge_map(label: np.ndarray, frame: int = 0, size: int = 4) -> np.ndarray:
    """Where classes meet: Canny lines of the label map, widened by a square.

    Args:
        label: (H, W) uint8; ignored pixels count as a class of their own.
        frame: pixels along the border where lines are dropped before widening.
        size: side of the square that widens lines.

    Returns:
        (H, W) uint8, 1 on edges, else 0.
    """
    lines = cv2.Canny(label, *_CANNY)
    if frame:
        inside = np.zeros_like(lines)
        rows, columns = (slice(frame, -frame),) * 2
        inside[rows, columns] = lines[rows, columns]
        lines = inside
    wide = cv2.dilate(lines, np.ones((size, size), np.uint8))
    return (wide > 0).astype(np.uint8)


@dataclass(frozen=True)
class Normalisation:
    """``(image / 255 - mean) / std`` per channel, as one table lookup.

    Attributes:
        mean: of red, green, blue in [0, 1].
        std: likewise.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Check that there is one number per channel, and nothing to divide by zero."""
        for name, values in (("data.mean", self.mean), ("data.std", self.std)):
            if len(values) != 3:
                raise UserError(f"{name} has {len(values)} numbers; give three: red, green, blue")
        if min(self.std) <= 0:
            raise UserError(f"data.std={list(self.std)} must be above 0")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) RGB uint8 to (3, H, W) float32."""
        result = np.empty((3, *image.shape[:2]), np.float32)
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        for channel, plane in enumerate(cv2.split(image)):
            table = (levels - np.float32(self.mean[channel])) / np.float32(self.std[channel])
            cv2.LUT(plane, table, result[channel])
        return result


@dataclass(frozen=True)
class Augmentation:
    """Random zoom, crop, mirroring and, beyond the reference, colour changes.

    Attributes:
        crop: (height, width) of the result.
        base_size: long side at zoom 1 in pixels; 0 is the image's own.
        zooms: zooms to choose from; (1.0,) with ``base_size`` 0 never resizes.
        flip: mirror every second image left to right.
        brightness: largest shift, of the full range.
        contrast: largest relative change of the distance from the mean grey level.
        saturation: largest relative change of the distance from grey.
    """

    crop: tuple[int, int]
    base_size: int = 0
    zooms: tuple[float, ...] = (1.0,)
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(
        self, image: np.ndarray, label: np.ndarray, edge: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw one variant of an image (H, W, 3), its label (H, W) and its edges (H, W)."""
        zoom = self.zooms[int(rng.integers(len(self.zooms)))]
        where = rng.random(2)
        mirrored = self.flip and rng.random() < 0.5
        size = zoomed_size(image.shape, zoom, self.base_size)
        # Each offset equally likely, none where the image is smaller than the crop.
        free = [max(0, have - want) for have, want in zip(size, self.crop, strict=True)]
        offset = (int(where[0] * (free[0] + 1)), int(where[1] * (free[1] + 1)))
        image, label, edge = zoom_parts(image, label, edge, size)
        image = crop_part(image, offset, self.crop)
        image = self._colour(image, rng)
        image = pad_part(image, self.crop, 0)
        label = pad_part(crop_part(label, offset, self.crop), self.crop, IGNORE)
        edge = pad_part(crop_part(edge, offset, self.crop), self.crop, 0)
        if mirrored:
            return cv2.flip(image, 1), cv2.flip(label, 1), cv2.flip(edge, 1)
        return image, np.ascontiguousarray(label), np.ascontiguousarray(edge)

    def _colour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.saturation:
            factor = 1 + self.saturation * rng.uniform(-1, 1)
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            image = cv2.addWeighted(
                image, factor, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), 1 - factor, 0
            )
        if self.brightness or self.contrast:
            shift = 255 * self.brightness * rng.uniform(-1, 1)
            factor = 1 + self.contrast * rng.uniform(-1, 1)
            centre = float(np.mean(cv2.mean(image)[:3]))
            levels = (np.arange(256) - centre) * factor + centre + shift
            image = cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
        return image


def zoomed_size(shape: Sequence[int], zoom: float, base_size: int) -> tuple[int, int]:
    """Height and width after a zoom: the long side is ``base_size * zoom``, rounded half up."""
    height, width = shape[:2]
    long = max(1, int((base_size or max(height, width)) * zoom + 0.5))
    if height > width:
        return long, max(1, int(width * long / height + 0.5))
    return max(1, int(height * long / width + 0.5)), long


def zoom_parts(
    image: np.ndarray, label: np.ndarray, edge: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resize an image bilinearly, its label and edges to the nearest pixel."""
    if image.shape[:2] == size:
        return image, label, edge
    target = size[::-1]
    return (
        cv2.resize(image, target, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, target, interpolation=cv2.INTER_NEAREST),
        cv2.resize(edge, target, interpolation=cv2.INTER_NEAREST),
    )


def crop_part(part: np.ndarray, offset: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A view of at most ``size`` rows and columns from ``offset`` on."""
    return part[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]


def pad_part(part: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """Fill up to ``size`` at the right and the bottom."""
    below, right = size[0] - part.shape[0], size[1] - part.shape[1]
    if below <= 0 and right <= 0:
        return part
    filling = (value,) * 3
    return cv2.copyMakeBorder(
        part, 0, max(0, below), 0, max(0, right), cv2.BORDER_CONSTANT, value=filling
    )
