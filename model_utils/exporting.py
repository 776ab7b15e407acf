"""Export to MINDIR, AIR and ONNX; a file is loaded back and compared before it gets its name."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path, sha256
from model_utils.layers import TRANSIENT

log = logging.getLogger("zoo")

FORMATS = ("MINDIR", "AIR", "ONNX")
# Share of whole-number outputs that rounding may change: random inputs have many near ties.
TIES = 0.01
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ExportInput:
    """One input of an exported network.

    Attributes:
        name: its name in the exported file.
        shape: its lengths; None for an axis that may have any length.
        dtype: NumPy name of the element type.
        test_shapes: fixed shapes to verify a dynamic export with, for networks that want
            particular sizes; by default batches of 1 and 2 and sides of 64 and 96.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    test_shapes: tuple[Shape, ...] = ()

    @property
    def dynamic(self) -> bool:
        """Whether any axis may have any length."""
        return None in self.shape

    def shapes_to_test(self) -> tuple[Shape, ...]:
        """Two shapes that fit: the given ones, the defaults, or twice the only one."""
        if self.test_shapes:
            return self.test_shapes
        return tuple(
            tuple(
                n if n is not None else (batch if axis == 0 else side)
                for axis, n in enumerate(self.shape)
            )
            for batch, side in ((1, 64), (2, 96))
        )

    def random(self, shape: Shape, rng: np.random.Generator) -> np.ndarray:
        """Normal numbers, or zeros and ones for integer and boolean inputs."""
        if np.dtype(self.dtype).kind == "f":
            return rng.standard_normal(shape).astype(self.dtype)
        return rng.integers(0, 2, shape).astype(self.dtype)


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the network.

    Attributes:
        path: the file.
        file_format: MINDIR, AIR or ONNX.
        max_difference: largest absolute difference of any output, divided by the larger of 1 and
            the output's largest magnitude; NaN for AIR, which only Ascend's own tools can run.
        checked_shapes: the input shapes it was measured with, one tuple of shapes per run.
        parameters: number of values in the file's parameters.
        unused_parameters: parameters of the network that its outputs do not depend on.
        bytes: size of the file.
        sha256: checksum of the file.
    """

    path: Path
    file_format: str
    max_difference: float
    checked_shapes: tuple[tuple[Shape, ...], ...]
    parameters: int
    unused_parameters: tuple[str, ...]
    bytes: int
    sha256: str


def export(
    cell: Any,
    inputs: Sequence[ExportInput],
    path: PathLike,
    file_format: str,
    *,
    output_names: Sequence[str] | None = None,
    reference: Callable[..., Any] | None = None,
    tolerance: float = 1e-4,
    sizes: Sequence[Sequence[Shape]] | None = None,
    opset: int = 17,
) -> ExportReport:
    """Write a network in evaluation mode and prove that the file computes the same.

    The file is loaded back (MindSpore for MINDIR, ONNX Runtime for ONNX) and run on seeded random
    inputs beside the network, in two sizes where axes are dynamic. It appears under its name only
    after that; the network is left as it was, training flags included.

    A MINDIR exported with fixed shapes, fed others, runs silently with the old sizes inside:
    ``backends`` refuses that, MindSpore itself does not.

    Args:
        cell: the network; graph mode. Networks with dynamic heights or widths must resize by
            ``ops.ResizeBilinearV2`` with computed sizes: ``ops.interpolate`` breaks such files.
        inputs: names, shapes and types.
        path: the file, with or without the format's suffix.
        file_format: MINDIR, AIR (on Ascend only) or ONNX.
        output_names: names of the outputs in an ONNX file.
        reference: what the file is compared with, a callable taking MindSpore tensors; the network
            itself by default.
        tolerance: largest difference (see ExportReport) that is accepted.
        sizes: shapes of all inputs per run, instead of those the inputs propose.
        opset: ONNX operator set.

    Raises:
        UserError: unknown format, AIR off Ascend, MindSpore cannot export, an operator without
            ONNX form, a parameter that is missing or changed, or a difference above tolerance. No
            file is left then; an earlier one under the same name survives.
    """
    kind = _checked_format(file_format)
    target = _with_suffix(Path(path), kind)
    shapes = _shapes_to_run(inputs, sizes)
    _check_names(cell, [item.name for item in inputs])
    with evaluation_mode(cell), atomic_path(target) as temporary:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            written = "MINDIR" if kind == "ONNX" else kind
            raw = _export_by_mindspore(cell, inputs, Path(folder), written)
            if kind == "ONNX":
                from model_utils.mindir2onnx import convert

                names = [item.name for item in inputs]
                mindir, raw = raw, Path(folder) / "network.onnx"
                convert(mindir, raw, input_names=names, output_names=output_names, opset=opset)
            os.replace(raw, temporary)
        count, unused = (0, ()) if kind == "AIR" else _account_for_parameters(cell, temporary, kind)
        difference = float("nan")
        if kind != "AIR":
            difference = _largest_difference(
                reference or cell, temporary, kind, inputs, shapes, target
            )
        if difference > tolerance:
            raise UserError(
                f"{target.name} differs from the network by {difference:.2e}, more than the "
                f"tolerance {tolerance:.0e}, and was not written; report the network's layers, or "
                "raise the tolerance if that is accurate enough"
            )
    report = ExportReport(
        path=target,
        file_format=kind,
        max_difference=difference,
        checked_shapes=() if kind == "AIR" else tuple(shapes),
        parameters=count,
        unused_parameters=unused,
        bytes=target.stat().st_size,
        sha256=sha256(target),
    )
    _log(report)
    return report


def _log(report: ExportReport) -> None:
    checked = ", ".join(
        " and ".join("x".join(map(str, shape)) for shape in run) for run in report.checked_shapes
    )
    if report.file_format == "AIR":
        log.info("wrote %s (%d bytes); AIR cannot be verified here", report.path, report.bytes)
    else:
        log.info(
            "wrote %s (%d bytes, %d parameter values), largest difference %.2e over inputs %s",
            report.path,
            report.bytes,
            report.parameters,
            report.max_difference,
            checked,
        )
    if report.unused_parameters:
        log.warning(
            "%d parameters of the network do not influence its outputs and are not in the file: %s",
            len(report.unused_parameters),
            ", ".join(report.unused_parameters),
        )


def _checked_format(file_format: str) -> str:
    kind = file_format.upper()
    if kind not in FORMATS:
        raise UserError(f"file_format {file_format} is not one of {', '.join(FORMATS)}; choose one")
    if kind == "AIR":
        device = ms.get_context("device_target")
        if device != "Ascend":
            raise UserError(
                f"AIR can be exported on Ascend only, and this process runs on {device}; choose "
                "file_format MINDIR or ONNX"
            )
    return kind


def _check_names(cell: Any, names: Sequence[str]) -> None:
    """In a file, inputs and parameters share one space of names."""
    parameters = {parameter.name for parameter in cell.get_parameters()}
    for index, name in enumerate(names):
        if name in parameters or name in names[:index]:
            raise UserError(
                f"input name {name} is taken by a parameter or another input; choose another"
            )


def _with_suffix(path: Path, kind: str) -> Path:
    suffix = f".{kind.lower()}"
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)


def _shapes_to_run(
    inputs: Sequence[ExportInput], sizes: Sequence[Sequence[Shape]] | None
) -> list[tuple[Shape, ...]]:
    """Per run, the shape of every input."""
    if sizes is None:
        proposed = [item.shapes_to_test() for item in inputs]
        runs = [tuple(shapes) for shapes in zip(*proposed, strict=True)]
    else:
        runs = [tuple(tuple(shape) for shape in run) for run in sizes]
    for run in runs:
        for item, shape in zip(inputs, run, strict=True):
            fits = len(shape) == len(item.shape) and all(
                wanted in (None, n) for wanted, n in zip(item.shape, shape, strict=True)
            )
            if not fits:
                raise UserError(f"test shape {shape} does not fit input {item.name} {item.shape}")
    return runs


@contextlib.contextmanager
def evaluation_mode(cell: Any) -> Iterator[None]:
    """Evaluation inside, every cell's own training flag afterwards."""
    flags = [(member, member.training) for _, member in cell.cells_and_names()]
    cell.set_train(False)
    try:
        yield
    finally:
        # Inner cells come later in the list and may differ from the cells around them.
        for member, training in flags:
            member.set_train(training)


def _export_by_mindspore(cell: Any, inputs: Sequence[ExportInput], folder: Path, kind: str) -> Path:
    """Let MindSpore write its format; it appends the suffix itself and makes files read-only."""
    from model_utils.mindir2onnx.mindir import rename_inputs

    network = _Enclosed(cell)
    names = [item.name for item in inputs]
    tensors = []
    for item in inputs:
        dtype = getattr(ms, "bool_" if item.dtype == "bool" else item.dtype)
        tensors.append(
            ms.Tensor(shape=item.shape, dtype=dtype)
            if item.dynamic
            else ms.Tensor(np.zeros(tuple(n or 0 for n in item.shape), item.dtype))
        )
    try:
        if any(item.dynamic for item in inputs):
            network.set_inputs(*tensors)
        # MindSpore would name the inputs inputs0, inputs1 ...
        naming = {"custom_func": lambda model: rename_inputs(model, names)}
        ms.export(
            network,
            *tensors,
            file_name=str(folder / "network"),
            file_format=kind,
            **(naming if kind == "MINDIR" else {}),
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"MindSpore cannot export the network as {kind} with inputs "
            f"{', '.join(str(item.shape) for item in inputs)}: {_first_line(error)}"
        ) from error
    return folder / f"network.{kind.lower()}"


class _Enclosed(nn.Cell):
    """A cell around the network that takes the dynamic shapes, so that the network does not."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # else the network's parameters would be renamed
        self.network = network

    def construct(self, *inputs: Any) -> Any:
        """The network's outputs."""
        return self.network(*inputs)


def _first_line(error: Exception) -> str:
    lines = [line.strip(" -|") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def _account_for_parameters(cell: Any, path: Path, kind: str) -> tuple[int, tuple[str, ...]]:
    """Check that the file holds the network's own values; return their number and the unused."""
    own = {parameter.name: parameter for parameter in cell.get_parameters()}
    stored = _stored_parameters(path, kind, set(own))
    for name, array in stored.items():
        if name not in own:
            raise UserError(f"the exported file holds a parameter {name} the network does not have")
        if not np.array_equal(own[name].asnumpy(), array, equal_nan=array.dtype.kind == "f"):
            raise UserError(f"the export changed parameter {name}; this is a defect, report it")
    unused = tuple(n for n in own if n not in stored and not n.endswith(TRANSIENT))
    return sum(array.size for array in stored.values()), unused


def _stored_parameters(path: Path, kind: str, names: set[str]) -> dict[str, np.ndarray]:
    if kind == "MINDIR":
        from model_utils.mindir2onnx.mindir import read_parameters

        return read_parameters(path)
    import onnx
    from onnx import numpy_helper

    # The model's other initializers are constants of the graph.
    return {
        item.name: numpy_helper.to_array(item)
        for item in onnx.load(path).graph.initializer
        if item.name in names
    }


def _largest_difference(
    reference: Callable[..., Any],
    path: Path,
    kind: str,
    inputs: Sequence[ExportInput],
    runs: Sequence[tuple[Shape, ...]],
    target: Path,
) -> float:
    """Run the file beside the network; differences are relative to outputs larger than one."""
    from model_utils.backends import MindirBackend, MindSporeBackend, OnnxBackend

    rng = np.random.default_rng(20)
    largest = 0.0
    original = MindSporeBackend(reference)
    with MindirBackend(path) if kind == "MINDIR" else OnnxBackend(path) as loaded:
        for run in runs:
            arrays = [item.random(shape, rng) for item, shape in zip(inputs, run, strict=True)]
            expected = original.run(*arrays)
            try:
                computed = loaded.run(*arrays)
            except RuntimeError as error:
                raise UserError(
                    f"{target.name} was exported but does not run with inputs {run}, and was not "
                    f"written: {_first_line(error)}; export it with fixed sizes"
                ) from error
            largest = max(largest, difference(expected, computed))
    return largest


def difference(expected: Sequence[np.ndarray], computed: Sequence[np.ndarray]) -> float:
    """Largest absolute difference over all outputs, each relative to max(1, its magnitude).

    Outputs that differ in number, shape or in where they are not finite are infinitely different.
    Whole numbers, such as the places of largest scores, jump where rounding decides a near tie:
    they count as equal if all but a share of ``TIES`` are, else as infinitely different.
    """
    if len(expected) != len(computed):
        return float("inf")
    largest = 0.0
    for wanted, found in zip(expected, computed, strict=True):
        if wanted.shape != found.shape:
            return float("inf")
        if wanted.dtype.kind in "iub" and found.dtype.kind in "iub":
            if (wanted != found).mean() > TIES:
                return float("inf")
            continue
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        finite = np.isfinite(a)
        same = np.array_equal(finite, np.isfinite(b))
        if not same or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return float("inf")
        if finite.any():
            scale = max(1.0, float(np.abs(a[finite]).max()))
            largest = max(largest, float(np.abs(a[finite] - b[finite]).max()) / scale)
    return largest
