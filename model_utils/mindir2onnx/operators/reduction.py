"""Reductions, positions of extremes, cumulative sums."""

from collections.abc import Callable

import numpy as np

from model_utils.mindir2onnx.graph import Symbol
from model_utils.mindir2onnx.operators.arithmetic import elementwise
from model_utils.mindir2onnx.registry import Call, operator


def _axes(call: Call, index: int = 1) -> list[int]:
    """The axes of a reduction; empty for all."""
    axes = call.known(index)
    if axes is None:
        return []
    if isinstance(axes, np.ndarray):
        return [int(axis) for axis in axes.reshape(-1)]
    return [int(axis) for axis in (axes if isinstance(axes, tuple) else (axes,))]


def _reduction(onnx_operator: str) -> Callable[[Call], Symbol]:
    def translate(call: Call) -> Symbol:
        x = call.tensor(0, call.dtype)  # sums of booleans and small integers are wider
        return call.graph.reduce(onnx_operator, x, _axes(call), bool(call.known(2)))

    return translate


for _mindir, _onnx in (
    ("ReduceMean", "ReduceMean"),
    ("ReduceSum", "ReduceSum"),
    ("SumExt", "ReduceSum"),
    ("ReduceMax", "ReduceMax"),
    ("ReduceMin", "ReduceMin"),
    ("ProdExt", "ReduceProd"),
):
    operator(_mindir)(_reduction(_onnx))


@operator("Max", "Min")
def extreme_of_all(call: Call) -> Symbol:
    """Largest or smallest element."""
    return call.graph.reduce(f"Reduce{call.node.operator}", call.tensor(0), None, keep=False)


@operator("ReduceAll", "ReduceAny")
def logical(call: Call) -> Symbol:
    """And or or over axes, as minimum or maximum of 0 and 1."""
    kind = {"ReduceAll": "ReduceMin", "ReduceAny": "ReduceMax"}[call.node.operator]
    flags = call.graph.cast(call.tensor(0, np.bool_), np.int32)
    reduced = call.graph.reduce(kind, flags, _axes(call), bool(call.known(2)))
    return call.graph.cast(reduced, np.bool_)


@operator("ReduceStd")
def deviation(call: Call) -> tuple[Symbol, Symbol]:
    """Standard deviation and mean; unbiased divides by one less than the count."""
    graph, x, axes = call.graph, call.tensor(0), _axes(call)
    unbiased, keep = bool(call.known(2)), bool(call.known(3))
    mean = graph.reduce("ReduceMean", x, axes, keep=True)
    centred = elementwise(graph, "Sub", x, mean)
    squares = elementwise(graph, "Mul", centred, centred)
    variance = graph.reduce("ReduceMean", squares, axes, keep)
    if unbiased:
        count = graph.constant(1, np.int64)
        for axis in axes or range(x.rank):
            count = graph.add("Mul", [count, graph.tensor(graph.length(x, axis), np.int64)])
        n = graph.cast(count, x.dtype)
        less = graph.add("Sub", [n, graph.constant(1, x.dtype)])
        variance = elementwise(graph, "Mul", variance, graph.add("Div", [n, less], shape=()))
    flat_mean = mean if keep else graph.reduce("ReduceMean", x, axes, keep=False)
    return elementwise(graph, "Sqrt", variance), flat_mean


def _position(call: Call, kind: str, axis: int, keep: bool) -> Symbol:
    """Index of the first extreme along an axis."""
    x = call.tensor(0)
    shape = None
    if x.shape is not None:
        at = axis % x.rank
        shape = tuple(1 if a == at else n for a, n in enumerate(x.shape) if keep or a != at)
    return call.graph.add(kind, [x], dtype=np.int64, shape=shape, axis=axis, keepdims=int(keep))


@operator("Argmax", "Argmin")
def argument(call: Call) -> Symbol:
    """Index of the first largest or smallest element along an axis."""
    kind = {"Argmax": "ArgMax", "Argmin": "ArgMin"}[call.node.operator]
    return _position(call, kind, int(call.known(1)), keep=False)


@operator("ArgMaxWithValue", "ArgMinWithValue")
def argument_and_value(call: Call) -> tuple[Symbol, Symbol]:
    """Index and value of the extreme along an axis."""
    axis, keep = int(call.known(1)), bool(call.known(2))
    name = call.node.operator[3:6]
    index = _position(call, f"Arg{name}", axis, keep)
    return index, call.graph.reduce(f"Reduce{name}", call.tensor(0), [axis], keep)


@operator("CumSum")
def cumulative_sum(call: Call) -> Symbol:
    """Running sums, also exclusive of the element itself or from the end."""
    x = call.tensor(0)
    axis = call.graph.constant(int(call.known(1)), np.int64)
    return call.graph.add(
        "CumSum",
        [x, axis],
        shape=x.shape,
        exclusive=int(call.known(2)),
        reverse=int(call.known(3)),
    )
