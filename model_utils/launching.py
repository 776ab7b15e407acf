"""Start the processes of one run on this machine, watch them, and say what went wrong.

``python -m model_utils.launching --network sdnet --task train --rank_table FILE --data FOLDER``
starts one process per rank that the table places on this server. Everything after ``--`` goes to
the entry script unchanged. With Ascend cards the ranks meet through the rank table; with
``DEVICE_TARGET=CPU`` (or without a table) they meet through MindSpore's dynamic cluster, whose
scheduler this launcher starts on the first server. We start those processes ourselves rather
than through msrun, which takes half a minute to notice a dead rank.

Each rank has a folder of its own, ``train_parallel{rank}``, below the working directory, with its
output in ``log`` and its settings in ``env.log``. Logs of earlier runs are kept as ``log.1`` (the
latest), ``log.2``, ...
"""

import argparse
import contextlib
import ctypes
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from model_utils.errors import UserError
from model_utils.local_adapter import end_file_setting, noted_end
from model_utils.rank_table import (
    Rank,
    RankTable,
    read_rank_table,
    single_server_table,
    table_path,
)

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("train", "eval", "export", "infer", "convert")
DEFAULT_PORT = 8118  # msrun's default, used when several hosts must agree without being told
_POLL_SECONDS = 0.1
_STOP_SECONDS = 5.0  # from a rank's failure until the others are killed
_TAIL_LINES = 30
# What a later reader of env.log needs; everything else might be private.
_LOGGED = re.compile(
    r"(ASCEND|DEVICE|HCCL|MA|VC|MS|RANK|SERVER|OMP|ONEDNN|GLOG|PYTHON|CUDA|DLS|BATCH)_|"
    r"(PATH|PYTHONPATH|LD_LIBRARY_PATH|HOSTNAME|JOB_ID|LANG)$"
)
_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|KEY|AUTH|COOKIE|SIGNATURE", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass
class Child:
    """A started process.

    Attributes:
        title: what to call it in messages, such as "rank 1 (device 1)".
        process: the process, leader of its own process group.
        log: file holding its output.
        end: file in which it notes its exit status before it leaves.
    """

    title: str
    process: subprocess.Popen[bytes]
    log: Path
    end: Path | None = None
    _crash: int = field(default=0, init=False)

    def poll(self) -> int | None:
        """Its exit status, None while it runs; the noted one if it crashed only on leaving."""
        status = self.process.poll()
        if status is None or status >= 0 or self.end is None:
            return status
        noted = noted_end(self.end)
        if noted is None:
            return status
        if not self._crash:
            say(f"{self.title} {describe_status(status)} on leaving, its work done")
        self._crash = status
        return noted


@dataclass
class Job:
    """Everything that decides how ranks are started.

    Attributes:
        command: interpreter, script and arguments, the same for every rank.
        table: all ranks of the run.
        server: name of this server in the table.
        task: "train", "eval", ...; names the log folders.
        folder: working directory, in which the log folders are made.
        standalone: one process without communication, its folder has no number.
        cluster: environment of MindSpore's dynamic cluster; empty with an HCCL rank table.
        table_file: HCCL rank table in the 1.0 form for the ranks to read, if any.
        grace_s: seconds ranks get to end after a forwarded signal.
    """

    command: list[str]
    table: RankTable
    server: str
    task: str
    folder: Path
    standalone: bool = False
    cluster: dict[str, str] = field(default_factory=dict)
    table_file: Path | None = None
    grace_s: float = 60.0

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """The ranks of this server."""
        return self.table.on_server(self.server)

    def rank_folder(self, rank: Rank) -> Path:
        """Folder with the log of a rank."""
        name = self.task if self.standalone else f"{self.task}_parallel{rank.rank_id}"
        return self.folder / name

    def environment(self, rank: Rank) -> dict[str, str]:
        """Environment of a rank, under ModelZoo's names."""
        result = {name: value for name, value in os.environ.items() if name not in _CLUSTER_NAMES}
        result.update(
            DEVICE_ID=str(rank.device_id),
            RANK_ID=str(rank.rank_id),
            RANK_SIZE=str(self.table.size),
            DEVICE_NUM=str(len(self.ranks)),
            SERVER_ID=str(self.table.servers.index(self.server)),
            PYTHONUNBUFFERED="1",  # so that the log can be followed
            PYTHONPATH=_first(str(ROOT), os.environ.get("PYTHONPATH", "")),
            # Kernel compilers and data workers call "python3": they must find this one.
            PATH=_first(str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)),
        )
        if self.table_file is not None:
            result["RANK_TABLE_FILE"] = str(self.table_file)
        # Meeting each other, ranks print a hundred warnings about not having met yet.
        result.setdefault("GLOG_v", "3")
        if self.cluster:
            result.update(self.cluster, MS_ROLE="MS_WORKER", MS_NODE_ID=str(rank.rank_id))
        return result


_CLUSTER_NAMES = frozenset(
    {"MS_ROLE", "MS_NODE_ID", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "RANK_TABLE_FILE"}
)


class Launcher:
    """Runs a job's processes until all have ended.

    The first rank that fails stops the others within seconds and is named together with the end
    of its log. SIGINT and SIGTERM are forwarded to the ranks, which then have ``job.grace_s``
    seconds to save and end; a second signal ends them at once.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.signal = 0
        self._kill_at = float("inf")
        self._children: list[Child] = []
        self._scheduler: Child | None = None

    def run(self) -> int:
        """Start everything, wait, and return the exit status for the whole run."""
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            self._start()
            return self._watch()
        finally:
            self._kill(self._everyone())
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        job = self.job
        if job.cluster and job.server == job.table.servers[0]:
            self._scheduler = self._start_scheduler()
        shares = core_shares(available_cores(), len(job.ranks))
        if not shares and not job.standalone:
            say(f"fewer than two cores for each of {len(job.ranks)} ranks: not binding them")
        doing = {"train": "training", "eval": "evaluation"}.get(job.task, job.task)
        for rank in job.ranks:
            if self.signal:
                return
            folder = job.rank_folder(rank)
            folder.mkdir(parents=True, exist_ok=True)
            log = fresh_log(folder)
            end = folder / ".end"
            end.unlink(missing_ok=True)
            environment = job.environment(rank) | end_file_setting(end)
            write_env_log(folder / "env.log", environment)
            say(f"start {doing} for rank {rank.rank_id}, device {rank.device_id}")
            cores = shares[rank.local_index] if shares and not job.standalone else None
            title = f"rank {rank.rank_id} (device {rank.device_id})"
            child = start_child(title, job.command, environment, log, job.folder, cores)
            child.end = end
            self._children.append(child)
            if self.signal:  # it came while this child was being started
                child.process.send_signal(self.signal)

    def _start_scheduler(self) -> Child:
        job = self.job
        folder = job.rank_folder(job.ranks[0])
        folder.mkdir(parents=True, exist_ok=True)
        rotate(folder, "scheduler.log")
        environment = job.environment(job.ranks[0]) | {"MS_ROLE": "MS_SCHED"}
        for name in ("MS_NODE_ID", "RANK_ID", "RANK_TABLE_FILE"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "model_utils.launching", "--scheduler"]
        # ROOT as working directory: "-m" looks there first, and a folder of the user's may hold
        # another model_utils.
        return start_child("scheduler", command, environment, folder / "scheduler.log", ROOT)

    def _watch(self) -> int:
        with contextlib.ExitStack() as stack:
            echo = None
            if self._children:
                echo = Follower(stack.enter_context(open(self._children[0].log, "rb")))
            return self._watch_with(echo)

    def _watch_with(self, echo: "Follower | None") -> int:
        while True:
            # Looked at before the log is echoed, so that nothing written at the end is missed.
            statuses = [child.poll() for child in self._children]
            if echo is not None:
                echo.forward()
            failed = self._failed(statuses)
            if self.signal == 0 and failed is not None:
                return self._report(failed)
            if all(status is not None for status in statuses):
                if self.signal == 0:
                    return 0
                say(f"stopped by {signal.Signals(self.signal).name}")
                return 128 + self.signal
            if time.monotonic() > self._kill_at:
                say("ranks did not end in time after the signal: killing them")
                self._kill(self._children)
                self._kill_at = float("inf")
            time.sleep(_POLL_SECONDS)

    def _failed(self, statuses: Sequence[int | None]) -> Child | None:
        for child, status in zip(self._children, statuses, strict=True):
            if status not in (None, 0):
                return child
        scheduler = self._scheduler
        if scheduler is not None and scheduler.process.poll() not in (None, 0):
            return scheduler
        return None

    def _report(self, failed: Child) -> int:
        status = failed.poll() or 0
        stop([child for child in self._everyone() if child is not failed], _STOP_SECONDS)
        print(
            f"error: {failed.title} {describe_status(status)}, so the other ranks were stopped; "
            f"its log is {failed.log} and ends with:\n{tail(failed.log)}",
            file=sys.stderr,
            flush=True,
        )
        return status if status > 0 else 128 - status

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._kill_at = 0.0 if self.signal else time.monotonic() + self.job.grace_s
        self.signal = number
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(number)

    def _everyone(self) -> list[Child]:
        return self._children + ([self._scheduler] if self._scheduler else [])

    def _kill(self, children: Sequence[Child]) -> None:
        stop(children, 0.0)


def start_child(
    title: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    folder: Path,
    cores: Sequence[int] | None = None,
) -> Child:
    """Start a process in a group of its own, bound to some cores, its output going to ``log``."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C reaches the launcher only, which forwards it
            preexec_fn=_child_preparation(cores),
        )
    return Child(title, process, log)


def stop(children: Sequence[Child], patience_s: float) -> None:
    """End processes: ask, wait up to ``patience_s`` seconds, then kill with their groups."""
    running = [child for child in children if child.process.poll() is None]
    deadline = time.monotonic() + patience_s
    if patience_s > 0:
        for child in running:
            child.process.terminate()
        while time.monotonic() < deadline and any(c.process.poll() is None for c in running):
            time.sleep(_POLL_SECONDS)
    for child in running:
        # The whole group: a killed rank cannot end its data-loading processes itself.
        try:
            os.killpg(child.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.process.wait()


def _child_preparation(cores: Sequence[int] | None) -> Callable[[], None]:
    """What a new process does between fork and exec; no imports or logging there."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        if prctl is not None:
            prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: end when the launcher is killed
            if os.getppid() != parent:
                os._exit(1)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare


def available_cores() -> list[int]:
    """Numbers of the cores this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def core_shares(cores: Sequence[int], ranks: int) -> list[list[int]]:
    """Split cores into equal runs of neighbours, one per rank; empty if there are too few.

    Two cores per rank are the least: bound to a single one, MindSpore's communication threads
    starve and ranks need half a minute instead of seven seconds to find each other.

    Args:
        cores: core numbers this process may use.
        ranks: processes on this machine.
    """
    width = len(cores) // ranks
    if width < 2:
        return []
    return [list(cores[index * width : (index + 1) * width]) for index in range(ranks)]


def rotate(folder: Path, name: str) -> None:
    """Keep an existing ``name`` as ``name.1``, an earlier ``name.1`` as ``name.2``, and so on."""
    if not (folder / name).exists():
        return
    last = 1
    while (folder / f"{name}.{last}").exists():
        last += 1
    for number in range(last, 1, -1):
        (folder / f"{name}.{number - 1}").rename(folder / f"{name}.{number}")
    (folder / name).rename(folder / f"{name}.1")


def fresh_log(folder: Path) -> Path:
    """Path of a rank's log, after moving an earlier log and its env.log aside."""
    for name in ("log", "env.log"):
        rotate(folder, name)
    return folder / "log"


def write_env_log(path: Path, environment: Mapping[str, str]) -> None:
    """Write the settings that decide a run, without anything that looks like a secret."""
    lines = []
    for name, value in sorted(environment.items()):
        if not _LOGGED.match(name):
            continue
        shown = "<hidden>" if _SECRET.search(name) else _PASSWORD_IN_URL.sub("<hidden>@", value)
        lines.append(f"{name}={shown}\n")
    path.write_text("".join(lines), encoding="utf-8", errors="replace")


class Follower:
    """Copies what is added to a growing log to our own output."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def forward(self) -> None:
        """Copy everything new."""
        new = self._stream.read()
        if new:
            sys.stdout.buffer.write(new)
            sys.stdout.buffer.flush()


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, at most 16 KiB."""
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - 16384))
        text = stream.read().decode("utf-8", errors="replace")
    # On leaving, the framework's connections say that they had started; that helps nobody.
    told = [line for line in text.splitlines() if not line.startswith("[INFO] DISTRIBUTED(")]
    return "\n".join(told[-lines:]) or "(nothing)"


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory is a common reason)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def say(message: str) -> None:
    """Print a line at once."""
    print(message, flush=True)


def _first(folder: str, search_path: str) -> str:
    return os.pathsep.join([folder, *(part for part in search_path.split(os.pathsep) if part)])


def free_port() -> int:
    """A TCP port free now, outside the range from which the system serves outgoing connections."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError("no free TCP port between 20000 and 32000; set MASTER_PORT to one you know")


def cluster_environment(table: RankTable) -> dict[str, str]:
    """Settings by which ranks find MindSpore's dynamic cluster.

    With one server any free local port does. Several hosts must agree: the first server's name in
    the table (or MASTER_ADDR) and MASTER_PORT, 8118 if unset.
    """
    alone = len(table.servers) == 1
    host = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if alone else table.servers[0])
    port = os.environ.get("MASTER_PORT") or str(free_port() if alone else DEFAULT_PORT)
    if not port.isdecimal():
        raise UserError(f"MASTER_PORT={port} is not a port number; use 1024 to 65535")
    return {"MS_WORKER_NUM": str(table.size), "MS_SCHED_HOST": host, "MS_SCHED_PORT": port}


def run_scheduler() -> None:
    """Be the dynamic cluster's scheduler: no rank, ends when all workers have left."""
    import mindspore
    from mindspore.communication import init

    mindspore.set_device("CPU")
    init()


def find_script(network: str, task: str) -> Path:
    """Entry script of a network, by its folder's name.

    Raises:
        UserError: there is no such network or task; lists the networks.
    """
    script = ROOT / "research" / network.lower() / f"{task}.py"
    if script.is_file():
        return script
    known = sorted(path.parent.name for path in (ROOT / "research").glob(f"*/{task}.py"))
    raise UserError(
        f"no network {network!r} with a {task}.py in {ROOT / 'research'} "
        f"({', '.join(known) or 'none found'}); name one, or start from its folder"
    )


def local_input(value: str, what: str) -> str:
    """An absolute path of an existing file or folder; object-store addresses stay as they are.

    Raises:
        UserError: a local path that does not exist.
    """
    value = value.removeprefix("file://")
    if "://" in value:
        return value
    path = Path(value).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{what} {path} does not exist; check the path")
    return str(path)


def has_ascend() -> bool:
    """Whether this machine shows Ascend cards."""
    return any(Path("/dev").glob("davinci*"))


def build_job(options: argparse.Namespace, extra: Sequence[str]) -> Job:
    """Turn the command line into a job.

    Raises:
        UserError: a path, the table or a number is wrong; one sentence.
    """
    target = os.environ.get("DEVICE_TARGET", "").strip()
    script = (
        Path(local_input(options.script, "script"))
        if options.script
        else find_script(options.network, options.task)
    )
    folder = Path.cwd()
    table, standalone = _table(options)
    # Without a table there is one server only, whatever SERVER_ID was exported for.
    server = table.this_server(options.server_id) if options.rank_table else table.servers[0]
    job = Job([], table, server, options.task, folder, standalone, grace_s=options.grace)
    if options.rank_table:
        job.table_file = _usable_table_file(options.rank_table, job)
        say(f"RANK_TABLE_FILE={job.table_file}")
    if table.size > 1 and (target.upper() in ("CPU", "GPU") or not options.rank_table):
        job.cluster = cluster_environment(table)
    elif table.size > 1 and not target and not has_ascend():
        raise UserError(
            "this machine shows no Ascend card (/dev/davinci*); set DEVICE_TARGET=CPU to run the "
            "table's ranks as processes of this machine"
        )
    job.command = [sys.executable, str(script), *_flags(options, extra, job, target)]
    return job


def _table(options: argparse.Namespace) -> tuple[RankTable, bool]:
    if options.rank_table:
        return read_rank_table(options.rank_table, wait_s=options.table_wait), False
    if options.device_num is not None:
        if options.device_num < 1:
            raise UserError(f"--device_num {options.device_num} is not a number of ranks; use >= 1")
        return single_server_table(range(options.device_num)), False
    device = options.device_id if options.device_id is not None else os.environ.get("DEVICE_ID", 0)
    if not str(device).isdecimal():
        raise UserError(f"device id {device!r} is not 0, 1, 2, ...; give the number of one card")
    return single_server_table([int(device)]), True


def _usable_table_file(path: str, job: Job) -> Path:
    """The table for HCCL to read: the given file, or the old form rewritten in the log folder."""
    file = table_path(path).absolute()
    if job.table.version != "0":
        return file
    return job.table.write(job.rank_folder(job.ranks[0]) / "rank_table_v1.json")


def _flags(options: argparse.Namespace, extra: Sequence[str], job: Job, target: str) -> list[str]:
    """Arguments of the entry script; the user's own come last and so win."""
    flags = []
    if options.data:
        flags.append(f"--data_path={local_input(options.data, 'data path')}")
    if options.checkpoint:
        flags.append(f"--checkpoint_path={local_input(options.checkpoint, 'checkpoint')}")
    output = options.output or job.rank_folder(job.table.ranks[0])
    flags.append(f"--output_path={Path(output).absolute()}")
    if job.table.size > 1:
        flags.append("--is_distributed=True")
    if target:
        flags.append(f"--device_target={target}")
    return [*flags, *extra]


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into the launcher's options and the entry script's."""
    argv = list(argv)
    extra: list[str] = []
    if "--" in argv:
        extra = argv[argv.index("--") + 1 :]
        argv = argv[: argv.index("--")]
    parser = argparse.ArgumentParser(
        prog="python -m model_utils.launching",
        description="Start the processes of one run on this machine. "
        "Everything after -- goes to the entry script.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--network", help="folder under research/, such as sdnet")
    what.add_argument("--script", help="any other Python script to start")
    parser.add_argument("--task", choices=TASKS, default="train", help="entry script of --network")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--rank_table", help="HCCL table, or the folder holding jobstart_hccl.json")
    where.add_argument("--device_num", type=int, help="ranks on this machine, without a table")
    where.add_argument("--device_id", help="one process on this card (default: DEVICE_ID or 0)")
    parser.add_argument("--data", help="data folder or file, handed over as --data_path")
    parser.add_argument("--checkpoint", help="handed over as --checkpoint_path")
    parser.add_argument("--output", help="results (default: the log folder of rank 0)")
    parser.add_argument("--server_id", help="this server's position or name in the table")
    parser.add_argument("--workdir", help="directory to work in (default: the current one)")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds to end after a signal")
    parser.add_argument(
        "--table_wait", type=float, default=600.0, help="seconds to wait for an unfinished table"
    )
    return parser.parse_args(argv), extra


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if list(argv) == ["--scheduler"]:
        run_scheduler()
        return 0
    options, extra = parse_arguments(argv)
    try:
        if options.workdir:
            os.chdir(options.workdir)
        job = build_job(options, extra)
        say(f"command: {shlex.join(job.command)}")
        return Launcher(job).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
