"""Convolutions of resized maps, for the tests of the converter's reordering."""

from mindspore import nn, ops

from model_utils.layers import conv2d


class Pyramid(nn.Cell):
    """Maps resized to the first one's size, side by side, convolved.

    Args:
        channels: of each map.
        kernel, padding, dilation, stride, group, bias: of the convolution.
        corners: aligned in resizing.
    """

    def __init__(
        self, channels, kernel=3, padding=1, dilation=1, stride=1, group=1, bias=True, corners=True
    ):
        super().__init__()
        self.conv = conv2d(
            sum(channels), 6, kernel, stride, padding, dilation, group, has_bias=bias
        )
        if bias:
            self.conv.bias.set_data(ops.arange(6).astype(self.conv.bias.dtype) - 2.5)
        self.resize = ops.ResizeBilinearV2(corners, not corners)

    def construct(self, *maps):
        size = maps[0].shape[2:]
        parts = ()
        for item in maps:
            parts = (*parts, item if item.shape[2:] == size else self.resize(item, size))
        return self.conv(ops.concat(parts, 1))


class Alone(nn.Cell):
    """A resized map convolved without others."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.conv = conv2d(5, 6, 3, padding=1, has_bias=True)
        self.resize = ops.ResizeBilinearV2(True, False)

    def construct(self, x):
        return self.conv(self.resize(x, self.size))


class Pair(nn.Cell):
    """A map and one resized to its size.

    Args:
        shared: the resized map is an output as well.
    """

    def __init__(self, shared=False):
        super().__init__()
        self.shared = shared
        self.conv = conv2d(8, 6, 3, padding=1)
        self.resize = ops.ResizeBilinearV2(True, False)

    def construct(self, x, y):
        y = self.resize(y, ops.shape(x)[2:])
        z = self.conv(ops.concat((x, y), 1))
        return (z, y) if self.shared else z
