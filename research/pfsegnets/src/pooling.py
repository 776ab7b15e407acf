"""Adaptive pooling to a fixed number of windows, in the two published forms.

The original takes PyTorch's windows, from floor(i L / n) to ceil((i + 1) L / n); the Jittor port
equal ones with stride floor(L / n), of which the last ends at the border. They agree where n
divides L. Averages are two matrix products and maxima a gather
and an argmax: fast, deterministic under ties (the first place in reading order) and exportable.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


def pooling_windows(length: int, count: int, style: str) -> list[tuple[int, int]]:
    """First and end place of each of ``count`` windows along an axis.

    Args:
        length: of the axis; may be smaller than ``count`` with style torch.
        count: of the windows.
        style: ``torch`` or ``jittor``.

    Raises:
        ValueError: style jittor and an axis shorter than ``count``, which has no stride.
    """
    if style == "torch":
        return [
            (place * length // count, -(-(place + 1) * length // count)) for place in range(count)
        ]
    stride = length // count
    if stride == 0:
        raise ValueError(
            f"{count} windows on an axis of {length} need pool_style torch, or larger images"
        )
    kernel = length - (count - 1) * stride
    return [(place * stride, place * stride + kernel) for place in range(count)]


@ms.constexpr
def _averaging(length: int, count: int, style: str) -> Tensor:
    """The (count, length) matrix of window means."""
    matrix = np.zeros((count, length), np.float32)
    for place, (first, end) in enumerate(pooling_windows(length, count, style)):
        matrix[place, first:end] = 1.0 / (end - first)
    return Tensor(matrix)


@ms.constexpr
def _members(height: int, width: int, count: int, style: str) -> Tensor:
    """(count^2, m) int32: flat places of every window's members in reading order.

    Smaller windows repeat their last row and column, which keeps the order.
    """
    rows = pooling_windows(height, count, style)
    columns = pooling_windows(width, count, style)
    high = max(end - first for first, end in rows)
    wide = max(end - first for first, end in columns)
    row = np.array([[min(first + k, end - 1) for k in range(high)] for first, end in rows])
    column = np.array([[min(first + k, end - 1) for k in range(wide)] for first, end in columns])
    places = row[:, None, :, None] * width + column[None, :, None, :]
    return Tensor(places.reshape(count * count, high * wide).astype(np.int32))


class AdaptiveAverage(nn.Cell):
    """Mean over each of n x n windows.

    Args:
        count: n.
        style: ``torch`` or ``jittor``.
    """

    def __init__(self, count: int, style: str) -> None:
        super().__init__()
        self.count = count
        self.style = style

    def construct(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, n, n); H and W are known when the graph is compiled."""
        channels, height, width = x.shape[1:]
        wide = ops.matmul(
            x.reshape(-1, width), _averaging(width, self.count, self.style).T
        ).reshape(-1, height, self.count)
        mean = ops.matmul(_averaging(height, self.count, self.style), wide)
        return mean.reshape(-1, channels, self.count, self.count)


class AdaptiveMaximum(nn.Cell):
    """Largest value of each of n x n windows, and where it is.

    Args:
        count: n.
        style: ``torch`` or ``jittor``.
    """

    def __init__(self, count: int, style: str) -> None:
        super().__init__()
        self.count = count
        self.style = style
        self.largest = ops.Argmax(axis=2, output_type=ms.int32)

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One channel (N, 1, H, W).

        Returns:
            Values (N, n^2) float32, differentiable, and flat places (N, n^2) int32 in H * W, both
            in reading order of the windows; of equal values the first place.
        """
        height, width = x.shape[2:]
        flat = x.reshape(-1, height * width)
        members = _members(height, width, self.count, self.style)
        inside = ops.gather(ops.stop_gradient(flat), members, 1)
        member = ops.expand_dims(self.largest(inside), 2)
        # The member numbers of all windows, as a batch of the table of places.
        table = ops.expand_dims(members, 0) + ops.zeros_like(member)
        places = ops.gather_elements(table, 2, member).reshape(-1, self.count * self.count)
        return ops.gather_elements(flat, 1, places), places
