"""Speed of PFNet's inference and training step beside PyTorch.

The contenders alone; how they are timed is in :mod:`model_utils.benchmarking`. Inference takes a
normalised image and gives scores at its size, as the published network does. All contenders of a
backbone get the same image and weights, and their outputs are compared.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking, contenders
from model_utils.benchmarking import Benchmark, Contender, Job, Run, Section, Settings
from model_utils.contenders import Subject

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.007
CLASSES = 16
# Of the initial weights, the smaller the deeper the network; larger ones saturate certainties,
# and equal certainties leave open which points are chosen.
GAINS = {"resnet50": 0.65, "resnet101": 0.55, "res2net101": 0.5}


def prepare(job: Job, seed: int = 0) -> None:
    """Write inputs, weights and exported networks for all contenders."""
    from model_utils import runtime
    from model_utils.mindir2onnx import convert

    from .network import PFNet
    from .prediction import Prediction

    runtime.start("CPU")
    rng = np.random.default_rng(seed)
    settings = job.settings
    shape = (settings["batch_size"], 3, settings["height"], settings["width"])
    image = rng.standard_normal(shape).astype(np.float32)
    np.savez(job.folder / "inputs.npz", image=image, **_training_batch(settings, rng))
    for backbone in settings["backbone"]:
        network = PFNet(backbone, CLASSES, dropout="none")
        network.check_size(settings["height"], settings["width"])
        _initialize(network, GAINS[backbone], rng)
        contenders.write_weights(job, backbone, network)
        contenders.write_files(job, _subject(backbone), Prediction(network, "scores"))
        direct = job.folder / f"direct_{backbone}.onnx"
        mindir = job.folder / f"folded_{backbone}.mindir"
        convert(mindir, direct, input_names=[contenders.IMAGE], reorder=False)


def _initialize(network: Any, gain: float, rng: np.random.Generator) -> None:
    """He's normal weights for the fan-in, which keep magnitudes in the head too, then settled."""
    from mindspore import Tensor

    for parameter in network.get_parameters():
        if parameter.name.endswith("weight"):
            deviation = np.sqrt(2.0 / np.prod(parameter.shape[1:]))
            weight = deviation * rng.standard_normal(parameter.shape)
            parameter.set_data(Tensor(weight.astype(np.float32)))
    contenders.settle(network, gain, rng)


def _training_batch(settings: Settings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Images, labels in squares of 16 pixels and edges, as the training step takes them."""
    count, size = settings["train_batch"], settings["train_size"]
    squares = rng.integers(0, CLASSES + 1, (count, -(-size // 16), -(-size // 16)))
    label = squares.repeat(16, 1).repeat(16, 2)[:, :size, :size]
    return {
        "train_image": rng.standard_normal((count, 3, size, size)).astype(np.float32),
        "train_label": np.where(label == CLASSES, 255, label).astype(np.uint8),
        "train_edge": (rng.random((count, size, size)) < 0.08).astype(np.uint8),
    }


def _cell(job: Job, backbone: str) -> Any:
    """The network with scores as output."""
    from .prediction import Prediction

    return Prediction(_mindspore_network(job, backbone), "scores")


def _mindspore_network(job: Job, backbone: str) -> Any:
    from .network import PFNet

    return contenders.load_weights(job, backbone, PFNet(backbone, CLASSES, dropout="none"))


def _module(job: Job, backbone: str) -> Any:
    """The same in PyTorch."""
    from . import torch_reference

    return torch_reference.Scores(_torch_network(job, backbone)).eval()


def _torch_network(job: Job, backbone: str) -> Any:
    from . import torch_reference

    network = torch_reference.PFNetTorch(backbone, CLASSES, dropout=0.0)
    torch_reference.copy_weights(network, job.arrays(f"weights_{backbone}"))
    return network


def _subject(backbone: str) -> Subject:
    return Subject(
        backbone,
        partial(_cell, backbone=backbone),
        partial(_module, backbone=backbone),
        # Rounding to three decimals changes which points are chosen, and at these the result.
        half_tolerance=float("inf"),
    )


def train_ours(job: Job) -> Run:
    """The engine's step: one graph with forward, losses, gradient and SGD."""
    from mindspore import Tensor

    from model_utils import runtime
    from model_utils.distributed import Ranks
    from model_utils.optimizers import OptimizerConfig, build_optimizer
    from model_utils.training import TrainStep

    from .losses import PFNetLoss, PFNetTrainCell

    runtime.start("CPU")
    network = _mindspore_network(job, "resnet50")
    cell = PFNetTrainCell(network, PFNetLoss(CLASSES))
    cell.set_train(True)
    config = OptimizerConfig("sgd", LEARNING_RATE, 1e-4, momentum=0.9)
    rates = np.full(100_000, LEARNING_RATE, np.float32)
    optimizer = build_optimizer(config, [{"params": network.trainable_params()}], rates)
    step = TrainStep(cell, optimizer, Ranks())
    inputs = job.arrays("inputs")
    batch = [Tensor(inputs[f"train_{key}"]) for key in ("image", "label", "edge")]
    go_on = Tensor(np.zeros(1, np.float32))
    return lambda: float(step(go_on, *batch).asnumpy()[1])


def train_pytorch(job: Job) -> Run:
    """The same step in PyTorch, eagerly."""
    import torch

    from . import torch_reference

    torch.set_num_threads(job.threads)
    step = torch_reference.TrainStep(_torch_network(job, "resnet50").train(), LEARNING_RATE)
    inputs = job.arrays("inputs")
    image = torch.from_numpy(inputs["train_image"])
    label = torch.from_numpy(inputs["train_label"]).long()
    edge = torch.from_numpy(inputs["train_edge"]).float()
    return lambda: step(image, label, edge)[0]


def _inference(backbone: str) -> Section:
    subject = _subject(backbone)
    rows = contenders.inference(subject)
    ours = rows[f"{backbone}-onnxruntime"]
    direct = partial(contenders.run_onnxruntime, subject=subject, form="direct")
    rows[f"{backbone}-direct"] = replace(
        ours, title="the same, resized before convolved", build=direct
    )
    return Section(
        f"inference of {backbone}",
        rows,
        lambda settings: int(settings["batch_size"]),
        compared=True,
        chosen=lambda settings: backbone in settings["backbone"],
    )


def _backbones(text: str) -> list[str]:
    chosen = [name.strip().lower() for name in text.split(",")]
    if not chosen or not set(chosen) <= GAINS.keys():
        raise argparse.ArgumentTypeError(f"{text} is not a list of {', '.join(GAINS)}")
    return [name for name in GAINS if name in chosen]


def _add_options(parser: argparse.ArgumentParser) -> None:
    number = benchmarking.positive
    parser.add_argument("--backbone", type=_backbones, default="resnet50", help="networks to time")
    parser.add_argument("--height", type=number, default=512, help="rows, a multiple of 32")
    parser.add_argument("--width", type=number, default=512, help="columns, a multiple of 32")
    parser.add_argument("--batch_size", type=number, default=1, help="images at once")
    parser.add_argument("--train_batch", type=number, default=2, help="images per training step")
    parser.add_argument("--train_size", type=number, default=256, help="sides in training")


def _describe(settings: Settings) -> str:
    size = settings["train_size"]
    return (
        f"{settings['height']}x{settings['width']}, batch {settings['batch_size']}; training "
        f"resnet50 at {size}x{size}, batch {settings['train_batch']}"
    )


TRAINING = {
    "train-eager": Contender("PyTorch eager", train_pytorch, ("torch",), baseline=True),
    "train-ours": Contender("this project's step", train_ours),
}
BENCHMARK = Benchmark(
    network="PFNet",
    script=SCRIPT,
    prepare=prepare,
    sections=(
        *(_inference(backbone) for backbone in GAINS),
        Section(
            "training step of resnet50",
            TRAINING,
            lambda settings: int(settings["train_batch"]),
            chosen=lambda settings: "resnet50" in settings["backbone"],
        ),
    ),
    unit="images",
    outputs="scores",
    describe=_describe,
    add_options=_add_options,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``benchmark.py``; returns the exit status."""
    description = "Time PFNet's inference and training step beside PyTorch, taking turns."
    return benchmarking.main(BENCHMARK, description, argv)
