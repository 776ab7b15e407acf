"""Ranks: who am I, sums over all, and the two layers that need the others' values.

MindSpore on CPU has a sum all-reduce and little else (docs/framework_traps.md); everything here
is built on it, so that data-parallel training is exercised for real on any machine.
"""

import functools
import os
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from model_utils.local_adapter import get_device_num


@dataclass(frozen=True)
class Ranks:
    """This process's place among all: rank in [0, size)."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes results and talks to the user."""
        return self.rank == 0


def initialize() -> Ranks:
    """Join the job's other processes; call after the device is set and before anything else.

    Reads the launcher's environment (msrun's, or a rank table's on Ascend).
    """
    from mindspore import communication

    communication.init()
    ranks = Ranks(communication.get_rank(), communication.get_group_size())
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks.size
    )
    return ranks


def requested() -> bool:
    """Whether a launcher started this process as one of several.

    Raises:
        UserError: RANK_SIZE is no number.
    """
    return get_device_num() > 1 or "MS_ROLE" in os.environ


class _Sum(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)


@functools.cache
def _sum_cell() -> nn.Cell:
    # One per process: a new Cell would compile its graph anew at every sum.
    return _Sum()


def sum_over_ranks(values: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Element-wise sum of a host array over all ranks; exact for non-negative integers.

    The collective sums float32 only: integers below 2^48 travel in four parts, floating-point
    values as a high and a low part.
    """
    values = np.asarray(values)
    if ranks.size == 1:
        return values
    if values.dtype.kind in "iub":
        wide = values.astype(np.int64)
        # 12 bits each: sums over up to 4,096 ranks stay exact in float32's 24 bits.
        parts = np.stack([(wide >> shift) & 0xFFF for shift in (36, 24, 12, 0)])
        summed = _sum_cell()(Tensor(parts.astype(np.float32))).asnumpy().astype(np.int64)
        return sum(part << shift for part, shift in zip(summed, (36, 24, 12, 0), strict=True))
    high = values.astype(np.float32)
    low = (values - high).astype(np.float32)
    summed = _sum_cell()(Tensor(np.stack((high, low)))).asnumpy().astype(np.float64)
    return summed[0] + summed[1]


def agree(value: int, ranks: Ranks) -> bool:
    """Whether all ranks hold the same integer of at most 64 bits; every rank gets the answer.

    All ranks must call it. Equal numbers are those whose squares' sum, times their count, is
    the square of their sum (Cauchy-Schwarz); compared in pieces of 16 bits to stay exact.
    """
    pieces = np.array([(value >> shift) & 0xFFFF for shift in (48, 32, 16, 0)])
    sums = sum_over_ranks(np.concatenate((pieces, pieces * pieces)), ranks)
    return bool((ranks.size * sums[4:] == sums[:4] ** 2).all())


def gather_parts(part: np.ndarray, indices: range, total: int, ranks: Ranks) -> np.ndarray:
    """All ranks' results of one number per sample, on every rank.

    Args:
        part: this rank's values, one per index.
        indices: which samples they belong to.
        total: samples over all ranks.
        ranks: this process's place.
    """
    if ranks.size == 1:
        return part
    whole = np.zeros(total, part.dtype)
    whole[indices.start : indices.stop] = part
    return sum_over_ranks(whole, ranks).astype(part.dtype)


class GatherRanks(nn.Cell):
    """Rows of all ranks, (n, D) to (size * n, D), in rank order, on every rank; differentiable.

    A sum all-reduce of zero-padded blocks: its gradient is a sum all-reduce again, which CPU
    has, where AllGather's would be ReduceScatter, which it lacks. When every rank computes the
    same loss of the gathered rows and gradients are averaged over ranks, the result is the
    gradient of that loss on one device.

    Args:
        ranks: this process's place.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()
        self.rank = ranks.rank
        self.size = ranks.size

    def construct(self, x: Tensor) -> Tensor:
        """Collect the rows of all ranks."""
        blocks = []
        for rank in range(self.size):
            blocks.append(x if rank == self.rank else ops.zeros_like(x))
        return self.all_reduce(ops.cat(blocks, axis=0))


class SyncBatchNorm(nn.Cell):
    """Batch normalisation with the statistics of the global batch, over any spatial axes.

    Equal to nn.BatchNorm2d on the whole batch in one process. Built on the sum all-reduce,
    since MindSpore's own layer does not run on CPU. Takes over the parameters of the layer it
    replaces, names included, so checkpoints do not change.

    Args:
        layer: the nn.BatchNorm2d (or 1d, 3d) to replace.
        ranks: this process's place; every rank must hold equally many samples.
    """

    def __init__(self, layer: nn.Cell, ranks: Ranks) -> None:
        super().__init__(auto_prefix=False)
        source = getattr(layer, "bn2d", layer)  # BatchNorm3d wraps a 2-D layer
        self.gamma: Parameter = source.gamma
        self.beta: Parameter = source.beta
        self.moving_mean: Parameter = source.moving_mean
        self.moving_variance: Parameter = source.moving_variance
        self.eps = source.eps
        # The layer stores the share of the new statistics, one minus its own argument.
        self.momentum = float(source.momentum)
        self.size = ranks.size
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...) over all axes but C and over all ranks."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        if not self.training:
            return ops.batch_norm(
                x,
                self.moving_mean,
                self.moving_variance,
                self.gamma,
                self.beta,
                training=False,
                eps=self.eps,
            )
        axes = (0,) + tuple(range(2, x.ndim))
        count = x.size // x.shape[1] * self.size
        # Two passes: the variance as mean of squares minus squared mean loses digits in float32.
        mean = self.all_reduce(x.sum(axis=axes)) / count
        centred = x - mean.reshape(shape)
        variance = self.all_reduce((centred * centred).sum(axis=axes)) / count
        unbiased = variance * (count / (count - 1))
        ops.assign_add(self.moving_mean, self.momentum * (mean - self.moving_mean))
        ops.assign_add(self.moving_variance, self.momentum * (unbiased - self.moving_variance))
        scale = self.gamma / ops.sqrt(variance + self.eps)
        return centred * scale.reshape(shape) + self.beta.reshape(shape)


def synchronize_batch_norm(network: nn.Cell, ranks: Ranks) -> int:
    """Replace every batch normalisation of ``network`` by SyncBatchNorm; returns how many.

    Layers set to their stored statistics (``use_batch_statistics=False``) have nothing to share
    and stay as they are.
    """
    replaced = 0
    for cell in [network, *(part for _, part in network.cells_and_names())]:
        for name, child in list(cell.name_cells().items()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                if getattr(child, "bn2d", child).use_batch_statistics is False:
                    continue
                replacement = SyncBatchNorm(child, ranks)
                names = [(parameter, parameter.name) for parameter in child.get_parameters()]
                if isinstance(cell, nn.SequentialCell):
                    cell[int(name)] = replacement
                else:
                    setattr(cell, name, replacement)
                # Becoming an attribute shortens a parameter's name to that cell's.
                for parameter, kept in names:
                    parameter.name = kept
                replaced += 1
    return replaced
