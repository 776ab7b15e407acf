"""The ways of running one network that the networks' benchmarks compare.

A network's ``benchmarking`` module says how to build it in MindSpore and in PyTorch; this module
makes a row of the inference table of each way: PyTorch as it is, traced, compiled and in half
precision, and this project's Cell, MINDIR and ONNX files in every runtime.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from model_utils import benchmarking
from model_utils.benchmarking import Contender, Job, Run

# The array of inputs.npz that all contenders are fed, and the networks' name for it.
IMAGE = "image"


@dataclass(frozen=True)
class Subject:
    """One network whose ways of running are compared.

    Attributes:
        key: in names of files and contenders, e.g. "S".
        build_cell: makes its prediction build in MindSpore, a Cell of one image and one output,
            with the job's weights.
        build_module: makes the same in PyTorch, a Module in evaluation mode.
        smallest: a shape of images that the network takes, for folding.
        half_tolerance: largest difference in bfloat16, which keeps 8 bits, relative to the
            largest output.
    """

    key: str
    build_cell: Callable[[Job], Any]
    build_module: Callable[[Job], Any]
    smallest: tuple[int, int, int, int] = (1, 3, 64, 64)
    half_tolerance: float = 0.05


def settle(network: Any, gain: float, rng: np.random.Generator) -> None:
    """Give a MindSpore network statistics and magnitudes as after training.

    So that folding has something to do, and that differences are those of arithmetic: with
    initial weights every residual block adds to the activations, and rounding grows with them.

    Args:
        network: with initial weights; changed.
        gain: factor of all weights, the smaller the deeper the network.
        rng: of the statistics.
    """
    from mindspore import Tensor

    for parameter in network.get_parameters():
        kind = parameter.name.rpartition(".")[2]
        if kind in ("moving_variance", "gamma"):
            value = rng.uniform(0.5, 1.5, parameter.shape)
        elif kind in ("moving_mean", "beta"):
            value = 0.1 * rng.standard_normal(parameter.shape)
        elif kind == "weight":
            value = gain * parameter.asnumpy()
        else:
            continue
        parameter.set_data(Tensor(value.astype(np.float32)))


def write_weights(job: Job, key: str, network: Any) -> None:
    """Keep a MindSpore network's weights under PyTorch's names for all contenders."""
    from model_utils.converting import pytorch_name

    arrays = {pytorch_name(p.name): p.asnumpy() for p in network.get_parameters()}
    np.savez(job.folder / f"weights_{key}.npz", **arrays)


def load_weights(job: Job, key: str, network: Any) -> Any:
    """The MindSpore network with the weights kept by `write_weights`."""
    from mindspore import Tensor

    from model_utils.converting import pytorch_name

    weights = job.arrays(f"weights_{key}")
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(weights[pytorch_name(parameter.name)]))
    return network


def write_files(job: Job, subject: Subject, cell: Any) -> None:
    """Export the prediction build: plain and folded MINDIR, folded ONNX."""
    import mindspore as ms

    from model_utils.folding import fold
    from model_utils.mindir2onnx import convert

    cell.set_train(False)
    image = ms.Tensor(job.arrays("inputs")[IMAGE])
    for form, member in (("plain", cell), ("folded", fold(cell, subject.smallest).cell)):
        path = job.folder / f"{form}_{subject.key}"
        ms.export(member, image, file_name=str(path), file_format="MINDIR")
    path = job.folder / f"folded_{subject.key}"
    convert(path.with_suffix(".mindir"), path.with_suffix(".onnx"), input_names=[IMAGE])


# Each returns what to time: one batch, finished when it returns.


def _image(job: Job) -> np.ndarray:
    return job.arrays("inputs")[IMAGE]


def run_cell(job: Job, subject: Subject) -> Run:
    """The network as a Cell in graph mode, BatchNorm folded."""
    from mindspore import Tensor

    from model_utils import runtime
    from model_utils.folding import fold

    runtime.start("CPU")
    cell = fold(subject.build_cell(job), subject.smallest).cell
    image = Tensor(_image(job))
    return lambda: cell(image).asnumpy()


def run_mindir(job: Job, subject: Subject, form: str) -> Run:
    """The exported MINDIR, plain or folded, run by MindSpore."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from model_utils import runtime

    runtime.start("CPU")
    cell = nn.GraphCell(ms.load(str(job.folder / f"{form}_{subject.key}.mindir")))
    image = Tensor(_image(job))
    return lambda: cell(image).asnumpy()


def run_onnxruntime(job: Job, subject: Subject, form: str = "folded") -> Run:
    """An exported ONNX file, run by ONNX Runtime."""
    path = job.folder / f"{form}_{subject.key}.onnx"
    return benchmarking.run_onnx(path, {IMAGE: _image(job)}, job.threads)


def run_openvino(job: Job, subject: Subject) -> Run:
    """The exported ONNX, run by OpenVINO in bfloat16."""
    from model_utils.backends import OpenVinoBackend

    backend = OpenVinoBackend(job.folder / f"folded_{subject.key}.onnx", job.threads)
    image = _image(job)
    return lambda: backend.run(image)[0]


def _torch_network(job: Job, subject: Subject) -> tuple[Any, Any]:
    import torch

    torch.set_num_threads(job.threads)
    return subject.build_module(job), torch.from_numpy(_image(job))


def _torch_run(network: Any, image: Any) -> Run:
    import torch

    def run() -> np.ndarray:
        with torch.inference_mode():
            return network(image).numpy()

    return run


def run_eager(job: Job, subject: Subject) -> Run:
    """The PyTorch network, eagerly, in inference mode."""
    return _torch_run(*_torch_network(job, subject))


def run_half(job: Job, subject: Subject) -> Run:
    """The PyTorch network, eagerly, weights and image in bfloat16."""
    import torch

    network, image = _torch_network(job, subject)
    network, image = network.bfloat16(), image.bfloat16()

    def run() -> np.ndarray:
        with torch.inference_mode():
            return network(image).float().numpy()

    return run


def run_traced(job: Job, subject: Subject) -> Run:
    """The PyTorch network traced, frozen and optimised, which folds BatchNorm."""
    import torch

    network, image = _torch_network(job, subject)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and still the faster of the two
        traced = torch.jit.freeze(torch.jit.trace(network, image))
        traced = torch.jit.optimize_for_inference(traced)
    return _torch_run(traced, image)


def run_compiled(job: Job, subject: Subject) -> Run:
    """The PyTorch network through torch.compile, frozen."""
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True  # folds BatchNorm into convolutions
    network, image = _torch_network(job, subject)
    compiled = torch.compile(network)
    # Inductor freezes under no_grad; inference mode would compile anew.
    with torch.no_grad():
        compiled(image)

    def run() -> np.ndarray:
        with torch.no_grad():
            return compiled(image).numpy()

    return run


def run_torch_onnx(job: Job, subject: Subject) -> Run:
    """PyTorch's own ONNX export, run by ONNX Runtime."""
    import torch

    network, image = _torch_network(job, subject)
    path = job.folder / f"pytorch_{subject.key}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), str(path), input_names=[IMAGE])
    return benchmarking.run_onnx(path, {IMAGE: _image(job)}, job.threads)


def inference(subject: Subject) -> dict[str, Contender]:
    """The rows of one network's inference table, by names such as "S-eager"."""

    def build(function: Callable[..., Run], **more: str) -> Callable[[Job], Run]:
        return partial(function, subject=subject, **more)

    torch, onnx = ("torch",), ("torch", "onnxscript", "onnxruntime")
    half = subject.half_tolerance
    rows = {
        "eager": Contender("PyTorch eager", build(run_eager), torch, baseline=True),
        "traced": Contender("PyTorch traced", build(run_traced), torch),
        "compiled": Contender(
            "torch.compile",
            build(run_compiled),
            torch,
            lacking=benchmarking.compiler_lacking,
            may_fail=True,
        ),
        "torch-onnx": Contender(
            "PyTorch's ONNX in ONNX Runtime", build(run_torch_onnx), onnx, may_fail=True
        ),
        "onnxruntime": Contender("our ONNX in ONNX Runtime", build(run_onnxruntime), onnx[2:]),
        "mindspore": Contender("MindSpore Cell, folded", build(run_cell)),
        "mindir": Contender("MINDIR in MindSpore", build(run_mindir, form="plain")),
        "mindir-folded": Contender("MINDIR, folded", build(run_mindir, form="folded")),
        "eager-bf16": Contender("PyTorch eager, bfloat16", build(run_half), torch, tolerance=half),
        "openvino-bf16": Contender(
            "our ONNX in OpenVINO, bfloat16",
            build(run_openvino),
            ("openvino",),
            may_fail=True,
            tolerance=half,
        ),
    }
    return {f"{subject.key}-{name}": contender for name, contender in rows.items()}
