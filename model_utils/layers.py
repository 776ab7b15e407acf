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


def l2_normalize(x: Tensor, epsilon: float = 1e-10) -> Tensor:
    """Rows of (N, D) scaled to unit length: x / sqrt(sum x^2 + epsilon)."""
    return x / ops.sqrt((x * x).sum(axis=1, keepdims=True) + epsilon)


class Dropout(nn.Cell):
    """Dropout whose masks are a function of (seed, call count, sample, element).

    The framework's dropout keeps its random state inside the kernel, where no checkpoint
    reaches it: a resumed run sees other masks than an undisturbed one. Here the state is one
    parameter, ``dropout_calls``, saved with the weights of a training state; and since the sample's
    place in the global batch enters the hash, N ranks draw together what one rank draws alone.

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
        # 24 bits: exactly representable in float32.
        self.threshold = round(p * (1 << 24))
        self.dropout_calls = Parameter(
            Tensor(np.zeros(1, np.int32)), name=TRANSIENT, requires_grad=False
        )

    def construct(self, x: Tensor) -> Tensor:
        """Zero elements with probability p and scale the others by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        size = x.size // x.shape[0]
        first = self.rank * x.size
        # Two rounds of multiply-xorshift (the finaliser of MurmurHash3) on consecutive numbers.
        calls = ops.assign_add(self.dropout_calls, Tensor([1], ms.int32))
        key = calls * 668265263 + self.seed
        bits = ops.arange(first, first + x.shape[0] * size, 1, dtype=ms.int32) + key
        bits = _mix(_mix(bits ^ (key * 374761393)))
        keep = ops.bitwise_and(bits, 0xFFFFFF) >= self.threshold
        return x * ops.reshape(keep, x.shape).astype(x.dtype) * self.scale


def _mix(bits: Tensor) -> Tensor:
    # Shifts are arithmetic on int32; masking the copied sign bits makes them logical.
    bits = bits ^ ops.bitwise_and(ops.bitwise_right_shift(bits, Tensor(16, ms.int32)), 0xFFFF)
    bits = bits * -2048144789
    bits = bits ^ ops.bitwise_and(ops.bitwise_right_shift(bits, Tensor(13, ms.int32)), 0x7FFFF)
    return bits * -1028477387


def semi_orthogonal(shape: tuple[int, ...], gain: float, rng: np.random.Generator) -> np.ndarray:
    """A weight whose matrix (out, everything else) has orthonormal rows or columns, times gain.

    From the singular vectors of a Gaussian matrix (Saxe et al. 2014, section 3).
    """
    rows, columns = shape[0], math.prod(shape[1:])
    left, _, right = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    factor = left if left.shape == (rows, columns) else right
    return (gain * factor.reshape(shape)).astype(np.float32)
