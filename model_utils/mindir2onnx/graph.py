"""A small builder for ONNX graphs that keeps shapes known at conversion time as plain numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

Shape = tuple[int | None, ...]


class Unsupported(Exception):
    """An operator, or one of its settings, that has no translation; says why."""


@dataclass(frozen=True)
class Symbol:
    """A tensor that exists when the ONNX model runs.

    Attributes:
        name: its name in the ONNX graph.
        dtype: NumPy element type.
        shape: lengths known at conversion time (None: known only when it runs), or None where
            even the number of axes is unknown.
    """

    name: str
    dtype: np.dtype
    shape: Shape | None = None

    @property
    def rank(self) -> int:
        """Number of axes.

        Raises:
            Unsupported: it is unknown.
        """
        if self.shape is None:
            raise Unsupported("the number of axes of its input is unknown")
        return len(self.shape)


# What a name of the MINDIR stands for during conversion: a tensor of the running model, an array,
# number, string or None known now, or a tuple of such values.
Value = Any
# A length or position: known now, or a scalar tensor of the running model.
Integer = int | Symbol


def product(factors: Iterable[int]) -> int:
    """Product of integers; 1 for none."""
    result = 1
    for factor in factors:
        result *= factor
    return result


@dataclass
class GraphBuilder:
    """Collects ONNX nodes and initializers.

    Attributes:
        opset: version of the default operator set that is written.
        scope: prefix of the names of the nodes added next; the layer being converted.
    """

    opset: int
    scope: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, np.ndarray] = field(default_factory=dict)
    _producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    _symbols: dict[str, Symbol] = field(default_factory=dict)
    _constants: dict[tuple, Symbol] = field(default_factory=dict)
    _shapes: dict[str, Symbol] = field(default_factory=dict)
    _lengths: dict[tuple[str, int], Symbol] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    # Tensors that have another one's shape, and reshaped ones with what they were made of.
    _twins: dict[str, Symbol] = field(default_factory=dict)
    _reshaped: dict[str, tuple[Symbol, Value]] = field(default_factory=dict)

    # --- nodes and constants ------------------------------------------------------------------

    def unique(self, base: str) -> str:
        """A name that no other tensor or node has."""
        count = self._names.get(base, 0)
        self._names[base] = count + 1
        return base if count == 0 else self.unique(f"{base}_{count}")

    def add(
        self,
        operator: str,
        inputs: Sequence[Symbol | None],
        *,
        dtype: Any = None,
        shape: Shape | None = None,
        **attributes: Any,
    ) -> Symbol:
        """Append a node with one output.

        Args:
            operator: ONNX operator.
            inputs: its inputs; None for an optional one that is left out.
            dtype: the output's element type; that of the first input by default.
            shape: the output's shape as far as known.
            attributes: ONNX attributes; those that are None are left out.
        """
        types = [dtype if dtype is not None else _first(inputs).dtype]
        return self.add_many(operator, inputs, types, [shape], **attributes)[0]

    def add_many(
        self,
        operator: str,
        inputs: Sequence[Symbol | None],
        dtypes: Sequence[Any],
        shapes: Sequence[Shape | None] | None = None,
        **attributes: Any,
    ) -> list[Symbol]:
        """Append a node with one output per element type given."""
        node_name = self.unique(f"{self.scope}/{operator}" if self.scope else operator)
        shapes = shapes or [None] * len(dtypes)
        suffixes = [""] if len(dtypes) == 1 else [f":{index}" for index in range(len(dtypes))]
        outputs = [
            Symbol(f"{node_name}{suffix}", np.dtype(dtype), shape)
            for suffix, dtype, shape in zip(suffixes, dtypes, shapes, strict=True)
        ]
        node = helper.make_node(
            operator,
            [item.name if item is not None else "" for item in inputs],
            [output.name for output in outputs],
            name=node_name,
            **{key: value for key, value in attributes.items() if value is not None},
        )
        self.nodes.append(node)
        for item in [*inputs, *outputs]:
            if item is not None:
                self._symbols[item.name] = item
        for output in outputs:
            self._producers[output.name] = node
        return outputs

    def producer(self, value: Value) -> onnx.NodeProto | None:
        """The node that computes a tensor, or None for inputs, parameters and constants."""
        return self._producers.get(value.name) if isinstance(value, Symbol) else None

    def symbol(self, name: str) -> Symbol:
        """The tensor of a name that was used before."""
        return self._symbols[name]

    def parameter(self, name: str, array: np.ndarray) -> Symbol:
        """Add an initializer under exactly this name."""
        self._names[name] = 1
        self.initializers[name] = array
        return Symbol(name, array.dtype, array.shape)

    def constant(self, value: Any, dtype: Any = None) -> Symbol:
        """An initializer with this value; equal small ones are shared."""
        array = np.asarray(value, dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)  # Python floats; MindSpore's default is float32 too
        key = (array.dtype.str, array.shape, array.tobytes() if array.size <= 64 else b"")
        if array.size <= 64 and key in self._constants:
            return self._constants[key]
        name = self.unique("constant")
        self.initializers[name] = array
        self._constants[key] = Symbol(name, array.dtype, array.shape)
        return self._constants[key]

    # --- values -------------------------------------------------------------------------------

    def tensor(self, value: Value, dtype: Any = None) -> Symbol:
        """Any numeric value as a tensor of the running model, cast to ``dtype`` if given."""
        if isinstance(value, Symbol):
            return self.cast(value, dtype) if dtype is not None else value
        if isinstance(value, tuple):
            joined = self.integers(value)
            return self.cast(joined, dtype) if dtype is not None else joined
        if value is None or isinstance(value, str):
            raise Unsupported(f"one of its inputs is {value!r}, not a tensor")
        return self.constant(value, dtype)

    def cast(self, value: Symbol, dtype: Any) -> Symbol:
        """The same numbers in another element type."""
        dtype = np.dtype(dtype)
        if value.dtype == dtype:
            return value
        to = helper.np_dtype_to_tensor_dtype(dtype)
        return self.add("Cast", [value], dtype=dtype, shape=value.shape, to=to)

    def common(self, *values: Value, dtype: Any = None) -> list[Symbol]:
        """Tensors of one element type: the given one, or what MindSpore would promote them to."""
        return [self.tensor(value, dtype or promoted(values)) for value in values]

    def shape(self, value: Symbol) -> Symbol:
        """The shape as a one-dimensional int64 tensor of the running model."""
        if value.shape is not None and None not in value.shape:
            return self.constant(value.shape, np.int64)
        value = self._twins.get(value.name, value)
        if value.name not in self._shapes:
            self._shapes[value.name] = self.add(
                "Shape", [value], dtype=np.int64, shape=None if not value.shape else (value.rank,)
            )
        return self._shapes[value.name]

    def length(self, value: Symbol, axis: int) -> Integer:
        """Length of one axis: a number where it is known, else a scalar tensor."""
        axis %= value.rank
        known = value.shape[axis] if value.shape else None
        if known is not None:
            return known
        value = self._twins.get(value.name, value)
        key = (value.name, axis)
        if key not in self._lengths:
            index = self.constant(axis, np.int64)
            self._lengths[key] = self.add("Gather", [self.shape(value), index], shape=(), axis=0)
        return self._lengths[key]

    def lengths(self, value: Symbol) -> tuple[Integer, ...]:
        """Lengths of all axes."""
        return tuple(self.length(value, axis) for axis in range(value.rank))

    def integers(self, value: Value) -> Symbol:
        """Integers as a one-dimensional int64 tensor.

        Args:
            value: one integer, an array, a tensor, or a tuple of integers some of which may be
                known only when the model runs.
        """
        if isinstance(value, Symbol):
            vector = self.cast(value, np.int64)
            if vector.shape == ():
                return self.add("Unsqueeze", [vector, self.constant([0], np.int64)], shape=(1,))
            return vector
        if isinstance(value, tuple | list):
            if any(isinstance(item, Symbol) for item in value):
                parts = [self.integers(item) for item in value]
                return self.add("Concat", parts, shape=(len(parts),), axis=0)
            value = [int(item) for item in value]
        return self.constant(np.atleast_1d(np.asarray(value, np.int64)))

    # --- arithmetic on lengths -----------------------------------------------------------------

    def sum_of(self, a: Integer, b: Integer) -> Integer:
        """A + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self._integer_node("Add", a, b)

    def product_of(self, a: Integer, b: Integer) -> Integer:
        """A * b."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        return self._integer_node("Mul", a, b)

    def quotient_of(self, a: Integer, b: Integer) -> Integer:
        """A // b for non-negative numbers."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b
        return self._integer_node("Div", a, b)

    def _integer_node(self, operator: str, a: Integer, b: Integer) -> Symbol:
        operands = [self.tensor(item, np.int64) for item in (a, b)]
        return self.add(operator, operands, shape=())

    # --- frequent combinations -----------------------------------------------------------------

    def same_shape(self, value: Symbol, like: Symbol) -> Symbol:
        """Note that a tensor has another's shape at run time, so that lengths compare equal."""
        self._twins[value.name] = self._twins.get(like.name, like)
        return value

    def reshaped_from(self, value: Symbol) -> tuple[Symbol, Value] | None:
        """What a reshaped tensor was before, and the shape asked for; None for other tensors."""
        return self._reshaped.get(value.name)

    def reshape(self, value: Symbol, target: Value) -> Symbol:
        """Reshape to a tuple of integers (one may be -1) or to a one-dimensional tensor.

        A chain of reshapes becomes one, or none if it leads back to where it began.
        """
        value, _ = self._reshaped.get(value.name, (value, None))
        if isinstance(target, tuple) and value.shape is not None and len(target) == value.rank:
            if target == self.lengths(value):
                return value
        shape: Shape | None = None
        if isinstance(target, tuple | list | np.ndarray):
            shape = tuple(
                int(n) if not isinstance(n, Symbol) and int(n) >= 0 else None for n in target
            )
            if shape.count(None) == 1 and value.shape and None not in value.shape:
                known = product(n for n in shape if n is not None)
                total = product(n for n in value.shape if n is not None)
                shape = tuple(total // max(known, 1) if n is None else n for n in shape)
        result = self.add("Reshape", [value, self.integers(target)], shape=shape, allowzero=1)
        self._reshaped[result.name] = (value, target)
        return result

    def transpose(self, value: Symbol, order: Sequence[int]) -> Symbol:
        """Permute the axes."""
        order = [axis % len(order) for axis in order]
        shape = tuple(value.shape[axis] for axis in order) if value.shape else None
        return self.add("Transpose", [value], shape=shape, perm=order)

    def unsqueeze(self, value: Symbol, axis: int) -> Symbol:
        """Insert an axis of length one; a negative position counts in the result."""
        axis %= value.rank + 1
        known = tuple(value.shape or ())
        shape = (*known[:axis], 1, *known[axis:])
        return self.add("Unsqueeze", [value, self.constant([axis], np.int64)], shape=shape)

    def squeeze(self, value: Symbol, axes: Sequence[int]) -> Symbol:
        """Remove axes of length one; undoes a preceding ``unsqueeze`` instead of adding to it."""
        axes = sorted(axis % value.rank for axis in axes)
        if not axes:
            return value
        node = self.producer(value)
        if node is not None and node.op_type == "Unsqueeze":
            inserted = self.initializers.get(node.input[1])
            if inserted is not None and inserted.tolist() == axes:
                return self.symbol(node.input[0])
        shape = tuple(n for axis, n in enumerate(value.shape or ()) if axis not in axes)
        return self.add("Squeeze", [value, self.constant(axes, np.int64)], shape=shape)

    def slice(
        self,
        value: Symbol,
        starts: Sequence[Integer],
        ends: Sequence[Integer],
        axes: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> Symbol:
        """Take ``starts[i]:ends[i]:steps[i]`` along ``axes[i]``."""
        inputs = [value, self.integers(tuple(starts)), self.integers(tuple(ends))]
        inputs += [self.integers(tuple(axes))]
        steps = steps or [1] * len(axes)
        inputs += [self.integers(tuple(steps))]
        shape = list(value.shape) if value.shape is not None else None
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            if shape is not None:
                shape[axis] = _slice_length(shape[axis], start, end, step)
        return self.add("Slice", inputs, shape=tuple(shape) if shape is not None else None)

    def reduce(
        self, operator: str, value: Symbol, axes: Sequence[int] | None, keep: bool
    ) -> Symbol:
        """A reduction such as ReduceMean; over all axes for None or an empty sequence."""
        rank = len(value.shape) if value.shape is not None else None
        axes = [axis % rank if rank else axis for axis in axes or ()]
        shape: Shape | None = None
        if value.shape is not None:
            reduced = set(axes) if axes else set(range(value.rank))
            shape = tuple(
                1 if axis in reduced else n
                for axis, n in enumerate(value.shape)
                if keep or axis not in reduced
            )
        # ReduceSum took its axes as an input from opset 13 on, the others from 18 on.
        if operator == "ReduceSum" or self.opset >= 18:
            inputs = [value, self.constant(axes, np.int64)] if axes else [value]
            return self.add(operator, inputs, shape=shape, keepdims=int(keep))
        return self.add(operator, [value], shape=shape, axes=axes or None, keepdims=int(keep))


def promoted(values: Sequence[Value]) -> np.dtype:
    """The element type MindSpore promotes operands to: tensors outweigh Python numbers."""
    tensors = [np.dtype(v.dtype) for v in values if isinstance(v, Symbol | np.ndarray)]
    numbers = [v for v in values if isinstance(v, int | float)]
    floating = [dtype for dtype in tensors if dtype.kind == "f"]
    if floating:
        return max(floating, key=lambda dtype: dtype.itemsize)
    if any(isinstance(number, float) for number in numbers):
        return np.dtype(np.float32)
    if tensors:
        return np.result_type(*tensors)
    return np.dtype(np.int64)


def _first(inputs: Sequence[Symbol | None]) -> Symbol:
    for item in inputs:
        if item is not None:
            return item
    raise ValueError("a node without inputs needs an explicit element type")


def _slice_length(length: int | None, start: Integer, end: Integer, step: int) -> int | None:
    if length is None or isinstance(start, Symbol) or isinstance(end, Symbol):
        return None
    return len(range(*slice(start, end if end > -(2**62) else None, step).indices(length)))
