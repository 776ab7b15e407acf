"""Encoders: ResNet with a deep stem, and the plain Res2Net 26w x 4s.

Stages end at 1/4, 1/8, 1/16 and 1/32 of the input with 256, 512, 1024 and 2048 channels.
Parameter names are those of PFNet's checkpoints; pretrained_name() translates those of ImageNet
checkpoints, whose stem is called otherwise.
"""

from mindspore import Tensor, nn, ops

from model_utils.layers import conv2d, max_pool_after_relu, zero_pad
from model_utils.torch_counterpart import BATCH_NORM_SUFFIXES

STAGE_CHANNELS = (256, 512, 1024, 2048)
# Blocks per stage.
BLOCKS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "res2net101": (3, 4, 23, 3),
}
# Res2Net: channels of a group at 64 planes, and number of groups (Gao et al. 2019).
_GROUP_WIDTH, _GROUPS = 26, 4


class Bottleneck(nn.Cell):
    """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut (He et al. 2016); stride on the 3 x 3.

    Args:
        inputs: channels.
        planes: of the 3 x 3 convolution; the result has four times as many.
        stride, dilation: of the 3 x 3 convolution. Upstream dilates the last two stages but
            keeps their strides.
        first: of its stage, whose shortcut is a convolution.
    """

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        self.conv1 = conv2d(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv2d(planes, 4 * planes, 1)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, 4 * planes, stride) if first else None

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 planes, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Res2Block(nn.Cell):
    """A bottleneck whose 3 x 3 convolution is a chain over groups of channels.

    Args:
        inputs, planes, stride, first: as for Bottleneck. The first block of a stage keeps its
            groups apart and pools the last one.
    """

    def __init__(self, inputs: int, planes: int, stride: int, first: bool) -> None:
        super().__init__()
        width = planes * _GROUP_WIDTH // 64
        self.width = width
        self.conv1 = conv2d(inputs, width * _GROUPS, 1)
        self.bn1 = nn.BatchNorm2d(width * _GROUPS)
        self.convs = nn.CellList(
            [conv2d(width, width, 3, stride, padding=1) for _ in range(_GROUPS - 1)]
        )
        self.bns = nn.CellList([nn.BatchNorm2d(width) for _ in range(_GROUPS - 1)])
        self.conv3 = conv2d(width * _GROUPS, 4 * planes, 1)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, 4 * planes, stride) if first else None
        # The mean counts padding, so that padding apart is the same.
        self.pool = (
            nn.SequentialCell(zero_pad(1, 1, 1, 1), nn.AvgPool2d(3, stride, "valid"))
            if first
            else None
        )

    def construct(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 planes, H / stride, W / stride)."""
        groups = ops.split(self.relu(self.bn1(self.conv1(x))), self.width, 1)
        last = groups[_GROUPS - 1]
        parts = []
        y = groups[0]
        for place in range(_GROUPS - 1):
            if place > 0:
                y = groups[place] if self.pool is not None else y + groups[place]
            y = self.relu(self.bns[place](self.convs[place](y)))
            parts.append(y)
        parts.append(last if self.pool is None else self.pool(last))
        y = self.bn3(self.conv3(ops.concat(parts, 1)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.SequentialCell:
    return nn.SequentialCell(conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def deep_stem() -> nn.SequentialCell:
    """Three 3 x 3 convolutions and pooling: (N, 3, H, W) to (N, 128, H / 4, W / 4)."""
    return nn.SequentialCell(
        nn.SequentialCell(
            conv2d(3, 64, 3, 2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            conv2d(64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            conv2d(64, 128, 3, padding=1),
        ),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        max_pool_after_relu(),
    )


def plain_stem() -> nn.SequentialCell:
    """One 7 x 7 convolution and pooling: (N, 3, H, W) to (N, 64, H / 4, W / 4)."""
    return nn.SequentialCell(
        conv2d(3, 64, 7, 2, padding=3), nn.BatchNorm2d(64), nn.ReLU(), max_pool_after_relu()
    )


def stage(backbone: str, number: int) -> nn.SequentialCell:
    """One of the four stages, 1 to 4."""
    planes = 32 << number
    stem = 64 if backbone == "res2net101" else 128
    inputs = stem if number == 1 else 2 * planes
    stride, dilation = (1, 1, 2, 2, 2)[number], (1, 1, 1, 2, 4)[number]
    blocks: list[nn.Cell] = []
    for place in range(BLOCKS[backbone][number - 1]):
        first = place == 0
        arguments = (inputs if first else 4 * planes, planes, stride if first else 1)
        if backbone == "res2net101":
            blocks.append(Res2Block(*arguments, first))
        else:
            blocks.append(Bottleneck(*arguments, dilation, first))
    return nn.SequentialCell(blocks)


def pretrained_name(name: str) -> str:
    """PFNet's name of an ImageNet checkpoint's tensor; other names as they are.

    ``conv1`` is the stem's convolution, or the sequence of a deep stem, and ``bn1`` what follows.
    """
    first, _, rest = name.partition(".")
    if first not in ("conv1", "bn1"):
        return name
    stem, _, suffix = rest.rpartition(".")
    if first == "bn1" or stem in ("1", "4"):  # batch normalisations within the deep stem
        suffix = {theirs: own for own, theirs in BATCH_NORM_SUFFIXES.items()}.get(suffix, suffix)
    place = "0" if first == "conv1" else "1"
    return ".".join(["layer0", place, *([stem] if stem else []), suffix])
