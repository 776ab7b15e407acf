"""Parameters and multiply-adds of a network, layer by layer, from its graph.

Multiply-adds are those of convolutions and matrix products, biases not counted: one per weight
and output position, which is half the figure called FLOPs where additions count on their own.
Normalisation, activations, pooling and resizing are left out, as in papers.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_write
from model_utils.layers import TRANSIENT
from model_utils.tracing import Call, Shape, Trace, trace

_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative")
_TRANSPOSED = ("Conv2DBackpropInput", "Conv2DTranspose", "Conv3DTranspose", "Conv3DBackpropInput")
_PRODUCTS = ("MatMul", "BatchMatMul", "Dense", "MatMulExt", "BatchMatMulExt")
# Names by which an operator that belongs to the three groups above would be known.
_MULTIPLYING = ("Conv", "MatMul", "Einsum", "LSTM", "GRU", "Attention")


@dataclass
class Layer:
    """A row of the table.

    Attributes:
        name: as in parameter names; "" is what belongs to no layer.
        parameters: trained values.
        unused: those of them that no output depends on.
        statistics: values kept but not trained, e.g. running means.
        multiply_adds: of one pass over the whole batch.
        shape: of the layer's last result computed with parameters or counted; () without one.
    """

    name: str
    parameters: int = 0
    unused: int = 0
    statistics: int = 0
    multiply_adds: int = 0
    shape: Shape = ()


@dataclass
class Complexity:
    """Counts of a network.

    Attributes:
        shapes: of the inputs counted for.
        layers: by name, in order of execution; their sums are the network's.
    """

    shapes: tuple[Shape, ...]
    layers: dict[str, Layer] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Trained values."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def used(self) -> int:
        """Trained values that the outputs depend on."""
        return self.parameters - sum(layer.unused for layer in self.layers.values())

    @property
    def multiply_adds(self) -> int:
        """Of one pass."""
        return sum(layer.multiply_adds for layer in self.layers.values())

    def modules(self, depth: int = 1) -> "Complexity":
        """The table summed over layers that share the first ``depth`` parts of their names."""
        if depth < 1:
            raise UserError(f"depth is {depth}; it must be at least 1")
        result = Complexity(self.shapes)
        for layer in self.layers.values():
            name = ".".join(layer.name.split(".")[:depth])
            row = result.layers.setdefault(name, Layer(name))
            for key in ("parameters", "unused", "statistics", "multiply_adds"):
                setattr(row, key, getattr(row, key) + getattr(layer, key))
            row.shape = layer.shape or row.shape
        return result

    def lines(self) -> list[str]:
        """The table as text, then the sums."""
        width = max([len("layer"), *(len(name) for name in self.layers)])
        total = max(1, self.multiply_adds)
        lines = [
            f"{'layer':<{width}} {'parameters':>12} {'multiply-adds':>16} {'share':>7}  last output"
        ]
        lines += [
            f"{row.name or '-':<{width}} {row.parameters:>12,} {row.multiply_adds:>16,} "
            f"{row.multiply_adds / total:>7.1%}  {'x'.join(map(str, row.shape))}"
            for row in self.layers.values()
        ]
        size = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        lines.append(
            f"{'sum':<{width}} {self.parameters:>12,} {self.multiply_adds:>16,} {'':>7}  "
            f"{self.multiply_adds / 1e9:.2f} G multiply-adds for {size}"
        )
        if self.used != self.parameters:
            lines.append(f"{self.used:,} of the parameters influence the outputs")
        return lines

    def write(self, path: PathLike) -> None:
        """The table as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["layer", "parameters", "unused", "statistics", "multiply_adds", "shape"])
        for row in self.layers.values():
            writer.writerow(
                [
                    row.name,
                    row.parameters,
                    row.unused,
                    row.statistics,
                    row.multiply_adds,
                    "x".join(map(str, row.shape)),
                ]
            )
        with atomic_write(path, "w") as stream:
            stream.write(text.getvalue())


def count(cell: Any, *shapes: Sequence[int]) -> Complexity:
    """Parameters and multiply-adds of every layer of a Cell in evaluation mode.

    Args:
        cell: the network.
        shapes: of its float32 inputs. Nothing is computed, so that any size may be asked for.

    Returns:
        One row per layer; ``modules`` sums them up.

    Raises:
        UserError: the network cannot be compiled for these shapes, or holds an operator that
            multiplies but is not known here.
    """
    graph = trace(cell, *shapes)
    result = Complexity(tuple(tuple(shape) for shape in shapes))
    sizes = _sizes(graph)
    for call in graph.calls:
        multiplications = _multiply_adds(call, sizes)
        owner = _owner(call, graph)
        if multiplications or owner is not None:
            name = call.layer if owner is None else owner
            row = result.layers.setdefault(name, Layer(name))
            row.multiply_adds += multiplications
            row.shape = call.shape
    for parameter in cell.get_parameters():
        if parameter.name.endswith(TRANSIENT):
            continue
        name = parameter.name.rpartition(".")[0]
        row = result.layers.setdefault(name, Layer(name))
        if not parameter.requires_grad:
            row.statistics += parameter.size
            continue
        row.parameters += parameter.size
        row.unused += parameter.size if parameter.name not in graph.parameters else 0
    return result


def _sizes(graph: Trace) -> dict[str, Shape]:
    """Shapes of everything that has a name."""
    return {
        **graph.inputs,
        **graph.parameters,
        **{call.output: call.shape for call in graph.calls},
    }


def _owner(call: Call, graph: Trace) -> str | None:
    """The layer whose parameters a call uses."""
    for name in call.inputs:
        if name in graph.parameters:
            return name.rpartition(".")[0]
    return None


def _multiply_adds(call: Call, sizes: dict[str, Shape]) -> int:
    """Multiplications of one call; 0 for operators that are not counted."""
    if call.operator in _CONVOLUTIONS:
        # A weight is (out, in / groups, ...): one product per weight of a filter and output.
        return math.prod(call.shape) * math.prod(sizes[call.inputs[1]][1:])
    if call.operator in _TRANSPOSED:
        # A weight is (in, out / groups, ...): every input element is multiplied by all of it.
        return math.prod(sizes[call.inputs[0]]) * math.prod(sizes[call.inputs[1]][1:])
    if call.operator in _PRODUCTS:
        left = sizes[call.inputs[0]]
        transposed = len(call.values) > 2 and call.values[2] is True
        inner = left[-2] if transposed and len(left) > 1 else left[-1]
        return math.prod(call.shape) * inner
    if any(word in call.operator for word in _MULTIPLYING):
        raise UserError(
            f"operator {call.operator} of layer '{call.layer}' multiplies, but is not counted; "
            "add it to model_utils/complexity.py"
        )
    return 0
