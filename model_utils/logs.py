"""What a run says: lines, a progress bar, a table of figures, curves."""

import csv
import io
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_utils.files import PathLike, atomic_write, write_json

log = logging.getLogger("zoo")


def start_logging(first_rank: bool = True, file: PathLike | None = None) -> None:
    """Send the "zoo" logger to standard output and, for the first rank, to a file too.

    Args:
        first_rank: other ranks only report warnings.
        file: also append every line here.
    """
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.INFO if first_rank else logging.WARNING)
    log.propagate = False
    console = _Console()
    console.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(console)
    if file is not None and first_rank:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        stream = logging.FileHandler(file, encoding="utf-8")
        stream.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(stream)


class _Console(logging.Handler):
    """Writes whole lines above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class Progress:
    """A bar on a terminal, a line now and then in a log.

    Args:
        total: units of the whole work.
        what: a short word for it.
        initial: units done before (a resumed run).
        every: seconds between lines when there is no terminal.
        show: False for all ranks but the first.
    """

    def __init__(
        self,
        total: int,
        what: str,
        initial: int = 0,
        every: float = 30.0,
        show: bool = True,
        unit: str = "step",
    ) -> None:
        from tqdm import tqdm

        self.total, self.what, self.every, self.unit = total, what, every, unit
        self.done, self.initial, self.show = initial, initial, show
        self.started = self.spoken = time.monotonic()
        self.bar = None
        if show and sys.stdout.isatty():
            self.bar = tqdm(
                total=total, initial=initial, desc=what, unit=unit, file=sys.stdout, leave=False
            )

    def advance(self, count: int = 1, figures: str = "") -> None:
        """Count finished units; ``figures`` is shown behind the bar."""
        self.done += count
        if self.bar is not None:
            self.bar.set_postfix_str(figures, refresh=False)
            self.bar.update(count)
        elif self.show and time.monotonic() - self.spoken >= self.every:
            self.spoken = time.monotonic()
            rate = (self.done - self.initial) / max(1e-9, self.spoken - self.started)
            left = (self.total - self.done) / max(1e-9, rate)
            log.info(
                "%s %d/%d, %s%.2f %s/s, %s left",
                self.what,
                self.done,
                self.total,
                figures + ", " if figures else "",
                rate,
                self.unit,
                duration(left),
            )

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """Seconds as 59s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Table:
    """metrics.csv: one row per epoch, always whole, cut back on resume.

    Args:
        path: the CSV file.
        keep_until: on resume, the last step to keep; rows of later steps were never part of
            the state that training goes on from.
    """

    def __init__(self, path: PathLike, keep_until: int | None = None) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        if keep_until is not None and self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as stream:
                self.rows = [r for r in csv.DictReader(stream) if int(r["step"]) <= keep_until]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and write the file anew (it has one line per epoch)."""
        self.rows.append(dict(row))
        columns: dict[str, None] = {}
        for each in self.rows:
            columns.update(dict.fromkeys(each))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path, "w") as stream:
            stream.write(text.getvalue())


class Scalars:
    """TensorBoard event files if tensorboardX is installed, nothing otherwise."""

    def __init__(self, folder: PathLike, enabled: bool = True) -> None:
        self.writer: Any = None
        if enabled:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                return
            self.writer = SummaryWriter(str(folder))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the files."""
        if self.writer is not None:
            self.writer.close()


def write_metrics(path: PathLike, metrics: Mapping[str, Any]) -> None:
    """metrics.json: the figures and how they were measured."""
    write_json(path, dict(metrics))
