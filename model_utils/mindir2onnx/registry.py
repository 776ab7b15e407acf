"""The table of translations, one function per MINDIR operator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_utils.mindir2onnx.graph import GraphBuilder, Symbol, Unsupported, Value
from model_utils.mindir2onnx.mindir import Node, TensorType


@dataclass(frozen=True)
class Call:
    """One operator call as a translation sees it: resolved inputs, attributes and the graph.

    Attributes:
        graph: where to add ONNX nodes.
        node: the MINDIR node.
        inputs: what its inputs stand for.
    """

    graph: GraphBuilder
    node: Node
    inputs: tuple[Value, ...]

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The primitive's attributes."""
        return self.node.attributes

    @property
    def dtype(self) -> np.dtype:
        """Element type that MindSpore declared for the (first) result."""
        declared = self.node.type[0] if isinstance(self.node.type, tuple) else self.node.type
        if not isinstance(declared, TensorType):
            raise Unsupported("its result has no declared type")
        return declared.dtype

    def tensor(self, index: int, dtype: Any = None) -> Symbol:
        """Input ``index`` as a tensor of the running model."""
        return self.graph.tensor(self.inputs[index], dtype)

    def known(self, index: int) -> Any:
        """Input ``index``, which must not depend on what the model is fed.

        Raises:
            Unsupported: it does.
        """
        value = self.inputs[index]
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, Symbol) for part in parts):
            raise Unsupported(f"its input {index} is not a constant")
        return value


Translation = Callable[[Call], Value]
_TRANSLATIONS: dict[str, Translation] = {}


def operator(*names: str) -> Callable[[Translation], Translation]:
    """Decorator: the function translates calls of these MINDIR operators.

    A translation returns what the call's result stands for: a Symbol, a value known at
    conversion time, or a tuple for operators with several results. It need not mind the element
    type MindSpore declared for a result: the converter casts to it.
    """

    def register(function: Translation) -> Translation:
        for name in names:
            if name in _TRANSLATIONS:
                raise ValueError(f"{name} is translated twice")
            _TRANSLATIONS[name] = function
        return function

    return register


def translation(name: str) -> Translation | None:
    """The function that translates an operator, or None."""
    return _TRANSLATIONS.get(name)


def supported_operators() -> list[str]:
    """Names of all MINDIR operators that can be converted."""
    return sorted(_TRANSLATIONS)
