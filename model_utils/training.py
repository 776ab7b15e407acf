"""The training engine: one compiled step, and the loop around it that survives being killed."""

import contextlib
import logging
import math
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from model_utils import checkpoint as checkpoints
from model_utils import config as configuration
from model_utils.config import key
from model_utils.data import Dataset, EpochSampler, Loader
from model_utils.distributed import Ranks, SyncBatchNorm, agree, synchronize_batch_norm
from model_utils.errors import UserError
from model_utils.files import read_json, write_json
from model_utils.logs import Progress, Scalars, Table, duration
from model_utils.optimizers import build_optimizer
from model_utils.schedules import learning_rates

log = logging.getLogger("zoo")
STATE_FILE = "state.ckpt"
BEST_FILE = "best.ckpt"


@dataclass
class TrainConfig:
    """Keys of the training loop."""

    epochs: float = key(1.0, "passes over the training data", "epochs", minimum=1e-6)
    batch_size: int = key(8, "samples per step on one device", "batch_size", minimum=1)
    accumulate: int = key(1, "batches whose gradients make one update", minimum=1)
    shuffle: bool = key(True, "new order of the samples every epoch")
    resume: bool = key(False, "go on where the run in output_path stopped", "resume")
    overwrite: bool = key(False, "replace the run that output_path holds", "overwrite")
    sync_batch_norm: bool = key(True, "batch statistics over all devices")
    ema_decay: float = key(
        0.0, "decay of the moving average of the weights; 0 keeps none", minimum=0, below=1
    )
    amp_level: str = key(
        "auto",
        "mixed precision: auto is O2 on Ascend and O0 (none) elsewhere",
        "amp_level",
        choices=("auto", "O0", "O1", "O2", "O3"),
    )
    loss_scale: float = key(1024.0, "initial loss scale under mixed precision", "loss_scale")
    evaluate_every: int = key(1, "epochs between evaluations; 0 never", minimum=0)
    keep_last: int = key(5, "newest epoch checkpoints to keep; 0 keeps all", minimum=0)
    save_minutes: float = key(10.0, "minutes between training states", minimum=0)
    save_steps: int = key(0, "steps between training states; 0 goes by minutes", minimum=0)
    stop_after_steps: int = key(
        0, "stop at this step with the state saved, as if pre-empted; 0 never", minimum=0
    )
    tensorboard: bool = key(True, "write event files if tensorboardX is installed")


class TrainStep(nn.Cell):
    """Forward, loss, gradient, all-reduce, clip and update as one graph.

    Args:
        cell: takes a batch, returns a tuple of scalar losses; the first is minimised.
        optimizer: a MindSpore optimizer over the trainable parameters.
        ranks: this process's place; gradients are averaged over all.
        clip_norm: largest global norm of the averaged gradient; 0 does not clip.
        accumulate: batches per update; ``add`` takes all but the last of them.
        ema_decay: decay of the moving average of the weights; 0 keeps none.
        loss_scale: 0, or the initial scale of the loss under float16; then a step whose
            gradients overflow leaves the weights as they are and halves the scale.
    """

    def __init__(
        self,
        cell: nn.Cell,
        optimizer: nn.Optimizer,
        ranks: Ranks,
        clip_norm: float = 0.0,
        accumulate: int = 1,
        ema_decay: float = 0.0,
        loss_scale: float = 0.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.hyper_map = ops.HyperMap()
        self.cell = cell
        self.optimizer = optimizer
        self.weights = optimizer.parameters
        self.clip_norm = clip_norm
        self.accumulate = accumulate
        self.ema_decay = ema_decay
        self.gradients_of = ms.value_and_grad(self.forward, None, self.weights, has_aux=True)
        self.averages = self.weights.clone("ema", "same") if ema_decay else None
        self.sums = self.weights.clone("accumulated", "zeros") if accumulate > 1 else None
        self.reducer = (
            nn.DistributedGradReducer(self.weights, mean=True, degree=ranks.size)
            if ranks.size > 1
            else None
        )
        self.sum_ranks = ops.AllReduce() if ranks.size > 1 else None
        self.size = ranks.size
        self.scaler = ms.amp.DynamicLossScaler(loss_scale, 2, 1000) if loss_scale else None

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """(what is differentiated, all losses stacked)."""
        losses = self.cell(*batch)
        values = ops.stack([ops.cast(value, ms.float32) for value in losses])
        scaled = losses[0] if self.scaler is None else self.scaler.scale(losses[0])
        return scaled, ops.stop_gradient(values)

    def construct(self, stop: Tensor, *batch: Tensor) -> Tensor:
        """One update.

        Args:
            stop: float32 (1,), 1 where this rank was asked to stop.
            batch: the cell's inputs.

        Returns:
            float32 (1 + losses,): how many ranks were asked to stop, then the losses, averaged
            over ranks.
        """
        (_, values), gradients = self.gradients_of(*batch)
        if self.sums is not None:
            gradients = self.hyper_map(ops.add, gradients, self.sums)
            gradients = self.hyper_map(ops.partial(_scale, 1.0 / self.accumulate), gradients)
            values = ops.depend(values, self.hyper_map(_zero, self.sums))
        if self.scaler is not None:
            gradients = self.scaler.unscale(gradients)
        if self.reducer is not None:
            gradients = self.reducer(gradients)
        if self.clip_norm > 0:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        if self.scaler is not None:
            finite = ms.amp.all_finite(gradients)
            values = ops.depend(values, self.scaler.adjust(finite))
            if finite:
                values = self.update(values, gradients)
        else:
            values = self.update(values, gradients)
        report = ops.cat((stop, values))
        if self.sum_ranks is not None:
            report = self.sum_ranks(report)
            report = ops.cat((report[:1], report[1:] / self.size))
        return report

    def update(self, values: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        """Apply gradients, then move the averages; ``values`` carries the order."""
        values = ops.depend(values, self.optimizer(gradients))
        if self.averages is not None:
            moved = self.hyper_map(
                ops.partial(_move, 1.0 - self.ema_decay), self.averages, self.weights
            )
            values = ops.depend(values, moved)
        return values


class AccumulateStep(nn.Cell):
    """Adds a batch's gradients to the sums of a TrainStep, without an update."""

    def __init__(self, step: TrainStep) -> None:
        super().__init__(auto_prefix=False)
        self.hyper_map = ops.HyperMap()
        self.step = step
        self.sums = step.sums
        self.gradients_of = step.gradients_of
        self.sum_ranks = step.sum_ranks
        self.size = step.size

    def construct(self, *batch: Tensor) -> Tensor:
        """The batch's losses, stacked, averaged over ranks."""
        (_, values), gradients = self.gradients_of(*batch)
        values = ops.depend(values, self.hyper_map(_add, self.sums, gradients))
        if self.sum_ranks is not None:
            values = self.sum_ranks(values) / self.size
        return values


_scale = ops.MultitypeFuncGraph("scale")
_zero = ops.MultitypeFuncGraph("zero")
_add = ops.MultitypeFuncGraph("add")
_move = ops.MultitypeFuncGraph("move")


@_scale.register("Number", "Tensor")
def _scale_tensor(factor: float, gradient: Tensor) -> Tensor:
    return gradient * factor


@_zero.register("Tensor")
def _zero_tensor(total: Tensor) -> Tensor:
    return ops.assign(total, ops.zeros_like(total))


@_add.register("Tensor", "Tensor")
def _add_tensor(total: Tensor, gradient: Tensor) -> Tensor:
    return ops.assign_add(total, gradient)


@_move.register("Number", "Tensor", "Tensor")
def _move_tensor(share: float, average: Tensor, weight: Tensor) -> Tensor:
    return ops.assign_add(average, share * (weight - average))


class Stopped(Exception):
    """Training ended early on request, with its state saved; carries the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Epoch:
    """Figures of one pass over the data, for the log."""

    number: int
    total: int
    steps: int
    seconds: float
    losses: dict[str, float]
    lr: float


class Trainer:
    """Trains a network as its task describes it.

    Everything that decides the result is in the state file: weights, moments, averages,
    counters, and the place in the sample stream. Random choices are functions of the seed and
    that place, so a resumed run goes the way the undisturbed one would have gone.

    Args:
        task: the network's description (model_utils.task.Task).
        config: its configuration, with groups ``train`` and ``optimizer``.
        device: "CPU", "Ascend" or "GPU".
        ranks: this process's place.
        output: folder of all results; the caller holds its lock.
    """

    def __init__(self, task: Any, config: Any, device: str, ranks: Ranks, output: Path) -> None:
        self.task, self.config, self.ranks, self.output = task, config, ranks, output
        train: TrainConfig = config.train
        self.dataset: Dataset = task.build_dataset(config, "train")
        self.validation = task.validation_split(config)
        self.validation_data = task.build_dataset(config, self.validation)
        if self.validation_data is None and train.evaluate_every and ranks.first:
            log.warning(
                "there is no split '%s' in %s: nothing will be evaluated and no best.ckpt kept",
                self.validation,
                config.data.root,
            )
        update = train.batch_size * train.accumulate
        self.sampler = EpochSampler(
            len(self.dataset),
            update,
            ranks,
            config.seed,
            shuffle=train.shuffle,
            order=getattr(self.dataset, "order", None),  # of an OrderedDataset
        )
        self.loader = Loader(
            self.dataset, self.sampler, config.seed, config.data.workers, config.data.worker_kind
        )
        self.total = self.sampler.steps(train.epochs)
        self.network: nn.Cell = task.build_network(config, ranks)
        if config.checkpoint_path and not (train.resume and (output / STATE_FILE).exists()):
            checkpoints.load_weights(
                self.network,
                config.checkpoint_path,
                name=task.name,
                rename=task.rename_parameter,
                allow_missing=True,
            )
            log.info("initial weights from %s", config.checkpoint_path)
        if ranks.size > 1 and train.sync_batch_norm:
            synchronize_batch_norm(self.network, ranks)
        level = _amp_level(train.amp_level, device)
        self.cell: nn.Cell = task.build_train_cell(
            _mixed_precision(self.network, level), config, ranks
        )
        self.rates = self._rates()
        optimizer = build_optimizer(
            config.optimizer, task.parameter_groups(self.network, config), self.rates
        )
        self.step = TrainStep(
            self.cell,
            optimizer,
            ranks,
            config.optimizer.clip_norm,
            train.accumulate,
            train.ema_decay,
            train.loss_scale if level in ("O2", "O3") else 0.0,
        )
        self.add = AccumulateStep(self.step) if train.accumulate > 1 else None
        self.boundaries = [
            min(self.total, self.sampler.steps(epoch + 1))
            for epoch in range(max(1, math.ceil(train.epochs)))
        ]
        self.done = 0
        self.sums = np.zeros(0)
        self.in_epoch = 0
        self.epoch_seconds = 0.0
        self.best: float | None = None
        # A pass is over but not yet evaluated and written: what a kill at that time leaves.
        self.pending = False
        self.saved_at = -1  # no state yet
        self.signal: int | None = None
        self.metrics: dict[str, Any] = {}

    def _rates(self) -> np.ndarray:
        keys = self.config.optimizer
        per_epoch = self.sampler.length / self.sampler.global_batch
        return learning_rates(
            keys.schedule,
            keys.lr,
            self.total,
            warmup=round(keys.warmup_epochs * per_epoch),
            warmup_start=keys.warmup_start,
            power=keys.power,
            final=keys.final,
            milestones=keys.milestones,
            gamma=keys.gamma,
            linear_total=self.config.train.epochs * per_epoch,
            hold=self.total / self.config.train.epochs if keys.by_epoch else 0.0,
            ahead=keys.epochs_ahead,
        )

    # -- state --------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Parameter]:
        """Everything that a step changes, by name."""
        found: dict[str, Parameter] = {}
        groups: list[Sequence[Parameter]] = [list(self.step.get_parameters())]
        if self.step.averages is not None:
            groups.append(self.step.averages)
        if self.step.scaler is not None:
            groups.append([self.step.scaler.scale_value, self.step.scaler.counter])
        for group in groups:
            for parameter in group:
                found[parameter.name] = parameter
        # A function of the configuration, not of the run.
        return {k: v for k, v in found.items() if not k.startswith("learning_rate")}

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "samples": self.sampler.length,
            "global_batch": self.sampler.global_batch,
            "accumulate": self.config.train.accumulate,
            "shuffle": self.config.train.shuffle,
            "seed": self.config.seed,
            "steps": self.total,
        }

    def save_state(self) -> None:
        """Write the training state (first rank only)."""
        self._saved_time = time.monotonic()
        if not self.ranks.first:
            return
        info = {
            "step": self.done,
            "sums": self.sums.tolist(),
            "in_epoch": self.in_epoch,
            "epoch_seconds": self.epoch_seconds,
            "best": self.best,
            "pending": self.pending,
            "run": self._fingerprint(),
        }
        arrays = {name: value.asnumpy() for name, value in self.parameters().items()}
        broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
        if broken:
            raise UserError(
                f"{broken[0]} is not finite after step {self.done} although the loss was; lower "
                f"optimizer.lr, or raise train.batch_size if it is 1 ({self._kept()})"
            )
        checkpoints.save(
            self.output / STATE_FILE,
            arrays,
            network=self.task.name,
            kind=checkpoints.STATE,
            info=info,
        )
        self.saved_at = self.done

    def restore(self) -> None:
        """Continue from the state file.

        Raises:
            UserError: the file is damaged, of another network, or of a run whose sample order
                differs from this configuration's.
        """
        path = self.output / STATE_FILE
        state = checkpoints.load(path)
        if state.kind != checkpoints.STATE or state.network != self.task.name:
            raise UserError(
                f"{path} is not a training state of '{self.task.name}' "
                f"but {state.kind} of '{state.network}'; choose another output_path"
            )
        mine, saved = self._fingerprint(), state.info["run"]
        changed = [f"{k} {saved[k]} -> {mine[k]}" for k in mine if saved.get(k) != mine[k]]
        if changed:
            raise UserError(
                f"{path} cannot be resumed with another configuration ({', '.join(changed)}); "
                "restore the settings, or start a new output_path with checkpoint_path"
            )
        unset = checkpoints.fill(self.parameters(), state.arrays)
        if unset:
            raise UserError(
                f"{path} lacks {len(unset)} parameter(s) such as '{unset[0]}'; it was written "
                "with other settings of the network or optimizer"
            )
        self.done = self.saved_at = state.info["step"]
        self.sums = np.array(state.info["sums"])
        self.in_epoch = state.info["in_epoch"]
        self.epoch_seconds = state.info["epoch_seconds"]
        self.best = state.info["best"]
        self.pending = state.info["pending"]
        log.info("resumed at step %d of %d", self.done, self.total)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the metrics of the last evaluation.

        Raises:
            Stopped: SIGTERM or SIGINT arrived; the state is saved.
            UserError: the loss is not finite, or results cannot be written.
        """
        self._open_folder()
        if self.ranks.first:
            configuration.save(self.config, self.output / "config.yaml", "train")
        keep = self.done - self.pending if self.config.train.resume else None
        self.table = Table(self.output / "metrics.csv", keep)
        self.scalars = Scalars(
            self.output / "events", self.config.train.tensorboard and self.ranks.first
        )
        self._saved_time = time.monotonic()
        self.network.set_train(True)
        self.cell.set_train(True)
        self.progress = Progress(
            self.total, f"training {self.task.title}", self.done, show=self.ranks.first
        )
        previous = self._catch_signals()
        try:
            self._steps()
        finally:
            self.progress.close()
            self.scalars.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self.metrics

    def _open_folder(self) -> None:
        """Resume, replace or refuse what the output folder holds; the same on every rank."""
        state = self.output / STATE_FILE
        resume, overwrite = self.config.train.resume, self.config.train.overwrite
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other; choose one")
        if resume and state.exists():
            self.restore()
        elif resume:
            log.info("nothing to resume in %s, starting anew", self.output)
        elif state.exists() and not overwrite:
            raise UserError(
                f"{self.output} already holds a run; add --resume to go on with it, --overwrite "
                "to replace it, or choose another output_path"
            )
        if not agree(self.done, self.ranks):
            raise UserError(
                f"the ranks would start at different steps (this one at {self.done}); "
                f"{self.output} must be one folder that all hosts share"
            )
        if overwrite and self.ranks.first:
            # The state first: a kill in between must not leave the old run to be resumed.
            for name in (STATE_FILE, BEST_FILE, "metrics.json", "metrics.csv", "curves.png"):
                (self.output / name).unlink(missing_ok=True)
            for path in self._epoch_checkpoints().values():
                path.unlink(missing_ok=True)

    def _epoch_checkpoints(self) -> dict[int, Path]:
        """Files of epoch weights by epoch."""
        pattern = re.escape(Path(self.task.checkpoint_name(0)).name).replace("0", r"(\d+)")
        found = {}
        for path in self.output.glob("*.ckpt"):
            if match := re.fullmatch(pattern, path.name):
                found[int(match[1])] = path
        return found

    def _catch_signals(self) -> dict[int, Any]:
        # While a graph runs the framework turns SIGINT into SIGTERM, so Ctrl-C may arrive as
        # either; both mean: finish the step, save, stop.
        def remember(number: int, frame: Any) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number
            # Not the logger: the signal may have come while it was writing.
            with contextlib.suppress(OSError):
                os.write(2, f"{signal.Signals(number).name}: stopping soon\n".encode())

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        try:
            return {number: signal.signal(number, remember) for number in numbers}
        except ValueError:  # not the main thread: a notebook's or a test's business
            return {}

    def _steps(self) -> None:
        accumulate = self.config.train.accumulate
        if self.done == self.total and not self.pending:
            log.info("the run in %s is complete (%d steps)", self.output, self.total)
            self.metrics = _read_metrics(self.output / "metrics.json")
            return
        if self.pending:
            self._finish_epoch()
        started = time.monotonic()
        first = True
        for batch in self.loader.batches(self.done, self.total):
            if first and self.ranks.first:
                log.info("compiling the training step (once per run) ...")
            inputs = [Tensor(part) for part in self.task.train_inputs(batch)]
            parts = [_slice(inputs, k, accumulate) for k in range(accumulate)]
            values = np.zeros(0)
            for part in parts[:-1]:
                extra = self.add(*part).asnumpy().astype(np.float64)  # type: ignore[misc]
                values = values + extra if values.size else extra
            stop = Tensor(np.array([float(self.signal is not None)], np.float32))
            report = self.step(stop, *parts[-1]).asnumpy().astype(np.float64)
            losses = report[1:] if not values.size else (report[1:] + values) / accumulate
            if first and self.ranks.first:
                log.info("compiled in %s", duration(time.monotonic() - started))
            first = False
            self._check_finite(losses)
            self.done += 1
            self.in_epoch += 1
            self.sums = losses if not self.sums.size else self.sums + losses
            now = time.monotonic()
            self.epoch_seconds += now - started
            started = now
            self._report(losses)
            if self.done in self.boundaries:
                self._finish_epoch()
                started = time.monotonic()
            self._maybe_save(report[0] > 0)

    def _check_finite(self, losses: np.ndarray) -> None:
        if np.isfinite(losses).all():
            return
        names = self.loader.names(self.done)
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        if self.ranks.size > 1:
            shown += f" on rank {self.ranks.rank}"
        raise UserError(
            f"the loss is {losses[~np.isfinite(losses)][0]} at step {self.done + 1} of "
            f"{self.total}; the batch held {shown}; lower optimizer.lr or check these samples "
            f"({self._kept()})"
        )

    def _kept(self) -> str:
        """What a failure leaves, for its message."""
        if self.saved_at < 0:
            return "no state was saved yet"
        return f"the state of step {self.saved_at} is kept in {self.output}"

    def _report(self, losses: np.ndarray) -> None:
        rate = float(self.rates[self.done - 1])
        self.progress.advance(1, f"loss {losses[0]:.4f}, lr {rate:.2e}")
        if self.done % 10 == 0 or self.done == self.total:
            named = dict(zip(self.task.loss_names, losses.tolist(), strict=True))
            self.scalars.add({f"train/{k}": v for k, v in named.items()} | {"lr": rate}, self.done)

    def _maybe_save(self, stop: bool) -> None:
        train: TrainConfig = self.config.train
        due = train.save_steps > 0 and self.done % train.save_steps == 0
        minutes = (time.monotonic() - self._saved_time) / 60
        if not train.save_steps and self.ranks.first:
            due = 0 < train.save_minutes <= minutes
        staged = train.stop_after_steps and self.done >= train.stop_after_steps
        if self.done == self.total:
            return
        if due or stop or staged:
            self.save_state()
        if stop or staged:
            name = signal.Signals(self.signal).name if self.signal else "request"
            status = 128 + self.signal if self.signal else 128 + signal.SIGTERM
            raise Stopped(
                f"stopped by {name} at step {self.done} of {self.total}; the state is saved, "
                "--resume continues",
                status if not staged else 0,
            )

    # -- epochs -------------------------------------------------------------------------------

    def _finish_epoch(self) -> None:
        """Log, evaluate, write checkpoints and state at the end of a pass."""
        # Several passes may end at one step when the data is smaller than a batch: the last.
        number = len(self.boundaries) - self.boundaries[::-1].index(self.done)
        last = self.done == self.total
        if not self.pending:
            self.pending = True
            self.save_state()
        means = self.sums / self.in_epoch
        epoch = Epoch(
            number,
            len(self.boundaries),
            self.in_epoch,
            self.epoch_seconds,
            dict(zip(self.task.loss_names, means.tolist(), strict=True)),
            float(self.rates[self.done - 1]),
        )
        if self.ranks.first:
            log.info(self.task.epoch_line(epoch))
        metrics = self._evaluate(number, last)
        if self.ranks.first:
            self._write_results(epoch, metrics)
        self.sums, self.in_epoch, self.epoch_seconds = np.zeros(0), 0, 0.0
        self.pending = False
        self.save_state()

    def _evaluate(self, number: int, last: bool) -> dict[str, Any]:
        every = self.config.train.evaluate_every
        if not every or not (last or number % every == 0):
            return {}
        if self.validation_data is None:
            return {}
        restore = self._use_averages()
        self.network.set_train(False)
        try:
            metrics = self.task.evaluate(
                self.network, self.validation_data, self.config, self.ranks
            )
            if self.ranks.first:
                log.info(self.task.metrics_line(metrics))
                value = self.task.better(metrics)
                if value is not None and (self.best is None or value > self.best):
                    self.best = value
                    self._save_weights(BEST_FILE, number)
        finally:
            # Upstream forgets this in graph mode and trains on with frozen statistics.
            self.network.set_train(True)
            self.cell.set_train(True)
            restore()
        self.metrics = metrics
        return metrics

    def _use_averages(self) -> Callable[[], None]:
        """Put the moving averages into the network; returns what puts the weights back."""
        if self.step.averages is None:
            return lambda: None
        kept = [weight.asnumpy().copy() for weight in self.step.weights]
        for weight, average in zip(self.step.weights, self.step.averages, strict=True):
            weight.set_data(Tensor(average.asnumpy()))

        def restore() -> None:
            for weight, value in zip(self.step.weights, kept, strict=True):
                weight.set_data(Tensor(value))

        return restore

    def _save_weights(self, name: str, number: int) -> Path:
        return checkpoints.save(
            self.output / name,
            checkpoints.weights_of(self.network),
            network=self.task.name,
            info={
                "epoch": number,
                "step": self.done,
                "settings": self.task.settings(self.config),
            },
        )

    def _write_results(self, epoch: Epoch, metrics: Mapping[str, Any]) -> None:
        restore = self._use_averages()
        self._save_weights(self.task.checkpoint_name(epoch.number), epoch.number)
        restore()
        self._remove_old_checkpoints()
        # Counts and settings stay in metrics.json; a table of them would be constant columns.
        figures = {k: v for k, v in metrics.items() if isinstance(v, float)}
        row: dict[str, Any] = {
            "epoch": epoch.number,
            "step": self.done,
            "seconds": round(epoch.seconds, 3),
            "lr": epoch.lr,
            **epoch.losses,
            **{f"{self.validation}_{name}": value for name, value in figures.items()},
        }
        self.table.add(row)
        self.scalars.add({f"eval/{k}": float(v) for k, v in figures.items()}, self.done)
        if metrics:
            write_json(
                self.output / "metrics.json",
                {
                    "split": self.validation,
                    "epoch": epoch.number,
                    "step": self.done,
                    "best_score": self.best,
                    **metrics,
                },
            )
        if self.done == self.total and len(self.table.rows) > 1:
            from model_utils.drawing import training_curves

            shown = [name for name in row if name not in ("epoch", "step", "seconds")]
            training_curves(self.table.rows, self.output / "curves.png", shown)

    def _remove_old_checkpoints(self) -> None:
        keep = self.config.train.keep_last
        for _, path in sorted(self._epoch_checkpoints().items())[:-keep] if keep else []:
            path.unlink(missing_ok=True)


def _read_metrics(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _slice(inputs: Sequence[Tensor], part: int, parts: int) -> list[Tensor]:
    if parts == 1:
        return list(inputs)
    size = inputs[0].shape[0] // parts
    return [value[part * size : (part + 1) * size] for value in inputs]


def _mixed_precision(network: nn.Cell, level: str) -> nn.Cell:
    """The network in float16, its batch statistics and outputs, so the losses, in float32."""
    if level == "O0":
        return network
    wrapped = ms.amp.auto_mixed_precision(network, level)
    for _, cell in network.cells_and_names():
        if isinstance(cell, SyncBatchNorm):  # the framework knows its own layers only
            cell.to_float(ms.float32)
    return wrapped


def _amp_level(level: str, device: str) -> str:
    if level == "auto":
        return "O2" if device == "Ascend" else "O0"
    if device == "CPU" and level != "O0":
        raise UserError(
            f"train.amp_level={level}: float16 is slower than float32 on CPU and bfloat16 has no "
            "convolution there; use auto or O0"
        )
    return level
