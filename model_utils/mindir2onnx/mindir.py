"""Reading MINDIR files: the protobuf becomes plain Python values.

A MINDIR file holds one flat list of nodes. Constants are nodes too; an operator's attributes sit
in a table of primitives to which its nodes refer (``REF::name``). Every output carries its type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, require_file

# mindspore.train.mind_ir_pb2.TensorProto.DataType (MINDIR 1.1)
_TENSOR_DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}

# mindspore TypeId, as operators such as Cast carry it (mindspore/core: ir/dtype/type_id.h)
_TYPE_IDS = {
    30: np.bool_,
    32: np.int8,
    33: np.int16,
    34: np.int32,
    35: np.int64,
    37: np.uint8,
    38: np.uint16,
    39: np.uint32,
    40: np.uint64,
    42: np.float16,
    43: np.float32,
    44: np.float64,
}

# mindspore.train.mind_ir_pb2.AttributeProto.AttributeType (MINDIR 1.1)
_FLOAT, _STRING, _BOOL, _DOUBLE = 1, 8, 9, 11
_TENSORS = (17, 19)
_SEQUENCES = (20, 21)
_INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a tensor; None stands for an unknown length.

    Attributes:
        dtype: NumPy element type.
        shape: the lengths, or None where not even the number of axes is known.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Node:
    """One operator call.

    Attributes:
        operator: name of the primitive, such as "Conv2D".
        inputs: names of constants, parameters, graph inputs or earlier outputs.
        output: name of the (possibly tuple-valued) result.
        attributes: the primitive's attributes as plain Python values.
        scope: the layer it came from, such as "Default/features-SequentialCell/Conv2D-op0".
        type: TensorType, a tuple of types for a tuple-valued result, or None.
    """

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    scope: str
    type: Any


@dataclass(frozen=True)
class Mindir:
    """A parsed MINDIR file.

    Names are those of the file: those of inputs, parameters and results begin with the graph's,
    those of constants do not, so that a variable may share its name with a parameter.

    Attributes:
        prefix: the graph's name and a colon.
        inputs: types of the inputs, in order.
        parameters: values of the parameters.
        constants: Python values of the constants.
        nodes: operator calls, in order of execution.
        output: name of the result, which is a tuple if there are several.
    """

    prefix: str
    inputs: dict[str, TensorType]
    parameters: dict[str, np.ndarray]
    constants: dict[str, Any]
    nodes: list[Node]
    output: str

    def label(self, name: str) -> str:
        """An input's or parameter's name as its author wrote it."""
        return name.removeprefix(self.prefix)


def dtype_of_id(type_id: int) -> np.dtype:
    """The NumPy type for a MindSpore TypeId number, as in ``Cast``'s second input."""
    return np.dtype(_TYPE_IDS[type_id])


def read(path: PathLike) -> Mindir:
    """Parse a MINDIR file.

    Raises:
        UserError: no such file, not a MINDIR (or an encrypted one), data-dependent control flow,
            or parameters stored outside the file.
    """
    model = _parse(path)
    if model.functions:
        raise UserError(
            f"{path} holds data-dependent control flow ({len(model.functions)} sub-graphs, at "
            f"{_branch_scope(model)}), which has no ONNX form here; make the branch depend on "
            "fixed values or export with fixed shapes"
        )
    graph = model.graph
    primitives = {
        primitive.name: (
            primitive.op_type,
            {item.name: _attribute(item) for item in primitive.attribute},
        )
        for primitive in model.primitives
    }
    constants: dict[str, Any] = {}
    nodes: list[Node] = []
    for node in graph.node:
        output = node.output[0]
        if node.op_type == "Constant":
            constants[output] = _attribute(node.attribute[0])
            continue
        operator, attributes = primitives.get(
            node.op_type.removeprefix("REF::"), (node.op_type, {})
        )
        types = [_type(item) for item in node.attribute if item.name == "shape"]
        nodes.append(
            Node(
                operator,
                tuple(node.input),
                output,
                attributes,
                node.domain,
                types[0] if types else None,
            )
        )
    return Mindir(
        prefix=f"{graph.name}:",
        inputs=_input_types(graph),
        parameters={item.name: _parameter(item, path) for item in graph.parameter},
        constants=constants,
        nodes=nodes,
        output=graph.output[0].name,
    )


def read_inputs(path: PathLike) -> dict[str, TensorType]:
    """Names, element types and shapes of a MINDIR file's inputs, in order.

    Raises:
        UserError: no such file or not a MINDIR.
    """
    graph = _parse(path).graph
    types = _input_types(graph)
    return {name.removeprefix(f"{graph.name}:"): declared for name, declared in types.items()}


def read_parameters(path: PathLike) -> dict[str, np.ndarray]:
    """The parameters in a MINDIR file by name.

    Raises:
        UserError: no such file, not a MINDIR, or parameters stored outside the file.
    """
    graph = _parse(path).graph
    return {
        parameter.name.removeprefix(f"{graph.name}:"): _parameter(parameter, path)
        for parameter in graph.parameter
    }


def rename_inputs(model: Any, names: Sequence[str]) -> None:
    """Give the inputs of a MINDIR protobuf other names; nodes keep reading them."""
    graph = model.graph
    renamed = {
        item.name: f"{graph.name}:{name}" for item, name in zip(graph.input, names, strict=True)
    }
    for item in (*graph.input, *graph.output):
        item.name = renamed.get(item.name, item.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _parse(path: PathLike) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from mindspore.train.mind_ir_pb2 import ModelProto

    file = require_file(path, "MINDIR file")
    model = ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise UserError(
            f"{path} is truncated, encrypted or not a MINDIR file; export it again"
        ) from error
    if not model.graph.node and not model.graph.output:
        raise UserError(f"{path} holds no graph; it is not a MINDIR file, export it again")
    return model


def _input_types(graph: Any) -> dict[str, TensorType]:
    return {item.name: _tensor_type(item.tensor[0]) for item in graph.input if item.tensor}


def _branch_scope(model: Any) -> str:
    """The layer of the first branch, or the graph's name."""
    switches = {p.name for p in model.primitives if p.op_type == "Switch"}
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            if node.op_type.removeprefix("REF::") in switches:
                return node.domain
    return model.graph.name


def _dtype(code: int) -> np.dtype:
    if code not in _TENSOR_DTYPES:
        raise UserError(f"the MINDIR file holds tensors of type number {code}, which NumPy lacks")
    return np.dtype(_TENSOR_DTYPES[code])


def _tensor_type(tensor: Any) -> TensorType:
    dims = list(tensor.dims)
    # MindSpore writes -1 for a dynamic length and -2 for a dynamic number of axes.
    shape = None if -2 in dims else tuple(d if d >= 0 else None for d in dims)
    return TensorType(_dtype(tensor.data_type), shape)


def _array(tensor: Any) -> np.ndarray:
    data = np.frombuffer(tensor.raw_data, _dtype(tensor.data_type))
    return data.reshape(tuple(tensor.dims))


def _parameter(tensor: Any, path: PathLike) -> np.ndarray:
    if tensor.external_data.location:
        raise UserError(
            f"{path} keeps its parameters in a second file ({tensor.external_data.location}), "
            "as MindSpore does above 1 GB; this converter reads single files only"
        )
    return _array(tensor)


def _type(attribute: Any) -> Any:
    if attribute.type in _SEQUENCES:
        return tuple(_type(item) for item in attribute.values)
    if attribute.tensors:
        found = _tensor_type(attribute.tensors[0])
        if attribute.type not in _TENSORS:  # a scalar: MindSpore writes the shape [0]
            return TensorType(found.dtype, ())
        return found
    return None


def _attribute(attribute: Any) -> Any:
    """The value of an attribute or constant; None for types without one (monads, None)."""
    kind = attribute.type
    if kind in _TENSORS:
        return _array(attribute.tensors[0]) if attribute.tensors else None
    if kind in _SEQUENCES:
        return tuple(_attribute(item) for item in attribute.values)
    if kind == _FLOAT:
        return _scalar(attribute.floats, attribute.f)
    if kind == _DOUBLE:
        return _scalar(attribute.doubles, attribute.d)
    if kind == _STRING:
        return _scalar(attribute.strings, attribute.s).decode()
    if kind == _BOOL:
        return bool(_scalar(attribute.ints, attribute.i))
    if kind in _INTEGERS:
        return _scalar(attribute.ints, attribute.i)
    return None


def _scalar(repeated: Any, single: Any) -> Any:
    # Scalars of primitives sit in the repeated field, those of constants in the single one.
    return repeated[0] if len(repeated) else single
