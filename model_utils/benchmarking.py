"""Timing the same work done by several frameworks, so that ratios mean something.

Every contender runs in a process of its own, so that thread pools do not meet, and all take
turns within one run: a round times each once, the next round in the opposite order. What slows
the machine for a while then slows all alike, and ratios are formed round by round. A network's
``benchmark.py`` describes its contenders as a :class:`Benchmark` and calls :func:`main`.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, write_json

# One step or one batch, finished when it returns: an output to compare, or a loss.
Run = Callable[[], np.ndarray | float]
Settings = Mapping[str, Any]

# The process that writes what contenders read. It is one of its own because MindSpore's runtime
# caps oneDNN's instruction set in the environment, which PyTorch must not inherit.
PREPARATION = "prepare"
_SETTINGS_FILE = "settings.json"
_PACKAGES = ("mindspore", "torch", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Job:
    """What every contender is given.

    Attributes:
        folder: holds what the preparation wrote.
        threads: processors to use.
        settings: the network's own options.
    """

    folder: Path
    threads: int
    settings: Settings

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of ``name``.npz in the folder."""
        return dict(np.load(self.folder / f"{name}.npz", allow_pickle=False))


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        title: the row's name.
        build: prepares it and returns what to time.
        packages: distributions it needs besides the requirements.
        baseline: whether the others of its section are compared with it.
        lacking: says what else is missing on this machine, or "".
        may_fail: leave it out, with the reason, if it cannot be prepared.
        tolerance: of its output, where it computes less exactly than the benchmark's asks.
    """

    title: str
    build: Callable[[Job], Run]
    packages: tuple[str, ...] = ("mindspore",)
    baseline: bool = False
    lacking: Callable[[], str] | None = None
    may_fail: bool = False
    tolerance: float | None = None

    def missing(self) -> list[str]:
        """What the contender needs and this environment lacks."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if not absent and self.lacking is not None and (reason := self.lacking()):
            absent.append(reason)
        return absent


@dataclass(frozen=True)
class Section:
    """Contenders that do the same work: one table.

    Attributes:
        title: of the table; with underscores, its name in the JSON file.
        contenders: by a name that no other section uses.
        items: how many items one call works on, given the settings.
        compared: whether the contenders return outputs that must agree.
        chosen: whether the settings ask for it.
    """

    title: str
    contenders: Mapping[str, Contender]
    items: Callable[[Settings], int]
    compared: bool = False
    chosen: Callable[[Settings], bool] = lambda settings: True


@dataclass(frozen=True)
class Benchmark:
    """A network's contenders.

    Attributes:
        network: its name.
        script: the file whose command line is :func:`main` with this benchmark.
        prepare: writes into a job's folder what contenders read.
        sections: the tables.
        unit: what one item is called, in the plural.
        outputs: what the compared outputs are called.
        describe: the settings in words, for the first line of the report.
        add_options: declares the network's own options.
        tolerance: largest difference of compared outputs, relative to their magnitude above 1.
        warm_up: calls before timing; kernels of MindSpore try thread counts during their first.
    """

    network: str
    script: Path
    prepare: Callable[[Job], None]
    sections: Sequence[Section]
    unit: str
    outputs: str
    describe: Callable[[Settings], str]
    add_options: Callable[[argparse.ArgumentParser], None]
    tolerance: float = 1e-4
    warm_up: int = 10

    @property
    def contenders(self) -> dict[str, Contender]:
        """All contenders by name."""
        return {k: v for section in self.sections for k, v in section.contenders.items()}


def run_onnx(path: PathLike, feeds: Mapping[str, np.ndarray], threads: int) -> Run:
    """The outputs of an ONNX file in ONNX Runtime; several of one shape come stacked."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = dict(feeds)
    if len(session.get_outputs()) == 1:
        return lambda: session.run(None, inputs)[0]
    return lambda: np.stack(session.run(None, inputs))


def compiler_lacking() -> str:
    """Says so if there is no C++ compiler, which torch.compile calls; else ""."""
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return "" if any(shutil.which(name) for name in names if name) else "a C++ compiler"


# The process of one contender: prepares, then times as often as its standard input asks.


def work(benchmark: Benchmark, name: str, job: Job) -> None:
    """Serve one contender: a line with a number in, a line of JSON with that many timings out."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    # Frameworks print; the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    if name == PREPARATION:
        benchmark.prepare(job)
        answer({})
        return
    run = benchmark.contenders[name].build(job)
    started = time.perf_counter()
    result = run()
    first = time.perf_counter() - started
    if isinstance(result, np.ndarray):
        np.save(job.folder / f"{name}.npy", result)
    for _ in range(benchmark.warm_up - 1):
        run()
    value = None if isinstance(result, np.ndarray) else float(result)
    answer({"first_s": first, "value": value})
    for line in sys.stdin:
        answer(measure(run, int(line)))


def measure(run: Run, count: int) -> dict[str, list[float]]:
    """Wall and processor time, in ms, of ``count`` calls."""
    wall, processor = [], []
    for _ in range(count):
        begin, used = time.perf_counter(), time.process_time()
        run()
        wall.append(1e3 * (time.perf_counter() - begin))
        processor.append(1e3 * (time.process_time() - used))
    return {"wall_ms": wall, "cpu_ms": processor}


class Worker:
    """A contender's process, seen from the one that keeps time.

    Args:
        script: the benchmark's.
        name: which contender.
        job: what to run.
    """

    def __init__(self, script: Path, name: str, job: Job) -> None:
        self.name = name
        self.log = job.folder / f"{name}.log"
        write_json(job.folder / _SETTINGS_FILE, dict(job.settings))
        command = [sys.executable, str(script), "--worker", name]
        command += ["--folder", str(job.folder), "--threads", str(job.threads)]
        # OpenMP reads it at load time; PyTorch and ONNX Runtime are also told directly.
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def answer(self) -> dict[str, Any]:
        """Wait for the next line.

        Raises:
            UserError: the process died; quotes the last line of its log.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = said[-1] if said else "no message"
            raise UserError(f"contender {self.name} ended with status {status}: {reason}")
        result: dict[str, Any] = json.loads(line)
        return result

    def measure(self, count: int) -> dict[str, Any]:
        """Time ``count`` calls."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process: the end of its input ends it, and nothing is left to lose if not."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# The run: prepare, take turns, compare, report.


@dataclass
class Result:
    """Timings of one contender: a list per round, in ms; and what its first call was and gave."""

    first_s: float
    first_value: float | None = None
    wall_ms: list[list[float]] = field(default_factory=list)
    cpu_ms: list[list[float]] = field(default_factory=list)

    def median(self) -> float:
        """Median wall time of all calls, ms."""
        return float(np.median(self.wall_ms))

    def rounds(self) -> np.ndarray:
        """Median wall time of each round, ms."""
        return np.median(self.wall_ms, axis=1)


@contextlib.contextmanager
def workers(
    benchmark: Benchmark, names: Sequence[str], job: Job, failed: dict[str, str]
) -> Iterator[tuple[dict[str, Worker], dict[str, Result]]]:
    """Start contenders one after the other, each warmed up before the next.

    Those that may fail and do are left out, with the reason in ``failed``.
    """
    running: dict[str, Worker] = {}
    results: dict[str, Result] = {}
    try:
        for name in names:
            print(f"preparing {name} ...", file=sys.stderr, flush=True)
            running[name] = Worker(benchmark.script, name, job)
            try:
                first = running[name].answer()
                results[name] = Result(first["first_s"], first["value"])
            except UserError as error:
                if not benchmark.contenders[name].may_fail:
                    raise
                failed[name] = str(error)
                running.pop(name).close()
        yield running, results
    finally:
        for worker in running.values():
            worker.close()


def take_turns(
    benchmark: Benchmark,
    names: Sequence[str],
    job: Job,
    rounds: int,
    repeats: int,
    failed: dict[str, str],
) -> dict[str, Result]:
    """Time all contenders alternately; the order is reversed every other round."""
    with workers(benchmark, names, job, failed) as (running, results):
        for number in range(rounds):
            order = list(results) if number % 2 == 0 else list(reversed(results))
            for name in order:
                timing = running[name].measure(repeats)
                results[name].wall_ms.append(timing["wall_ms"])
                results[name].cpu_ms.append(timing["cpu_ms"])
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return results


def largest_difference(
    names: Sequence[str], folder: Path, outputs: str, tolerance: float = 1e-4
) -> float:
    """Largest difference between the first contender's output and any other's.

    It is relative to the first output's largest magnitude where that exceeds 1.

    Args:
        names: of the contenders, which wrote ``name``.npy.
        folder: where to.
        outputs: what they are called, for the message.
        tolerance: largest difference allowed.

    Raises:
        UserError: above the tolerance, so that the timings would not be of the same thing.
    """
    arrays = [np.load(folder / f"{name}.npy", allow_pickle=False) for name in names]
    worst = 0.0
    for name, array in zip(names[1:], arrays[1:], strict=True):
        scale = max(1.0, float(np.abs(arrays[0]).max()))
        found = float("inf")
        if array.shape == arrays[0].shape:
            found = float(np.abs(array - arrays[0]).max()) / scale
        if not found < tolerance:
            raise UserError(
                f"contenders disagree: {outputs} differ by {found:.1e} ({names[0]}, {name})"
            )
        worst = max(worst, found)
    return worst


def compare(
    benchmark: Benchmark, section: Section, names: Sequence[str], folder: Path
) -> tuple[float, dict[str, float]]:
    """Differences between what contenders computed.

    Returns:
        The largest of those that must meet the benchmark's tolerance, and those of contenders
        with a tolerance of their own, by name.

    Raises:
        UserError: one is above its tolerance.
    """
    limits = {name: section.contenders[name].tolerance for name in names}
    exact = [name for name in names if limits[name] is None]
    others = {
        name: largest_difference([exact[0], name], folder, benchmark.outputs, limit)
        for name, limit in limits.items()
        if limit is not None and exact
    }
    return largest_difference(exact, folder, benchmark.outputs, benchmark.tolerance), others


def speed_ups(result: Result, baseline: Result | None) -> tuple[float, float, float] | None:
    """Baseline's time over the contender's, round by round: median, smallest, largest."""
    if baseline is None:
        return None
    ratios = baseline.rounds() / result.rounds()
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, threads, load and versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": versions,
        "ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA", "AVX2 for MindSpore only"),
    }


def table(
    section: Section, results: Mapping[str, Result], items: int, unit: str
) -> tuple[list[str], dict[str, Any]]:
    """Rows of one table, and the same as a dictionary."""
    baseline = next(
        (results[n] for n, c in section.contenders.items() if c.baseline and n in results), None
    )
    head = (
        f"{section.title:<36}{'median ms':>10}{'min ms':>9}{'cpu ms':>9}{f'{unit}/s':>9}"
        "  x PyTorch eager"
    )
    lines, values = [head], {}
    for name, contender in section.contenders.items():
        if name not in results:
            continue
        result = results[name]
        median = result.median()
        rate = 1e3 * items / median
        ratio = speed_ups(result, baseline)
        shown = "-" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"
        lines.append(
            f"  {contender.title:<34}{median:10.1f}{np.min(result.wall_ms):9.1f}"
            f"{np.median(result.cpu_ms):9.1f}{rate:9.{0 if rate >= 100 else 2}f}  {shown}"
        )
        values[name] = {
            "title": contender.title,
            "median_ms": median,
            "first_call_s": result.first_s,
            "first_value": result.first_value,
            f"{unit}_per_second": rate,
            "speed_up_over_pytorch": ratio,
            "wall_ms": result.wall_ms,
            "cpu_ms": result.cpu_ms,
        }
    return lines, values


def choose(benchmark: Benchmark, wanted: str) -> tuple[list[str], dict[str, list[str]]]:
    """Contenders to run, and those left out with what they lack.

    Args:
        benchmark: all there are.
        wanted: names separated by commas; empty for all.

    Raises:
        UserError: an unknown name.
    """
    contenders = benchmark.contenders
    names = [name.strip() for name in wanted.split(",") if name.strip()] or list(contenders)
    unknown = [name for name in names if name not in contenders]
    if unknown:
        raise UserError(f"no contender {unknown[0]}; there are {', '.join(contenders)}")
    lacking = {name: contenders[name].missing() for name in names}
    skipped = {name: things for name, things in lacking.items() if things}
    return [name for name in names if name not in skipped], skipped


def run(benchmark: Benchmark, options: argparse.Namespace, settings: Settings) -> None:
    """Time, print the tables, write the JSON file."""
    chosen, skipped = choose(benchmark, options.contenders)
    threads = options.threads or len(os.sched_getaffinity(0))
    machine = describe_machine(threads)
    tables: list[str] = []
    failed: dict[str, str] = {}
    disagreements: list[str] = []
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **settings,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "machine": machine,
    }
    with tempfile.TemporaryDirectory(prefix=f"{benchmark.network.lower()}_benchmark_") as name:
        job = Job(Path(name), threads, settings)
        preparation = Worker(benchmark.script, PREPARATION, job)
        try:
            preparation.answer()
        finally:
            preparation.close()
        for section in benchmark.sections:
            names = [name for name in chosen if name in section.contenders]
            if not names or not section.chosen(settings):
                continue
            results = take_turns(benchmark, names, job, options.rounds, options.repeats, failed)
            lines, values = table(section, results, section.items(settings), benchmark.unit)
            record[section.title.replace(" ", "_")] = values
            tables += ["", *lines]
            if section.compared and results:
                try:
                    worst, others = compare(benchmark, section, list(results), job.folder)
                except UserError as error:
                    # Told at the end, when all that was timed is written.
                    disagreements.append(f"{section.title}: {error}")
                    continue
                record["largest_difference"] = max(worst, record.get("largest_difference", 0.0))
                tables.append(f"  largest difference between {benchmark.outputs} {worst:.1e}")
                for name, difference in others.items():
                    values[name]["difference"] = difference
                    tables.append(f"  {section.contenders[name].title}: {difference:.1e}")
    machine["load_average_after"] = round(os.getloadavg()[0], 2)
    record["skipped"] = skipped
    record["failed"] = failed
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(
        f"{benchmark.network}, {benchmark.describe(settings)}, float32, {options.rounds} rounds of "
        f"{options.repeats}\n{machine['processor']}, {machine['processors']} processors, "
        f"{threads} used; load {machine['load_average']} before, "
        f"{machine['load_average_after']} after\n{versions}\n{record['command']}"
    )
    print("\n".join(tables))
    for left_out, things in skipped.items():
        print(f"skipped {left_out}: not installed: {', '.join(things)}")
    for left_out, reason in failed.items():
        print(f"left out {left_out}: {reason}")
    record["disagreements"] = disagreements
    write_json(options.output, record)
    print(f"\nwritten: {options.output}")
    if disagreements:
        raise UserError("; ".join(disagreements))


def positive(text: str) -> int:
    """A positive whole number, for argparse.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not a positive number")


def main(benchmark: Benchmark, description: str, argv: Sequence[str] | None = None) -> int:
    """Command line of a ``benchmark.py``; returns the exit status."""
    own = argparse.ArgumentParser(add_help=False)
    benchmark.add_options(own)
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        parents=[own],
    )
    names = list(benchmark.contenders)
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each contender")
    parser.add_argument("--repeats", type=positive, default=5, help="timings per turn")
    parser.add_argument("--threads", type=int, default=0, help="processors to use; 0 uses all")
    parser.add_argument(
        "--contenders", default="", help=f"some of {', '.join(names)}; all if empty"
    )
    parser.add_argument("--output", default="outputs/benchmark.json", help="figures as JSON")
    parser.add_argument("--worker", choices=[PREPARATION, *names], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    available = len(os.sched_getaffinity(0))
    if not 0 <= options.threads <= available:
        parser.error(f"--threads must be 0 to {available} here, not {options.threads}")
    try:
        if options.worker:
            settings = json.loads((options.folder / _SETTINGS_FILE).read_text(encoding="utf-8"))
            work(benchmark, options.worker, Job(options.folder, options.threads, settings))
        else:
            defaults, _ = own.parse_known_args([])
            run(benchmark, options, {name: getattr(options, name) for name in vars(defaults)})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
