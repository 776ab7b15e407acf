"""Files that are either whole or absent, folders with one writer, images that say what is wrong."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from model_utils.errors import UserError

PathLike = str | os.PathLike[str]
# What makes a target unwritable, with words where the system's own would mislead.
_UNWRITABLE = {
    errno.EACCES: "",
    errno.EPERM: "",
    errno.EROFS: "",
    errno.ENOTDIR: "",
    errno.EEXIST: "",
    errno.EISDIR: "a folder has this name",
    errno.ENAMETOOLONG: "",
    errno.ELOOP: "",
    errno.EIO: "",
    # Parents are created, so this is a place like /proc, or a folder removed meanwhile.
    errno.ENOENT: "the folder does not exist and cannot be created",
}


# Names that atomic_path gives its temporary files; mkstemp draws the eight characters.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp(\.[^.]+)?")


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path in the target's folder and move it over ``path`` on success.

    A reader never sees half a file, and an earlier file survives any failure. The data is
    flushed to the disk before the move, so that a power cut cannot leave an empty file either.
    The temporary name keeps the target's suffix, for writers that choose a format by it.

    Raises:
        UserError: the folder cannot be written or the disk is full; names the target.
    """
    target = Path(path)
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.stem}.", suffix=f".tmp{target.suffix}", dir=target.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            # mkstemp creates 0600; results are for everybody the umask allows.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when complete.

    Args:
        path: the final name.
        mode: "wb" for bytes or "w" for UTF-8 text.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream,
    ):
        yield stream


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NumPy numbers become plain ones."""

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, np.ndarray):
            return item.tolist()
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"{type(item).__name__} cannot be written as JSON")

    with atomic_write(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, default=plain)
        stream.write("\n")


def read_json(path: PathLike) -> Any:
    """Read a JSON file; a missing or malformed one is a UserError that names the position."""
    require_file(path, "JSON file")
    with open(path, encoding="utf-8") as stream:
        try:
            return json.load(stream)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error


def require_file(path: PathLike, what: str, remedy: str = "check the path") -> Path:
    """Return ``path`` if it is a readable file, else raise a UserError saying why not."""
    found = Path(path)
    mode = _mode(found, what, remedy)
    if stat.S_ISDIR(mode):
        raise UserError(f"{what} {found} is a folder, not a file; {remedy}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{what} {found} is not a regular file; {remedy}")
    if not os.access(found, os.R_OK):
        raise UserError(f"{what} {found} cannot be read: permission denied; {remedy}")
    return found


def require_folder(path: PathLike, what: str, remedy: str = "check the path") -> Path:
    """Return ``path`` if it is a readable folder, else raise a UserError saying why not."""
    found = Path(path)
    if not stat.S_ISDIR(_mode(found, what, remedy)):
        raise UserError(f"{what} {found} is a file, not a folder; {remedy}")
    if not os.access(found, os.R_OK | os.X_OK):
        raise UserError(f"{what} {found} cannot be read: permission denied; {remedy}")
    return found


def _mode(path: Path, what: str, remedy: str) -> int:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{what} {path} does not exist; {remedy}") from error
    except (OSError, ValueError) as error:  # no permission, a name too long or with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {path} cannot be read: {reason}; {remedy}") from error


def sha256(path: PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _QuietOpenCV:
    """Silences OpenCV's log, whose level is global, while any thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._level = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._level = cv2.setLogLevel(0)  # returns the earlier one
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                cv2.setLogLevel(self._level)


quiet_opencv = _QuietOpenCV()


def read_image(path: PathLike, channels: int = 3) -> np.ndarray:
    """Read an image file as (H, W, 3) RGB or (H, W) grey, keeping its integer type.

    Args:
        path: PNG, JPEG, TIFF or anything else OpenCV reads; names may hold any characters.
        channels: 3 for RGB (a grey file is repeated, alpha is dropped), 1 for grey (ITU-R 601
            weights for a colour file), 0 for the file as it is, colours in RGB order.

    Raises:
        UserError: the file is missing, empty, or cannot be decoded.
    """
    require_file(path, "image")
    # imdecode rather than imread: it takes non-ASCII paths everywhere and does not print.
    data = np.fromfile(path, np.uint8)
    with quiet_opencv:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if data[:2].tobytes() in _TIFF and (image is None or image.ndim == 3 and image.shape[2] == 4):
        image = _four_bands(path)
    if image is None:
        raise UserError(
            f"image {path} is corrupt or of an unknown format ({data.size} bytes); "
            "replace or remove it"
        )
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[:, :, :3] if channels else image[:, :, [2, 1, 0, 3]]
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2) if channels == 3 else image
    # Several times as fast as reversing the axis in NumPy; cvtColor lacks some types.
    return cv2.merge(cv2.split(image)[::-1]) if image.shape[2] == 3 else image


_TIFF = (b"II", b"MM")


def _four_bands(path: PathLike) -> np.ndarray | None:
    """A TIFF of four bands as (H, W, 4), in OpenCV's order; None if it is none or corrupt.

    OpenCV takes any fourth band, such as near infrared, for transparency and darkens the colours
    by it.

    Raises:
        UserError: more bands.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                if source.count > 4:
                    raise UserError(
                        f"image {path} has {source.count} bands; only grey, RGB and RGB with one "
                        "more are read: write the three you want to a file of their own"
                    )
                bands = source.read([3, 2, 1, 4]) if source.count == 4 else None
    except RasterioIOError:
        return None
    return None if bands is None else np.ascontiguousarray(bands.transpose(1, 2, 0))


def write_image(path: PathLike, image: np.ndarray) -> None:
    """Write (H, W, 3) RGB or (H, W) grey as PNG, JPEG or TIFF (by suffix), atomically."""
    pixels = image[:, :, ::-1] if image.ndim == 3 else image
    done, data = cv2.imencode(Path(path).suffix, np.ascontiguousarray(pixels))
    if not done:
        raise UserError(f"{path}: OpenCV cannot write {image.dtype} {image.shape} in this format")
    with atomic_write(path) as stream:
        stream.write(data.tobytes())


class FolderLock:
    """One writer per output folder, across processes; released by the kernel when they die.

    Whoever takes the lock removes the temporary files that killed writers left in the folder.

    Raises:
        UserError: another run holds the folder; names its process.
    """

    def __init__(self, folder: PathLike) -> None:
        self.path = Path(folder) / ".lock"
        self._stream: IO[str] | None = None

    def __enter__(self) -> "FolderLock":
        """Take the lock or say who has it."""
        with explain_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Kept open as long as the lock is held: flock goes with the open file.
            stream = open(self.path, "a+", encoding="ascii")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            owner = stream.read().strip() or "unknown"
            stream.close()
            raise UserError(
                f"{self.path.parent} is being written by process {owner}; wait for it, stop it, "
                "or choose another output_path"
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        self._stream = stream
        with explain_os_errors(self.path):
            for found in self.path.parent.iterdir():
                if _TEMPORARY.fullmatch(found.name):
                    found.unlink(missing_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Release the lock."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses while ``path`` is written into a UserError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left while writing {path}; free some space, earlier files are untouched"
            ) from error
        if error.errno in _UNWRITABLE and _concerns(error, path):
            raise UserError(
                f"cannot write {path}: {_UNWRITABLE[error.errno] or error.strerror}; "
                "choose a folder you may write to"
            ) from error
        raise


def _concerns(error: OSError, path: Path) -> bool:
    # The body of a write may also read; a missing input is not the target's fault.
    if not isinstance(error.filename, str):
        return True
    named = Path(error.filename)
    return path.parent in (named, *named.parents) or named in path.parents
