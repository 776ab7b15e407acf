"""Running a network: the same results from every backend, and refusals instead of wrong ones."""

import logging
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn

from model_utils import backends
from model_utils.backends import (
    MindirBackend,
    MindSporeBackend,
    OnnxBackend,
    choose,
)
from model_utils.errors import UserError
from model_utils.exporting import ExportInput, export
from model_utils.mindir2onnx.mindir import read
from tests.model_utils import mindir_cases

SHAPES = ((1, 3, 16, 24), (2, 3, 12, 20))
INPUTS = [ExportInput("image", (None, 3, None, None), test_shapes=SHAPES)]


def image(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    ms.set_seed(4)
    return mindir_cases.SmallNetwork()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """The network with dynamic and with fixed shapes, in both formats."""
    folder = tmp_path_factory.mktemp("files")
    fixed = [ExportInput("image", (2, 3, 12, 20))]
    return {
        (kind, form): export(network, inputs, folder / f"{form}", kind).path
        for kind in ("MINDIR", "ONNX")
        for form, inputs in (("dynamic", INPUTS), ("fixed", fixed))
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


# --- the three backends ------------------------------------------------------------------------


def test_all_backends_agree(network, files):
    opened = [
        MindSporeBackend(network),
        MindirBackend(files["MINDIR", "dynamic"]),
        OnnxBackend(files["ONNX", "dynamic"]),
        OnnxBackend(files["ONNX", "dynamic"], threads=1),
    ]
    assert [item.name for item in opened] == ["mindspore", "mindir", "onnxruntime", "onnxruntime"]
    for seed, shape in enumerate([(1, 3, 16, 24), (3, 3, 9, 15), (1, 3, 16, 24)]):
        array = image(shape, seed)
        expected = opened[0].run(array)
        assert [output.shape for output in expected] == [(shape[0], 4, *shape[2:]), (shape[0], 6)]
        np.testing.assert_allclose(expected[0].sum(1), 1, atol=1e-5)
        for backend in opened[1:]:
            computed = backend.run(array)
            assert isinstance(computed, tuple)
            for wanted, found in zip(expected, computed, strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=backend.name)


def test_mindspore_backend_evaluates_a_training_network(network):
    network.set_train(True)
    backend = MindSporeBackend(network)
    array = image((2, 3, 12, 20))
    first, second = backend.run(array)[0], backend.run(array)[0]
    np.testing.assert_array_equal(first, second)


def test_nested_outputs_come_out_flat():
    cell = mindir_cases.FunctionCell(nested)
    found = MindSporeBackend(cell).run(np.array([2.0], np.float32))
    assert [float(item[0]) for item in found] == [3, 4, 1]


def nested_too(x):
    return x - 1, (x * 2, x + 1)


def nested(x):
    return x + 1, (x * 2, x - 1)


@pytest.mark.parametrize(
    ("kind", "backend"), [("MINDIR", MindirBackend), ("ONNX", OnnxBackend)], ids=["mindir", "onnx"]
)
class TestFiles:
    """What both file formats must do alike."""

    def test_other_shape_than_exported_is_refused(self, files, kind, backend):
        """MindSpore itself would run it, with the old sizes inside."""
        path = files[kind, "fixed"]
        opened = backend(path)
        assert opened.run(image((2, 3, 12, 20)))[0].shape == (2, 4, 12, 20)
        for shape in [(1, 3, 12, 20), (2, 3, 24, 20), (2, 3, 12, 19)]:
            with pytest.raises(UserError, match=rf"input image has shape .*{path.name}.*2, 3, 12"):
                opened.run(image(shape))

    def test_fixed_axes_of_a_dynamic_file_are_checked(self, files, kind, backend):
        with pytest.raises(UserError, match=r"exported for \(any, 3, any, any\)"):
            backend(files[kind, "dynamic"]).run(image((1, 4, 16, 24)))
        with pytest.raises(UserError, match="has shape"):
            backend(files[kind, "dynamic"]).run(image((3, 16, 24)))

    def test_number_of_inputs(self, files, kind, backend):
        array = image((1, 3, 8, 8))
        with pytest.raises(UserError, match=r"takes 1 inputs \(image\), not 2"):
            backend(files[kind, "dynamic"]).run(array, array)

    def test_types(self, files, kind, backend):
        """float64 is narrowed as NumPy users expect; other kinds of numbers are refused."""
        opened = backend(files[kind, "dynamic"])
        array = image((1, 3, 8, 8))
        wide = opened.run(array.astype(np.float64))[0]
        np.testing.assert_array_equal(wide, opened.run(array)[0])
        with pytest.raises(UserError, match="type complex128"):
            opened.run(array.astype(np.complex128))

    def test_views_are_read_correctly(self, files, kind, backend):
        """Transposed, reversed and strided arrays are not contiguous."""
        opened = backend(files[kind, "dynamic"])
        array = image((1, 3, 16, 8))
        view = array.transpose(0, 1, 3, 2)[:, :, ::-1, ::2]
        np.testing.assert_array_equal(opened.run(view)[0], opened.run(view.copy())[0])

    def test_results_are_not_overwritten_by_the_next_run(self, files, kind, backend):
        opened = backend(files[kind, "dynamic"])
        first = opened.run(image((1, 3, 8, 8), 1))[0]
        kept = first.copy()
        opened.run(image((1, 3, 8, 8), 2))
        np.testing.assert_array_equal(first, kept)

    def test_missing_and_corrupt_files(self, files, kind, backend, tmp_path):
        suffix = f".{kind.lower()}"
        with pytest.raises(UserError, match="absent.* does not exist"):
            backend(tmp_path / f"absent{suffix}")
        broken = tmp_path / f"broken{suffix}"
        data = files[kind, "dynamic"].read_bytes()
        for content in (b"", b"no model", data[: len(data) // 2]):
            broken.write_bytes(content)
            with pytest.raises(UserError, match="broken.*export it again"):
                backend(broken)

    def test_closed(self, files, kind, backend):
        with backend(files[kind, "dynamic"]) as opened:
            opened.run(image((1, 3, 8, 8)))
        with pytest.raises(UserError, match="closed"):
            opened.run(image((1, 3, 8, 8)))


def test_thread_option_reaches_onnxruntime(files):
    opened = OnnxBackend(files["ONNX", "dynamic"], threads=1)
    options = opened._session.get_session_options()
    assert options.intra_op_num_threads == 1
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.graph_optimization_level == level


# --- choosing ----------------------------------------------------------------------------------


def test_auto_exports_once_and_says_so(network, cache, caplog):
    with caplog.at_level(logging.INFO, logger="zoo"):
        first = choose("auto", cell=network, inputs=INPUTS, cache_dir=cache)
    assert first.name == "onnxruntime"
    assert "exporting the network once" in caplog.text
    assert "inference runs on onnxruntime, the fastest on this CPU" in caplog.text
    stored = list(cache.glob("*.onnx"))
    assert len(stored) == 1
    written = stored[0].stat().st_mtime_ns
    # Running and training flags do not change what the network computes.
    network.set_train(True)
    MindSporeBackend(network).run(image(SHAPES[0]))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="zoo"):
        second = choose("auto", build_cell=lambda: network, inputs=INPUTS, cache_dir=cache)
    assert "exported earlier" in caplog.text
    assert [file.stat().st_mtime_ns for file in cache.glob("*.onnx")] == [written]
    array = image(SHAPES[1])
    np.testing.assert_array_equal(first.run(array)[0], second.run(array)[0])


def test_cached_files_are_folded(network, tmp_path):
    for backend in ("onnxruntime", "mindir"):
        choose(backend, cell=network, inputs=INPUTS, cache_dir=tmp_path).close()
    (translated,), (kept,) = tmp_path.glob("*.onnx"), tmp_path.glob("*.mindir")
    assert {node.op_type for node in onnx.load(translated).graph.node}.isdisjoint(
        {"BatchNormalization"}
    )
    assert "BatchNorm" not in {node.operator for node in read(kept).nodes}
    assert len(network.norm.gamma.asnumpy()) == 6  # the network itself keeps it


def test_changed_weights_are_exported_anew(cache):
    """One bit of one weight is enough; the results follow the weights."""
    ms.set_seed(4)
    network = mindir_cases.SmallNetwork()
    array = image(SHAPES[0])
    with choose("onnxruntime", cell=network, inputs=INPUTS, cache_dir=cache) as backend:
        before = backend.run(array)[0]
    count = len(list(cache.glob("*.onnx")))
    bias = network.head.bias.asnumpy().copy()
    bias[0] += 1
    network.head.bias.set_data(Tensor(bias))
    with choose("onnxruntime", cell=network, inputs=INPUTS, cache_dir=cache) as backend:
        after = backend.run(array)[0]
    assert len(list(cache.glob("*.onnx"))) == count + 1
    np.testing.assert_allclose(after, MindSporeBackend(network).run(array)[0], atol=1e-5)
    assert np.abs(after - before).max() > 0.1


def test_key_follows_code_settings_and_inputs():
    """Two networks with the same weights need not compute the same."""
    seen = set()
    for cell in (nn.ReLU(), nn.Sigmoid(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)):
        seen.add(backends._network_key(cell, INPUTS))
    padded = [nn.MaxPool2d(3, 1, "pad", padding) for padding in (0, 1)]
    seen.update(backends._network_key(cell, INPUTS) for cell in padded)
    seen.add(backends._network_key(nn.ReLU(), [ExportInput("image", (2, 3, 8, 8))]))
    functions = [mindir_cases.Lookup(), mindir_cases.Interpolating()]
    functions += [mindir_cases.FunctionCell(function) for function in (nested, nested_too)]
    seen.update(backends._network_key(cell, INPUTS) for cell in functions)
    assert len(seen) == 11


def test_key_is_the_same_in_another_process(network):
    program = (
        "import mindspore as ms\n"
        "from tests.model_utils import mindir_cases, test_backends\n"
        "from model_utils import backends\n"
        "ms.set_seed(4)\n"
        "cell = mindir_cases.SmallNetwork()\n"
        "print(backends._network_key(cell, test_backends.INPUTS))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split()[-1] == backends._network_key(network, INPUTS)


def test_auto_prefers_given_files(files, tmp_path, caplog):
    with choose("auto", onnx=files["ONNX", "dynamic"], cache_dir=tmp_path) as backend:
        assert backend.name == "onnxruntime"
        expected = backend.run(image(SHAPES[0]))[0]
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        with choose("auto", mindir=files["MINDIR", "dynamic"], cache_dir=tmp_path) as backend:
            assert backend.name == "onnxruntime"
            np.testing.assert_allclose(backend.run(image(SHAPES[0]))[0], expected, atol=1e-5)
        assert len(list(tmp_path.iterdir())) == 1


def test_auto_falls_back_to_mindspore_and_says_why(tmp_path, caplog):
    """A network with an operator that has no ONNX form still runs."""
    cell = mindir_cases.Outer()
    with caplog.at_level(logging.INFO, logger="zoo"):
        inputs = [ExportInput("x", (2, 3))]
        backend = choose("auto", cell=cell, inputs=inputs, cache_dir=tmp_path)
    assert backend.name == "mindspore"
    assert "inference runs on mindspore" in caplog.text and "Lgamma" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime(monkeypatch, network, files, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util,
        "find_spec",
        lambda name: None if name == "onnxruntime" else found(name),
    )
    with caplog.at_level(logging.INFO, logger="zoo"):
        assert choose("auto", cell=network, inputs=INPUTS, cache_dir=tmp_path).name == "mindspore"
        assert choose("auto", mindir=files["MINDIR", "dynamic"]).name == "mindir"
    assert "onnxruntime is not installed" in caplog.text
    with pytest.raises(UserError, match="onnxruntime is not possible.*pip install onnxruntime"):
        choose("onnxruntime", onnx=files["ONNX", "dynamic"])
    with pytest.raises(UserError, match="nothing to run.*onnxruntime is not installed"):
        choose("auto", onnx=files["ONNX", "dynamic"])


def test_by_name(network, files, cache, caplog):
    with caplog.at_level(logging.INFO, logger="zoo"):
        opened = choose("mindspore", cell=network)
        assert opened.name == "mindspore"
        assert "inference runs on mindspore, as asked for" in caplog.text
    given = choose("mindir", mindir=files["MINDIR", "dynamic"])
    made = choose("mindir", cell=network, inputs=INPUTS, cache_dir=cache)
    array = image(SHAPES[1])
    for backend in (given, made):
        assert backend.name == "mindir"
        np.testing.assert_allclose(backend.run(array)[0], opened.run(array)[0], atol=1e-6)


def test_impossible_by_name(files, tmp_path):
    with pytest.raises(UserError, match="tensorrt is not one of auto, mindspore, mindir"):
        choose("tensorrt")
    with pytest.raises(UserError, match="mindspore needs a checkpoint"):
        choose("mindspore", onnx=files["ONNX", "dynamic"])
    with pytest.raises(UserError, match="mindir needs a checkpoint"):
        choose("mindir", onnx=files["ONNX", "dynamic"], cache_dir=tmp_path)
    with pytest.raises(UserError, match="onnxruntime needs a checkpoint"):
        choose("onnxruntime", cache_dir=tmp_path)
    with pytest.raises(UserError, match="nothing to run"):
        choose("auto", cache_dir=tmp_path)
    inputs = [ExportInput("x", (2, 3))]
    with pytest.raises(UserError, match="operator Lgamma"):
        choose("onnxruntime", cell=mindir_cases.Outer(), inputs=inputs, cache_dir=tmp_path)


def test_default_cache_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend = choose("auto", cell=nn.ReLU(), inputs=[ExportInput("x", (2, 3))])
    assert backend.name == "onnxruntime"
    assert len(list((tmp_path / "mindspore-eo-zoo").glob("ReLU-*.onnx"))) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=1, max_size=4),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_shapes_fit_exactly_where_every_fixed_length_matches(declared, fed):
    declared_input = backends._FileInput("x", np.dtype(np.float32), tuple(declared))
    array = np.zeros(fed, np.float32)
    fits = len(declared) == len(fed) and all(
        n is None or n == m for n, m in zip(declared, fed, strict=False)
    )
    if fits:
        assert backends._fitting([array], [declared_input], "file")[0].shape == tuple(fed)
    else:
        with pytest.raises(UserError):
            backends._fitting([array], [declared_input], "file")


# --- OpenVINO ----------------------------------------------------------------------------------


@pytest.fixture
def openvino_bf16():
    """Skips without OpenVINO or without the processor's instructions."""
    pytest.importorskip("openvino")
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the processor has no bfloat16 instructions")


def test_openvino_computes_the_same_less_exactly(openvino_bf16, network, files, cache):
    with choose("openvino-bf16", onnx=files["ONNX", "dynamic"]) as backend:
        assert backend.name == "openvino-bf16"
        assert backend.batch_size is None
        # More shapes than are kept, and the first one again.
        for seed, side in enumerate((9, 16, 21, 24, 30, 9)):
            array = image((1, 3, side, 20), seed)
            expected = MindSporeBackend(network).run(array)
            found = backend.run(array)
            assert len(found) == len(expected) == 2
            for wanted, output in zip(expected, found, strict=True):
                assert output.shape == wanted.shape
                assert output.dtype == np.float32
                assert np.abs(output - wanted).max() < 2e-2 * np.abs(wanted).max()
        with pytest.raises(UserError, match=r"exported for \(any, 3, any, any\)"):
            backend.run(image((1, 4, 16, 24)))
    with pytest.raises(UserError, match="closed"):
        backend.run(array)
    with choose("openvino-bf16", cell=network, inputs=INPUTS, cache_dir=cache) as backend:
        np.testing.assert_allclose(backend.run(array)[1], expected[1], atol=1e-2)


def test_openvino_refuses_other_files(openvino_bf16, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"broken.onnx is not an ONNX file that OpenVINO can run"):
        choose("openvino-bf16", onnx=path)


def test_openvino_that_is_missing_says_what_to_install(monkeypatch, files):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"openvino-bf16 is not possible .*pip install openvino"):
        choose("openvino-bf16", onnx=files["ONNX", "dynamic"])
