"""Operators without arithmetic: parameter loads, ordering, tuples, conversions of kind."""

from model_utils.mindir2onnx.graph import Symbol, Unsupported, Value
from model_utils.mindir2onnx.mindir import dtype_of_id
from model_utils.mindir2onnx.registry import Call, operator


@operator("Load", "Depend")
def first_input(call: Call) -> Value:
    """Ordering marks mean nothing in ONNX: the value passes through."""
    return call.inputs[0]


@operator("UpdateState")
def ordering(call: Call) -> None:
    """Side-effect ordering has no value."""


@operator("MakeTuple")
def make_tuple(call: Call) -> tuple[Value, ...]:
    """Tuples exist only during conversion."""
    return call.inputs


@operator("TupleGetItem")
def tuple_item(call: Call) -> Value:
    """One element of a tuple, by a constant index."""
    sequence, index = call.inputs[0], call.known(1)
    if not isinstance(sequence, tuple):
        raise Unsupported("it indexes something that is not a tuple")
    return sequence[index]


@operator("ScalarToTensor", "TupleToTensor")
def to_tensor(call: Call) -> Symbol:
    """A number or a tuple of numbers as a tensor of a type id."""
    return call.tensor(0, dtype_of_id(call.known(1)))


@operator("TensorToScalar")
def to_scalar(call: Call) -> Value:
    """A tensor without axes as a number; it stays a tensor in ONNX."""
    return call.inputs[0]


@operator("Cast")
def cast(call: Call) -> Symbol:
    """Another element type; towards integers both systems drop the fraction."""
    return call.graph.cast(call.tensor(0), dtype_of_id(call.known(1)))
