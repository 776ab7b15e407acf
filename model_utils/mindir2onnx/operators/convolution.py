"""Convolutions, transposed convolutions and their biases, two- and three-dimensional."""

from collections.abc import Sequence
from typing import Any

from model_utils.mindir2onnx.graph import GraphBuilder, Integer, Symbol, Unsupported
from model_utils.mindir2onnx.registry import Call, operator


def onnx_pads(pairs: Sequence[int]) -> list[int]:
    """MindSpore's (begin, end, begin, end, ...) as ONNX's (all begins, all ends)."""
    return [int(n) for n in (*pairs[0::2], *pairs[1::2])]


def output_length(
    graph: GraphBuilder, length: Integer, kernel: int, stride: int, dilation: int, padding: int
) -> Integer:
    """Length of an axis after a window operation; ``padding`` is the sum of both sides."""
    extent = dilation * (kernel - 1) + 1
    steps = graph.quotient_of(graph.sum_of(length, padding - extent), stride)
    return graph.sum_of(steps, 1)


def window_padding(
    mode: str,
    pairs: Sequence[int] | int | None,
    x: Symbol,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> dict[str, Any]:
    """ONNX padding attributes for MindSpore's pad modes.

    Args:
        mode: "valid", "same", or "pad"/"calculated" for explicit numbers, in any case.
        pairs: explicit padding (begin, end per axis), one number for all sides, or None.
        x: the input; its lengths decide the padding of a strided "same".
        kernel: window size per spatial axis.
        stride: step per spatial axis.
        dilation: spacing per spatial axis.
    """
    mode = mode.lower()
    axes = len(kernel)
    if mode == "valid":
        return {}
    if mode in ("pad", "calculated"):
        explicit = [pairs] * 2 * axes if isinstance(pairs, int) else list(pairs or [0] * 2 * axes)
        return {"pads": onnx_pads(explicit)}
    if mode != "same":
        raise Unsupported(f"its pad_mode is {mode}")
    lengths = x.shape[-axes:] if x.shape is not None else [None] * axes
    computed: list[int] = []
    for n, k, s, d in zip(lengths, kernel, stride, dilation, strict=True):
        extent = d * (k - 1) + 1
        if s > 1 and n is None:
            return {"auto_pad": "SAME_UPPER"}  # depends on the length fed
        total = extent - 1 if n is None else max((-(-n // s) - 1) * s + extent - n, 0)
        computed += [total // 2, total - total // 2]
    return {"pads": onnx_pads(computed)}


def window_shape(
    x: Symbol,
    channels: int | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: dict[str, Any],
) -> tuple[int | None, ...] | None:
    """Output shape of a convolution or pool as far as known (without ceil_mode)."""
    if x.shape is None:
        return None
    axes = len(kernel)
    pads = padding.get("pads", [0] * 2 * axes)
    lengths: list[int | None] = []
    for axis, n in enumerate(x.shape[-axes:]):
        if n is None:
            lengths.append(None)
        elif "auto_pad" in padding:
            lengths.append(-(-n // stride[axis]))
        else:
            extent = dilation[axis] * (kernel[axis] - 1) + 1
            room = n + pads[axis] + pads[axis + axes] - extent
            lengths.append(room // stride[axis] + 1)
    return (x.shape[0], channels, *lengths)


@operator("Conv2D", "Conv3D")
def convolution(call: Call) -> Symbol:
    """Grouped, dilated convolution; the bias is a separate BiasAdd in MINDIR."""
    x, weight = call.tensor(0), call.tensor(1)
    if weight.shape is None or None in weight.shape:
        raise Unsupported("its kernel has no fixed shape")
    axes = len(weight.shape) - 2
    kernel = [int(n or 0) for n in weight.shape[2:]]
    stride = [int(n) for n in call.attributes["stride"][-axes:]]
    dilation = [int(n) for n in call.attributes["dilation"][-axes:]]
    padding = window_padding(
        call.attributes["pad_mode"], call.attributes.get("pad_list"), x, kernel, stride, dilation
    )
    return call.graph.add(
        "Conv",
        [x, weight],
        shape=window_shape(x, weight.shape[0], kernel, stride, dilation, padding),
        kernel_shape=kernel,
        strides=stride,
        dilations=dilation,
        group=int(call.attributes["group"]),
        **padding,
    )


@operator("Conv2DTranspose", "Conv3DTranspose")
def transposed_convolution(call: Call) -> Symbol:
    """Transposed convolution: the gradient of a convolution with respect to its input."""
    x, weight = call.tensor(0), call.tensor(1)
    if weight.shape is None or None in weight.shape:
        raise Unsupported("its kernel has no fixed shape")
    axes = len(weight.shape) - 2
    extents, stride, dilation = [], [], []
    for axis in range(axes):
        stride.append(int(call.attributes["stride"][axis - axes]))
        dilation.append(int(call.attributes["dilation"][axis - axes]))
        extents.append(dilation[axis] * (int(weight.shape[2 + axis] or 0) - 1) + 1)
    mode = call.attributes["pad_mode"].lower()
    extra = [int(n) for n in (call.attributes.get("output_padding") or [0] * axes)[-axes:]]
    if mode == "pad":
        pairs = list(call.attributes["pad_list"])
    else:
        # "same" multiplies every length by the stride; "valid" crops nothing. Where the kernel is
        # shorter than the stride, both fill up to a multiple of the stride.
        surplus = [extent - step for extent, step in zip(extents, stride, strict=True)]
        crop = [max(n, 0) if mode == "same" else 0 for n in surplus]
        pairs = [side for total in crop for side in (total // 2, total - total // 2)]
        extra = [e + max(-n, 0) for e, n in zip(extra, surplus, strict=True)]
    natural = _transposed_lengths(x, extents, stride, pairs)
    if call.node.operator == "Conv2DTranspose":
        extra = _target_padding(call, natural, extra, stride)
    return call.graph.add(
        "ConvTranspose",
        [x, weight],
        shape=_transposed_shape(x, call, natural, extra),
        kernel_shape=[int(n or 0) for n in weight.shape[2:]],
        strides=stride,
        dilations=dilation,
        group=int(call.attributes["group"]),
        pads=onnx_pads(pairs),
        output_padding=extra if any(extra) else None,
    )


def _transposed_lengths(
    x: Symbol, extents: Sequence[int], stride: Sequence[int], pairs: Sequence[int]
) -> list[int | None]:
    lengths = x.shape[2:] if x.shape is not None else [None] * len(extents)
    return [
        None if n is None else (n - 1) * step + extent - pairs[2 * axis] - pairs[2 * axis + 1]
        for axis, (n, step, extent) in enumerate(zip(lengths, stride, extents, strict=True))
    ]


def _target_padding(
    call: Call, natural: Sequence[int | None], extra: Sequence[int], stride: Sequence[int]
) -> list[int]:
    """By how much the requested size exceeds the natural one, where both are known."""
    target = call.inputs[2]
    result = list(extra)
    if not isinstance(target, tuple):
        return result
    for axis, (wanted, length) in enumerate(zip(target[2:], natural, strict=True)):
        if isinstance(wanted, int) and length is not None:
            result[axis] = wanted - length
            if not 0 <= result[axis] < max(stride[axis], 1):
                raise Unsupported(f"its target length {wanted} does not follow from {length}")
    return result


def _transposed_shape(
    x: Symbol, call: Call, natural: Sequence[int | None], extra: Sequence[int]
) -> tuple[int | None, ...] | None:
    weight = call.tensor(1)
    if x.shape is None or weight.shape is None:
        return None
    channels = int(weight.shape[1] or 0) * int(call.attributes["group"])
    lengths = [None if n is None else n + e for n, e in zip(natural, extra, strict=True)]
    return (x.shape[0], channels, *lengths)


@operator("BiasAdd")
def bias(call: Call) -> Symbol:
    """Add one number per channel (axis 1), inside the convolution before it where there is one."""
    graph, x, values = call.graph, call.tensor(0), call.tensor(1)
    node = graph.producer(x)
    fusible = (
        node is not None
        and node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and len(node.input) == 2
        and values.name in graph.initializers
    )
    if node is not None and fusible:
        inputs = [graph.symbol(name) for name in node.input]
        # The node without bias is dropped at the end if nothing else reads it.
        attributes = {item.name: _attribute_value(item) for item in node.attribute}
        return graph.add(node.op_type, [*inputs, values], shape=x.shape, **attributes)
    if x.rank > 2:
        values = graph.reshape(values, [-1] + [1] * (x.rank - 2))
    return graph.add("Add", [x, values], shape=x.shape)


def _attribute_value(attribute: Any) -> Any:
    from onnx import helper

    return helper.get_attribute_value(attribute)
