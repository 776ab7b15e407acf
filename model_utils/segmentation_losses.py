"""Losses of segmentation networks, per pixel and balanced, written for speed on CPU as well."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.errors import UserError
from model_utils.segmentation import IGNORE


class NegativeLogLikelihood(nn.Cell):
    """-log softmax at the label, per pixel.

    Neither ops.log_softmax nor sums and maxima over the channel axis, which take MindSpore 20
    times as long on CPU as a 1 x 1 convolution with ones and a chain of maxima.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.numbers = Tensor(np.arange(classes, dtype=np.int32).reshape(1, classes, 1, 1))
        self.add = ops.Conv2D(1, 1)
        self.ones = Tensor(np.ones((1, classes, 1, 1), np.float32))

    def construct(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K, H, W) and int32 labels (N, H, W), 255 ignored.

        Returns:
            (N, H, W) each: the loss, 0 where ignored, and 1 where the label holds the largest
            logit.
        """
        chosen = (ops.expand_dims(label, 1) == self.numbers).astype(ms.float32)
        parts = ops.split(ops.stop_gradient(logits), 1, 1)
        largest = parts[0]
        for part in parts[1:]:
            largest = ops.maximum(largest, part)
        shifted = logits - largest
        target = self.add(shifted * chosen, self.ones).reshape(label.shape)
        total = self.add(ops.exp(shifted), self.ones).reshape(label.shape)
        valid = (label != IGNORE).astype(ms.float32)
        hit = (ops.stop_gradient(target) >= 0).astype(ms.float32) * valid
        return (ops.log(total) - target) * valid, hit


def limit_below(values: Tensor, place: Tensor, lowest: float) -> Tensor:
    """A number that the same values lie below as below max(lowest, value of rank ``place``).

    Bisection by counting: 26 passes reach the spacing of float32 near 1. MindSpore sorts four
    times as long on CPU.

    Args:
        values: (n,) float32, n below 2^24; only those up to 1 count.
        place: scalar float32, a whole number in [0, n): the rank, from 0.
        lowest: the least result, in [0, 1].
    """
    found = ops.zeros_like(place) + lowest
    step = 1.0 - lowest
    for _ in range(26):
        step = 0.5 * step
        trial = found + step
        below = (values < trial).astype(ms.float32).sum()
        found = ops.select(below <= place, trial, found)
    return found


class BalancedEdges(nn.Cell):
    """Binary cross entropy in which both classes weigh as much as the other is frequent."""

    def construct(self, logits: Tensor, edge: Tensor) -> Tensor:
        """Logits and float32 edges (0 or 1), (N, H, W) each, to a scalar."""
        positive = edge.mean()
        weight = edge * (1.0 - positive) + (1.0 - edge) * positive
        # log(1 + exp(-|x|)) + max(x, 0) - x y: no overflow for any logit.
        loss = ops.log(1.0 + ops.exp(-ops.abs(logits))) + ops.relu(logits) - logits * edge
        return (weight * loss).mean()


class PixelWeights(nn.Cell):
    """How much a pixel counts: by its class, or 1; ignored ones not at all.

    Args:
        classes: K.
        weights: one per class; empty weighs all alike.

    Raises:
        UserError: another number of weights.
    """

    def __init__(self, classes: int, weights: Sequence[float] = ()) -> None:
        super().__init__()
        if len(weights) not in (0, classes):
            raise UserError(
                f"loss.class_weights has {len(weights)} numbers for {classes} classes; "
                "give one per class, or [] to weigh all alike"
            )
        self.table = None
        if len(weights):
            table = np.zeros(IGNORE + 1, np.float32)
            table[:classes] = weights
            self.table = Tensor(table)

    def construct(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N, H, W) int32 to weights and 1 where a label is not ignored, float32 each."""
        valid = (label != IGNORE).astype(ms.float32)
        if self.table is None:
            return valid, valid
        return ops.gather(self.table, label, 0), valid


def weighted_mean(loss: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Class-weighted mean over a mask, as PyTorch's cross entropy; 0 over nothing."""
    weight = weight * mask
    total = weight.sum()
    return (loss * weight).sum() / ops.select(total > 0, total, ops.ones_like(total))
