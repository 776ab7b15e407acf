"""PFNet's joint loss: hard-example cross entropy and balanced edges at three levels.

The published code's ``JointEdgeSegLightLossPfnet``:
total = segmentation * OHEM(logits) + edge * (BCE(e2) + BCE(e1) + BCE(e0)), all taken at the
labels' resolution.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, nn, ops

from model_utils.layers import resize_bilinear
from model_utils.segmentation_losses import (
    BalancedEdges,
    NegativeLogLikelihood,
    PixelWeights,
    limit_below,
    weighted_mean,
)

from .network import PFNet


class HardPixels(nn.Cell):
    """Which pixels are predicted worst (OHEM).

    Those whose label has at most a limit probability: the larger of a fixed one and the
    ``keep``-th smallest. With fewer valid pixels than ``keep`` all of them.

    Args:
        threshold: the fixed probability.
        keep: the least number of pixels kept.
    """

    def __init__(self, threshold: float = 0.7, keep: int = 10000) -> None:
        super().__init__()
        self.threshold = threshold
        self.keep = keep

    def construct(self, probability: Tensor, valid: Tensor) -> Tensor:
        """Probability of the label and 1 at valid pixels, (N, H, W) each, to 0 or 1 likewise."""
        # Ignored pixels take part in the ranking with probability 1, as published.
        ranked = ops.stop_gradient(probability * valid + (1.0 - valid)).reshape(-1)
        place = ops.minimum(ops.zeros_like(valid.sum()) + (self.keep - 1.0), ranked.size - 1.0)
        limit = limit_below(ranked, place, self.threshold)
        # The limit is at most one float below the probability of that rank, which counts.
        limit = limit * (1.0 + 2.0**-22)
        hard = (probability <= limit).astype(ms.float32) * valid
        return ops.select(valid.sum() < float(self.keep), valid, hard)


class DiceLoss(nn.Cell):
    """1 - (2 sum(x y) + 1) / (sum(x^2 + y^2) + 1) per image, of raw logits as published."""

    def construct(self, logits: Tensor, edge: Tensor) -> Tensor:
        """Logits and float32 edges (0 or 1), (N, H, W) each, to a scalar."""
        product = (logits * edge).sum(axis=(1, 2))
        squares = (logits * logits + edge * edge).sum(axis=(1, 2))
        return (1.0 - (2.0 * product + 1.0) / (squares + 1.0)).mean()


class PFNetLoss(nn.Cell):
    """The weighted sum of the segmentation loss and of the three edge losses.

    Args:
        classes: K.
        segmentation, edge: weights.
        edge_loss: ``bce`` or ``dice``.
        ohem: False takes the weighted mean over all valid pixels.
        threshold, keep: of HardPixels.
        class_weights: one per class, or empty.

    Raises:
        UserError: another number of class weights.
    """

    def __init__(
        self,
        classes: int,
        segmentation: float = 1.0,
        edge: float = 25.0,
        edge_loss: str = "bce",
        ohem: bool = True,
        threshold: float = 0.7,
        keep: int = 10000,
        class_weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.likelihood = NegativeLogLikelihood(classes)
        self.hard = HardPixels(threshold, keep)
        self.edges = DiceLoss() if edge_loss == "dice" else BalancedEdges()
        self.weights = (segmentation, edge)
        self.ohem = ohem
        self.pixel_weights = PixelWeights(classes, class_weights)

    def construct(
        self, logits: Tensor, edges: tuple[Tensor, ...], label: Tensor, edge: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits (N, K, h, w), edge logits (N, 1, h_i, w_i), uint8 labels and edges (N, H, W).

        Returns:
            Scalars: total; segmentation loss and, from the deepest level on, edge losses, all
            with their weights; the share of valid pixels whose label has the largest logit.
        """
        height, width = label.shape[1:]
        label = label.astype(ms.int32)
        weight, valid = self.pixel_weights(label)
        full = resize_bilinear(logits, height, width, align_corners=True)
        loss, hit = self.likelihood(full, label)
        counted = valid
        if self.ohem:
            counted = self.hard(ops.exp(-ops.stop_gradient(loss)), valid)
        total = self.weights[0] * weighted_mean(loss, weight, counted)
        parts = [total]
        target = edge.astype(ms.float32)
        for level in edges:
            level = resize_bilinear(level, height, width, align_corners=True)
            part = self.weights[1] * self.edges(level.reshape(label.shape), target)
            total = total + part
            parts.append(part)
        accuracy = hit.sum() / ops.maximum(valid.sum(), 1.0)
        return (total, *parts, accuracy)


class PFNetTrainCell(nn.Cell):
    """Network and losses as one Cell: a batch in, the losses out."""

    def __init__(self, network: PFNet, loss: PFNetLoss) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss

    def construct(self, image: Tensor, label: Tensor, edge: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W), labels and edges (N, H, W) uint8 to the losses of PFNetLoss."""
        logits, edges = self.network(image)
        return self.loss(logits, edges, label, edge)
