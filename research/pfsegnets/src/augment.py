"""Random changes of training images, resizing as Pillow's, edge maps.

Geometry comes first (resize or zoom and crop, mirror, quarter turns), then colour, then blur,
in the order of the reference. Images are (rows, columns, 3) RGB uint8, labels (rows, columns)
uint8 with 255 ignored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from model_utils.segmentation import IGNORE

# Widest Gaussian that the random blur draws, in pixels, and the narrowest.
_BLUR = (0.15, 1.3)
_BILATERAL = (0.05, 0.75)
_QUARTER_TURNS = (
    None,
    cv2.ROTATE_90_COUNTERCLOCKWISE,
    cv2.ROTATE_180,
    cv2.ROTATE_90_CLOCKWISE,
)


# ---------------------------------------------------------------------------------------------
# edges


def edge_map(label: np.ndarray, thickness: int = 8, source: str = "foreground") -> np.ndarray:
    """Boundary labels for the edge losses.

    Args:
        label: (H, W) uint8.
        thickness: of the lines in pixels.
        source: ``foreground`` draws the contours of everything that is not class 0, as the
            reference: two other classes side by side have no edge, ignored pixels count as
            foreground, and foreground that leaves the image is framed. ``classes`` draws lines
            wherever two classes meet; ignored pixels are no class.

    Returns:
        (H, W) uint8, 1 on edges, else 0.
    """
    if source == "classes":
        return _class_edges(label, thickness)
    contours, _ = cv2.findContours(label, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    # Not zeros_like: a label that is a transposed view would give an array OpenCV cannot draw on.
    lines = np.zeros(label.shape, np.uint8)
    return cv2.drawContours(lines, contours, -1, 1, thickness)


def _class_edges(label: np.ndarray, thickness: int) -> np.ndarray:
    known = label != IGNORE
    lines = np.zeros_like(label)
    for first, second in (
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        meet = (label[first] != label[second]) & known[first] & known[second]
        lines[first] |= meet
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (thickness, thickness))
    return cv2.dilate(lines, disk)


# ---------------------------------------------------------------------------------------------
# resizing


def resize_image(
    image: np.ndarray,
    size: Sequence[int],
    offset: Sequence[int] = (0, 0),
    region: Sequence[int] | None = None,
) -> np.ndarray:
    """Resize bicubically as Pillow does: smoothing where an image shrinks.

    Only the region asked for is computed. It equals the same region of the whole, but for what
    Pillow rounds and clips between its two passes, whose order follows from the sizes.

    Args:
        image: (H, W, 3) uint8.
        size: rows and columns of the whole image after resizing.
        offset: first row and column of the region of the resized image.
        region: rows and columns of the region; None is the whole.

    Returns:
        (rows, columns, 3) uint8.
    """
    region = size if region is None else region
    if tuple(size) == image.shape[:2]:
        return image[offset[0] : offset[0] + region[0], offset[1] : offset[1] + region[1]]
    parts, box = [], []
    for have, want, first, count in zip(image.shape, size, offset, region, strict=False):
        scale = have / want
        # The bicubic kernel reaches two (shrunken) pixels beyond the region.
        reach = 2 * max(scale, 1) + 2
        low = max(0, math.floor(first * scale - reach))
        high = min(have, math.ceil((first + count) * scale + reach))
        parts.append(slice(low, high))
        box.append((first * scale - low, min((first + count) * scale - low, high - low)))
    source = Image.fromarray(np.ascontiguousarray(image[parts[0], parts[1]]))
    (top, bottom), (left, right) = box
    resized = source.resize(
        (region[1], region[0]), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
    return np.asarray(resized)


def resize_label(
    label: np.ndarray,
    size: Sequence[int],
    offset: Sequence[int] = (0, 0),
    region: Sequence[int] | None = None,
) -> np.ndarray:
    """Resize to the nearest pixel as Pillow does; arguments as :func:`resize_image`.

    Returns:
        (rows, columns) of the label's type.
    """
    region = size if region is None else region
    places = []
    for have, want, first, count in zip(label.shape, size, offset, region, strict=True):
        centres = (np.arange(first, first + count) + 0.5) * (have / want)
        places.append(np.minimum(centres.astype(np.int64), have - 1))
    # One axis after the other is ten times as fast as both at once.
    return label[places[0]][:, places[1]]


# ---------------------------------------------------------------------------------------------
# blur and colour


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing with a kernel cut at four sigmas; values are rounded down.

    Args:
        image: (H, W, 3) uint8.
        sigma: standard deviation in pixels.
    """
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    # Double precision, because a nearly untouched value is rounded down as a whole level.
    smooth = cv2.sepFilter2D(image, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return smooth.astype(np.uint8)


def bilateral_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Smoothing that keeps edges; the width over colours is the image's standard deviation.

    Args:
        image: (H, W, 3) uint8.
        sigma: standard deviation in pixels.
    """
    width = max(5, 2 * math.ceil(3 * sigma) + 1)
    spread = max(1.0, float(np.mean(cv2.meanStdDev(image)[1])))
    return cv2.bilateralFilter(image, width, spread, sigma, borderType=cv2.BORDER_REPLICATE)


def jitter_colours(
    image: np.ndarray, level: float, rng: np.random.Generator, hue: float = -1.0
) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        image: (H, W, 3) RGB uint8.
        level: the first three are multiplied by 1 - level ... 1 + level, hue is turned by at
            most ``level`` of the full circle.
        rng: draws the order and the four changes.
        hue: that most, where it is not ``level``; negative is ``level``.
    """
    order = rng.permutation(4)
    draws = rng.uniform(-level, level, 4)
    if hue >= 0:
        draws[3] *= hue / level
    for change in order:
        amount = float(draws[change])
        if change == 0:
            image = cv2.convertScaleAbs(image, alpha=1 + amount)
        elif change == 1:
            grey = float(int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5))
            levels = (np.arange(256) - grey) * (1 + amount) + grey
            image = cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))
        elif change == 2:
            grey_image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            grey_image = cv2.cvtColor(grey_image, cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, 1 + amount, grey_image, -amount, 0)
        else:
            colours = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
            colours[..., 0] += np.uint8(round(amount * 256) % 256)  # wraps around as hues do
            image = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB_FULL)
    return image


# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """All random changes of a training image.

    Attributes:
        crop: rows and columns of the result.
        whole: resize the whole image to ``crop``, whatever its shape; else zoom and crop.
        zooms: smallest and largest zoom before cropping.
        pre_size: shorter side in pixels at zoom 1; 0 is the image's own.
        flip: mirror half of the images left to right.
        vertical_flip: mirror half of them top to bottom.
        rotate: turn by 0, 90, 180 or 270 degrees.
        colour: see :func:`jitter_colours`; 0 changes nothing.
        hue: likewise.
        blur: ``none``, ``gaussian`` or ``bilateral``, of random width, applied to every image.
    """

    crop: int
    whole: bool = True
    zooms: tuple[float, float] = (1.0, 1.0)
    pre_size: int = 0
    flip: bool = True
    vertical_flip: bool = True
    rotate: bool = True
    colour: float = 0.0
    blur: str = "gaussian"
    hue: float = -1.0

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray,
        rng: np.random.Generator,
        centre: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one variant.

        Args:
            image: (H, W, 3) RGB uint8.
            label: (H, W) uint8.
            rng: every choice is drawn from it.
            centre: row and column that a crop has to show; None crops anywhere.

        Returns:
            Image (crop, crop, 3) and label (crop, crop), uint8 and contiguous.
        """
        if self.whole:
            size = (self.crop, self.crop)
            image, label = resize_image(image, size), resize_label(label, size)
        else:
            image, label = self._zoom_and_crop(image, label, rng, centre)
        image, label = self._turn(image, label, rng)
        if self.colour:
            image = jitter_colours(image, self.colour, rng, self.hue)
        return self._blur(image, rng), np.ascontiguousarray(label)

    def _zoom_and_crop(
        self,
        image: np.ndarray,
        label: np.ndarray,
        rng: np.random.Generator,
        centre: tuple[int, int] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The crop of the zoomed image; beyond its border black and ignored.

        An image smaller than the crop lies anywhere in it but for a border of at least a pixel.
        """
        zoom = rng.uniform(*self.zooms)
        if self.pre_size:
            zoom *= self.pre_size / min(label.shape)
        size = [max(1, int(side * zoom)) for side in label.shape]
        start = []
        for axis, side in enumerate(size):
            border = (self.crop - side) // 2 + 1 if side < self.crop else 0
            low, high = -border, side + border - self.crop
            if centre is not None:
                place = int((centre[axis] + 0.5) * side / label.shape[axis])
                low, high = max(low, place - self.crop + 1), min(high, place)
            start.append(int(rng.integers(low, max(low, high) + 1)))
        offset = [max(0, first) for first in start]
        region = [
            min(side, first + self.crop) - at
            for side, first, at in zip(size, start, offset, strict=True)
        ]
        image = resize_image(image, size, offset, region)
        label = resize_label(label, size, offset, region)
        if region == [self.crop, self.crop]:
            return image, label
        above, left = (max(0, -first) for first in start)
        below, right = self.crop - above - region[0], self.crop - left - region[1]
        return (
            cv2.copyMakeBorder(image, above, below, left, right, cv2.BORDER_CONSTANT, value=0),
            cv2.copyMakeBorder(label, above, below, left, right, cv2.BORDER_CONSTANT, value=IGNORE),
        )

    def _turn(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        mirrors = rng.random(2) < 0.5
        turn = _QUARTER_TURNS[int(rng.integers(4))]
        if self.flip and mirrors[0]:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        if self.vertical_flip and mirrors[1]:
            image, label = cv2.flip(image, 0), cv2.flip(label, 0)
        if self.rotate and turn is not None:
            image, label = cv2.rotate(image, turn), cv2.rotate(label, turn)
        return image, label

    def _blur(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.blur == "gaussian":
            return gaussian_blur(image, rng.uniform(*_BLUR))
        if self.blur == "bilateral":
            return bilateral_blur(image, rng.uniform(*_BILATERAL))
        return np.ascontiguousarray(image)


def paste_classes(
    image: np.ndarray,
    label: np.ndarray,
    other: np.ndarray,
    other_label: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Paste half of the classes of another image, at least one, where they are there.

    Olsson, Tranheden, Pinto, Svensson, "ClassMix", WACV 2021, here with true labels:
    classes meet in places and surroundings that no image shows.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) uint8.
        other: image of the same size.
        other_label: its label.
        rng: draws the classes.

    Returns:
        A new image and a new label.
    """
    present = np.unique(other_label)
    present = present[present != IGNORE]
    chosen = rng.permutation(present)[: max(1, len(present) // 2)]
    pasted = np.isin(other_label, chosen)
    return np.where(pasted[..., None], other, image), np.where(pasted, other_label, label)
