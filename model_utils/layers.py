"""Layers that MindSpore lacks or computes wrongly, and the plain ones in PyTorch's convention.

Why each exists is measured in docs/framework_traps.md. All take and return (N, C, H, W) float32
unless a docstring says otherwise.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

# Parameters of this name are state of a running training, not weights: checkpoints of a network
# leave them out, training states keep them.
TRANSIENT = "dropout_calls"


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int, int, int] = 0,
    dilation: int = 1,
    group: int = 1,
    has_bias: bool = False,
) -> nn.Conv2d:
    """Convolution with explicit zero padding; MindSpore's own default is "same".

    Args:
        in_channels, out_channels: channel counts.
        kernel_size: one number or (height, width).
        stride, dilation, group: as usual.
        padding: pixels on every side, or (top, bottom, left, right).
        has_bias: add a bias per output channel.
    """
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        pad_mode="pad",
        padding=padding,
        dilation=dilation,
        group=group,
        has_bias=has_bias,
    )


def conv_transpose2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
    has_bias: bool = True,
) -> nn.Conv2dTranspose:
    """Transposed convolution whose output_padding means what it means in PyTorch.

    MindSpore zero-pads the result instead; cropping less at the bottom and right is right.
    Output size: (size - 1) * stride - 2 * padding + kernel_size + output_padding.

    Raises:
        ValueError: output_padding is larger than padding, which cropping cannot express.
    """
    if output_padding > padding:
        raise ValueError(f"output_padding {output_padding} exceeds padding {padding}")
    return nn.Conv2dTranspose(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        pad_mode="pad",
        padding=(padding, padding - output_padding, padding, padding - output_padding),
        has_bias=has_bias,
    )


def zero_pad(top: int, bottom: int, left: int, right: int) -> nn.Cell:
    """Zero padding of the last two axes; ops.pad has a wrong gradient from its second run on."""
    return nn.Pad(((0, 0), (0, 0), (top, bottom), (left, right)))


def max_pool_after_relu(kernel_size: int = 3, stride: int = 2, padding: int = 1) -> nn.Cell:
    """Max pooling of non-negative input with padding, as nn.MaxPool2d in PyTorch.

    Zeros stand in for minus infinity, which is exact after a ReLU, four times faster than the
    padded kernel of MindSpore, and exportable.
    """
    return nn.SequentialCell(
        zero_pad(padding, padding, padding, padding),
        nn.MaxPool2d(kernel_size, stride, pad_mode="valid"),
    )


@ms.constexpr
def _interpolation(source: int, target: int, align_corners: bool) -> Tensor:
    """The (target, source) matrix of linear interpolation along one axis."""
    places = np.arange(target, dtype=np.float64)
    if align_corners:
        places = places * (source - 1) / max(target - 1, 1)
    else:
        places = np.maximum((places + 0.5) * source / target - 0.5, 0)
    low = np.minimum(places.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - (places - low))
    np.add.at(matrix, (np.arange(target), high), places - low)
    return Tensor(matrix.astype(np.float32))


def resize_bilinear(x: Tensor, height: int, width: int, align_corners: bool = False) -> Tensor:
    """Bilinear resizing of a map whose size is known when the graph is compiled.

    As two matrix products: the gradient of ops.ResizeBilinearV2 takes six times as long on CPU.
    Both of PyTorch's conventions; no antialiasing.

    Args:
        x: (N, C, h, w).
        height, width: of the result.
        align_corners: corner pixels' centres coincide; otherwise the maps' outer edges do.
    """
    count, channels, rows, columns = x.shape
    if (rows, columns) == (height, width):
        return x
    wide = ops.matmul(
        x.reshape(-1, columns), _interpolation(columns, width, align_corners).T
    ).reshape(count * channels, rows, width)
    high = ops.matmul(_interpolation(rows, height, align_corners), wide)
    return high.reshape(count, channels, height, width)


class ResizeLike(nn.Cell):
    """Bilinear resizing (N, C, h, w) to the height and width of another map.

    In training by matrix products, whose gradient is fast; otherwise by the framework's
    operator, which also takes sizes that are known at run time only, as in exported files.

    Args:
        align_corners: corner pixels' centres coincide; otherwise the maps' outer edges do.
    """

    def __init__(self, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.operator = ops.ResizeBilinearV2(align_corners, not align_corners)

    def construct(self, x: Tensor, reference: Tensor) -> Tensor:
        """``x`` resized to the height and width of ``reference``."""
        if self.training:
            height, width = reference.shape[2:]
            return resize_bilinear(x, height, width, self.align_corners)
        return self.operator(x, ops.shape(reference)[2:])


def l2_normalize(x: Tensor, epsilon: float = 1e-10) -> Tensor:
    """Rows of (N, D) scaled to unit length: x / sqrt(sum x^2 + epsilon)."""
    return x / ops.sqrt((x * x).sum(axis=1, keepdims=True) + epsilon)


class FullMapConv2d(nn.Conv2d):
    """Convolution whose kernel covers its whole input map: (N, C, K, K) to (N, out, 1, 1).

    The same sums and the same weight (out, C, K, K) as nn.Conv2d, computed as one matrix
    product. On CPU the convolution's filter gradient takes ten times as long.

    Args:
        in_channels, out_channels: channel counts.
        kernel_size: height and width of kernel and input.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, pad_mode="valid", has_bias=False)
        self.rows = out_channels
        self.map_shape = (in_channels, kernel_size, kernel_size)
        self.columns = math.prod(self.map_shape)
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        """Weighted sums over the whole map.

        Raises:
            ValueError: the map is not (in_channels, kernel_size, kernel_size).
        """
        if x.shape[1:] != self.map_shape:
            raise ValueError(f"the map must be {self.map_shape}, not {x.shape[1:]}")
        product = self.product(
            x.reshape(-1, self.columns), self.weight.reshape(self.rows, self.columns)
        )
        return product.reshape(-1, self.rows, 1, 1)


class Dropout(nn.Cell):
    """Dropout whose masks are a function of (seed, call count, sample, element).

    The framework's dropout keeps its random state inside the kernel, where no checkpoint
    reaches it: a resumed run sees other masks than an undisturbed one. Here the state is one
    parameter, ``dropout_calls``, saved with the weights of a training state; and since the sample's
    place in the global batch enters the hash, N ranks draw together what one rank draws alone.

    Each sample and each element get a hash of 32 bits; (sample + element) times a second, odd
    hash of the element, modulo 2^32, decides (multiply-shift hashing, Dietzfelbinger et al.
    1997). So only two integer operations run over the whole batch.

    Args:
        p: probability of dropping an element, in [0, 1).
        seed: distinguishes the layers of a network.
        rank: this process's place; rank r holds samples r*n .. r*n+n-1 of the global batch.
    """

    def __init__(self, p: float, seed: int = 0, rank: int = 0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the dropout probability must be in [0, 1), not {p}")
        self.p = p
        self.scale = 1.0 / (1.0 - p)
        self.seed = int(np.uint32((seed + 1) * 0x9E3779B1 & 0xFFFFFFFF).view(np.int32))
        self.rank = rank
        # Uniform signed integers below this are dropped.
        self.threshold = min(round(p * 2**32) - 2**31, 2**31 - 1)
        self.dropout_calls = Parameter(
            Tensor(np.zeros(1, np.int32)), name=TRANSIENT, requires_grad=False
        )

    def construct(self, x: Tensor) -> Tensor:
        """Zero elements of (N, ...) with probability p and scale the others by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        count = x.shape[0]
        size = x.size // count
        calls = ops.assign_add(self.dropout_calls, Tensor([1], ms.int32))
        key = _hash(calls * 668265263 + self.seed)
        first = self.rank * count
        samples = _hash(ops.arange(first, first + count, 1, dtype=ms.int32) + key)
        elements = ops.arange(0, 2 * size, 1, dtype=ms.int32) + self.seed
        elements = _hash(elements).reshape(2, size)
        odd = elements[1] * 2 + 1
        bits = (samples.reshape(count, 1) + elements[0]) * odd
        keep = (bits >= self.threshold).astype(x.dtype)
        return x * (keep.reshape(x.shape) * self.scale)


def _hash(bits: Tensor) -> Tensor:
    """The finaliser of MurmurHash3, a bijection of 32-bit integers, twice."""
    return _mix(_mix(bits))


def _mix(bits: Tensor) -> Tensor:
    # Shifts are arithmetic on int32; masking the copied sign bits makes them logical.
    bits = bits ^ ops.bitwise_and(ops.bitwise_right_shift(bits, Tensor(16, ms.int32)), 0xFFFF)
    bits = bits * -2048144789
    bits = bits ^ ops.bitwise_and(ops.bitwise_right_shift(bits, Tensor(13, ms.int32)), 0x7FFFF)
    bits = bits * -1028477387
    return bits ^ ops.bitwise_and(ops.bitwise_right_shift(bits, Tensor(16, ms.int32)), 0xFFFF)


def semi_orthogonal(shape: tuple[int, ...], gain: float, rng: np.random.Generator) -> np.ndarray:
    """A weight whose matrix (out, everything else) has orthonormal rows or columns, times gain.

    From the singular vectors of a Gaussian matrix (Saxe et al. 2014, section 3).
    """
    rows, columns = shape[0], math.prod(shape[1:])
    left, _, right = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    factor = left if left.shape == (rows, columns) else right
    return (gain * factor.reshape(shape)).astype(np.float32)
