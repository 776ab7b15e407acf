"""Arithmetic on lengths: folded when the numbers are known, ONNX scalar nodes when they are not."""

import math
import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np

from model_utils.mindir2onnx.graph import GraphBuilder, Symbol, Value
from model_utils.mindir2onnx.registry import Call, operator


def floor_divide(graph: GraphBuilder, a: Symbol, b: Symbol) -> Symbol:
    """Floor division of tensors of one type; ONNX's integer Div rounds towards zero."""
    shape = broadcast_shape(a, b)
    if a.dtype.kind == "f":
        return graph.add("Floor", [graph.add("Div", [a, b], shape=shape)], shape=shape)
    rest = graph.add("Mod", [a, b], shape=shape)
    return graph.add("Div", [graph.add("Sub", [a, rest], shape=shape), b], shape=shape)


def floor_modulo(graph: GraphBuilder, a: Symbol, b: Symbol) -> Symbol:
    """Remainder with the sign of the divisor, for tensors of one type."""
    shape = broadcast_shape(a, b)
    if a.dtype.kind != "f":
        return graph.add("Mod", [a, b], shape=shape)
    floor = graph.add("Floor", [graph.add("Div", [a, b], shape=shape)], shape=shape)
    return graph.add("Sub", [a, graph.add("Mul", [floor, b], shape=shape)], shape=shape)


def broadcast_shape(*values: Symbol) -> tuple[int | None, ...] | None:
    """Shape of an element-wise result; unknown lengths stay unknown."""
    if any(value.shape is None for value in values):
        return None
    shapes = [value.shape or () for value in values]
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result: list[int | None] = []
    for lengths in zip(*padded, strict=True):
        larger = [n for n in lengths if n not in (1, None)]
        result.append(larger[0] if larger else (None if None in lengths else 1))
    return tuple(result)


def _binary(fold: Callable[[Any, Any], Any], onnx_operator: str) -> Callable[[Call], Value]:
    def translate(call: Call) -> Value:
        a, b = call.inputs[:2]
        if not isinstance(a, Symbol) and not isinstance(b, Symbol):
            return fold(a, b)
        operands = call.graph.common(a, b)
        if onnx_operator == "FloorDiv":
            return floor_divide(call.graph, *operands)
        if onnx_operator == "Mod":
            return floor_modulo(call.graph, *operands)
        if onnx_operator == "Div":
            operands = [call.graph.cast(item, np.float32) for item in operands]
        return call.graph.add(onnx_operator, operands, shape=())

    return translate


for _name, _fold, _operator in (
    ("ScalarAdd", python.add, "Add"),
    ("ScalarSub", python.sub, "Sub"),
    ("ScalarMul", python.mul, "Mul"),
    ("ScalarDiv", python.truediv, "Div"),
    ("ScalarFloorDiv", python.floordiv, "FloorDiv"),
    ("ScalarMod", python.mod, "Mod"),
):
    operator(_name)(_binary(_fold, _operator))


@operator("ScalarUsub")
def negate(call: Call) -> Value:
    """-a."""
    value = call.inputs[0]
    return call.graph.add("Neg", [value], shape=()) if isinstance(value, Symbol) else -value


@operator("ScalarCast")
def scalar_cast(call: Call) -> Value:
    """int() and float() of a number."""
    value = call.inputs[0]
    if isinstance(value, Symbol):
        return call.graph.cast(value, call.dtype)
    return math.trunc(value) if call.dtype.kind == "i" else float(value)
