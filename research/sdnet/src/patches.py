"""Archives of registered optical/SAR patch pairs: reading without loading, streamed writing.

Layout (that of the published SDNet, `.npz`, and the same names as HDF5 datasets):

* ``arr_0`` (N, 64, 128) uint8 or float: left 64 columns optical, right 64 columns SAR;
* ``arr_1`` (N,): 1 = the two halves show the same place, 0 = they do not;
* optional, written by ``prepare_data.py``: ``names`` (M,) image names as UTF-8 bytes,
  ``sources`` (N, 2) int32 index into ``names`` of the optical and the SAR half,
  ``positions`` (N, 4) int32 centre x, y of the optical and x, y of the SAR window, pixels.
"""

import contextlib
import errno
import logging
import os
import shutil
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path, require_file, require_folder

log = logging.getLogger("zoo")

PATCH_SIZE = 64
ROW_SHAPE = (PATCH_SIZE, 2 * PATCH_SIZE)
HDF5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".npz", *HDF5_SUFFIXES)
_CHUNK_ROWS = 4  # HDF5 rows per chunk: 32 KiB of uint8, one random read stays cheap
_LAYOUT = "arr_0 (N,64,128) with optical left and SAR right, arr_1 (N,) with labels 1/0"


class PatchArchive:
    """Read access to an archive of N patch pairs; made by :func:`open_patches`.

    Pixels stay on the disk (memory-mapped, or read row by row from HDF5), so several
    processes share one copy in the page cache. Only labels and sources are held in memory.
    An archive may be used from several threads, and pickling it reopens the file.

    Attributes:
        path: the file.
        labels: (N,) int32, 1 = matching.
        names, sources, positions: where a patch comes from, or None (see the module).
    """

    def __init__(
        self,
        path: Path,
        images: Any,
        labels: np.ndarray,
        extras: dict[str, np.ndarray],
    ) -> None:
        self.path = path
        self._images = images
        _check_images(path, images.shape, images.dtype)
        self.labels = _checked_labels(path, labels, images.shape[0])
        self.names, self.sources, self.positions = _checked_sources(path, extras, len(self))

    def __len__(self) -> int:
        return int(self._images.shape[0])

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # A memory map would be pickled as its content.
        return open_patches, (str(self.path),)

    @property
    def dtype(self) -> np.dtype:
        """Type of the stored pixels."""
        return self._images.dtype

    @property
    def in_memory(self) -> bool:
        """Whether all pixels were loaded (compressed npz) instead of being read on demand."""
        return not isinstance(self._images, np.memmap | _Hdf5Rows)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The optical and the SAR patch of row ``index``, each (64, 64), in the stored type.

        Raises:
            IndexError: no such row.
            UserError: the row holds NaN or infinite pixels (float archives).
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = np.asarray(self._images[index % len(self)])
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            raise UserError(
                f"{self.path}: row {index % len(self)} ({self.name(index)}) holds NaN or infinite "
                "pixels; remove it or prepare the archive again"
            )
        return row[:, :PATCH_SIZE], row[:, PATCH_SIZE:]

    def pairs(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``start`` to ``stop``, exclusive: (n, 64, 64) optical and (n, 64, 64) SAR."""
        rows = np.asarray(self._images[start:stop])
        if rows.dtype.kind == "f":
            broken = np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))
            if broken.size:
                self.pair(start + int(broken[0]))
        return rows[:, :, :PATCH_SIZE], rows[:, :, PATCH_SIZE:]

    def name(self, index: int) -> str:
        """Where a patch comes from: ``image@x,y`` (``a@x,y|b@x,y`` for a non-matching pair).

        The row number where the archive does not say.
        """
        index %= len(self)
        if self.names is None or self.sources is None:
            return f"{index:06d}"
        texts = []
        for half in range(2):
            text = str(self.names[self.sources[index, half]])
            if self.positions is not None:
                x, y = self.positions[index, 2 * half : 2 * half + 2]
                text += f"@{x},{y}"
            texts.append(text)
        return texts[0] if texts[0] == texts[1] else "|".join(texts)


def open_patches(path: PathLike) -> PatchArchive:
    """Open an archive written as ``.npz``, ``.h5`` or ``.hdf5``.

    Members of an uncompressed npz are memory-mapped inside the zip file. A compressed npz has
    to be loaded (a log line says so and how to avoid it).

    Raises:
        UserError: the file is missing, truncated, of another layout, or holds labels other
            than 0 and 1, pixels that are neither uint8 nor float, or Python objects.
    """
    file = require_file(path, "patch archive", "prepare it with prepare_data.py or check the path")
    if file.suffix.lower() in HDF5_SUFFIXES:
        return _open_hdf5(file)
    if file.suffix.lower() == ".npz":
        return _open_npz(file)
    raise UserError(
        f"patch archive {file} has the unknown suffix {file.suffix!r}; use one of "
        f"{', '.join(SUFFIXES)}"
    )


def has_archive(folder: PathLike, split: str) -> bool:
    """Whether a data folder holds an archive of a split."""
    return any((Path(folder) / f"{split}{suffix}").is_file() for suffix in SUFFIXES)


def find_archive(folder: PathLike, split: str) -> Path:
    """The archive ``<split>.npz``, ``.h5`` or ``.hdf5`` of a data folder.

    Raises:
        UserError: the folder or the archive is missing, or there are several of that name.
    """
    root = require_folder(folder, "data folder", "set --data_path to the folder of the archives")
    found = [root / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [file for file in found if file.is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"{root} holds no {split}.npz, {split}.h5 or {split}.hdf5; make it with "
            "prepare_data.py or correct --data_path"
        )
    names = " and ".join(file.name for file in found)
    raise UserError(f"{root} holds both {names}; keep only one of them")


class PatchWriter:
    """Append patches to a new archive; the file appears under its name only when complete.

    Use it as a context manager. Leaving it with an exception leaves no file behind (an earlier
    one survives). Memory use does not grow with the number of patches.

    Args:
        path: the archive; its suffix chooses npz (uncompressed) or HDF5.
        dtype: type of the pixels, uint8 or a float type.
    """

    def __init__(self, path: PathLike, dtype: Any = np.uint8) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype)
        self.count = 0
        if self.path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"cannot write {self.path}: the suffix must be one of {', '.join(SUFFIXES)}"
            )
        _check_dtype(self.path, self.dtype)
        self._labels: list[np.ndarray] = []
        self._sources: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._names: dict[str, int] = {}
        self._stack = contextlib.ExitStack()
        self._sink: _NpzSink | _Hdf5Sink | None = None

    def __enter__(self) -> "PatchWriter":
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            sink_type = _NpzSink if self.path.suffix.lower() == ".npz" else _Hdf5Sink
            self._sink = stack.enter_context(contextlib.closing(sink_type(temporary, self.dtype)))
            self._stack = stack.pop_all()
        return self

    def append(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        sources: Sequence[tuple[str, str]] | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        """Add n rows.

        Args:
            images: (n, 64, 128), optical left, SAR right, of the writer's type.
            labels: (n,) of 0 and 1.
            sources: names of the optical and of the SAR image of each row.
            positions: (n, 4) centre x, y in the optical, x, y in the SAR image; needs sources.
        """
        if self._sink is None:
            raise ValueError("PatchWriter is used as a context manager: with PatchWriter(...)")
        images = np.ascontiguousarray(images)
        if images.shape[1:] != ROW_SHAPE or images.dtype != self.dtype:
            raise UserError(
                f"{self.path}: cannot append {images.dtype} {images.shape}; rows must be "
                f"{self.dtype} (n,64,128)"
            )
        rows = len(images)
        self._labels.append(_checked_labels(self.path, np.asarray(labels), rows).astype(np.uint8))
        if sources is not None:
            table = [[self._name(name) for name in pair] for pair in sources]
            self._sources.append(np.asarray(table, np.int32).reshape(rows, 2))
            if positions is not None:
                self._positions.append(np.asarray(positions, np.int32).reshape(rows, 4))
        self._sink.write(images)
        self.count += rows

    def _name(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The stack closes the sink, then atomic_path publishes or removes the file.
        try:
            if kind is None and self._sink is not None:
                self._sink.finish(self._members())
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        self._stack.__exit__(kind, error, trace)

    def _members(self) -> dict[str, np.ndarray]:
        if not self.count:
            raise UserError(f"no patches were written to {self.path}; nothing is kept")
        members = {"arr_1": np.concatenate(self._labels)}
        if self._sources:
            members["sources"] = np.concatenate(self._sources)
            members["names"] = np.array([name.encode() for name in self._names])
        if self._positions:
            members["positions"] = np.concatenate(self._positions)
        for name in ("sources", "positions"):
            if name in members and len(members[name]) != self.count:
                raise ValueError(f"{name} given for {len(members[name])} of {self.count} rows")
        return members


class _NpzSink:
    """Rows go to a nameless file first: the npy header in front of them needs their number."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._path = path
        self._dtype = dtype
        self._rows = 0
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)

    def write(self, images: np.ndarray) -> None:
        self._spool.write(images.data)
        self._rows += len(images)

    def finish(self, members: dict[str, np.ndarray]) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *ROW_SHAPE),
        }
        self._spool.seek(0)
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                shutil.copyfileobj(self._spool, stream, 1 << 22)
            for name, value in members.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, value, allow_pickle=False)

    def close(self) -> None:
        self._spool.close()


class _Hdf5Sink:
    # HDF5 may crash the process when the disk fills up during a flush, so that is asked before.
    _RESERVE = 4 << 20

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        import h5py

        self._folder = path.parent
        self._need(0)
        self._file = h5py.File(path, "w")
        self._images = self._file.create_dataset(
            "arr_0",
            shape=(0, *ROW_SHAPE),
            maxshape=(None, *ROW_SHAPE),
            chunks=(_CHUNK_ROWS, *ROW_SHAPE),
            dtype=dtype,
        )

    def write(self, images: np.ndarray) -> None:
        self._need(images.nbytes)
        start = len(self._images)
        self._images.resize(start + len(images), axis=0)
        self._images[start:] = images

    def finish(self, members: dict[str, np.ndarray]) -> None:
        self._need(sum(value.nbytes for value in members.values()))
        for name, value in members.items():
            self._file.create_dataset(name, data=value)

    def _need(self, size: int) -> None:
        if shutil.disk_usage(self._folder).free < size + self._RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


class _Hdf5Rows:
    """Rows of an HDF5 dataset, with one open file per thread and process.

    HDF5 handles do not survive a fork, and a handle of its own gives each thread its own
    chunk cache.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self._local = threading.local()

    def __getitem__(self, key: int | slice) -> np.ndarray:
        if getattr(self._local, "process", None) != os.getpid():
            import h5py

            self._local.file = h5py.File(self.path, "r")
            self._local.process = os.getpid()
        return self._local.file["arr_0"][key]


def _open_hdf5(path: Path) -> PatchArchive:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _check_keys(path, set(file))
            images = file["arr_0"]
            rows = _Hdf5Rows(path, images.shape, images.dtype)
            members: dict[str, np.ndarray] = {
                key: file[key][()]
                for key in ("arr_1", "names", "sources", "positions")
                if key in file
            }
    except (OSError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"patch archive {path} is truncated or not HDF5 ({error}); copy or prepare it again"
        ) from error
    return PatchArchive(path, rows, members.pop("arr_1"), members)


def _open_npz(path: Path) -> PatchArchive:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            _check_keys(path, set(infos))
            images = _map_member(path, archive, infos["arr_0"])
            members: dict[str, np.ndarray] = {
                key: _load_member(path, archive, infos[key])
                for key in ("arr_1", "names", "sources", "positions")
                if key in infos
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UserError(
            f"patch archive {path} is truncated or not an npz file ({error}); copy or prepare it "
            "again"
        ) from error
    return PatchArchive(path, images, members.pop("arr_1"), members)


def _load_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        try:
            return np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            raise UserError(
                f"{path}: member {info.filename} cannot be read ({error}); expected {_LAYOUT}"
            ) from error


def _map_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """The array of a zip member as a memory map, or loaded where it is compressed."""
    with archive.open(info) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(stream)
        except ValueError as error:
            raise UserError(
                f"{path}: member {info.filename} is not a NumPy array ({error})"
            ) from error
        header = stream.tell()
    _check_images(path, shape, dtype)
    if header + int(np.prod(shape)) * dtype.itemsize != info.file_size:
        raise UserError(
            f"{path}: {info.filename} announces {shape} {dtype} but holds {info.file_size} bytes; "
            "the archive is damaged, prepare it again"
        )
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
        log.warning(
            "%s is compressed: all %d patches (%.1f GB) are loaded into memory; to read it from "
            "the disk instead, convert it once in Python with "
            "research.sdnet.src.preparing.convert('%s', 'NEW.h5')",
            path, shape[0], info.file_size / 1e9, path,
        )  # fmt: skip
        return _load_member(path, archive, info)
    # The local header's name and extra field may differ in length from the central directory's.
    with open(path, "rb") as raw:
        raw.seek(info.header_offset)
        local = raw.read(30)
    if local[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no local header for {info.filename}")
    start = info.header_offset + 30
    start += int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return np.memmap(
        path, dtype, "r", offset=start + header, shape=shape, order="F" if fortran else "C"
    )


def _check_keys(path: Path, keys: set[str]) -> None:
    missing = {"arr_0", "arr_1"} - keys
    if missing:
        raise UserError(
            f"patch archive {path} lacks {' and '.join(sorted(missing))} (it holds "
            f"{', '.join(sorted(keys)) or 'nothing'}); expected {_LAYOUT}"
        )


def _check_dtype(path: Path, dtype: np.dtype) -> None:
    if dtype != np.uint8 and dtype.kind != "f":
        raise UserError(f"{path}: pixels of type {dtype} are not supported; use uint8 or float32")


def _check_images(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    _check_dtype(path, dtype)
    if len(shape) != 3 or shape[1:] != ROW_SHAPE:
        raise UserError(f"{path}: arr_0 has the shape {shape}; expected {_LAYOUT}")
    if not shape[0]:
        raise UserError(f"patch archive {path} holds no patches; prepare it again")


def _checked_labels(path: Path, labels: np.ndarray, rows: int) -> np.ndarray:
    if labels.shape != (rows,):
        raise UserError(
            f"{path}: arr_1 has the shape {labels.shape} for {rows} patches; expected {_LAYOUT}"
        )
    if labels.dtype.kind not in "biuf":
        raise UserError(f"{path}: labels of type {labels.dtype} are not numbers; use 0 and 1")
    odd = np.flatnonzero((labels != 0) & (labels != 1))
    if odd.size:
        raise UserError(
            f"{path}: label {labels[odd[0]]} in row {odd[0]} ({odd.size} such rows); labels must "
            "be 0 or 1"
        )
    return labels.astype(np.int32)


def _checked_sources(
    path: Path, extras: dict[str, np.ndarray], rows: int
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    names, sources = extras.get("names"), extras.get("sources")
    if names is None or sources is None:
        return None, None, None
    positions = extras.get("positions")
    if names.ndim != 1 or names.dtype.kind not in "SO" or sources.shape != (rows, 2):
        raise UserError(f"{path}: names {names.shape} and sources {sources.shape} do not fit")
    if positions is not None and positions.shape != (rows, 4):
        raise UserError(f"{path}: positions {positions.shape} do not fit {rows} patches")
    if sources.min() < 0 or sources.max() >= len(names):
        raise UserError(f"{path}: sources refer to images outside the {len(names)} names")
    return np.array([name.decode() for name in names]), sources, positions
