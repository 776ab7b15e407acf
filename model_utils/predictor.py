"""The base of every network's Python API: weights in, a backend that runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from model_utils import checkpoint as checkpoints
from model_utils import runtime
from model_utils.backends import BACKENDS, Backend, choose
from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.files import PathLike, require_file

PredictorT = TypeVar("PredictorT", bound="Predictor")


class Predictor:
    """A trained network to be called from Python.

    Subclasses name their task and turn their network's arrays into results::

        model = SDNet.from_checkpoint("best.ckpt")
        result = model.predict(...)

    Attributes:
        task_class: the network's Task.
        source: the file the weights came from.
        config: the network's configuration.
    """

    task_class: ClassVar[Any]

    def __init__(self, source: Path, config: Any, backend: str, network: Any = None) -> None:
        self.source = source
        self.config = config
        self.requested = backend
        self.network = network
        self._opened: dict[str, Backend] = {}

    @classmethod
    def from_checkpoint(
        cls: type[PredictorT], path: PathLike, backend: str = "auto", config: Any = None
    ) -> PredictorT:
        """Load weights.

        Args:
            path: .ckpt, or an exported .mindir or .onnx.
            backend: auto (the fastest that is installed), mindspore, mindir or onnxruntime.
            config: the configuration the network was trained with; default its class's values.

        Raises:
            UserError: the file is missing, damaged or of another network, or the backend is not
                installed or cannot run it.
        """
        task = cls.task_class()
        settings = config if config is not None else task.config_class()
        source = require_file(path, "network", "give a .ckpt, .mindir or .onnx file")
        if backend not in BACKENDS:
            raise UserError(f"backend {backend} is not one of {', '.join(BACKENDS)}; choose one")
        runtime.cap_convolution_isa()
        if source.suffix.lower() in (".mindir", ".onnx"):
            return cls(source, settings, backend)
        import mindspore as ms

        # Graph mode is three to ten times faster, and a notebook starts in the other one.
        ms.set_context(mode=ms.GRAPH_MODE)
        network = task.build_network(settings, Ranks())
        loaded = checkpoints.load_weights(
            network, source, name=task.name, rename=task.rename_parameter
        )
        checkpoints.compare_settings(loaded, task.settings(settings))
        network.set_train(False)
        return cls(source, settings, backend, network)

    def open(
        self,
        part: str,
        build_cell: Callable[[], Any] | None,
        inputs: list[ExportInput],
        requested: str = "",
    ) -> Backend:
        """The backend that runs a part of the network, opened at its first use.

        Args:
            part: a name to remember it by.
            build_cell: makes the part as a Cell, called at the first use only; None when the
                source is an exported file.
            inputs: its inputs.
            requested: a backend instead of the one this network was opened with.
        """
        if part not in self._opened:
            suffix = self.source.suffix.lower()
            self._opened[part] = choose(
                requested or self.requested,
                build_cell=build_cell,
                mindir=self.source if suffix == ".mindir" else None,
                onnx=self.source if suffix == ".onnx" else None,
                inputs=inputs,
            )
        return self._opened[part]

    def close(self) -> None:
        """Free what the backends hold."""
        for backend in self._opened.values():
            backend.close()
        self._opened.clear()
