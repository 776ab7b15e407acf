"""Every operator of the converter against MindSpore, in fixed and in dynamic shapes."""

from dataclasses import dataclass, field
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import nn

from model_utils.mindir2onnx import convert
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
