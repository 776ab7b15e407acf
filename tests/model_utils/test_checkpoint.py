import os

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import nn

from model_utils import checkpoint as checkpoints
from model_utils.errors import UserError
from model_utils.layers import Dropout


class Small(nn.Cell):
    def __init__(self, outputs=3):
        super().__init__()
        self.dense = nn.Dense(4, outputs)
        self.drop = Dropout(0.5)


def saved(path, network=None, **more):
    network = network or Small()
    checkpoints.save(path, checkpoints.weights_of(network), network="small", **more)
    return network


def test_weights_come_back_and_other_programs_read_them(tmp_path):
    path = tmp_path / "a.ckpt"
    network = saved(path, info={"epoch": 3})
    other = Small()
    loaded = checkpoints.load_weights(other, path, name="small")
    assert loaded.info == {"epoch": 3} and loaded.kind == checkpoints.WEIGHTS
    for a, b in zip(network.get_parameters(), other.get_parameters(), strict=True):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())
    plain = ms.load_checkpoint(str(path))
    np.testing.assert_array_equal(plain["dense.weight"].asnumpy(), network.dense.weight.asnumpy())
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_training_counters_are_no_weights(tmp_path):
    assert set(checkpoints.weights_of(Small())) == {"dense.weight", "dense.bias"}
    assert "drop.dropout_calls" in {p.name for p in Small().get_parameters()}


def test_foreign_files_without_our_notes_load(tmp_path):
    network = Small()
    ms.save_checkpoint(network.dense, str(tmp_path / "a.ckpt"))
    arrays = checkpoints.load(tmp_path / "a.ckpt").arrays
    np.testing.assert_array_equal(arrays["dense.weight"], network.dense.weight.asnumpy())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.ckpt"
    saved(path)
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 0.999, allow_subnormal=False))
def test_a_truncated_file_never_loads(tmp_path_factory, whole, share):
    path = tmp_path_factory.mktemp("cut") / "a.ckpt"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"a\.ckpt"):
        checkpoints.load_weights(Small(), path, name="small")


def test_a_file_cut_between_two_records_never_loads(tmp_path, whole):
    """Such a file parses; without notes and checksum it looks like another program's."""
    place = whole.index(b"zoo_network") - 4
    for end in range(place - 3, place + 4):
        (tmp_path / "a.ckpt").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"a\.ckpt"):
            checkpoints.load_weights(Small(), tmp_path / "a.ckpt", name="small")


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True, allow_subnormal=False), bit=st.integers(0, 7))
def test_a_flipped_bit_never_loads(tmp_path_factory, whole, place, bit):
    path = tmp_path_factory.mktemp("flip") / "a.ckpt"
    damaged = bytearray(whole)
    damaged[int(len(whole) * place)] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.ckpt"):
        checkpoints.load_weights(Small(), path, name="small")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.ckpt", None, "does not exist"),
        ("a.ckpt", b"", "is empty"),
        ("a.ckpt", b"hello world" * 40, "truncated, altered or no checkpoint"),
        ("a.pth", b"PK", "convert.py"),
    ],
)
def test_what_is_no_checkpoint_is_a_sentence(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        checkpoints.load_weights(Small(), tmp_path / name, name="small")


def arrays_of(network):
    return {k: v.copy() for k, v in checkpoints.weights_of(network).items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("dense.bias"), r"lacks 1 parameter\(s\): dense\.bias"),
        (lambda a: a.update(extra=np.zeros(2)), r"has 1 left-over parameter\(s\): extra"),
        (
            lambda a: a.update({"dense.weight": np.zeros((5, 4), np.float32)}),
            r"dense\.weight \(5, 4\) instead of \(3, 4\)",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path, change, words):
    arrays = arrays_of(Small())
    change(arrays)
    path = checkpoints.save(tmp_path / "a.ckpt", arrays, network="small")
    network = Small()
    before = arrays_of(network)
    with pytest.raises(UserError, match=words):
        checkpoints.load_weights(network, path, name="small")
    for name, value in arrays_of(network).items():
        np.testing.assert_array_equal(value, before[name])


def test_another_network_is_named(tmp_path):
    saved(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="belongs to the network 'small', not 'large'"):
        checkpoints.load_weights(Small(), tmp_path / "a.ckpt", name="large")
    foreign = checkpoints.save(tmp_path / "b.ckpt", {"conv.w": np.zeros(3)}, network="")
    with pytest.raises(UserError, match=r"none of this network's 2 parameters .*'conv\.w'"):
        checkpoints.load_weights(Small(), foreign, name="small")


def test_fine_tuning_takes_what_fits_and_says_what_does_not(tmp_path, caplog):
    source = saved(tmp_path / "a.ckpt")
    network = Small(outputs=3)
    network.dense.bias.set_data(ms.Tensor(np.full(3, 9.0, np.float32)))
    arrays = checkpoints.weights_of(source)
    arrays["dense.bias"] = np.zeros(7, np.float32)
    checkpoints.save(tmp_path / "b.ckpt", arrays, network="small")
    checkpoints.load_weights(network, tmp_path / "b.ckpt", name="small", allow_missing=True)
    np.testing.assert_array_equal(network.dense.weight.asnumpy(), source.dense.weight.asnumpy())
    np.testing.assert_array_equal(network.dense.bias.asnumpy(), np.full(3, 9.0))
    assert "dense.bias (7,) instead of (3,)" in caplog.text


def test_a_full_disk_keeps_the_earlier_checkpoint(small_disk):
    path = small_disk / "a.ckpt"
    saved(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"no space left while writing .*a\.ckpt"):
        checkpoints.save(path, {"x": np.zeros(1 << 19, np.float32)}, network="small")
    assert path.read_bytes() == before
    assert os.listdir(small_disk) == ["a.ckpt"]
