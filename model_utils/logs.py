"""What a run says: lines, a progress bar, a table of figures, curves."""

import contextlib
import csv
import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_write, explain_os_errors

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
        with explain_os_errors(Path(file)):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            stream = logging.FileHandler(file, encoding="utf-8")
        # No time in front: these are the lines that ModelZoo users' scripts look for.
        stream.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(stream)


class _Console(logging.Handler):
    """Writes whole lines above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if sys.stdout is None:  # started with a closed standard output
            return
        with _outliving_stdout():
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


@contextlib.contextmanager
def _outliving_stdout() -> Iterator[None]:
    """Go on without the console when its reader, such as head, or its terminal has gone."""
    try:
        yield
    except OSError as error:
        # The descriptor rather than sys.stdout: other prints and the flush at exit use it too.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        log.warning("nothing more is written to standard output (%s)", error.strerror)


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
        if show and sys.stdout is not None and sys.stdout.isatty():
            self.bar = tqdm(
                total=total, initial=initial, desc=what, unit=unit, file=sys.stdout, leave=False
            )

    def advance(self, count: int = 1, figures: str = "") -> None:
        """Count finished units; ``figures`` is shown behind the bar."""
        self.done += count
        if self.bar is not None:
            with _outliving_stdout():
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
            with _outliving_stdout():
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

    Raises:
        UserError: the file to go on with is no such table; names the line.
    """

    def __init__(self, path: PathLike, keep_until: int | None = None) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        if keep_until is not None and self.path.is_file():
            self.rows = [row for row in self._read() if int(row["step"]) <= keep_until]

    def _read(self) -> list[dict[str, Any]]:
        line = 1
        try:
            with open(self.path, newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream, strict=True)
                if "step" not in (reader.fieldnames or ()):
                    raise ValueError("the header names no column 'step'")
                rows = []
                for row in reader:
                    line = reader.line_num
                    if None in row or None in row.values():
                        raise ValueError("the row has not as many values as the header names")
                    if not (row["step"].isascii() and row["step"].isdecimal()):
                        raise ValueError(f"step={row['step']!r} is not a whole number")
                    rows.append(row)
                return rows
        except (ValueError, csv.Error) as error:
            raise UserError(
                f"{self.path}, line {line}: {error}; restore the line as it was written, or move "
                "the file elsewhere to begin a new table"
            ) from error

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
