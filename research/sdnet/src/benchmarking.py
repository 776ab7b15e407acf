"""Speed of SDNet's training step and inference beside PyTorch and the published way to step.

Every contender runs in a process of its own, so that thread pools do not meet, and all take
turns within one run: a round times each once, the next round in the opposite order. What slows
the machine for a while then slows all alike, and ratios are formed round by round.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import write_json

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEARNING_RATE = 0.004
# Kernels of MindSpore try thread counts during their first runs.
WARM_UP = 10
# Descriptors of all contenders must agree to this; they are of unit length.
TOLERANCE = 1e-4

Run = Callable[[], np.ndarray | float]


@dataclass(frozen=True)
class Job:
    """What every contender is given.

    Attributes:
        folder: holds inputs.npz, weights.npz, descriptor.mindir and descriptor.onnx.
        batch_size: pairs per step.
        threads: processors to use.
    """

    folder: Path
    batch_size: int
    threads: int

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Optical and SAR patches (batch_size, 1, 64, 64) in [-1, 1]."""
        arrays = np.load(self.folder / "inputs.npz", allow_pickle=False)
        return arrays["opt"], arrays["sar"]

    def weights(self) -> dict[str, np.ndarray]:
        """Initial weights by MindSpore's names."""
        return dict(np.load(self.folder / "weights.npz", allow_pickle=False))


# Contenders. Each returns what to time: one step or one batch, finished when it returns.


def _mindspore_network(job: Job) -> tuple[Any, list[Any]]:
    from mindspore import Tensor

    from model_utils import runtime

    from .network import SDNetNetwork

    runtime.start("CPU")
    network = SDNetNetwork()
    for name, value in job.weights().items():
        network.parameters_dict()[name].set_data(Tensor(value))
    return network, [Tensor(x) for x in job.inputs()]


def train_ours(job: Job) -> Run:
    """The engine's step: one graph with forward, losses, gradient and Adam."""
    from mindspore import Tensor, nn

    from model_utils.distributed import Ranks
    from model_utils.training import TrainStep

    from .losses import SDNetLoss, SDNetTrainCell

    network, inputs = _mindspore_network(job)
    cell = SDNetTrainCell(network, SDNetLoss())
    cell.set_train(True)
    optimizer = nn.Adam(cell.trainable_params(), LEARNING_RATE, 0.5, 0.9, 1e-8, weight_decay=1e-4)
    step = TrainStep(cell, optimizer, Ranks())
    go_on = Tensor(np.zeros(1, np.float32))
    return lambda: float(step(go_on, *inputs).asnumpy()[1])


def train_upstream(job: Job) -> Run:
    """Four forwards, three backwards and three Adams per step, also as one graph."""
    from .losses import SDNetLoss, SDNetTrainCell
    from .upstream_step import UpstreamStep

    network, inputs = _mindspore_network(job)
    cell = SDNetTrainCell(network, SDNetLoss())
    cell.set_train(True)
    step = UpstreamStep(cell, LEARNING_RATE)
    return lambda: float(step(*inputs).asnumpy())


def train_pytorch(job: Job) -> Run:
    """The same step in PyTorch, eagerly."""
    import torch

    from . import torch_reference

    torch.set_num_threads(job.threads)
    network = torch_reference.SDNetTorch().train()
    torch_reference.copy_weights(network, job.weights())
    step = torch_reference.TrainStep(network, LEARNING_RATE)
    inputs = [torch.from_numpy(x) for x in job.inputs()]
    return lambda: step(*inputs)


def infer_mindspore(job: Job) -> Run:
    """The network as a Cell in graph mode."""
    from .network import DescriptorOnly

    network, inputs = _mindspore_network(job)
    cell = DescriptorOnly(network)
    cell.set_train(False)
    return lambda: np.stack([output.asnumpy() for output in cell(*inputs)])


def infer_mindir(job: Job) -> Run:
    """The exported MINDIR, run by MindSpore."""
    import mindspore as ms
    from mindspore import Tensor, nn

    from model_utils import runtime

    runtime.start("CPU")
    cell = nn.GraphCell(ms.load(str(job.folder / "descriptor.mindir")))
    inputs = [Tensor(x) for x in job.inputs()]
    return lambda: np.stack([output.asnumpy() for output in cell(*inputs)])


def infer_onnxruntime(job: Job) -> Run:
    """The exported ONNX, run by ONNX Runtime."""
    return _onnx_run(job.folder / "descriptor.onnx", job)


def infer_pytorch(job: Job) -> Run:
    """The PyTorch network, eagerly, in inference mode."""
    import torch

    torch.set_num_threads(job.threads)
    cell = _torch_descriptor(job)
    inputs = [torch.from_numpy(x) for x in job.inputs()]

    def run() -> np.ndarray:
        with torch.inference_mode():
            return np.stack([output.numpy() for output in cell(*inputs)])

    return run


def infer_pytorch_onnx(job: Job) -> Run:
    """PyTorch's own ONNX export, run by ONNX Runtime."""
    import torch

    inputs = tuple(torch.from_numpy(x) for x in job.inputs())
    path = job.folder / "pytorch.onnx"
    torch.onnx.export(_torch_descriptor(job), inputs, str(path), input_names=["opt", "sar"])
    return _onnx_run(path, job)


def _torch_descriptor(job: Job) -> Any:
    from . import torch_reference

    network = torch_reference.SDNetTorch()
    torch_reference.copy_weights(network, job.weights())
    return torch_reference.DescriptorOnly(network).eval()


def _onnx_run(path: Path, job: Job) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    opt, sar = job.inputs()
    return lambda: np.stack(session.run(None, {"opt": opt, "sar": sar}))


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        title: the row's name.
        build: prepares it.
        packages: distributions it needs besides the requirements.
        baseline: whether the others of its section are compared with it.
    """

    title: str
    build: Callable[[Job], Run]
    packages: tuple[str, ...] = ("mindspore",)
    baseline: bool = False


TRAINING = {
    "train-ours": Contender("this project's step", train_ours),
    "train-upstream": Contender("published way to step (4 forwards)", train_upstream),
    "train-pytorch": Contender("PyTorch eager", train_pytorch, ("torch",), baseline=True),
}
INFERENCE = {
    "infer-mindspore": Contender("MindSpore Cell", infer_mindspore),
    "infer-mindir": Contender("MINDIR in MindSpore", infer_mindir),
    "infer-onnxruntime": Contender("ONNX Runtime", infer_onnxruntime, ("onnxruntime",)),
    "infer-pytorch": Contender("PyTorch eager", infer_pytorch, ("torch",), baseline=True),
    "infer-pytorch-onnx": Contender(
        "PyTorch's ONNX in ONNX Runtime",
        infer_pytorch_onnx,
        ("torch", "onnxscript", "onnxruntime"),
    ),
}
CONTENDERS = {**TRAINING, **INFERENCE}
# The process that writes what contenders read. It is one of its own because MindSpore's runtime
# caps oneDNN's instruction set in the environment, which PyTorch must not inherit.
PREPARATION = "prepare"


# The process of one contender: prepares, then times as often as its standard input asks.


def work(name: str, job: Job) -> None:
    """Serve one contender: a line with a number in, a line of JSON with that many timings out."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    # Frameworks print; the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    if name == PREPARATION:
        prepare(job)
        answer({})
        return
    run = CONTENDERS[name].build(job)
    started = time.perf_counter()
    result = run()
    first = time.perf_counter() - started
    if isinstance(result, np.ndarray):
        np.save(job.folder / f"{name}.npy", result)
    for _ in range(WARM_UP - 1):
        run()
    answer({"first_s": first})
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
        name: which contender.
        job: what to run.
    """

    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        self.log = job.folder / f"{name}.log"
        command = [sys.executable, str(SCRIPT), "--worker", name]
        command += ["--folder", str(job.folder), "--batch_size", str(job.batch_size)]
        command += ["--threads", str(job.threads)]
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
    """Timings of one contender: a list per round, in ms."""

    first_s: float
    wall_ms: list[list[float]] = field(default_factory=list)
    cpu_ms: list[list[float]] = field(default_factory=list)

    def median(self) -> float:
        """Median wall time of all calls, ms."""
        return float(np.median(self.wall_ms))

    def rounds(self) -> np.ndarray:
        """Median wall time of each round, ms."""
        return np.median(self.wall_ms, axis=1)


def prepare(job: Job, seed: int = 0) -> None:
    """Write inputs, weights and the exported descriptor network for all contenders."""
    import mindspore as ms
    from mindspore import Tensor

    from model_utils import runtime
    from model_utils.mindir2onnx import convert

    from .network import PATCH_SIZE, DescriptorOnly, SDNetNetwork

    runtime.start("CPU")
    rng = np.random.default_rng(seed)
    shape = (job.batch_size, 1, PATCH_SIZE, PATCH_SIZE)
    opt, sar = (rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(2))
    np.savez(job.folder / "inputs.npz", opt=opt, sar=sar)
    network = SDNetNetwork(seed=seed)
    weights = {name: value.asnumpy() for name, value in network.parameters_dict().items()}
    np.savez(job.folder / "weights.npz", **weights)  # type: ignore[arg-type]
    cell = DescriptorOnly(network)
    cell.set_train(False)
    ms.export(
        cell,
        Tensor(opt),
        Tensor(sar),
        file_name=str(job.folder / "descriptor"),
        file_format="MINDIR",
    )
    convert(
        job.folder / "descriptor.mindir",
        job.folder / "descriptor.onnx",
        input_names=["opt", "sar"],
    )


def missing_packages(contender: Contender) -> list[str]:
    """Packages the contender needs and this environment lacks."""
    return [name for name in contender.packages if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def workers(
    names: Sequence[str], job: Job
) -> Iterator[tuple[dict[str, Worker], dict[str, Result]]]:
    """Start contenders one after the other, each warmed up before the next."""
    running: dict[str, Worker] = {}
    results: dict[str, Result] = {}
    try:
        for name in names:
            print(f"preparing {name} ...", file=sys.stderr, flush=True)
            running[name] = Worker(name, job)
            results[name] = Result(running[name].answer()["first_s"])
        yield running, results
    finally:
        for worker in running.values():
            worker.close()


def take_turns(names: Sequence[str], job: Job, rounds: int, repeats: int) -> dict[str, Result]:
    """Time all contenders alternately; the order is reversed every other round."""
    with workers(names, job) as (running, results):
        for number in range(rounds):
            order = names if number % 2 == 0 else list(reversed(names))
            for name in order:
                timing = running[name].measure(repeats)
                results[name].wall_ms.append(timing["wall_ms"])
                results[name].cpu_ms.append(timing["cpu_ms"])
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return results


def largest_difference(names: Sequence[str], folder: Path) -> float:
    """Largest difference between the descriptors any two contenders computed.

    Raises:
        UserError: above the tolerance, so that the timings would not be of the same thing.
    """
    outputs = [np.load(folder / f"{name}.npy", allow_pickle=False) for name in names]
    worst = max((float(np.abs(x - outputs[0]).max()) for x in outputs[1:]), default=0.0)
    if not worst < TOLERANCE:
        raise UserError(f"contenders disagree: descriptors differ by {worst:.1e}")
    return worst


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
    for package in ("mindspore", "torch", "onnxruntime", "numpy"):
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


def section(
    title: str, contenders: dict[str, Contender], results: dict[str, Result], batch_size: int
) -> tuple[list[str], dict[str, Any]]:
    """Rows of one table, and the same as a dictionary."""
    baseline = next(
        (results[n] for n, c in contenders.items() if c.baseline and n in results), None
    )
    head = f"{title:<36}{'median ms':>10}{'min ms':>9}{'cpu ms':>9}{'pairs/s':>9}  x PyTorch eager"
    lines, values = [head], {}
    for name, contender in contenders.items():
        if name not in results:
            continue
        result = results[name]
        median = result.median()
        ratio = speed_ups(result, baseline)
        shown = "-" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"
        lines.append(
            f"  {contender.title:<34}{median:10.1f}{np.min(result.wall_ms):9.1f}"
            f"{np.median(result.cpu_ms):9.1f}{1e3 * batch_size / median:9.0f}  {shown}"
        )
        values[name] = {
            "title": contender.title,
            "median_ms": median,
            "first_call_s": result.first_s,
            "pairs_per_second": 1e3 * batch_size / median,
            "speed_up_over_pytorch": ratio,
            "wall_ms": result.wall_ms,
            "cpu_ms": result.cpu_ms,
        }
    return lines, values


def choose(wanted: str) -> tuple[list[str], dict[str, list[str]]]:
    """Contenders to run, and those left out with the packages they lack.

    Args:
        wanted: names separated by commas; empty for all.

    Raises:
        UserError: an unknown name.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()] or list(CONTENDERS)
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise UserError(f"no contender {unknown[0]}; there are {', '.join(CONTENDERS)}")
    lacking = {name: missing_packages(CONTENDERS[name]) for name in names}
    skipped = {name: packages for name, packages in lacking.items() if packages}
    return [name for name in names if name not in skipped], skipped


def run(options: argparse.Namespace) -> None:
    """Time, print the tables, write the JSON file."""
    chosen, skipped = choose(options.contenders)
    threads = options.threads or len(os.sched_getaffinity(0))
    machine = describe_machine(threads)
    tables: list[str] = []
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "machine": machine,
    }
    with tempfile.TemporaryDirectory(prefix="sdnet_benchmark_") as name:
        job = Job(Path(name), options.batch_size, threads)
        preparation = Worker(PREPARATION, job)
        try:
            preparation.answer()
        finally:
            preparation.close()
        for title, group in (("training step", TRAINING), ("inference", INFERENCE)):
            names = [name for name in chosen if name in group]
            if not names:
                continue
            results = take_turns(names, job, options.rounds, options.repeats)
            lines, record[title.replace(" ", "_")] = section(
                title, group, results, options.batch_size
            )
            tables += ["", *lines]
            if group is INFERENCE:
                record["largest_difference"] = largest_difference(names, job.folder)
                tables.append(
                    f"  largest difference between descriptors {record['largest_difference']:.1e}"
                )
    machine["load_average_after"] = round(os.getloadavg()[0], 2)
    record["skipped"] = skipped
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(
        f"SDNet, batch of {options.batch_size} pairs, float32, {options.rounds} rounds of "
        f"{options.repeats}\n{machine['processor']}, {machine['processors']} processors, "
        f"{threads} used; load {machine['load_average']} before, "
        f"{machine['load_average_after']} after\n{versions}\n{record['command']}"
    )
    print("\n".join(tables))
    for left_out, packages in skipped.items():
        print(f"skipped {left_out}: not installed: {', '.join(packages)}")
    write_json(options.output, record)
    print(f"\nwritten: {options.output}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``benchmark.py``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        description="Time SDNet's training step and inference beside PyTorch, taking turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch_size", type=_positive, default=100, help="pairs per step")
    parser.add_argument("--rounds", type=_positive, default=5, help="turns of each contender")
    parser.add_argument("--repeats", type=_positive, default=5, help="timings per turn")
    parser.add_argument("--threads", type=int, default=0, help="processors to use; 0 uses all")
    parser.add_argument(
        "--contenders", default="", help=f"some of {', '.join(CONTENDERS)}; all if empty"
    )
    parser.add_argument("--output", default="outputs/benchmark.json", help="figures as JSON")
    parser.add_argument("--worker", choices=[PREPARATION, *CONTENDERS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    available = len(os.sched_getaffinity(0))
    if not 0 <= options.threads <= available:
        parser.error(f"--threads must be 0 to {available} here, not {options.threads}")
    try:
        if options.worker:
            job = Job(options.folder, options.batch_size, options.threads)
            work(options.worker, job)
        else:
            run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
