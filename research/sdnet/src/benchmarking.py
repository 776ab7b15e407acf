"""Speed of SDNet's training step and inference beside PyTorch and the published way to step.

The rows alone: what they run is in :mod:`model_utils.contenders`, how they are timed in
:mod:`model_utils.benchmarking`. Inference is that of the descriptors, as matching uses them.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking, contenders
from model_utils.benchmarking import Benchmark, Contender, Job, Run, Section, Settings
from model_utils.contenders import Arrays, Subject, Training

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.004
INPUTS = ("opt", "sar")  # patches (batch_size, 1, 64, 64) in [-1, 1]


def _network() -> Any:
    from .network import SDNetNetwork

    return SDNetNetwork()


def _cell(network: Any) -> Any:
    """The two descriptors alone."""
    from .network import DescriptorOnly

    return DescriptorOnly(network)


def _torch_network(weights: Arrays) -> Any:
    from . import torch_reference

    network = torch_reference.SDNetTorch()
    torch_reference.copy_weights(network, weights)
    return network


def _module(weights: Arrays) -> Any:
    """The same in PyTorch."""
    from . import torch_reference

    return torch_reference.DescriptorOnly(_torch_network(weights)).eval()


def _train_cell(network: Any) -> Any:
    from .losses import SDNetLoss, SDNetTrainCell

    return SDNetTrainCell(network, SDNetLoss())


def _train_step(weights: Arrays) -> Callable[..., list[float]]:
    from . import torch_reference

    return torch_reference.train_step(_torch_network(weights).train(), LEARNING_RATE)


# Not folded: the network's BatchNorms have no scale and shift, and its rows no folded form.
SUBJECT = Subject("descriptor", _network, _cell, _module, INPUTS, smallest=())
STEP = Training(
    SUBJECT,
    _train_cell,
    _train_step,
    {"name": "adam", "lr": LEARNING_RATE, "weight_decay": 1e-4, "beta1": 0.5, "beta2": 0.9},
    dict.fromkeys(INPUTS, "float32"),
)


def train_upstream(job: Job) -> Run:
    """Four forwards, three backwards and three Adams per step, also as one graph."""
    from mindspore import Tensor

    from .upstream_step import UpstreamStep

    cell = _train_cell(contenders.mindspore_network(job, SUBJECT))
    cell.set_train(True)
    step = UpstreamStep(cell, LEARNING_RATE)
    inputs = [Tensor(job.arrays("inputs")[name]) for name in INPUTS]
    return lambda: float(step(*inputs).asnumpy())


def prepare(job: Job, seed: int = 0) -> None:
    """Write inputs, weights and the exported descriptor network for all contenders."""
    from model_utils import runtime

    from .network import PATCH_SIZE

    runtime.start("CPU")
    rng = np.random.default_rng(seed)
    shape = (job.settings["batch_size"], 1, PATCH_SIZE, PATCH_SIZE)
    opt, sar = (rng.uniform(-1, 1, shape).astype(np.float32) for _ in INPUTS)
    np.savez(job.folder / "inputs.npz", opt=opt, sar=sar)
    contenders.write_files(job, SUBJECT, SUBJECT.build_network())


def _run(function: Callable[..., Run]) -> Callable[[Job], Run]:
    return partial(function, subject=SUBJECT)


TRAINING = {
    "train-ours": Contender("this project's step", partial(contenders.train_engine, training=STEP)),
    "train-upstream": Contender("published way to step (4 forwards)", train_upstream),
    "train-pytorch": Contender(
        "PyTorch eager", partial(contenders.train_eager, training=STEP), ("torch",), baseline=True
    ),
}
INFERENCE = {
    "infer-mindspore": Contender("MindSpore Cell", _run(contenders.run_cell)),
    "infer-mindir": Contender("MINDIR in MindSpore", _run(contenders.run_mindir)),
    "infer-onnxruntime": Contender(
        "ONNX Runtime", _run(contenders.run_onnxruntime), ("onnxruntime",)
    ),
    "infer-pytorch": Contender(
        "PyTorch eager", _run(contenders.run_eager), ("torch",), baseline=True
    ),
    "infer-pytorch-onnx": Contender(
        "PyTorch's ONNX in ONNX Runtime",
        _run(contenders.run_torch_onnx),
        ("torch", "onnxscript", "onnxruntime"),
    ),
}


def _batch_size(settings: Settings) -> int:
    return int(settings["batch_size"])


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch_size", type=benchmarking.positive, default=100, help="pairs per step"
    )


BENCHMARK = Benchmark(
    network="SDNet",
    script=SCRIPT,
    prepare=prepare,
    sections=(
        Section("training step", TRAINING, _batch_size),
        Section("inference", INFERENCE, _batch_size, compared=True),
    ),
    unit="pairs",
    outputs="descriptors",
    describe=lambda settings: f"batch of {settings['batch_size']} pairs",
    add_options=_add_options,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``benchmark.py``; returns the exit status."""
    description = "Time SDNet's training step and inference beside PyTorch, taking turns."
    return benchmarking.main(BENCHMARK, description, argv)
