"""MINDIR to ONNX, operator by operator.

MindSpore's own ONNX export refuses resizing, padded pooling, grid sampling and padding, and
writes asymmetric and transposed convolutions wrong (docs/framework_traps.md). A MINDIR file, in
contrast, is a flat list of operator calls with types attached, which translates well: every
operator has one small function under ``operators/`` that adds ONNX nodes to a graph. Arithmetic
on shapes is done at once where the lengths are known and becomes ONNX nodes where they are not,
so that fixed and dynamic shapes go the same way.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path
from model_utils.mindir2onnx import operators
from model_utils.mindir2onnx.graph import GraphBuilder, Symbol, Unsupported, Value
from model_utils.mindir2onnx.mindir import Mindir, Node, TensorType, read, read_inputs
from model_utils.mindir2onnx.registry import Call, supported_operators, translation
from model_utils.mindir2onnx.reordering import convolve_before_resizing

__all__ = ["OPSETS", "convert", "operators", "read_inputs", "supported_operators"]

#: ONNX operator set versions that can be written; every operator is tested in the first and last.
OPSETS = range(17, 21)

log = logging.getLogger("zoo")


def convert(
    mindir_path: PathLike,
    onnx_path: PathLike | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = 17,
    reorder: bool = True,
) -> onnx.ModelProto:
    """Translate a MINDIR file to ONNX.

    Parameters keep their names as initializers; axes that are dynamic in the MINDIR are dynamic
    in the ONNX model. Parameters that no output depends on are left out and logged.

    Args:
        mindir_path: the file to read.
        onnx_path: where to write the model (atomically), or None.
        input_names: names of the inputs in order; those of the MINDIR by default.
        output_names: names of the outputs in order; "output" or "output_0" ... by default.
        opset: ONNX operator set, 17 to 20; grid sampling in volumes needs 20.
        reorder: convolve maps before they are resized where that is cheaper (see `reordering`);
            False keeps one ONNX node per convolution.

    Returns:
        The model, accepted by onnx.checker.

    Raises:
        UserError: the file cannot be read, names do not fit, or an operator (named with the layer
            it came from) has no translation.
    """
    if opset not in OPSETS:
        raise UserError(f"opset {opset} is not one of {OPSETS[0]} to {OPSETS[-1]}; choose one")
    mindir = read(mindir_path)
    graph = GraphBuilder(opset)
    values: dict[str, Value] = dict(mindir.constants)
    inputs = _declare_inputs(graph, mindir, input_names)
    values.update(zip(mindir.inputs, inputs, strict=True))
    for name, array in mindir.parameters.items():
        values[name] = graph.parameter(mindir.label(name), array)
    for name in output_names or ():
        graph.unique(name)  # so that no node takes it
    for node in mindir.nodes:
        values[node.output] = _translate(graph, node, values)
    parameters = [mindir.label(name) for name in mindir.parameters]
    taken = {*parameters, *(item.name for item in inputs)}
    outputs = _declare_outputs(graph, values[mindir.output], output_names, taken)
    _drop_unused(graph, outputs, parameters)
    if reorder and (count := convolve_before_resizing(graph)):
        _drop_unused(graph, outputs, ())
        log.debug("%d convolutions are computed before their inputs are resized", count)
    model = _assemble(graph, inputs, outputs)
    if onnx_path is not None:
        with atomic_path(onnx_path) as temporary:
            onnx.save(model, temporary)
    return model


def _declare_inputs(
    graph: GraphBuilder, mindir: Mindir, names: Sequence[str] | None
) -> list[Symbol]:
    chosen = _checked_names(names, [mindir.label(name) for name in mindir.inputs], "input")
    parameters = {mindir.label(name) for name in mindir.parameters}
    for name in chosen:
        if name in parameters:
            raise UserError(f"input name {name} is a parameter's; choose other input_names")
        graph.unique(name)
    return [
        Symbol(name, declared.dtype, declared.shape)
        for name, declared in zip(chosen, mindir.inputs.values(), strict=True)
    ]


def _declare_outputs(
    graph: GraphBuilder, result: Value, names: Sequence[str] | None, taken: Collection[str]
) -> list[Symbol]:
    """Give the results their final names through Identity nodes."""
    results = [graph.tensor(item) for item in _flatten(result)]
    default = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    chosen = _checked_names(names, default, "output")
    graph.scope = ""
    outputs = []
    for item, name in zip(results, chosen, strict=True):
        if name in taken:
            raise UserError(
                f"output name {name} is taken by an input or parameter; choose other output_names"
            )
        final = Symbol(name, item.dtype, item.shape)
        graph.nodes.append(
            helper.make_node("Identity", [item.name], [name], name=graph.unique(f"{name}_identity"))
        )
        outputs.append(final)
    return outputs


def _checked_names(names: Sequence[str] | None, default: list[str], what: str) -> list[str]:
    if names is None:
        return default
    if len(names) != len(default) or len(set(names)) != len(names):
        raise UserError(
            f"{len(names)} {what} names ({', '.join(names)}) were given for {len(default)} "
            f"{what}s; give one different name for each"
        )
    return list(names)


def _flatten(value: Value) -> list[Value]:
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in _flatten(item)]
    return [value]


def _translate(graph: GraphBuilder, node: Node, values: Mapping[str, Value]) -> Value:
    function = translation(node.operator)
    where = node.scope or node.output
    if function is None:
        raise UserError(
            f"operator {node.operator} of layer {where} has no ONNX translation; write the layer "
            "with other operators or add one to model_utils/mindir2onnx/operators"
        )
    graph.scope = where
    try:
        result = function(Call(graph, node, tuple(values[name] for name in node.inputs)))
        return _as_declared(graph, result, node.type)
    except Unsupported as error:
        raise UserError(
            f"operator {node.operator} of layer {where} cannot be translated to ONNX: {error}"
        ) from error


def _as_declared(graph: GraphBuilder, value: Value, declared: Any) -> Value:
    """Cast to the element type MindSpore declared and merge what both sides know of the shape."""
    if isinstance(value, tuple) and isinstance(declared, tuple):
        # Results that a translation leaves out (training statistics) are not looked at.
        return tuple(
            _as_declared(graph, item, kind) for item, kind in zip(value, declared, strict=False)
        )
    if not isinstance(value, Symbol) or not isinstance(declared, TensorType):
        return value
    value = graph.cast(value, declared.dtype)
    if declared.shape is None:
        return value
    known = value.shape or (None,) * len(declared.shape)
    if len(known) != len(declared.shape):
        raise Unsupported(f"its result has shape {known} where {declared.shape} was declared")
    merged = tuple(a if a is not None else b for a, b in zip(declared.shape, known, strict=True))
    return Symbol(value.name, value.dtype, merged)


def _drop_unused(graph: GraphBuilder, outputs: Sequence[Symbol], parameters: Sequence[str]) -> None:
    """Keep only what the outputs depend on."""
    needed = {output.name for output in outputs}
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    graph.nodes = kept[::-1]
    graph.initializers = {n: array for n, array in graph.initializers.items() if n in needed}
    unused = [name for name in parameters if name not in needed]
    if unused:
        log.warning(
            "%d parameters do not influence the outputs and are left out of the ONNX model: %s",
            len(unused),
            ", ".join(unused),
        )


def _value_info(symbol: Symbol) -> onnx.ValueInfoProto:
    shape: list[int | str] | None = None
    if symbol.shape is not None:
        shape = [
            n if n is not None else f"{symbol.name}_{axis}" for axis, n in enumerate(symbol.shape)
        ]
    element = helper.np_dtype_to_tensor_dtype(symbol.dtype)
    return helper.make_tensor_value_info(symbol.name, element, shape)


def _assemble(
    graph: GraphBuilder, inputs: Sequence[Symbol], outputs: Sequence[Symbol]
) -> onnx.ModelProto:
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        for name, array in graph.initializers.items()
    ]
    proto = helper.make_graph(
        graph.nodes,
        "network",
        [_value_info(item) for item in inputs],
        [_value_info(item) for item in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(
        proto,
        opset_imports=opsets,
        producer_name="model_utils.mindir2onnx",
        ir_version=helper.find_min_ir_version_for(opsets),
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the translated model is not valid ONNX ({reason}); this is a defect of the "
            "converter, report it and use MINDIR meanwhile"
        ) from error
    return model
