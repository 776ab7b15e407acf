"""From a data set to batches: which sample when, and reading ahead.

What a step sees is a pure function of (seed, step, ranks): neither threads nor a restart change
it. MindSpore's own iterators repeat their shuffle when re-created and hide a worker's error in
a stack of text, which is why they are not used (docs/framework_traps.md).
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Protocol

import numpy as np

from model_utils.distributed import Ranks
from model_utils.errors import UserError


class Dataset(Protocol):
    """What a network gives the engine to read from."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """One sample; every random choice is drawn from ``rng``."""
        ...

    def name(self, index: int) -> str:
        """What a user would call the sample, such as its file."""
        ...


class OrderedDataset(Dataset, Protocol):
    """A data set that decides itself what a pass over it shows, such as rare classes more often.

    ``sample`` and ``name`` take any number that ``order`` gives.
    """

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The numbers of a pass's ``len(self)`` samples; a pure function of its arguments."""
        ...


class EpochSampler:
    """The order of training samples, as one endless stream of permutations cut into batches.

    Every pass over the data visits each sample exactly once, for any length, batch size and
    number of ranks; a batch may span the end of one pass and the start of the next, so that
    all batches are full and one compiled graph serves them all. No batch holds a sample twice
    if the data set has at least three global batches.

    Args:
        length: samples in the data set.
        batch_size: samples per step on one rank.
        ranks: this process's place; rank r takes the r-th part of each global batch.
        seed: of the permutations.
        shuffle: False keeps the stored order.
        order: gives the ``length`` samples of a pass from (seed, pass), in place of a
            permutation; a sample that comes twice in a pass needs two numbers to differ.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        ranks: Ranks,
        seed: int = 0,
        shuffle: bool = True,
        order: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        if length < 1:
            raise UserError("the data set is empty; check the data folder and the split's name")
        self.length = length
        self.batch_size = batch_size
        self.ranks = ranks
        self.seed = seed
        self.shuffle = shuffle
        self.order = order
        self.global_batch = batch_size * ranks.size
        self._orders: dict[int, np.ndarray] = {}

    def steps(self, epochs: float) -> int:
        """Steps needed to show every sample ``epochs`` times (the last batch runs over)."""
        return int(-(-round(self.length * epochs) // self.global_batch))

    def batch(self, step: int) -> list[tuple[int, int]]:
        """This rank's (epoch, index) pairs of a step."""
        first = step * self.global_batch + self.ranks.rank * self.batch_size
        pairs = []
        for position in range(first, first + self.batch_size):
            epoch, place = divmod(position, self.length)
            pairs.append((epoch, int(self._order(epoch)[place])))
        return pairs

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            order = self._permutation(epoch)
            if epoch and self.shuffle and self.length >= 3 * self.global_batch:
                order = self._without_repeats(order, epoch)
            for old in [e for e in self._orders if e < epoch - 1]:
                del self._orders[old]
            self._orders[epoch] = order
        return self._orders[epoch]

    def _without_repeats(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """Move samples that close the previous pass out of the batch this pass opens with.

        Partners come from the middle, so the tail stays the plain permutation's and the next
        pass needs to know nothing of this one.
        """
        shared = epoch * self.length % self.global_batch
        if not shared:
            return order
        recent = set(self._permutation(epoch - 1)[-shared:].tolist())
        opening = self.global_batch - shared
        clashes = [place for place in range(opening) if int(order[place]) in recent]
        middle = range(opening, self.length - self.global_batch)
        spare = [place for place in middle if int(order[place]) not in recent][: len(clashes)]
        order = order.copy()
        order[clashes], order[spare] = order[spare], order[clashes]
        return order

    def _permutation(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        if self.order is not None:
            return self.order(self.seed, epoch)
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)


class EvaluationSampler:
    """Every sample once, in order, dealt out to the ranks in contiguous parts.

    Args:
        length: samples in the data set.
        batch_size: samples per step; the last batch of a rank is shorter.
        ranks: this process's place.
    """

    def __init__(self, length: int, batch_size: int, ranks: Ranks) -> None:
        bounds = [length * rank // ranks.size for rank in range(ranks.size + 1)]
        self.indices = range(bounds[ranks.rank], bounds[ranks.rank + 1])
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return (len(self.indices) + self.batch_size - 1) // self.batch_size

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The (0, index) pairs of a step."""
        part = self.indices[step * self.batch_size : (step + 1) * self.batch_size]
        return [(0, index) for index in part]


def read_batch(dataset: Dataset, seed: int, pairs: list[tuple[int, int]]) -> tuple[np.ndarray, ...]:
    """Read and stack samples; each has a random generator of its own (seed, epoch, index).

    Raises:
        UserError: a sample holds NaN or infinite values. MindSpore's ReLU turns NaN into 0 on
            CPU, so the loss would stay finite while the batch statistics are lost.
    """
    samples = []
    for epoch, index in pairs:
        sample = dataset.sample(index, np.random.default_rng((seed, epoch, index)))
        for part in sample:
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                raise UserError(
                    f"{dataset.name(index)} holds NaN or infinite values; repair or remove it"
                )
        samples.append(sample)
    return tuple(np.stack(parts) for parts in zip(*samples, strict=True))


_worker: dict[str, Any] = {}


class _Reader(SpawnProcess):
    """A reading process that only its parent stops.

    Ctrl-C and many job schedulers signal the whole process group: readers that ended would take
    the training down before it has saved its state.
    """

    def start(self) -> None:
        """Start with the signals blocked; from within the process it would be too late."""
        resource_tracker.ensure_running()  # unblocks the signals when it starts, so it goes first
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        """Kill, since SIGTERM is blocked; a broken pool ends its other processes so."""
        self.kill()


class _ReaderContext(SpawnContext):
    # Not fork: the framework's threads hold locks that a forked child waits on for ever.
    Process = _Reader


def _start_process(dataset: Dataset, seed: int) -> None:
    _worker["job"] = (dataset, seed)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent cannot tell its readers to end, and they hold their queue open themselves.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_in_process(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, ...]:
    dataset, seed = _worker["job"]
    return read_batch(dataset, seed, pairs)


class Loader:
    """Reads batches ahead of the step that needs them, in threads or processes.

    OpenCV and NumPy release the interpreter lock, so threads are enough for most data; choose
    processes when samples are made by Python code. Errors of a sample surface unchanged at the
    step that needed it.

    Args:
        dataset: what to read.
        sampler: which samples at which step.
        seed: of the samples' random generators.
        workers: parallel readers; 0 reads when asked.
        kind: "thread" or "process".
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: EpochSampler | EvaluationSampler,
        seed: int = 0,
        workers: int = 1,
        kind: str = "thread",
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.seed = seed
        self.workers = min(workers, max(1, os.cpu_count() or 1)) if workers else 0
        self.kind = kind

    def batches(self, first: int, last: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the batches of steps first .. last - 1 in order."""
        if not self.workers:
            for step in range(first, last):
                yield read_batch(self.dataset, self.seed, self.sampler.batch(step))
            return
        executor = self._executor()
        pending: deque[Future] = deque()
        try:
            step = first
            while step < last or pending:
                while step < last and len(pending) < self.workers + 2:
                    pending.append(self._submit(executor, self.sampler.batch(step)))
                    step += 1
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that reads the data has died (a crash, or killed for want of memory); "
                "lower data.workers, or use data.worker_kind=thread"
            ) from error
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _executor(self) -> Executor:
        if self.kind == "process":
            return ProcessPoolExecutor(
                self.workers, _ReaderContext(), _start_process, (self.dataset, self.seed)
            )
        return ThreadPoolExecutor(self.workers, "loader")

    def _submit(self, executor: Executor, pairs: list[tuple[int, int]]) -> Future:
        if self.kind != "process":
            return executor.submit(read_batch, self.dataset, self.seed, pairs)
        try:
            return executor.submit(_read_in_process, pairs)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UserError(
                f"the data set {type(self.dataset).__name__} cannot be handed to other processes "
                f"({error}); use data.worker_kind=thread"
            ) from error

    def names(self, step: int) -> list[str]:
        """What the samples of a step are called, for messages."""
        return [self.dataset.name(index) for _, index in self.sampler.batch(step)]
