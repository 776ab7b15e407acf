"""One way to run a network: MindSpore, a MINDIR file, ONNX Runtime, OpenVINO in half precision."""

import contextlib
import hashlib
import importlib.util
import inspect
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, require_file

if TYPE_CHECKING:
    from model_utils.exporting import ExportInput

log = logging.getLogger("zoo")

# "auto" never takes the last one: twice as fast where it runs, but only three decimals exact.
BACKENDS = ("auto", "mindspore", "mindir", "onnxruntime", "openvino-bf16")

# Part of the cache key: raise it when exported files change for the same network.
_CACHE_VERSION = 3
# Attributes in which MindSpore keeps the state of its compilation, not the network's.
_COMPILER_STATE = {"training", "arguments_key", "current_phase", "sequence_modified"}


@dataclass(frozen=True)
class _FileInput:
    """What a file says about one of its inputs; None for a length that may vary."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None


class Backend(ABC):
    """Something that runs a network on arrays.

    Attributes:
        name: "mindspore", "mindir", "onnxruntime" or "openvino-bf16".
    """

    name: str

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """Shape of the first input of an exported file, None for lengths that may vary."""
        return None

    @property
    def batch_size(self) -> int | None:
        """Samples the network takes at once, where a file was exported for one number only."""
        return self.input_shape[0] if self.input_shape else None

    @abstractmethod
    def run(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute all outputs for one batch of inputs.

        Raises:
            UserError: number, type or shape of the inputs do not fit the file.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what it holds; it cannot run afterwards."""

    def __enter__(self) -> "Backend":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class MindSporeBackend(Backend):
    """A network as a MindSpore Cell, set to evaluation, in the mode that is in force.

    Args:
        cell: the network, or any function of MindSpore tensors.
    """

    name = "mindspore"

    def __init__(self, cell: Callable[..., Any]) -> None:
        self._cell: Callable[..., Any] | None = cell
        if hasattr(cell, "set_train"):
            cell.set_train(False)

    def run(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute all outputs; nested tuples come out flat, in order."""
        if self._cell is None:
            raise UserError("this backend was closed; open it again")
        return _run_tensors(self._cell, arrays)

    def close(self) -> None:
        """Let go of the network."""
        self._cell = None


class MindirBackend(Backend):
    """A MINDIR file run by MindSpore.

    MindSpore runs a file exported with fixed shapes on any other shape without complaint, with
    sizes of the old shape baked in; this class refuses that.

    Args:
        path: the file.
    """

    name = "mindir"

    def __init__(self, path: PathLike) -> None:
        import mindspore as ms
        from mindspore import nn

        from model_utils.mindir2onnx import read_inputs

        self._path = require_file(path, "MINDIR file")
        declared = read_inputs(path)
        self._inputs = [_FileInput(name, kind.dtype, kind.shape) for name, kind in declared.items()]
        try:
            self._cell: Any = nn.GraphCell(ms.load(str(self._path)))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"MindSpore cannot load {path}; export it again") from error

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """Of the first input; None for lengths that may vary."""
        return self._inputs[0].shape

    def run(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute all outputs; nested tuples come out flat, in order."""
        if self._cell is None:
            raise UserError("this backend was closed; open it again")
        return _run_tensors(self._cell, _fitting(arrays, self._inputs, self._path))

    def close(self) -> None:
        """Free the loaded graph."""
        self._cell = None


class OnnxBackend(Backend):
    """An ONNX file run by ONNX Runtime on the CPU, with all graph optimisations.

    Args:
        path: the file.
        threads: threads within an operator; 0 uses every core.
    """

    name = "onnxruntime"

    def __init__(self, path: PathLike, threads: int = 0) -> None:
        runtime = _import_onnxruntime()
        self._path = require_file(path, "ONNX file")
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        try:
            self._session: Any = runtime.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )
        except _onnxruntime_errors() as error:
            raise UserError(
                f"{path} is not an ONNX file that ONNX Runtime can run; export it again"
            ) from error
        self._inputs = [
            _FileInput(
                item.name,
                _onnx_dtype(item.type),
                tuple(n if isinstance(n, int) else None for n in item.shape),
            )
            for item in self._session.get_inputs()
        ]

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """Of the first input; None for lengths that may vary."""
        return self._inputs[0].shape

    def run(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute all outputs in the file's order."""
        if self._session is None:
            raise UserError("this backend was closed; open it again")
        fitting = _fitting(arrays, self._inputs, self._path)
        fed = {item.name: array for item, array in zip(self._inputs, fitting, strict=True)}
        try:
            return tuple(self._session.run(None, fed))
        except _onnxruntime_errors() as error:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise UserError(
                f"{self._path} does not run on inputs of shape {shapes}: {_first_line(error)}"
            ) from error

    def close(self) -> None:
        """Free the session."""
        self._session = None


class OpenVinoBackend(Backend):
    """An ONNX file run by OpenVINO, which multiplies in bfloat16 and adds in float32.

    For processors that have such instructions (AVX-512 BF16, AMX); twice as fast there as float32,
    and outputs are off by about 0.5 % of their largest magnitude. In float32 OpenVINO is no
    faster than ONNX Runtime.

    Args:
        path: the file.
        threads: processors to use; 0 uses all.

    Raises:
        UserError: OpenVINO is not installed, the processor lacks the instructions, or OpenVINO
            cannot read the file.
    """

    name = "openvino-bf16"
    # Every shape of the inputs is compiled anew; the oldest beyond this number is forgotten.
    _KEPT = 4

    def __init__(self, path: PathLike, threads: int = 0) -> None:
        openvino = _import_openvino()
        self._path = require_file(path, "ONNX file")
        with _without_isa_cap():
            core = openvino.Core()
            capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in capabilities:
            raise UserError(
                "backend openvino-bf16 is not possible (the processor has no bfloat16 "
                "instructions); use backend onnxruntime"
            )
        try:
            model = core.read_model(self._path)
        except RuntimeError as error:
            raise UserError(
                f"{path} is not an ONNX file that OpenVINO can run; export it again"
            ) from error
        self._core: Any = core
        self._model: Any = model
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._inputs = [
            _FileInput(
                item.get_any_name(),
                np.dtype(item.get_element_type().to_dtype()),
                tuple(n.get_length() if n.is_static else None for n in item.get_partial_shape()),
            )
            for item in model.inputs
        ]

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """Of the first input; None for lengths that may vary."""
        return self._inputs[0].shape

    def run(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute all outputs in the file's order; the first time at a shape compiles."""
        if self._core is None:
            raise UserError("this backend was closed; open it again")
        fitting = _fitting(arrays, self._inputs, self._path)
        key = tuple(array.shape for array in fitting)
        if key not in self._compiled:
            if len(self._compiled) == self._KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._model.reshape(
                {item.name: list(shape) for item, shape in zip(self._inputs, key, strict=True)}
            )
            compiled = self._core.compile_model(self._model, "CPU", self._settings)
            self._compiled[key] = compiled.create_infer_request()
        result = self._compiled[key].infer(list(fitting))
        return tuple(np.array(result[index]) for index in range(len(result)))

    def close(self) -> None:
        """Free what was compiled."""
        self._core = self._model = None
        self._compiled.clear()


def choose(
    requested: str,
    *,
    cell: Any = None,
    build_cell: Callable[[], Any] | None = None,
    mindir: PathLike | None = None,
    onnx: PathLike | None = None,
    inputs: "Sequence[ExportInput]" = (),
    cache_dir: PathLike | None = None,
    threads: int = 0,
) -> Backend:
    """Open the backend asked for, from whatever form of the network is at hand.

    ``auto`` takes the fastest: on an accelerator MindSpore, on a CPU ONNX Runtime if it is
    installed and the network translates, else MindSpore. Which and why is logged. A file that a
    backend needs and that is not given is exported once, verified, into the cache.

    Args:
        requested: auto, mindspore, mindir, onnxruntime or openvino-bf16.
        cell: the network as a Cell with its weights.
        build_cell: makes that Cell, called only when it is needed.
        mindir: a MINDIR file of the network.
        onnx: an ONNX file of the network.
        inputs: its inputs, for exporting.
        cache_dir: where exported files are kept; ~/.cache/mindspore-eo-zoo by default.
        threads: threads of ONNX Runtime or OpenVINO; 0 uses every core.

    Raises:
        UserError: an unknown name, or a backend asked for by name that is not possible.
    """
    if requested not in BACKENDS:
        raise UserError(f"backend {requested} is not one of {', '.join(BACKENDS)}; choose one")
    sources = _Sources(cell, build_cell, mindir, onnx, inputs, _cache_folder(cache_dir), threads)
    if requested == "auto":
        return _fastest(sources)
    opened = {
        "mindspore": sources.open_mindspore,
        "mindir": sources.open_mindir,
        "onnxruntime": sources.open_onnxruntime,
        "openvino-bf16": sources.open_openvino,
    }[requested]()
    log.info("inference runs on %s, as asked for", opened.name)
    return opened


@dataclass
class _Sources:
    """The forms of a network that are at hand, and the backends they make possible."""

    cell: Any
    build_cell: Callable[[], Any] | None
    mindir: PathLike | None
    onnx: PathLike | None
    inputs: "Sequence[ExportInput]"
    cache: Path
    threads: int

    @property
    def has_cell(self) -> bool:
        return self.cell is not None or self.build_cell is not None

    def network(self, backend: str) -> Any:
        """The Cell, built at its first use."""
        if self.cell is None:
            if self.build_cell is None:
                raise UserError(
                    f"backend {backend} needs a checkpoint of the network; give one, or choose "
                    "the backend of the file at hand"
                )
            self.cell = self.build_cell()
        return self.cell

    def open_mindspore(self) -> Backend:
        return MindSporeBackend(self.network("mindspore"))

    def open_mindir(self) -> Backend:
        if self.mindir is not None:
            return MindirBackend(self.mindir)
        return MindirBackend(self._exported("mindir", "MINDIR"))

    def open_onnxruntime(self) -> Backend:
        _import_onnxruntime()
        return OnnxBackend(self._onnx_file("onnxruntime"), self.threads)

    def open_openvino(self) -> Backend:
        _import_openvino()
        return OpenVinoBackend(self._onnx_file("openvino-bf16"), self.threads)

    def _onnx_file(self, backend: str) -> PathLike:
        if self.onnx is not None:
            return self.onnx
        if self.mindir is not None:
            return self._translated(self.mindir)
        return self._exported(backend, "ONNX")

    def _exported(self, backend: str, file_format: str) -> Path:
        """The network's file in the cache, written now if it is not there."""
        from model_utils.exporting import export

        cell = self.network(backend)
        key = _network_key(cell, self.inputs)
        path = self.cache / f"{type(cell).__name__}-{key}.{file_format.lower()}"
        if path.is_file():
            log.info("using %s, exported earlier from the same weights", path)
        else:
            log.info("exporting the network once to %s", path)
            export(_faster(cell, self.inputs), self.inputs, path, file_format, reference=cell)
        return path

    def _translated(self, mindir: PathLike) -> Path:
        """The ONNX form of a MINDIR file, in the cache."""
        from model_utils.files import sha256
        from model_utils.mindir2onnx import convert

        source = require_file(mindir, "MINDIR file")
        path = self.cache / f"{source.stem}-v{_CACHE_VERSION}-{sha256(source)[:20]}.onnx"
        if not path.is_file():
            log.info("translating %s once to %s", source, path)
            convert(source, path)
        return path


def _faster(cell: Any, inputs: "Sequence[ExportInput]") -> Any:
    """The network with BatchNorm folded into its convolutions, for files only backends read."""
    from model_utils.folding import folded_or_same

    if any(item.dtype != "float32" for item in inputs):
        return cell
    return folded_or_same(cell, *(item.shapes_to_test()[0] for item in inputs))


def _fastest(sources: _Sources) -> Backend:
    reasons: list[str] = []
    accelerator = _accelerator() if sources.has_cell else ""
    if accelerator:
        log.info("inference runs on mindspore: the process uses the %s", accelerator)
        return sources.open_mindspore()
    if importlib.util.find_spec("onnxruntime") is None:
        reasons.append("onnxruntime is not installed")
    elif sources.onnx is not None or sources.mindir is not None or sources.has_cell:
        try:
            backend = sources.open_onnxruntime()
        except UserError as error:
            if not sources.has_cell and sources.mindir is None:
                raise
            reasons.append(f"onnxruntime is not possible ({error})")
        else:
            log.info("inference runs on onnxruntime, the fastest on this CPU")
            return backend
    if sources.has_cell:
        backend = sources.open_mindspore()
    elif sources.mindir is not None:
        backend = sources.open_mindir()
    else:
        raise UserError(
            f"there is nothing to run ({'; '.join(reasons) or 'no network was given'}); give a "
            "checkpoint, a MINDIR or an ONNX file"
        )
    log.warning("inference runs on %s: %s", backend.name, "; ".join(reasons))
    return backend


def _accelerator() -> str:
    """Name of the accelerator MindSpore runs on, or ""."""
    import mindspore as ms

    device = ms.get_context("device_target")
    return "" if device == "CPU" else device


def _cache_folder(given: PathLike | None) -> Path:
    if given is not None:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mindspore-eo-zoo"


def _network_key(cell: Any, inputs: "Sequence[ExportInput]") -> str:
    """A digest of everything that decides what an exported file computes.

    That is the weights, the kinds and settings of all layers, their source code, the inputs and
    the framework's version.
    """
    import mindspore as ms

    digest = hashlib.sha256(f"{_CACHE_VERSION} {ms.__version__}".encode())
    for item in inputs:
        digest.update(f"{item.name} {item.shape} {item.dtype}".encode())
    modules: set[str] = set()
    for name, member in cell.cells_and_names():
        kind = type(member)
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__}".encode())
        modules.add(kind.__module__)
        for key, value in sorted(vars(member).items()):
            if not key.startswith("_") and key not in _COMPILER_STATE:
                digest.update(f"{key}={_setting(value)}".encode())
            if inspect.isfunction(value):
                modules.add(value.__module__)
    for name in sorted(modules):
        # Whole files: layers also call functions that are defined beside them.
        if not name.startswith("mindspore."):
            digest.update(inspect.getsource(sys.modules[name]).encode())
    for parameter in cell.get_parameters():
        digest.update(f"{parameter.name} {parameter.shape} {parameter.dtype}".encode())
        digest.update(np.ascontiguousarray(parameter.asnumpy()).tobytes())
    return digest.hexdigest()[:20]


def _setting(value: Any) -> str:
    """A layer's attribute as text that is the same in every process; "" for other objects."""
    import mindspore as ms

    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return ", ".join(_setting(item) for item in value)
    if isinstance(value, ms.Tensor):
        return hashlib.sha256(value.asnumpy().tobytes()).hexdigest()
    if inspect.isfunction(value):
        return value.__qualname__
    return str(value) if isinstance(value, ms.ops.Primitive) else ""


def _run_tensors(
    function: Callable[..., Any], arrays: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...]:
    import mindspore as ms

    result = function(*[ms.Tensor(np.ascontiguousarray(array)) for array in arrays])
    return tuple(_flat_arrays(result))


def _flat_arrays(result: Any) -> list[np.ndarray]:
    if isinstance(result, tuple | list):
        return [array for item in result for array in _flat_arrays(item)]
    return [result.asnumpy() if hasattr(result, "asnumpy") else np.asarray(result)]


def _fitting(
    arrays: Sequence[np.ndarray], inputs: Sequence[_FileInput], path: Path
) -> list[np.ndarray]:
    """The arrays in the file's element types, if they are what the file takes.

    Raises:
        UserError: they are not; names the file, the input and both shapes.
    """
    if len(arrays) != len(inputs):
        names = ", ".join(item.name for item in inputs)
        raise UserError(f"{path} takes {len(inputs)} inputs ({names}), not {len(arrays)}")
    fitting = []
    for array, item in zip(arrays, inputs, strict=True):
        fits = item.shape is None or (
            len(array.shape) == len(item.shape)
            and all(wanted in (None, n) for wanted, n in zip(item.shape, array.shape, strict=True))
        )
        if not fits:
            raise UserError(
                f"input {item.name} has shape {array.shape}, but {path} was exported for "
                f"{_shown(item.shape)}; feed that shape or export again with dynamic axes"
            )
        if not np.can_cast(array.dtype, item.dtype, "same_kind"):
            raise UserError(
                f"input {item.name} has type {array.dtype}, but {path} takes {item.dtype}; "
                "convert it"
            )
        fitting.append(np.ascontiguousarray(array, item.dtype))
    return fitting


def _shown(shape: Sequence[int | None] | None) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape or ()) + ")"


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"backend onnxruntime is not possible ({error}); pip install onnxruntime"
        ) from error
    return onnxruntime


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            f"backend openvino-bf16 is not possible ({error}); pip install openvino"
        ) from error
    return openvino


@contextlib.contextmanager
def _without_isa_cap() -> Iterator[None]:
    """Hide the cap on instruction sets that MindSpore's oneDNN needs from OpenVINO's.

    OpenVINO's has no bfloat16 under it. Each library reads the variable once, at its first use.
    """
    cap = os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    try:
        yield
    finally:
        if cap is not None:
            os.environ["ONEDNN_MAX_CPU_ISA"] = cap


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NotImplemented,
        state.RuntimeException,
    )


def _onnx_dtype(name: str) -> np.dtype:
    """NumPy type of ONNX Runtime's "tensor(float)" and the like."""
    element = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(element, element))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
