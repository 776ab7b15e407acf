"""Maximum, average and adaptive pooling, with and without positions of the maxima."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from model_utils.mindir2onnx.graph import GraphBuilder, Integer, Symbol, Unsupported, product
from model_utils.mindir2onnx.operators.convolution import window_padding, window_shape
from model_utils.mindir2onnx.registry import Call, operator


def _flat_pool(graph: GraphBuilder, x: Symbol, depth_is_trivial: bool) -> Symbol | None:
    """The (N, C, H, W) map behind x, if x is that map with a depth axis put in for a 3-D pool.

    MindSpore runs padded 2-D pools as 3-D ones; two-dimensional kernels are faster everywhere.
    """
    node = graph.producer(x)
    if not depth_is_trivial or node is None or node.op_type != "Unsqueeze":
        return None
    inserted = graph.initializers.get(node.input[1])
    if x.rank != 5 or inserted is None or inserted.tolist() != [2]:
        return None
    return graph.symbol(node.input[0])


def _rounded_up(
    x: Symbol,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: dict[str, Any],
) -> dict[str, Any]:
    """Padding at the ends that makes a floor-mode pool compute ceil_mode's windows.

    ONNX releases disagree on whether a last window may start in the padding; MindSpore's may not.
    """
    axes = len(kernel)
    pads = list(padding.get("pads", [0] * 2 * axes))
    lengths = (x.shape or (None,) * axes)[-axes:]
    for axis, n in enumerate(lengths):
        if n is None:
            raise Unsupported("it uses ceil_mode on an axis of dynamic length")
        extent = dilation[axis] * (kernel[axis] - 1) + 1
        room = n + pads[axis] + pads[axis + axes] - extent
        windows = -(-room // stride[axis]) + 1
        if (windows - 1) * stride[axis] >= n + pads[axis]:
            windows -= 1
        pads[axis + axes] += max((windows - 1) * stride[axis] - room, 0)
    return {"pads": pads}


def _pool(
    call: Call,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    mode: str,
    pairs: Sequence[int] | None,
    *,
    dilation: Sequence[int] | None = None,
    ceil: bool = False,
    positions: bool = False,
    count_padding: bool | None = None,
) -> tuple[Symbol, Symbol | None]:
    """A MaxPool or AveragePool node; also flat positions within each channel if asked for."""
    graph, x = call.graph, call.tensor(0)
    kernel, stride = [int(n) for n in kernel], [int(n) for n in stride]
    dilation = [int(n) for n in dilation or [1] * len(kernel)]
    padding = window_padding(mode, pairs, x, kernel, stride, dilation)
    if ceil:
        if count_padding and any(padding.get("pads", [])):
            raise Unsupported("it counts padding in ceil_mode, where ONNX and MindSpore differ")
        padding = _rounded_up(x, kernel, stride, dilation, padding)
    pads = padding.get("pads", [0] * 2 * len(kernel))
    trivial = len(kernel) == 3 and (kernel[0], stride[0], pads[0], pads[3]) == (1, 1, 0, 0)
    flat = _flat_pool(graph, x, trivial)
    if flat is not None:
        source = flat
        kernel, stride, dilation = kernel[1:], stride[1:], dilation[1:]
        if "pads" in padding:
            padding = {"pads": [*pads[1:3], *pads[4:6]]}
    else:
        source = x
    channels = source.shape[1] if source.shape else None
    shape = window_shape(source, channels, kernel, stride, dilation, padding)
    values, *index = graph.add_many(
        kind,
        [source],
        [source.dtype, np.int64] if positions else [source.dtype],
        [shape, shape] if positions else [shape],
        kernel_shape=kernel,
        strides=stride,
        # AveragePool knows dilations from opset 19 on only.
        dilations=dilation if any(n != 1 for n in dilation) else None,
        count_include_pad=None if count_padding is None else int(count_padding),
        **padding,
    )
    where: Symbol | None = None
    if positions:
        # ONNX counts through the whole tensor, MindSpore through one channel.
        size: Integer = 1
        for axis in range(2, source.rank):
            size = graph.product_of(size, graph.length(source, axis))
        where = graph.add("Mod", [index[0], graph.tensor(size, np.int64)], shape=shape)
    if flat is not None:
        values = graph.unsqueeze(values, 2)
        where = graph.unsqueeze(where, 2) if where is not None else None
    return values, where


@operator("MaxPool")
def max_pool(call: Call) -> Symbol:
    """Maximum over windows, "valid" or "same"."""
    attributes = call.attributes
    return _pool(
        call,
        "MaxPool",
        attributes["kernel_size"][-2:],
        attributes["strides"][-2:],
        attributes["pad_mode"],
        None,
    )[0]


@operator("MaxPool3D")
def max_pool_3d(call: Call) -> Symbol:
    """Maximum over boxes with explicit padding."""
    attributes = call.attributes
    return _pool(
        call,
        "MaxPool",
        attributes["kernel_size"][-3:],
        attributes["strides"][-3:],
        attributes["pad_mode"],
        attributes.get("pad_list"),
        ceil=bool(attributes.get("ceil_mode")),
    )[0]


@operator("MaxPool3DWithArgmax")
def max_pool_3d_with_positions(call: Call) -> tuple[Symbol, Symbol | None]:
    """What a padded nn.MaxPool2d becomes: a 3-D pool with symmetric padding, and positions."""
    attributes = call.attributes
    return _pool(
        call,
        "MaxPool",
        attributes["ksize"],
        attributes["strides"],
        "pad",
        [side for side in attributes["pads"] for _ in range(2)],
        dilation=attributes["dilation"],
        ceil=bool(attributes["ceil_mode"]),
        positions=True,
    )


@operator("MaxPoolWithArgmaxV2")
def max_pool_with_positions(call: Call) -> tuple[Symbol, Symbol | None]:
    """Maximum and its flat position within the channel."""
    attributes = call.attributes
    return _pool(
        call,
        "MaxPool",
        attributes["kernel_size"][-2:],
        attributes["strides"][-2:],
        "pad",
        [side for side in attributes["pads"][-2:] for _ in range(2)],
        dilation=attributes["dilation"][-2:],
        ceil=bool(attributes["ceil_mode"]),
        positions=True,
    )


@operator("AvgPool")
def average_pool(call: Call) -> Symbol:
    """Average over windows; the padding of "same" (1) is not counted."""
    mode = {1: "same", 2: "valid"}.get(call.known(3))
    if mode is None:
        raise Unsupported(f"its pad_mode number is {call.known(3)}")
    return _pool(
        call, "AveragePool", call.known(1)[-2:], call.known(2)[-2:], mode, None, count_padding=False
    )[0]


@operator("AvgPool3D")
def average_pool_3d(call: Call) -> Symbol:
    """Average over boxes; what a padded nn.AvgPool2d becomes too."""
    attributes = call.attributes
    if attributes.get("divisor_override"):
        raise Unsupported(f"divisor_override is {attributes['divisor_override']}")
    return _pool(
        call,
        "AveragePool",
        attributes["kernel_size"][-3:],
        attributes["strides"][-3:],
        attributes["pad_mode"],
        attributes.get("pad_list"),
        ceil=bool(attributes["ceil_mode"]),
        count_padding=bool(attributes["count_include_pad"]),
    )[0]


# --- adaptive pooling: window j of n covers floor(j * length / n) to ceil((j + 1) * length / n) ---


def _target_lengths(graph: GraphBuilder, x: Symbol, target: Sequence[int]) -> list[Integer]:
    """The requested lengths; -1 or None keeps the input's."""
    axes = range(x.rank - len(target), x.rank)
    return [
        int(n) if n is not None and int(n) > 0 else graph.length(x, axis)
        for n, axis in zip(target, axes, strict=True)
    ]


def _dividing_kernel(lengths: Sequence[Integer], target: Sequence[Integer]) -> list[int] | None:
    """Window sizes if every length is a multiple of the target, so that windows do not overlap."""
    kernel = []
    for n, wanted in zip(lengths, target, strict=True):
        if not isinstance(n, int) or not isinstance(wanted, int) or n % wanted:
            return None
        kernel.append(n // wanted)
    return kernel


def _with_spatial(x: Symbol, lengths: Sequence[Integer]) -> tuple[int | None, ...]:
    """The shape of x with other lengths of its last axes."""
    known = [n if isinstance(n, int) else None for n in lengths]
    return (*(x.shape or ())[: x.rank - len(lengths)], *known)


def _averaging_matrix(graph: GraphBuilder, length: Integer, target: int) -> Symbol:
    """A (target, length) matrix whose product with an axis averages its windows."""
    start = np.arange(target, dtype=np.int64)
    if isinstance(length, int):
        first, last = start * length // target, -(-(start + 1) * length // target)
        columns = np.arange(length)
        inside = (columns >= first[:, None]) & (columns < last[:, None])
        return graph.constant((inside / (last - first)[:, None]).astype(np.float32))
    divisor = graph.constant(target, np.int64)
    first_ = _scaled(graph, start, length, 0, divisor)
    last_ = _scaled(graph, start + 1, length, target - 1, divisor)
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    columns_ = graph.add("Range", [zero, length, one], shape=(None,))
    after = graph.add("GreaterOrEqual", [columns_, first_], dtype=np.bool_)
    before = graph.add("Less", [columns_, last_], dtype=np.bool_)
    inside_ = graph.cast(graph.add("And", [after, before], dtype=np.bool_), np.float32)
    size = graph.cast(graph.add("Sub", [last_, first_]), np.float32)
    return graph.add("Div", [inside_, size], shape=(target, None))


def _scaled(
    graph: GraphBuilder, factors: np.ndarray, length: Symbol, add: int, divisor: Symbol
) -> Symbol:
    """(factors * length + add) // divisor as a column."""
    column = graph.add("Mul", [graph.constant(factors[:, None]), length])
    return graph.add("Div", [graph.add("Add", [column, graph.constant(add, np.int64)]), divisor])


@operator("AdaptiveAvgPool2D", "AdaptiveAvgPool3D")
def adaptive_average(call: Call) -> Symbol:
    """Average over windows that cover the input whatever its size."""
    graph, x = call.graph, call.tensor(0)
    target = _target_lengths(graph, x, call.attributes["output_size"])
    first = x.rank - len(target)
    if all(n == 1 for n in target):
        return graph.reduce("ReduceMean", x, range(first, x.rank), keep=True)
    kernel = _dividing_kernel(graph.lengths(x)[first:], target)
    if kernel is not None:
        shape = _with_spatial(x, target)
        return graph.add("AveragePool", [x], shape=shape, kernel_shape=kernel, strides=kernel)
    # Averages are separable: one small matrix product per axis, the last axis first.
    for axis in reversed(range(first, x.rank)):
        wanted = target[axis - first]
        if not isinstance(wanted, int):
            continue  # this axis keeps its length
        matrix = graph.cast(_averaging_matrix(graph, graph.length(x, axis), wanted), x.dtype)
        order = [*range(axis), *range(axis + 1, x.rank), axis]
        moved = graph.transpose(x, order)
        columns = graph.transpose(matrix, [1, 0])
        shape = (*(moved.shape or ())[:-1], wanted)
        mixed = graph.add("MatMul", [moved, columns], shape=shape)
        x = graph.transpose(mixed, [order.index(a) for a in range(x.rank)])
    return x


@operator("AdaptiveMaxPool2D", "AdaptiveMaxPool3D")
def adaptive_maximum(call: Call) -> tuple[Symbol, Symbol]:
    """Maximum over such windows and its flat position, the first one in reading order."""
    graph, x = call.graph, call.tensor(0)
    wanted = call.known(1)
    target: list[int] = []
    for n in _target_lengths(graph, x, [int(n) for n in np.asarray(wanted).reshape(-1)]):
        if isinstance(n, Symbol):
            raise Unsupported("it keeps the length of a dynamic axis")
        target.append(n)
    lengths = graph.lengths(x)[-len(target) :]
    kernel = _dividing_kernel(lengths, target)
    if kernel is None:
        return _maximum_by_slices(graph, x, target, lengths)
    shape = _with_spatial(x, target)
    values, index = graph.add_many(
        "MaxPool",
        [x],
        [x.dtype, np.int64],
        [shape, shape],
        kernel_shape=kernel,
        strides=kernel,
    )
    size = product(a * b for a, b in zip(kernel, target, strict=True))
    return values, graph.add("Mod", [index, graph.constant(size, np.int64)], shape=shape)


def _maximum_by_slices(
    graph: GraphBuilder, x: Symbol, target: Sequence[int], lengths: Sequence[Integer]
) -> tuple[Symbol, Symbol]:
    """Maxima are separable: reduce the windows of one axis after the other.

    The last axis goes first, so that among equal maxima the first one in reading order wins.
    """
    first = x.rank - len(target)
    values = x
    positions: dict[int, Symbol] = {}  # per axis done: where along it the maximum was
    for axis in reversed(range(first, x.rank)):
        count, length = target[axis - first], lengths[axis - first]
        shape = tuple(count if a == axis else n for a, n in enumerate(values.shape or ()))
        pieces: list[Symbol] = []
        places: dict[int, list[Symbol]] = {a: [] for a in (axis, *positions)}
        for window in range(count):
            start = graph.quotient_of(graph.product_of(length, window), count)
            stop = graph.sum_of(graph.product_of(length, window + 1), count - 1)
            stop = graph.quotient_of(stop, count)
            part = graph.slice(values, [start], [stop], [axis])
            pieces.append(graph.reduce("ReduceMax", part, [axis], keep=True))
            local = graph.add("ArgMax", [part], dtype=np.int64, axis=axis, keepdims=1)
            offset = graph.tensor(start, np.int64)
            places[axis].append(graph.add("Add", [local, offset]))
            for done, where in positions.items():
                rows = graph.slice(where, [start], [stop], [axis])
                places[done].append(graph.add("GatherElements", [rows, local], axis=axis))
        values = graph.add("Concat", pieces, shape=shape, axis=axis)
        positions = {
            done: graph.add("Concat", parts, shape=shape, axis=axis)
            for done, parts in places.items()
        }
    flat = positions[first]
    for axis in range(first + 1, x.rank):
        length = graph.tensor(lengths[axis - first], np.int64)
        flat = graph.add("Add", [graph.add("Mul", [flat, length]), positions[axis]])
    return values, Symbol(flat.name, flat.dtype, values.shape)
