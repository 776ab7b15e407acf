"""What the networks' counterparts in PyTorch share: names, weights and an eager training step.

Loads neither MindSpore nor, before something is called, PyTorch: processes that time one of them
must not load the other.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# MindSpore's names of batch statistics and their PyTorch ones; all other suffixes are alike.
BATCH_NORM_SUFFIXES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def pytorch_name(name: str) -> str:
    """A MindSpore parameter's name as PyTorch calls it: batch normalisation's suffixes differ."""
    stem, dot, last = name.rpartition(".")
    return f"{stem}{dot}{BATCH_NORM_SUFFIXES.get(last, last)}"


def copy_weights(module: Any, weights: Mapping[str, np.ndarray], spare: str = "") -> None:
    """Load arrays into a PyTorch Module.

    Args:
        module: changed.
        weights: by PyTorch's or by MindSpore's names.
        spare: regular expression of names that are passed over.

    Raises:
        ValueError: an array is missing or of another network.
    """
    import torch

    arrays = {
        pytorch_name(name): torch.from_numpy(np.array(value))
        for name, value in weights.items()
        if not re.fullmatch(spare, name)
    }
    missing, unexpected = module.load_state_dict(arrays, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")


class TrainStep:
    """Forward, losses, gradients and one update in PyTorch, eagerly.

    Args:
        losses: of a batch; the first is minimised.
        optimizer: of PyTorch.
    """

    def __init__(self, losses: Callable[..., tuple[Any, ...]], optimizer: Any) -> None:
        self.losses = losses
        self.optimizer = optimizer

    def __call__(self, *batch: Any) -> list[float]:
        """One step on the batch's tensors; returns the losses."""
        self.optimizer.zero_grad(set_to_none=True)
        values = self.losses(*batch)
        values[0].backward()
        self.optimizer.step()
        return [value.item() for value in values]
