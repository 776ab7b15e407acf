"""Exporting: every file proven against its network, nothing left behind when it is not."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import nn
from onnx import numpy_helper

from model_utils import exporting
from model_utils.errors import UserError
from model_utils.exporting import ExportInput, difference, export
from model_utils.files import sha256
from model_utils.mindir2onnx import read_inputs
from tests.model_utils import mindir_cases

FIXED = [ExportInput("image", (2, 3, 16, 24))]
DYNAMIC = [
    ExportInput(
        "image", (None, 3, None, None), test_shapes=((1, 3, 16, 24), (3, 3, 20, 12), (2, 3, 9, 17))
    )
]


@pytest.fixture(scope="module")
def network():
    ms.set_seed(1)
    return mindir_cases.SmallNetwork()


@pytest.fixture(scope="module", params=["MINDIR", "ONNX"])
def dynamic_export(request, network, tmp_path_factory):
    """A dynamic export in each format."""
    folder = tmp_path_factory.mktemp("dynamic")
    names = ["probability", "pooled"]
    return export(network, DYNAMIC, folder / "net", request.param, output_names=names)


def run_file(path: Path, image: np.ndarray) -> list[np.ndarray]:
    """Run an exported file without any code of ours."""
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(str(path)).run(None, {"image": image})
    outputs = nn.GraphCell(ms.load(str(path)))(ms.Tensor(image))
    return [output.asnumpy() for output in outputs]


def test_dynamic_file_computes_the_network_at_other_sizes(dynamic_export, network):
    """At sizes that neither the export nor its verification has seen."""
    network.set_train(False)
    for seed, shape in enumerate([(4, 3, 11, 13), (1, 3, 30, 8), (2, 3, 16, 24)]):
        image = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        expected = [output.asnumpy() for output in network(ms.Tensor(image))]
        computed = run_file(dynamic_export.path, image)
        assert [output.shape for output in computed] == [output.shape for output in expected]
        for wanted, found in zip(expected, computed, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_report(dynamic_export, network):
    report = dynamic_export
    assert report.path.name == f"net.{report.file_format.lower()}"
    assert report.checked_shapes == (((1, 3, 16, 24),), ((3, 3, 20, 12),), ((2, 3, 9, 17),))
    assert 0 <= report.max_difference < 1e-5
    assert report.bytes == report.path.stat().st_size
    assert report.sha256 == sha256(report.path)
    used = [p for p in network.get_parameters() if not p.name.startswith("spare")]
    assert report.parameters == sum(p.size for p in used)
    assert report.unused_parameters == ("spare.weight", "spare.bias")


def test_names_in_the_file(dynamic_export):
    if dynamic_export.file_format == "MINDIR":
        declared = read_inputs(dynamic_export.path)
        assert list(declared) == ["image"]
        assert declared["image"].shape == (None, 3, None, None)
        return
    graph = onnx.load(dynamic_export.path).graph
    assert [item.name for item in graph.input] == ["image"]
    assert [item.name for item in graph.output] == ["probability", "pooled"]


def test_only_the_file_is_left_and_it_is_writable(dynamic_export):
    folder = dynamic_export.path.parent
    assert [item.name for item in folder.iterdir()] == [dynamic_export.path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(dynamic_export.path.stat().st_mode) == 0o666 & ~umask


def test_network_is_left_as_it_was(tmp_path):
    network = mindir_cases.SmallNetwork()
    network.set_train(True)
    network.norm.set_train(False)
    names = [p.name for p in network.get_parameters()]
    weights = {p.name: p.asnumpy() for p in network.get_parameters()}
    export(network, FIXED, tmp_path / "net.onnx", "ONNX")
    flags = {name: member.training for name, member in network.cells_and_names()}
    assert flags.pop("norm") is False
    assert all(flags.values())
    assert [p.name for p in network.get_parameters()] == names
    assert network.get_inputs() is None
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), weights[parameter.name])


def test_evaluation_mode_is_what_is_exported(tmp_path, network):
    """Dropout gone, moving statistics used, though the network was training."""
    network.set_train(True)
    report = export(network, FIXED, tmp_path / "net", "ONNX")
    image = np.random.default_rng(3).standard_normal((2, 3, 16, 24)).astype(np.float32)
    first, second = (run_file(report.path, image)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    network.set_train(False)
    np.testing.assert_allclose(first, network(ms.Tensor(image))[0].asnumpy(), atol=1e-5)


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_difference_above_tolerance_leaves_no_file(tmp_path, network, file_format):
    """The file is compared with a network of other weights: what a wrong export looks like."""
    other = mindir_cases.SmallNetwork()
    for parameter in other.get_parameters():
        parameter.set_data(ms.Tensor(parameter.asnumpy() * 1.05))
    other.set_train(False)
    with pytest.raises(UserError, match=r"net\.\w+ differs from the network by .* not written"):
        export(network, FIXED, tmp_path / "net", file_format, reference=other, tolerance=1e-4)
    assert list(tmp_path.iterdir()) == []
    report = export(network, FIXED, tmp_path / "net", file_format, reference=other, tolerance=10)
    assert 1e-4 < report.max_difference < 10


def test_failure_keeps_the_earlier_file(tmp_path, network):
    target = tmp_path / "net.onnx"
    target.write_bytes(b"earlier")
    with pytest.raises(UserError, match="Lgamma of layer .*head-GammaHead"):
        inputs = [ExportInput("x", (2, 3))]
        export(mindir_cases.Outer(), inputs, target, "ONNX")
    assert target.read_bytes() == b"earlier"
    assert [item.name for item in tmp_path.iterdir()] == ["net.onnx"]


def test_wrong_translation_is_caught(tmp_path, network, monkeypatch):
    """A converter that shifts a constant by one per mille must not get through."""
    from model_utils import mindir2onnx

    real = mindir2onnx.convert

    def faulty(mindir, path, **options):
        model = real(mindir, **options)
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "BatchNormalization" and attribute.name == "epsilon":
                    attribute.f = 1e-2
        onnx.save(model, path)

    monkeypatch.setattr(mindir2onnx, "convert", faulty)
    with pytest.raises(UserError, match="differs from the network"):
        export(network, FIXED, tmp_path / "net.onnx", "ONNX")
    assert list(tmp_path.iterdir()) == []


def test_changed_parameter_is_caught(tmp_path, network, monkeypatch):
    from model_utils import mindir2onnx

    real = mindir2onnx.convert

    def faulty(mindir, path, **options):
        model = real(mindir, **options)
        for item in model.graph.initializer:
            if item.name == "norm.beta":
                shifted = numpy_helper.to_array(item) + np.float32(1e-6)
                item.CopyFrom(numpy_helper.from_array(shifted, item.name))
        onnx.save(model, path)

    monkeypatch.setattr(mindir2onnx, "convert", faulty)
    with pytest.raises(UserError, match=r"changed parameter norm\.beta"):
        export(network, FIXED, tmp_path / "net.onnx", "ONNX")


def test_unused_parameters_are_logged(tmp_path, network, caplog):
    with caplog.at_level(logging.INFO, logger="zoo"):
        export(network, FIXED, tmp_path / "net", "MINDIR")
    assert "spare.weight, spare.bias" in caplog.text
    assert "largest difference" in caplog.text and "2x3x16x24" in caplog.text


@pytest.mark.parametrize("name", ["net", "net.v2", "net.onnx", "net.ONNX"])
def test_suffix(tmp_path, name):
    """MindSpore appends one of its own; ours is added only where it is missing."""
    report = export(nn.ReLU(), [ExportInput("x", (2, 3))], tmp_path / name, "onnx")
    assert report.path.name == (name if name.lower().endswith(".onnx") else f"{name}.onnx")
    assert report.path.is_file()


def test_integer_inputs_and_outputs(tmp_path):
    """Indices as inputs, positions as outputs, a fixed and a dynamic input together."""
    inputs = [
        ExportInput("table", (4, 5)),
        ExportInput("index", (None,), "int32", test_shapes=((3,), (6,))),
    ]
    for kind in ("MINDIR", "ONNX"):
        report = export(mindir_cases.Lookup(), inputs, tmp_path / "net", kind)
        assert report.max_difference == 0
        assert report.checked_shapes == (((4, 5), (3,)), ((4, 5), (6,)))


def test_default_test_shapes():
    """Two batches and two sizes where dynamic, the only size where not."""
    assert ExportInput("x", (None, 3, None, 8)).shapes_to_test() == ((1, 3, 64, 8), (2, 3, 96, 8))
    assert ExportInput("x", (4, 3)).shapes_to_test() == ((4, 3), (4, 3))


def test_test_shape_that_does_not_fit(tmp_path):
    inputs = [ExportInput("x", (None, 3), test_shapes=((2, 4),))]
    with pytest.raises(UserError, match=r"test shape \(2, 4\) does not fit input x"):
        export(nn.ReLU(), inputs, tmp_path / "net", "ONNX")


@pytest.mark.parametrize("names", [("scale", "b"), ("a", "a")])
def test_input_names_must_differ_from_all_others(tmp_path, names):
    inputs = [ExportInput(name, (1, 3, 8, 8)) for name in names]
    with pytest.raises(UserError, match=f"input name {names[0]} is taken"):
        export(mindir_cases.SharedWeights(), inputs, tmp_path / "net", "MINDIR")


def test_sizes_override(tmp_path):
    inputs = [ExportInput("x", (None, 3))]
    report = export(nn.ReLU(), inputs, tmp_path / "net", "ONNX", sizes=[[(5, 3)], [(7, 3)]])
    assert report.checked_shapes == (((5, 3),), ((7, 3),))


def test_air_is_refused_off_ascend(tmp_path, network):
    if ms.get_context("device_target") == "Ascend":
        pytest.skip("this machine can write AIR")
    with pytest.raises(UserError, match="AIR can be exported on Ascend only.*runs on CPU"):
        export(network, FIXED, tmp_path / "net", "AIR")
    assert list(tmp_path.iterdir()) == []


def test_unknown_format(tmp_path, network):
    with pytest.raises(UserError, match="TFLITE is not one of MINDIR, AIR, ONNX"):
        export(network, FIXED, tmp_path / "net", "TFLITE")


def test_dynamic_network_that_mindspore_cannot_run(tmp_path):
    """``ops.interpolate`` with computed sizes: exported or not, no broken file may remain."""
    inputs = [ExportInput("x", (None, 3, None, None), test_shapes=((1, 3, 8, 8), (1, 3, 6, 4)))]
    with pytest.raises(UserError, match="MINDIR|mindir|fixed sizes"):
        export(mindir_cases.Interpolating(), inputs, tmp_path / "net", "MINDIR")
    assert list(tmp_path.iterdir()) == []


def test_killed_while_exporting_leaves_no_file_under_the_name(tmp_path):
    """Killed between writing and verification: the earlier file is still the one with the name."""
    target = tmp_path / "net.onnx"
    target.write_bytes(b"earlier")
    program = (
        "import os, signal, sys\n"
        "from model_utils import exporting\n"
        "from mindspore import nn\n"
        "exporting._largest_difference = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "inputs = [exporting.ExportInput('x', (2, 3))]\n"
        "exporting.export(nn.ReLU(), inputs, sys.argv[1], 'ONNX')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], timeout=120, check=False)
    assert done.returncode == -9
    assert target.read_bytes() == b"earlier"


def test_unwritable_folder_is_one_sentence(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    with pytest.raises(UserError, match="cannot write .*net.onnx"):
        export(nn.ReLU(), [ExportInput("x", (2, 3))], blocker / "net.onnx", "ONNX")


@pytest.mark.parametrize(
    ("expected", "computed", "wanted"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.25),  # relative to the largest magnitude, 2
        ([0.1, 0.2], [0.1, 0.3], 0.1),  # absolute below one
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([1.0, 1.0], [np.nan, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_difference(expected, computed, wanted):
    assert difference([np.array(expected)], [np.array(computed)]) == pytest.approx(wanted)


def test_difference_counts_outputs():
    assert difference([np.zeros(1)], []) == np.inf
    assert exporting.FORMATS == ("MINDIR", "AIR", "ONNX")


def test_whole_numbers_may_differ_at_a_few_near_ties_only():
    classes = np.random.default_rng(0).integers(0, 19, (1, 40, 50)).astype(np.int32)
    few, many = classes.copy(), classes.copy()
    few[0, 0, :20] += 1  # 1 %
    many[0, 0, :21] += 1
    assert difference([classes], [few]) == 0.0
    assert difference([classes], [many]) == np.inf
    assert difference([classes.astype(np.float32)], [few.astype(np.float32)]) > 0.05
