"""The same network, losses and training step in PyTorch, as the benchmark's yardstick.

Written for this project from the same description as `network` and `losses`; parameter order
and shapes agree, so weights can be carried over with :func:`copy_weights`. PyTorch is an
optional extra (``pip install -e .[torch]``) and only ``benchmark.py`` and the tests use it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model_utils import torch_counterpart
from model_utils.torch_counterpart import TrainStep

# Repeated rather than imported: a process that times PyTorch must not load MindSpore.
NEAR_DUPLICATE = 0.008
EXCLUDED = 10.0


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)


def _entry() -> nn.Sequential:
    return nn.Sequential(
        _conv(1, 32, 3), _batch_norm(32), nn.ReLU(), _conv(32, 32, 3, 2), _batch_norm(32)
    )


def _lower() -> nn.Sequential:
    return nn.Sequential(_conv(32, 2, 3, 2), _batch_norm(2), nn.AvgPool2d(2, 2))


def _normalize_patch(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    mean = flat.mean(1).view(-1, 1, 1, 1)
    deviation = flat.std(1, unbiased=False).view(-1, 1, 1, 1)
    return (x - mean) / (deviation + 1e-7)


def _unit(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat / torch.sqrt((flat * flat).sum(1, keepdim=True) + 1e-10)


class Descriptor(nn.Module):
    """Entries and shared embedding; see :class:`research.sdnet.src.network.Descriptor`."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.features_opt = _entry()
        self.features_sar = _entry()
        self.embedding = nn.Sequential(
            nn.ReLU(),
            _conv(32, 64, 3, 2),
            _batch_norm(64),
            nn.ReLU(),
            _conv(64, 64, 3),
            _batch_norm(64),
            nn.ReLU(),
            _conv(64, 128, 3, 2),
            _batch_norm(128),
            nn.ReLU(),
            _conv(128, 128, 3),
            _batch_norm(128),
            nn.ReLU(),
            nn.Dropout(dropout),
            _conv(128, 128, 8, 1, 0),
            _batch_norm(128),
        )

    def forward(self, opt: Tensor, sar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two (N, 1, 64, 64) patches to two descriptors and two entry features."""
        opt_feature = self.features_opt(_normalize_patch(opt))
        sar_feature = self.features_sar(_normalize_patch(sar))
        opt_e = _unit(self.embedding(opt_feature))
        return opt_e, _unit(self.embedding(sar_feature)), opt_feature, sar_feature


class Lower(nn.Module):
    """Low-level maps (N, 2, 8, 8) of the entry features."""

    def __init__(self) -> None:
        super().__init__()
        self.lower_opt = _lower()
        self.lower_sar = _lower()

    def forward(self, opt_feature: Tensor, sar_feature: Tensor) -> tuple[Tensor, Tensor]:
        """Entry features to low-level maps."""
        return self.lower_opt(opt_feature), self.lower_sar(sar_feature)


class Decoder(nn.Module):
    """Patches from low-level maps."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2, 16, 2, 2),
            _conv(16, 16, 3),
            _batch_norm(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 16, 2, 2),
            _conv(16, 16, 3),
            _batch_norm(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 2, 2),
            _conv(1, 1, 3),
            _batch_norm(1),
            nn.Tanh(),
        )

    def forward(self, opt_lower: Tensor, sar_lower: Tensor) -> tuple[Tensor, Tensor]:
        """Low-level maps to reconstructed patches (N, 1, 64, 64)."""
        return self.decoder(opt_lower), self.decoder(sar_lower)


class SDNetTorch(nn.Module):
    """The whole network; six outputs in the order of SDNetNetwork."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.model = Descriptor(dropout)
        self.model_L = Lower()
        self.model_D = Decoder()

    def forward(self, opt: Tensor, sar: Tensor) -> tuple[Tensor, ...]:
        """Patches (N, 1, 64, 64) to the six outputs."""
        opt_e, sar_e, opt_feature, sar_feature = self.model(opt, sar)
        opt_lower, sar_lower = self.model_L(opt_feature, sar_feature)
        opt_recon, sar_recon = self.model_D(opt_lower, sar_lower)
        return opt_e, sar_e, _unit(opt_lower), _unit(sar_lower), opt_recon, sar_recon


class DescriptorOnly(nn.Module):
    """The two descriptors alone, as matching uses them."""

    def __init__(self, network: SDNetTorch) -> None:
        super().__init__()
        self.model = network.model

    def forward(self, opt: Tensor, sar: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (N, 1, 64, 64) to two unit descriptors (N, 128)."""
        opt_e, sar_e, _, _ = self.model(opt, sar)
        return opt_e, sar_e


def matching_loss(opt: Tensor, sar: Tensor, margin: float = 1.0) -> Tensor:
    """Triplet margin loss with the hardest negative of row and column."""
    squares = (opt * opt).sum(1)[:, None] + (sar * sar).sum(1)[None] - 2.0 * opt @ sar.T
    distances = torch.sqrt(squares + 1e-6) + 1e-8
    candidates = distances + EXCLUDED * torch.eye(len(opt))
    candidates = candidates + EXCLUDED * (candidates < NEAR_DUPLICATE).float()
    negative = torch.minimum(candidates.amin(1), candidates.amin(0))
    return functional.relu(margin + distances.diagonal() - negative).mean()


def ranking_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of P log(P / Q) over all entries of two log rankings (N, N)."""
    return (teacher.exp() * (teacher - student)).mean()


def total_loss(opt: Tensor, sar: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
    """The weighted sum of all losses with the published weights."""
    opt_e, sar_e, opt_low, sar_low, opt_recon, sar_recon = outputs
    oe, se, ol, sl = (
        torch.log_softmax((1 + x @ x.T) / 0.2, 1) for x in (opt_e, sar_e, opt_low, sar_low)
    )
    pairs = ((ol, oe), (sl, se), (sl, oe), (ol, se), (oe, se), (ol, sl))
    ranking = sum(ranking_loss(student, teacher) for student, teacher in pairs)
    reconstruction = functional.mse_loss(opt_recon, opt) + functional.mse_loss(sar_recon, sar)
    return matching_loss(opt_e, sar_e) + 0.001 * reconstruction + 10.0 * ranking


def train_step(network: SDNetTorch, lr: float = 0.004) -> TrainStep:
    """The training step with Adam on patches (N, 1, 64, 64); it returns the total loss.

    Args:
        network: in training mode.
        lr: learning rate.
    """
    optimizer = torch.optim.Adam(
        network.parameters(), lr, betas=(0.5, 0.9), eps=1e-8, weight_decay=1e-4
    )
    return TrainStep(lambda opt, sar: (total_loss(opt, sar, network(opt, sar)),), optimizer)


def copy_weights(network: SDNetTorch, weights: Mapping[str, np.ndarray]) -> None:
    """Load MindSpore's arrays, by its parameter names, into the PyTorch network.

    Untrained gamma and beta are 1 and 0 by construction and are passed over.

    Raises:
        ValueError: an array is missing or of another network.
    """
    torch_counterpart.copy_weights(network, weights, r".*(gamma|beta|dropout_calls)")
