"""Names, weights and the eager step of networks in PyTorch."""

import numpy as np
import pytest

from model_utils.torch_counterpart import TrainStep, copy_weights, pytorch_name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("layer.1.gamma", "layer.1.weight"),
        ("layer.1.moving_variance", "layer.1.running_var"),
        ("layer.0.weight", "layer.0.weight"),
        ("layer.0.running_mean", "layer.0.running_mean"),
        ("beta", "bias"),
    ],
)
def test_names_of_either_framework_become_pytorchs(ours, theirs):
    assert pytorch_name(ours) == theirs


def weights():
    rng = np.random.default_rng(0)
    shapes = {
        "0.weight": (2, 3, 1, 1),
        "1.gamma": (2,),
        "1.beta": (2,),
        "1.moving_mean": (2,),
        "1.moving_variance": (2,),
    }
    return {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}


def module():
    nn = pytest.importorskip("torch").nn
    return nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2))


def test_weights_by_mindspores_names():
    arrays, network = weights(), module()
    copy_weights(network, {**arrays, "head.weight": np.ones(1)}, spare=r"head\..*")
    for name, array in arrays.items():
        np.testing.assert_array_equal(network.state_dict()[pytorch_name(name)].numpy(), array)


def test_weights_that_do_not_fit_are_refused():
    arrays, network = weights(), module()
    with pytest.raises(ValueError, match=r"missing \[\], unexpected \['fc.weight'\]"):
        copy_weights(network, {**arrays, "fc.weight": np.zeros(1, np.float32)})
    del arrays["1.gamma"]
    with pytest.raises(ValueError, match=r"missing \['1.weight'\], unexpected \[\]"):
        copy_weights(network, arrays)


def test_the_first_loss_is_minimised():
    torch = pytest.importorskip("torch")
    value = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = torch.optim.SGD([value], lr=0.1)
    step = TrainStep(lambda x: (value * value * x, -100 * value), optimizer)
    assert step(torch.tensor(2.0)) == [18.0, -300.0]
    # 3 - 0.1 * 2 * 3 * 2, and no gradient of the step before.
    assert step(torch.tensor(0.0))[1] == pytest.approx(-180)
    assert float(value.detach()) == pytest.approx(1.8)
