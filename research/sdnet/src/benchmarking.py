"""Speed of SDNet's training step and inference beside PyTorch and the published way to step.

The contenders alone; how they are timed is in :mod:`model_utils.benchmarking`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking
from model_utils.benchmarking import Benchmark, Contender, Job, Run, Section, Settings

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.004


def _inputs(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Optical and SAR patches (batch_size, 1, 64, 64) in [-1, 1]."""
    arrays = job.arrays("inputs")
    return arrays["opt"], arrays["sar"]


# Contenders. Each returns what to time: one step or one batch, finished when it returns.


def _mindspore_network(job: Job) -> tuple[Any, list[Any]]:
    from mindspore import Tensor

    from model_utils import runtime

    from .network import SDNetNetwork

    runtime.start("CPU")
    network = SDNetNetwork()
    for name, value in job.arrays("weights").items():
        network.parameters_dict()[name].set_data(Tensor(value))
    return network, [Tensor(x) for x in _inputs(job)]


def train_ours(job: Job) -> Run:
    """The engine's step: one graph with forward, losses, gradient and Adam."""
    from mindspore import Tensor, nn

    from model_utils.distributed import Ranks
    from model_utils.training import TrainStep

    from .losses import SDNetLoss, SDNetTrainCell

    network, inputs = _mindspore_network(job)
    cell = SDNetTrainCell(network, SDNetLoss())
    cell.set_train(True)
    optimizer = nn.Adam(cell.trainable_params(), LEARNING_RATE, 0.5, 0.9, 1e-8, weight_decay=1e-4)
    step = TrainStep(cell, optimizer, Ranks())
    go_on = Tensor(np.zeros(1, np.float32))
    return lambda: float(step(go_on, *inputs).asnumpy()[1])


def train_upstream(job: Job) -> Run:
    """Four forwards, three backwards and three Adams per step, also as one graph."""
    from .losses import SDNetLoss, SDNetTrainCell
    from .upstream_step import UpstreamStep

    network, inputs = _mindspore_network(job)
    cell = SDNetTrainCell(network, SDNetLoss())
    cell.set_train(True)
    step = UpstreamStep(cell, LEARNING_RATE)
    return lambda: float(step(*inputs).asnumpy())


def train_pytorch(job: Job) -> Run:
    """The same step in PyTorch, eagerly."""
    import torch

    from . import torch_reference

    torch.set_num_threads(job.threads)
    network = torch_reference.SDNetTorch().train()
    torch_reference.copy_weights(network, job.arrays("weights"))
    step = torch_reference.TrainStep(network, LEARNING_RATE)
    inputs = [torch.from_numpy(x) for x in _inputs(job)]
    return lambda: step(*inputs)


def infer_mindspore(job: Job) -> Run:
    """The network as a Cell in graph mode."""
    from .network import DescriptorOnly

    network, inputs = _mindspore_network(job)
    cell = DescriptorOnly(network)
    cell.set_train(False)
    return lambda: np.stack([output.asnumpy() for output in cell(*inputs)])


def infer_mindir(job: Job) -> Run:
    """The exported MINDIR, run by MindSpore."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from model_utils import runtime

    runtime.start("CPU")
    cell = nn.GraphCell(ms.load(str(job.folder / "descriptor.mindir")))
    inputs = [Tensor(x) for x in _inputs(job)]
    return lambda: np.stack([output.asnumpy() for output in cell(*inputs)])


def infer_onnxruntime(job: Job) -> Run:
    """The exported ONNX, run by ONNX Runtime."""
    return _onnx_run(job.folder / "descriptor.onnx", job)


def infer_pytorch(job: Job) -> Run:
    """The PyTorch network, eagerly, in inference mode."""
    import torch

    torch.set_num_threads(job.threads)
    cell = _torch_descriptor(job)
    inputs = [torch.from_numpy(x) for x in _inputs(job)]

    def run() -> np.ndarray:
        with torch.inference_mode():
            return np.stack([output.numpy() for output in cell(*inputs)])

    return run


def infer_pytorch_onnx(job: Job) -> Run:
    """PyTorch's own ONNX export, run by ONNX Runtime."""
    import torch

    inputs = tuple(torch.from_numpy(x) for x in _inputs(job))
    path = job.folder / "pytorch.onnx"
    torch.onnx.export(_torch_descriptor(job), inputs, str(path), input_names=["opt", "sar"])
    return _onnx_run(path, job)


def _torch_descriptor(job: Job) -> Any:
    from . import torch_reference

    network = torch_reference.SDNetTorch()
    torch_reference.copy_weights(network, job.arrays("weights"))
    return torch_reference.DescriptorOnly(network).eval()


def _onnx_run(path: Path, job: Job) -> Run:
    opt, sar = _inputs(job)
    return benchmarking.run_onnx(path, {"opt": opt, "sar": sar}, job.threads)


def prepare(job: Job, seed: int = 0) -> None:
    """Write inputs, weights and the exported descriptor network for all contenders."""
    import mindspore as ms
    from mindspore import Tensor

    from model_utils import runtime
    from model_utils.mindir2onnx import convert

    from .network import PATCH_SIZE, DescriptorOnly, SDNetNetwork

    runtime.start("CPU")
    rng = np.random.default_rng(seed)
    shape = (job.settings["batch_size"], 1, PATCH_SIZE, PATCH_SIZE)
    opt, sar = (rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(2))
    np.savez(job.folder / "inputs.npz", opt=opt, sar=sar)
    network = SDNetNetwork(seed=seed)
    weights = {name: value.asnumpy() for name, value in network.parameters_dict().items()}
    np.savez(job.folder / "weights.npz", **weights)  # type: ignore[arg-type]
    cell = DescriptorOnly(network)
    cell.set_train(False)
    ms.export(
        cell,
        Tensor(opt),
        Tensor(sar),
        file_name=str(job.folder / "descriptor"),
        file_format="MINDIR",
    )
    convert(
        job.folder / "descriptor.mindir",
        job.folder / "descriptor.onnx",
        input_names=["opt", "sar"],
    )


TRAINING = {
    "train-ours": Contender("this project's step", train_ours),
    "train-upstream": Contender("published way to step (4 forwards)", train_upstream),
    "train-pytorch": Contender("PyTorch eager", train_pytorch, ("torch",), baseline=True),
}
INFERENCE = {
    "infer-mindspore": Contender("MindSpore Cell", infer_mindspore),
    "infer-mindir": Contender("MINDIR in MindSpore", infer_mindir),
    "infer-onnxruntime": Contender("ONNX Runtime", infer_onnxruntime, ("onnxruntime",)),
    "infer-pytorch": Contender("PyTorch eager", infer_pytorch, ("torch",), baseline=True),
    "infer-pytorch-onnx": Contender(
        "PyTorch's ONNX in ONNX Runtime",
        infer_pytorch_onnx,
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
