"""SANet: spatial detail kept at 1/8 resolution, context from a deep path, joined by attention.

Wang, Chen, Bian, Li, Lu, "Spatial-Assistant Encoder-Decoder Network for Real Time Semantic
Segmentation", arXiv 2309.10519. Layers and parameter names are those of the published
implementation (CuZaoo/SANet-main); what its checkpoints hold but its forward pass never uses
(``spp.process*``, ``seghead_d2``, ``fc``) is not built, and left out by convert.py.

All convolutions pad so that stride 1 keeps the size; all resizing inside the network is
bilinear with half-pixel centres (align_corners False in PyTorch).
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.layers import Dropout, ResizeLike, conv2d

from .pyramid_pooling import POOLINGS

# Blocks of layer1, of layer2 and layer3 (which share one number), of layer4 and of layer5; then
# the dilations of the two detail paths (Table 1 of the paper; the published code).
VARIANTS: dict[str, tuple[tuple[int, int, int, int], tuple[int, ...], tuple[int, ...]]] = {
    "S": ((2, 2, 2, 2), (1, 2, 5), (7, 13)),
    "M": ((3, 3, 9, 3), (1, 2, 5), (7, 13)),
    "L": ((3, 3, 27, 3), (1, 2, 5, 7, 13), (1, 2, 5, 7, 13)),
}
PLANES = 32
# Encoder stride of the main logits; a deeper path runs at 1/64.
STRIDE = 8


def same_conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Square convolution whose padding keeps the size at stride 1."""
    return conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding=dilation * (kernel - 1) // 2,
        dilation=dilation,
        has_bias=bias,
    )


class BasicBlock(nn.Cell):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016).

    Args:
        inputs, outputs: channels.
        stride: of the first convolution.
        final_relu: False leaves the ReLU to whoever uses the result.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, final_relu: bool = True) -> None:
        super().__init__()
        self.conv1 = same_conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = same_conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)
        self.final_relu = final_relu

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y = y + (x if self.downsample is None else self.downsample(x))
        return self.relu(y) if self.final_relu else y


class Bottleneck(nn.Cell):
    """1 x 1, 3 x 3 and 1 x 1 convolution to twice the width, a shortcut, no final ReLU."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = same_conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = same_conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = same_conv(width, 2 * width, 1)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, 2 * width, stride)

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 2 width, H / stride, W / stride)."""
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.SequentialCell | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.SequentialCell(same_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def residual_layer(blocks: int, inputs: int, outputs: int, stride: int = 1) -> nn.SequentialCell:
    """``blocks`` basic blocks; the last has no ReLU, since the caller needs both forms."""
    return nn.SequentialCell(
        [
            BasicBlock(
                inputs if place == 0 else outputs,
                outputs,
                stride if place == 0 else 1,
                final_relu=place < blocks - 1,
            )
            for place in range(blocks)
        ]
    )


class DilatedPath(nn.Cell):
    """A chain of dilated 3 x 3 convolutions that keeps the resolution (spatial detail).

    Args:
        inputs, channels: a 1 x 1 convolution, ``hconv``, changes the width where they differ.
        dilations: of the chain, in order.
    """

    def __init__(self, inputs: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.hconv = same_conv(inputs, channels, 1, bias=True) if inputs != channels else None
        self.conv = nn.SequentialCell(
            [
                nn.SequentialCell(
                    same_conv(channels, channels, 3, dilation=dilation),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                )
                for dilation in dilations
            ]
        )

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, channels, H, W), not negative."""
        return self.conv(x if self.hconv is None else self.hconv(x))


class SegmentationHead(nn.Cell):
    """BN, ReLU, 3 x 3, BN, ReLU, 1 x 1: features to logits at the same resolution."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = same_conv(inputs, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = same_conv(width, outputs, 1, bias=True)
        self.relu = nn.ReLU()

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        x = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(x)))


class SADecoder(nn.Cell):
    """Spatial-assistant decoder: context joined to detail by attention (``Decoder`` upstream).

    The attention of two directional convolutions is a sum of two sigmoids, so in (0, 2).

    Args:
        channels: of all four inputs.
        outputs: of the result.
        attention: "add" sums the two guides, "cat" puts them side by side.
    """

    def __init__(self, channels: int, outputs: int, attention: str = "add") -> None:
        super().__init__()
        guides = 2 * channels if attention == "cat" else channels
        self.conv_H = conv2d(guides, channels, (1, 3), padding=(0, 0, 1, 1))
        self.conv_W = conv2d(guides, channels, (3, 1), padding=(1, 1, 0, 0))
        self.conv_out = same_conv(channels, outputs, 1)
        self.relu = nn.ReLU()
        self.resize = ResizeLike()
        self.joined = attention == "cat"

    def construct(self, d1: Tensor, d2: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Guides d1, d2 and detail x (N, C, H, W), context y (N, C, h, w) to (N, outputs, H, W)."""
        y = self.resize(self.relu(y), x)
        guide = ops.concat((d1, d2), 1) if self.joined else d1 + d2
        attention = ops.sigmoid(self.conv_H(guide)) + ops.sigmoid(self.conv_W(guide))
        return self.conv_out(x * attention + x + y * (1.0 - attention) + y)


class SANetEncoderDecoder(nn.Cell):
    """Everything up to the decoder's 64 channels; base of both builds.

    Args:
        variant: "S", "M" or "L".
        pooling: pyramid pooling, a name of ``pyramid_pooling.POOLINGS``.
        attention: of the decoder.
    """

    def __init__(self, variant: str, pooling: str, attention: str) -> None:
        super().__init__()
        (first, middle, fourth, fifth), short, long = VARIANTS[variant]
        p = PLANES
        self.stom = nn.SequentialCell(
            same_conv(3, p, 3, 2, bias=True),
            nn.BatchNorm2d(p),
            nn.ReLU(),
            same_conv(p, p, 3, 2, bias=True),
            nn.BatchNorm2d(p),
            nn.ReLU(),
        )
        self.layer1 = residual_layer(first, p, p)
        self.layer2 = residual_layer(middle, p, 2 * p, 2)
        self.layer3 = residual_layer(middle, 2 * p, 4 * p)
        self.layer4 = residual_layer(fourth, 2 * p, 4 * p, 2)
        self.layer5 = residual_layer(fifth, 4 * p, 8 * p, 2)
        self.layer6 = nn.SequentialCell(Bottleneck(8 * p, 8 * p, 2))
        self.spp = POOLINGS[pooling](16 * p, 4 * p, 4 * p)
        self.dp1 = DilatedPath(2 * p, 4 * p, short)
        self.dp2 = DilatedPath(4 * p, 4 * p, long)
        self.decoder = SADecoder(4 * p, 2 * p, attention)
        self.compression = nn.SequentialCell(same_conv(8 * p, 4 * p, 1), nn.BatchNorm2d(4 * p))
        self.down4 = nn.SequentialCell(same_conv(4 * p, 4 * p, 3, 2), nn.BatchNorm2d(4 * p))
        self.down5 = nn.SequentialCell(
            same_conv(4 * p, 4 * p, 3, 2),
            nn.BatchNorm2d(4 * p),
            nn.ReLU(),
            same_conv(4 * p, 8 * p, 3, 2),
            nn.BatchNorm2d(8 * p),
        )
        self.relu = nn.ReLU()
        self.resize = ResizeLike()

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, H, W) to the features of the three heads.

        Returns:
            layer4 (N, 128, H / 16, W / 16), detail (N, 128, H / 8, W / 8) and decoded features
            (N, 64, H / 8, W / 8); sizes are rounded up.
        """
        relu = self.relu
        x = relu(self.layer1(self.stom(image)))
        x3 = self.layer3(relu(self.layer2(x)))
        # Half of the channels goes on at 1/8, the other half goes deeper.
        shallow, deep = ops.split(relu(x3), 2 * PLANES, 1)
        detail1 = self.dp1(shallow)
        x4 = self.layer4(deep)
        x = x4 + self.down4(detail1)
        detail1 = x3 + detail1 + self.resize(relu(x4), x3)
        detail2 = self.dp2(detail1)
        x = self.layer5(relu(x)) + self.down5(detail2)  # a ReLU ends dp2
        x = relu(x)
        detail = detail2 + self.resize(self.compression(x), x3)
        context = self.spp(relu(self.layer6(x)))
        return x4, detail, self.decoder(detail1, detail2, detail, context)


class SANetNetwork(SANetEncoderDecoder):
    """The segmentation network with its three heads, as trained.

    Args:
        variant: "S", "M" or "L".
        classes: of the main and auxiliary head.
        pooling, attention: as above.
        seed: of the initial weights; None leaves the framework's (to be loaded over).
    """

    def __init__(
        self,
        variant: str = "S",
        classes: int = 19,
        pooling: str = "apppm",
        attention: str = "add",
        seed: int | None = None,
    ) -> None:
        super().__init__(variant, pooling, attention)
        p = PLANES
        self.final_layer = SegmentationHead(2 * p, 2 * p, classes)
        self.seghead_extra = SegmentationHead(4 * p, 2 * p, classes)
        self.seghead_d = SegmentationHead(4 * p, p, 1)
        if seed is not None:
            initialize(self, seed)

    def construct(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images (N, 3, H, W) of any size to logits.

        Returns:
            aux (N, classes, H / 16, W / 16), main (N, classes, H / 8, W / 8) and boundary
            (N, 1, H / 8, W / 8); sizes are rounded up.
        """
        x4, detail, decoded = self.features(image)
        return self.seghead_extra(x4), self.final_layer(decoded), self.seghead_d(detail)


class SANetClassifier(SANetEncoderDecoder):
    """The ImageNet build: decoder, global average pooling, two dense layers.

    Args:
        variant, pooling, attention, seed: as for SANetNetwork.
        classes: 1000 for ImageNet.
        rank: this process's rank, for dropout masks that do not depend on the rank count.
    """

    def __init__(
        self,
        variant: str = "S",
        classes: int = 1000,
        pooling: str = "apppm",
        attention: str = "add",
        seed: int | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__(variant, pooling, attention)
        self.classifier = nn.SequentialCell(
            nn.Dense(2 * PLANES, 128, has_bias=False),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            Dropout(0.2, rank=rank),
            nn.Dense(128, classes),
        )
        if seed is not None:
            initialize(self, seed)

    def construct(self, image: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, classes)."""
        _, _, decoded = self.features(image)
        return self.classifier(decoded.mean(axis=(2, 3)))


def initialize(network: nn.Cell, seed: int) -> None:
    """Upstream's initial weights.

    Convolutions: normal, He's deviation for the fan-out (kaiming_normal_, fan_out, relu). Their
    biases, and dense layers, keep PyTorch's default: uniform in 1 / sqrt(fan-in).
    """
    rng = np.random.default_rng(seed)
    for _, cell in network.cells_and_names():
        if isinstance(cell, nn.Conv2d):
            outputs, *rest = cell.weight.shape
            deviation = np.sqrt(2.0 / (outputs * np.prod(rest[1:])))
            weight = deviation * rng.standard_normal(cell.weight.shape)
            bound = 1.0 / np.sqrt(np.prod(rest))
        elif isinstance(cell, nn.Dense):
            bound = 1.0 / np.sqrt(cell.weight.shape[1])
            weight = rng.uniform(-bound, bound, cell.weight.shape)
        else:
            continue
        cell.weight.set_data(Tensor(weight.astype(np.float32)))
        if cell.has_bias:
            bias = rng.uniform(-bound, bound, cell.bias.shape)
            cell.bias.set_data(Tensor(bias.astype(np.float32)))
