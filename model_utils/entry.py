"""The commands behind every network's scripts."""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_utils import checkpoint as checkpoints
from model_utils import config as configuration
from model_utils import runtime
from model_utils.errors import UserError
from model_utils.files import FolderLock, write_json
from model_utils.local_adapter import note_end
from model_utils.logs import duration, start_logging
from model_utils.task import Task
from model_utils.training import BEST_FILE, STATE_FILE, Stopped, Trainer

log = logging.getLogger("zoo")
Job = Callable[[Task, Any, Path], None]


def train(task: Task, argv: Sequence[str] | None = None) -> None:
    """``python train.py``: train, evaluate every few epochs, keep the best weights."""
    command(task, "train", _train, argv)


def evaluate(task: Task, argv: Sequence[str] | None = None) -> None:
    """``python eval.py``: measure a checkpoint on a split."""
    command(task, "eval", _evaluate, argv)


def export(task: Task, argv: Sequence[str] | None = None) -> None:
    """``python export.py``: write MINDIR, AIR or ONNX and compare it with the checkpoint."""
    command(task, "export", _export, argv)


def infer(task: Task, argv: Sequence[str] | None = None) -> None:
    """``python infer.py``: run the network on the user's own inputs."""
    command(task, "infer", _infer, argv)


def convert(task: Task, argv: Sequence[str] | None = None) -> None:
    """``python convert.py``: take over weights trained elsewhere."""
    command(task, "convert", _convert, argv)


def prepare(task: Task, argv: Sequence[str] | None = None) -> None:
    """``python prepare_data.py``: bring a public data set into the form that training reads."""
    command(task, "prepare", _prepare, argv)


def generate(task: Task, argv: Sequence[str] | None = None) -> None:
    """``python generate_data.py``: write a small data set in the public one's format."""
    command(task, "generate", _generate, argv)


def guarded(body: Callable[[], int | None]) -> None:
    """Run a script's body; a UserError becomes one line and status 2."""
    try:
        status = body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
    except Stopped as stopped:
        log.info("%s", stopped)
        status = stopped.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    except BrokenPipeError:
        # The reader of our output, such as head, has seen enough: fine for help only.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0 if {"-h", "--help"} & set(sys.argv) else 128 + signal.SIGPIPE
    note_end(status or 0)
    sys.exit(status or 0)


def load_config(task: Task, command: str, argv: Sequence[str] | None = None) -> Any:
    """The task's configuration from its files and a command line."""
    example = {
        "export": "--checkpoint_path=FILE --file_format=ONNX",
        "convert": "--source=reference.pth",
        "infer": task.infer_example,
        "generate": "--output_path=DATA",
    }
    config = configuration.load(
        task.config_class(),
        sys.argv[1:] if argv is None else argv,
        command=command,
        folders=task.config_folders(),
        default_file=task.default_config,
        describe=f"{task.title}: python {command}.py [--config_path NAME_OR_FILE] [--key=value ...]"
        f"\nExample: python {command}.py {example.get(command, '--data_path=DATA')}"
        f"\nDefault configuration: {task.default_config or 'the values below'}; the defaults below "
        "are its values.",
    )
    if not config.output_path:
        config.output_path = f"outputs/{command}"
    return config


def command(task: Task, name: str, job: Job, argv: Sequence[str] | None = None) -> None:
    """Run a script: configuration, ModelArts where asked for, the job, one sentence on errors.

    Args:
        task: the network's description.
        name: the script's name; selects qualified aliases and the default output folder.
        job: called with task, configuration and output folder.
        argv: the command line; default the process's own.
    """

    def body() -> None:
        start_logging()
        config = load_config(task, name, argv)
        output = Path(config.output_path)
        if name not in ("train", "export", "convert") and (output / STATE_FILE).exists():
            raise UserError(
                f"{output} holds a training run, whose results would be replaced; choose another "
                "--output_path"
            )
        if config.enable_modelarts:
            from model_utils.moxing_adapter import modelarts_job

            with modelarts_job(config):
                job(task, config, Path(config.output_path))
        else:
            job(task, config, output)

    guarded(body)


def _train(task: Task, config: Any, output: Path) -> None:
    started = runtime.start(
        config.device_target, config.seed, config.is_distributed, config.device_id
    )
    ranks = started.ranks
    with FolderLock(output) if ranks.first else contextlib.nullcontext():
        start_logging(ranks.first, output / "train.log")
        trainer = Trainer(task, config, started.device, ranks, output)
        if ranks.first:
            log.info(
                "%s, %s: %d samples, %d steps of %d (%d per device), results in %s",
                time.strftime("%Y-%m-%d %H:%M:%S"),
                task.title,
                trainer.sampler.length,
                trainer.total,
                trainer.sampler.global_batch,
                config.train.batch_size * config.train.accumulate,
                output,
            )
        begun = time.monotonic()
        trainer.run()
        if ranks.first:
            log.info("finished in %s, results in %s", duration(time.monotonic() - begun), output)


def _loaded_network(task: Task, config: Any, ranks: Any) -> tuple[Any, Path]:
    """The network with the weights of checkpoint_path, or of the newest training here."""
    path = Path(config.checkpoint_path or f"outputs/train/{BEST_FILE}")
    if not config.checkpoint_path and not path.is_file():
        raise UserError("no checkpoint given and none in outputs/train; add --checkpoint_path=FILE")
    network = task.build_network(config, ranks)
    loaded = checkpoints.load_weights(network, path, name=task.name, rename=task.rename_parameter)
    checkpoints.compare_settings(loaded, task.settings(config))
    network.set_train(False)
    # SDNet's own wording, which users' log parsers look for.
    log.info("load checkpoint from [%s].", path)
    return network, path


def _evaluate(task: Task, config: Any, output: Path) -> None:
    started = runtime.start(
        config.device_target, config.seed, config.is_distributed, config.device_id
    )
    network, path = _loaded_network(task, config, started.ranks)
    dataset = task.build_dataset(config, config.evaluate.split)
    if dataset is None:
        raise UserError(
            f"there is no split '{config.evaluate.split}' in {config.data.root}; choose another "
            "with --split, or correct --data_path"
        )
    begun = time.monotonic()
    first = started.ranks.first
    metrics = task.evaluate(network, dataset, config, started.ranks, output if first else None)
    if not first:
        return
    for line in task.evaluation_lines(metrics, started.device):
        log.info(line)
    configuration.save(config, output / "config.yaml", "eval")
    write_json(
        output / "metrics.json",
        {
            **metrics,
            "network": task.title,
            "checkpoint": str(path),
            "split": config.evaluate.split,
            "samples": len(dataset),
            "data": config.data.root,
            "seconds": round(time.monotonic() - begun, 2),
            "device": started.device,
        },
    )
    log.info("figures in %s", output / "metrics.json")


def _export(task: Task, config: Any, output: Path) -> None:
    from model_utils.exporting import export as write

    started = runtime.start(config.device_target, config.seed)
    network, source = _loaded_network(task, config, started.ranks)
    cell, output_names = task.export_cell(network, config)
    name = config.export.file_name or task.title
    # A bare name goes to the output folder, as in ModelZoo on ModelArts; a path is a path.
    target = Path(name) if "/" in name else output / name
    report = write(
        cell,
        task.export_inputs(config),
        target,
        config.export.file_format,
        output_names=output_names,
        tolerance=config.export.tolerance,
    )
    figures = vars(report) | {"unused_parameters": len(report.unused_parameters)}
    if config.export.file_format == "AIR":
        figures["max_difference"] = None  # only Ascend's own tools can run it
    write_json(f"{report.path}.json", {**figures, "checkpoint": str(source)})


def _infer(task: Task, config: Any, output: Path) -> None:
    runtime.start(config.device_target, config.seed)
    task.infer(config, output)
    configuration.save(config, output / "config.yaml", "infer")


def _convert(task: Task, config: Any, output: Path) -> None:
    from model_utils.converting import convert as run

    runtime.start("CPU", config.seed)
    run(task, config)


def _prepare(task: Task, config: Any, output: Path) -> None:
    task.prepare(config, output)
    configuration.save(config, output / "config.yaml", "prepare_data")


def _generate(task: Task, config: Any, output: Path) -> None:
    task.generate(output, config.seed)
    log.info("generated data in %s", output)
