"""Speed of SANet's inference and training step beside PyTorch.

The contenders alone; how they are timed is in :mod:`model_utils.benchmarking`. Inference is the
prediction build, normalised image in, logits at 1/8 out. All contenders of a size get the same
image and weights, and their outputs are compared.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking, contenders
from model_utils.benchmarking import Benchmark, Contender, Job, Run, Section, Settings
from model_utils.contenders import Subject

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.01
CLASSES = 19
VARIANTS = ("S", "M", "L")
# Of He's initial weights, the smaller the deeper the network.
GAINS = {"S": 0.65, "M": 0.6, "L": 0.5}


def prepare(job: Job, seed: int = 0) -> None:
    """Write inputs, weights and exported networks for all contenders."""
    from model_utils import runtime

    from .network import SANetNetwork
    from .prediction import Prediction

    runtime.start("CPU")
    rng = np.random.default_rng(seed)
    settings = job.settings
    shape = (settings["batch_size"], 3, settings["height"], settings["width"])
    image = rng.standard_normal(shape).astype(np.float32)
    np.savez(job.folder / "inputs.npz", image=image, **_training_batch(settings, rng))
    for variant in settings["variant"]:
        network = SANetNetwork(variant, CLASSES, seed=seed)
        contenders.settle(network, GAINS[variant], rng)
        contenders.write_weights(job, variant, network)
        contenders.write_files(job, _subject(variant), Prediction(network))


def _training_batch(settings: Settings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Images, labels in squares of 16 pixels and edges, as the training step takes them."""
    count, height, width = (settings[f"train_{key}"] for key in ("batch", "height", "width"))
    squares = rng.integers(0, CLASSES + 1, (count, -(-height // 16), -(-width // 16)))
    label = squares.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return {
        "train_image": rng.standard_normal((count, 3, height, width)).astype(np.float32),
        "train_label": np.where(label == CLASSES, 255, label).astype(np.uint8),
        "train_edge": (rng.random((count, height, width)) < 0.08).astype(np.uint8),
    }


def _cell(job: Job, variant: str) -> Any:
    """The prediction build."""
    from .prediction import Prediction

    return Prediction(_mindspore_network(job, variant))


def _mindspore_network(job: Job, variant: str) -> Any:
    from .network import SANetNetwork

    return contenders.load_weights(job, variant, SANetNetwork(variant, CLASSES))


def _module(job: Job, variant: str) -> Any:
    """The prediction build in PyTorch."""
    from . import torch_reference

    network = torch_reference.SANetTorch(variant, CLASSES, heads=False).eval()
    torch_reference.copy_weights(network, job.arrays(f"weights_{variant}"))
    return network


def _subject(variant: str) -> Subject:
    return Subject(variant, partial(_cell, variant=variant), partial(_module, variant=variant))


def train_ours(job: Job) -> Run:
    """The engine's step: one graph with forward, losses, gradient and SGD."""
    from mindspore import Tensor

    from model_utils import runtime
    from model_utils.distributed import Ranks
    from model_utils.optimizers import OptimizerConfig, build_optimizer
    from model_utils.training import TrainStep

    from .losses import SANetLoss, SANetTrainCell

    runtime.start("CPU")
    network = _mindspore_network(job, "S")
    cell = SANetTrainCell(network, SANetLoss(CLASSES))
    cell.set_train(True)
    config = OptimizerConfig("sgd", LEARNING_RATE, 5e-4, momentum=0.9, nesterov=True)
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
    network = torch_reference.SANetTorch("S", CLASSES)
    torch_reference.copy_weights(network, job.arrays("weights_S"))
    step = torch_reference.TrainStep(network.train(), LEARNING_RATE)
    inputs = job.arrays("inputs")
    image = torch.from_numpy(inputs["train_image"])
    label = torch.from_numpy(inputs["train_label"]).long()
    edge = torch.from_numpy(inputs["train_edge"]).float()
    return lambda: step(image, label, edge)[0]


def _inference(variant: str) -> Section:
    return Section(
        f"inference of {variant}",
        contenders.inference(_subject(variant)),
        lambda settings: int(settings["batch_size"]),
        compared=True,
        chosen=lambda settings: variant in settings["variant"],
    )


def _variants(text: str) -> list[str]:
    chosen = [name.strip().upper() for name in text.split(",")]
    if not chosen or not set(chosen) <= set(VARIANTS):
        raise argparse.ArgumentTypeError(f"{text} is not a list of {', '.join(VARIANTS)}")
    return [name for name in VARIANTS if name in chosen]


def _add_options(parser: argparse.ArgumentParser) -> None:
    number = benchmarking.positive
    parser.add_argument("--variant", type=_variants, default="S,M,L", help="networks to time")
    parser.add_argument("--height", type=number, default=512, help="rows of an image")
    parser.add_argument("--width", type=number, default=1024, help="columns of an image")
    parser.add_argument("--batch_size", type=number, default=1, help="images at once")
    parser.add_argument("--train_batch", type=number, default=2, help="images per training step")
    parser.add_argument("--train_height", type=number, default=256, help="rows in training")
    parser.add_argument("--train_width", type=number, default=512, help="columns in training")


def _describe(settings: Settings) -> str:
    return (
        f"{settings['height']}x{settings['width']}, batch {settings['batch_size']}; training S at "
        f"{settings['train_height']}x{settings['train_width']}, batch {settings['train_batch']}"
    )


TRAINING = {
    "train-eager": Contender("PyTorch eager", train_pytorch, ("torch",), baseline=True),
    "train-ours": Contender("this project's step", train_ours),
}
BENCHMARK = Benchmark(
    network="SANet",
    script=SCRIPT,
    prepare=prepare,
    sections=(
        *(_inference(variant) for variant in VARIANTS),
        Section(
            "training step of S",
            TRAINING,
            lambda settings: int(settings["train_batch"]),
            chosen=lambda settings: "S" in settings["variant"],
        ),
    ),
    unit="images",
    outputs="logits",
    describe=_describe,
    add_options=_add_options,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``benchmark.py``; returns the exit status."""
    description = "Time SANet's inference and training step beside PyTorch, taking turns."
    return benchmarking.main(BENCHMARK, description, argv)
