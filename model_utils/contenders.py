"""The ways of running one network that the networks' benchmarks compare.

A network's ``benchmarking`` module says how to build it in MindSpore and in PyTorch; this module
makes a row of the inference table of each way: PyTorch as it is, traced, compiled and in half
precision, and this project's Cell, MINDIR and ONNX files in every runtime. Likewise of the
training step.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from model_utils import benchmarking
from model_utils.benchmarking import Contender, Job, Run

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """One network whose ways of running are compared.

    Attributes:
        key: in names of files and contenders, e.g. "S".
        build_network: makes it in MindSpore, with initial weights.
        build_cell: makes its prediction build, a Cell of the inputs and one output, or several
            of one shape.
        build_module: makes the same in PyTorch, a Module in evaluation mode, of weights by
            MindSpore's names.
        inputs: names of the arrays of inputs.npz that all contenders are fed.
        smallest: shapes of inputs that the network takes, for folding; empty does not fold.
        direct: also time the ONNX file in which coarse maps are resized before they are convolved.
        gain: of :func:`settle`, the smaller the deeper the network.
        half_tolerance: largest difference in bfloat16, which keeps 8 bits, relative to the
            largest output.
    """

    key: str
    build_network: Callable[[], Any]
    build_cell: Callable[[Any], Any]
    build_module: Callable[[Arrays], Any]
    inputs: tuple[str, ...] = ("image",)
    smallest: tuple[tuple[int, ...], ...] = ((1, 3, 64, 64),)
    direct: bool = False
    gain: float = 1.0
    half_tolerance: float = 0.05

    @property
    def form(self) -> str:
        """Of the files that runtimes other than MindSpore get."""
        return "folded" if self.smallest else "plain"


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


# What contenders read.


def write_files(job: Job, subject: Subject, network: Any) -> None:
    """Keep a MindSpore network's weights, and its prediction build as MINDIR and ONNX.

    Args:
        job: its folder holds inputs.npz.
        subject: whose files these are.
        network: of ``subject.build_network``, with the weights that all contenders get.
    """
    import mindspore as ms

    from model_utils.folding import fold
    from model_utils.mindir2onnx import convert

    arrays = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    np.savez(job.folder / f"weights_{subject.key}.npz", **arrays)
    cell = subject.build_cell(network)
    cell.set_train(False)
    forms = {"plain": cell}
    if subject.smallest:
        forms["folded"] = fold(cell, *subject.smallest).cell
    inputs = [ms.Tensor(array) for array in _feeds(job, subject).values()]
    for form, member in forms.items():
        path = job.folder / f"{form}_{subject.key}"
        ms.export(member, *inputs, file_name=str(path), file_format="MINDIR")
    mindir = job.folder / f"{subject.form}_{subject.key}.mindir"
    names = list(subject.inputs)
    convert(mindir, mindir.with_suffix(".onnx"), input_names=names)
    if subject.direct:
        direct = job.folder / f"direct_{subject.key}.onnx"
        convert(mindir, direct, input_names=names, reorder=False)


def mindspore_network(job: Job, subject: Subject) -> Any:
    """The network in MindSpore, on this project's settings for CPU, with the job's weights."""
    from mindspore import Tensor

    from model_utils import runtime

    runtime.start("CPU")
    network = subject.build_network()
    weights = job.arrays(f"weights_{subject.key}")
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(weights[parameter.name]))
    return network


def _feeds(job: Job, subject: Subject) -> dict[str, np.ndarray]:
    arrays = job.arrays("inputs")
    return {name: arrays[name] for name in subject.inputs}


# Each returns what to time: one batch, finished when it returns.


def _mindspore_run(cell: Any, job: Job, subject: Subject) -> Run:
    from mindspore import Tensor

    inputs = [Tensor(array) for array in _feeds(job, subject).values()]

    def run() -> np.ndarray:
        outputs = cell(*inputs)
        if isinstance(outputs, tuple):
            return np.stack([output.asnumpy() for output in outputs])
        return outputs.asnumpy()

    return run


def run_cell(job: Job, subject: Subject) -> Run:
    """The network as a Cell in graph mode, BatchNorm folded."""
    network = mindspore_network(job, subject)
    cell = subject.build_cell(network)
    cell.set_train(False)
    if subject.smallest:
        from model_utils.folding import fold

        cell = fold(cell, *subject.smallest).cell
    return _mindspore_run(cell, job, subject)


def run_mindir(job: Job, subject: Subject, form: str = "plain") -> Run:
    """The exported MINDIR, plain or folded, run by MindSpore."""
    import mindspore as ms
    from mindspore import nn

    from model_utils import runtime

    runtime.start("CPU")
    cell = nn.GraphCell(ms.load(str(job.folder / f"{form}_{subject.key}.mindir")))
    return _mindspore_run(cell, job, subject)


def run_onnxruntime(job: Job, subject: Subject, form: str = "") -> Run:
    """An exported ONNX file, by default the subject's usual form, run by ONNX Runtime."""
    path = job.folder / f"{form or subject.form}_{subject.key}.onnx"
    return benchmarking.run_onnx(path, _feeds(job, subject), job.threads)


def run_openvino(job: Job, subject: Subject) -> Run:
    """The exported ONNX, run by OpenVINO in bfloat16."""
    from model_utils.backends import OpenVinoBackend

    backend = OpenVinoBackend(job.folder / f"{subject.form}_{subject.key}.onnx", job.threads)
    inputs = list(_feeds(job, subject).values())

    def run() -> np.ndarray:
        outputs = backend.run(*inputs)
        return outputs[0] if len(outputs) == 1 else np.stack(outputs)

    return run


def _torch_network(job: Job, subject: Subject) -> tuple[Any, tuple[Any, ...]]:
    import torch

    torch.set_num_threads(job.threads)
    module = subject.build_module(job.arrays(f"weights_{subject.key}"))
    return module, tuple(torch.from_numpy(array) for array in _feeds(job, subject).values())


def _torch_run(network: Any, inputs: tuple[Any, ...], mode: Callable[[], Any]) -> Run:
    """``mode`` is the context that computes without gradients."""

    def run() -> np.ndarray:
        with mode():
            outputs = network(*inputs)
            if isinstance(outputs, tuple):
                return np.stack([output.float().numpy() for output in outputs])
            return outputs.float().numpy()

    return run


def run_eager(job: Job, subject: Subject) -> Run:
    """The PyTorch network, eagerly, in inference mode."""
    import torch

    return _torch_run(*_torch_network(job, subject), torch.inference_mode)


def run_half(job: Job, subject: Subject) -> Run:
    """The PyTorch network, eagerly, weights and inputs in bfloat16."""
    import torch

    network, inputs = _torch_network(job, subject)
    inputs = tuple(array.bfloat16() for array in inputs)
    return _torch_run(network.bfloat16(), inputs, torch.inference_mode)


def run_traced(job: Job, subject: Subject) -> Run:
    """The PyTorch network traced, frozen and optimised, which folds BatchNorm."""
    import torch

    network, inputs = _torch_network(job, subject)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and still the faster of the two
        traced = torch.jit.freeze(torch.jit.trace(network, inputs))
        traced = torch.jit.optimize_for_inference(traced)
    return _torch_run(traced, inputs, torch.inference_mode)


def run_compiled(job: Job, subject: Subject) -> Run:
    """The PyTorch network through torch.compile, frozen."""
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True  # folds BatchNorm into convolutions
    network, inputs = _torch_network(job, subject)
    compiled = torch.compile(network)
    # Inductor freezes under no_grad; inference mode would compile anew.
    with torch.no_grad():
        compiled(*inputs)
    return _torch_run(compiled, inputs, torch.no_grad)


def run_torch_onnx(job: Job, subject: Subject) -> Run:
    """PyTorch's own ONNX export, run by ONNX Runtime."""
    import torch

    network, inputs = _torch_network(job, subject)
    path = job.folder / f"pytorch_{subject.key}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, inputs, str(path), input_names=list(subject.inputs))
    return benchmarking.run_onnx(path, _feeds(job, subject), job.threads)


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
    if not subject.smallest:
        del rows["mindir-folded"]
        rows["mindspore"] = replace(rows["mindspore"], title="MindSpore Cell")
    if subject.direct:
        rows["direct"] = Contender(
            "the same, resized before convolved", build(run_onnxruntime, form="direct"), onnx[2:]
        )
    return {f"{subject.key}-{name}": contender for name, contender in rows.items()}


@dataclass(frozen=True)
class Training:
    """The training step of one network, the same in both frameworks.

    Attributes:
        subject: the network, whose weights it begins with.
        build_cell: makes MindSpore's training Cell of the network: a batch to scalar losses, the
            first of which is minimised.
        build_step: makes PyTorch's step of weights by MindSpore's names: a batch to the losses.
        optimizer: keys of :class:`model_utils.optimizers.OptimizerConfig`.
        types: PyTorch's types of the batch's arrays, by their names in inputs.npz.
    """

    subject: Subject
    build_cell: Callable[[Any], Any]
    build_step: Callable[[Arrays], Callable[..., list[float]]]
    optimizer: Mapping[str, Any]
    types: Mapping[str, str]


def train_engine(job: Job, training: Training) -> Run:
    """The engine's step: one graph with forward, losses, gradient and update."""
    from mindspore import Tensor

    from model_utils.distributed import Ranks
    from model_utils.optimizers import OptimizerConfig, build_optimizer
    from model_utils.training import TrainStep

    cell = training.build_cell(mindspore_network(job, training.subject))
    cell.set_train(True)
    config = OptimizerConfig(**training.optimizer)
    rates = np.full(100_000, config.lr, np.float32)
    optimizer = build_optimizer(config, [{"params": cell.trainable_params()}], rates)
    step = TrainStep(cell, optimizer, Ranks())
    arrays = job.arrays("inputs")
    batch = [Tensor(arrays[name]) for name in training.types]
    go_on = Tensor(np.zeros(1, np.float32))
    return lambda: float(step(go_on, *batch).asnumpy()[1])


def train_eager(job: Job, training: Training) -> Run:
    """The same step in PyTorch, eagerly."""
    import torch

    torch.set_num_threads(job.threads)
    step = training.build_step(job.arrays(f"weights_{training.subject.key}"))
    arrays = job.arrays("inputs")
    batch = [
        torch.from_numpy(arrays[name]).to(getattr(torch, kind))
        for name, kind in training.types.items()
    ]
    return lambda: step(*batch)[0]


def training_rows(training: Training) -> dict[str, Contender]:
    """The rows of the training step's table, "train-eager" and "train-ours"."""
    eager, ours = (partial(step, training=training) for step in (train_eager, train_engine))
    return {
        "train-eager": Contender("PyTorch eager", eager, ("torch",), baseline=True),
        "train-ours": Contender("this project's step", ours),
    }
