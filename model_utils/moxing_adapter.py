"""ModelArts jobs: data in, results out, once per host and whole or not at all.

:func:`modelarts_job` is what an entry script needs; :func:`moxing_wrapper` is the same under
ModelZoo's name. Both act on these keys of a configuration, as ModelZoo users know them:

========================================  =====================================================
``enable_modelarts`` / ``modelArts_mode``  whether any of this happens
``data_url`` -> ``data_path``              data set, copied in before the run
``checkpoint_url`` -> ``load_path``        checkpoint (or ``checkpoint_path``), copied in
``output_path`` -> ``train_url``           results, copied out during the run and after it
========================================  =====================================================

An address without ``scheme://``, or with ``file://``, is a folder the platform has already
mounted: it is used where it is.

A storage backend copies. ``obs://`` and ``s3://`` are served by MoXing where it can be imported
(ModelArts' images), else by Huawei's OBS SDK (``pip install esdk-obs-python``, which reads
OBS_ACCESS_KEY_ID, OBS_SECRET_ACCESS_KEY, OBS_SECURITY_TOKEN and OBS_ENDPOINT). Others are added
with :func:`register_backend`: any object with the two methods of :class:`Backend`.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_write
from model_utils.local_adapter import (
    get_device_id,
    get_device_num,
    get_job_id,
    get_local_device_num,
    get_rank_id,
)

__all__ = [
    "Backend",
    "find_backend",
    "get_device_id",
    "get_device_num",
    "get_job_id",
    "get_local_device_num",
    "get_rank_id",
    "is_remote",
    "modelarts_job",
    "moxing_wrapper",
    "register_backend",
    "sync_data",
]

logger = logging.getLogger("zoo")
Result = TypeVar("Result")

CACHE = Path("/cache")  # ModelArts' local disk
_POLL_SECONDS = 0.2
_REPORT_SECONDS = 60.0


class Backend(Protocol):
    """Copies between an object store and this machine.

    Both methods copy a single object to a file or everything below a prefix to a folder,
    overwrite what is there, and raise on any failure.
    """

    def download(self, url: str, target: Path) -> None:
        """Copy the object or prefix ``url`` to the file or folder ``target``."""

    def upload(self, source: Path, url: str) -> None:
        """Copy the file or folder ``source`` to ``url``."""


class MoxingBackend:
    """ModelArts' own library, which exists in its images only."""

    def __init__(self, file: Any) -> None:
        self._file = file  # the module moxing.file

    def download(self, url: str, target: Path) -> None:
        """Copy in."""
        if self._file.is_directory(url):
            self._file.copy_parallel(url, str(target))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._file.copy(url, str(target))

    def upload(self, source: Path, url: str) -> None:
        """Copy out."""
        if source.is_dir():
            self._file.copy_parallel(str(source), url)
        else:
            self._file.copy(str(source), url)


class ObsBackend:
    """Huawei's SDK for its object storage."""

    def __init__(self) -> None:
        endpoint = os.environ.get("OBS_ENDPOINT") or os.environ.get("S3_ENDPOINT")
        if not endpoint:
            raise UserError(
                "OBS_ENDPOINT is not set; set it to your region's address, such as "
                "https://obs.cn-north-4.myhuaweicloud.com"
            )
        obs = importlib.import_module("obs")
        self._client = obs.ObsClient(
            access_key_id=os.environ.get("OBS_ACCESS_KEY_ID"),
            secret_access_key=os.environ.get("OBS_SECRET_ACCESS_KEY"),
            security_token=os.environ.get("OBS_SECURITY_TOKEN"),
            server=endpoint,
        )

    def download(self, url: str, target: Path) -> None:
        """Copy in; keys that would leave ``target`` are refused."""
        bucket, key = _bucket_and_key(url)
        prefix = key.rstrip("/") + "/" if key else ""
        names = [] if url.endswith("/") or not key else [name for name in self._list(bucket, key)]
        if key in names:
            self._get(bucket, key, target)
            return
        found = [name for name in self._list(bucket, prefix) if not name.endswith("/")]
        if not found:
            raise UserError(f"{url} does not exist or is empty; check the address")
        for name in found:
            part = (target / name[len(prefix) :]).resolve()
            if not part.is_relative_to(target.resolve()):
                raise UserError(f"{url} holds the key {name!r}, which leads outside {target}")
            self._get(bucket, name, part)

    def upload(self, source: Path, url: str) -> None:
        """Copy out; files being written (their names start with a dot) are left out."""
        bucket, key = _bucket_and_key(url)
        if source.is_file():
            self._done(self._client.putFile(bucket, key, str(source)), url)
            return
        for file in sorted(source.rglob("*")):
            inner = file.relative_to(source)
            if file.is_file() and not any(part.startswith(".") for part in inner.parts):
                name = "/".join(filter(None, (key.rstrip("/"), inner.as_posix())))
                self._done(self._client.putFile(bucket, name, str(file)), f"obs://{bucket}/{name}")

    def _list(self, bucket: str, prefix: str) -> Iterator[str]:
        marker = None
        while True:
            reply = self._client.listObjects(bucket, prefix=prefix, marker=marker, max_keys=1000)
            self._done(reply, f"obs://{bucket}/{prefix}")
            yield from (item.key for item in reply.body.contents)
            if not reply.body.is_truncated:
                return
            marker = reply.body.next_marker

    def _get(self, bucket: str, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        url = f"obs://{bucket}/{key}"
        self._done(self._client.getObject(bucket, key, downloadPath=str(target)), url)

    @staticmethod
    def _done(reply: Any, url: str) -> None:
        if reply.status >= 300:
            raise UserError(
                f"{url}: the object store answered {reply.status} {reply.errorCode}: "
                f"{reply.errorMessage}; check address and credentials"
            )


def _bucket_and_key(url: str) -> tuple[str, str]:
    bucket, _, key = url.split("://", 1)[1].partition("/")
    if not bucket:
        raise UserError(f"{url} names no bucket; write obs://bucket/folder")
    return bucket, key


_factories: dict[str, Callable[[], Backend]] = {}


def register_backend(scheme: str, factory: Callable[[], Backend]) -> None:
    """Serve addresses ``scheme://...`` by what ``factory()`` returns, instead of the default."""
    _factories[scheme] = factory


def find_backend(url: str) -> Backend:
    """The storage backend for an address.

    Raises:
        UserError: nothing here can reach it; says what to install.
    """
    scheme = url.split("://", 1)[0]
    if scheme in _factories:
        return _factories[scheme]()
    if scheme not in ("obs", "s3"):
        raise UserError(f"{url}: no storage for {scheme}://; use obs://bucket/folder or a path")
    if importlib.util.find_spec("moxing"):
        moxing = importlib.import_module("moxing")
        if hasattr(moxing, "file"):  # the unrelated "moxing" on PyPI has none
            return MoxingBackend(moxing.file)
    if importlib.util.find_spec("obs"):
        return ObsBackend()
    raise UserError(
        f"{url} needs ModelArts' MoXing, which only its images have (the 'moxing' on PyPI is "
        "something else), or Huawei's OBS SDK: pip install esdk-obs-python"
    )


def is_remote(address: str) -> bool:
    """Whether an address has to be copied: it has a scheme other than ``file``."""
    return "://" in address and not address.startswith("file://")


def sync_data(from_path: PathLike, to_path: PathLike, wait_limit_s: float = 6 * 3600.0) -> str:
    """Copy once per host from, or by one rank of the run to, an object store.

    Coming in: the first process to ask copies, the others wait; all return when the copy is
    complete, which a marker file in the destination states from then on. If the copying process
    dies, the next one takes over. Going out: rank 0 copies, the others do nothing.

    Args:
        from_path: address or path to read.
        to_path: address or path to write.
        wait_limit_s: longest wait for another process's copy, in seconds.

    Returns:
        Where the data is: ``to_path``, or ``from_path`` if that is local already.

    Raises:
        UserError: no backend serves the address, or the wait took too long.
    """
    source, target = str(from_path), str(to_path)
    if is_remote(source):
        _copy_in(source, Path(_plain(target)), wait_limit_s)
        return _plain(target)
    if is_remote(target):
        if get_rank_id() == 0:
            logger.info("copying %s to %s", source, target)
            find_backend(target).upload(Path(_plain(source)), target)
        return target
    return _plain(source)


def _plain(address: str) -> str:
    return address.removeprefix("file://")


def _copy_in(url: str, target: Path, wait_limit_s: float) -> None:
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    # A single file's marker lies beside it. Whether the address is a file is the backend's to
    # know; a suffix is what tells them apart before anything is copied.
    folder = target.parent if target.suffix and not target.is_dir() else target
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f".sync-{name}.done"
    with _Owner(folder / f".sync-{name}.lock", done, wait_limit_s) as owner:
        if owner:
            logger.info("copying %s to %s", url, target)
            find_backend(url).download(url, target)
            with atomic_write(done, "w") as stream:
                stream.write(f"{url}\n")


class _Owner:
    """One process per host at a time; entering says whether there is something to do.

    The lock is a record lock, which the kernel drops when its process dies, killed or not, and
    which child processes of a copying library do not inherit. So an owner's death is noticed at
    once and nothing stale can remain. The file holds the owner's process number, for messages.
    """

    def __init__(self, lock: Path, done: Path, wait_limit_s: float) -> None:
        self._lock, self._done, self._limit_s = lock, done, wait_limit_s
        self._stream = -1

    def __enter__(self) -> bool:
        start = time.monotonic()
        reported = start
        while not self._done.exists():
            if self._stream < 0:
                self._stream = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # the two that POSIX allows
                now = time.monotonic()
                if now - start > self._limit_s:
                    raise UserError(
                        f"process {self._owner()} has been copying into {self._lock.parent} for "
                        f"more than {self._limit_s:g} s; look at its log, or end it"
                    ) from None
                if now - reported > _REPORT_SECONDS:
                    logger.info("waiting for process %s, which is copying", self._owner())
                    reported = now
                time.sleep(_POLL_SECONDS)
                continue
            if self._done.exists():  # completed between the look and the lock
                return False
            os.ftruncate(self._stream, 0)
            os.pwrite(self._stream, f"{os.getpid()}\n".encode(), 0)
            return True
        return False

    def _owner(self) -> str:
        return self._lock.read_text(encoding="ascii", errors="replace").strip() or "unknown"

    def __exit__(self, *exception: object) -> None:
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1


@contextlib.contextmanager
def modelarts_job(
    config: Any, upload_every_s: float = 600.0, names: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Bring a job's inputs in, and its results out, however the job ends.

    Does nothing unless the configuration says ``enable_modelarts`` (or ``modelArts_mode``).
    Results of rank 0 are uploaded every ``upload_every_s`` seconds and at the end, also when the
    run fails: a failed upload is then logged, so that the run's own error is what is reported.

    Args:
        config: any object with the keys above as attributes; those of ``data_path``,
            ``load_path``, ``checkpoint_path`` and ``output_path`` it has are set to local places.
        upload_every_s: seconds between uploads during the run; 0 uploads at the end only.
        names: where a key is called otherwise, its dotted name, such as
            ``{"data_path": "data.root"}``; that one is found without being told.

    Yields:
        ``config``.
    """
    keys = _Keys(config, names or {})
    if not (keys.truth("enable_modelarts") or keys.truth("modelArts_mode")):
        yield config
        return
    _inputs(keys)
    train_url = keys.text("train_url")
    if not train_url:
        yield config
        return
    if not is_remote(train_url):
        keys.set("output_path", _plain(train_url))
        yield config
        return
    output = keys.shared("output_path", "train")
    output.mkdir(parents=True, exist_ok=True)
    keys.set("output_path", str(output))
    with _uploads(output, train_url, upload_every_s if get_rank_id() == 0 else 0.0):
        yield config


class _Keys:
    """A configuration's ModelArts keys under whatever names it has for them."""

    def __init__(self, config: Any, names: Mapping[str, str]) -> None:
        self._config, self._names = config, names
        if "data_path" not in names and not self.has("data_path") and hasattr(config, "data"):
            self._names = {**names, "data_path": "data.root"}

    def _place(self, key: str) -> tuple[Any, str]:
        *groups, name = self._names.get(key, key).split(".")
        return functools.reduce(getattr, groups, self._config), name

    def has(self, key: str) -> bool:
        return hasattr(*self._place(key))

    def truth(self, key: str) -> bool:
        return bool(getattr(*self._place(key), False))

    def text(self, key: str) -> str:
        return str(getattr(*self._place(key), None) or "")

    def set(self, key: str, value: str) -> None:
        owner, name = self._place(key)
        if not hasattr(owner, name):
            # A new attribute would be read by nobody: the job would run without its input.
            raise UserError(f"this configuration has no {name} to set; drop the key behind it")
        setattr(owner, name, value)

    def shared(self, key: str, name: str) -> Path:
        """A configured absolute path, else one on the local disk.

        A relative one will not do: ModelArts gives each rank a working directory of its own.
        """
        configured = Path(self.text(key))
        return configured if configured.is_absolute() else CACHE / name


def _inputs(keys: _Keys) -> None:
    data_url = keys.text("data_url")
    if data_url:
        keys.set("data_path", sync_data(data_url, keys.shared("data_path", "data")))
    url = keys.text("checkpoint_url")
    found = [key for key in ("load_path", "checkpoint_path") if keys.has(key)]
    for key in found or ["load_path"]:
        source = keys.text(key) if is_remote(keys.text(key)) else url
        if source:
            local = CACHE / "checkpoint_path" / Path(source).name
            keys.set(key, sync_data(source, local))


@contextlib.contextmanager
def _uploads(source: Path, url: str, every_s: float) -> Iterator[None]:
    """Upload regularly while the body runs, and once more when it has ended or failed."""
    stopped = threading.Event()
    uploader = threading.Thread(
        target=_upload_regularly, args=(source, url, every_s, stopped), daemon=True
    )
    if every_s > 0:
        uploader.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        stopped.set()
        if uploader.is_alive():
            uploader.join()
        try:
            sync_data(source, url)
        except Exception:
            if not failed:
                raise
            logger.exception("results stay in %s: uploading to %s failed", source, url)


def _upload_regularly(source: Path, url: str, every_s: float, stopped: threading.Event) -> None:
    while not stopped.wait(every_s):
        try:
            sync_data(source, url)
        # Whatever the store's library raises: the next round or the final upload tries again.
        except Exception:
            logger.exception("uploading %s to %s failed; it will be tried again", source, url)


def moxing_wrapper(
    pre_process: Callable[..., object] | None = None,
    post_process: Callable[..., object] | None = None,
    *,
    config: Any = None,
    pre_args: tuple[Any, ...] = (),
    post_args: tuple[Any, ...] = (),
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """ModelZoo's decorator around a run: :func:`modelarts_job` with a step before and after it.

    Args:
        pre_process: called with ``pre_args`` when the inputs have arrived, for unpacking.
        post_process: called with ``post_args`` when the run succeeded, before the upload.
        config: the configuration; by default the wrapped function's first argument.
        pre_args: arguments of ``pre_process``.
        post_args: arguments of ``post_process``.

    Returns:
        A decorator; the decorated function returns what the function returns.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def run(*arguments: Any, **keywords: Any) -> Result:
            settings = config if config is not None else arguments[0]
            with modelarts_job(settings):
                if pre_process is not None:
                    pre_process(*pre_args)
                result = function(*arguments, **keywords)
                if post_process is not None:
                    post_process(*post_args)
                return result

        return run

    return decorate
