"""Speed of SANet's inference and training step beside PyTorch.

Inference is the prediction build, normalised image in, logits at 1/8 out. All contenders of a
size get the same image and weights, and their outputs are compared.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking
from model_utils.benchmarking import Settings
from model_utils.contenders import Arrays, Subject, Training
from model_utils.network_benchmark import SEGMENTATION_BATCH, Family, segmentation_batch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.01
CLASSES = 19
# Of He's initial weights, the smaller the deeper the network.
GAINS = {"S": 0.65, "M": 0.6, "L": 0.5}


def _network(variant: str) -> Any:
    from .network import SANetNetwork

    return SANetNetwork(variant, CLASSES)


def _cell(network: Any) -> Any:
    """The prediction build."""
    from .prediction import Prediction

    return Prediction(network)


def _module(weights: Arrays, variant: str, heads: bool = False) -> Any:
    """The network in PyTorch; without heads it is the prediction build."""
    from . import torch_reference

    network = torch_reference.SANetTorch(variant, CLASSES, heads).eval()
    torch_reference.copy_weights(network, weights)
    return network


def _train_cell(network: Any) -> Any:
    from .losses import SANetLoss, SANetTrainCell

    return SANetTrainCell(network, SANetLoss(CLASSES))


def _train_step(weights: Arrays) -> Callable[..., list[float]]:
    from . import torch_reference

    return torch_reference.train_step(_module(weights, "S", heads=True).train(), LEARNING_RATE)


def _training_batch(settings: Settings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    count, height, width = (settings[f"train_{key}"] for key in ("batch", "height", "width"))
    return segmentation_batch(rng, (count, height, width), CLASSES)


SUBJECTS = {
    variant: Subject(
        variant, partial(_network, variant), _cell, partial(_module, variant=variant), gain=gain
    )
    for variant, gain in GAINS.items()
}
BENCHMARK = Family(
    network="SANet",
    script=SCRIPT,
    option="variant",
    subjects=tuple(SUBJECTS.values()),
    default="S,M,L",
    numbers={
        "height": (512, "rows of an image"),
        "width": (1024, "columns of an image"),
        "batch_size": (1, "images at once"),
        "train_batch": (2, "images per training step"),
        "train_height": (256, "rows in training"),
        "train_width": (512, "columns in training"),
    },
    training=Training(
        SUBJECTS["S"],
        _train_cell,
        _train_step,
        {
            "name": "sgd",
            "lr": LEARNING_RATE,
            "weight_decay": 5e-4,
            "momentum": 0.9,
            "nesterov": True,
        },
        SEGMENTATION_BATCH,
    ),
    draw_batch=_training_batch,
    describe_training=lambda settings: f"{settings['train_height']}x{settings['train_width']}",
    outputs="logits",
).benchmark()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``benchmark.py``; returns the exit status."""
    description = "Time SANet's inference and training step beside PyTorch, taking turns."
    return benchmarking.main(BENCHMARK, description, argv)
