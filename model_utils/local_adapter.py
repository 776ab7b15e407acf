"""Who this process is: card, rank and job, from the environment its launcher set.

The names are ModelZoo's. Read are, in this order, the variables of rank-table scripts and msrun
(DEVICE_ID, RANK_ID, RANK_SIZE), of ModelArts (ASCEND_DEVICE_ID), and of Open MPI.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from model_utils.errors import UserError

_END_FILE = "RANK_END_FILE"


def get_device_id() -> int:
    """Number of the card this process uses, 0 if nothing says otherwise."""
    names = ("DEVICE_ID", "ASCEND_DEVICE_ID", "OMPI_COMM_WORLD_LOCAL_RANK")
    return _number(names, default=0, least=0)


def get_device_num() -> int:
    """Number of ranks in the whole run, 1 if nothing says otherwise."""
    return _number(("RANK_SIZE", "OMPI_COMM_WORLD_SIZE"), default=1, least=1)


def get_local_device_num() -> int:
    """Number of ranks on this host: DEVICE_NUM if set, else at most 8 of the run's."""
    return _number(("DEVICE_NUM",), default=min(get_device_num(), 8), least=1)


def get_rank_id() -> int:
    """Number of this process in the whole run, 0 if nothing says otherwise."""
    return _number(("RANK_ID", "OMPI_COMM_WORLD_RANK"), default=0, least=0)


def get_job_id() -> str:
    """Name of the platform's job, "Local Job" outside a platform."""
    for name in ("JOB_ID", "MA_VJ_NAME", "BATCH_JOB_ID"):
        if os.environ.get(name):
            return os.environ[name]
    return "Local Job"


def end_file_setting(path: Path) -> dict[str, str]:
    """Environment by which a launcher asks a rank for ``note_end``."""
    return {_END_FILE: str(path)}


def note_end(status: int) -> None:
    """Tell the launcher, if one asked, that this process has done everything but leave.

    MindSpore's communication threads now and then crash while the interpreter is taken down.
    """
    if path := os.environ.get(_END_FILE):
        Path(path).write_text(str(status), encoding="ascii")


def noted_end(path: Path) -> int | None:
    """The exit status that ``note_end`` wrote; None if the process did not get there."""
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    return int(text) if text.isdecimal() else None


def _number(names: Sequence[str], default: int, least: int) -> int:
    for name in names:
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise UserError(
                f"environment variable {name}={text!r} is not a whole number from {least} on; "
                "correct or unset it"
            )
        return int(text)
    return default
