"""What a network computes, as a list of operator calls: from its graph, without running it.

MindSpore's compiler turns a Cell into one flat list of primitives with the shape of every
result; a MINDIR file keeps that list, with the layer each came from. Tools that need to know
sizes, multiplications or receptive fields read it here, so that additions, resizing and pooling
written as plain functions count like layers do, and no input is ever computed, however large.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_utils.errors import UserError
from model_utils.exporting import evaluation_mode
from model_utils.mindir2onnx.mindir import Mindir, Node, TensorType, read

# They hand a value on unchanged; their first input is the value.
_TRANSPARENT = ("Load", "Depend", "Identity", "StopGradient")
_WITHOUT_VALUE = ("UpdateState",)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One operator call.

    Attributes:
        operator: the primitive, e.g. "Conv2D".
        layer: the layer it belongs to as in parameter names, e.g. "layer2.0.conv1"; "" for the
            network itself. Exact for calls with parameters; MindSpore reuses the graph of equal
            functions, so that an addition may carry the name of an earlier one's layer.
        inputs: names of the network's inputs, of parameters, or of earlier outputs.
        values: what is known of each input: a constant's Python value, else None.
        output: name of the result.
        shape: of the result; for a tuple, that of its first member.
        attributes: the primitive's settings.
    """

    operator: str
    layer: str
    inputs: tuple[str, ...]
    values: tuple[Any, ...]
    output: str
    shape: Shape
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """A network's operator calls for one size of its inputs.

    Attributes:
        inputs: shapes of the network's inputs by name.
        parameters: shapes of the parameters that influence the outputs, by name.
        calls: in order of execution.
        outputs: names of the results.
    """

    inputs: dict[str, Shape]
    parameters: dict[str, Shape]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]


def trace(cell: Any, *shapes: Sequence[int]) -> Trace:
    """The operator calls of a Cell in evaluation mode.

    Args:
        cell: the network; its classes must live in .py files, as graph mode asks.
        shapes: of its float32 inputs, e.g. (1, 3, 1024, 2048); nothing of that size is allocated.

    Raises:
        UserError: MindSpore cannot compile it for these shapes, or it branches on data.
    """
    import mindspore as ms
    from mindspore.common.initializer import Zero

    for shape in shapes:
        if not shape or any(length < 1 for length in shape):
            raise UserError(f"an input of shape {tuple(shape)} has no elements; give lengths > 0")
    # A tensor with an initialiser takes no memory until its values are asked for.
    tensors = [ms.Tensor(shape=tuple(s), dtype=ms.float32, init=Zero()) for s in shapes]
    with tempfile.TemporaryDirectory(prefix="trace-") as folder, evaluation_mode(cell):
        try:
            ms.export(cell, *tensors, file_name=f"{folder}/network", file_format="MINDIR")
        except (RuntimeError, TypeError, ValueError) as error:
            sizes = ", ".join("x".join(map(str, shape)) for shape in shapes)
            reason = next(line for line in f"{error}\nunknown".splitlines() if line.strip(" -|"))
            raise UserError(
                f"{type(cell).__name__} cannot be compiled for inputs of {sizes}: "
                f"{reason.strip(' -|')}"
            ) from error
        return _from_mindir(read(Path(folder) / "network.mindir"))


def _from_mindir(mindir: Mindir) -> Trace:
    same: dict[str, str] = {}
    parameters = {mindir.label(name): tuple(v.shape) for name, v in mindir.parameters.items()}
    calls: list[Call] = []
    for node in mindir.nodes:
        if node.operator in _TRANSPARENT:
            same[node.output] = same.get(node.inputs[0], node.inputs[0])
        elif node.operator not in _WITHOUT_VALUE:
            calls.append(_call(mindir, node, same))
    last = same.get(mindir.output, mindir.output)
    made = {call.output: call for call in calls}
    outputs: tuple[str, ...] = (mindir.label(last),)
    if outputs[0] in made and made[outputs[0]].operator == "MakeTuple":
        outputs = made[outputs[0]].inputs
    return Trace(
        inputs={mindir.label(name): _shape(kind) for name, kind in mindir.inputs.items()},
        parameters=parameters,
        calls=tuple(_without_wrapper(_needed(calls, outputs), set(parameters))),
        outputs=outputs,
    )


def _needed(calls: list[Call], outputs: tuple[str, ...]) -> list[Call]:
    """The calls that the outputs depend on; the compiler leaves its bookkeeping behind them."""
    wanted = set(outputs)
    kept = []
    for call in reversed(calls):
        if call.output in wanted:
            wanted.update(call.inputs)
            kept.append(call)
    return kept[::-1]


def _call(mindir: Mindir, node: Node, same: Mapping[str, str]) -> Call:
    inputs = [same.get(name, name) for name in node.inputs]
    return Call(
        operator=node.operator,
        layer=_layer(node.scope),
        inputs=tuple(mindir.label(name) for name in inputs),
        values=tuple(mindir.constants.get(name) for name in inputs),
        output=mindir.label(node.output),
        shape=_shape(node.type),
        attributes=node.attributes,
    )


def _shape(kind: Any) -> Shape:
    while isinstance(kind, tuple):
        kind = kind[0] if kind else None
    if not isinstance(kind, TensorType) or kind.shape is None:
        return ()
    return tuple(length or 0 for length in kind.shape)


def _layer(scope: str) -> str:
    """Scope "Default/a-Net/0-Conv2d/Conv2D-op0" as name "a.0"."""
    return ".".join(part.split("-")[0] for part in scope.split("/")[1:-1])


def _without_wrapper(calls: list[Call], parameters: set[str]) -> list[Call]:
    """Leave out what a Cell around the network adds to layer names but not to parameter names."""
    for call in calls:
        for name in parameters.intersection(call.inputs):
            owner = name.rpartition(".")[0]
            wrapper = call.layer.removesuffix(owner)
            if wrapper and call.layer.endswith(owner):
                return [_renamed(item, wrapper) for item in calls]
    return calls


def _renamed(call: Call, wrapper: str) -> Call:
    if call.layer == wrapper.rstrip("."):
        return replace(call, layer="")
    return replace(call, layer=call.layer.removeprefix(wrapper))
