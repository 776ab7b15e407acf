import collections
import hashlib
import os
import pickle

import numpy as np
import pytest

from model_utils.converting import read_arrays
from model_utils.errors import UserError

ARRAYS = {
    "layer0.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "layer0.1.running_var": np.ones(5, np.float64),
}


def write(path, content, protocol=4, mark=True):
    data = pickle.dumps(content, protocol)
    if mark:
        data += hashlib.sha1(data).digest() + b"HCAJSLHD"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("wrapped", [True, False])
def test_arrays_come_back(tmp_path, protocol, wrapped):
    content = collections.OrderedDict(ARRAYS)
    if wrapped:
        content = {"state_dict": content, "epoch": 63, "mean_iu": np.float64(0.97), "command": "x"}
    loaded = read_arrays(write(tmp_path / "w.pkl", content, protocol, mark=protocol != 2))
    assert loaded.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype


class Calls:
    """A pickle that runs a command when read."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("wrapped", [True, False])
def test_nothing_is_executed(tmp_path, wrapped):
    proof = tmp_path / "proof"
    harmful = Calls(os.mkdir, str(proof))
    path = write(tmp_path / "w.pkl", {"weight": harmful} if wrapped else harmful)
    with pytest.raises(UserError, match=r"plain arrays .*mkdir"):
        read_arrays(path)
    assert not proof.exists()
    objects = np.empty(1, object)
    objects[0] = harmful
    with pytest.raises(UserError, match="plain arrays"):
        read_arrays(write(path, {"weight": objects}))
    assert not proof.exists()


def test_damage_is_noticed(tmp_path):
    path = write(tmp_path / "w.pkl", ARRAYS)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum"):
        read_arrays(path)
    for cut in (0, 1, 20, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match="plain arrays"):
            read_arrays(path)
    with pytest.raises(UserError, match="holds a list"):
        read_arrays(write(path, [1, 2]))
