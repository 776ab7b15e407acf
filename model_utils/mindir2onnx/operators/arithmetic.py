"""Element-wise arithmetic, comparison, selection and matrix products."""

import math
from collections.abc import Callable

import numpy as np

from model_utils.mindir2onnx.graph import GraphBuilder, Symbol, Unsupported
from model_utils.mindir2onnx.operators.scalars import (
    broadcast_shape,
    floor_divide,
    floor_modulo,
)
from model_utils.mindir2onnx.registry import Call, operator


def elementwise(
    graph: GraphBuilder, onnx_operator: str, *values: Symbol, **options: object
) -> Symbol:
    """A node whose output has the broadcast shape of its inputs."""
    return graph.add(onnx_operator, values, shape=broadcast_shape(*values), **options)


def _unary(onnx_operator: str) -> Callable[[Call], Symbol]:
    return lambda call: elementwise(call.graph, onnx_operator, call.tensor(0))


for _mindir, _onnx in (
    ("Abs", "Abs"),
    ("Neg", "Neg"),
    ("Exp", "Exp"),
    ("Sqrt", "Sqrt"),
    ("Reciprocal", "Reciprocal"),
    ("Sin", "Sin"),
    ("Cos", "Cos"),
    ("Tan", "Tan"),
    ("Sinh", "Sinh"),
    ("Cosh", "Cosh"),
    ("Atan", "Atan"),
    ("Erf", "Erf"),
    ("Sign", "Sign"),
    ("Floor", "Floor"),
    ("Ceil", "Ceil"),
):
    operator(_mindir)(_unary(_onnx))


@operator("LogicalNot")
def logical_not(call: Call) -> Symbol:
    """True where x is false or zero."""
    return elementwise(call.graph, "Not", call.tensor(0, np.bool_))


@operator("IsNan", "IsInf", "IsFinite")
def number_kind(call: Call) -> Symbol:
    """Where x is not a number, infinite, or neither of both."""
    graph, x = call.graph, call.tensor(0)
    nan = elementwise(graph, "IsNaN", x, dtype=np.bool_)
    infinite = elementwise(graph, "IsInf", x, dtype=np.bool_)
    if call.node.operator == "IsFinite":
        return elementwise(graph, "Not", elementwise(graph, "Or", nan, infinite))
    return nan if call.node.operator == "IsNan" else infinite


def _arithmetic(onnx_operator: str) -> Callable[[Call], Symbol]:
    """Operands of different types are promoted to the type of the result."""
    return lambda call: elementwise(
        call.graph, onnx_operator, *call.graph.common(*call.inputs[:2], dtype=call.dtype)
    )


for _mindir, _onnx in (
    ("Add", "Add"),
    ("Sub", "Sub"),
    ("Mul", "Mul"),
    ("Muls", "Mul"),
    ("Div", "Div"),
    ("Divs", "Div"),
    ("RealDiv", "Div"),
    ("Pow", "Pow"),
    ("Maximum", "Max"),
    ("Minimum", "Min"),
    ("LogicalAnd", "And"),
    ("LogicalOr", "Or"),
    ("LogicalXor", "Xor"),
):
    operator(_mindir)(_arithmetic(_onnx))


def _comparison(onnx_operator: str) -> Callable[[Call], Symbol]:
    return lambda call: elementwise(
        call.graph, onnx_operator, *call.graph.common(*call.inputs[:2]), dtype=np.bool_
    )


for _mindir, _onnx in (
    ("Greater", "Greater"),
    ("GreaterEqual", "GreaterOrEqual"),
    ("Less", "Less"),
    ("LessScalar", "Less"),
    ("LessEqual", "LessOrEqual"),
    ("Equal", "Equal"),
    ("EqScalar", "Equal"),
):
    operator(_mindir)(_comparison(_onnx))


@operator("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def bitwise(call: Call) -> Symbol:
    """Python's &, | and ^ on booleans."""
    a, b = call.graph.common(*call.inputs[:2], dtype=call.dtype)
    if a.dtype != np.bool_:
        raise Unsupported(f"its operands are {a.dtype}, not booleans")
    return elementwise(call.graph, call.node.operator.removeprefix("Bitwise"), a, b)


@operator("NotEqual")
def not_equal(call: Call) -> Symbol:
    """Not(Equal)."""
    equal = elementwise(call.graph, "Equal", *call.graph.common(*call.inputs[:2]), dtype=np.bool_)
    return elementwise(call.graph, "Not", equal)


@operator("FloorDiv")
def floor_division(call: Call) -> Symbol:
    """Division rounded towards minus infinity."""
    return floor_divide(call.graph, *call.graph.common(*call.inputs[:2], dtype=call.dtype))


@operator("FloorMod", "RemainderTensorScalar")
def modulo(call: Call) -> Symbol:
    """Remainder with the sign of the divisor."""
    return floor_modulo(call.graph, *call.graph.common(*call.inputs[:2], dtype=call.dtype))


@operator("DivMod")
def division_rounded(call: Call) -> Symbol:
    """Quotient with a rounding mode: none, towards zero (1) or floor (2)."""
    graph = call.graph
    a, b = graph.common(*call.inputs[:2], dtype=call.dtype)
    mode = call.known(2)
    if mode == 2:
        return floor_divide(graph, a, b)
    quotient = elementwise(graph, "Div", a, b)
    return truncate(graph, quotient) if mode == 1 else quotient


def truncate(graph: GraphBuilder, x: Symbol) -> Symbol:
    """Round towards zero; ONNX has no such operator."""
    if x.dtype.kind != "f":
        return x
    size = elementwise(graph, "Floor", elementwise(graph, "Abs", x))
    return elementwise(graph, "Mul", elementwise(graph, "Sign", x), size)


@operator("Trunc")
def trunc(call: Call) -> Symbol:
    """Round towards zero."""
    return truncate(call.graph, call.tensor(0))


@operator("Round")
def round_half_even(call: Call) -> Symbol:
    """Round half to even, to whole numbers."""
    if len(call.inputs) > 1 and call.known(1):
        raise Unsupported(f"it rounds to {call.known(1)} decimals")
    return elementwise(call.graph, "Round", call.tensor(0))


@operator("Square")
def square(call: Call) -> Symbol:
    """X * x."""
    x = call.tensor(0)
    return elementwise(call.graph, "Mul", x, x)


@operator("Rsqrt")
def reciprocal_root(call: Call) -> Symbol:
    """1 / sqrt(x)."""
    root = elementwise(call.graph, "Sqrt", call.tensor(0))
    return elementwise(call.graph, "Reciprocal", root)


@operator("Log")
def logarithm(call: Call) -> Symbol:
    """Natural logarithm; MindSpore's base, scale and shift must be the defaults."""
    settings = [call.attributes.get(name) for name in ("base", "scale", "shift")]
    if settings not in ([-1.0, 1.0, 0.0], [None] * 3):
        raise Unsupported(f"base, scale and shift are {settings}")
    return elementwise(call.graph, "Log", call.tensor(0))


@operator("Log1p")
def logarithm_of_one_plus(call: Call) -> Symbol:
    """log(1 + x)."""
    one, x = call.graph.common(1.0, call.tensor(0))
    return elementwise(call.graph, "Log", elementwise(call.graph, "Add", x, one))


@operator("Expm1")
def exponential_minus_one(call: Call) -> Symbol:
    """exp(x) - 1."""
    one, x = call.graph.common(1.0, call.tensor(0))
    return elementwise(call.graph, "Sub", elementwise(call.graph, "Exp", x), one)


@operator("Addcmul")
def add_product(call: Call) -> Symbol:
    """X + value * a * b."""
    graph = call.graph
    x, a, b, value = graph.common(*call.inputs[:4], dtype=call.dtype)
    scaled = elementwise(graph, "Mul", elementwise(graph, "Mul", a, b), value)
    return elementwise(graph, "Add", x, scaled)


@operator("AddN")
def add_all(call: Call) -> Symbol:
    """Sum of a tuple of tensors."""
    return elementwise(call.graph, "Sum", *call.graph.common(*call.inputs[0], dtype=call.dtype))


@operator("Lerp")
def interpolate(call: Call) -> Symbol:
    """Start + weight * (end - start)."""
    graph = call.graph
    start, end, weight = graph.common(*call.inputs[:3], dtype=call.dtype)
    step = elementwise(graph, "Mul", weight, elementwise(graph, "Sub", end, start))
    return elementwise(graph, "Add", start, step)


@operator("ClampScalar")
def clamp(call: Call) -> Symbol:
    """Limit to a range, either end of which may be missing."""
    graph, x = call.graph, call.tensor(0)
    bounds = [None if bound is None else graph.tensor(bound, x.dtype) for bound in call.inputs[1:3]]
    return graph.add("Clip", [x, *bounds], shape=x.shape)


@operator("Select")
def select(call: Call) -> Symbol:
    """A where the condition holds, else b."""
    a, b = call.graph.common(*call.inputs[1:3], dtype=call.dtype)
    condition = call.tensor(0, np.bool_)
    shape = broadcast_shape(condition, a, b)
    return call.graph.add("Where", [condition, a, b], dtype=a.dtype, shape=shape)


@operator("MaskedFill")
def masked_fill(call: Call) -> Symbol:
    """A value where the mask holds, else x."""
    x, value = call.graph.common(call.inputs[0], call.inputs[2], dtype=call.dtype)
    mask = call.tensor(1, np.bool_)
    shape = broadcast_shape(mask, x)
    return call.graph.add("Where", [mask, value, x], dtype=x.dtype, shape=shape)


def product_shape(a: Symbol, b: Symbol) -> tuple[int | None, ...] | None:
    """Shape of a matrix product of stacks of matrices."""
    if a.shape is None or b.shape is None or min(a.rank, b.rank) < 2:
        return None
    stack = broadcast_shape(Symbol("", a.dtype, a.shape[:-2]), Symbol("", b.dtype, b.shape[:-2]))
    return (*(stack or ()), a.shape[-2], b.shape[-1])


@operator("MatMul", "BatchMatMul", "MatMulExt")
def matrix_product(call: Call) -> Symbol:
    """Matrix product of either transposed or plain operands."""
    graph = call.graph
    a, b = graph.common(*call.inputs[:2])
    flags = [bool(call.known(index)) for index in range(2, min(len(call.inputs), 4))]
    transpose_a, transpose_b = flags if len(flags) == 2 else (False, False)
    if (transpose_a or transpose_b) and a.rank == 2 and b.rank == 2:
        rows = a.shape[-1 if transpose_a else -2] if a.shape else None
        columns = b.shape[-2 if transpose_b else -1] if b.shape else None
        return graph.add(
            "Gemm",
            [a, b],
            shape=(rows, columns),
            transA=int(transpose_a),
            transB=int(transpose_b),
        )
    a, b = (
        graph.transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2]) if flag else x
        for x, flag in ((a, transpose_a), (b, transpose_b))
    )
    return graph.add("MatMul", [a, b], shape=product_shape(a, b))


def gelu_tanh(graph: GraphBuilder, x: Symbol) -> Symbol:
    """The tanh form of GELU: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""
    half, one, cubic, root = (
        graph.constant(value, x.dtype) for value in (0.5, 1.0, 0.044715, math.sqrt(2 / math.pi))
    )
    square_x = elementwise(graph, "Mul", x, x)
    polynomial = elementwise(graph, "Add", elementwise(graph, "Mul", cubic, square_x), one)
    inner = elementwise(graph, "Mul", root, elementwise(graph, "Mul", x, polynomial))
    gate = elementwise(graph, "Add", elementwise(graph, "Tanh", inner), one)
    return elementwise(graph, "Mul", elementwise(graph, "Mul", half, x), gate)
