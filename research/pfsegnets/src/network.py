"""PFNet: an encoder, pyramid pooling, and a feature pyramid joined by PointFlow modules.

Li et al., CVPR 2021 (see point_flow.py); details as in the published code.
All resizing inside the network is bilinear with aligned corners.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.errors import UserError
from model_utils.layers import Dropout, ResizeLike, conv2d

from .backbones import STAGE_CHANNELS, deep_stem, plain_stem, stage
from .joining import PyramidConv
from .point_flow import PointFlow
from .pooling import AdaptiveAverage

# Input sides are multiples of this: every map then has exactly half the side of the one before,
# which the PointFlow modules rely on.
STRIDE = 32
CHANNELS = 256


def _conv_bn_relu(inputs: int, outputs: int, kernel: int, bias: bool = False) -> nn.SequentialCell:
    return nn.SequentialCell(
        conv2d(inputs, outputs, kernel, padding=kernel // 2, has_bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class ChannelDropout(nn.Cell):
    """Dropout of whole channels (PyTorch's Dropout2d)."""

    def __init__(self, p: float, rank: int = 0) -> None:
        super().__init__()
        self.dropout = Dropout(p, rank=rank)

    def construct(self, x: Tensor) -> Tensor:
        """(N, C, H, W), each channel of each sample zeroed or scaled."""
        if not self.training:
            return x
        return x * self.dropout(ops.ones((x.shape[0], x.shape[1], 1, 1), x.dtype))


class PyramidPooling(nn.Cell):
    """Context at several scales (Zhao et al. 2017), without ReLU after the priors.

    Args:
        inputs: channels of the encoder's last map.
        channels: of the result and of each prior.
        sizes: windows per side of each prior.
        pool_style: of the windows.
        dropout: ``channel``, ``element`` or ``none``, with probability 0.1.
        rank: this process's rank, for masks that do not depend on the rank count.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        sizes: Sequence[int],
        pool_style: str,
        dropout: str,
        rank: int,
    ) -> None:
        super().__init__()
        self.stages = nn.CellList(
            [
                nn.SequentialCell(
                    AdaptiveAverage(size, pool_style),
                    conv2d(inputs, channels, 1),
                    nn.BatchNorm2d(channels),
                )
                for size in sizes
            ]
        )
        self.bottleneck = _conv_bn_relu(inputs + channels * len(sizes), channels, 1)
        if dropout == "channel":
            self.bottleneck.append(ChannelDropout(0.1, rank))
        elif dropout == "element":
            self.bottleneck.append(Dropout(0.1, rank=rank))
        self.resize = ResizeLike(align_corners=True)

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, channels, H, W)."""
        parts = [self.resize(prior(x), x) for prior in self.stages]
        return self.bottleneck(ops.concat((*parts, x), 1))


class PFHead(nn.Cell):
    """Feature pyramid whose top-down paths are PointFlow modules (figure 2 of the paper).

    Args:
        classes: K.
        psp_sizes: of the pyramid pooling.
        pool_style: ``torch`` or ``jittor``.
        dropout, rank: of the pyramid pooling.
        point_flow: False takes plain upsampling instead (UperNet's pyramid).
        max_pool_size, avg_pool_size, edge_points, match_dim: of PointFlow.
    """

    def __init__(
        self,
        classes: int,
        psp_sizes: Sequence[int],
        pool_style: str,
        dropout: str,
        rank: int,
        point_flow: bool,
        max_pool_size: int,
        avg_pool_size: int,
        edge_points: int,
        match_dim: int,
    ) -> None:
        super().__init__()
        *shallow, deepest = STAGE_CHANNELS
        self.ppm = PyramidPooling(deepest, CHANNELS, psp_sizes, pool_style, dropout, rank)
        self.fpn_in = nn.CellList([_conv_bn_relu(c, CHANNELS, 1, bias=True) for c in shallow])
        self.fpn_out = nn.CellList(
            [nn.SequentialCell(_conv_bn_relu(CHANNELS, CHANNELS, 3)) for _ in shallow]
        )
        self.point_flow = point_flow
        if point_flow:
            self.fpn_out_align = nn.CellList(
                [
                    PointFlow(
                        CHANNELS, match_dim, max_pool_size, avg_pool_size, edge_points, pool_style
                    )
                    for _ in shallow
                ]
            )
        self.conv_last = nn.SequentialCell(
            nn.SequentialCell(
                PyramidConv(CHANNELS, len(STAGE_CHANNELS), CHANNELS),
                nn.BatchNorm2d(CHANNELS),
                nn.ReLU(),
            ),
            conv2d(CHANNELS, classes, 1, has_bias=True),
        )
        self.resize = ResizeLike(align_corners=True)

    def construct(
        self, c1: Tensor, c2: Tensor, c3: Tensor, c4: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The encoder's maps at 1/4, 1/8, 1/16 and 1/32.

        Returns:
            Logits (N, K, H / 4, W / 4), and edge logits at 1/32, 1/16 and 1/8 (none without
            PointFlow).
        """
        context = self.ppm(c4)
        flowing = context
        levels, edges = [context], []
        for place in (2, 1, 0):
            lateral = self.fpn_in[place]((c1, c2, c3)[place])
            if self.point_flow:
                # Off the chosen points this is twice the lateral map, as published.
                replaced, edge = self.fpn_out_align[place](flowing, lateral)
                flowing = lateral + replaced
                edges.append(edge)
            else:
                flowing = lateral + self.resize(flowing, lateral)
            levels.append(self.fpn_out[place](flowing))
        finest_first = (levels[3], levels[2], levels[1], levels[0])
        return self.conv_last(finest_first), tuple(edges)


class PFNet(nn.Cell):
    """The network as trained.

    Args:
        backbone: ``resnet50``, ``resnet101`` or ``res2net101``.
        classes: K.
        psp_sizes: windows per side of the pyramid pooling; (1, 2, 3, 7) in the Jittor port.
        pool_style: ``torch``, or ``jittor`` for weights of the Jittor port.
        dropout: ``channel`` (original), ``element`` (port) or ``none``.
        max_pool_size, avg_pool_size, edge_points, match_dim: of the PointFlow modules.
        point_flow: False replaces these modules by upsampling (ablation).
        freeze_batch_norm: train with the stored statistics.
        zero_residual: begin with residual blocks that do nothing (see initialize).
        seed: of the initial weights; None leaves the framework's (to be loaded over).
        rank: this process's rank.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        classes: int = 16,
        psp_sizes: Sequence[int] = (1, 2, 3, 6),
        pool_style: str = "torch",
        dropout: str = "channel",
        max_pool_size: int = 14,
        avg_pool_size: int = 9,
        edge_points: int = 128,
        match_dim: int = 64,
        point_flow: bool = True,
        freeze_batch_norm: bool = False,
        zero_residual: bool = False,
        seed: int | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.layer0 = plain_stem() if backbone == "res2net101" else deep_stem()
        self.layer1 = stage(backbone, 1)
        self.layer2 = stage(backbone, 2)
        self.layer3 = stage(backbone, 3)
        self.layer4 = stage(backbone, 4)
        self.head = PFHead(
            classes,
            psp_sizes,
            pool_style,
            dropout,
            rank,
            point_flow,
            max_pool_size,
            avg_pool_size,
            edge_points,
            match_dim,
        )
        self.smallest = 1
        if pool_style == "jittor":
            sizes = [*psp_sizes, max_pool_size, avg_pool_size] if point_flow else psp_sizes
            self.smallest = max(sizes)
        if freeze_batch_norm:
            for cell in self.cells_and_names():
                if isinstance(cell[1], nn.BatchNorm2d):
                    cell[1].use_batch_statistics = False
        if seed is not None:
            initialize(self, seed, zero_residual)

    def construct(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised images (N, 3, H, W), H and W multiples of 32.

        Returns:
            Logits (N, K, H / 4, W / 4) and edge logits ((N, 1, H / 32, W / 32), (N, 1, H / 16,
            W / 16), (N, 1, H / 8, W / 8)); no edge logits without PointFlow.
        """
        c1 = self.layer1(self.layer0(image))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return self.head(c1, c2, c3, self.layer4(c3))

    def check_size(self, height: int, width: int) -> None:
        """Refuse sizes for which the published arithmetic has no meaning.

        Raises:
            UserError: a side is no multiple of 32, or too short for the equal pooling windows
                of the Jittor port.
        """
        if height % STRIDE or width % STRIDE or min(height, width) <= 0:
            raise UserError(
                f"PFNet takes images whose sides are multiples of {STRIDE}, not {height}x{width} "
                "(rows x columns); pad or resize them"
            )
        if min(height, width) // STRIDE < self.smallest:
            raise UserError(
                f"images of {height}x{width} are too small for pool_style=jittor with "
                f"{self.smallest} windows per side; take sides of at least "
                f"{STRIDE * self.smallest}, or pool_style=torch"
            )


def initialize(network: nn.Cell, seed: int, zero_residual: bool = False) -> None:
    """Upstream's initial weights.

    Encoder: normal, He's deviation for the fan-out. Head and biases: PyTorch's default, uniform
    in 1 / sqrt(fan-in).

    Args:
        network: PFNet.
        seed: of the draws.
        zero_residual: the last batch normalisation of every block scales by 0, so that blocks
            begin as their shortcuts; without pretrained weights training is faster then (Goyal
            et al. 2017, section 5.1). Not upstream's.
    """
    rng = np.random.default_rng(seed)
    for name, cell in network.cells_and_names():
        if zero_residual and name.startswith("layer") and name.endswith(".bn3"):
            cell.gamma.set_data(Tensor(np.zeros(cell.gamma.shape, np.float32)))
        if not isinstance(cell, nn.Conv2d):
            continue
        outputs, *rest = cell.weight.shape
        bound = 1.0 / np.sqrt(np.prod(rest))
        if name.startswith("layer"):
            deviation = np.sqrt(2.0 / (outputs * np.prod(rest[1:])))
            weight = deviation * rng.standard_normal(cell.weight.shape)
        else:
            weight = rng.uniform(-bound, bound, cell.weight.shape)
        cell.weight.set_data(Tensor(weight.astype(np.float32)))
        if cell.has_bias:
            bias = rng.uniform(-bound, bound, cell.bias.shape)
            cell.bias.set_data(Tensor(bias.astype(np.float32)))
