"""Fewer layers that compute the same, for inference: what only training needs is multiplied out.

In evaluation BatchNorm scales and shifts each channel by constants, so a convolution in front of
it can do that itself. A 1 x 1 convolution in front of another convolution is one matrix product
too many. ONNX Runtime does the first when it loads a file and never the second; MindSpore does
neither. All is exact in real numbers; in float32 results differ by rounding, about 1e-6 of their
magnitude.
"""

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from model_utils.errors import UserError
from model_utils.tracing import Call, Trace, trace

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Folded:
    """A network with fewer layers.

    Attributes:
        cell: the network, set to evaluation; it shares nothing with the original.
        norms: names of the BatchNorms that are gone.
        pointwise: names of the 1 x 1 convolutions that are gone.
    """

    cell: nn.Cell
    norms: tuple[str, ...]
    pointwise: tuple[str, ...]


class Gone(nn.Cell):
    """In the place of a layer that was folded: hands its input on."""

    def construct(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x


def _with_inputs(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A convolution like ``conv``, without bias, for another number of input channels."""
    return nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        pad_mode=conv.pad_mode,
        padding=conv.padding,
        dilation=conv.dilation,
        has_bias=False,
    )


class BorderedConv(nn.Cell):
    """A convolution of x + c with zero padding, where c is one constant per channel.

    Not a bias: c lies inside the image only, the padding around it stays zero. The second
    convolution, of an image of ones, has one channel.

    Args:
        conv: the convolution; its padding is taken over.
        constants: c, (in_channels,).
    """

    def __init__(self, conv: nn.Conv2d, constants: np.ndarray) -> None:
        super().__init__()
        self.conv = conv
        weight = np.einsum("oihw,i->ohw", conv.weight.asnumpy().astype(np.float64), constants)
        self.ones_conv = _with_inputs(conv, 1)
        self.ones_conv.weight.set_data(Tensor(weight[:, None].astype(np.float32)))

    def construct(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to the convolution's shape."""
        ones = ops.ones_like(x[:1, :1])
        return self.conv(x) + self.ones_conv(ones)


def fold(cell: nn.Cell, *shapes: Sequence[int]) -> Folded:
    """A copy of a network in which BatchNorm and 1 x 1 convolutions are multiplied into others.

    What follows what is read from the network's graph, not guessed from names, and only what is
    used once, by one layer, is touched:

    - Conv2d, BatchNorm: one Conv2d with a bias;
    - Conv2d 1 x 1 (stride 1, no padding, one group), Conv2d (one group): one Conv2d, if that
      takes fewer multiplications.

    Args:
        cell: the network; left as it is.
        shapes: of its float32 inputs, any that it takes.

    Raises:
        UserError: MindSpore cannot compile the network for these shapes.
    """
    graph = trace(cell, *shapes)
    # MindSpore keeps what it compiled beside a Cell's id; a copy compiles anew.
    result = copy.deepcopy(cell)
    result.set_train(False)
    members = dict(result.cells_and_names())
    owners = _owners(members)
    users = Counter(name for call in graph.calls for name in call.inputs)
    users.update(graph.outputs)
    norms = [_fold_norm(result, owners, pair) for pair in _pairs(graph, users, "BatchNorm", owners)]
    pointwise = [
        _fold_pointwise(result, owners, pair)
        for pair in _pairs(graph, users, "Conv2D", owners)
        if _worthwhile(*(owners[name] for name in pair))
    ]
    _name_parameters(result, cell)
    log.debug("folded %d BatchNorms and %d convolutions", len(norms), len(pointwise))
    return Folded(result, tuple(norms), tuple(pointwise))


def _owners(members: dict[str, nn.Cell]) -> dict[str, nn.Cell]:
    """Cells by the name of their weight or gamma; those used under two names are left out."""
    counts = Counter(id(cell) for cell in members.values())
    found = {}
    for cell in members.values():
        if counts[id(cell)] > 1:
            continue
        if isinstance(cell, nn.Conv2d):
            found[cell.weight.name] = cell
        elif isinstance(cell, nn.BatchNorm2d):
            found[cell.gamma.name] = cell
    return found


def _pairs(
    graph: Trace, users: Counter[str], following: str, owners: dict[str, nn.Cell]
) -> list[tuple[str, str]]:
    """Parameter names of a convolution and of the only layer that uses its result."""
    makers: dict[str, Call] = {}
    pairs = []
    for call in graph.calls:
        makers[call.output] = call
        if call.operator != following:
            continue
        before = makers.get(call.inputs[0])
        if before is not None and before.operator == "BiasAdd" and users[before.output] == 1:
            before = makers.get(before.inputs[0])
        if before is None or before.operator != "Conv2D" or users[before.output] != 1:
            continue
        if users[call.inputs[0]] != 1:
            continue
        names = (before.inputs[1], call.inputs[1])
        # A weight that serves two calls cannot be changed for one of them.
        if all(name in owners and users[name] == 1 for name in names):
            pairs.append(names)
    return pairs


def _fold_norm(network: nn.Cell, owners: dict[str, nn.Cell], pair: tuple[str, str]) -> str:
    conv, norm = (owners[name] for name in pair)
    gamma, beta, mean, variance = (
        item.asnumpy().astype(np.float64)
        for item in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    scale = gamma / np.sqrt(variance + norm.eps)
    weight = conv.weight.asnumpy() * scale[:, None, None, None]
    _set(conv, weight, beta + (_bias(conv) - mean) * scale)
    return _replace(network, norm, Gone())


def _worthwhile(first: nn.Conv2d, second: nn.Conv2d) -> bool:
    """Whether both can become one convolution that takes fewer multiplications."""
    if first.kernel_size != (1, 1) or first.stride != (1, 1) or first.group != 1:
        return False
    if second.group != 1 or np.any(first.padding):
        return False
    area = int(np.prod(second.kernel_size))
    separate = first.in_channels * first.out_channels * int(np.prod(second.stride))
    separate += area * second.in_channels * second.out_channels
    return area * first.in_channels * second.out_channels < separate


def _fold_pointwise(network: nn.Cell, owners: dict[str, nn.Cell], pair: tuple[str, str]) -> str:
    first, second = (owners[name] for name in pair)
    constants = _bias(first)
    outer = second.weight.asnumpy().astype(np.float64)
    inner = first.weight.asnumpy().astype(np.float64)[:, :, 0, 0]
    merged = _with_inputs(second, first.in_channels)
    _set(merged, np.einsum("omhw,mi->oihw", outer, inner), _bias(second))
    replacement: nn.Cell = merged
    if np.any(constants):
        replacement = BorderedConv(second, constants)
        replacement.conv = merged
    _replace(network, second, replacement)
    return _replace(network, first, Gone())


def _bias(conv: nn.Conv2d) -> np.ndarray:
    if not conv.has_bias:
        return np.zeros(conv.out_channels)
    return conv.bias.asnumpy().astype(np.float64)


def _set(conv: nn.Conv2d, weight: np.ndarray, bias: np.ndarray) -> None:
    conv.weight.set_data(Tensor(weight.astype(np.float32)))
    value = Tensor(bias.astype(np.float32))
    if conv.has_bias:
        conv.bias.set_data(value)
        return
    conv.bias = Parameter(value, name="bias")
    conv.has_bias = True


def _replace(network: nn.Cell, old: nn.Cell, new: nn.Cell) -> str:
    """Put another layer where one is; returns its name."""
    for path, parent in network.cells_and_names():
        for key, member in parent.name_cells().items():
            if member is not old:
                continue
            if isinstance(parent, nn.SequentialCell):
                parent[list(parent.name_cells()).index(key)] = new
            else:
                setattr(parent, key, new)
            new.set_train(False)
            return f"{path}.{key}" if path else key
    raise UserError("a layer to be folded is the network itself; put it into a Cell")


def _name_parameters(network: nn.Cell, original: nn.Cell) -> None:
    """Names of new parameters, by the layer they are in."""
    known = {parameter.name for parameter in original.get_parameters()}
    prefix = _wrapper(original)
    for path, member in network.cells_and_names():
        for key, parameter in member.parameters_and_names(expand=False):
            if parameter.name not in known:
                parameter.name = ".".join(part for part in (path, key) if part).removeprefix(prefix)


def _wrapper(network: nn.Cell) -> str:
    """What precedes parameter names in layer names: Cells built with auto_prefix=False."""
    for path, member in network.cells_and_names():
        for key, parameter in member.parameters_and_names(expand=False):
            full = f"{path}.{key}"
            if full.endswith(f".{parameter.name}"):
                return full.removesuffix(parameter.name)
    return ""


def folded_or_same(cell: Any, *shapes: Sequence[int]) -> Any:
    """The folded network, or the network itself if its graph cannot be read; says why."""
    try:
        return fold(cell, *shapes).cell
    except UserError as error:
        log.warning("BatchNorm is not folded: %s", error)
        return cell
