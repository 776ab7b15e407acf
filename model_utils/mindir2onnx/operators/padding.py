"""Padding with a value, the border, or a reflection."""

from collections.abc import Sequence

import numpy as np

from model_utils.mindir2onnx.graph import Integer, Symbol, Unsupported
from model_utils.mindir2onnx.registry import Call, operator


def _pad(
    call: Call,
    pairs: Sequence[tuple[Integer, Integer]],
    mode: str = "constant",
    value: Symbol | None = None,
) -> Symbol:
    """A Pad node from one (before, after) pair per axis."""
    graph, x = call.graph, call.tensor(0)
    amounts = (*(before for before, _ in pairs), *(after for _, after in pairs))
    shape = tuple(
        None
        if n is None or isinstance(before, Symbol) or isinstance(after, Symbol)
        else n + before + after
        for n, (before, after) in zip(x.shape or (), pairs, strict=True)
    )
    inputs = [x, graph.integers(amounts)]
    return graph.add("Pad", inputs if value is None else [*inputs, value], shape=shape, mode=mode)


@operator("Pad")
def pad_with_zeros(call: Call) -> Symbol:
    """Zeros around every axis."""
    return _pad(call, [(int(before), int(after)) for before, after in call.attributes["paddings"]])


@operator("PadV3")
def pad(call: Call) -> Symbol:
    """PyTorch's form: pairs for the last axes, the very last one first."""
    if not call.attributes.get("paddings_contiguous", True):
        raise Unsupported("its paddings are not contiguous")
    x, amounts = call.tensor(0), call.inputs[1]
    if isinstance(amounts, np.ndarray):
        amounts = tuple(int(n) for n in amounts.reshape(-1))
    if not isinstance(amounts, tuple):
        raise Unsupported("its paddings are a computed tensor")
    pairs: list[tuple[Integer, Integer]] = [(0, 0)] * x.rank
    for index in range(len(amounts) // 2):
        pairs[x.rank - 1 - index] = (amounts[2 * index], amounts[2 * index + 1])
    mode = call.attributes.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise Unsupported(f"its mode is {mode}")
    given = call.inputs[2] if len(call.inputs) > 2 else None
    value = call.graph.tensor(given, x.dtype) if given is not None else None
    return _pad(call, pairs, mode, value if mode == "constant" else None)


@operator("MirrorPad")
def mirror(call: Call) -> Symbol:
    """Reflection without (REFLECT) or with (SYMMETRIC) the border pixel repeated."""
    pairs = [(int(before), int(after)) for before, after in np.asarray(call.known(1))]
    if call.attributes["mode"] == "REFLECT":
        return _pad(call, pairs, "reflect")
    graph, x = call.graph, call.tensor(0)
    for axis, (before, after) in enumerate(pairs):
        if not before and not after:
            continue
        parts = [x]
        if before:
            parts.insert(0, _flipped(call, x, axis, 0, before))
        if after:
            parts.append(_flipped(call, x, axis, -after, 2**63 - 1))
        length = (x.shape or ())[axis]
        shape = tuple(
            n if a != axis else (None if length is None else length + before + after)
            for a, n in enumerate(x.shape or ())
        )
        x = graph.add("Concat", parts, shape=shape, axis=axis)
    return x


def _flipped(call: Call, x: Symbol, axis: int, start: int, end: int) -> Symbol:
    part = call.graph.slice(x, [start], [end], [axis])
    return call.graph.slice(part, [-1], [-(2**63) + 1], [axis], [-1])
