"""Networks on images in parts: sliding windows, adding their results up, resizing maps.

Maps are (..., H, W) float arrays, classes first.
"""

import math
from collections.abc import Iterator

import numpy as np

from model_utils.errors import UserError


def window_positions(length: int, window: int, stride: int = 0) -> list[int]:
    """Where windows begin along one side, so that they cover it.

    Windows follow each other by ``stride``; the last one is shifted back to end at the border
    and may repeat an earlier one's position (as HRNet and its descendants do it, where overlaps
    count twice accordingly). A side shorter than the window has one position, 0.

    Args:
        length: pixels of the side.
        window: pixels of a window.
        stride: pixels between windows; 0 is the window's own length.

    Raises:
        UserError: a length below 1, or a stride that leaves gaps.
    """
    stride = stride or window
    if length < 1 or window < 1 or stride < 1:
        raise UserError(f"length {length}, window {window} and stride {stride} must be at least 1")
    if stride > window and length > window:
        raise UserError(f"a stride of {stride} leaves gaps between windows of {window} pixels")
    count = math.ceil(max(0, length - window) / stride) + 1
    return [max(0, min(place * stride, length - window)) for place in range(count)]


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int] = (0, 0)
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every window over an image, row by row.

    Args:
        size: height and width of the image.
        window: height and width of a window; cut where the image is smaller.
        stride: see :func:`window_positions`.
    """
    columns = window_positions(size[1], window[1], stride[1])
    for top in window_positions(size[0], window[0], stride[0]):
        for left in columns:
            yield (
                slice(top, min(top + window[0], size[0])),
                slice(left, min(left + window[1], size[1])),
            )


def fill_up(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(..., h, w) filled up to (..., H, W) by reflection at the bottom and the right."""
    below, right = size[0] - values.shape[-2], size[1] - values.shape[-1]
    if not (below or right):
        return values
    sides = [(0, 0)] * (values.ndim - 2)
    return np.pad(values, [*sides, (0, below), (0, right)], "symmetric")


class WindowMean:
    """Mean of overlapping windows, each pixel over the windows that hold it.

    Args:
        shape: of the whole, (..., H, W).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.total = np.zeros(shape, np.float32)
        self.counts = np.zeros(shape[-2:], np.int64)

    def add(self, place: tuple[slice, slice], values: np.ndarray) -> None:
        """Add the (..., h, w) values of one window."""
        rows, columns = place
        self.total[..., rows, columns] += values
        self.counts[place] += 1

    def mean(self) -> np.ndarray:
        """(..., H, W).

        Raises:
            UserError: a pixel lies in no window.
        """
        if not self.counts.all():
            row, column = np.argwhere(self.counts == 0)[0]
            raise UserError(f"no window covers row {row}, column {column}")
        return self.total / self.counts.astype(np.float32)


def taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours and weight of linear interpolation with aligned corners, along one side.

    The first and last pixels of both sides coincide. Positions are computed in single precision
    in PyTorch's order of operations (``interpolate(..., align_corners=True)``).

    Args:
        source: pixels there are.
        target: pixels wanted.

    Returns:
        (target,) index below, (target,) index above and (target,) float32 weight of the latter.
        Where the weight is 0 both indices are equal.
    """
    if source < 1 or target < 1:
        raise UserError(f"cannot resize {source} pixels to {target}; both must be at least 1")
    step = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
    position = step * np.arange(target, dtype=np.float32)
    below = np.minimum(position.astype(np.int64), source - 1)
    weight = np.clip(position - below.astype(np.float32), 0, 1).astype(np.float32)
    above = np.minimum(below + (weight > 0), source - 1)
    return below, above, weight


def resize_aligned(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing with aligned corners.

    Args:
        values: (..., h, w) floating point; a side of 1 is repeated.
        size: height and width wanted, smaller or larger.

    Returns:
        (..., H, W) of the same type.
    """
    for axis, target in ((-2, size[0]), (-1, size[1])):
        if values.shape[axis] == target:
            continue
        below, above, weight = taps(values.shape[axis], target)
        weight = weight.astype(values.dtype)
        if axis == -2:
            weight = weight[:, None]
        first = np.take(values, below, axis)
        first *= 1 - weight
        second = np.take(values, above, axis)
        second *= weight
        first += second
        values = first
    return values
