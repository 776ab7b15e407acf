import numpy as np
import pytest

from model_utils.converting import match, read_arrays
from model_utils.errors import UserError

NAMES = {"conv.weight": "conv.weight", "norm.gamma": "norm.weight", "norm.beta": "norm.bias"}
OURS = {
    "conv.weight": np.zeros((2, 1, 3, 3), np.float32),
    "norm.gamma": np.zeros(2, np.float32),
    "norm.beta": np.zeros(2, np.float32),
}


def same(name):
    return name


def reference():
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.random((2, 1, 3, 3)),
        "norm.weight": rng.random(2),
        "norm.bias": rng.random(2),
        "norm.num_batches_tracked": np.array(7),
    }


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_reference_names_and_wrappers_prefixes(prefix):
    source = {prefix + name: value for name, value in reference().items()}
    filled, unused = match(source, OURS, NAMES, same)
    assert not unused and filled.keys() == OURS.keys()
    np.testing.assert_array_equal(filled["norm.gamma"], source[prefix + "norm.weight"].astype("f"))
    assert filled["conv.weight"].dtype == np.float32


def test_our_own_names_are_taken_too_and_nothing_twice():
    source = {**reference(), "norm.gamma": np.ones(2), "head": np.ones(1)}
    filled, unused = match(source, OURS, NAMES, same)
    assert unused == ["norm.gamma", "head"]
    np.testing.assert_array_equal(filled["norm.gamma"], source["norm.weight"].astype("f"))


def test_a_shape_that_differs_is_a_sentence():
    with pytest.raises(UserError, match=r"'norm\.bias' has shape \(3,\), .* norm\.beta \(2,\)"):
        match({**reference(), "norm.bias": np.ones(3)}, OURS, NAMES, same)


def test_numpy_and_safetensors_files(tmp_path):
    from safetensors.numpy import save_file

    arrays = {k: np.ascontiguousarray(v) for k, v in reference().items()}
    np.savez(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        loaded = read_arrays(tmp_path / name)
        assert loaded.keys() == arrays.keys()
        np.testing.assert_array_equal(loaded["conv.weight"], arrays["conv.weight"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npz", b"not a zip", "no readable .npz"),
        ("a.safetensors", b"\x10", "no readable safetensors"),
        ("a.onnx", b"", "none of the suffixes"),
        ("a.ckpt", b"\x08\x01", "truncated, altered or no checkpoint"),
    ],
)
def test_unreadable_files_are_sentences(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_arrays(tmp_path / name)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"code": 1}], dtype=object))
    with pytest.raises(UserError, match="no readable .npz of plain arrays"):
        read_arrays(tmp_path / "a.npz")


def test_torch_files_of_every_wrapping(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {f"module.{k}": torch.from_numpy(np.asarray(v)) for k, v in reference().items()}
    for name, value in {
        "a.pth": tensors,
        "b.pt": {"state_dict": tensors, "epoch": 3},
        "c.tar": {"model": tensors},
        "d.ckpt": {"state_dict": tensors},
    }.items():
        torch.save(value, tmp_path / name)
        filled, unused = match(read_arrays(tmp_path / name), OURS, NAMES, same)
        assert not unused and filled.keys() == OURS.keys()


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_torch_files_that_would_run_code_are_refused(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": Trap()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth cannot be read as plain weights"):
        read_arrays(tmp_path / "a.pth")
    assert "executed" not in capsys.readouterr().out
