"""Weights saved by Jittor (.pkl), read without executing anything.

Such a file is a pickle of nested dictionaries of NumPy arrays, followed by a SHA-1 of 20 bytes
and the mark ``HCAJSLHD`` (Jittor's ``safepickle``). A pickle can call any function; here the only
ones allowed are those that NumPy needs to rebuild plain arrays and numbers.
"""

import collections
import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError

_MARK = b"HCAJSLHD"
_DIGEST = 20


def _rebuilt_array(_: type, shape: tuple[int, ...], kind: bytes) -> np.ndarray:
    """The empty array that a pickle fills; NumPy's own function takes any class."""
    return np.ndarray(shape, np.dtype(kind.decode("ascii")))


def _encoded(text: str, encoding: str) -> bytes:
    """How protocol 2 stores bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


def _scalar(kind: np.dtype, value: bytes) -> Any:
    return np.frombuffer(value, kind)[0]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encoded,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _rebuilt_array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar


# What damaged or foreign pickles end in.
_FAULTS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_jittor(path: Path) -> dict[str, Any]:
    """What a .pkl of Jittor holds: dictionaries of arrays and numbers.

    Raises:
        UserError: damaged, not a dictionary, or it needs more than plain arrays.
    """
    data = path.read_bytes()
    if data.endswith(_MARK):
        digest, data = data[-_DIGEST - len(_MARK) : -len(_MARK)], data[: -_DIGEST - len(_MARK)]
        if hashlib.sha1(data).digest() != digest:
            raise UserError(f"{path} is damaged: its checksum does not fit; fetch it again")
    try:
        loaded = _PlainUnpickler(io.BytesIO(data)).load()
    except _FAULTS as error:
        raise UserError(
            f"{path} cannot be read as plain arrays ({error}); save the weights as .npz instead"
        ) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not weights by name")
    return dict(loaded)
