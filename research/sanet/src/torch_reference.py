"""The same network, losses and training step in PyTorch, as the benchmark's yardstick.

Written for this project from the same description as `network`, `pyramid_pooling` and `losses`;
parameter names are those of the published checkpoints, so weights carry over by name. PyTorch is
an optional extra (``pip install -e .[torch]``) and only ``benchmark.py`` and the tests use it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_utils import torch_counterpart
from model_utils.torch_counterpart import TrainStep

# Repeated rather than imported: a process that times PyTorch must not load MindSpore.
VARIANTS: dict[str, tuple[tuple[int, int, int, int], tuple[int, ...], tuple[int, ...]]] = {
    "S": ((2, 2, 2, 2), (1, 2, 5), (7, 13)),
    "M": ((3, 3, 9, 3), (1, 2, 5), (7, 13)),
    "L": ((3, 3, 27, 3), (1, 2, 5, 7, 13), (1, 2, 5, 7, 13)),
}
PLANES = 32
IGNORE = 255


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1, bias: bool = False
) -> nn.Conv2d:
    padding = dilation * (size - 1) // 2
    return nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=bias)


def _resize_like(x: Tensor, reference: Tensor) -> Tensor:
    return functional.interpolate(x, reference.shape[2:], mode="bilinear", align_corners=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, final_relu: bool) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y = y + (x if self.downsample is None else self.downsample(x))
        return self.relu(y) if self.final_relu else y


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution to twice the width, no final ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 2 * width, 1)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 2 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 2 width, H / stride, W / stride)."""
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))


def _layer(blocks: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *(
            BasicBlock(
                outputs if place else inputs, outputs, 1 if place else stride, place < blocks - 1
            )
            for place in range(blocks)
        )
    )


class DilatedPath(nn.Module):
    """A chain of dilated convolutions that keeps the resolution."""

    def __init__(self, inputs: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.hconv = _conv(inputs, channels, 1, bias=True) if inputs != channels else None
        self.conv = nn.Sequential(
            *(
                nn.Sequential(
                    _conv(channels, channels, 3, dilation=dilation),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                )
                for dilation in dilations
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, channels, H, W)."""
        return self.conv(x if self.hconv is None else self.hconv(x))


class Head(nn.Module):
    """BN, ReLU, 3 x 3, BN, ReLU, 1 x 1."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, outputs, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        x = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(x)))


class Decoder(nn.Module):
    """Context joined to detail by the attention of two directional convolutions."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv_H = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.conv_W = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        self.conv_out = _conv(channels, outputs, 1)

    def forward(self, d1: Tensor, d2: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Guides and detail (N, C, H, W), context (N, C, h, w) to (N, outputs, H, W)."""
        y = _resize_like(torch.relu(y), x)
        guide = d1 + d2
        attention = torch.sigmoid(self.conv_H(guide)) + torch.sigmoid(self.conv_W(guide))
        return self.conv_out(x * attention + x + y * (1.0 - attention) + y)


def _unit(inputs: int, outputs: int, size: int, pool: nn.Module | None = None) -> nn.Sequential:
    """[Pooling,] BatchNorm, ReLU, convolution."""
    # Not in place: several units read the same input.
    parts = [nn.BatchNorm2d(inputs), nn.ReLU(), _conv(inputs, outputs, size)]
    return nn.Sequential(*([] if pool is None else [pool]), *parts)


class BiAttention(nn.Module):
    """a t + b (1 - t) with one map t from ReLU(a + b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = _conv(channels, 1, 1, bias=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two (N, C, H, W) to one."""
        t = torch.sigmoid(self.conv3(torch.relu(a + b)))
        return a * t + b * (1.0 - t)


class APPPM(nn.Module):
    """Pyramid pooling along rows, then along columns."""

    def __init__(self, inputs: int, branch: int, outputs: int) -> None:
        super().__init__()
        self.scale0 = _unit(inputs, branch, 1)
        for number, (width, stride) in enumerate(((5, 2), (9, 4), (17, 8)), 1):
            rows = nn.AvgPool2d((1, width), (1, stride), (0, width // 2))
            columns = nn.AvgPool2d((width, 1), (stride, 1), (width // 2, 0))
            setattr(self, f"scale{number}", _unit(inputs, branch, 3, rows))
            setattr(self, f"scale{number}{number}", _unit(branch, branch, 3, columns))
        self.scale4 = _unit(inputs, branch, 1, nn.AdaptiveAvgPool2d(1))
        self.compression = _unit(5 * branch, outputs, 1)
        self.shortcut = _unit(inputs, outputs, 1)
        self.atten = BiAttention(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        branches = [
            self.scale0(x),
            _resize_like(self.scale11(self.scale1(x)), x),
            _resize_like(self.scale22(self.scale2(x)), x),
            _resize_like(self.scale33(self.scale3(x)), x),
            _resize_like(self.scale4(x), x),
        ]
        return self.atten(self.shortcut(x), self.compression(torch.cat(branches, 1)))


class SANetTorch(nn.Module):
    """The segmentation network.

    Args:
        variant: "S", "M" or "L".
        classes: of the main and auxiliary head.
        heads: also build and return the auxiliary and boundary heads, as in training.
    """

    def __init__(self, variant: str = "S", classes: int = 19, heads: bool = True) -> None:
        super().__init__()
        (first, middle, fourth, fifth), short, long = VARIANTS[variant]
        p = PLANES
        self.stom = nn.Sequential(
            _conv(3, p, 3, 2, bias=True),
            nn.BatchNorm2d(p),
            nn.ReLU(inplace=True),
            _conv(p, p, 3, 2, bias=True),
            nn.BatchNorm2d(p),
            nn.ReLU(inplace=True),
        )
        self.layer1 = _layer(first, p, p)
        self.layer2 = _layer(middle, p, 2 * p, 2)
        self.layer3 = _layer(middle, 2 * p, 4 * p)
        self.layer4 = _layer(fourth, 2 * p, 4 * p, 2)
        self.layer5 = _layer(fifth, 4 * p, 8 * p, 2)
        self.layer6 = nn.Sequential(Bottleneck(8 * p, 8 * p, 2))
        self.spp = APPPM(16 * p, 4 * p, 4 * p)
        self.dp1 = DilatedPath(2 * p, 4 * p, short)
        self.dp2 = DilatedPath(4 * p, 4 * p, long)
        self.decoder = Decoder(4 * p, 2 * p)
        self.compression = nn.Sequential(_conv(8 * p, 4 * p, 1), nn.BatchNorm2d(4 * p))
        self.down4 = nn.Sequential(_conv(4 * p, 4 * p, 3, 2), nn.BatchNorm2d(4 * p))
        self.down5 = nn.Sequential(
            _conv(4 * p, 4 * p, 3, 2),
            nn.BatchNorm2d(4 * p),
            nn.ReLU(inplace=True),
            _conv(4 * p, 8 * p, 3, 2),
            nn.BatchNorm2d(8 * p),
        )
        self.final_layer = Head(2 * p, 2 * p, classes)
        self.heads = heads
        if heads:
            self.seghead_extra = Head(4 * p, 2 * p, classes)
            self.seghead_d = Head(4 * p, p, 1)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, H, W) to main logits, or with heads to (aux, main, boundary)."""
        x = torch.relu(self.layer1(self.stom(image)))
        x3 = self.layer3(torch.relu(self.layer2(x)))
        shallow, deep = torch.relu(x3).split(2 * PLANES, 1)
        detail1 = self.dp1(shallow)
        x4 = self.layer4(deep)
        x = x4 + self.down4(detail1)
        detail1 = x3 + detail1 + _resize_like(torch.relu(x4), x3)
        detail2 = self.dp2(detail1)
        x = torch.relu(self.layer5(torch.relu(x)) + self.down5(torch.relu(detail2)))
        detail = detail2 + _resize_like(self.compression(x), x3)
        context = self.spp(torch.relu(self.layer6(x)))
        main = self.final_layer(self.decoder(detail1, detail2, detail, context))
        if not self.heads:
            return main
        return self.seghead_extra(x4), main, self.seghead_d(detail)


def _hard_examples(loss: Tensor, probability: Tensor, threshold: float, keep: int) -> Tensor:
    """Mean of the valid pixels' losses below the limit; 0 if there is none."""
    if not len(loss):
        return loss.sum()
    limit = probability.sort().values[min(keep, len(loss) - 1)].clamp(min=threshold)
    kept = loss[probability < limit]
    return kept.mean() if len(kept) else loss.sum() * 0.0


def losses(
    outputs: tuple[Tensor, Tensor, Tensor],
    label: Tensor,
    edge: Tensor,
    weights: tuple[float, float, float, float] = (0.4, 1.0, 20.0, 1.0),
    threshold: float = 0.9,
    keep: int = 131072,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, and weighted semantic, boundary and boundary-aware loss.

    Args:
        outputs: logits of the auxiliary, main and boundary head.
        label: (N, H, W) int64, 255 ignored.
        edge: (N, H, W) float32, 0 or 1.
        weights: of the auxiliary, main, boundary and boundary-aware loss.
        threshold, keep: of the hard examples.
        class_weights: one per class, or None.
    """
    size = label.shape[1:]
    aux, main, boundary = (
        x
        if x.shape[2:] == size
        else functional.interpolate(x, size, mode="bilinear", align_corners=True)
        for x in outputs
    )
    loss_aux = functional.cross_entropy(
        aux, label, class_weights, ignore_index=IGNORE, reduction="none"
    ).mean()
    plain = functional.cross_entropy(main, label, ignore_index=IGNORE, reduction="none")
    weighted = plain
    if class_weights is not None:
        weighted = plain * class_weights[label.where(label != IGNORE, 0)]
    probability = torch.exp(-plain.detach())

    def hard(mask: Tensor) -> Tensor:
        return _hard_examples(weighted[mask], probability[mask], threshold, keep)

    valid = label != IGNORE
    logit = boundary[:, 0]
    near = valid & (torch.sigmoid(logit.detach()) > 0.8)
    positive = edge.mean()
    balance = edge * (1.0 - positive) + (1.0 - edge) * positive
    loss_boundary = functional.binary_cross_entropy_with_logits(logit, edge, balance)
    parts = (
        weights[0] * loss_aux + weights[1] * hard(valid),
        weights[2] * loss_boundary,
        weights[3] * hard(near),
    )
    return (sum(parts[1:], parts[0]), *parts)


def train_step(
    network: SANetTorch, lr: float = 0.01, class_weights: Tensor | None = None
) -> TrainStep:
    """The published training step with SGD; it returns the losses as `losses` orders them.

    Args:
        network: with heads, in training mode.
        lr: learning rate.
        class_weights: of the losses.
    """
    optimizer = torch.optim.SGD(
        network.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    return TrainStep(
        lambda image, label, edge: losses(network(image), label, edge, class_weights=class_weights),
        optimizer,
    )


def copy_weights(network: SANetTorch, weights: Mapping[str, np.ndarray]) -> None:
    """Load arrays by name; heads that this build lacks are passed over.

    Raises:
        ValueError: an array is missing or of another network.
    """
    torch_counterpart.copy_weights(
        network, weights, "" if network.heads else r"seghead_(extra|d)\..*"
    )
