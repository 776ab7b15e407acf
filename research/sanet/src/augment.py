"""Random changes of training images, edge maps."""

from dataclasses import dataclass

import cv2
import numpy as np

from model_utils.augmentation import crop_part, pad_part, zoom_parts, zoomed_size
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
