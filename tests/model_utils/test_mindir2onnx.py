"""Every operator of the converter against MindSpore, in fixed and in dynamic shapes."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import nn
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from model_utils.errors import UserError
from model_utils.mindir2onnx import convert, read_inputs, supported_operators
from model_utils.mindir2onnx.graph import GraphBuilder, Symbol
from model_utils.mindir2onnx.mindir import read, read_parameters
from model_utils.mindir2onnx.operators.scalars import floor_divide, floor_modulo
from tests.model_utils import mindir_cases
from tests.model_utils.mindir_cases import CASES, Group

DTYPES = {"f": ms.float32, "i": ms.int32, "b": ms.bool_}

OPSETS = {topic: (17, 20) for topic in CASES} | {"volume_sampling": (20,)}

PARAMETERS = [
    pytest.param(topic, case.name, dynamic, id=f"{case.name}-{'dynamic' if dynamic else 'fixed'}")
    for topic, cases in CASES.items()
    for dynamic in (False, True)
    for case in cases.values()
    if case.other or not dynamic
]


def export_mindir(cell: nn.Cell, arrays, shapes, path: Path) -> Path:
    """Export by MindSpore; a None in a shape is a dynamic axis."""
    cell.set_train(False)
    inputs = [
        ms.Tensor(shape=shape, dtype=DTYPES[array.dtype.kind])
        if None in shape
        else ms.Tensor(array)
        for array, shape in zip(arrays, shapes, strict=True)
    ]
    if any(None in shape for shape in shapes):
        cell.set_inputs(*inputs)
    ms.export(cell, *inputs, file_name=str(path), file_format="MINDIR")
    return path


def flat(result) -> list[np.ndarray]:
    if isinstance(result, tuple | list):
        return [array for item in result for array in flat(item)]
    return [result.asnumpy() if isinstance(result, ms.Tensor) else np.asarray(result)]


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session: onnxruntime.InferenceSession, arrays: list[np.ndarray]) -> list[np.ndarray]:
    names = [item.name for item in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


@dataclass
class Exported:
    """The cases of a topic in one file, with what MindSpore and onnxruntime made of it."""

    path: Path
    # Per set of inputs, then per case: its outputs.
    expected: list[dict[str, list[np.ndarray]]]
    # Per opset and set of inputs: all outputs in order.
    computed: dict[int, list[list[np.ndarray]]] = field(default_factory=dict)


def export_topic(topic: str, dynamic: bool, folder: Path) -> Exported:
    cases = [case for case in CASES[topic].values() if case.other or not dynamic]
    ms.set_seed(3)
    group = Group([case.build() for case in cases], [len(case.shapes) for case in cases])
    shapes = [s for case in cases for s in (case.dynamic_shapes() if dynamic else case.shapes)]

    def inputs(seed: int, other: bool) -> list[np.ndarray]:
        return [
            array
            for case in cases
            for array in case.random_inputs(case.other if other else case.shapes, seed)
        ]

    fed = [inputs(1, False), inputs(2, dynamic), inputs(3, False)]
    path = export_mindir(group, fed[0], shapes, folder / f"{topic}_{dynamic}.mindir")
    loaded = nn.GraphCell(ms.load(str(path)))
    expected = []
    for arrays in fed:
        results = loaded(*[ms.Tensor(array) for array in arrays])
        # A topic with one case comes back as that case's own result.
        results = results if len(cases) > 1 else (results,)
        expected.append(
            {case.name: flat(result) for case, result in zip(cases, results, strict=True)}
        )
    exported = Exported(path, expected)
    for opset in OPSETS[topic]:
        session = session_of(convert(path, opset=opset))
        exported.computed[opset] = [run(session, arrays) for arrays in fed]
    return exported


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a topic at its first use."""
    folder = tmp_path_factory.mktemp("mindir")
    done: dict[tuple[str, bool], Exported] = {}

    def get(topic: str, dynamic: bool) -> Exported:
        if (topic, dynamic) not in done:
            done[topic, dynamic] = export_topic(topic, dynamic, folder)
        return done[topic, dynamic]

    return get


@pytest.mark.parametrize(("topic", "name", "dynamic"), PARAMETERS)
def test_operator(exported, topic, name, dynamic):
    found = exported(topic, dynamic)
    tolerance = CASES[topic][name].tolerance
    for index, expected in enumerate(found.expected):
        start = 0
        for case, arrays in expected.items():
            if case == name:
                break
            start += len(arrays)
        for opset, computed in found.computed.items():
            results = computed[index][start : start + len(expected[name])]
            for number, (result, wanted) in enumerate(zip(results, expected[name], strict=True)):
                where = f"{name}, output {number}, opset {opset}, inputs {index}"
                assert result.dtype == wanted.dtype, where
                assert result.shape == wanted.shape, where
                scale = max(1.0, float(np.abs(wanted).max(initial=0)))
                np.testing.assert_allclose(
                    result, wanted, rtol=0, atol=tolerance * scale, err_msg=where
                )


# --- completeness ------------------------------------------------------------------------------


def test_every_translation_is_exercised(exported):
    """A translation without a case would be unproven code."""
    seen = set()
    for topic, cases in CASES.items():
        for dynamic in (False, True):
            if not dynamic or any(case.other for case in cases.values()):
                seen.update(node.operator for node in read(exported(topic, dynamic).path).nodes)
    assert set(supported_operators()) - seen == set()


# --- names, parameters, types ------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_weights(tmp_path_factory):
    """A MINDIR whose block is called twice, exported with a dynamic batch."""
    case = CASES["networks"]["shared_weights"]
    cell = case.build()
    arrays = case.random_inputs(case.shapes, 0)
    shapes = [(None, *shape[1:]) for shape in case.shapes]
    folder = tmp_path_factory.mktemp("shared")
    return cell, arrays, export_mindir(cell, arrays, shapes, folder / "net.mindir")


def test_parameters_keep_names_and_values(shared_weights):
    cell, _, path = shared_weights
    model = convert(path)
    own = {p.name: p.asnumpy() for p in cell.get_parameters() if not p.name.startswith("unused")}
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert own.keys() <= stored.keys()
    for name, value in own.items():
        np.testing.assert_array_equal(stored[name], value)


def test_given_names_and_dynamic_axes(shared_weights):
    _, arrays, path = shared_weights
    model = convert(path, input_names=["left", "right"], output_names=["sum"])
    assert [item.name for item in model.graph.input] == ["left", "right"]
    assert [item.name for item in model.graph.output] == ["sum"]
    for item in (*model.graph.input, *model.graph.output):
        dims = item.type.tensor_type.shape.dim
        assert dims[0].dim_param and [d.dim_value for d in dims[2:]] == [12, 16]
    session = session_of(model)
    three = [np.concatenate([array, array[:1]]) for array in arrays]
    assert run(session, three)[0].shape == (3, 4, 12, 16)


def test_wrong_number_of_names(shared_weights):
    with pytest.raises(UserError, match=r"1 input names \(left\) were given for 2 inputs"):
        convert(shared_weights[2], input_names=["left"])
    with pytest.raises(UserError, match="2 output names"):
        convert(shared_weights[2], output_names=["a", "b"])


def test_name_taken_by_a_parameter(shared_weights):
    """In ONNX a parameter named like an input would be the input's default value."""
    with pytest.raises(UserError, match="name scale is a parameter's"):
        convert(shared_weights[2], input_names=["scale", "right"])
    with pytest.raises(UserError, match="output name left is taken"):
        convert(shared_weights[2], input_names=["left", "right"], output_names=["left"])
    with pytest.raises(UserError, match="output name scale is taken"):
        convert(shared_weights[2], output_names=["scale"])


def test_output_named_like_the_converters_own_constants(tmp_path):
    cell = mindir_cases.CommonNames()
    arrays = [np.random.default_rng(0).standard_normal((1, 2, 4, 5)).astype(np.float32)]
    path = export_mindir(cell, arrays, [arrays[0].shape], tmp_path / "net.mindir")
    expected = cell(ms.Tensor(arrays[0])).asnumpy()
    for name in ("constant", "output_identity", "Shape"):
        model = convert(path, output_names=[name])
        np.testing.assert_allclose(run(session_of(model), arrays)[0], expected, atol=1e-5)


def test_input_and_parameter_named_like_the_compilers_constants(tmp_path):
    """MINDIR's constants are called after variables, such as the y of x * y."""
    cell = mindir_cases.CommonNames()
    arrays = [np.random.default_rng(0).standard_normal((1, 2, 4, 5)).astype(np.float32)]
    path = export_mindir(cell, arrays, [(None, 2, None, None)], tmp_path / "net.mindir")
    constants = {name.rsplit(":", 1)[-1] for name in read(path).constants}
    assert "y" in constants
    model = convert(path)
    assert [item.name for item in model.graph.input] == ["y"]
    expected = cell(ms.Tensor(arrays[0])).asnumpy()
    np.testing.assert_allclose(run(session_of(model), arrays)[0], expected, atol=1e-5)


def test_parameter_without_influence_is_reported(tmp_path, caplog):
    """Its shape is read, so it is in the MINDIR, but no output depends on its values."""
    cell = mindir_cases.ReadsOnlyShape()
    arrays = [np.ones((2, 3), np.float32)]
    path = export_mindir(cell, arrays, [(2, 3)], tmp_path / "net.mindir")
    assert "idle" in read_parameters(path)
    with caplog.at_level(logging.WARNING, logger="zoo"):
        model = convert(path)
    assert "idle" in caplog.text
    assert [item.name for item in model.graph.initializer] == ["busy"]
    np.testing.assert_array_equal(run(session_of(model), arrays)[0], np.full((2, 3), 3.0))


def test_file_is_written_and_identical(shared_weights, tmp_path):
    target = tmp_path / "deep" / "net.onnx"
    model = convert(shared_weights[2], target)
    assert onnx.load(target) == model
    assert [file.name for file in target.parent.iterdir()] == ["net.onnx"]


def test_declared_inputs(shared_weights):
    declared = read_inputs(shared_weights[2])
    assert [kind.shape for kind in declared.values()] == [(None, 3, 12, 16)] * 2
    assert all(kind.dtype == np.float32 for kind in declared.values())


def test_convolution_takes_its_bias(shared_weights):
    """The separate addition of MINDIR disappears into the convolution."""
    nodes = convert(shared_weights[2]).graph.node
    assert [len(node.input) for node in nodes if node.op_type == "Conv"] == [3, 3]


def test_padded_pool_stays_two_dimensional(tmp_path):
    """MindSpore turns it into a 3-D pool with positions, which is slower everywhere."""
    case = CASES["pooling"]["max_pool_padded"]
    arrays = case.random_inputs(case.shapes, 0)
    path = export_mindir(case.build(), arrays, case.shapes, tmp_path / "net.mindir")
    nodes = [node.op_type for node in convert(path).graph.node]
    assert nodes == ["MaxPool", "Identity"]


@pytest.mark.parametrize("dynamic", [False, True])
def test_normalisation_of_volumes_merges_into_the_convolution(tmp_path, dynamic):
    """MindSpore's detour through a folded volume is undone; else onnxruntime cannot merge it."""
    cell = nn.SequentialCell(nn.Conv3d(4, 6, 3, has_bias=True), nn.BatchNorm3d(6))
    rng = np.random.default_rng(0)
    for parameter in cell[1].get_parameters():
        parameter.set_data(ms.Tensor(rng.random(6).astype(np.float32) + 0.5))
    arrays = [rng.standard_normal((2, 4, 3, 5, 6)).astype(np.float32)]
    shape = (None, 4, None, None, None) if dynamic else arrays[0].shape
    model = convert(export_mindir(cell, arrays, [shape], tmp_path / "net.mindir"))
    assert [node.op_type for node in model.graph.node] == ["Conv", "BatchNormalization", "Identity"]
    expected = cell(ms.Tensor(arrays[0])).asnumpy()
    np.testing.assert_allclose(run(session_of(model), arrays)[0], expected, atol=1e-5)


def test_chain_of_reshapes_is_not_confused_by_equal_sizes(tmp_path):
    """(2, 4, 3, 3) to (4, 2, 9) to (2, 4, 9): the batch axis moved although the lengths recur."""
    cell = mindir_cases.MovingChannels()
    arrays = [np.random.default_rng(1).standard_normal((4, 2, 3, 3)).astype(np.float32)]
    path = export_mindir(cell, arrays, [arrays[0].shape], tmp_path / "net.mindir")
    expected = cell(ms.Tensor(arrays[0])).asnumpy()
    assert expected.shape == (2, 4, 9)
    np.testing.assert_allclose(run(session_of(convert(path)), arrays)[0], expected, atol=1e-5)


def test_same_model_from_the_same_file(shared_weights):
    assert convert(shared_weights[2]) == convert(shared_weights[2])


# --- refusals ----------------------------------------------------------------------------------


def test_unsupported_operator_is_named_with_its_layer(tmp_path):
    cell = mindir_cases.Outer()
    arrays = [np.ones((2, 3), np.float32)]
    path = export_mindir(cell, arrays, [(2, 3)], tmp_path / "net.mindir")
    target = tmp_path / "net.onnx"
    with pytest.raises(UserError, match=r"operator Lgamma of layer Default/head-GammaHead/Lgamma"):
        convert(path, target)
    assert not target.exists()


def test_unsupported_setting_is_named_with_its_layer(exported, tmp_path):
    path = exported("volume_sampling", False).path
    with pytest.raises(UserError, match=r"GridSampler3D of layer .*from opset 20 on"):
        convert(path, opset=17)


def test_training_mode_is_refused(tmp_path):
    cell = nn.BatchNorm2d(3)
    cell.set_train(True)
    image = ms.Tensor(np.ones((2, 3, 4, 4), np.float32))
    path = tmp_path / "net.mindir"
    # ms.export itself switches to evaluation; a layer that ignores that is the remaining way.
    cell.use_batch_statistics = True
    ms.export(cell, image, file_name=str(path), file_format="MINDIR")
    with pytest.raises(UserError, match="BatchNorm of layer .*training mode"):
        convert(path)


def test_invalid_translation_is_one_sentence(shared_weights, monkeypatch):
    """A translation that gets types or shapes wrong is caught by the checker, not by the user."""
    from model_utils.mindir2onnx import registry

    def wrong_type(call):
        return call.graph.add("Not", [call.tensor(0)])

    monkeypatch.setitem(registry._TRANSLATIONS, "ReLU", wrong_type)
    with pytest.raises(UserError, match="not valid ONNX .*Not.*defect of the converter"):
        convert(shared_weights[2])

    def wrong_rank(call):
        return call.graph.unsqueeze(call.tensor(0), 0)

    monkeypatch.setitem(registry._TRANSLATIONS, "ReLU", wrong_rank)
    with pytest.raises(UserError, match="operator ReLU of layer .*block.*result has shape"):
        convert(shared_weights[2])


def test_operator_translated_twice_is_refused():
    from model_utils.mindir2onnx.registry import operator

    with pytest.raises(ValueError, match="ReLU is translated twice"):
        operator("ReLU")(lambda call: call.tensor(0))


def test_control_flow_is_refused(tmp_path):
    case = mindir_cases.Branching()
    path = export_mindir(case, [np.ones((2, 3), np.float32)], [(2, 3)], tmp_path / "net.mindir")
    with pytest.raises(UserError, match=r"net\.mindir holds .*control flow .*at Default/Switch"):
        convert(path)


def test_opset_out_of_range(shared_weights):
    with pytest.raises(UserError, match="opset 11 is not one of 17 to 20"):
        convert(shared_weights[2], opset=11)


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x08\x01"])
def test_not_a_mindir(tmp_path, content):
    path = tmp_path / "net.mindir"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"net\.mindir .*export it again"):
        convert(path)


def test_truncated_mindir(shared_weights, tmp_path):
    data = shared_weights[2].read_bytes()
    path = tmp_path / "net.mindir"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match="truncated"):
        convert(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="MINDIR file .*absent.mindir does not exist"):
        convert(tmp_path / "absent.mindir")


# --- the shape arithmetic ----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(-40, 40), st.integers(-9, 9).filter(bool))
def test_floor_division_and_remainder_of_integers(a, b):
    """ONNX rounds integer quotients towards zero; Python and MindSpore towards minus infinity."""
    graph = GraphBuilder(17)
    x, y = Symbol("x", np.dtype(np.int64), ()), Symbol("y", np.dtype(np.int64), ())
    outputs = [floor_divide(graph, x, y), floor_modulo(graph, x, y)]
    proto = helper.make_graph(
        graph.nodes,
        "division",
        [helper.make_tensor_value_info(n, onnx.TensorProto.INT64, []) for n in "xy"],
        [helper.make_tensor_value_info(o.name, onnx.TensorProto.INT64, []) for o in outputs],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)])
    found = ReferenceEvaluator(model).run(None, {"x": np.int64(a), "y": np.int64(b)})
    assert [int(n) for n in found] == [a // b, a % b]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.tuples(st.integers(-14, 14), st.integers(-14, 14), st.sampled_from([-3, -1, 1, 2])),
)
def test_slice_lengths_follow_python(length, bounds):
    start, end, step = bounds
    graph = GraphBuilder(17)
    x = Symbol("x", np.dtype(np.float32), (length,))
    result = graph.slice(x, [start], [end], [0], [step])
    assert result.shape == (len(range(length)[start:end:step]),)


def test_known_lengths_need_no_nodes():
    graph = GraphBuilder(17)
    x = Symbol("x", np.dtype(np.float32), (2, None, 5))
    assert graph.length(x, -1) == 5
    assert graph.product_of(graph.length(x, 0), 3) == 6
    assert not graph.nodes
    dynamic = graph.sum_of(graph.length(x, 1), 1)
    assert isinstance(dynamic, Symbol)
    assert [node.op_type for node in graph.nodes] == ["Shape", "Gather", "Add"]
    graph.length(x, 1)
    assert len(graph.nodes) == 3
