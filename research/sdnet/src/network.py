"""SDNet: descriptors of optical and SAR patches in one space.

Quan et al., "Self-Distillation Feature Learning Network for Optical and SAR Image
Registration", IEEE TGRS 2022, DOI 10.1109/TGRS.2022.3173476. Layer sizes and parameter names
are those of the ModelZoo implementation, so that its checkpoints load: ``model`` describes,
``model_L`` predicts the low-level maps, ``model_D`` reconstructs the patches.
"""

import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.layers import (
    Dropout,
    FullMapConv2d,
    conv2d,
    conv_transpose2d,
    l2_normalize,
    semi_orthogonal,
)

PATCH_SIZE = 64
DESCRIPTOR_SIZE = 128


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    # affine=False: gamma and beta stay 1 and 0, yet exist and are in the published checkpoints.
    return nn.BatchNorm2d(channels, affine=False)


def _entry() -> nn.SequentialCell:
    """1 to 32 channels at half the resolution; one per modality, weights not shared."""
    return nn.SequentialCell(
        conv2d(1, 32, 3, padding=1),
        _batch_norm(32),
        nn.ReLU(),
        conv2d(32, 32, 3, stride=2, padding=1),
        _batch_norm(32),
    )


def normalize_patch(x: Tensor) -> Tensor:
    """Zero mean and unit population standard deviation per patch; constant patches become 0."""
    centred = x - x.mean(axis=(1, 2, 3), keep_dims=True)
    variance = (centred * centred).mean(axis=(1, 2, 3), keep_dims=True)
    return centred / (ops.sqrt(variance) + 1e-7)


class Descriptor(nn.Cell):
    """Modality-specific entries and the embedding both modalities share (``Focalnet`` upstream).

    Args:
        dropout: probability before the last convolution.
        rank: this process's rank, for dropout masks that do not depend on the rank count.
    """

    def __init__(self, dropout: float = 0.3, rank: int = 0) -> None:
        super().__init__()
        self.features_opt = _entry()
        self.features_sar = _entry()
        self.embedding = nn.SequentialCell(
            nn.ReLU(),
            conv2d(32, 64, 3, stride=2, padding=1),
            _batch_norm(64),
            nn.ReLU(),
            conv2d(64, 64, 3, padding=1),
            _batch_norm(64),
            nn.ReLU(),
            conv2d(64, 128, 3, stride=2, padding=1),
            _batch_norm(128),
            nn.ReLU(),
            conv2d(128, 128, 3, padding=1),
            _batch_norm(128),
            nn.ReLU(),
            Dropout(dropout, rank=rank),
            FullMapConv2d(128, DESCRIPTOR_SIZE, PATCH_SIZE // 8),
            _batch_norm(DESCRIPTOR_SIZE),
        )

    def embed(self, feature: Tensor) -> Tensor:
        """(N, 32, 32, 32) entry features to (N, 128) unit descriptors."""
        return l2_normalize(self.embedding(feature).reshape(-1, DESCRIPTOR_SIZE))

    def construct(self, opt: Tensor, sar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two (N, 1, 64, 64) patches to two descriptors and two entry features."""
        opt_feature = self.features_opt(normalize_patch(opt))
        sar_feature = self.features_sar(normalize_patch(sar))
        return self.embed(opt_feature), self.embed(sar_feature), opt_feature, sar_feature


class Lower(nn.Cell):
    """Low-level maps (N, 2, 8, 8) of the entry features, weights not shared."""

    def __init__(self) -> None:
        super().__init__()
        self.lower_opt = self._branch()
        self.lower_sar = self._branch()

    @staticmethod
    def _branch() -> nn.SequentialCell:
        return nn.SequentialCell(
            conv2d(32, 2, 3, stride=2, padding=1), _batch_norm(2), nn.AvgPool2d(2, 2)
        )

    def construct(self, opt_feature: Tensor, sar_feature: Tensor) -> tuple[Tensor, Tensor]:
        """Entry features (N, 32, 32, 32) to low-level maps, optical then SAR."""
        return self.lower_opt(opt_feature), self.lower_sar(sar_feature)


class Decoder(nn.Cell):
    """Reconstruction of a patch, in (-1, 1), from its low-level map; shared."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.SequentialCell(
            conv_transpose2d(2, 16, 2, 2),
            conv2d(16, 16, 3, padding=1),
            _batch_norm(16),
            nn.ReLU(),
            conv_transpose2d(16, 16, 2, 2),
            conv2d(16, 16, 3, padding=1),
            _batch_norm(16),
            nn.ReLU(),
            conv_transpose2d(16, 1, 2, 2),
            conv2d(1, 1, 3, padding=1),
            _batch_norm(1),
            nn.Tanh(),
        )

    def construct(self, opt_lower: Tensor, sar_lower: Tensor) -> tuple[Tensor, Tensor]:
        """Two (N, 2, 8, 8) maps to two (N, 1, 64, 64) patches."""
        return self.decoder(opt_lower), self.decoder(sar_lower)


class SDNetNetwork(nn.Cell):
    """The whole network.

    Args:
        dropout: probability before the last convolution (0.3 upstream).
        rank: this process's rank.
        seed: of the initial weights; None leaves the framework's (to be loaded over).
    """

    def __init__(self, dropout: float = 0.3, rank: int = 0, seed: int | None = None) -> None:
        super().__init__()
        self.model = Descriptor(dropout, rank)
        self.model_L = Lower()
        self.model_D = Decoder()
        if seed is not None:
            initialize(self, seed)

    def construct(
        self, opt: Tensor, sar: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Patches (N, 1, 64, 64) in [-1, 1] to the six outputs.

        Returns:
            opt_e, sar_e: unit descriptors (N, 128), compared by Euclidean distance.
            opt_lower_nor, sar_lower_nor: unit low-level descriptors (N, 128).
            opt_recon, sar_recon: reconstructed patches (N, 1, 64, 64).
        """
        opt_e, sar_e, opt_feature, sar_feature = self.model(opt, sar)
        opt_lower, sar_lower = self.model_L(opt_feature, sar_feature)
        opt_recon, sar_recon = self.model_D(opt_lower, sar_lower)
        return (
            opt_e,
            sar_e,
            l2_normalize(opt_lower.reshape(-1, DESCRIPTOR_SIZE)),
            l2_normalize(sar_lower.reshape(-1, DESCRIPTOR_SIZE)),
            opt_recon,
            sar_recon,
        )


class DescriptorOnly(nn.Cell):
    """What matching needs: (N, 1, 64, 64) patches of both modalities to (N, 128) descriptors."""

    def __init__(self, network: SDNetNetwork) -> None:
        super().__init__(auto_prefix=False)
        self.model = network.model

    def construct(self, opt: Tensor, sar: Tensor) -> tuple[Tensor, Tensor]:
        """Two patches to two unit descriptors."""
        opt_e, sar_e, _, _ = self.model(opt, sar)
        return opt_e, sar_e


class OneModality(nn.Cell):
    """The descriptor of one modality: (N, 1, 64, 64) patches to (N, 128).

    Args:
        network: the whole network.
        modality: "opt" or "sar".
    """

    def __init__(self, network: SDNetNetwork, modality: str) -> None:
        super().__init__(auto_prefix=False)
        model = network.model
        self.features = model.features_opt if modality == "opt" else model.features_sar
        self.embedding = model.embedding

    def construct(self, patch: Tensor) -> Tensor:
        """Patches to unit descriptors."""
        descriptor = self.embedding(self.features(normalize_patch(patch)))
        return l2_normalize(descriptor.reshape(-1, DESCRIPTOR_SIZE))


def initialize(network: SDNetNetwork, seed: int) -> None:
    """Upstream's initial weights: convolutions semi-orthogonal times 0.6, the rest pinned.

    Transposed convolutions escape upstream's rule and get the framework's default, which has
    changed between releases; that of MindSpore 2.10 (uniform in 1/sqrt(fan)) is set here.
    """
    rng = np.random.default_rng(seed)
    for cell in network.cells():
        for _, part in cell.cells_and_names():
            if isinstance(part, nn.Conv2dTranspose):
                bound = 1 / np.sqrt(np.prod(part.weight.shape[1:]))
                for parameter in (part.weight, part.bias):
                    values = rng.uniform(-bound, bound, parameter.shape)
                    parameter.set_data(Tensor(values.astype(np.float32)))
            elif isinstance(part, nn.Conv2d):
                part.weight.set_data(Tensor(semi_orthogonal(part.weight.shape, 0.6, rng)))
