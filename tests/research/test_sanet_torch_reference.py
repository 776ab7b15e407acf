"""The benchmark's PyTorch network must be the published one to be a yardstick."""

import numpy as np
import pytest

from tests import seeded
from tests.research.parity import relative

torch = pytest.importorskip("torch")

from research.sanet.src import torch_reference  # noqa: E402  torch may be missing

UNUSED = ("spp.process", "seghead_d2.", "fc.", "classifier.")


def build(description, heads=True):
    options = description["options"]
    network = torch_reference.SANetTorch(options["variant"], 19, heads)
    weights = {
        name: seeded.parameter(name, shape, description["gain"])
        for name, shape, _ in description["params"]
        if not name.startswith(UNUSED)
    }
    torch_reference.copy_weights(network, weights)
    names = {name for name, _, _ in description["params"] if not name.startswith(UNUSED)}
    return network, names


@pytest.mark.parametrize("fixture", ["SANet_S", "SANet_S_odd", "SANet_L"])
def test_outputs_equal_published_code(fixture):
    description, arrays = seeded.load_fixture(fixture)
    network, names = build(description)
    assert set(network.state_dict()) == names
    image = torch.from_numpy(seeded.network_input("image", description["inputs"]["image"]))
    with torch.inference_mode():
        outputs = network.eval()(image)
        prediction = build(description, heads=False)[0].eval()(image)
    for key, output in zip(("aux", "main", "boundary"), outputs, strict=True):
        assert relative(output.numpy(), arrays[key]) < 2e-5, key
    assert torch.equal(prediction, outputs[1])


@pytest.mark.parametrize("variant", ["M"])
def test_variants_without_stored_outputs_equal_this_network(variant):
    """Two implementations from one description; S and L are compared with the published one."""
    from mindspore import Tensor

    from model_utils.torch_counterpart import pytorch_name
    from research.sanet.src.network import SANetNetwork

    ours = SANetNetwork(variant, 19)
    weights = {}
    for parameter in ours.get_parameters():
        name = pytorch_name(parameter.name)
        weights[name] = seeded.parameter(name, parameter.shape, 0.6)
        parameter.set_data(Tensor(weights[name]))
    ours.set_train(False)
    theirs = torch_reference.SANetTorch(variant, 19, True)
    torch_reference.copy_weights(theirs, weights)
    image = seeded.network_input("image", (1, 3, 72, 136))
    with torch.inference_mode():
        expected = theirs.eval()(torch.from_numpy(image))
    for mine, other in zip(ours(Tensor(image)), expected, strict=True):
        assert relative(mine.asnumpy(), other.numpy()) < 2e-5


def training_fixture():
    """In double precision: batch normalisation over two values multiplies rounding errors."""
    description, arrays = seeded.load_fixture("SANet_S_train")
    network, _ = build(description)
    shape = description["inputs"]["train_image"]
    batch = (
        torch.from_numpy(seeded.network_input("train_image", shape)).double(),
        torch.from_numpy(arrays["label"].astype(np.int64)),
        torch.from_numpy(arrays["edge"].astype(np.float64)),
    )
    weights = torch.tensor(description["options"]["class_weights"], dtype=torch.float64)
    return description, arrays, network.double().train(), batch, weights


def test_two_steps_equal_published_training():
    description, arrays, network, batch, weights = training_fixture()
    step = torch_reference.train_step(network, description["options"]["sgd"]["lr"], weights)
    trajectory = [step(*batch), step(*batch)]
    stepped = {name: value.detach().clone() for name, value in network.named_parameters()}
    trajectory.append(step(*batch))
    expected = np.array(description["values"]["loss_trajectory_fp64"])[:, :4]
    np.testing.assert_allclose(trajectory, expected, rtol=1e-9)
    norms = dict(zip(description["final_names"], arrays["final_norm"], strict=True))
    for name, value in stepped.items():
        assert float(value.norm()) == pytest.approx(norms[name], rel=1e-6), name


def test_gradients_equal_published_code():
    description, arrays, network, batch, weights = training_fixture()
    image, label, edge = batch
    torch_reference.losses(network(image), label, edge, class_weights=weights)[0].backward()
    found = {name: float(p.grad.norm()) for name, p in network.named_parameters()}
    expected = dict(zip(description["grad_norm_names"], arrays["grad_norm"], strict=True))
    assert found.keys() == expected.keys()
    # A BatchNorm follows: their true gradients are zero.
    for name in found.keys() - {"stom.0.bias", "stom.3.bias"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


def test_losses_without_a_valid_or_hard_pixel_are_zero():
    aux = torch.zeros(1, 4, 2, 2, requires_grad=True)
    main = torch.full((1, 4, 2, 2), -50.0)
    main[:, 3] = 50.0  # certain, and right
    boundary = torch.zeros(1, 1, 2, 2)
    ignored = torch.full((1, 8, 8), 255)
    edge = torch.zeros(1, 8, 8)
    for label in (ignored, torch.full((1, 8, 8), 3)):
        total, semantic, border, aware = torch_reference.losses((aux, main, boundary), label, edge)
        share = 0.0 if label is ignored else 1.0
        assert semantic.item() == pytest.approx(share * 0.4 * np.log(4))
        assert border.item() == 0.0  # without an edge the others weigh nothing
        assert aware.item() == 0.0
        assert total.item() == pytest.approx(semantic.item())
