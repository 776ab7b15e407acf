"""Speed of SANet's inference and training step beside PyTorch.

The contenders alone; how they are timed is in :mod:`model_utils.benchmarking`. Inference is the
prediction build, normalised image in, logits at 1/8 out. All contenders of a size get the same
image and weights, and their outputs are compared.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking
from model_utils.benchmarking import Benchmark, Contender, Job, Run, Section, Settings

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.01
CLASSES = 19
VARIANTS = ("S", "M", "L")
# Of bfloat16, relative to the largest logit: it keeps 8 bits.
HALF_TOLERANCE = 0.05
# Of He's initial weights, the smaller the deeper the network (_settle).
GAINS = {"S": 0.65, "M": 0.6, "L": 0.5}


def prepare(job: Job, seed: int = 0) -> None:
    """Write inputs, weights and exported networks for all contenders."""
    import mindspore as ms
    from mindspore import Tensor

    from model_utils import runtime
    from model_utils.converting import pytorch_name
    from model_utils.folding import fold
    from model_utils.mindir2onnx import convert

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
        _settle(network, GAINS[variant], rng)
        arrays = {pytorch_name(p.name): p.asnumpy() for p in network.get_parameters()}
        np.savez(job.folder / f"weights_{variant}.npz", **arrays)  # type: ignore[arg-type]
        cell = Prediction(network)
        cell.set_train(False)
        forms = {"plain": cell, "folded": fold(cell, (1, 3, 64, 64)).cell}
        for form, member in forms.items():
            path = job.folder / f"{form}_{variant}"
            ms.export(member, Tensor(image), file_name=str(path), file_format="MINDIR")
        path = job.folder / f"folded_{variant}"
        convert(path.with_suffix(".mindir"), path.with_suffix(".onnx"), input_names=["image"])


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


def _settle(network: Any, gain: float, rng: np.random.Generator) -> None:
    """Batch statistics and magnitudes as after training.

    So that folding has something to do, and that differences are those of arithmetic: with
    initial weights every residual block adds to the activations, and rounding grows with them.
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


# Contenders. Each returns what to time: one step or one batch, finished when it returns.


def _image(job: Job) -> np.ndarray:
    return job.arrays("inputs")["image"]


def _mindspore_network(job: Job, variant: str) -> Any:
    from mindspore import Tensor

    from model_utils import runtime
    from model_utils.converting import pytorch_name

    from .network import SANetNetwork

    runtime.start("CPU")
    network = SANetNetwork(variant, CLASSES)
    weights = job.arrays(f"weights_{variant}")
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(weights[pytorch_name(parameter.name)]))
    return network


def infer_mindspore(job: Job, variant: str) -> Run:
    """The network as a Cell in graph mode, BatchNorm folded."""
    from mindspore import Tensor

    from model_utils.folding import fold

    from .prediction import Prediction

    cell = fold(Prediction(_mindspore_network(job, variant)), (1, 3, 64, 64)).cell
    image = Tensor(_image(job))
    return lambda: cell(image).asnumpy()


def infer_mindir(job: Job, variant: str, form: str) -> Run:
    """The exported MINDIR, run by MindSpore."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from model_utils import runtime

    runtime.start("CPU")
    cell = nn.GraphCell(ms.load(str(job.folder / f"{form}_{variant}.mindir")))
    image = Tensor(_image(job))
    return lambda: cell(image).asnumpy()


def infer_onnxruntime(job: Job, variant: str) -> Run:
    """The exported ONNX, run by ONNX Runtime."""
    path = job.folder / f"folded_{variant}.onnx"
    return benchmarking.run_onnx(path, {"image": _image(job)}, job.threads)


def infer_openvino(job: Job, variant: str) -> Run:
    """The exported ONNX, run by OpenVINO in bfloat16."""
    from model_utils.backends import OpenVinoBackend

    backend = OpenVinoBackend(job.folder / f"folded_{variant}.onnx", job.threads)
    image = _image(job)
    return lambda: backend.run(image)[0]


def _torch_network(job: Job, variant: str) -> tuple[Any, Any]:
    import torch

    from . import torch_reference

    torch.set_num_threads(job.threads)
    network = torch_reference.SANetTorch(variant, CLASSES, heads=False).eval()
    torch_reference.copy_weights(network, job.arrays(f"weights_{variant}"))
    return network, torch.from_numpy(_image(job))


def _torch_run(network: Any, image: Any) -> Run:
    import torch

    def run() -> np.ndarray:
        with torch.inference_mode():
            return network(image).numpy()

    return run


def infer_eager(job: Job, variant: str) -> Run:
    """The PyTorch network, eagerly, in inference mode."""
    return _torch_run(*_torch_network(job, variant))


def infer_half(job: Job, variant: str) -> Run:
    """The PyTorch network, eagerly, weights and image in bfloat16."""
    import torch

    network, image = _torch_network(job, variant)
    network, image = network.bfloat16(), image.bfloat16()

    def run() -> np.ndarray:
        with torch.inference_mode():
            return network(image).float().numpy()

    return run


def infer_traced(job: Job, variant: str) -> Run:
    """The PyTorch network traced, frozen and optimised, which folds BatchNorm."""
    import torch

    network, image = _torch_network(job, variant)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and still the faster of the two
        traced = torch.jit.freeze(torch.jit.trace(network, image))
        traced = torch.jit.optimize_for_inference(traced)
    return _torch_run(traced, image)


def infer_compiled(job: Job, variant: str) -> Run:
    """The PyTorch network through torch.compile, frozen."""
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True  # folds BatchNorm into convolutions
    network, image = _torch_network(job, variant)
    compiled = torch.compile(network)
    # Inductor freezes under no_grad; inference mode would compile anew.
    with torch.no_grad():
        compiled(image)

    def run() -> np.ndarray:
        with torch.no_grad():
            return compiled(image).numpy()

    return run


def infer_torch_onnx(job: Job, variant: str) -> Run:
    """PyTorch's own ONNX export, run by ONNX Runtime."""
    import torch

    network, image = _torch_network(job, variant)
    path = job.folder / f"pytorch_{variant}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), str(path), input_names=["image"])
    return benchmarking.run_onnx(path, {"image": _image(job)}, job.threads)


def train_ours(job: Job) -> Run:
    """The engine's step: one graph with forward, losses, gradient and SGD."""
    from mindspore import Tensor

    from model_utils.distributed import Ranks
    from model_utils.optimizers import OptimizerConfig, build_optimizer
    from model_utils.training import TrainStep

    from .losses import SANetLoss, SANetTrainCell

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
    def build(function: Callable[..., Run], **more: str) -> Callable[[Job], Run]:
        return partial(function, variant=variant, **more)

    torch, onnx = ("torch",), ("torch", "onnxscript", "onnxruntime")
    rows = {
        "eager": Contender("PyTorch eager", build(infer_eager), torch, baseline=True),
        "traced": Contender("PyTorch traced", build(infer_traced), torch),
        "compiled": Contender(
            "torch.compile",
            build(infer_compiled),
            torch,
            lacking=benchmarking.compiler_lacking,
            may_fail=True,
        ),
        "torch-onnx": Contender("PyTorch's ONNX in ONNX Runtime", build(infer_torch_onnx), onnx),
        "onnxruntime": Contender("our ONNX in ONNX Runtime", build(infer_onnxruntime), onnx[2:]),
        "mindspore": Contender("MindSpore Cell, folded", build(infer_mindspore)),
        "mindir": Contender("MINDIR in MindSpore", build(infer_mindir, form="plain")),
        "mindir-folded": Contender("MINDIR, folded", build(infer_mindir, form="folded")),
        "eager-bf16": Contender(
            "PyTorch eager, bfloat16", build(infer_half), torch, tolerance=HALF_TOLERANCE
        ),
        "openvino-bf16": Contender(
            "our ONNX in OpenVINO, bfloat16",
            build(infer_openvino),
            ("openvino",),
            may_fail=True,
            tolerance=HALF_TOLERANCE,
        ),
    }
    return Section(
        f"inference of {variant}",
        {f"{variant}-{name}": contender for name, contender in rows.items()},
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
