"""Gradients at layers against NumPy in double precision."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from model_utils.errors import UserError
from model_utils.gradients import (
    LayerGradients,
    effective_receptive_field,
    effective_size,
    find_layer,
    grad_cam,
    stretched,
)
from model_utils.layers import conv2d


class Small(nn.Cell):
    """Two convolutions with a layer in between that is used twice."""

    def __init__(self):
        super().__init__()
        self.first = conv2d(2, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.body = nn.SequentialCell(conv2d(3, 4, 1), nn.ReLU())
        self.split = Pair()

    def construct(self, x):
        """(N, 2, H, W) to (N, 4, H, W)."""
        a, b = self.split(self.relu(self.first(x)))
        return self.body(self.relu(a + b))


class Pair(nn.Cell):
    """Two results."""

    def construct(self, x):
        """Halves of a sum."""
        return x * 0.5, x * 0.5


@pytest.fixture(scope="module")
def network():
    ms.set_seed(5)
    return Small().set_train(False)


IMAGE = np.random.default_rng(2).standard_normal((1, 2, 6, 7)).astype(np.float32)


def test_gradient_at_a_layer(network):
    """Of the output layer by hand: ReLU of a 1 x 1 convolution."""
    probe = LayerGradients(network, find_layer(network, "first"), IMAGE)
    weight = network.body[0].weight.asnumpy()[:, :, 0, 0].astype(np.float64)
    hidden = np.maximum(probe.activation[0].astype(np.float64), 0)
    summed = np.einsum("oc,chw->ohw", weight, hidden)
    np.testing.assert_allclose(probe.output[0], np.maximum(summed, 0), atol=1e-6)
    direction = np.random.default_rng(1).standard_normal(probe.output.shape)
    expected = np.einsum("oc,ohw->chw", weight, direction[0] * (summed > 0)) * (hidden > 0)
    for _ in range(2):
        np.testing.assert_allclose(probe.gradient(direction)[0], expected, atol=1e-6)


def test_hooks_and_mode_are_gone_afterwards(network):
    before = network(ms.Tensor(IMAGE)).asnumpy()
    mode = ms.get_context("mode")
    probe = LayerGradients(network, network.first, IMAGE)
    probe.gradient(np.ones(probe.output.shape))
    assert ms.get_context("mode") == mode == ms.GRAPH_MODE
    np.testing.assert_array_equal(network(ms.Tensor(IMAGE)).asnumpy(), before)
    with pytest.raises(ValueError), _failing(network.first):
        LayerGradients(network, network.first, IMAGE)
    assert ms.get_context("mode") == ms.GRAPH_MODE


class _failing:
    """A layer that raises."""

    def __init__(self, layer):
        self.layer = layer

    def __enter__(self):
        def fail(cell, inputs, result):
            raise ValueError("broken layer")

        self.handle = self.layer.register_forward_hook(fail)

    def __exit__(self, *exception):
        self.handle.remove()


def test_class_activation_map_by_hand():
    activation = np.zeros((2, 2, 3))
    activation[0, 0, 0], activation[1, 1, 2], activation[1, 0, 1] = 4, 5, -3
    gradient = np.zeros((2, 2, 3))
    gradient[0], gradient[1, 1, 2] = -0.5, 12  # means -0.5 and 2
    np.testing.assert_allclose(grad_cam(activation, gradient), [[0, 0, 0], [0, 0, 10]])
    np.testing.assert_allclose(stretched(np.array([[2.0, 4.0, 3.0]])), [[0, 1, 0.5]])
    np.testing.assert_array_equal(stretched(np.full((2, 2), 7.0)), np.zeros((2, 2)))


def test_effective_field_is_the_kernel(network):
    """One convolution: the gradient of a unit is its weights, whatever the image."""
    field = effective_receptive_field(network, network.first, np.repeat(IMAGE, 2, 0), (2, 3))
    weight = network.first.weight.asnumpy().astype(np.float64)
    expected = np.zeros((6, 7))
    expected[1:4, 2:5] = np.abs(weight.sum(axis=0)).sum(axis=0)
    np.testing.assert_allclose(field, expected, atol=1e-6)
    assert effective_size(np.diag([1.0, 0.05, 0.04])) == pytest.approx(np.sqrt(2))


def test_refusals(network):
    with pytest.raises(UserError, match="no layer 'frist'; there are first, relu, body, split"):
        find_layer(network, "frist")
    with pytest.raises(UserError, match="in body there are body.0, body.1"):
        find_layer(network, "body.7")
    with pytest.raises(UserError, match="used 2 times"):
        LayerGradients(network, network.relu, IMAGE)
    with pytest.raises(UserError, match="several results"):
        LayerGradients(network, network.split, IMAGE)
    with pytest.raises(UserError, match=r"unit \(6, 0\) is outside the layer's 6x7 map"):
        effective_receptive_field(network, network.first, IMAGE, (6, 0))
    with pytest.raises(UserError, match="used 0 times"):
        LayerGradients(lambda x: ops.relu(x), network.first, IMAGE)
