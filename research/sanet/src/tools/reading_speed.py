"""How fast training samples are read and prepared, and which part of it takes how long."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_utils.data import Dataset, EpochSampler, Loader
from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.files import write_json

from ..config import SANetConfig
from ..dataset import SegmentationDataset, build_dataset

log = logging.getLogger("zoo")


def stage_times(dataset: SegmentationDataset, count: int = 48) -> dict[str, float]:
    """Milliseconds of processor time per sample of each stage, in one thread, nothing cached.

    Processor time depends little on what else the machine does.

    Args:
        dataset: training samples, with augmentation.
        count: samples to take the mean of, spread over the data set.
    """
    if dataset.augmentation is None:
        raise UserError("these samples are not augmented; measure the training split")
    spent: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        spent[stage] = spent.get(stage, 0.0) + time.thread_time() - start

    for number in range(count):
        index = number * len(dataset) // count
        with timed("decode image"):
            image = dataset.read_image(index)
        with timed("decode mask"):
            label = dataset.read_label(index, image.shape)
        with timed("edges"):
            edge = dataset.edges(label)
        with timed("zoom, crop, flip"):
            image, label, edge = dataset.augmentation(
                image, label, edge, np.random.default_rng(number)
            )
        with timed("normalise"):
            dataset.normalisation(image)
    return {stage: 1000 * seconds / count for stage, seconds in spent.items()}


class Rate(NamedTuple):
    """Samples per second of the wall clock, and of processor time.

    The second counts this process only, and on a machine with other work it is the one to trust.
    """

    wall: float
    processor: float


def reading_rate(
    dataset: Dataset, batch_size: int, workers: int, kind: str = "thread", seconds: float = 4.0
) -> Rate:
    """What the training's reader delivers.

    Args:
        dataset: the samples.
        batch_size: samples per step.
        workers: parallel readers; 0 reads in the calling thread.
        kind: "thread" or "process".
        seconds: least time to measure, after as many batches as the readers run ahead.
    """
    sampler = EpochSampler(len(dataset), batch_size, Ranks())
    batches = Loader(dataset, sampler, 0, workers, kind).batches(0, 1 << 40)
    for _ in range(workers + 3):
        next(batches)
    start, processor, count = time.perf_counter(), time.process_time(), 0
    # Enough batches that those read ahead by the start do not count much.
    while time.perf_counter() - start < seconds or count < 4 * batch_size * (workers + 2):
        next(batches)
        count += batch_size
    rate = Rate(
        count / (time.perf_counter() - start), count / max(1e-9, time.process_time() - processor)
    )
    batches.close()  # type: ignore[attr-defined]
    return rate


def reading_speed(task: Any, config: SANetConfig, output: Path) -> None:
    """reading_speed.py: stages, and rates with one reader and with data.workers of them."""
    keys = config.data
    dataset = build_dataset(config, "train")
    assert dataset is not None  # a missing training split is an error of its own
    load = os.getloadavg()[0]
    log.info(
        "%d training images, load average %.1f on %d cores", len(dataset), load, os.cpu_count()
    )
    summary: dict[str, Any] = {"images": len(dataset), "load_average": load}
    if isinstance(dataset, SegmentationDataset):
        times = stage_times(dataset)
        summary["milliseconds"] = times
        for stage, milliseconds in times.items():
            log.info("%-18s %7.2f ms of processor time per sample", stage, milliseconds)
        log.info("%-18s %7.2f", "together", sum(times.values()))
        if keys.cache:
            for index in range(len(dataset)):
                dataset.sample(index, np.random.default_rng(index))
    rates = {}
    for workers in sorted({1, max(1, keys.workers)}):
        rate = reading_rate(dataset, config.train.batch_size, workers, keys.worker_kind)
        rates[workers] = rate._asdict()
        log.info(
            "readers: %d (%s%s): %.0f samples per second, %.0f per second of processor time",
            workers,
            keys.worker_kind,
            ", images in memory" if keys.cache else "",
            *rate,
        )
    write_json(output / "reading_speed.json", {**summary, "samples_per_second": rates})
