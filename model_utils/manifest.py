"""A record of what a long run has finished, so that it goes on after a kill."""

import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from model_utils.errors import UserError
from model_utils.files import PathLike, explain_os_errors

log = logging.getLogger("zoo")


class Manifest:
    """JSON lines: the run's settings, then one entry per finished piece of work.

    A context manager that keeps the file open for :meth:`add`, which several threads may call.
    A line is handed to the system when its work is done, so a killed process loses none; after a
    power cut, lines at the end may be missing or broken, which only repeats their work.

    Args:
        path: the file; created with its folder if missing.
        settings: plain values that decide what the results look like. A file of other settings
            is refused.

    Attributes:
        done: entries by the value of their ``file``.

    Raises:
        UserError: the file is of other settings, is no such file, or cannot be written.
    """

    def __init__(self, path: PathLike, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.done: dict[str, dict[str, Any]] = {}
        self._stream: IO[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Manifest":
        """Read what is there and open the file for more."""
        whole = 0
        if self.path.is_file():
            settings, self.done, whole = _read(self.path)
            if whole:
                self._compare(settings)
        with explain_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(self.path, "ab")
        self._stream = stream
        stream.truncate(whole)  # a line that a kill cut off
        if not whole:
            self._write({"settings": self.settings})
        return self

    def _compare(self, settings: Mapping[str, Any]) -> None:
        for name in {**settings, **self.settings}:
            old, new = settings.get(name), self.settings.get(name)
            if old != new:
                raise UserError(
                    f"{self.path.parent} was written with {name} {old}, not {new}; choose another "
                    "output_path, or remove the folder to begin anew"
                )

    def add(self, entry: Mapping[str, Any]) -> None:
        """Note finished work; ``entry["file"]`` names it."""
        with self._lock:
            self._write(entry)
            self.done[entry["file"]] = dict(entry)

    def _write(self, entry: Mapping[str, Any]) -> None:
        assert self._stream is not None, "open the manifest with 'with' first"
        with explain_os_errors(self.path):
            self._stream.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def read_manifest(path: PathLike) -> list[dict[str, Any]]:
    """The entries of a manifest, in the order they were finished.

    Raises:
        UserError: it is no manifest.
    """
    return list(_read(Path(path))[1].values())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], int]:
    """Settings, entries by file and how many bytes of the file are whole lines."""
    settings: dict[str, Any] | None = None
    done: dict[str, dict[str, Any]] = {}
    whole = 0
    line = b""
    with open(path, "rb") as stream:
        for line in stream:
            entry = _entry(line, "settings" if settings is None else "file")
            if entry is None:
                break
            if settings is None:
                settings = entry["settings"]
            else:
                done[entry["file"]] = entry
            whole += len(line)
    size = os.path.getsize(path)
    if settings is None and line.endswith(b"\n"):
        raise UserError(f"{path} is no manifest of this tool; move it elsewhere to begin anew")
    if whole < size:
        log.warning("%s: the last %d bytes are not whole and left out", path, size - whole)
    return settings or {}, done, whole


def _entry(line: bytes, name: str) -> dict[str, Any] | None:
    """A line's entry if the line is whole and has a value of that name."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and name in entry else None


def write_replacing(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when complete.

    Unlike ``files.atomic_write`` it does not wait for the disk, which would take longer than
    making a small file: a power cut may leave it shorter than its entry in a manifest says. The
    temporary file has one fixed name, so whoever repeats the work after a kill removes it.
    """
    temporary = path.with_name(f".{path.name}.part")
    with explain_os_errors(path):
        temporary.write_bytes(data)
        os.replace(temporary, path)
