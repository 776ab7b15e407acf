"""Checkpoints that are whole or absent, carry a checksum, and load completely or not at all.

The format is MindSpore's own (.ckpt with a CRC-32 over every tensor), readable by
``mindspore.load_checkpoint``. Metadata travels inside: the network's name, what the file is
(weights or a training state) and, for a state, the host's part as JSON.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path, require_file
from model_utils.layers import TRANSIENT

log = logging.getLogger("zoo")
WEIGHTS = "weights"
STATE = "training state"
_META = ("zoo_network", "zoo_kind", "zoo_info")
# The first record of our files: one cut off between two records, which parses, is known by it.
_MARK = "zoo_format"
# What MindSpore's optimizers and train cells save beside the weights.
OPTIMIZER_STATE = (
    "moment1",
    "moment2",
    "moments",
    "accum",
    "stat",
    "global_step",
    "learning_rate",
    "beta1_power",
    "beta2_power",
    "scale_sense",
)
Rename = Callable[[str], str]


@dataclass
class Checkpoint:
    """Content of a file: arrays by parameter name, and what was noted beside them."""

    path: Path
    arrays: dict[str, np.ndarray]
    network: str = ""
    kind: str = WEIGHTS
    info: dict[str, Any] = field(default_factory=dict)


def save(
    path: PathLike,
    arrays: Mapping[str, np.ndarray],
    *,
    network: str,
    kind: str = WEIGHTS,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Write arrays and metadata atomically, with a checksum.

    Args:
        path: the file; an earlier one stays whole until the new one is.
        arrays: by parameter name.
        network: the network's name, compared on load.
        kind: WEIGHTS or STATE.
        info: anything JSON can hold.

    Raises:
        UserError: no space, or no permission.
    """
    import mindspore as ms

    target = Path(path)
    records = [{"name": _MARK, "data": ms.Tensor(np.array([1], np.int32))}]
    records += [{"name": name, "data": ms.Tensor(value)} for name, value in arrays.items()]
    notes = {
        "zoo_network": network,
        "zoo_kind": kind,
        "zoo_info": json.dumps(dict(info or {}), default=_number),
    }
    with atomic_path(target) as temporary:
        leftover = temporary.with_suffix(".tmp")
        try:
            ms.save_checkpoint(records, str(temporary), append_dict=notes, crc_check=True)
        except RuntimeError as error:
            raise OSError(*_os_reason(error)) from error
        finally:
            leftover.unlink(missing_ok=True)
    return target


def _number(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be noted in a checkpoint")


def _os_reason(error: BaseException) -> tuple[int, str]:
    """The operating system's error behind the framework's RuntimeError."""
    import errno

    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno, cause.strerror or text
        cause = cause.__cause__ or cause.__context__
    code = errno.ENOSPC if "No space left" in text else errno.EIO
    return code, text.splitlines()[0] if text else "input/output error"


def load(path: PathLike) -> Checkpoint:
    """Read a checkpoint written here or by MindSpore (.ckpt) and check it.

    Raises:
        UserError: missing, truncated, altered, or not a checkpoint.
    """
    import mindspore as ms

    source = require_file(path, "checkpoint", "check checkpoint_path")
    if source.suffix != ".ckpt":
        raise UserError(
            f"checkpoint {source} is not a .ckpt file; convert.py --source {source} makes one"
        )
    if source.stat().st_size == 0:
        raise UserError(f"checkpoint {source} is empty; restore it from a copy")
    try:
        loaded = ms.load_checkpoint(str(source), crc_check=True)
    except (ValueError, RuntimeError, TypeError, KeyError, MemoryError, OSError) as error:
        raise UserError(
            f"checkpoint {source} is truncated, altered or no checkpoint "
            f"({source.stat().st_size} bytes); restore it from a copy"
        ) from error
    notes = {name: str(loaded.pop(name)) for name in _META if name in loaded}
    # Without the checksum, flipped away or cut off, the framework checks nothing.
    ours = loaded.pop(_MARK, None) is not None or bool(notes)
    if ours and b"crc_num" not in source.read_bytes()[-32:]:
        raise UserError(f"checkpoint {source} has lost its checksum; restore it from a copy")
    arrays = {name: _array(value) for name, value in loaded.items() if not isinstance(value, str)}
    if not arrays:
        raise UserError(f"checkpoint {source} holds no parameters")
    return Checkpoint(
        source,
        arrays,
        notes.get("zoo_network", ""),
        notes.get("zoo_kind", WEIGHTS),
        json.loads(notes.get("zoo_info", "{}")),
    )


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)


def weights_of(network: Any) -> dict[str, np.ndarray]:
    """All parameters of a network that belong into a weights file, by name."""
    return {
        parameter.name: parameter.asnumpy()
        for parameter in network.get_parameters()
        if parameter.name.rpartition(".")[2] != TRANSIENT
    }


def load_weights(
    network: Any,
    path: PathLike,
    *,
    name: str,
    rename: Rename | None = None,
    allow_missing: bool = False,
) -> Checkpoint:
    """Fill a network's parameters from a weights file or a training state, all of them or none.

    Args:
        network: the Cell.
        path: the checkpoint.
        name: the network's name, compared with the one noted in the file.
        rename: maps foreign parameter names to this network's.
        allow_missing: load what fits by name and shape and leave the rest (fine-tuning with
            another class count); the log says what was left.

    Raises:
        UserError: the file is of another network, lacks parameters, has left-over ones, or a
            shape differs; nothing is changed then.
    """
    checkpoint = load(path)
    if checkpoint.network and checkpoint.network != name:
        raise UserError(
            f"checkpoint {path} belongs to the network '{checkpoint.network}', not '{name}'; "
            "choose another file"
        )
    wanted = {
        parameter.name: parameter
        for parameter in network.get_parameters()
        if parameter.name.rpartition(".")[2] != TRANSIENT
    }
    if checkpoint.kind == STATE:
        given = _weights_of_state(checkpoint.arrays, wanted)
    else:
        given = _renamed(checkpoint, rename or (lambda name: name))
    _compare(wanted, given, path, allow_missing)
    fill(wanted, given)
    return checkpoint


def compare_settings(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Warn where a checkpoint was made for other settings than are used now.

    Args:
        checkpoint: what was loaded.
        settings: of :meth:`model_utils.task.Task.settings`.
    """
    noted = checkpoint.info.get("settings", {})
    other = [
        f"{name}={noted[name]}, not {value}"
        for name, value in json.loads(json.dumps(settings)).items()
        if name in noted and noted[name] != value
    ]
    if other:
        log.warning(
            "checkpoint %s was made for %s: results will differ; give its own configuration "
            "(--config_path)",
            checkpoint.path,
            "; ".join(other),
        )


def _weights_of_state(arrays: Mapping[str, np.ndarray], wanted: Mapping) -> dict[str, np.ndarray]:
    """The weights that evaluations of that training saw: moving averages where it kept them."""
    return {name: arrays.get(f"ema.{name}", arrays[name]) for name in wanted if name in arrays}


def _renamed(checkpoint: Checkpoint, rename: Rename) -> dict[str, np.ndarray]:
    """Arrays under this network's names; optimizer state beside the weights is left out."""
    given: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, value in checkpoint.arrays.items():
        if any(part in OPTIMIZER_STATE for part in name.split(".")):
            continue
        own = rename(name)
        if own in given:
            raise UserError(
                f"checkpoint {checkpoint.path} holds '{origin[own]}' and '{name}', which both "
                f"mean the parameter '{own}'; remove one of them"
            )
        given[own], origin[own] = value, name
    return given


def _compare(wanted: Mapping, given: Mapping, path: PathLike, allow_missing: bool) -> None:
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted]
    shapes = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in given and tuple(given[k].shape) != tuple(wanted[k].shape)
    ]
    if len(missing) == len(wanted):
        raise UserError(
            f"checkpoint {path} has none of this network's {len(wanted)} parameters "
            f"(its first is '{next(iter(given), 'none')}'); it belongs to another network, or "
            "needs convert.py"
        )
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} parameter(s): {_few(missing)}")
    if extra:
        problems.append(f"has {len(extra)} left-over parameter(s): {_few(extra)}")
    if shapes:
        problems.append(f"has {len(shapes)} of another shape: {_few(shapes)}")
    if problems and allow_missing:
        log.warning("%s %s; the rest is loaded", path, "; ".join(problems))
    elif problems:
        raise UserError(
            f"checkpoint {path} {'; '.join(problems)}; check the configuration it was trained with"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def fill(parameters: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Set parameters of the same name and shape; returns the names that were not set."""
    import mindspore as ms

    untouched = []
    for name, parameter in parameters.items():
        value = arrays.get(name)
        if value is None or tuple(value.shape) != tuple(parameter.shape):
            untouched.append(name)
            continue
        parameter.set_data(ms.Tensor(value, parameter.dtype))
    return untouched
