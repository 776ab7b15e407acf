"""Batch, group, layer, local-response and L2 normalisation; norms."""

import numpy as np

from model_utils.mindir2onnx.graph import GraphBuilder, Symbol, Unsupported, Value
from model_utils.mindir2onnx.operators.arithmetic import elementwise
from model_utils.mindir2onnx.registry import Call, operator


@operator("BatchNorm")
def batch_norm(call: Call) -> tuple[Symbol]:
    """With moving statistics; MindSpore's four further results belong to training."""
    if call.known(5):
        raise Unsupported("it is in training mode; set the network to evaluation before export")
    graph, x = call.graph, call.tensor(0)
    weights = [call.tensor(index) for index in range(1, 5)]
    # MindSpore folds volumes to (N, C, D * H, W) first. Normalising the volume itself lets ONNX
    # Runtime merge the layer into the convolution before it.
    origin, target = graph.reshaped_from(x) or (x, None)
    source = origin if _keeps_channels(graph, origin, target) else x
    result = graph.add(
        "BatchNormalization",
        [source, *weights],
        shape=source.shape,
        epsilon=float(call.known(6)),
    )
    graph.same_shape(result, source)
    return (result if source is x else graph.reshape(result, target),)


def _keeps_channels(graph: GraphBuilder, x: Symbol, target: Value) -> bool:
    """Whether reshaping x to a target leaves the axes of batch and channels alone."""
    if not isinstance(target, tuple) or len(target) < 2 or x.shape is None or x.rank < 2:
        return False
    return graph.lengths(x)[:2] == target[:2]


@operator("GroupNorm")
def group_norm(call: Call) -> tuple[Symbol]:
    """Instance normalisation of the groups, then scale and shift per channel."""
    graph, x, groups = call.graph, call.tensor(0), int(call.known(1))
    folded = graph.reshape(x, (graph.length(x, 0), groups, -1))
    ones, zeros = (
        graph.constant(np.ones(groups, x.dtype)),
        graph.constant(np.zeros(groups, x.dtype)),
    )
    normalised = graph.add(
        "InstanceNormalization",
        [folded, ones, zeros],
        shape=folded.shape,
        epsilon=float(call.known(4)),
    )
    restored = graph.reshape(normalised, graph.lengths(x))
    channels = [-1] + [1] * (x.rank - 2)
    scale, shift = (graph.reshape(call.tensor(index), channels) for index in (2, 3))
    result = graph.add("Add", [graph.add("Mul", [restored, scale]), shift], shape=x.shape)
    return (result,)


@operator("LayerNorm")
def layer_norm(call: Call) -> tuple[Symbol]:
    """Over all axes from one on; scale and shift must span the same axes."""
    begin, begin_weights = call.known(3), call.known(4)
    x = call.tensor(0)
    if begin % x.rank != begin_weights % x.rank:
        raise Unsupported(f"begin_norm_axis {begin} differs from begin_params_axis {begin_weights}")
    result = call.graph.add(
        "LayerNormalization",
        [x, call.tensor(1), call.tensor(2)],
        shape=x.shape,
        axis=int(begin),
        epsilon=float(call.known(5)),
    )
    return (result,)


@operator("L2Normalize")
def l2_normalize(call: Call) -> Symbol:
    """X / sqrt(max(sum of squares, epsilon))."""
    graph, x = call.graph, call.tensor(0)
    axis = call.attributes["axis"]
    axes = axis if isinstance(axis, tuple) else (axis,)
    squares = graph.reduce("ReduceSum", elementwise(graph, "Mul", x, x), axes, keep=True)
    epsilon = graph.constant(call.attributes["epsilon"], x.dtype)
    length = elementwise(graph, "Sqrt", elementwise(graph, "Max", squares, epsilon))
    return elementwise(graph, "Div", x, length)


@operator("LpNorm")
def norm(call: Call) -> Symbol:
    """Sum of magnitudes (p = 1) or Euclidean norm (p = 2)."""
    p = call.attributes["p"]
    if p not in (1, 2):
        raise Unsupported(f"its order is {p}")
    axis = call.attributes["axis"]
    axes = axis if isinstance(axis, tuple) else (axis,)
    keep = bool(call.attributes["keep_dims"])
    return call.graph.reduce(f"ReduceL{p}", call.tensor(0), axes, keep)


@operator("LRN")
def local_response(call: Call) -> Symbol:
    """Local response normalisation; ONNX divides alpha by the window, MindSpore does not."""
    x, attributes = call.tensor(0), call.attributes
    size = 2 * attributes["depth_radius"] + 1
    return call.graph.add(
        "LRN",
        [x],
        shape=x.shape,
        size=size,
        alpha=attributes["alpha"] * size,
        beta=attributes["beta"],
        bias=attributes["bias"],
    )
