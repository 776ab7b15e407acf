"""Activation functions."""

from collections.abc import Callable

from model_utils.mindir2onnx.graph import Symbol
from model_utils.mindir2onnx.operators.arithmetic import elementwise, gelu_tanh
from model_utils.mindir2onnx.registry import Call, operator


def _plain(onnx_operator: str, **attributes: float) -> Callable[[Call], Symbol]:
    return lambda call: elementwise(call.graph, onnx_operator, call.tensor(0), **attributes)


for _mindir, _onnx in (
    ("ReLU", "Relu"),
    ("Sigmoid", "Sigmoid"),
    ("Tanh", "Tanh"),
    ("Softplus", "Softplus"),
    ("Softsign", "Softsign"),
    ("SeLU", "Selu"),
    ("HSwish", "HardSwish"),
):
    operator(_mindir)(_plain(_onnx))
operator("HSigmoid")(_plain("HardSigmoid", alpha=1 / 6, beta=0.5))


@operator("ReLU6")
def relu6(call: Call) -> Symbol:
    """min(max(x, 0), 6)."""
    x = call.tensor(0)
    bounds = [call.graph.constant(bound, x.dtype) for bound in (0, 6)]
    return call.graph.add("Clip", [x, *bounds], shape=x.shape)


@operator("SiLU")
def silu(call: Call) -> Symbol:
    """X * sigmoid(x)."""
    x = call.tensor(0)
    return elementwise(call.graph, "Mul", x, elementwise(call.graph, "Sigmoid", x))


@operator("GeLU")
def gelu(call: Call) -> Symbol:
    """MindSpore's GeLU primitive is the tanh form."""
    return gelu_tanh(call.graph, call.tensor(0))


@operator("Mish")
def mish(call: Call) -> Symbol:
    """X * tanh(softplus(x))."""
    x = call.tensor(0)
    gate = elementwise(call.graph, "Tanh", elementwise(call.graph, "Softplus", x))
    return elementwise(call.graph, "Mul", x, gate)


@operator("Elu")
def elu(call: Call) -> Symbol:
    """X above zero, alpha * (exp(x) - 1) below."""
    alpha = call.known(1) if len(call.inputs) > 1 else 1.0
    return elementwise(call.graph, "Elu", call.tensor(0), alpha=float(alpha))


@operator("CeLU")
def celu(call: Call) -> Symbol:
    """X above zero, alpha * (exp(x / alpha) - 1) below."""
    return elementwise(call.graph, "Celu", call.tensor(0), alpha=float(call.known(1)))


@operator("HShrink")
def hard_shrink(call: Call) -> Symbol:
    """Zero within the threshold, x outside."""
    return elementwise(call.graph, "Shrink", call.tensor(0), lambd=float(call.known(1)))


@operator("SoftShrink")
def soft_shrink(call: Call) -> Symbol:
    """Zero within the threshold, x moved towards zero by it outside."""
    limit = float(call.known(1))
    return elementwise(call.graph, "Shrink", call.tensor(0), lambd=limit, bias=limit)


@operator("PReLU")
def prelu(call: Call) -> Symbol:
    """X above zero, slope * x below; one slope or one per channel (axis 1)."""
    x, slope = call.tensor(0), call.tensor(1)
    if x.rank > 2:
        slope = call.graph.reshape(slope, [-1] + [1] * (x.rank - 2))
    return call.graph.add("PRelu", [x, slope], shape=x.shape)


@operator("Softmax", "LogSoftmax")
def softmax(call: Call) -> Symbol:
    """Softmax or its logarithm along one axis."""
    axis = call.known(1)
    (axis,) = axis if isinstance(axis, tuple) else (axis,)
    x = call.tensor(0)
    return call.graph.add(call.node.operator, [x], shape=x.shape, axis=int(axis))
