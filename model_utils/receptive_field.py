"""Receptive fields: of lists of layers, of real networks, counted in paths, and measured.

The theoretical receptive field of a unit is the part of the input that can influence it. For a
chain of layers it is a sum; for a network with branches, shortcuts and resizing it is the hull
over all paths, which :func:`receptive_fields` follows through the network's own graph. How much
of it matters is another question (Luo et al., "Understanding the Effective Receptive Field in
Deep Convolutional Neural Networks", NIPS 2016): ``model_utils.gradients`` measures that.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_write
from model_utils.tracing import Call, Shape, Trace

# (kernel, stride, dilation) of a layer along one axis.
Window = tuple[int, int, int]
_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative")
_POOLS = ("AvgPool", "MaxPool", "AvgPool3D", "MaxPool3D", "MaxPool3DWithArgmax")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
_WINDOWED = (*_CONVOLUTIONS, "Conv2DTranspose", *_POOLS, *_REDUCTIONS, "ResizeBilinearV2")
_EMPTY = np.iinfo(np.int64).max // 2  # as a lower bound; its negative as an upper bound


def chain(layers: Sequence[Window]) -> list[tuple[int, int]]:
    """Receptive field and accumulated stride after every layer of a chain, along one axis.

    A kernel of k taps spaced by dilation d reaches d (k - 1) further pixels of its input, each
    as far apart in the image as the product of the strides so far.
    """
    field, stride = 1, 1
    result = []
    for kernel, step, dilation in layers:
        if min(kernel, step, dilation) < 1:
            raise UserError(f"layer {(kernel, step, dilation)} has a length below 1")
        field += dilation * (kernel - 1) * stride
        stride *= step
        result.append((field, stride))
    return result


def path_counts(layers: Sequence[Window]) -> np.ndarray:
    """In how many ways each pixel of the receptive field reaches the unit, (R, R) float64.

    That is the unit's response to single pixels if all weights were one.
    """
    line = np.ones(1)
    stride = 1
    for kernel, step, dilation in layers:
        taps = np.zeros(dilation * (kernel - 1) * stride + 1)
        taps[:: dilation * stride] = 1
        line = np.convolve(line, taps)
        stride *= step
    return np.outer(line, line)


@dataclass(frozen=True)
class Field:
    """The receptive field of one layer; pairs are (vertical, horizontal), in input pixels.

    Attributes:
        layer: its name, "" for what the network computes outside any layer.
        operator: the primitive, e.g. "Conv2D"; "output" for the network's results.
        kernel, stride, dilation: of the layer itself; 0 where it has none.
        size: extent, of the largest unit where they differ (bilinear resizing); 0 if the layer
            cannot be reached.
        whole: whether it is all of the image, whatever the image's size.
        step: distance between neighbouring units.
        centre: of the field of the first unit, disregarding the image's border.
    """

    layer: str
    operator: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]
    whole: tuple[bool, bool]
    step: tuple[Fraction, Fraction]
    centre: tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """Per unit along one axis, the first and last input pixel that it depends on."""

    low: np.ndarray
    high: np.ndarray
    step: Fraction

    def at(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the units at some places; places outside are padding and depend on nothing."""
        inside = (index >= 0) & (index < len(self.low))
        place = np.clip(index, 0, len(self.low) - 1)
        return np.where(inside, self.low[place], _EMPTY), np.where(
            inside, self.high[place], -_EMPTY
        )

    def hull(self, taps: Sequence[np.ndarray], step: Fraction) -> "_Axis":
        """Units that each depend on several of these, one array of places per tap."""
        bounds = [self.at(tap) for tap in taps]
        low = np.minimum.reduce([b[0] for b in bounds])
        return _Axis(low, np.maximum.reduce([b[1] for b in bounds]), step)


def _nothing(length: int, step: Fraction) -> _Axis:
    return _Axis(np.full(length, _EMPTY), np.full(length, -_EMPTY), step)


def receptive_fields(
    graph: Trace, without: Sequence[str] = (), source: str | None = None
) -> list[Field]:
    """The receptive field of every convolution, pooling and resizing, and of the outputs.

    For every unit along each axis the first and last pixel that it depends on are followed
    through all operators, so that branches of any kind, shortcuts, odd sizes and resizing are
    exact. Layers are measured in the middle of the image, away from padding.

    Args:
        graph: of the network for an input a few times larger than the fields looked for, e.g.
            16384 pixels (nothing is computed, so that costs little).
        without: layers whose results are ignored, by their names or first parts of them: the
            fields of a single path.
        source: name of the input looked at; default the first.

    Raises:
        UserError: an unknown input, an operator that cannot be followed, or an image too small
            to hold a field.
    """
    source = next(iter(graph.inputs)) if source is None else source
    if source not in graph.inputs:
        raise UserError(f"there is no input '{source}'; inputs: {', '.join(graph.inputs)}")
    values: dict[str, tuple[_Axis, _Axis]] = {}
    shapes: dict[str, Shape] = dict(graph.inputs)
    for name, shape in graph.inputs.items():
        values[name] = _input(shape, name == source)
    image = _extent(graph.inputs[source])
    rows = []
    for call in graph.calls:
        found = _follow(call, values, shapes)
        if found is None:
            continue
        if any(call.layer == name or call.layer.startswith(f"{name}.") for name in without):
            found = (
                _nothing(len(found[0].low), found[0].step),
                _nothing(len(found[1].low), found[1].step),
            )
        values[call.output], shapes[call.output] = found, call.shape
        if call.operator in _WINDOWED:
            rows.append(_field(call, found, image))
    results = {call.output: call for call in graph.calls}
    for name in graph.outputs:
        if name in values and name in results:
            rows.append(_field(results[name], values[name], image, "output"))
    return rows


def _extent(shape: Shape) -> tuple[int, int]:
    """Height and width; 1 x 1 for what has neither."""
    return (shape[-2], shape[-1]) if len(shape) >= 4 else (1, 1)


def _input(shape: Shape, followed: bool) -> tuple[_Axis, _Axis]:
    step = Fraction(1)
    first, second = (
        _Axis(np.arange(n), np.arange(n), step) if followed else _nothing(n, step)
        for n in _extent(shape)
    )
    return first, second


def _follow(
    call: Call, values: dict[str, tuple[_Axis, _Axis]], shapes: dict[str, Shape]
) -> tuple[_Axis, _Axis] | None:
    """Both axes of a call's result; None for what does not come from the input."""
    known = [name for name in call.inputs if name in values]
    if not known:
        return None
    out = _extent(call.shape)
    if call.operator in _CONVOLUTIONS or call.operator in _POOLS:
        pair = values[known[0]]
        return _windowed(call, pair[0], 0, out[0]), _windowed(call, pair[1], 1, out[1])
    if call.operator == "Conv2DTranspose":
        pair = values[known[0]]
        return _transposed(call, pair[0], 0, out[0]), _transposed(call, pair[1], 1, out[1])
    if call.operator == "ResizeBilinearV2":
        pair = values[known[0]]
        return _resized(call, pair[0], out[0]), _resized(call, pair[1], out[1])
    if call.operator in _REDUCTIONS:
        pair, axes = values[known[0]], _reduced(call, len(shapes[known[0]]))
        return _pooled(pair[0], out[0], 0 in axes), _pooled(pair[1], out[1], 1 in axes)
    return _elementwise(call, [values[name] for name in known], out)


def _windowed(call: Call, axis: _Axis, place: int, length: int) -> _Axis:
    """Convolution or pooling: several taps at a stride."""
    kernel, stride, dilation = _window(call)
    k, s, d = kernel[place], stride[place], dilation[place]
    before = _padding_before(call, place, len(axis.low), length, k, s, d)
    first = np.arange(length) * s - before
    return axis.hull([first + d * tap for tap in range(k)], axis.step * s)


def _window(call: Call) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(vertical, horizontal) kernel, stride and dilation; 0 for operators without a window."""
    if call.operator not in (*_CONVOLUTIONS, *_POOLS, "Conv2DTranspose"):
        return (0, 0), (0, 0), (0, 0)
    settings = call.attributes
    strides = settings.get("stride", settings.get("strides", 1))
    return (
        _pair(settings["kernel_size"]),
        _pair(strides),
        _pair(settings.get("dilation", settings.get("dilations", 1))),
    )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[-2]), int(value[-1])


def _padding_before(
    call: Call, place: int, length: int, out: int, kernel: int, stride: int, dilation: int
) -> int:
    """Padding above or left of the image."""
    mode = str(call.attributes.get("pad_mode", "pad")).lower()
    if mode == "valid":
        return 0
    if mode == "same":
        return max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - length) // 2
    return int(tuple(call.attributes["pad_list"])[-4:][2 * place])


def _transposed(call: Call, axis: _Axis, place: int, length: int) -> _Axis:
    """Transposed convolution: input i reaches outputs i s - padding + d tap."""
    kernel, stride, dilation = _window(call)
    k, s, d = kernel[place], stride[place], dilation[place]
    before = int(tuple(call.attributes["pad_list"])[-4:][2 * place])
    taps = []
    for tap in range(k):
        shifted = np.arange(length) + before - d * tap
        # Places that this tap does not reach are out of range, hence ignored.
        taps.append(np.where(shifted % s == 0, shifted // s, -1))
    return axis.hull(taps, axis.step / s)


def _resized(call: Call, axis: _Axis, length: int) -> _Axis:
    """Bilinear resizing: two neighbours, or one where the place is exactly on it."""
    aligned, half_pixels = bool(call.values[2]), bool(call.values[3])
    before = len(axis.low)
    places = [_source(i, before, length, aligned, half_pixels) for i in range(length)]
    first = np.array([int(place) for place in places])
    second = np.array([-(-place.numerator // place.denominator) for place in places])
    return axis.hull([first, second], axis.step * Fraction(before, length))


def _source(index: int, before: int, after: int, aligned: bool, half_pixels: bool) -> Fraction:
    if aligned:
        place = Fraction(index * (before - 1), max(1, after - 1))
    elif half_pixels:
        place = Fraction((2 * index + 1) * before - after, 2 * after)
    else:
        place = Fraction(index * before, after)
    return min(max(place, Fraction(0)), Fraction(before - 1))


def _reduced(call: Call, dimensions: int) -> set[int]:
    """Which of height (0) and width (1) a reduction covers."""
    axes = call.values[1] if len(call.values) > 1 else None
    if axes is None or axes == ():
        return {0, 1}
    listed = [axes] if isinstance(axes, int) else list(np.ravel(axes))
    return {int(axis) % dimensions - dimensions + 2 for axis in listed} & {0, 1}


def _pooled(axis: _Axis, length: int, all_of_it: bool) -> _Axis:
    if not all_of_it and length == len(axis.low):
        return axis
    low, high = np.full(length, axis.low.min()), np.full(length, axis.high.max())
    return _Axis(low, high, axis.step * len(axis.low) / length)


def _elementwise(
    call: Call, operands: list[tuple[_Axis, _Axis]], out: tuple[int, int]
) -> tuple[_Axis, _Axis]:
    """Anything that leaves places alone, with broadcasting of single rows and columns."""
    result = []
    for place in (0, 1):
        axes = [operand[place] for operand in operands]
        lengths = {len(axis.low) for axis in axes} - {1}
        if lengths not in (set(), {out[place]}):
            if out != (1, 1):
                raise UserError(
                    f"the receptive field cannot be followed through operator {call.operator} of "
                    f"layer '{call.layer}'; add it to model_utils/receptive_field.py"
                )
            # Flattened: every output may depend on every place.
            axes = [_pooled(axis, 1, True) for axis in axes]
        low = np.minimum.reduce([np.broadcast_to(axis.low, out[place]) for axis in axes])
        high = np.maximum.reduce([np.broadcast_to(axis.high, out[place]) for axis in axes])
        step = min(axis.step for axis in axes)
        result.append(_Axis(low, high, step))
    return result[0], result[1]


def _field(
    call: Call, axes: tuple[_Axis, _Axis], image: tuple[int, int], operator: str = ""
) -> Field:
    kernel, stride, dilation = _window(call)
    measured = [_measured(call, axis, length) for axis, length in zip(axes, image, strict=True)]
    if operator:
        kernel = stride = dilation = (0, 0)
    return Field(
        call.layer,
        operator or call.operator,
        kernel,
        stride,
        dilation,
        size=(measured[0][0], measured[1][0]),
        whole=(measured[0][1], measured[1][1]),
        step=(axes[0].step, axes[1].step),
        centre=(measured[0][2], measured[1][2]),
    )


def _measured(call: Call, axis: _Axis, image: int) -> tuple[int, bool, float]:
    """Extent, whether it is the whole image, and centre of the first unit's field."""
    count = len(axis.low)
    # A stretch in the middle: units on all phases of a resizing, none near the border.
    middle = np.arange(count * 3 // 8, max(count * 3 // 8 + 1, count * 5 // 8))
    low, high = axis.low[middle], axis.high[middle]
    if (low > high).any():
        return 0, False, float("nan")
    whole = (low == 0) & (high == image - 1)
    if whole.all():
        return image, True, (image - 1) / 2
    if (low == 0).any() or (high == image - 1).any():
        raise UserError(
            f"the receptive field of layer '{call.layer}' does not fit into {image} pixels; "
            "trace the network for a larger input"
        )
    centre = ((low + high) / 2 - middle * float(axis.step)).mean()
    return int((high - low + 1).max()), False, float(centre)


def write_fields(path: PathLike, fields: Sequence[Field], **columns: Sequence[str]) -> None:
    """Receptive fields as CSV, one line per layer, with further columns behind."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["layer", "operator", "kernel", "stride", "dilation", "size", "step", "centre"]
    writer.writerow([*header, *columns])
    for row, *more in zip(fields, *columns.values(), strict=True):
        writer.writerow([row.layer, row.operator, *texts(row), *more])
    with atomic_write(path, "w") as stream:
        stream.write(text.getvalue())


def texts(row: Field) -> tuple[str, str, str, str, str, str]:
    """Kernel, stride, dilation, size, step and centre as "vertical x horizontal", or one number."""
    sizes = ["all" if w else str(n or "") for n, w in zip(row.size, row.whole, strict=True)]
    windows = [
        _both(*(str(n) if n else "" for n in pair))
        for pair in (row.kernel, row.stride, row.dilation)
    ]
    # What sees the whole image has no centre of its own, and one unit has no neighbour.
    steps = [
        "" if w and s == n else str(s)
        for n, w, s in zip(row.size, row.whole, row.step, strict=True)
    ]
    centres = [
        "" if w or n == 0 else f"{c:g}"
        for n, w, c in zip(row.size, row.whole, row.centre, strict=True)
    ]
    return windows[0], windows[1], windows[2], _both(*sizes), _both(*steps), _both(*centres)


def _both(first: str, second: str) -> str:
    return first if first == second else f"{first}x{second}"
