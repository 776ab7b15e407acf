"""Small Cells, one per operator or layer, for the tests of the MINDIR to ONNX converter.

Each case names the input shapes it is exported with and, where it makes sense, a second set of
shapes: the axes in which the two differ are exported as dynamic and both sets are run.
MindSpore compiles Cells from source, so they live in this file and not in the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One operator: how to build its Cell and what to feed it."""

    name: str
    build: Callable[[], nn.Cell]
    shapes: tuple[Shape, ...]
    other: tuple[Shape, ...] | None = None
    kinds: tuple[str, ...] = ()
    tolerance: float = 1e-4

    def dynamic_shapes(self) -> list[tuple[int | None, ...]]:
        """The input shapes with None on every axis in which the two sets differ."""
        other = self.other or self.shapes
        return [
            tuple(a if a == b else None for a, b in zip(first, second, strict=True))
            for first, second in zip(self.shapes, other, strict=True)
        ]

    def random_inputs(self, shapes: tuple[Shape, ...], seed: int) -> list[np.ndarray]:
        """Seeded inputs of the given shapes and this case's kinds."""
        rng = np.random.default_rng(seed)
        kinds = self.kinds + ("normal",) * (len(shapes) - len(self.kinds))
        return [random_array(rng, kind, shape) for kind, shape in zip(kinds, shapes, strict=True)]


def random_array(rng: np.random.Generator, kind: str, shape: Shape) -> np.ndarray:
    """One array: normal, positive, unit, bool, index:N (below N), integer, or distinct numbers."""
    name, _, argument = kind.partition(":")
    if name == "normal":
        return rng.standard_normal(shape).astype(np.float32)
    if name == "positive":
        return (rng.random(shape) + 0.1).astype(np.float32)
    if name == "unit":
        return (rng.random(shape) * 2.4 - 1.2).astype(np.float32)
    if name == "bool":
        return rng.random(shape) < 0.5
    if name == "index":
        return rng.integers(0, int(argument), shape).astype(np.int32)
    if name == "integer":
        return rng.integers(-9, 10, shape).astype(np.int32)
    if name == "nonzero":
        return (rng.integers(1, 5, shape) * rng.choice([-1, 1], shape)).astype(np.int32)
    if name == "distinct":
        return rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) / 7
    if name == "tied":
        return rng.integers(0, 3, shape).astype(np.float32)
    raise ValueError(kind)


CASES: dict[str, dict[str, Case]] = {}


class FunctionCell(nn.Cell):
    """A plain function as a Cell."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def construct(self, *inputs):
        return self.function(*inputs)


class Group(nn.Cell):
    """Several Cells side by side, so that many operators share one compilation.

    Every member gets its own share of the inputs; the outputs are one tuple with an element, a
    tensor or a tuple of tensors, per member.
    """

    def __init__(self, cells: list[nn.Cell], counts: list[int]) -> None:
        super().__init__()
        self.members = nn.CellList(cells)
        self.counts = counts

    def construct(self, *inputs):
        outputs = ()
        start = 0
        for index in range(len(self.members)):
            count = self.counts[index]
            outputs = outputs + (self.members[index](*inputs[start : start + count]),)
            start = start + count
        return outputs


def add(topic: str, name: str, build: Callable[[], nn.Cell], *shapes: Shape, **options) -> None:
    """Register a case under a topic; ``other`` may be one shape or a tuple of shapes."""
    other = options.pop("other", None)
    if other is not None and isinstance(other[0], int):
        other = (other,)
    kinds = options.pop("kinds", ())
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    assert name not in CASES.setdefault(topic, {}), name
    CASES[topic][name] = Case(name, build, tuple(shapes), other, kinds, **options)


def case(topic: str, *shapes: Shape, **options) -> Callable:
    """Decorator: register a function of tensors as a case."""

    def register(function: Callable) -> Callable:
        add(topic, function.__name__, lambda: FunctionCell(function), *shapes, **options)
        return function

    return register


def layer(topic: str, *shapes: Shape, **options) -> Callable:
    """Decorator: register a function that builds a Cell as a case."""

    def register(function: Callable) -> Callable:
        add(topic, function.__name__, function, *shapes, **options)
        return function

    return register


IMAGE, IMAGE2 = (2, 3, 12, 16), (1, 3, 17, 10)
FEATURES, FEATURES2 = (2, 8, 6, 10), (3, 8, 9, 6)
VOLUME, VOLUME2 = (1, 4, 5, 6, 8), (2, 4, 7, 8, 6)


# --- convolution -------------------------------------------------------------------------------


@layer("convolution", IMAGE, other=IMAGE2)
def conv2d_same():
    return nn.Conv2d(3, 5, 3)


@layer("convolution", IMAGE, other=IMAGE2)
def conv2d_same_stride_2():
    return nn.Conv2d(3, 5, 3, stride=2, has_bias=True)


@layer("convolution", IMAGE, other=IMAGE2)
def conv2d_valid_bias():
    return nn.Conv2d(3, 5, 3, pad_mode="valid", has_bias=True)


@layer("convolution", IMAGE, other=IMAGE2)
def conv2d_pad_stride_2_dilated():
    return nn.Conv2d(3, 5, 3, stride=2, pad_mode="pad", padding=2, dilation=2)


@layer("convolution", IMAGE, other=IMAGE2)
def conv2d_asymmetric_kernel():
    return nn.Conv2d(3, 4, (1, 5), stride=(1, 2), pad_mode="pad", padding=(0, 0, 2, 2))


@layer("convolution", IMAGE, other=IMAGE2)
def conv2d_asymmetric_padding():
    return nn.Conv2d(3, 4, (3, 4), pad_mode="pad", padding=(2, 1, 0, 3), has_bias=True)


@layer("convolution", FEATURES, other=FEATURES2)
def conv2d_grouped():
    return nn.Conv2d(8, 12, 3, pad_mode="pad", padding=1, group=4)


@layer("convolution", FEATURES, other=FEATURES2)
def conv2d_depthwise():
    return nn.Conv2d(8, 8, 3, pad_mode="pad", padding=1, group=8, has_bias=True)


@layer("convolution", (2, 3, 20), other=(1, 3, 15))
def conv1d():
    return nn.Conv1d(3, 4, 5, pad_mode="pad", padding=2, has_bias=True)


class FunctionalConv(nn.Cell):
    """A convolution whose weight is computed, as in weight standardisation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(ops.randn(4, 3, 3, 3), name="weight")

    def construct(self, image):
        weight = self.weight - ops.mean(self.weight, (1, 2, 3), keep_dims=True)
        return ops.conv2d(image, weight, pad_mode="pad", padding=(1, 1))


add("convolution", "conv2d_functional", FunctionalConv, IMAGE, other=IMAGE2)


@layer("convolution", VOLUME, other=VOLUME2)
def conv3d_pad_bias():
    return nn.Conv3d(4, 6, 3, pad_mode="pad", padding=1, has_bias=True)


@layer("convolution", VOLUME, other=VOLUME2)
def conv3d_stride_2_asymmetric():
    return nn.Conv3d(4, 6, 3, stride=2, pad_mode="pad", padding=(1, 1, 0, 1, 2, 1))


@layer("convolution", VOLUME, other=VOLUME2)
def conv3d_same_stride():
    return nn.Conv3d(4, 6, (1, 3, 3), stride=(1, 2, 2), pad_mode="same")


@layer("convolution", VOLUME, other=VOLUME2)
def conv3d_pointwise():
    return nn.Conv3d(4, 6, 1, pad_mode="valid")


@layer("convolution", FEATURES, other=FEATURES2)
def transposed_valid_bias():
    return nn.Conv2dTranspose(8, 5, 2, stride=2, pad_mode="valid", has_bias=True)


@layer("convolution", FEATURES, other=FEATURES2)
def transposed_kernel_3_stride_2_asymmetric():
    return nn.Conv2dTranspose(8, 5, 3, stride=2, pad_mode="pad", padding=(1, 0, 1, 0))


@layer("convolution", FEATURES, other=FEATURES2)
def transposed_kernel_4_stride_2_pad_1():
    return nn.Conv2dTranspose(8, 5, 4, stride=2, pad_mode="pad", padding=1)


@layer("convolution", FEATURES, other=FEATURES2)
def transposed_same():
    return nn.Conv2dTranspose(8, 5, 3, stride=2, pad_mode="same")


@layer("convolution", FEATURES, other=FEATURES2)
def transposed_same_small_kernel():
    return nn.Conv2dTranspose(8, 5, 2, stride=3, pad_mode="same")


@layer("convolution", FEATURES, other=FEATURES2)
def transposed_dilated():
    return nn.Conv2dTranspose(8, 5, 3, dilation=2, pad_mode="pad", padding=2)


@layer("convolution", FEATURES, other=FEATURES2)
def transposed_grouped():
    return nn.Conv2dTranspose(8, 8, 4, stride=2, pad_mode="pad", padding=1, group=4)


class TransposedPrimitive(nn.Cell):
    """The primitive with a target size computed from the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(ops.randn(8, 5, 3, 3), name="weight")
        self.transposed = ops.Conv2DTranspose(8, 3, pad_mode="pad", pad=(1, 0, 1, 0), stride=2)
        self.shape = ops.Shape()

    def construct(self, features):
        n, _, h, w = self.shape(features)
        return self.transposed(features, self.weight, (n, 5, 2 * h, 2 * w))


add("convolution", "transposed_primitive", TransposedPrimitive, FEATURES, other=FEATURES2)


@layer("convolution", VOLUME, other=VOLUME2)
def transposed_3d_output_padding():
    return nn.Conv3dTranspose(
        4, 6, 3, stride=2, pad_mode="pad", padding=1, output_padding=1, has_bias=True
    )


@layer("convolution", VOLUME, other=VOLUME2)
def transposed_3d_valid():
    return nn.Conv3dTranspose(4, 6, 2, stride=2, pad_mode="valid")


@layer("convolution", (3, 7), other=(5, 7))
def dense():
    return nn.Dense(7, 4)


@layer("convolution", (2, 5, 7), other=(3, 6, 7))
def dense_3d_no_bias():
    return nn.Dense(7, 4, has_bias=False)


# --- pooling -----------------------------------------------------------------------------------


@layer("pooling", IMAGE, other=IMAGE2)
def max_pool_valid():
    return nn.MaxPool2d(2, 2)


@layer("pooling", IMAGE, other=IMAGE2)
def max_pool_same():
    return nn.MaxPool2d(3, 2, "same")


@layer("pooling", IMAGE, other=IMAGE2)
def max_pool_padded():
    return nn.MaxPool2d(3, 2, "pad", 1)


@layer("pooling", IMAGE)
def max_pool_padded_ceil():
    return nn.MaxPool2d((3, 2), (2, 3), "pad", (1, 1), ceil_mode=True)


@layer("pooling", IMAGE, other=IMAGE2)
def max_pool_padded_dilated():
    return nn.MaxPool2d(3, 1, "pad", 1, dilation=2)


@case("pooling", IMAGE, other=IMAGE2)
def max_pool_functional(x):
    return ops.max_pool2d(x, 3, stride=2, padding=1)


@case("pooling", IMAGE, other=IMAGE2, kinds="tied")
def max_pool_functional_indices(x):
    return ops.max_pool2d(x, 3, stride=2, padding=1, return_indices=True)


@layer("pooling", (2, 3, 20), other=(1, 3, 15))
def max_pool_1d():
    return nn.MaxPool1d(3, 2, "pad", 1)


@layer("pooling", IMAGE, other=IMAGE2)
def avg_pool_valid():
    return nn.AvgPool2d((2, 3), (2, 1))


@layer("pooling", IMAGE, other=IMAGE2)
def avg_pool_same():
    return nn.AvgPool2d(3, 2, "same")


@layer("pooling", IMAGE, other=IMAGE2)
def avg_pool_padded_long():
    return nn.AvgPool2d((1, 5), (1, 2), "pad", (0, 2))


@layer("pooling", IMAGE, other=IMAGE2)
def avg_pool_padded_not_counted():
    return nn.AvgPool2d(3, 2, "pad", 1, count_include_pad=False)


@layer("pooling", IMAGE)
def avg_pool_padded_ceil():
    return nn.AvgPool2d(3, 2, "pad", 1, ceil_mode=True, count_include_pad=False)


@case("pooling", IMAGE, other=IMAGE2)
def avg_pool_functional(x):
    return ops.avg_pool2d(x, (5, 1), (2, 1), (2, 2, 0, 0))


@layer("pooling", (2, 3, 20))
def avg_pool_1d():
    return nn.AvgPool1d(4, 2)


@layer("pooling", VOLUME, other=VOLUME2)
def max_pool_3d():
    return nn.MaxPool3d(3, 1, "pad", 1)


class MaxPool3dPrimitive(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.pool = ops.MaxPool3D(3, 2, "pad", (1, 1, 1, 1, 1, 1))

    def construct(self, volume):
        return self.pool(volume)


add("pooling", "max_pool_3d_primitive", MaxPool3dPrimitive, VOLUME, other=VOLUME2)


@case("pooling", VOLUME, other=VOLUME2)
def max_pool_3d_functional(x):
    return ops.max_pool3d(x, 3, 2, 1)


@layer("pooling", VOLUME, other=VOLUME2)
def avg_pool_3d():
    return nn.AvgPool3d(3, 2, "pad", 1)


@layer("pooling", VOLUME, other=VOLUME2)
def avg_pool_3d_valid():
    return nn.AvgPool3d(2, 2)


@layer("pooling", IMAGE, other=IMAGE2)
def adaptive_avg_1():
    return nn.AdaptiveAvgPool2d(1)


@layer("pooling", IMAGE, other=(1, 3, 18, 8))
def adaptive_avg_dividing():
    return nn.AdaptiveAvgPool2d((3, 2))


@layer("pooling", IMAGE, other=IMAGE2)
def adaptive_avg_overlapping():
    return nn.AdaptiveAvgPool2d((5, 7))


@layer("pooling", IMAGE, other=(1, 3, 5, 4))
def adaptive_avg_enlarging():
    return nn.AdaptiveAvgPool2d(9)


@layer("pooling", IMAGE, other=IMAGE2)
def adaptive_max_overlapping():
    return nn.AdaptiveMaxPool2d((5, 7))


@case("pooling", IMAGE, other=IMAGE2, kinds="tied")
def adaptive_max_overlapping_indices(x):
    return ops.adaptive_max_pool2d(x, (5, 7), True)


@case("pooling", IMAGE, other=(1, 3, 8, 24), kinds="tied")
def adaptive_max_dividing_indices(x):
    return ops.adaptive_max_pool2d(x, (4, 4), True)


@case("pooling", VOLUME, other=VOLUME2)
def adaptive_avg_3d(x):
    return ops.adaptive_avg_pool3d(x, (1, 1, 1)), ops.adaptive_avg_pool3d(x, (3, 4, 5))


@case("pooling", VOLUME, other=VOLUME2)
def adaptive_max_3d(x):
    return ops.adaptive_max_pool3d(x, (1, 1, 1)), ops.adaptive_max_pool3d(x, (2, 3, 4))


# --- resize ------------------------------------------------------------------------------------


class Resize(nn.Cell):
    """A resize primitive with a size computed from the input's or from another map's."""

    def __init__(self, primitive, factor: int = 2) -> None:
        super().__init__()
        self.resize = primitive
        self.factor = factor
        self.shape = ops.Shape()

    def construct(self, features, guide):
        h, w = self.shape(features)[2:]
        size = (h * self.factor + 1, w // 2)
        return self.resize(features, size), self.resize(features, self.shape(guide)[2:])


GUIDE, GUIDE2 = (1, 2, 13, 5), (2, 2, 4, 15)
for _corners, _half in ((False, False), (False, True), (True, False)):
    add(
        "resize",
        f"bilinear_corners_{_corners}_half_{_half}".lower(),
        lambda corners=_corners, half=_half: Resize(ops.ResizeBilinearV2(corners, half)),
        FEATURES,
        GUIDE,
        other=(FEATURES2, GUIDE2),
    )
    add(
        "resize",
        f"nearest_corners_{_corners}_half_{_half}".lower(),
        lambda corners=_corners, half=_half: Resize(
            ops.auto_generate.ResizeNearestNeighborV2(corners, half)
        ),
        FEATURES,
        GUIDE,
        other=(FEATURES2, GUIDE2),
    )


class ResizeFixed(nn.Cell):
    """To one size, and to a single pixel and back."""

    def __init__(self) -> None:
        super().__init__()
        self.corners = ops.ResizeBilinearV2(True, False)
        self.half = ops.ResizeBilinearV2(False, True)

    def construct(self, features):
        pixel = self.corners(features, (1, 1))
        return self.half(features, (7, 9)), pixel, self.corners(pixel, (4, 5))


add("resize", "bilinear_fixed", ResizeFixed, FEATURES, other=FEATURES2)


@case("resize", FEATURES)
def interpolate_bilinear(x):
    return (
        ops.interpolate(x, size=(9, 21), mode="bilinear", align_corners=True),
        ops.interpolate(x, scale_factor=2.0, mode="bilinear", recompute_scale_factor=True),
    )


@case("resize", FEATURES)
def interpolate_nearest(x):
    return ops.interpolate(x, size=(9, 21), mode="nearest")


@case("resize", FEATURES)
def interpolate_area(x):
    return ops.interpolate(x, size=(3, 4), mode="area")


@case("resize", (2, 3, 9))
def interpolate_linear(x):
    return ops.interpolate(x, size=14, mode="linear", align_corners=True)


@case("resize", VOLUME)
def trilinear_corners(x):
    return ops.interpolate(x, size=(11, 12, 17), mode="trilinear", align_corners=True)


@case("resize", VOLUME)
def trilinear_half(x):
    return ops.interpolate(x, size=(11, 12, 4), mode="trilinear", align_corners=False)


@case("resize", VOLUME)
def scaled_3d(x):
    return (
        ops.interpolate(x, scale_factor=(2.0, 1.0, 3.0), mode="trilinear", align_corners=False),
        ops.interpolate(x, scale_factor=(2.0, 1.0, 3.0), mode="nearest"),
    )


@case("resize", VOLUME)
def nearest_3d(x):
    return ops.interpolate(x, size=(10, 9, 4), mode="nearest")


class Trilinear(nn.Cell):
    """The primitive that takes a runtime size."""

    def __init__(self) -> None:
        super().__init__()
        self.resize = ops.auto_generate.UpsampleTrilinear3D(True)
        self.shape = ops.Shape()

    def construct(self, volume):
        d, h, w = self.shape(volume)[2:]
        return self.resize(volume, (d * 4, h * 4, w * 2), None)


add("resize", "trilinear_dynamic", Trilinear, VOLUME, other=VOLUME2)


@case("resize", FEATURES, (2, 5, 4, 2), other=(FEATURES2, (3, 7, 3, 2)), kinds=("normal", "unit"))
def grid_sample_zeros(x, grid):
    return ops.grid_sample(x, grid, "bilinear", "zeros", False)


@case("resize", FEATURES, (2, 5, 4, 2), other=(FEATURES2, (3, 7, 3, 2)), kinds=("normal", "unit"))
def grid_sample_border_corners(x, grid):
    return ops.grid_sample(x, grid, "bilinear", "border", True)


@case("resize", FEATURES, (2, 5, 4, 2), other=(FEATURES2, (3, 7, 3, 2)), kinds=("normal", "unit"))
def grid_sample_reflection_nearest(x, grid):
    return (
        ops.grid_sample(x, grid, "bilinear", "reflection", False),
        ops.grid_sample(x, grid, "nearest", "zeros", False),
    )


@case("volume_sampling", VOLUME, (1, 3, 4, 2, 3), kinds=("normal", "unit"))
def grid_sample_3d(x, grid):
    return ops.grid_sample(x, grid, "bilinear", "zeros", False)


@case("resize", FEATURES, other=FEATURES2)
def pixel_shuffle(x):
    return ops.pixel_shuffle(x, 2)


@case("resize", FEATURES)
def pixel_unshuffle(x):
    return ops.pixel_unshuffle(x, 2)


# --- normalisation -----------------------------------------------------------------------------


class Trained(nn.Cell):
    """A normalisation layer with statistics and weights that are not the initial ones."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.layer = cell
        rng = np.random.default_rng(5)
        for parameter in cell.get_parameters():
            value = rng.random(parameter.shape).astype(np.float32) + 0.5
            parameter.set_data(Tensor(value))

    def construct(self, features):
        return self.layer(features)


def normalisation(name: str, build: Callable, shape: Shape, other: Shape | None, **options) -> None:
    add("normalisation", name, lambda: Trained(build()), shape, other=other, **options)


normalisation("batch_norm_2d", lambda: nn.BatchNorm2d(8), FEATURES, FEATURES2)
normalisation("batch_norm_1d", lambda: nn.BatchNorm1d(7), (3, 7), (5, 7))
normalisation("batch_norm_3d", lambda: nn.BatchNorm3d(4), VOLUME, VOLUME2)
normalisation("group_norm", lambda: nn.GroupNorm(4, 8), FEATURES, FEATURES2)
normalisation("layer_norm_last", lambda: nn.LayerNorm((10,), epsilon=1e-5), (2, 5, 10), (3, 4, 10))
normalisation("layer_norm_three", lambda: nn.LayerNorm((8, 6, 10), 1, 1), FEATURES, (3, 8, 6, 10))


@case("normalisation", FEATURES, other=FEATURES2)
def l2_normalize(x):
    return ops.L2Normalize(axis=1, epsilon=1e-10)(x), ops.L2Normalize(axis=-1, epsilon=0.5)(x)


@case("normalisation", (2, 8, 7), other=(3, 8, 5))
def batch_norm_functional(x):
    ones = ops.ones((8,), ms.float32)
    return ops.batch_norm(x, ones * 0.5, ones * 2, ones * 1.5, ones, False, 0.1, 1e-3)


@case("normalisation", FEATURES, other=FEATURES2)
def norms(x):
    return ops.norm(x, 2, 1), ops.norm(x, 1, (2, 3), keepdim=True)


@case("normalisation", FEATURES)
def local_response(x):
    return ops.lrn(x, depth_radius=2, bias=1.0, alpha=0.1, beta=0.75)


@case("normalisation", FEATURES)
def deviations(x):
    return x.std(axis=(1, 2)), ops.std(x, 1), x.var(axis=(2, 3))


@case("normalisation", FEATURES, other=FEATURES2)
def standardised(x):
    flat = x.reshape((x.shape[0], -1))
    centred = flat - flat.mean(axis=1, keep_dims=True)
    return centred / (ops.sqrt((centred * centred).mean(axis=1, keep_dims=True)) + 1e-7)


class Dropout(nn.Cell):
    """Dropout between two layers; absent from an exported network."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(p=0.5)
        self.drop2d = nn.Dropout2d(p=0.5)

    def construct(self, features):
        return self.drop2d(self.drop(ops.relu(features)))


add("normalisation", "dropout", Dropout, FEATURES, other=FEATURES2)


# --- activation --------------------------------------------------------------------------------

for _name in "ReLU ReLU6 Sigmoid Tanh SiLU GELU Mish ELU SeLU HSwish HSigmoid LeakyReLU".split():
    add("activation", _name, getattr(nn, _name), FEATURES, other=FEATURES2)


@case("activation", FEATURES, other=FEATURES2)
def smooth_functions(x):
    return ops.softplus(x), ops.softsign(x), ops.celu(x, 1.3), ops.logsigmoid(x), ops.elu(x)


@case("activation", FEATURES, other=FEATURES2)
def shrinking_functions(x):
    return ops.hardshrink(x, 0.4), ops.softshrink(x, 0.4), ops.tanhshrink(x)


add("activation", "GELU_exact", lambda: nn.GELU(approximate=False), FEATURES, other=FEATURES2)
add("activation", "LeakyReLU_slope", lambda: nn.LeakyReLU(0.3), FEATURES, other=FEATURES2)
add("activation", "ELU_alpha", lambda: nn.ELU(1.0), FEATURES, other=FEATURES2)
normalisation("PReLU_channels", lambda: nn.PReLU(8), FEATURES, FEATURES2)
normalisation("PReLU_shared", lambda: nn.PReLU(1), FEATURES, FEATURES2)


@case("activation", FEATURES, other=FEATURES2)
def softmaxes(x):
    return (
        ops.softmax(x, 1),
        ops.softmax(x, -1),
        ops.log_softmax(x, 1),
        nn.Softmax(axis=2)(x),
        nn.LogSoftmax(axis=-1)(x),
    )


@case("activation", FEATURES, other=FEATURES2)
def clamps(x):
    return (
        ops.clamp(x, -0.5, 0.75),
        ops.clamp(x, min=0.1),
        ops.clamp(x, max=0.1),
        ops.clip_by_value(x, Tensor(-0.2), Tensor(0.3)),
        ops.hardtanh(x, -0.5, 0.5),
    )


@case("activation", FEATURES, other=FEATURES2)
def gated(x):
    return ops.glu(x, 1), ops.threshold(x, 0.3, -2.0)


# --- arithmetic --------------------------------------------------------------------------------


@case("arithmetic", FEATURES, (8, 1, 1), other=(FEATURES2, (8, 1, 1)))
def binary(x, y):
    quotients = x / (ops.abs(y) + 1), ops.RealDiv()(x, y * y + 1)
    return (x + y, x - y, x * y, ops.maximum(x, y), ops.minimum(x, y), *quotients)


@case("arithmetic", FEATURES, other=FEATURES2)
def scalar_operands(x):
    return 2.5 * x, 1 - x, x / 4, x + 1, 3.0 / (x * x + 1), x**2, -x


@case("arithmetic", FEATURES, other=FEATURES2)
def unary(x):
    return ops.exp(x), ops.abs(x), ops.neg(x), ops.square(x), ops.sin(x), ops.cos(x), ops.sign(x)


@case("arithmetic", FEATURES, other=FEATURES2, kinds="positive")
def positive_unary(x):
    return (
        ops.log(x),
        ops.sqrt(x),
        ops.rsqrt(x),
        ops.reciprocal(x),
        ops.pow(x, 1.7),
        ops.log1p(x),
        ops.log2(x),
    )


@case("arithmetic", FEATURES, other=FEATURES2)
def rounding(x):
    return ops.floor(x * 3), ops.ceil(x * 3), ops.round(x * 3), ops.trunc(x * 3)


@case("arithmetic", FEATURES, other=FEATURES2, kinds="unit")
def trigonometry(x):
    return ops.atan(x), ops.tan(x), ops.erf(x), ops.expm1(x), ops.sinh(x), ops.cosh(x)


@case("arithmetic", (4, 9), (4, 9), other=((2, 9), (2, 9)), kinds=("integer", "nonzero"))
def integer_division(x, y):
    return ops.floor_div(x, y), x // 3, x % 4, ops.floor_mod(x, y), x * y


@case("arithmetic", (4, 9), (4, 9), other=((2, 9), (2, 9)), kinds=("normal", "positive"))
def float_division(x, y):
    return x // y, ops.floor_mod(x, y), ops.fmod(x, y)


@case("arithmetic", FEATURES, FEATURES, other=(FEATURES2, FEATURES2))
def comparisons(x, y):
    return x > y, x >= y, x < y, x <= y, x == y, x != y, x > 0.5, ops.equal(x, x)


@case("arithmetic", (3, 5), (3, 5), other=((4, 5), (4, 5)), kinds=("bool", "bool"))
def booleans(x, y):
    return (
        ops.logical_and(x, y),
        ops.logical_or(x, y),
        ops.logical_not(x),
        ops.logical_xor(x, y),
        x.any(1),
        x.all(1),
        x.astype(ms.float32),
    )


@case("arithmetic", FEATURES, other=FEATURES2)
def boolean_signs(x):
    whole = (x * 4).astype(ms.int32)
    signs = (x > 0) & (x < 1), (x > 0) | (x < -1), ~(x > 0), (x > 0) ^ (x < 1)
    return (*signs, whole == 1, whole != 0, x == whole, ops.logical_not(whole))


@case("arithmetic", (4, 5), other=(6, 3))
def number_kinds(x):
    odd = ops.log(x) + ops.exp(x * 300)
    return ops.isnan(odd), ops.isinf(odd), ops.isfinite(odd)


@case("arithmetic", FEATURES, other=FEATURES2)
def integers(x):
    whole = (x * 9).astype(ms.int32)
    extremes = whole.max(), ops.minimum(whole, 2), ops.clamp(whole, 0, 3), whole.sum(1)
    return (whole / 2, whole.astype(ms.float32) / 3, ops.abs(whole), -whole, whole + 1, *extremes)


@case("arithmetic", FEATURES, FEATURES, other=(FEATURES2, FEATURES2))
def selection(x, y):
    mask = x > 0
    return (
        ops.where(mask, x, y),
        ops.select(mask, x, y),
        ops.masked_fill(x, mask, -3.0),
        ops.where(mask, x, 0.5),
        x * mask,
    )


@case("arithmetic", FEATURES, other=FEATURES2)
def casts(x):
    return (
        (x * 5).astype(ms.int32),
        ops.cast(x > 0, ms.float32),
        (x * 3).to(ms.int64) * 2,
        ops.cast(x, ms.float16).astype(ms.float32),
    )


@case("arithmetic", (2, 4, 6), (2, 6, 5), other=((3, 7, 6), (3, 6, 2)))
def products(x, y):
    return (
        ops.bmm(x, y),
        ops.matmul(x, y),
        ops.BatchMatMul(transpose_b=True)(x, y.swapaxes(1, 2)),
        ops.BatchMatMul(transpose_a=True)(x.swapaxes(1, 2), y),
        ops.matmul(x, y[0]),
    )


@case("arithmetic", (4, 6), (4, 5), other=((3, 6), (3, 5)))
def product_2d_transposed(x, y):
    return ops.MatMul(transpose_a=True)(x, y), ops.MatMul()(x.T, y), ops.mm(x.T, y)


@case("arithmetic", FEATURES, FEATURES, other=(FEATURES2, FEATURES2))
def similarities(x, y):
    return ops.cosine_similarity(x, y, dim=1), ops.addn((x, y, x)), ops.relu(x) + ops.relu(y)


@case("arithmetic", (3, 6), other=(5, 4))
def scalar_arithmetic(x):
    rows, columns = x.shape
    half = int(rows / 2)
    sliced = x[half:], x[: rows - 1] * (columns * 0.5)
    return (x * (-rows), x + columns % 4, x * (rows / 2), ops.dyn_shape(x), *sliced)


@case("arithmetic", FEATURES, FEATURES, other=(FEATURES2, FEATURES2))
def blends(x, y):
    return ops.lerp(x, y, 0.3), ops.addcmul(x, x, y, 0.5), ops.logaddexp(x, y)


# --- reduction ---------------------------------------------------------------------------------


@case("reduction", FEATURES, other=FEATURES2)
def sums(x):
    return x.sum(), x.sum(1), ops.sum(x, (2, 3), keepdim=True), ops.reduce_sum(x, -1)


@case("reduction", FEATURES, other=FEATURES2)
def means(x):
    return x.mean(), x.mean(1), ops.mean(x, (2, 3), keep_dims=True), ops.ReduceMean(True)(x, (1,))


@case("reduction", FEATURES, other=FEATURES2)
def extremes(x):
    return ops.amax(x, 1), ops.amin(x, (2, 3), keepdims=True), x.max(), x.min(axis=2), x.min()


@case("reduction", FEATURES, other=FEATURES2, kinds="tied")
def extremes_with_index(x):
    values, index = ops.max(x, 1)
    low, low_index = ops.min(x, 2, keepdims=True)
    return values, index, low, low_index


@case("reduction", FEATURES, other=FEATURES2, kinds="tied")
def arguments(x):
    return ops.argmax(x, 1), ops.argmin(x, -1), x.argmax(2), ops.argmax(x, 1, keepdim=True)


@case("reduction", (3, 4), other=(5, 4), kinds="positive")
def cumulative(x):
    return (
        ops.cumsum(x, 1),
        ops.CumSum(exclusive=True, reverse=True)(x, 0),
        ops.prod(x, 1),
        ops.logsumexp(x, 1),
        ops.count_nonzero(ops.relu(x - 0.5), 1),
    )


# --- shape -------------------------------------------------------------------------------------


@case("shape", FEATURES, other=FEATURES2)
def reshapes(x):
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, -1),
        x.reshape((n, 2, c // 2, h * w)),
        ops.reshape(x, (n * c, h, w)),
        x.view(n, -1),
        ops.flatten(x),
        nn.Flatten()(x),
        x.reshape(-1),
    )


@case("shape", FEATURES, other=FEATURES2)
def transposes(x):
    return x.transpose(0, 2, 3, 1), ops.permute(x, (1, 0, 3, 2)), x.swapaxes(1, 2), ops.t(x[0, 0])


@case("shape", (2, 1, 5), other=(3, 1, 4))
def squeezes(x):
    return ops.squeeze(x, 1), ops.expand_dims(x, -1), ops.unsqueeze(x, 0), x[:, None], x.squeeze(-2)


@case("shape", FEATURES, other=FEATURES2)
def slices(x):
    return (
        x[:, 1:5],
        x[:, :, ::2, 1:],
        x[..., :-1],
        x[:, 2],
        x[:, -1, 1:3],
        x[:, :, None, :, 2],
        x[0],
        x[..., -3:],
        x[:1],
    )


@case("shape", FEATURES, other=FEATURES2)
def computed_slices(x):
    _, _, h, w = x.shape
    return x[:, :, : h // 2], x[:, :, h // 3 : h - 1, w // 2 :], ops.narrow(x, 1, 2, 3)


class StridedSliceMasks(nn.Cell):
    """The primitive with its masks."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink = ops.StridedSlice(1, 2, 0, 0, 8)
        self.backwards = ops.StridedSlice(0, 8, 0, 0, 0)

    def construct(self, x):
        return (
            self.shrink(x, (1, 1, 2, 3), (2, 2, 5, 4), (1, 1, 1, 1)),
            self.backwards(x, (0, 0, 0, 5), (1, 8, 6, 0), (1, 1, 1, -2)),
        )


add("shape", "strided_slice_masks", StridedSliceMasks, FEATURES)


@case("shape", FEATURES, FEATURES, other=(FEATURES2, FEATURES2))
def joins(x, y):
    return ops.cat((x, y, x), 1), ops.stack((x, y), 2), ops.concat((x, y), -1), ops.stack((x, y))


@case("shape", FEATURES)
def splits(x):
    a, b = ops.split(x, 4, 1)
    c, d, e = ops.split(x, (1, 3, 4), 1)
    f, g = ops.chunk(x, 2, 2)
    return a, b, c, d, e, f, g


@case("shape", FEATURES, other=FEATURES2)
def splits_of_fixed_axis(x):
    a, b = ops.split(x, 4, 1)
    return (a * b, *ops.unstack(x[:, :3], 1), *ops.Split(1, 4)(x))


@case("shape", FEATURES, other=FEATURES2)
def broadcasts(x):
    n, c, h, w = x.shape
    mean = x.mean((2, 3), keep_dims=True)
    return (
        ops.broadcast_to(mean, (n, c, h, w)),
        mean.expand_as(x),
        ops.tile(x, (1, 2, 1, 3)),
        ops.broadcast_to(mean, (-1, c, 4, -1)),
    )


@case("shape", FEATURES, other=FEATURES2)
def repeats(x):
    return ops.repeat_interleave(x, 2, 1), ops.repeat_interleave(x, 3, -1)


@case("shape", FEATURES, other=FEATURES2)
def flips(x):
    return ops.flip(x, (2,)), ops.flip(x, (1, 3)), ops.ReverseV2(axis=[-1])(x)


@case("shape", FEATURES, other=FEATURES2)
def unfolded(x):
    return ops.unfold(x, 3, padding=1), ops.unfold(x, (2, 3), dilation=(2, 1), stride=2)


@case("shape", (2, 36, 20))
def folded(x):
    return ops.fold(x, Tensor([10, 8], ms.int32), 3, 1, 1, 2)


@case("shape", (5, 7), other=(4, 6))
def triangles(x):
    return ops.tril(x), ops.triu(x, 1)


@case("shape", (5, 7), other=(4, 6))
def identity_tuples(x):
    pairs = (x + 1, (x * 2, x - 1))
    return pairs[1][0], pairs[0] + pairs[1][1]


# --- padding -----------------------------------------------------------------------------------


class PadPrimitive(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.pad = ops.Pad(((0, 0), (1, 0), (2, 1), (0, 3)))

    def construct(self, x):
        return self.pad(x)


add("padding", "pad_primitive", PadPrimitive, FEATURES, other=FEATURES2)


@layer("padding", FEATURES, other=FEATURES2)
def pad_cell():
    return nn.Pad(((0, 0), (0, 0), (1, 2), (3, 0)))


@layer("padding", FEATURES, other=FEATURES2)
def pad_cell_reflect():
    return nn.Pad(((0, 0), (0, 0), (1, 2), (3, 0)), mode="REFLECT")


@layer("padding", FEATURES, other=FEATURES2)
def pad_cell_symmetric():
    return nn.Pad(((0, 0), (0, 0), (1, 2), (3, 0)), mode="SYMMETRIC")


@layer("padding", FEATURES, other=FEATURES2)
def reflection_pad():
    return nn.ReflectionPad2d((1, 2, 3, 0))


@layer("padding", FEATURES, other=FEATURES2)
def replication_pad():
    return nn.ReplicationPad2d((1, 2, 3, 0))


@layer("padding", VOLUME)
def replication_pad_3d():
    return nn.ReplicationPad3d((1, 2, 3, 0, 1, 1))


@case("padding", FEATURES, other=FEATURES2)
def pad_with_zeros_joined(x):
    n, c, h, _ = x.shape
    zeros = ops.zeros((n, c, h, 5), x.dtype)
    return ops.cat((zeros, x), 3)


@case("padding", FEATURES, other=FEATURES2)
def pad_functional(x):
    return ops.pad(x, (1, 2, 0, 3), "constant", 0.5), ops.pad(x, (1, 2, 0, 3), mode="reflect")


# --- indexing ----------------------------------------------------------------------------------


@case("indexing", (5, 4, 7), (6,), other=((5, 3, 6), (9,)), kinds=("normal", "index:5"))
def gathers(x, index):
    return ops.gather(x, index, 0), x[index], ops.gather(x, index % 3, 1)


@case("indexing", (2, 4, 9), (2, 4, 5), other=((3, 4, 9), (3, 4, 6)), kinds=("normal", "index:9"))
def gather_elements(x, index):
    return ops.gather_elements(x, 2, index), ops.gather_elements(x, 1, index % 4)


@case("indexing", (2, 9, 4), (2, 5), other=((3, 9, 4), (3, 6)), kinds=("normal", "index:9"))
def gather_broadcast(x, index):
    wide = ops.broadcast_to(index.expand_dims(2), (-1, -1, 4))
    return ops.gather_elements(x, 1, wide)


@case("indexing", (4, 5, 3), (6, 2), other=((4, 5, 2), (3, 2)), kinds=("normal", "index:4"))
def gather_nd(x, index):
    return ops.gather_nd(x, index)


@case("indexing", (2, 4, 30), other=(3, 4, 25), kinds="distinct")
def top_k(x):
    values, index = ops.topk(x, 6)
    low, low_index = ops.topk(x, 3, largest=False)
    side, side_index = ops.topk(x, 2, 1)
    return values, index, low, low_index, side, side_index


@case("indexing", (2, 4, 11), other=(3, 4, 6), kinds="distinct")
def sorts(x):
    values, index = ops.sort(x, -1)
    high, high_index = ops.sort(x, 1, descending=True)
    return values, index, high, high_index, ops.argsort(x, 1)


@case(
    "indexing",
    (2, 3, 9),
    (2, 3, 4),
    (2, 3, 4),
    other=((1, 3, 8), (1, 3, 6), (1, 3, 6)),
    kinds=("normal", "index:1", "normal"),
)
def scatter_elements(x, index, update):
    position = index + ops.cumsum(ops.ones_like(index), -1) - 1
    return ops.tensor_scatter_elements(x, position, update, 2)


@case("indexing", (2, 9), (2, 4), (2, 4), kinds=("normal", "index:9", "normal"))
def scatter_elements_add(x, index, update):
    return ops.tensor_scatter_elements(x, index, update, 1, "add")


@case("indexing", (5, 3), (2, 1), (2, 3), kinds=("normal", "index:1", "normal"))
def scatter_update(x, index, update):
    position = index + Tensor([[1], [3]], ms.int32)
    return ops.tensor_scatter_update(x, position, update)


@case("indexing", (2, 5), other=(3, 4), kinds="index:6")
def one_hots(index):
    return (
        ops.one_hot(index, 6, Tensor(1.0), Tensor(0.0)),
        ops.one_hot(index, 6, Tensor(0.9, ms.float32), Tensor(0.1, ms.float32), 0),
    )


@case("indexing", (2, 3, 4, 5), other=(1, 3, 6, 4))
def generated(x):
    _, _, h, w = x.shape
    ys = ops.arange(0, h).astype(ms.float32)
    xs = ops.arange(w).astype(ms.float32)
    grid_y, grid_x = ops.meshgrid(ys, xs, indexing="ij")
    grid_a, grid_b = ops.meshgrid(xs, ys, indexing="xy")
    filled = ops.full((2, 3), 1.5), ops.ones((h, w)), ops.zeros_like(x), ops.ones_like(x)
    new = x.new_zeros((h, 2)), x.new_ones((2, 3)), x / ops.numel(x)
    return (grid_y, grid_x, grid_a, grid_b, *filled, *new)


@case("indexing", (4, 4))
def constants(x):
    return (
        x + ops.eye(4, 4, ms.float32),
        x * Tensor(np.arange(4), ms.float32),
        ops.linspace(0, 1, 5),
    )


@case("indexing", (3, 6), (3, 1), kinds=("normal", "index:6"))
def masks_of_index(x, index):
    columns = ops.arange(6)
    return ops.where(columns > index, x, ops.zeros_like(x))


# --- networks' pieces --------------------------------------------------------------------------


class SoftArgmin(nn.Cell):
    """Trilinear upsampling to a fixed number of levels, softmax, expected level."""

    def __init__(self) -> None:
        super().__init__()
        self.resize = ops.auto_generate.UpsampleTrilinear3D(True)
        self.levels = Tensor(np.arange(12, dtype=np.float32).reshape(1, 12, 1, 1) - 6)
        self.shape = ops.Shape()

    def construct(self, cost):
        _, _, _, h, w = self.shape(cost)
        logits = self.resize(cost, (12, 4 * h, 4 * w), None)
        probability = ops.softmax(ops.squeeze(logits, 1), 1)
        return (probability * self.levels).sum(1)


add("networks", "soft_argmin", SoftArgmin, (1, 1, 4, 5, 6), other=(2, 1, 4, 7, 5))


class CostVolume(nn.Cell):
    """Concatenation volume of shifted maps by slices of a zero-padded map."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = ops.Pad(((0, 0), (0, 0), (0, 0), (3, 2)))

    def construct(self, left, right):
        width = left.shape[3]
        padded = self.pad(right)
        slices = ()
        for shift in range(-2, 4):
            slices = slices + (padded[:, :, :, 3 - shift : 3 - shift + width],)
        return ops.cat((ops.stack((left,) * 6, 2), ops.stack(slices, 2)), 1)


add(
    "networks",
    "cost_volume",
    CostVolume,
    FEATURES,
    FEATURES,
    other=((3, 8, 4, 12), (3, 8, 4, 12)),
)


class SpatialAttention3d(nn.Cell):
    """Channel and spatial attention over a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv3d(4, 4, 1, pad_mode="valid")
        self.mix = nn.Conv3d(2, 1, 3, pad_mode="pad", padding=1, has_bias=True)

    def construct(self, x):
        mean = ops.adaptive_avg_pool3d(x, (1, 1, 1))
        peak = ops.amax(x, (2, 3, 4), keepdims=True)
        x = x * ops.sigmoid(self.shared(mean) + self.shared(peak))
        maps = ops.cat((x.mean(1, keep_dims=True), ops.amax(x, 1, keepdims=True)), 1)
        return x * ops.sigmoid(self.mix(maps))


add("networks", "attention_3d", SpatialAttention3d, VOLUME, other=VOLUME2)


class PointFlow(nn.Cell):
    """Selects points of one map, attends to them from another, writes them back."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Conv2d(8, 1, 3, pad_mode="pad", padding=1)
        self.top = ops.TopK(sorted=True)

    def construct(self, high, low):
        n, c, h, w = high.shape
        edge = self.edge(high).reshape(n, h * w)
        _, index = self.top(edge, 7)
        x = (index % w).astype(ms.float32) + 0.5
        y = (index // w).astype(ms.float32) + 0.5
        grid = ops.stack((x / w * 2 - 1, y / h * 2 - 1), -1).expand_dims(1)
        high_points = ops.grid_sample(high, grid, "bilinear", "zeros", False).squeeze(2)
        low_points = ops.grid_sample(low, grid, "bilinear", "zeros", False).squeeze(2)
        scores = ops.softmax(ops.bmm(low_points.swapaxes(1, 2), high_points), -1)
        result = low_points + ops.bmm(high_points, scores.swapaxes(1, 2))
        position = (index // w) * (4 * w) + (index % w) * 2
        wide = ops.broadcast_to(position.expand_dims(1), (n, c, 7))
        flat = ops.tensor_scatter_elements(low.reshape(n, c, 4 * h * w), wide, result, 2)
        return flat.reshape(n, c, 2 * h, 2 * w)


add(
    "networks",
    "point_flow",
    PointFlow,
    (2, 8, 5, 6),
    (2, 8, 10, 12),
    other=((1, 8, 7, 4), (1, 8, 14, 8)),
)


class Pyramid(nn.Cell):
    """Pyramid pooling with upsampling back to the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.CellList([nn.AdaptiveAvgPool2d(size) for size in (1, 2, 3, 6)])
        self.convs = nn.CellList([nn.Conv2d(8, 4, 1, has_bias=True) for _ in range(4)])
        self.resize = ops.ResizeBilinearV2(True, False)
        self.shape = ops.Shape()

    def construct(self, x):
        size = self.shape(x)[2:]
        priors = ()
        for index in range(4):
            priors = priors + (self.resize(self.convs[index](self.pools[index](x)), size),)
        return ops.cat(priors + (x,), 1)


add("networks", "pyramid_pooling", Pyramid, (1, 8, 12, 14), other=(2, 8, 9, 7))


class PadAndCrop(nn.Cell):
    """Zeros on top and on the right up to a multiple of eight, cropped from the result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, has_bias=True)
        self.shape = ops.Shape()

    def construct(self, x):
        n, c, h, w = self.shape(x)
        top = (8 - h % 8) % 8
        right = (8 - w % 8) % 8
        x = ops.cat((ops.zeros((n, c, top, w), ms.float32), x), 2)
        x = ops.cat((x, ops.zeros((n, c, top + h, right), ms.float32)), 3)
        return self.conv(x)[:, :, top:, :w]


add("networks", "pad_and_crop", PadAndCrop, (1, 3, 13, 9), other=(2, 3, 6, 12))


class Hourglass(nn.Cell):
    """Volumes down by two and up again, with a skip, and the expected level of a soft-argmin."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.SequentialCell(
            nn.Conv3d(4, 6, 3, stride=2, pad_mode="pad", padding=1, has_bias=True),
            Trained(nn.BatchNorm3d(6)),
            nn.ReLU(),
        )
        self.up = nn.SequentialCell(
            nn.Conv3dTranspose(6, 4, 3, 2, "pad", 1, output_padding=1, has_bias=True),
            Trained(nn.BatchNorm3d(4)),
        )
        self.pool = nn.MaxPool3d(3, 1, "pad", 1)
        self.last = nn.Conv3d(4, 1, 3, pad_mode="pad", padding=1)
        self.resize = ops.auto_generate.UpsampleTrilinear3D(True)
        self.shape = ops.Shape()

    def construct(self, x):
        n, _, _, h, w = self.shape(x)
        slice0 = x[:, :, :1]
        x = ops.relu(self.up(self.down(x)) + x * slice0)
        cost = self.resize(self.last(self.pool(x)), (16, 2 * h, 2 * w), None)
        probability = ops.softmax(cost.reshape((n, 16, 2 * h, 2 * w)), 1)
        return ops.argmax(probability, 1), probability.max(axis=1)


add("networks", "hourglass", Hourglass, (1, 4, 4, 6, 8), other=(2, 4, 4, 8, 4))


class StripPyramid(nn.Cell):
    """Long average pools, upsampling to the input, gates of one channel between two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.AvgPool2d((1, 5), (1, 2), "pad", (0, 2))
        self.tall = nn.AvgPool2d((5, 1), (2, 1), "pad", (2, 0))
        self.norm = Trained(nn.BatchNorm2d(8))
        self.conv = nn.Conv2d(8, 8, 3, pad_mode="pad", padding=1)
        self.row = nn.Conv2d(8, 8, (1, 3), pad_mode="pad", padding=(0, 0, 1, 1))
        self.gate = nn.Conv2d(8, 1, 1, has_bias=True)
        self.resize = ops.ResizeBilinearV2(False, True)
        self.shape = ops.Shape()

    def construct(self, x):
        strip = self.conv(ops.relu(self.norm(self.tall(self.wide(x)))))
        strip = self.resize(strip, self.shape(x)[2:])
        whole = self.resize(ops.mean(x, (2, 3), True), self.shape(x)[2:])
        mix = ops.sigmoid(self.gate(ops.relu(strip + self.row(x))))
        return strip * mix + whole * (1 - mix)


add("networks", "strip_pyramid", StripPyramid, FEATURES, other=FEATURES2)


class MultiScale(nn.Cell):
    """One block on the image and on smaller copies of it, fused from coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.SequentialCell(
            nn.Conv2d(1, 6, 3, pad_mode="pad", padding=1), Trained(nn.BatchNorm2d(6)), nn.ReLU()
        )
        self.local = nn.Conv2d(6, 6, 1)
        self.resize = ops.ResizeBilinearV2(False, True)
        self.shape = ops.Shape()

    def construct(self, x):
        h, w = self.shape(x)[2:]
        fused = self.block(self.resize(x, (h // 4, w // 4)))
        for factor in (2, 1):
            fine = self.block(self.resize(x, (h // factor, w // factor)))
            coarse = self.resize(fused, self.shape(fine)[2:])
            weight = ops.sigmoid(self.local(fine + coarse))
            fused = weight * fine + (1 - weight) * coarse
        return ops.L2Normalize(axis=1, epsilon=1e-12)(fused)


add("networks", "multi_scale", MultiScale, (1, 1, 16, 24), other=(2, 1, 19, 13))


class SharedWeights(nn.Cell):
    """One block called twice, with a parameter used outside any layer and one never used."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.SequentialCell(
            nn.Conv2d(3, 4, 3, has_bias=True), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.scale = Parameter(Tensor([1.5], ms.float32), name="scale")
        self.unused = nn.Dense(3, 4)

    def construct(self, a, b):
        return self.block(a) * self.scale + self.block(b)


add("networks", "shared_weights", SharedWeights, IMAGE, IMAGE, other=(IMAGE2, IMAGE2))


# --- not cases: Cells for single tests ---------------------------------------------------------


class MovingChannels(nn.Cell):
    """Normalises after a reshape that makes other channels of the same data."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Trained(nn.BatchNorm2d(4))

    def construct(self, x):
        return self.norm(x.reshape((2, 4, 3, 3)) * 2).reshape((4, 2, 9)).reshape((2, 4, 9))


class CommonNames(nn.Cell):
    """Names that the compiler gives to constants too, for an input and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.k = Parameter(Tensor([1.5], ms.float32), name="k")
        self.resize = ops.ResizeBilinearV2(False, True)
        self.shape = ops.Shape()

    def construct(self, y):
        h, w = self.shape(y)[2:]
        return self.resize(y * self.k, (h * 2, w * 3 + 1))


class GammaHead(nn.Cell):
    """A layer with an operator that has no ONNX form."""

    def construct(self, x):
        return ops.lgamma(x)


class Outer(nn.Cell):
    """A network with such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = GammaHead()

    def construct(self, x):
        return self.head(ops.relu(x)) + 1


class ReadsOnlyShape(nn.Cell):
    """Multiplies by a parameter; another one is part of the graph without any influence."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = Parameter(Tensor([3.0], ms.float32), name="busy")
        self.idle = Parameter(Tensor([3.0, 4.0], ms.float32), name="idle")

    def construct(self, x):
        return ops.depend(x * self.busy, self.idle * 2)


class Branching(nn.Cell):
    """A branch on the data."""

    def construct(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1


class SmallNetwork(nn.Cell):
    """Convolution, normalisation, dropout, resizing to the input's size; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, pad_mode="pad", padding=1, has_bias=True)
        self.norm = nn.BatchNorm2d(6)
        rng = np.random.default_rng(2)
        for parameter in self.norm.get_parameters():
            parameter.set_data(Tensor(rng.random(6).astype(np.float32) * 0.1 + 0.02))
        self.drop = nn.Dropout(p=0.5)
        self.head = nn.Conv2d(6, 4, 1, has_bias=True)
        self.spare = nn.Dense(2, 3)
        self.resize = ops.ResizeBilinearV2(False, True)
        self.shape = ops.Shape()

    def construct(self, image):
        features = self.drop(ops.relu(self.norm(self.conv(image))))
        logits = self.resize(self.head(features), self.shape(image)[2:])
        return ops.softmax(logits, 1), features.mean((2, 3))


class Lookup(nn.Cell):
    """Rows of a table by index, and where their largest element is."""

    def construct(self, table, index):
        rows = ops.gather(table, index, 0)
        return rows, rows.argmax(1)


class Interpolating(nn.Cell):
    """What breaks dynamic MINDIR files."""

    def construct(self, x):
        size = (x.shape[2] * 2, x.shape[3] * 2)
        return ops.interpolate(x, size=size, mode="bilinear", align_corners=True)
