"""The same network, losses and training step in PyTorch, as the benchmark's yardstick.

Written for this project from the same description as `network`, `point_flow` and `losses`, and
independently of them: the tests hold both against each other where no reference values exist.
Parameter names are those of the published checkpoints. PyTorch is an optional extra
(``pip install -e .[torch]``) and only ``benchmark.py`` and the tests use it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_utils.torch_counterpart import TrainStep

# Repeated rather than imported: a process that times PyTorch must not load MindSpore.
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "res2net101": (3, 4, 23, 3)}
PLANES = (64, 128, 256, 512)
STRIDES = (1, 2, 2, 2)
DILATIONS = (1, 1, 2, 4)
CHANNELS = 256  # of the feature pyramid
IGNORE = 255


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1, bias: bool = False
) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=bias)


def _unit(inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False) -> list:
    """Convolution, BatchNorm, ReLU."""
    return [
        _conv(inputs, outputs, size, stride, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


# Backbones (sections 2.1 and 2.2 of the description).


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (strided, dilated), 1 x 1 convolution and a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, 4 * planes, 1)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * planes, stride) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 planes, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Res2Block(nn.Module):
    """Bottleneck whose 3 x 3 convolution is a chain over four groups of channels."""

    GROUPS = 4

    def __init__(self, inputs: int, planes: int, stride: int, first: bool) -> None:
        super().__init__()
        width = planes * 26 // 64
        self.conv1 = _conv(inputs, self.GROUPS * width, 1)
        self.bn1 = nn.BatchNorm2d(self.GROUPS * width)
        count = self.GROUPS - 1
        self.convs = nn.ModuleList(_conv(width, width, 3, stride) for _ in range(count))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(count))
        self.conv3 = _conv(self.GROUPS * width, 4 * planes, 1)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, stride, 1) if first else None
        self.downsample = _shortcut(inputs, 4 * planes, stride) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 planes, H / stride, W / stride)."""
        parts = self.relu(self.bn1(self.conv1(x))).chunk(self.GROUPS, 1)
        results: list[Tensor] = []
        for place, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            part = parts[place]
            if results and self.pool is None:
                part = part + results[-1]
            results.append(self.relu(norm(conv(part))))
        results.append(parts[-1] if self.pool is None else self.pool(parts[-1]))
        y = self.bn3(self.conv3(torch.cat(results, 1)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _stem(backbone: str) -> tuple[nn.Sequential, int]:
    """The layers before the first block, and how many channels they give."""
    if backbone == "res2net101":
        return nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ), 64
    deep = nn.Sequential(*_unit(3, 64, 3, 2), *_unit(64, 64, 3), _conv(64, 128, 3))
    return nn.Sequential(
        deep, nn.BatchNorm2d(128), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    ), 128


def _layers(backbone: str, inputs: int) -> list[nn.Sequential]:
    layers = []
    for planes, count, stride, dilation in zip(
        PLANES, BLOCKS[backbone], STRIDES, DILATIONS, strict=True
    ):
        blocks: list[nn.Module] = []
        for place in range(count):
            first = place == 0
            step = stride if first else 1
            if backbone == "res2net101":
                blocks.append(Res2Block(inputs, planes, step, first))
            else:
                blocks.append(Bottleneck(inputs, planes, step, dilation, first))
            inputs = 4 * planes
        layers.append(nn.Sequential(*blocks))
    return layers


# Pooling to a number of windows, in both styles.


def _equal_windows(x: Tensor, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and stride of the port's pooling: equal windows, the last one ends at the border."""
    strides = tuple(n // count for n in x.shape[2:])
    kernel = tuple(n - (count - 1) * s for n, s in zip(x.shape[2:], strides, strict=True))
    return kernel, strides


def average_pool(x: Tensor, count: int, style: str) -> Tensor:
    """(N, C, H, W) to (N, C, count, count)."""
    if style == "torch":
        return functional.adaptive_avg_pool2d(x, count)
    return functional.avg_pool2d(x, *_equal_windows(x, count))


def maximum_pool(x: Tensor, count: int, style: str) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) to maxima (N, C, count, count) and their flat positions in (H, W)."""
    if style == "torch":
        return functional.adaptive_max_pool2d(x, count, return_indices=True)
    return functional.max_pool2d(x, *_equal_windows(x, count), return_indices=True)


# The head (sections 3 and 4).


class PyramidPooling(nn.Module):
    """Averages over windows of several sizes, beside the map itself."""

    def __init__(self, inputs: int, sizes: Sequence[int], style: str, dropout: float) -> None:
        super().__init__()
        self.sizes, self.style = tuple(sizes), style
        # Place 0 was the pooling layer's, which has no parameters.
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Identity(), _conv(inputs, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))
            for _ in self.sizes
        )
        total = inputs + CHANNELS * len(self.sizes)
        self.bottleneck = nn.Sequential(*_unit(total, CHANNELS, 1), nn.Dropout2d(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, CHANNELS, H, W)."""
        priors = [
            _resize(stage(average_pool(x, size, self.style)), x.shape[2:])
            for stage, size in zip(self.stages, self.sizes, strict=True)
        ]
        return self.bottleneck(torch.cat([*priors, x], 1))


class PointMatcher(nn.Module):
    """One score per place from two aligned maps."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.match_conv = _conv(2 * dim, 1, 3, bias=True)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Two (N, dim, H, W) to (N, 1, H, W) in 0..1."""
        return torch.sigmoid(self.match_conv(torch.cat([high, low], 1)))


def _attend(high: Tensor, low: Tensor) -> Tensor:
    """Points (N, C, K) of the low map, each joined by a mixture of the high map's points."""
    affinity = torch.softmax(low.transpose(1, 2) @ high, -1)
    return low + high @ affinity.transpose(1, 2)


def _points(flat: Tensor, index: Tensor) -> Tensor:
    """Columns (N, C, K) of a flat map (N, C, P)."""
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))


class PointFlow(nn.Module):
    """Carries features from a coarse map to a fine one, at salient and boundary points only."""

    def __init__(self, dim: int, maxima: int, averages: int, edge_points: int, style: str) -> None:
        super().__init__()
        self.maxima, self.averages, self.edge_points = maxima, averages, edge_points
        self.style = style
        self.point_matcher = PointMatcher(dim)
        self.down_h = _conv(CHANNELS, dim, 1, bias=True)
        self.down_l = _conv(CHANNELS, dim, 1, bias=True)
        self.edge_final = nn.Sequential(*_unit(CHANNELS, CHANNELS, 3), _conv(CHANNELS, 1, 3))

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """High (N, C, h, w), low (N, C, rh, rw) to a map like low and edge logits (N, 1, h, w)."""
        coarse, width = high.shape[2:], low.shape[3]
        ratio = low.shape[2] // coarse[0]
        certainty = self.point_matcher(self.down_h(high), _resize(self.down_l(low), coarse))

        def place(index: Tensor) -> Tensor:
            """Flat place in the fine map: the first pixel of the coarse cell's block."""
            rows, columns = index // coarse[1], index % coarse[1]
            return ratio * columns + ratio * rows * width

        average = _resize(average_pool(certainty, self.averages, self.style), coarse)
        edge = self.edge_final(high - high * average)
        count = min(self.edge_points, coarse[0] * coarse[1])
        chosen = edge.flatten(1).topk(count, dim=1).indices
        centres = torch.stack(
            [
                ((chosen % coarse[1]).to(high.dtype) + 0.5) / coarse[1],
                ((chosen // coarse[1]).to(high.dtype) + 0.5) / coarse[0],
            ],
            -1,
        )
        grid = 2.0 * centres[:, :, None] - 1.0
        boundary = _attend(
            functional.grid_sample(high, grid, align_corners=False)[..., 0],
            functional.grid_sample(low, grid, align_corners=False)[..., 0],
        )

        largest, index = maximum_pool(certainty, self.maxima, self.style)
        index = index.flatten(1)
        emphasised = high + _resize(largest, coarse) * high
        flat = low.flatten(2)
        salient = _attend(_points(emphasised.flatten(2), index), _points(flat, place(index)))

        for where, values in ((place(chosen), boundary), (place(index), salient)):
            flat = flat.scatter(2, where[:, None].expand_as(values), values)
        return flat.view_as(low), edge


class Head(nn.Module):
    """Pyramid pooling, a feature pyramid joined by point flow, and the classifier."""

    def __init__(
        self,
        classes: int,
        sizes: Sequence[int],
        style: str,
        flow: tuple[int, int, int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        inputs = [4 * planes for planes in PLANES]
        self.ppm = PyramidPooling(inputs[-1], sizes, style, dropout)
        self.fpn_in = nn.ModuleList(
            nn.Sequential(*_unit(count, CHANNELS, 1, bias=True)) for count in inputs[:-1]
        )
        self.fpn_out = nn.ModuleList(
            nn.Sequential(nn.Sequential(*_unit(CHANNELS, CHANNELS, 3))) for _ in inputs[:-1]
        )
        self.fpn_out_align = nn.ModuleList(PointFlow(*flow, style) for _ in inputs[:-1])
        self.conv_last = nn.Sequential(
            nn.Sequential(*_unit(4 * CHANNELS, CHANNELS, 3)), _conv(CHANNELS, classes, 1, bias=True)
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Four maps at 1/4 .. 1/32 to logits at 1/4 and edge logits, the coarsest first."""
        f = self.ppm(levels[3])
        outputs, edges = [f], []
        for level in (2, 1, 0):
            lateral = self.fpn_in[level](levels[level])
            carried, edge = self.fpn_out_align[level](f, lateral)
            f = lateral + carried
            outputs.append(self.fpn_out[level](f))
            edges.append(edge)
        size = outputs[-1].shape[2:]
        maps = [outputs[-1], *(_resize(x, size) for x in outputs[-2::-1])]
        return self.conv_last(torch.cat(maps, 1)), tuple(edges)


class PFNetTorch(nn.Module):
    """The segmentation network.

    Args:
        backbone: "resnet50", "resnet101" or "res2net101".
        classes: number of classes.
        psp_sizes: bins of the pyramid pooling.
        pool_style: "torch" or "jittor".
        max_pool_size: salient points per side.
        avg_pool_size: side of the pooled certainty.
        edge_points: boundary points per level.
        match_dim: channels of the point matcher.
        dropout: share of dropped channels in the pyramid pooling.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        classes: int = 16,
        psp_sizes: Sequence[int] = (1, 2, 3, 6),
        pool_style: str = "torch",
        max_pool_size: int = 14,
        avg_pool_size: int = 9,
        edge_points: int = 128,
        match_dim: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layer0, inputs = _stem(backbone)
        self.layer1, self.layer2, self.layer3, self.layer4 = _layers(backbone, inputs)
        flow = (match_dim, max_pool_size, avg_pool_size, edge_points)
        self.head = Head(classes, psp_sizes, pool_style, flow, dropout)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Images (N, 3, H, W), sides multiples of 32, to logits (N, K, H / 4, W / 4) and edges.

        Edge logits (N, 1, H / s, W / s) come for s = 32, 16, 8. All are raw.
        """
        x, levels = self.layer0(image), []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            levels.append(x)
        return self.head(levels)


class Scores(nn.Module):
    """What the published network returns in evaluation: logits at the image's size."""

    def __init__(self, network: PFNetTorch) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, K, H, W)."""
        return _resize(self.network(image)[0], image.shape[2:])


# Losses.


def hard_example_loss(logits: Tensor, label: Tensor, threshold: float, keep: int) -> Tensor:
    """Mean cross entropy of the pixels whose label is at most ``threshold`` likely.

    At least ``keep`` pixels count; with fewer valid ones all of these.
    """
    loss = functional.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    valid = label != IGNORE
    if int(valid.sum()) >= keep:
        probability = torch.exp(-loss.detach()).where(valid, 1.0)
        ordered = probability.flatten().sort().values
        limit = max(threshold, float(ordered[min(len(ordered), keep) - 1]))
        valid = valid & (probability <= limit)
    return loss[valid].mean()


def balanced_edge_loss(logits: Tensor, edge: Tensor) -> Tensor:
    """Binary cross entropy with both kinds of pixels weighing half, (N, 1, H, W) and (N, H, W)."""
    positive = edge.mean()
    weight = edge * (1.0 - positive) + (1.0 - edge) * positive
    return functional.binary_cross_entropy_with_logits(logits[:, 0], edge, weight)


def losses(
    outputs: tuple[Tensor, tuple[Tensor, ...]],
    label: Tensor,
    edge: Tensor,
    weights: tuple[float, float] = (1.0, 25.0),
    threshold: float = 0.7,
    keep: int = 10000,
) -> tuple[Tensor, ...]:
    """Total, class loss and the edge losses from the coarsest to the finest level, weighted.

    Args:
        outputs: of the network.
        label: (N, H, W) int64, 255 ignored.
        edge: (N, H, W) 0 or 1, in the logits' type.
        weights: of the class loss and of each edge loss.
        threshold, keep: of the hard examples.
    """
    logits, edges = outputs
    size = label.shape[1:]
    parts = [weights[0] * hard_example_loss(_resize(logits, size), label, threshold, keep)]
    parts += [weights[1] * balanced_edge_loss(_resize(item, size), edge) for item in edges]
    return sum(parts[1:], parts[0]), *parts


def train_step(network: PFNetTorch, lr: float = 0.007) -> TrainStep:
    """The published training step with SGD; it returns the losses as `losses` orders them.

    Args:
        network: in training mode.
        lr: learning rate.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    return TrainStep(lambda image, label, edge: losses(network(image), label, edge), optimizer)
