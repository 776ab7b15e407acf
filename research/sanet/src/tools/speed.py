"""How fast the network runs: backends, float16, batch normalisation folded or not."""

import copy
import csv
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from model_utils.backends import BACKENDS, Backend, choose
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.files import atomic_write, write_json
from model_utils.folding import fold
from model_utils.logs import Progress

from ..config import SANetConfig, SpeedConfig
from ..prediction import Prediction
from .common import network_or_fresh

log = logging.getLogger("zoo")
PERCENTILES = (5, 50, 95)
# Run with a network's output once before anything is timed: what is timed must be right.
_MOST_DIFFERENCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Timing:
    """One way to run the network.

    Attributes:
        backend: mindspore, mindir, onnxruntime or openvino-bf16.
        number: float32, float16 or bfloat16.
        folded: whether layers were merged (``model_utils.folding``).
        batch: images per run.
        seconds: of every run measured, from array to array.
        difference: from the unfolded float32 network in MindSpore, of its largest output.
    """

    backend: str
    number: str
    folded: bool
    batch: int
    seconds: tuple[float, ...]
    difference: float

    def milliseconds(self, percentile: float) -> float:
        """Duration of one run that so many percent of the runs stay below."""
        return 1000 * float(np.percentile(self.seconds, percentile))

    @property
    def rate(self) -> float:
        """Images per second of the median run."""
        return self.batch / float(np.median(self.seconds))


def durations(run: Callable[[], Any], warmup: int, repeats: int) -> tuple[float, ...]:
    """Seconds of each of ``repeats`` runs, after ``warmup`` that do not count."""
    for _ in range(warmup):
        run()
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return tuple(found)


class HalfPrecision(nn.Cell):
    """A network computing in float16, with float32 input and output."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = copy.deepcopy(network).to_float(ms.float16)

    def construct(self, image: ms.Tensor) -> ms.Tensor:
        """As the network."""
        return self.network(image.astype(ms.float16)).astype(ms.float32)


def cases(network: nn.Cell, keys: SpeedConfig) -> Iterator[tuple[str, str, bool, nn.Cell]]:
    """Backend, number type, folded, and the Cell to run; each built when it is its turn."""
    shape = (keys.batch_size, 3, keys.height, keys.width)
    plain = Prediction(network, keys.output)
    folded = fold(plain, shape).cell
    for backend in keys.backends:
        if backend == "mindspore":
            yield backend, "float32", False, plain
            yield backend, "float32", True, folded
        else:
            # model_utils.backends folds whatever it writes to a file.
            yield backend, "bfloat16" if backend == "openvino-bf16" else "float32", True, plain
    if keys.half:
        # ONNX Runtime's CPU kernels are float32; an exported float16 file would only be cast.
        yield "mindspore", "float16", True, HalfPrecision(folded).set_train(False)


def measure(network: nn.Cell, keys: SpeedConfig) -> list[Timing]:
    """Time the prediction build in every way that is possible here.

    Args:
        network: a SANetNetwork in evaluation mode.
        keys: size, batch, repeats and backends.

    Raises:
        UserError: a backend's name is unknown, or none could be run.
    """
    for name in keys.backends:
        if name not in BACKENDS or name == "auto":
            raise UserError(f"backend {name} is not one of {', '.join(BACKENDS[1:])}; choose some")
    shape = (keys.batch_size, 3, keys.height, keys.width)
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = Prediction(network, keys.output)(ms.Tensor(image)).asnumpy()
    timings: list[Timing] = []
    count = len(keys.backends) + keys.backends.count("mindspore") + keys.half
    progress = Progress(count, "speed", unit="case")
    for backend, number, folded, cell in cases(network, keys):
        what = f"{backend}, {number}{', folded' if folded else ''}"
        try:
            with _opened(backend, cell, shape) as opened:
                difference = _difference(opened.run(image)[0], expected, keys.output)
                if difference > _MOST_DIFFERENCE[number]:
                    raise UserError(f"its result differs by {difference:.1e}")
                seconds = durations(lambda: opened.run(image), keys.warmup, keys.repeats)
                timings.append(
                    Timing(opened.name, number, folded, keys.batch_size, seconds, difference)
                )
        except (UserError, RuntimeError, TypeError) as error:
            log.warning("%s: not measured: %s", what, str(error).strip().splitlines()[0])
        progress.advance(figures=what)
    progress.close()
    if not timings:
        raise UserError("nothing could be measured; see the lines above")
    return timings


def _opened(backend: str, cell: nn.Cell, shape: tuple[int, ...]) -> Backend:
    """A backend, without the lines about exporting the network for it."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return choose(backend, cell=cell, inputs=[ExportInput("image", shape)])
    finally:
        log.setLevel(level)


def _difference(found: np.ndarray, expected: np.ndarray, output: str) -> float:
    """Largest difference, of the largest magnitude; of classes the share of other pixels."""
    if output == "classes":
        return float((found != expected).mean())
    scale = max(float(np.abs(expected).max()), 1e-30)
    return float(np.abs(found.astype(np.float64) - expected).max() / scale)


def table_lines(timings: list[Timing]) -> list[str]:
    """The table as text, fastest first."""
    times = " ".join(f"{title:>9}" for title in ("p5 ms", "median ms", "p95 ms", "images/s"))
    lines = [f"{'backend':<12} {'numbers':<8} {'folded':<7} {times} {'difference':>11}"]
    for row in sorted(timings, key=lambda row: -row.rate):
        low, middle, high = (row.milliseconds(p) for p in PERCENTILES)
        lines.append(
            f"{row.backend:<12} {row.number:<8} {'yes' if row.folded else 'no':<7} {low:9.1f} "
            f"{middle:9.1f} {high:9.1f} {row.rate:9.2f} {row.difference:11.1e}"
        )
    return lines


def write_timings(path: Path, timings: list[Timing]) -> None:
    """One line per case, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["backend", "numbers", "folded", "batch", "runs", "p5_ms", "median_ms", "p95_ms",
         "images_per_second", "difference"]
    )  # fmt: skip
    for row in timings:
        times = [f"{row.milliseconds(p):.3f}" for p in PERCENTILES]
        writer.writerow(
            [row.backend, row.number, int(row.folded), row.batch, len(row.seconds), *times,
             f"{row.rate:.4f}", f"{row.difference:.3e}"]
        )  # fmt: skip
    with atomic_write(path, "w") as stream:
        stream.write(text.getvalue())


def speed(task: Any, config: SANetConfig, output: Path) -> None:
    """speed.py: time a checkpoint, or random weights, which are as fast."""
    keys = config.speed
    network, source = network_or_fresh(task, config)
    device = ms.get_context("device_target")
    processors = os.cpu_count() or 1
    load = os.getloadavg()[0]
    log.info(
        "SANet-%s (%s), %d x 3 x %d x %d, output %s, on %s: %d runs after %d",
        config.variant, source, keys.batch_size, keys.height, keys.width, keys.output, device,
        keys.repeats, keys.warmup,
    )  # fmt: skip
    if device == "CPU" and load > 0.5 * processors:
        log.warning(
            "the machine is busy (load %.1f on %d processors): the figures say little",
            load, processors,
        )  # fmt: skip
    timings = measure(network, keys)
    for line in table_lines(timings):
        log.info(line)
    if device == "CPU" and any(row.number == "float16" for row in timings):
        log.info("float16 is for accelerators: this CPU computes in float32 and converts")
    write_timings(output / "speed.csv", timings)
    write_json(
        output / "metrics.json",
        {
            "network": source,
            "variant": config.variant,
            "shape": [keys.batch_size, 3, keys.height, keys.width],
            "output": keys.output,
            "device": device,
            "load_before": round(load, 2),
            "images_per_second": {
                f"{row.backend} {row.number}{' folded' if row.folded else ''}": round(row.rate, 3)
                for row in timings
            },
        },
    )
    log.info("figures in %s", output / "speed.csv")
