"""How a network describes itself to the engine; see docs/architecture.md."""

import abc
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from model_utils.config import group, key
from model_utils.data import Dataset
from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.optimizers import OptimizerConfig
from model_utils.torch_counterpart import pytorch_name
from model_utils.training import Epoch, TrainConfig

if TYPE_CHECKING:
    from model_utils.exporting import ExportInput


@dataclass
class DataConfig:
    """Keys of the data; networks add their own."""

    root: str = key("", "folder of the data set", "data_path", "dataroot", "dataset_path")
    workers: int = key(
        2, "readers running ahead of the device; 0 reads in step", "num_parallel_workers", minimum=0
    )
    worker_kind: str = key(
        "thread", "process where samples are made by Python code", choices=("thread", "process")
    )


@dataclass
class EvaluateConfig:
    """Keys of eval.py."""

    split: str = key("test", "part of the data to measure", "split")
    batch_size: int = key(
        16, "samples at once", "test_batch_size", "eval:batch_size", "eval_batch_size", minimum=1
    )
    pictures: int = key(8, "how many samples to draw", "pictures", minimum=0)


@dataclass
class ExportConfig:
    """Keys of export.py."""

    file_name: str = key("", "name of the file without suffix; empty is the network's", "file_name")
    file_format: str = key(
        "MINDIR", "what to write", "file_format", choices=("MINDIR", "AIR", "ONNX")
    )
    batch_size: int = key(1, "samples at once; 0 is any number", "export:batch_size", minimum=0)
    height: int = key(0, "rows of the input; 0 is any or the only size", "export:height", minimum=0)
    width: int = key(0, "columns of the input; 0 likewise", "export:width", minimum=0)
    tolerance: float = key(1e-4, "largest difference from the checkpoint, of max(1, |value|)")


@dataclass
class InferConfig:
    """Keys of infer.py; networks add their inputs."""

    backend: str = key(
        "auto",
        "what runs the network; auto is the fastest installed",
        "backend",
        choices=("auto", "mindspore", "mindir", "onnxruntime", "openvino-bf16"),
    )
    batch_size: int = key(32, "samples at once", "infer:batch_size", minimum=1)


@dataclass
class ConvertConfig:
    """Keys of convert.py."""

    source: str = key("", "weights elsewhere: .pth .pt .tar .ckpt .npz .safetensors .pkl", "source")
    output: str = key("", "the file to write", "output")
    reverse: bool = key(False, "from our names to the reference's", "reverse")
    allow_unused: bool = key(False, "accept tensors that no parameter takes", "allow_unused")
    allow_missing: bool = key(False, "accept parameters that no tensor fills", "allow_missing")


@dataclass
class Config:
    """What every network's configuration holds; ``research/<net>/src/config.py`` extends it."""

    device_target: str = key(
        "auto", "device", "device_target", "device", choices=("auto", "Ascend", "GPU", "CPU")
    )
    device_id: int = key(-1, "card of this process; -1 reads DEVICE_ID", minimum=-1)
    is_distributed: bool = key(
        False, "one of several processes started by a launcher", "run_distribute", "distribute"
    )
    seed: int = key(0, "of every random choice", minimum=0, maximum=2**31 - 1)
    output_path: str = key(
        "", "folder of all results; empty is outputs/<command> here", "ckpt_save_dir", "save_dir"
    )
    checkpoint_path: str = key(
        "",
        "weights to start from or to use",
        "ckpt_file",
        "ckpt_path",
        "checkpoint_file_path",
        "checkpoint",
        "load_path",
        "pretrained",
    )
    enable_modelarts: bool = key(
        False, "run as a ModelArts job", "modelArts_mode", "is_modelarts", environment=True
    )
    data_url: str = key("", "ModelArts: where the data is", environment=True)
    train_url: str = key("", "ModelArts: where results go", environment=True)
    checkpoint_url: str = key("", "ModelArts: weights to fetch", "ckpt_url", environment=True)
    data: DataConfig = group(DataConfig)
    train: TrainConfig = group(TrainConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    evaluate: EvaluateConfig = group(EvaluateConfig)
    export: ExportConfig = group(ExportConfig)
    infer: InferConfig = group(InferConfig)
    convert: ConvertConfig = group(ConvertConfig)

    # Flags of other implementations: further spellings of keys of the shared groups, name -> key;
    # switches that stand for a value, name -> (key, value); those without effect, name -> why.
    SPELLINGS: ClassVar[Mapping[str, str]] = {}
    SWITCHES: ClassVar[Mapping[str, tuple[str, str]]] = {}
    LEGACY: ClassVar[Mapping[str, str]] = {}


@dataclass(frozen=True)
class Step:
    """One command of a quick start.

    Attributes:
        title: what it does, for the log and the page.
        script: file in the network's folder.
        arguments: its command line.
        results: folder it writes; its figures and pictures go onto the page.
        resumable: the script takes --resume and --overwrite; it resumes what the same command
            began, and replaces what another one left.
    """

    title: str
    script: str
    arguments: tuple[str, ...]
    results: str
    resumable: bool = False


@dataclass(frozen=True)
class QuickStart:
    """The steps that quick starts consist of.

    Attributes:
        folder: of all results.
        data: what is trained and measured on.
        config: flags of the configuration.
        trained: the same of commands after evaluation, where a checkpoint knows its own.
    """

    folder: Path
    data: Path
    config: tuple[str, ...] = ("--config_path=quickstart",)
    trained: tuple[str, ...] = ("--config_path=quickstart",)

    def generate(self, title: str, data: Path) -> Step:
        """Generated data in the public one's format, into ``data``."""
        return Step(title, "generate_data.py", (f"--output_path={data}",), data.name)

    def prepare(self, title: str, script: str, source: Path) -> Step:
        """Training data made of what lies in ``source``."""
        flags = (f"--data_path={source}", f"--output_path={self.data}")
        return Step(title, script, (*self.config, *flags), self.data.name)

    def train(self) -> Step:
        """The training, which a later run resumes."""
        flags = (f"--data_path={self.data}", f"--output_path={self.folder / 'train'}")
        return Step("train", "train.py", (*self.config, *flags), "train", resumable=True)

    def evaluate(self) -> Step:
        """Measuring the best checkpoint."""
        flags = (*self.config, f"--data_path={self.data}")
        return self._use("evaluate", "eval.py", "eval", flags)

    def export(self, title: str, file_format: str, *flags: str) -> Step:
        """Writing the best checkpoint as MINDIR or ONNX."""
        flags = (f"--file_format={file_format}", *flags)
        return self._use(title, "export.py", file_format.lower(), self.trained, flags)

    def infer(self, title: str, *flags: str) -> Step:
        """Using the best checkpoint on images."""
        return self._use(title, "infer.py", "infer", self.trained, flags)

    def _use(
        self,
        title: str,
        script: str,
        results: str,
        config: tuple[str, ...],
        flags: tuple[str, ...] = (),
    ) -> Step:
        weights = f"--checkpoint_path={self.folder / 'train' / 'best.ckpt'}"
        output = f"--output_path={self.folder / results}"
        return Step(title, script, (*config, weights, *flags, output), results)


def require_batch_statistics(config: Config, ranks: Ranks, otherwise: str = "") -> None:
    """Refuse batches of one image for networks that pool over whole images.

    Args:
        config: the configuration.
        ranks: which share their statistics with ``train.sync_batch_norm``.
        otherwise: another remedy than larger batches, with a comma before it.

    Raises:
        UserError: normalisation would see a single value per channel.
    """
    together = ranks.size if config.train.sync_batch_norm else 1
    if config.train.batch_size * together < 2:
        raise UserError(
            "train.batch_size=1: globally pooled features of one image have no batch "
            f"statistics; take batches of at least 2{otherwise}"
        )


class Task(abc.ABC):
    """A network's description. Subclasses live in ``research/<net>/src/task.py``."""

    name: ClassVar[str]
    """Folder name, also noted in checkpoints."""
    title: ClassVar[str]
    """As the paper writes it."""
    loss_names: ClassVar[Sequence[str]] = ("loss",)
    """What the train cell returns, in order; the first is minimised."""
    config_class: ClassVar[type[Config]] = Config
    default_config: ClassVar[str | None] = None
    """Name of the YAML file used without --config_path; None for the built-in values."""
    infer_example: ClassVar[str] = "--checkpoint_path=FILE"
    """A command line of infer.py, for its help."""
    reference_prefixes: ClassVar[Sequence[str]] = ()
    """What the reference implementation's wrappers put before parameter names."""
    reference_unused: ClassVar[str] = ""
    """Regular expression of tensors its checkpoints hold and its network never uses."""

    @property
    def folder(self) -> Path:
        """The network's folder, research/<net>."""
        module = sys.modules[type(self).__module__]
        return Path(str(module.__file__)).resolve().parents[1]

    def config_folders(self) -> list[Path]:
        """Where configuration names are looked up: the network's own folder, then the shared."""
        shared = Path(__file__).resolve().parents[1] / "configs"
        return [self.folder / "configs", shared / self.name, shared]

    # -- training -----------------------------------------------------------------------------

    @abc.abstractmethod
    def build_network(self, config: Any, ranks: Ranks) -> Any:
        """The Cell whose parameters are the published ones, freshly initialised."""

    @abc.abstractmethod
    def build_train_cell(self, network: Any, config: Any, ranks: Ranks) -> Any:
        """A Cell from one batch to the scalar losses named by ``loss_names``."""

    @abc.abstractmethod
    def build_dataset(self, config: Any, split: str) -> Any:
        """The data of a split (``train``, ``val``, ``test``), or None where there is none."""

    def validation_split(self, config: Any) -> str:
        """The split that training evaluates on."""
        return "val"

    def train_inputs(self, batch: tuple[np.ndarray, ...]) -> Sequence[np.ndarray]:
        """The parts of a batch that the train cell takes."""
        return batch

    def parameter_groups(self, network: Any, config: Any) -> list[dict[str, Any]]:
        """Optimizer groups: "params" and optionally "weight_decay", "lr_scale"."""
        return [{"params": network.trainable_params()}]

    # -- evaluation ---------------------------------------------------------------------------

    @abc.abstractmethod
    def evaluate(
        self,
        network: Any,
        dataset: Dataset,
        config: Any,
        ranks: Ranks,
        output: Path | None = None,
    ) -> dict[str, Any]:
        """Metrics over a data set, the same on every rank.

        Args:
            network: in evaluation mode.
            dataset: of ``build_dataset``.
            config: the configuration.
            ranks: this process's place; every sample is measured once over all ranks.
            output: folder for predictions and pictures; None while training.
        """

    def better(self, metrics: Mapping[str, Any]) -> float | None:
        """The number by which the best checkpoint is chosen; larger is better."""
        return None

    # -- logs ---------------------------------------------------------------------------------

    def checkpoint_name(self, epoch: int) -> str:
        """File name of an epoch's weights."""
        return f"checkpoint_{self.title}_{epoch}.ckpt"

    def epoch_line(self, epoch: Epoch) -> str:
        """ModelZoo's line at the end of an epoch."""
        loss = next(iter(epoch.losses.values()))
        per_step = epoch.seconds / max(1, epoch.steps) * 1000
        return (
            f"epoch:{epoch.number} step:{epoch.steps}, loss is {loss:.6g}\n"
            f"epoch time: {epoch.seconds * 1000:.3f} ms, per step time: {per_step:.3f} ms"
        )

    def metrics_line(self, metrics: Mapping[str, Any]) -> str:
        """One line of figures."""
        numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
        return "evaluation: " + ", ".join(f"{k} {v:.6g}" for k, v in numbers.items())

    def evaluation_lines(self, metrics: Mapping[str, Any], device: str) -> list[str]:
        """What eval.py prints."""
        return [self.metrics_line(metrics)]

    # -- export, conversion, inference --------------------------------------------------------

    @abc.abstractmethod
    def export_inputs(self, config: Any) -> "list[ExportInput]":
        """Named inputs of the exported network; None stands for a dynamic axis."""

    @abc.abstractmethod
    def export_cell(self, network: Any, config: Any) -> tuple[Any, list[str]]:
        """The Cell to export and the names of its outputs."""

    def settings(self, config: Any) -> dict[str, Any]:
        """What changes the network's results but no parameter's shape, by key.

        Noted in checkpoints, since other values would silently give other results.
        """
        return {}

    def rename_parameter(self, name: str) -> str:
        """This network's name of a parameter in checkpoints of other MindSpore implementations."""
        return name

    def reference_names(self, network: Any, config: Any) -> dict[str, str]:
        """This network's parameter names to those of the reference implementation.

        Unless overridden PyTorch's: other suffixes of batch normalisation, all else alike.
        """
        return {p.name: pytorch_name(p.name) for p in network.get_parameters()}

    @abc.abstractmethod
    def infer(self, config: Any, output: Path) -> None:
        """Run the network on the user's own inputs and write results and pictures."""

    def prepare(self, config: Any, output: Path) -> None:
        """prepare_data.py: bring a public data set into the form that training reads."""
        raise UserError(f"{self.title} reads its public data as it is; there is nothing to prepare")

    # -- generated data -----------------------------------------------------------------------

    @abc.abstractmethod
    def generate(self, folder: Path, seed: int) -> None:
        """Write a small data set in the true on-disk format of the public one."""

    @abc.abstractmethod
    def quickstart(self, folder: Path) -> list[Step]:
        """The commands that scripts/quickstart.sh runs, results below ``folder``."""


def known_networks() -> list[str]:
    """Folders of research/ that hold a network."""
    research = Path(__file__).resolve().parents[1] / "research"
    return sorted(path.parents[1].name for path in research.glob("*/src/task.py"))


def find_task(network: str) -> Task:
    """The task of a network by its folder's name.

    Raises:
        UserError: there is no such network.
    """
    if network not in known_networks():
        raise UserError(f"there is no network '{network}'; known: {', '.join(known_networks())}")
    module = importlib.import_module(f"research.{network}.src.task")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
    ]
    return found[0]()
