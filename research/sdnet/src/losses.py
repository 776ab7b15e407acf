"""SDNet's three losses (section 3 of the paper; weights of the ModelZoo configuration).

total = L_match + reconstruction * (mse_opt + mse_sar) + ranking * (six L_rank terms)
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from model_utils.distributed import GatherRanks

from .network import SDNetNetwork

# Two descriptors closer than this are taken for the same place and not used as a negative.
NEAR_DUPLICATE = 0.008
# Added to distances that must not be chosen; unit descriptors are at most 2 apart.
EXCLUDED = 10.0


def distance_matrix(anchor: Tensor, positive: Tensor) -> Tensor:
    """Euclidean distances between all rows of (N, D) and (M, D): (N, M)."""
    squares = (
        (anchor * anchor).sum(axis=1, keepdims=True)
        + (positive * positive).sum(axis=1, keepdims=True).T
        - 2.0 * ops.matmul(anchor, positive.T)
    )
    return ops.sqrt(squares + 1e-6) + 1e-8


class MatchingLoss(nn.Cell):
    """Triplet margin loss with the hardest negative in the batch (HardNet, Mishchuk et al. 2017).

    Upstream clips at the batch's own maximum instead of at infinity, so that its loss turns
    negative, with a gradient, once every triplet is beyond the margin; here it is zero.

    Args:
        margin: by which a negative must be farther than the positive.
        anchor_swap: also take the nearest negative of the SAR patch, not only of the optical one.
    """

    def __init__(self, margin: float = 1.0, anchor_swap: bool = True) -> None:
        super().__init__()
        self.margin = margin
        self.anchor_swap = anchor_swap

    def construct(self, opt: Tensor, sar: Tensor) -> Tensor:
        """Unit descriptors (N, D) of matching pairs, row by row, to the mean loss."""
        distances = distance_matrix(opt, sar)
        count = opt.shape[0]
        own = ops.eye(count, count, ms.float32)
        positive = (distances * own).sum(axis=1)
        candidates = distances + EXCLUDED * own
        candidates = candidates + EXCLUDED * (candidates < NEAR_DUPLICATE).astype(ms.float32)
        negative = candidates.min(axis=1)
        if self.anchor_swap:
            negative = ops.minimum(negative, candidates.min(axis=0))
        return ops.relu(self.margin + positive - negative).mean()


class RankingLoss(nn.Cell):
    """Self-distillation: one set of descriptors learns the similarity ranking of another.

    The similarities of a set to itself, softened by a temperature, form one distribution per
    row; the loss is the mean over all N^2 entries of P log(P / Q), hence the mean row
    divergence divided by N. Both sides receive gradients.

    Args:
        temperature: of the softmax over similarities in [0, 1].
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def log_ranking(self, descriptors: Tensor) -> Tensor:
        """Unit descriptors (N, D) to (N, N) log probabilities, rows summing to one."""
        cosine = ops.matmul(descriptors, descriptors.T)
        logits = (1.0 + cosine) * (0.5 / self.temperature)
        # Not ops.log_softmax, whose logarithm is off by up to 4e-6 on CPU: 2e-5 of the total.
        return logits - ops.logsumexp(logits, 1, True)

    def construct(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Log rankings (N, N) of the side that learns and the side that teaches."""
        return (ops.exp(teacher) * (teacher - student)).mean()


class SDNetLoss(nn.Cell):
    """The weighted sum of the three losses.

    Args:
        margin, anchor_swap, temperature: as above.
        reconstruction, ranking: weights of the two auxiliary losses.
    """

    def __init__(
        self,
        margin: float = 1.0,
        anchor_swap: bool = True,
        temperature: float = 0.1,
        reconstruction: float = 0.001,
        ranking: float = 10.0,
    ) -> None:
        super().__init__()
        self.match = MatchingLoss(margin, anchor_swap)
        self.rank = RankingLoss(temperature)
        self.reconstruction = reconstruction
        self.ranking = ranking

    def construct(
        self,
        opt: Tensor,
        sar: Tensor,
        opt_e: Tensor,
        sar_e: Tensor,
        opt_low: Tensor,
        sar_low: Tensor,
        opt_recon: Tensor,
        sar_recon: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches and the network's six outputs to (total, matching, ranking, reconstruction)."""
        match = self.match(opt_e, sar_e)
        oe, se = self.rank.log_ranking(opt_e), self.rank.log_ranking(sar_e)
        ol, sl = self.rank.log_ranking(opt_low), self.rank.log_ranking(sar_low)
        ranking = (
            self.rank(ol, oe)
            + self.rank(sl, se)
            + self.rank(sl, oe)
            + self.rank(ol, se)
            + self.rank(oe, se)
            + self.rank(ol, sl)
        )
        reconstruction = ops.square(opt_recon - opt).mean() + ops.square(sar_recon - sar).mean()
        total = match + self.reconstruction * reconstruction + self.ranking * ranking
        return total, match, ranking, reconstruction


class SDNetTrainCell(nn.Cell):
    """Network and losses as one Cell: a batch of matching pairs in, the losses out.

    Args:
        network: the network.
        loss: the losses.
        gather: collects descriptors over all ranks, so that every rank sees the negatives of
            the global batch; None takes each rank's own.
    """

    def __init__(
        self, network: SDNetNetwork, loss: SDNetLoss, gather: GatherRanks | None = None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss
        self.gather = gather

    def construct(self, opt: Tensor, sar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches (N, 1, 64, 64) to (total, matching, ranking, reconstruction)."""
        opt_e, sar_e, opt_low, sar_low, opt_recon, sar_recon = self.network(opt, sar)
        if self.gather is not None:
            opt_e, sar_e = self.gather(opt_e), self.gather(sar_e)
            opt_low, sar_low = self.gather(opt_low), self.gather(sar_low)
        return self.loss(opt, sar, opt_e, sar_e, opt_low, sar_low, opt_recon, sar_recon)
