"""Convolutions of resized maps, computed before the resizing.

Feature pyramids resize coarse maps, put them beside a fine one and convolve all of it at the fine
resolution. Convolution and resizing are linear, and resizing acts on rows and columns alone, so
the order can be changed: the coarse map goes through every tap of the kernel as one 1 x 1
convolution, and one matrix per axis then shifts, resizes and adds them. Exact in real numbers; in
float32 results differ by rounding, about 1e-6 of their magnitude.

Weights stay in the file as they are. The nodes that bring them into the order needed depend on
nothing else, so that runtimes compute them once, when they load the file.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from model_utils.mindir2onnx.graph import GraphBuilder, Symbol

# A map goes the other way if that takes at most this share of the multiplications, and saves at
# least this number of them: several small nodes take the place of one.
LARGEST_SHARE = 0.7
LEAST_SAVING = 50_000_000


@dataclass(frozen=True)
class _Kernel:
    """A convolution with stride 1 whose result has its input's size.

    Attributes:
        node: the ONNX node.
        weight: (outputs, inputs, rows, columns).
        shape: of its result; the batch may be unknown.
        pads: zeros above and to the left.
        dilations: along rows and columns.
    """

    node: onnx.NodeProto
    weight: Symbol
    shape: tuple[int | None, ...]
    pads: tuple[int, int]
    dilations: tuple[int, int]


@dataclass(frozen=True)
class _Part:
    """Some channels of a convolution's input.

    Attributes:
        value: the map.
        first, last: its channels in the joined input.
        source: what it was resized from, or None to convolve it as it is.
        coordinates: of the resizing.
    """

    value: Symbol
    first: int
    last: int
    source: Symbol | None = None
    coordinates: str = ""


def convolve_before_resizing(graph: GraphBuilder) -> int:
    """Rewrite the convolutions in a graph that take fewer multiplications so.

    Only maps of known sizes, resized linearly and read by that convolution alone.

    Returns:
        How many were rewritten; the nodes they needed before are still there.
    """
    producers = {name: node for node in graph.nodes for name in node.output}
    users = Counter(name for node in graph.nodes for name in node.input)
    nodes, count = graph.nodes, 0
    result: list[onnx.NodeProto] = []
    for node in nodes:
        kernel = _kernel(graph, node) if node.op_type == "Conv" else None
        parts = _parts(graph, kernel, producers, users) if kernel is not None else []
        if kernel is None or all(part.source is None for part in parts):
            result.append(node)
            continue
        graph.nodes = []
        graph.scope = f"{node.name}/parts"
        _write(graph, kernel, parts)
        graph.nodes[-1].output[0] = node.output[0]
        result += graph.nodes
        count += 1
    graph.nodes = result
    return count


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _kernel(graph: GraphBuilder, node: onnx.NodeProto) -> _Kernel | None:
    """The convolution if it is of the kind that can be rewritten, else None."""
    settings = _attributes(node)
    weight, result = graph.symbol(node.input[1]), graph.symbol(node.output[0])
    if weight.name not in graph.initializers or weight.shape is None or len(weight.shape) != 4:
        return None
    if settings.get("group", 1) != 1 or "auto_pad" in settings:
        return None
    if result.shape is None or None in result.shape[1:]:
        return None
    dilations = tuple(settings.get("dilations", (1, 1)))
    # Padding that keeps the size, with the same number of pixels on both sides.
    pads = tuple(
        step * (int(n or 0) - 1) // 2 for n, step in zip(weight.shape[2:], dilations, strict=True)
    )
    odd = all(int(n or 0) % 2 for n in weight.shape[2:])
    same = list(settings.get("pads", (0,) * 4)) == [*pads, *pads]
    if not odd or not same or any(n != 1 for n in settings.get("strides", (1, 1))):
        return None
    return _Kernel(node, weight, result.shape, (pads[0], pads[1]), (dilations[0], dilations[1]))


def _parts(
    graph: GraphBuilder,
    kernel: _Kernel,
    producers: Mapping[str, onnx.NodeProto],
    users: Counter[str],
) -> list[_Part]:
    """The maps side by side in the convolution's input, resized ones with their source."""
    name = kernel.node.input[0]
    joined = producers.get(name)
    names = [name]
    if joined is not None and joined.op_type == "Concat" and users[name] == 1:
        if _attributes(joined)["axis"] in (1, -3):
            names = list(joined.input)
    parts: list[_Part] = []
    for value in map(graph.symbol, names):
        channels = value.shape[1] if value.shape else None
        if channels is None:
            return []
        first = parts[-1].last if parts else 0
        part = _Part(value, first, first + channels)
        resized = producers.get(value.name)
        if resized is not None and users[value.name] == 1:
            part = _resized(graph, kernel, part, resized) or part
        parts.append(part)
    return parts


def _resized(
    graph: GraphBuilder, kernel: _Kernel, part: _Part, node: onnx.NodeProto
) -> _Part | None:
    """The part with its source, if it was resized linearly and the other order is cheaper."""
    if node.op_type != "Resize":
        return None
    settings = _attributes(node)
    coordinates = settings["coordinate_transformation_mode"].decode()
    source = graph.symbol(node.input[0])
    if settings["mode"] != b"linear" or coordinates not in _POSITIONS:
        return None
    if source.shape is None or len(source.shape) != 4 or None in source.shape[1:]:
        return None
    channels, rows, columns = (int(n or 0) for n in source.shape[1:])
    outputs, height, width = (int(n or 0) for n in kernel.shape[1:])
    high, wide = (int(n or 0) for n in (kernel.weight.shape or ())[2:])
    direct = height * width * channels * outputs * high * wide
    taps = rows * columns * channels * outputs * high * wide
    along_rows = outputs * wide * height * high * rows * columns
    along_columns = outputs * height * wide * columns * width
    before = taps + along_rows + along_columns
    if before > LARGEST_SHARE * direct or direct - before < LEAST_SAVING:
        return None
    return _Part(part.value, part.first, part.last, source, coordinates)


def _write(graph: GraphBuilder, kernel: _Kernel, parts: list[_Part]) -> None:
    """Add the nodes; the last one's output is the result."""
    whole: list[Symbol] = []
    bias = graph.symbol(kernel.node.input[2]) if len(kernel.node.input) > 2 else None
    attributes = _attributes(kernel.node)
    plain = [part for part in parts if part.source is None]
    if plain:
        # The plain maps side by side take the bias.
        maps, weights = [part.value for part in plain], [_weight(graph, kernel, p) for p in plain]
        x, weight = maps[0], weights[0]
        if len(plain) > 1:
            channels = sum(part.last - part.first for part in plain)
            shape = (kernel.shape[0], channels, *kernel.shape[2:])
            x = graph.add("Concat", maps, shape=shape, axis=1)
            shape = ((kernel.weight.shape or ())[0], channels, *(kernel.weight.shape or ())[2:])
            weight = graph.add("Concat", weights, shape=shape, axis=1)
        inputs = [x, weight] if bias is None else [x, weight, bias]
        whole.append(graph.add("Conv", inputs, shape=kernel.shape, **attributes))
        bias = None
    whole += [_coarse(graph, kernel, part) for part in parts if part.source is not None]
    total = whole[0]
    for item in whole[1:]:
        total = graph.add("Add", [total, item], shape=kernel.shape)
    if bias is not None:
        graph.add("Add", [total, graph.reshape(bias, (-1, 1, 1))], shape=kernel.shape)


def _weight(graph: GraphBuilder, kernel: _Kernel, part: _Part) -> Symbol:
    """The part's share of the weight."""
    if (kernel.weight.shape or ())[1] == part.last - part.first:
        return kernel.weight
    return graph.slice(kernel.weight, [part.first], [part.last], [1])


def _coarse(graph: GraphBuilder, kernel: _Kernel, part: _Part) -> Symbol:
    """A resized map's part of the result, from the map before resizing."""
    source = part.source
    assert source is not None and source.shape is not None
    _, channels, rows, columns = (int(n or 0) for n in source.shape)
    batch, outputs, height, width = kernel.shape
    high, wide = (int(n or 0) for n in (kernel.weight.shape or ())[2:])
    pads, dilations = kernel.pads, kernel.dilations

    def matrix(axis: int, length: int, target: int, taps: int) -> np.ndarray:
        return shifted_resizing(part.coordinates, length, target, taps, pads[axis], dilations[axis])

    # Channels in the order output, tap along columns, tap along rows: the latter then lie beside
    # the rows, where a matrix product adds them.
    taps = graph.transpose(_weight(graph, kernel, part), (0, 3, 2, 1))
    taps = graph.reshape(taps, (-1, channels, 1, 1))
    shape = (batch, int(outputs or 0) * high * wide, rows, columns)
    x = graph.add("Conv", [source, taps], shape=shape, kernel_shape=[1, 1])
    x = graph.reshape(x, (-1, high * rows, columns))
    down = graph.constant(matrix(0, rows, int(height or 0), high))
    x = graph.add("MatMul", [down, x], shape=(None, height, columns))
    x = graph.reshape(x, (-1, wide, int(height or 0), columns))
    x = graph.transpose(x, (0, 2, 1, 3))
    x = graph.reshape(x, (-1, wide * columns))
    across = graph.constant(matrix(1, columns, int(width or 0), wide).T)
    x = graph.add("MatMul", [x, across], shape=(None, width))
    return graph.reshape(x, (-1, int(outputs or 0), int(height or 0), int(width or 0)))


# Where the places of a resized axis lie on the axis before, by ONNX's names.
_POSITIONS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "align_corners": lambda places, source, target: places * (source - 1) / max(target - 1, 1),
    "half_pixel": lambda places, source, target: (places + 0.5) * source / target - 0.5,
}


def shifted_resizing(
    coordinates: str, source: int, target: int, taps: int, pad: int, dilation: int
) -> np.ndarray:
    """Linear resizing of an axis as the taps of a convolution see it.

    Args:
        coordinates: "align_corners" or "half_pixel".
        source, target: lengths before and after resizing.
        taps: of the kernel along this axis.
        pad: zeros in front of the resized axis.
        dilation: distance of the taps.

    Returns:
        (target, taps * source) float32: row p, block t is place p + t * dilation - pad of the
        resized axis, or zero beyond its ends.
    """
    places = _POSITIONS[coordinates](np.arange(target, dtype=np.float64), source, target)
    places = places.clip(0, source - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, source - 1)
    resizing = np.zeros((target, source))
    np.add.at(resizing, (np.arange(target), below), 1 - (places - below))
    np.add.at(resizing, (np.arange(target), above), places - below)
    padded = np.pad(resizing, ((pad, taps * dilation), (0, 0)))
    blocks = [padded[tap * dilation : tap * dilation + target] for tap in range(taps)]
    return np.concatenate(blocks, axis=1).astype(np.float32)
