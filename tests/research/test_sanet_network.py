"""SANet's network and modules against outputs and gradients of the published code."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from model_utils.torch_counterpart import pytorch_name
from research.sanet.src.network import SADecoder, SANetClassifier, SANetNetwork
from research.sanet.src.prediction import Prediction
from research.sanet.src.pyramid_pooling import APPPM, DAPPM, POOLINGS
from tests import seeded
from tests.research.parity import fill, relative

# Stored by the reference, never used by its forward pass.
UNUSED = {"spp", "seghead_d2", "fc", "classifier"}


@pytest.mark.parametrize("name", ["SANet_S", "SANet_S_odd", "SANet_L"])
def test_outputs_equal_published_code(name):
    description, arrays = seeded.load_fixture(name)
    network = SANetNetwork(description["options"]["variant"], 19)
    unused = fill(network, description["params"], description["gain"])
    assert {n.split(".")[0] for n in unused} <= UNUSED
    assert all("process" in n for n in unused if n.startswith("spp"))
    network.set_train(False)
    image = seeded.network_input("image", description["inputs"]["image"])
    for repeat in range(3):
        outputs = [output.asnumpy() for output in network(Tensor(image))]
        for key, output in zip(("aux", "main", "boundary"), outputs, strict=True):
            assert relative(output, arrays[key]) < 1e-5, key
        other = network(Tensor(image[:, :, ::-1].copy() + repeat))[1].asnumpy()
        assert relative(other, arrays["main"]) > 1e-2
    if name != "SANet_S":
        return
    part = Prediction(network)
    part.set_train(False)
    assert relative(part(Tensor(image)).asnumpy(), arrays["main"]) < 1e-5


def test_imagenet_build_equals_published_code():
    description, arrays = seeded.load_fixture("SANet_S_imagenet")
    network = SANetClassifier("S", 1000)
    unused = fill(network, description["params"], description["gain"])
    assert {n.split(".")[0] for n in unused} <= {
        *("spp", "fc", "seghead_extra", "seghead_d", "seghead_d2", "final_layer")
    }
    network.set_train(False)
    image = seeded.network_input("image_cls", description["inputs"]["image_cls"])
    for _ in range(3):
        assert relative(network(Tensor(image)).asnumpy(), arrays["logits"]) < 1e-5
        assert relative(network(Tensor(image * 0.5)).asnumpy(), arrays["logits"]) > 1e-3


@pytest.mark.parametrize(
    ("variant", "used", "trained"),
    [("S", 8_264_820, 8_377_384), ("M", 11_901_428, 12_013_992), ("L", 17_957_620, 18_070_184)],
)
def test_parameter_counts(variant, used, trained):
    network = SANetNetwork(variant, 19)
    heads = sum(
        p.size
        for head in (network.seghead_extra, network.seghead_d)
        for p in head.trainable_params()
    )
    total = sum(p.size for p in network.trainable_params())
    assert (total, total - heads) == (trained, used)


@pytest.mark.parametrize("size", [(1, 1), (131, 65)])
def test_any_input_size(size):
    network = SANetNetwork("S", 5, seed=1)
    network.set_train(False)
    image = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    aux, main, boundary = network(Tensor(image))
    eighth = tuple(-(-side // 8) for side in size)
    assert main.shape == (2, 5, *eighth) and boundary.shape == (2, 1, *eighth)
    assert aux.shape == (2, 5, *(-(-side // 16) for side in size))
    assert all(np.isfinite(x.asnumpy()).all() for x in (aux, main, boundary))


class Weighted(nn.Cell):
    """sum(output * cotangent) and the output, with gradients of inputs and parameters."""

    def __init__(self, cell, cotangent):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.cotangent = Tensor(cotangent)
        self.differentiate = ms.value_and_grad(
            self.total, tuple(range(cell.count)), cell.trainable_params(), has_aux=True
        )

    def total(self, *inputs):
        output = self.cell(*inputs)
        return (output * self.cotangent).sum(), output

    def construct(self, *inputs):
        (_, output), gradients = self.differentiate(*inputs)
        return output, gradients


MODULES = {
    "SANet_apppm": (lambda: APPPM(512, 128, 128), ["apppm_x"]),
    "SANet_dappm": (lambda: DAPPM(512, 128, 128), ["dappm_x"]),
    "SANet_sad": (lambda: SADecoder(128, 64, "add"), [f"sad_{k}" for k in ("d1", "d2", "x", "y")]),
    "SANet_sad_cat": (
        lambda: SADecoder(128, 64, "cat"),
        [f"sad_cat_{k}" for k in ("d1", "d2", "x", "y")],
    ),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_modules_equal_published_code(name, mode):
    build, inputs = MODULES[name]
    description, arrays = seeded.load_fixture(name)
    cell = build()
    cell.count = len(inputs)
    fill(cell, description["params"], description["gain"])
    cell.set_train(mode == "train")
    values = [seeded.network_input(n, description["inputs"][n]) for n in inputs]
    count, channels, *sides = arrays[mode].shape
    cotangent = seeded.network_input(
        f"{inputs[0].rpartition('_')[0]}_cot", (count, 4 * channels, *sides)
    )
    run = Weighted(cell, cotangent)
    norms = description["values"][mode]["param_grad_norm"]
    for _ in range(3):
        output, (by_input, by_parameter) = run(*map(Tensor, values))
        assert relative(output.asnumpy()[:, ::4], arrays[mode]) < 1e-5
        by_input = by_input if isinstance(by_input, tuple) else (by_input,)
        for n, gradient in zip(inputs, by_input, strict=True):
            assert relative(gradient.asnumpy()[:, ::16], arrays[f"{mode}_grad_{n}"]) < 1e-4, n
        for parameter, gradient in zip(cell.trainable_params(), by_parameter, strict=True):
            expected = norms[pytorch_name(parameter.name)]
            assert np.linalg.norm(gradient.asnumpy()) == pytest.approx(expected, rel=5e-3, abs=1e-4)
        run(*(Tensor(v * 0.5) for v in values))


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_every_pooling_keeps_the_size_and_reaches_everywhere(pooling):
    cell = POOLINGS[pooling](16, 8, 8)
    cell.set_train(False)
    draw = np.random.default_rng(2)
    for shape in ((1, 16, 8, 16), (2, 16, 5, 7), (1, 16, 1, 1)):
        x = draw.uniform(0, 1, shape).astype(np.float32)
        y = cell(Tensor(x)).asnumpy()
        assert y.shape == (shape[0], 8, *shape[2:])
        # A change in one corner reaches the opposite one: the global branch.
        x[:, :, 0, 0] += 5
        assert np.abs(cell(Tensor(x)).asnumpy()[:, :, -1, -1] - y[:, :, -1, -1]).max() > 1e-6


def test_initial_weights_follow_the_published_rule():
    network = SANetNetwork("S", 19, seed=0)
    weight = network.layer3[1].conv1.weight.asnumpy()
    assert weight.std() == pytest.approx(np.sqrt(2 / (128 * 9)), rel=0.02)
    assert np.abs(network.stom[0].bias.asnumpy()).max() <= 1 / np.sqrt(27)
    again = SANetNetwork("S", 19, seed=0).layer3[1].conv1.weight.asnumpy()
    np.testing.assert_array_equal(weight, again)
    assert not np.array_equal(
        weight, SANetNetwork("S", 19, seed=1).layer3[1].conv1.weight.asnumpy()
    )
