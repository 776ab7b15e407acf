"""Shapes: reading and changing them, slicing, joining, repeating, rearranging windows."""

from collections.abc import Sequence

import numpy as np

from model_utils.mindir2onnx.graph import Integer, Symbol, Unsupported, Value, product
from model_utils.mindir2onnx.operators.convolution import output_length
from model_utils.mindir2onnx.registry import Call, operator

_FIRST, _LAST = -(2**63) + 1, 2**63 - 1  # beyond any length; ONNX Slice clamps


@operator("Shape")
def shape(call: Call) -> tuple[Integer, ...]:
    """The lengths of all axes, numbers where they are fixed."""
    return call.graph.lengths(call.tensor(0))


@operator("TensorShape")
def shape_tensor(call: Call) -> Symbol:
    """The lengths of all axes as a tensor."""
    return call.graph.shape(call.tensor(0))


@operator("Size")
def size(call: Call) -> Integer:
    """The number of elements."""
    total: Integer = 1
    for length in call.graph.lengths(call.tensor(0)):
        total = call.graph.product_of(total, length)
    return total


@operator("Reshape")
def reshape(call: Call) -> Symbol:
    """The same elements in another shape."""
    return call.graph.reshape(call.tensor(0), call.inputs[1])


@operator("Flatten")
def flatten(call: Call) -> Symbol:
    """One axis for the batch, one for everything else."""
    x = call.tensor(0)
    return call.graph.add("Flatten", [x], shape=_flat_shape(x), axis=1)


def _flat_shape(x: Symbol) -> tuple[int | None, ...] | None:
    if x.shape is None:
        return None
    known = [n for n in x.shape[1:] if n is not None]
    return x.shape[0], product(known) if len(known) == x.rank - 1 else None


@operator("Transpose")
def transpose(call: Call) -> Symbol:
    """Permute the axes."""
    return call.graph.transpose(call.tensor(0), call.known(1))


@operator("ExpandDims")
def expand_dims(call: Call) -> Symbol:
    """Insert an axis of length one."""
    return call.graph.unsqueeze(call.tensor(0), int(call.known(1)))


@operator("Squeeze")
def squeeze(call: Call) -> Symbol:
    """Remove axes of length one: those given, or all."""
    x = call.tensor(0)
    axes = call.known(1) if len(call.inputs) > 1 else ()
    axes = axes if isinstance(axes, tuple) else (axes,)
    if not axes:
        if x.shape is None or None in x.shape:
            raise Unsupported("it names no axes and its input's lengths are dynamic")
        axes = tuple(axis for axis, n in enumerate(x.shape) if n == 1)
    return call.graph.squeeze(x, axes)


@operator("Concat")
def concat(call: Call) -> Symbol:
    """Join tensors along an axis."""
    parts = call.graph.common(*call.inputs[0])
    axis = int(call.known(1))
    return call.graph.add("Concat", parts, shape=_joined_shape(parts, axis), axis=axis)


def _joined_shape(parts: Sequence[Symbol], axis: int) -> tuple[int | None, ...] | None:
    if any(part.shape is None for part in parts):
        return None
    shapes = [part.shape or () for part in parts]
    axis %= len(shapes[0])
    along = [item[axis] for item in shapes]
    known = [n for n in along if n is not None]
    result = [
        next((n for n in lengths if n is not None), None) for lengths in zip(*shapes, strict=True)
    ]
    result[axis] = sum(known) if len(known) == len(along) else None
    return tuple(result)


@operator("Stack")
def stack(call: Call) -> Symbol:
    """Join tensors along a new axis."""
    axis = int(call.attributes["axis"])
    parts = [call.graph.unsqueeze(part, axis) for part in call.graph.common(*call.inputs[0])]
    axis %= parts[0].rank
    return call.graph.add("Concat", parts, shape=_joined_shape(parts, axis), axis=axis)


@operator("Unstack")
def unstack(call: Call) -> tuple[Symbol, ...]:
    """Take an axis apart."""
    x = call.tensor(0)
    axis = int(call.attributes["axis"]) % x.rank
    rest = tuple(n for a, n in enumerate(x.shape or ()) if a != axis)
    return tuple(
        call.graph.add("Gather", [x, call.graph.constant(i, np.int64)], shape=rest, axis=axis)
        for i in range(call.attributes["num"])
    )


@operator("Split")
def split(call: Call) -> tuple[Symbol, ...]:
    """Equal parts along an axis."""
    graph, x = call.graph, call.tensor(0)
    axis, count = int(call.known(1)) % x.rank, int(call.known(2))
    part = graph.quotient_of(graph.length(x, axis), count)
    known = part if isinstance(part, int) else None
    one = tuple(known if a == axis else n for a, n in enumerate(x.shape or ()))
    sizes = graph.integers((part,) * count)
    outputs = graph.add_many("Split", [x, sizes], [x.dtype] * count, [one] * count, axis=axis)
    return tuple(outputs)


@operator("Slice")
def slice_by_size(call: Call) -> Symbol:
    """Begin and size per axis; a size of -1 reaches to the end."""
    graph, x = call.graph, call.tensor(0)
    begin, size = call.inputs[1], call.inputs[2]
    if not isinstance(begin, tuple) or not isinstance(size, tuple):
        raise Unsupported("its begin and size are not tuples")
    ends = [_LAST if n == -1 else graph.sum_of(b, n) for b, n in zip(begin, size, strict=True)]
    return graph.slice(x, begin, ends, range(len(begin)))


@operator("StridedSlice")
def strided_slice(call: Call) -> Symbol:
    """Python slicing; bit masks say how to read the (begin, end, step) triples of the axes."""
    graph, x = call.graph, call.tensor(0)
    begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_mask = (
        int(call.known(index)) for index in range(4, 9)
    )
    if ellipsis_mask or new_axis_mask:
        # The compiler spells x[..., None] out; only the bare primitive has these masks.
        raise Unsupported("ellipsis or new-axis masks, which MindSpore computes wrong on CPU")
    starts: list[Integer] = []
    ends: list[Integer] = []
    axes: list[int] = []
    steps: list[int] = []
    dropped: list[int] = []
    triples = zip(*(_sequence(call.inputs[index]) for index in (1, 2, 3)), strict=True)
    for axis, (begin, end, step) in enumerate(triples):
        bit = 1 << axis
        if isinstance(step, Symbol):
            raise Unsupported("its step is not a constant")
        if shrink_mask & bit:
            end, step = _after(call, begin), 1
            dropped.append(axis)
        else:
            if begin_mask & bit:
                begin = 0 if step > 0 else _LAST
            if end_mask & bit:
                end = _LAST if step > 0 else _FIRST
            if isinstance(begin, int) and (begin, end, step) == (0, _LAST, 1):
                continue  # the whole axis
        starts.append(begin)
        ends.append(end)
        axes.append(axis)
        steps.append(int(step))
    result = graph.slice(x, starts, ends, axes, steps) if axes else x
    return graph.squeeze(result, dropped)


def _sequence(value: Value) -> tuple[Integer, ...]:
    if isinstance(value, np.ndarray):
        return tuple(int(n) for n in value.reshape(-1))
    if not isinstance(value, tuple):
        raise Unsupported("its bounds are a computed tensor")
    return value


def _after(call: Call, begin: Integer) -> Integer:
    """The end of a slice that holds just position ``begin``, which may be -1."""
    if isinstance(begin, int):
        return begin + 1 if begin != -1 else _LAST
    return call.graph.sum_of(begin, 1)


@operator("BroadcastTo")
def broadcast_to(call: Call) -> Symbol:
    """Repeat axes of length one; -1 keeps the input's length."""
    x, target = call.tensor(0), call.inputs[1]
    if isinstance(target, Symbol):
        return call.graph.add("Expand", [x, target])
    # ONNX broadcasts both ways: a one in the target keeps the input's length.
    wanted = tuple(1 if n == -1 else n for n in target)
    lengths = (None,) * (len(wanted) - x.rank) + tuple(x.shape or ())
    known = tuple(
        None if isinstance(n, Symbol) else (have if n == 1 else n)
        for n, have in zip(wanted, lengths, strict=True)
    )
    return call.graph.add("Expand", [x, call.graph.integers(wanted)], shape=known)


@operator("Tile")
def tile(call: Call) -> Symbol:
    """Repeat the whole tensor along its axes."""
    graph, x = call.graph, call.tensor(0)
    repeats = call.inputs[1]
    repeats = repeats if isinstance(repeats, tuple) else (repeats,)
    while x.rank < len(repeats):
        x = graph.unsqueeze(x, 0)
    repeats = (1,) * (x.rank - len(repeats)) + repeats
    known = tuple(
        None if n is None or isinstance(times, Symbol) else n * times
        for n, times in zip(x.shape or (), repeats, strict=True)
    )
    return graph.add("Tile", [x, graph.integers(repeats)], shape=known)


@operator("ReverseV2")
def reverse(call: Call) -> Symbol:
    """Turn axes around."""
    x = call.tensor(0)
    given = call.known(1)
    axes = [axis % x.rank for axis in (given if isinstance(given, tuple) else (given,))]
    count = len(axes)
    flipped = call.graph.slice(x, [-1] * count, [_FIRST] * count, axes, [-1] * count)
    return Symbol(flipped.name, flipped.dtype, x.shape)


@operator("Tril", "Triu")
def triangle(call: Call) -> Symbol:
    """Zero above or below a diagonal."""
    diagonal = call.known(1) if len(call.inputs) > 1 else call.attributes["diagonal"]
    x, upper = call.tensor(0), int(call.node.operator == "Triu")
    k = call.graph.constant(int(diagonal), np.int64)
    return call.graph.add("Trilu", [x, k], shape=x.shape, upper=upper)


def _window_kernel(channels: int, size: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Depthwise kernels that pick one pixel of the window each: (C * h * w, 1, h, w)."""
    area = size[0] * size[1]
    return np.tile(np.eye(area, dtype=dtype).reshape(area, 1, *size), (channels, 1, 1, 1))


@operator("Im2Col")
def unfold(call: Call) -> Symbol:
    """All windows as columns, (N, C, h * w, windows): a convolution that picks pixels."""
    graph, x, attributes = call.graph, call.tensor(0), call.attributes
    channels = x.shape[1] if x.shape else None
    if channels is None:
        raise Unsupported("its number of channels is dynamic")
    size, strides, dilations, pads = (
        [int(n) for n in attributes[name]] for name in ("ksizes", "strides", "dilations", "pads")
    )
    columns = graph.add(
        "Conv",
        [x, graph.constant(_window_kernel(channels, size, x.dtype))],
        group=channels,
        strides=strides,
        dilations=dilations,
        pads=[*pads, *pads],
    )
    counts = [
        output_length(graph, graph.length(x, 2 + i), size[i], strides[i], dilations[i], 2 * pads[i])
        for i in range(2)
    ]
    windows = graph.product_of(*counts)
    return graph.reshape(columns, (graph.length(x, 0), channels, size[0] * size[1], windows))


@operator("Col2Im")
def fold(call: Call) -> Symbol:
    """The sum of windows (N, C, h * w, windows) put back: a transposed convolution that places."""
    graph, x, attributes = call.graph, call.tensor(0), call.attributes
    size, strides, dilations, pads = (
        [int(n) for n in attributes[name]]
        for name in ("kernel_size", "stride", "dilation", "padding")
    )
    image = [int(n) for n in np.asarray(call.known(1)).reshape(-1)]
    channels = x.shape[1] if x.shape else None
    if channels is None:
        raise Unsupported("its number of channels is dynamic")
    counts, extra = [], []
    for i in range(2):
        extent = dilations[i] * (size[i] - 1) + 1
        room = image[i] + 2 * pads[i] - extent
        counts.append(room // strides[i] + 1)
        extra.append(room % strides[i])
    area = size[0] * size[1]
    columns = graph.reshape(x, (graph.length(x, 0), channels * area, *counts))
    return graph.add(
        "ConvTranspose",
        [columns, graph.constant(_window_kernel(channels, size, x.dtype))],
        shape=(x.shape[0] if x.shape else None, channels, *image),
        group=channels,
        strides=strides,
        dilations=dilations,
        pads=[*pads, *pads],
        output_padding=extra,
    )
