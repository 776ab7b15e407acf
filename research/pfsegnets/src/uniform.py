"""Class-uniform sampling: a share of every epoch is drawn evenly over the classes.

Aerial images are mostly background, and rare classes would seldom be seen. Each image is divided
into tiles, and each class keeps the list of tiles that show it. A share of the epoch's samples is
then split evenly over the classes; every class goes through its shuffled list again and again, so
that its tiles are shown equally often. The other samples go through all images likewise.

The reference declares this sampling (``class_uniform_pct``) and never calls it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from model_utils.segmentation import IGNORE, ClassTable

log = logging.getLogger("zoo")

# Streams of random numbers: classes use their number, images one that no class has.
_IMAGES = 256
# Seconds of looking up classes after which a line says that it takes a while.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Tile:
    """A place that shows a class.

    Attributes:
        image: number of the image.
        row: of a pixel of the class in the image, the one nearest to the class's centre of
            gravity in the tile.
        column: likewise.
        number: of the class.
    """

    image: int
    row: int
    column: int
    number: int


def find_tiles(image: int, label: np.ndarray, side: int) -> list[Tile]:
    """The classes of each tile of an image.

    Args:
        image: number of the image.
        label: (H, W) uint8; ignored pixels are no class.
        side: of the square tiles in pixels; those at the right and lower border are smaller.
    """
    found = []
    for top in range(0, label.shape[0], side):
        for left in range(0, label.shape[1], side):
            part = label[top : top + side, left : left + side]
            counts = np.bincount(part.ravel(), minlength=256)
            for number in np.flatnonzero(counts[:IGNORE]).tolist():
                points = cv2.findNonZero((part == number).astype(np.uint8))[:, 0]
                away = ((points - points.mean(axis=0)) ** 2).sum(axis=1)
                column, row = points[int(away.argmin())].tolist()
                found.append(Tile(image, top + row, left + column, number))
    return found


class ClassUniform:
    """Decides what each epoch shows.

    Samples are numbered: first the images as a whole, then the tiles, then both once more for
    those that come a second time within one epoch, and so on.

    Args:
        images: number of images, which is also the number of samples of an epoch.
        tiles: of all images.
        share: of the epoch that is drawn evenly over the classes, 0 to 1.
    """

    def __init__(self, images: int, tiles: Sequence[Tile], share: float) -> None:
        self.images = images
        self.tiles = list(tiles)
        numbers = np.array([tile.number for tile in self.tiles], np.int64)
        self._of_class = {
            int(number): images + np.flatnonzero(numbers == number) for number in np.unique(numbers)
        }
        self.per_class = int(images * share / len(self._of_class)) if self._of_class else 0

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The samples of an epoch, shuffled: (images,) int64, a pure function of its arguments."""
        rest = self.images - self.per_class * len(self._of_class)
        drawn = [self._draw(seed, _IMAGES, np.arange(self.images), epoch, rest)]
        for number, tiles in self._of_class.items():
            drawn.append(self._draw(seed, number, tiles, epoch, self.per_class))
        return np.random.default_rng((seed, epoch)).permutation(np.concatenate(drawn))

    def place(self, index: int) -> tuple[int, tuple[int, int] | None]:
        """The image of a sample, and the row and column to show; None where it does not matter."""
        item = index % (self.images + len(self.tiles))
        if item < self.images:
            return item, None
        tile = self.tiles[item - self.images]
        return tile.image, (tile.row, tile.column)

    def _draw(
        self, seed: int, stream: int, items: np.ndarray, epoch: int, count: int
    ) -> np.ndarray:
        """The epoch's part of an endless sequence of shuffles of ``items``.

        What belongs to the epoch's second shuffle has the numbers of second comings, and so on.
        """
        first, last = epoch * count, (epoch + 1) * count
        drawn = np.empty(count, np.int64)
        turns = range(first // len(items), -(-last // len(items)))
        for again, turn in enumerate(turns):
            shuffled = np.random.default_rng((seed, stream, turn)).permutation(items)
            start = turn * len(items)
            low, high = max(first, start), min(last, start + len(items))
            drawn[low - first : high - first] = shuffled[low - start : high - start]
            drawn[low - first : high - first] += again * (self.images + len(self.tiles))
        return drawn


def look_up(
    count: int,
    read_mask: Callable[[int], np.ndarray | None],
    classes: ClassTable,
    side: int,
    share: float,
    workers: int = 1,
) -> ClassUniform:
    """Read all labels, once, and set up the sampling.

    Args:
        count: number of images.
        read_mask: gives the label (H, W) uint8 of an image; None without a mask.
        classes: for the log.
        side: of the tiles in pixels.
        share: see :class:`ClassUniform`.
        workers: threads that read.
    """

    def tiles_of(image: int) -> list[Tile]:
        label = read_mask(image)
        return [] if label is None else find_tiles(image, label, side)

    begin = shown = time.monotonic()
    tiles: list[Tile] = []
    with ThreadPoolExecutor(max(1, workers), "classes") as pool:
        for done, part in enumerate(pool.map(tiles_of, range(count)), 1):
            tiles += part
            now = time.monotonic()
            if now - shown > _PATIENCE:
                shown = now
                left = (now - begin) / done * (count - done)
                log.info("looking up classes: %d of %d images, %.0f s left", done, count, left)
    uniform = ClassUniform(count, tiles, share)
    present = np.bincount([tile.number for tile in tiles], minlength=len(classes))
    log.info(
        "class-uniform sampling: %d samples of each of %d classes in an epoch of %d; tiles: %s",
        uniform.per_class,
        int((present > 0).sum()),
        count,
        ", ".join(f"{name} {n}" for name, n in zip(classes.names, present, strict=True)),
    )
    if not uniform.per_class:
        log.warning(
            "data.class_uniform=%g of %d images is less than a sample of each of %d classes: "
            "nothing is drawn by class; raise it, or set it to 0",
            share,
            count,
            int((present > 0).sum()),
        )
    return uniform
