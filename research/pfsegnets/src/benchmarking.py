"""Speed of PFNet's inference and training step beside PyTorch.

Inference takes a normalised image and gives scores at its size, as the published network does.
All contenders of a backbone get the same image and weights, and their outputs are compared.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking
from model_utils.benchmarking import Settings
from model_utils.contenders import Arrays, Subject, Training, settle
from model_utils.network_benchmark import SEGMENTATION_BATCH, Family, segmentation_batch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.007
CLASSES = 16
# Of the initial weights, the smaller the deeper the network; larger ones saturate certainties,
# and equal certainties leave open which points are chosen.
GAINS = {"resnet50": 0.65, "resnet101": 0.55, "res2net101": 0.5}


def _network(backbone: str) -> Any:
    from .network import PFNet

    return PFNet(backbone, CLASSES, dropout="none")


def _cell(network: Any) -> Any:
    """The network with scores as output."""
    from .prediction import Prediction

    return Prediction(network, "scores")


def _torch_network(weights: Arrays, backbone: str) -> Any:
    from model_utils.torch_counterpart import copy_weights

    from . import torch_reference

    network = torch_reference.PFNetTorch(backbone, CLASSES, dropout=0.0)
    copy_weights(network, weights)
    return network


def _module(weights: Arrays, backbone: str) -> Any:
    """The same in PyTorch."""
    from . import torch_reference

    return torch_reference.Scores(_torch_network(weights, backbone)).eval()


def _train_cell(network: Any) -> Any:
    from .losses import PFNetLoss, PFNetTrainCell

    return PFNetTrainCell(network, PFNetLoss(CLASSES))


def _train_step(weights: Arrays) -> Callable[..., list[float]]:
    from . import torch_reference

    return torch_reference.train_step(_torch_network(weights, "resnet50").train(), LEARNING_RATE)


def _training_batch(settings: Settings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    size = settings["train_size"]
    return segmentation_batch(rng, (settings["train_batch"], size, size), CLASSES)


def _initialize(network: Any, gain: float, rng: np.random.Generator) -> None:
    """He's normal weights for the fan-in, which keep magnitudes in the head too, then settled."""
    from mindspore import Tensor

    for parameter in network.get_parameters():
        if parameter.name.endswith("weight"):
            deviation = np.sqrt(2.0 / np.prod(parameter.shape[1:]))
            weight = deviation * rng.standard_normal(parameter.shape)
            parameter.set_data(Tensor(weight.astype(np.float32)))
    settle(network, gain, rng)


SUBJECTS = {
    backbone: Subject(
        backbone,
        partial(_network, backbone),
        _cell,
        partial(_module, backbone=backbone),
        direct=True,
        gain=gain,
        # Rounding to three decimals changes which points are chosen, and at these the result.
        half_tolerance=float("inf"),
    )
    for backbone, gain in GAINS.items()
}
BENCHMARK = Family(
    network="PFNet",
    script=SCRIPT,
    option="backbone",
    subjects=tuple(SUBJECTS.values()),
    default="resnet50",
    numbers={
        "height": (512, "rows, a multiple of 32"),
        "width": (512, "columns, a multiple of 32"),
        "batch_size": (1, "images at once"),
        "train_batch": (2, "images per training step"),
        "train_size": (256, "sides in training"),
    },
    training=Training(
        SUBJECTS["resnet50"],
        _train_cell,
        _train_step,
        {"name": "sgd", "lr": LEARNING_RATE, "weight_decay": 1e-4, "momentum": 0.9},
        SEGMENTATION_BATCH,
    ),
    draw_batch=_training_batch,
    describe_training=lambda settings: f"{settings['train_size']}x{settings['train_size']}",
    outputs="scores",
    initialize=_initialize,
    check=lambda network, settings: network.check_size(settings["height"], settings["width"]),
).benchmark()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``benchmark.py``; returns the exit status."""
    description = "Time PFNet's inference and training step beside PyTorch, taking turns."
    return benchmarking.main(BENCHMARK, description, argv)
