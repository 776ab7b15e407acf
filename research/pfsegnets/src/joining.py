"""The convolution that joins a feature pyramid, computed at each level's own resolution.

The pyramid's levels are resized to the finest one, put side by side and convolved. All of that
is linear, and resizing acts on rows and columns alone, so its order can be changed: a coarse
level first goes through all nine taps as a 1 x 1 convolution, and then one matrix per axis
shifts, resizes and adds them. For a pyramid of four levels that takes 41 % of the
multiplications. Exact in real numbers; in float32 results differ by rounding, about 1e-6.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.layers import ResizeLike
from model_utils.windows import resize_aligned


@ms.constexpr
def _shifted_resizing(source: int, target: int) -> Tensor:
    """(target, 3 source): resizing with aligned corners, seen by the three taps of an axis.

    Tap d of output place p reads place p + d - 1 of the resized axis, or zero beyond its ends.
    """
    resized = resize_aligned(np.eye(source), (target, source)) if source != target else None
    matrix = np.eye(source) if resized is None else resized
    padded = np.pad(matrix, ((1, 1), (0, 0)))
    shifted = [padded[tap : tap + target] for tap in range(3)]
    return Tensor(np.concatenate(shifted, axis=1).astype(np.float32))


class PyramidConv(nn.Conv2d):
    """3 x 3 convolution of a tuple of maps, all resized to the first one's size.

    The weight is that of a convolution of all channels together. In evaluation it is computed as
    such, which exported files and the folding of BatchNorm understand (the converter to ONNX
    changes the order then); in training level by level, in 40 % of the time.

    Args:
        channels: of each map.
        levels: number of maps.
        outputs: channels of the result.
    """

    def __init__(self, channels: int, levels: int, outputs: int) -> None:
        super().__init__(channels * levels, outputs, 3, pad_mode="pad", padding=1)
        self.channels = channels
        self.resize = ResizeLike(align_corners=True)
        self.fine_conv = ops.Conv2D(outputs, 3, pad_mode="pad", pad=1)
        self.point_conv = ops.Conv2D(9 * outputs, 1)

    def construct(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps (N, C, h, w), the first the finest (N, C, H, W), to (N, outputs, H, W)."""
        finest = maps[0]
        if not self.training:
            return super().construct(self._joined(maps))
        y = self.fine_conv(finest, self.weight[:, : self.channels])
        for place in range(1, len(maps)):
            first = place * self.channels
            weight = self.weight[:, first : first + self.channels]
            y = y + self._coarse(maps[place], weight, finest)
        return y

    def _joined(self, maps: tuple[Tensor, ...]) -> Tensor:
        finest = maps[0]
        parts = (finest,)
        for place in range(1, len(maps)):
            parts = (*parts, self.resize(maps[place], finest))
        return ops.concat(parts, 1)

    def _coarse(self, x: Tensor, weight: Any, finest: Tensor) -> Tensor:
        """The part of one coarse map (N, C, h, w); weight (outputs, C, 3, 3)."""
        _, channels, rows, columns = x.shape
        count, _, height, width = finest.shape
        # Channels in the order output, tap along columns, tap along rows.
        taps = ops.transpose(weight, (0, 3, 2, 1)).reshape(-1, channels, 1, 1)
        y = self.point_conv(x, taps).reshape(-1, 3 * rows, columns)
        y = ops.matmul(_shifted_resizing(rows, height), y).reshape(-1, 3, height, columns)
        y = ops.transpose(y, (0, 2, 1, 3)).reshape(-1, 3 * columns)
        y = ops.matmul(y, _shifted_resizing(columns, width).T)
        return y.reshape(count, -1, height, width)
