"""Context over several ranges from the deepest map: APPPM and what it was compared with.

Every variant takes (N, inputs, H, W), already after a ReLU, and gives (N, outputs, H, W). Each
unit is pre-activated: [pooling,] BatchNorm, ReLU, convolution without bias. Pooling counts the
zeros of its padding, as PyTorch does by default. Parameter names of ``APPPM`` and ``DAPPM`` are
those of the published code; the others exist upstream only as figures, with names of our own.
"""

from mindspore import Tensor, nn, ops

from model_utils.layers import ResizeLike, conv2d


class BatchNormReluConv(nn.SequentialCell):
    """BatchNorm, ReLU, convolution: names ``0``, ``2``."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 1) -> None:
        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (high // 2, high // 2, wide // 2, wide // 2)
        super().__init__(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            conv2d(inputs, outputs, (high, wide), padding=padding),
        )


class GlobalAverage(nn.Cell):
    """(N, C, H, W) to (N, C, 1, 1)."""

    def construct(self, x: Tensor) -> Tensor:
        """Mean over height and width."""
        return x.mean(axis=(2, 3), keep_dims=True)


class PooledConv(nn.SequentialCell):
    """Average pooling, BatchNorm, ReLU, convolution: names ``1``, ``3``.

    Args:
        inputs, outputs: channels.
        kernel: of the convolution.
        window: (height, width) of the pooling; None averages everything.
        stride: (vertical, horizontal) of the pooling.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        window: tuple[int, int] | None,
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        if window is None:
            pool: nn.Cell = GlobalAverage()
        else:
            padding = (window[0] // 2, window[1] // 2)
            pool = nn.AvgPool2d(window, stride, pad_mode="pad", padding=padding)
        norm, relu, conv = BatchNormReluConv(inputs, outputs, kernel)
        super().__init__(pool, norm, relu, conv)


class BiAttention(nn.Cell):
    """a t + b (1 - t), where t in (0, 1) is one map computed from ReLU(a + b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = conv2d(channels, 1, 1, has_bias=True)
        self.relu = nn.ReLU()

    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        """Two (N, C, H, W) to one."""
        t = ops.sigmoid(self.conv3(self.relu(a + b)))
        return a * t + b * (1.0 - t)


class _Pyramid(nn.Cell):
    """What all variants share: 1 x 1 branch, compression of the joined branches, shortcut."""

    def __init__(self, inputs: int, branch: int, outputs: int, branches: int) -> None:
        super().__init__()
        self.scale0 = BatchNormReluConv(inputs, branch)
        self.scale4 = PooledConv(inputs, branch, 1, None)
        self.compression = BatchNormReluConv(branch * branches, outputs)
        self.shortcut = BatchNormReluConv(inputs, outputs)
        self.up = ResizeLike()


class APPPM(_Pyramid):
    """Asymmetric pooling pyramid pooling module (``TAPPM`` in the published code).

    Three branches pool first along rows, then along columns, 5, 9 and 17 pixels wide.
    """

    def __init__(self, inputs: int, branch: int, outputs: int) -> None:
        super().__init__(inputs, branch, outputs, 5)
        self.scale1 = PooledConv(inputs, branch, 3, (1, 5), (1, 2))
        self.scale11 = PooledConv(branch, branch, 3, (5, 1), (2, 1))
        self.scale2 = PooledConv(inputs, branch, 3, (1, 9), (1, 4))
        self.scale22 = PooledConv(branch, branch, 3, (9, 1), (4, 1))
        self.scale3 = PooledConv(inputs, branch, 3, (1, 17), (1, 8))
        self.scale33 = PooledConv(branch, branch, 3, (17, 1), (8, 1))
        self.atten = BiAttention(outputs)

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        branches = (
            self.scale0(x),
            self.up(self.scale11(self.scale1(x)), x),
            self.up(self.scale22(self.scale2(x)), x),
            self.up(self.scale33(self.scale3(x)), x),
            self.up(self.scale4(x), x),
        )
        return self.atten(self.shortcut(x), self.compression(ops.concat(branches, 1)))


class DAPPM(_Pyramid):
    """Deep aggregation pyramid pooling (Hong et al. 2021, DDRNet): square pools in a cascade."""

    def __init__(self, inputs: int, branch: int, outputs: int) -> None:
        super().__init__(inputs, branch, outputs, 5)
        self.scale1 = PooledConv(inputs, branch, 1, (5, 5), (2, 2))
        self.scale2 = PooledConv(inputs, branch, 1, (9, 9), (4, 4))
        self.scale3 = PooledConv(inputs, branch, 1, (17, 17), (8, 8))
        self.process1 = self.process(branch)
        self.process2 = self.process(branch)
        self.process3 = self.process(branch)
        self.process4 = self.process(branch)

    @staticmethod
    def process(channels: int) -> nn.Cell:
        """What smooths a branch after the previous one was added."""
        return BatchNormReluConv(channels, channels, 3)

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        x0 = self.scale0(x)
        x1 = self.process1(self.up(self.scale1(x), x) + x0)
        x2 = self.process2(self.up(self.scale2(x), x) + x1)
        x3 = self.process3(self.up(self.scale3(x), x) + x2)
        x4 = self.process4(self.up(self.scale4(x), x) + x3)
        return self.compression(ops.concat((x0, x1, x2, x3, x4), 1)) + self.shortcut(x)


class AAPPM(DAPPM):
    """DAPPM whose 3 x 3 smoothing is a 3 x 1 and a 1 x 3 convolution (upstream's history).

    The published copy has its BatchNorms commented out; here the unit keeps the first.
    """

    @staticmethod
    def process(channels: int) -> nn.Cell:
        """BatchNorm, ReLU, 3 x 1, ReLU, 1 x 3."""
        return nn.SequentialCell(
            BatchNormReluConv(channels, channels, (3, 1)),
            nn.ReLU(),
            conv2d(channels, channels, (1, 3), padding=(0, 0, 1, 1)),
        )


class DAPPMFew(_Pyramid):
    """DAPPM with fewer branches (figure ``aappm2`` upstream): no 17-pixel pool, attention."""

    def __init__(self, inputs: int, branch: int, outputs: int) -> None:
        super().__init__(inputs, branch, outputs, 4)
        self.scale1 = PooledConv(inputs, branch, 1, (5, 5), (2, 2))
        self.scale2 = PooledConv(inputs, branch, 1, (9, 9), (4, 4))
        self.process1 = BatchNormReluConv(branch, branch, 3)
        self.process2 = BatchNormReluConv(branch, branch, 3)
        self.atten = BiAttention(outputs)

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        x0 = self.scale0(x)
        x1 = self.process1(self.up(self.scale1(x), x) + x0)
        x2 = self.process2(self.up(self.scale2(x), x) + x1)
        x4 = self.up(self.scale4(x), x)
        return self.atten(self.shortcut(x), self.compression(ops.concat((x0, x1, x2, x4), 1)))


class SPPFTAB(_Pyramid):
    """Pooling blocks in series, as in SPPF (figure ``SPPF TAB`` upstream).

    A TAB pools along rows and convolves, then pools along columns and convolves; here the
    second drawn form, with 3 x 3 convolutions. The figure gives no strides: 2 per TAB makes
    the levels 1/2, 1/4 and 1/8, like APPPM's. Branch k passes through k blocks of its own.

    Args:
        inputs, branch, outputs: channels.
        add: ``SPPF TAB ADD``: after each level a branch is added to the next one to its right.
    """

    def __init__(self, inputs: int, branch: int, outputs: int, add: bool = False) -> None:
        super().__init__(inputs, branch, outputs, 5)
        self.tab1 = self.block(inputs, branch)
        self.tab2 = nn.CellList([self.block(inputs, branch), self.block(branch, branch)])
        self.tab3 = nn.CellList(
            [self.block(inputs, branch), self.block(branch, branch), self.block(branch, branch)]
        )
        self.atten = BiAttention(outputs)
        self.add = add

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.SequentialCell:
        """One TAB: halves height and width."""
        return nn.SequentialCell(
            PooledConv(inputs, outputs, 3, (1, 5), (1, 2)),
            PooledConv(outputs, outputs, 3, (5, 1), (2, 1)),
        )

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        first = self.tab1(x)
        second, third = self.tab2[0](x), self.tab3[0](x)
        if self.add:
            second = second + first
            third = third + second
        second, third = self.tab2[1](second), self.tab3[1](third)
        if self.add:
            third = third + second
        third = self.tab3[2](third)
        branches = (
            self.scale0(x),
            self.up(first, x),
            self.up(second, x),
            self.up(third, x),
            self.up(self.scale4(x), x),
        )
        return self.atten(self.shortcut(x), self.compression(ops.concat(branches, 1)))


class SPPFTABAdd(SPPFTAB):
    """SPPF TAB with additions between neighbouring branches."""

    def __init__(self, inputs: int, branch: int, outputs: int) -> None:
        super().__init__(inputs, branch, outputs, add=True)


POOLINGS: dict[str, type[_Pyramid]] = {
    "apppm": APPPM,
    "dappm": DAPPM,
    "dappm_few": DAPPMFew,
    "aappm": AAPPM,
    "sppf_tab": SPPFTAB,
    "sppf_tab_add": SPPFTABAdd,
}
