"""What every segmentation network does to its images: zoom, crop, pad, normalise."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from model_utils.errors import UserError


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
        return self.planes(cv2.split(image))

    def planes(self, planes: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Three (H, W) uint8 planes to (3, H, W) float32."""
        result = np.empty((3, *planes[0].shape), np.float32)
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        for channel, plane in enumerate(planes):
            table = (levels - np.float32(self.mean[channel])) / np.float32(self.std[channel])
            cv2.LUT(plane, table, result[channel])
        return result


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
