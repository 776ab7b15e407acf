"""SANet's losses: section 2 of the specification of the published training code (PIDNet's).

total = aux * CE(aux) + main * OHEM(main)
        + boundary * balanced BCE(boundary) + boundary_aware * OHEM(main near boundaries)

All are taken at the labels' resolution; logits are resized with aligned corners, as upstream.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.layers import resize_bilinear
from model_utils.segmentation_losses import (
    BalancedEdges,
    NegativeLogLikelihood,
    PixelWeights,
    limit_below,
    weighted_mean,
)

from .network import SANetClassifier, SANetNetwork


def resize_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """(N, K, h, w) to (N, K, height, width), bilinear with aligned corners."""
    return resize_bilinear(logits, height, width, align_corners=True)


class HardExamples(nn.Cell):
    """Mean loss of the pixels that are predicted worst (OHEM).

    A pixel counts if the probability of its label is below a threshold: the larger of a fixed
    one and the (keep + 1)-th smallest probability. Without any such pixel the loss is 0, where
    the published code fails.

    Args:
        threshold: the fixed probability.
        keep: about the least number of pixels kept.
    """

    def __init__(self, threshold: float = 0.9, keep: int = 131072) -> None:
        super().__init__()
        self.threshold = threshold
        self.keep = keep

    def construct(self, loss: Tensor, probability: Tensor, valid: Tensor) -> Tensor:
        """Weighted loss, probability of the label and 1 at valid pixels, each (N, H, W).

        Returns:
            The mean, a scalar; divided by the number of kept pixels, not by their weights.
        """
        # Probabilities are at most 1: pixels that are not valid come last.
        candidates = ops.stop_gradient(probability * valid + 2.0 * (1.0 - valid)).reshape(-1)
        place = ops.maximum(ops.minimum(valid.sum() - 1.0, float(self.keep)), 0.0)
        limit = limit_below(candidates, place, self.threshold)
        kept = (candidates < limit).astype(ms.float32) * valid.reshape(-1)
        return (loss.reshape(-1) * kept).sum() / ops.maximum(kept.sum(), 1.0)


class SANetLoss(nn.Cell):
    """The weighted sum of the four losses.

    Args:
        classes: K.
        aux, main, boundary, boundary_aware: weights.
        boundary_threshold: boundary probability from which a pixel is near a boundary.
        ohem: False takes the weighted mean over all valid pixels instead of the hard ones.
        threshold, keep: of HardExamples.
        class_weights: one per class, or empty.

    Raises:
        UserError: another number of class weights.
    """

    def __init__(
        self,
        classes: int,
        aux: float = 0.4,
        main: float = 1.0,
        boundary: float = 20.0,
        boundary_aware: float = 1.0,
        boundary_threshold: float = 0.8,
        ohem: bool = True,
        threshold: float = 0.9,
        keep: int = 131072,
        class_weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.likelihood = NegativeLogLikelihood(classes)
        self.hard = HardExamples(threshold, keep)
        self.balanced = BalancedEdges()
        self.weights = (aux, main, boundary, boundary_aware)
        self.ohem = ohem
        with np.errstate(divide="ignore"):
            logit = np.log(boundary_threshold) - np.log1p(-boundary_threshold)
        # A threshold of 0 or 1: above or below every logit.
        self.boundary_logit = float(np.clip(logit, -1e30, 1e30))
        self.pixel_weights = PixelWeights(classes, class_weights)

    def construct(
        self, aux: Tensor, main: Tensor, boundary: Tensor, label: Tensor, edge: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits of the three heads, uint8 labels and edges (N, H, W).

        Returns:
            Scalars: total, auxiliary, main, boundary and boundary-aware loss, each without its
            weight, and the share of valid pixels whose label has the largest main logit.
        """
        height, width = label.shape[1:]
        label = label.astype(ms.int32)
        weight, valid = self.pixel_weights(label)
        aux_loss, _ = self.likelihood(resize_logits(aux, height, width), label)
        main_loss, hit = self.likelihood(resize_logits(main, height, width), label)
        edge_logits = resize_logits(boundary, height, width).reshape(label.shape)
        near = valid * (ops.stop_gradient(edge_logits) > self.boundary_logit).astype(ms.float32)
        probability = ops.exp(-ops.stop_gradient(main_loss))
        weighted = main_loss * weight
        # Upstream averages its unreduced map, ignored pixels included.
        loss_aux = (aux_loss * weight).mean()
        if self.ohem:
            loss_main = self.hard(weighted, probability, valid)
            loss_aware = self.hard(weighted, probability, near)
        else:
            loss_aux = weighted_mean(aux_loss, weight, valid)
            loss_main = weighted_mean(main_loss, weight, valid)
            loss_aware = weighted_mean(main_loss, weight, near)
        loss_boundary = self.balanced(edge_logits, edge.astype(ms.float32))
        total = (
            self.weights[0] * loss_aux
            + self.weights[1] * loss_main
            + self.weights[2] * loss_boundary
            + self.weights[3] * loss_aware
        )
        accuracy = hit.sum() / ops.maximum(valid.sum(), 1.0)
        return total, loss_aux, loss_main, loss_boundary, loss_aware, accuracy


class SANetTrainCell(nn.Cell):
    """Network and losses as one Cell: a batch in, the losses out."""

    def __init__(self, network: SANetNetwork, loss: SANetLoss) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss

    def construct(self, image: Tensor, label: Tensor, edge: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W), labels and edges (N, H, W) uint8 to the losses of SANetLoss."""
        aux, main, boundary = self.network(image)
        return self.loss(aux, main, boundary, label, edge)


class ClassifierTrainCell(nn.Cell):
    """ImageNet pretraining: cross entropy and accuracy of a batch."""

    def __init__(self, network: SANetClassifier) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) and int32 labels (N,) to (loss, share of correct ones)."""
        logits = self.network(image)
        chosen = ops.one_hot(
            label, logits.shape[1], Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)
        )
        loss = (ops.logsumexp(logits, 1) - (logits * chosen).sum(axis=1)).mean()
        hit = (ops.stop_gradient(logits).argmax(axis=1) == label).astype(ms.float32)
        return loss, hit.mean()
