"""What generated data sets share: splits; smooth noise for surfaces, light and sensor noise."""

import cv2
import numpy as np

from model_utils.errors import UserError


def number_pictures(train: int, val: int, test: int) -> list[tuple[str, int, int]]:
    """The pictures of a data set in three splits, in order.

    Args:
        train, val, test: how many each holds.

    Returns:
        Per picture its split, its place in the split and its number in the data set, from 0.

    Raises:
        UserError: no training picture, or a negative number.
    """
    counts = {"train": train, "val": val, "test": test}
    if train < 1 or min(counts.values()) < 0:
        raise UserError(f"{counts}: at least one training picture, no negative numbers")
    places = [(split, place) for split, count in counts.items() for place in range(count)]
    return [(split, place, number) for number, (split, place) in enumerate(places)]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise of about unit deviation; ``cell`` pixels between independent values."""
    rows, columns = (max(2, int(side / cell) + 1) for side in shape)
    small = rng.standard_normal((rows, columns)).astype(np.float32)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)


def expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, colour of the light, uneven light, sensor noise.

    Args:
        image: (H, W, 3) RGB, 0 ... 255, of any type.
        rng: every choice is drawn from it.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    tint = rng.uniform(0.93, 1.07, 3)
    uneven = 1 + 0.06 * smooth_noise(rng, (height, width), height / 2)[..., None]
    image = image * (rng.uniform(0.68, 1.12) * tint * uneven)
    image = image + rng.normal(0, rng.uniform(2, 6), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
