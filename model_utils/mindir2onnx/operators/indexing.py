"""Gathering, scattering, sorting, one-hot coding, and tensors made from nothing."""

import numpy as np

from model_utils.mindir2onnx.graph import Symbol, Unsupported, Value
from model_utils.mindir2onnx.mindir import dtype_of_id
from model_utils.mindir2onnx.registry import Call, operator


@operator("Gather")
def gather(call: Call) -> Symbol:
    """Rows (or slices along an axis) by index."""
    if len(call.inputs) > 3 and call.known(3):
        raise Unsupported(f"batch_dims is {call.known(3)}")
    return call.graph.add("Gather", [call.tensor(0), call.tensor(1)], axis=int(call.known(2)))


@operator("GatherD")
def gather_elements(call: Call) -> Symbol:
    """One element per index, along an axis."""
    index = call.tensor(2)
    return call.graph.add(
        "GatherElements", [call.tensor(0), index], shape=index.shape, axis=int(call.known(1))
    )


@operator("GatherNd")
def gather_nd(call: Call) -> Symbol:
    """Elements or slices by index vectors."""
    return call.graph.add("GatherND", [call.tensor(0), call.tensor(1, np.int64)])


@operator("TensorScatterElements")
def scatter_elements(call: Call) -> Symbol:
    """Write (reduction 0) or add (1) one element per index, along an axis."""
    reduction = {0: None, 1: "add"}.get(call.known(4), "")
    if reduction == "":
        raise Unsupported(f"its reduction number is {call.known(4)}")
    x = call.tensor(0)
    inputs = [x, call.tensor(1), call.tensor(2, x.dtype)]
    axis = int(call.known(3))
    return call.graph.add("ScatterElements", inputs, shape=x.shape, axis=axis, reduction=reduction)


@operator("TensorScatterUpdate")
def scatter_nd(call: Call) -> Symbol:
    """Write elements or slices at index vectors."""
    x = call.tensor(0)
    inputs = [x, call.tensor(1, np.int64), call.tensor(2, x.dtype)]
    return call.graph.add("ScatterND", inputs, shape=x.shape)


def _largest(call: Call, count: Symbol, axis: int, largest: bool) -> tuple[Symbol, Symbol]:
    x = call.tensor(0)
    values, index = call.graph.add_many(
        "TopK", [x, count], [x.dtype, np.int64], axis=axis, largest=int(largest), sorted=1
    )
    return values, index


@operator("TopK")
def top_k(call: Call) -> tuple[Symbol, Symbol]:
    """The k largest elements of the last axis, largest first, and their indices."""
    return _largest(call, call.graph.integers(call.inputs[1]), -1, largest=True)


@operator("Sort")
def sort(call: Call) -> tuple[Symbol, Symbol]:
    """All elements of an axis in order, and their indices."""
    axis = int(call.attributes["axis"])
    count = call.graph.integers(call.graph.length(call.tensor(0), axis))
    return _largest(call, count, axis, largest=bool(call.attributes["descending"]))


@operator("OneHot")
def one_hot(call: Call) -> Symbol:
    """An axis on which only the index's position holds the "on" value."""
    graph = call.graph
    depth = call.tensor(1, np.int64)
    off, on = graph.common(call.inputs[3], call.inputs[2], dtype=call.dtype)
    pair = graph.add("Concat", [graph.reshape(item, [1]) for item in (off, on)], axis=0)
    inputs = [call.tensor(0, np.int64), depth, pair]
    return graph.add("OneHot", inputs, dtype=call.dtype, axis=int(call.known(4)))


def _filled(call: Call, shape: Value, value: Value) -> Symbol:
    """A tensor of one value."""
    graph = call.graph
    known = shape.tolist() if isinstance(shape, np.ndarray) else shape
    lengths = None
    if isinstance(known, tuple | list):
        lengths = tuple(None if isinstance(n, Symbol) else int(n) for n in known)
    scalar = graph.tensor(value, call.dtype)
    return graph.add("Expand", [scalar, graph.integers(shape)], shape=lengths)


@operator("Zeros")
def zeros(call: Call) -> Symbol:
    """Zeros of a shape."""
    return _filled(call, call.inputs[0], 0)


@operator("Ones")
def ones(call: Call) -> Symbol:
    """Ones of a shape."""
    return _filled(call, call.inputs[0], 1)


@operator("FillV2")
def full(call: Call) -> Symbol:
    """One value in a shape."""
    return _filled(call, call.inputs[0], call.inputs[1])


@operator("ZerosLike")
def zeros_like(call: Call) -> Symbol:
    """Zeros in the shape of another tensor."""
    return _filled(call, call.graph.shape(call.tensor(0)), 0)


@operator("OnesLike")
def ones_like(call: Call) -> Symbol:
    """Ones in the shape of another tensor."""
    return _filled(call, call.graph.shape(call.tensor(0)), 1)


@operator("NewZeros")
def new_zeros(call: Call) -> Symbol:
    """Zeros of a shape, in the element type of another tensor."""
    return _filled(call, call.inputs[1], 0)


@operator("NewOnes")
def new_ones(call: Call) -> Symbol:
    """Ones of a shape, in the element type of another tensor."""
    return _filled(call, call.inputs[1], 1)


@operator("Range")
def integer_range(call: Call) -> Symbol:
    """start, start + step, ... below the limit."""
    bounds = [call.tensor(index, call.dtype) for index in range(3)]
    scalars = [call.graph.reshape(item, []) if item.shape != () else item for item in bounds]
    return call.graph.add("Range", scalars, shape=(None,))


@operator("Eye")
def identity_matrix(call: Call) -> Symbol:
    """Ones on the diagonal."""
    rows, columns, type_id = (call.known(index) for index in range(3))
    return call.graph.constant(np.eye(rows, columns, dtype=dtype_of_id(type_id)))


@operator("LinSpace")
def evenly_spaced(call: Call) -> Symbol:
    """Numbers at equal distances, both ends included."""
    start, stop = (float(np.asarray(call.known(index))) for index in (0, 1))
    return call.graph.constant(np.linspace(start, stop, int(call.known(2))), call.dtype)


@operator("Meshgrid")
def mesh_grid(call: Call) -> tuple[Symbol, ...]:
    """Coordinate grids of one-dimensional tensors; indexing 0 is "ij", 1 is "xy"."""
    graph = call.graph
    vectors = [graph.tensor(vector) for vector in call.inputs[0]]
    count = len(vectors)
    order = list(range(count))
    if call.known(1) == 1 and count > 1:
        order[:2] = [1, 0]
    lengths = [graph.length(vector, 0) for vector in vectors]
    target = tuple(lengths[order.index(axis)] for axis in range(count))
    known = tuple(n if isinstance(n, int) else None for n in target)
    grids = []
    for vector, axis in zip(vectors, order, strict=True):
        column = graph.reshape(vector, [-1 if a == axis else 1 for a in range(count)])
        grids.append(graph.add("Expand", [column, graph.integers(target)], shape=known))
    return tuple(grids)
