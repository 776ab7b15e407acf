"""SDNet's network against outputs, gradients and one optimizer step of the published code."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from research.sdnet.src.losses import SDNetLoss, SDNetTrainCell
from research.sdnet.src.network import (
    DESCRIPTOR_SIZE,
    DescriptorOnly,
    SDNetNetwork,
    normalize_patch,
)
from tests import seeded

OUTPUTS = ("opt_e", "sar_e", "opt_lower_nor", "sar_lower_nor", "opt_recon", "sar_recon")


def fill(network, params, name_map, affine):
    """Give every parameter its fixture value; gamma and beta only if ``affine``."""
    own = network.parameters_dict()
    filled = set()
    for name, shape, _ in params:
        target = name_map[name]
        assert list(own[target].shape) == shape
        value = seeded.parameter(name, shape)
        if not affine and target.endswith("gamma"):
            value = np.ones(shape, np.float32)
        if not affine and target.endswith("beta"):
            value = np.zeros(shape, np.float32)
        own[target].set_data(Tensor(value))
        filled.add(target)
    return set(own) - filled


class Gradients(nn.Cell):
    """Losses and gradients of a training cell, without an update."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.differentiate = ms.value_and_grad(
            self.losses, None, cell.trainable_params(), has_aux=True
        )

    def losses(self, opt, sar):
        values = self.cell(opt, sar)
        return values[0], values

    def construct(self, opt, sar):
        (_, values), gradients = self.differentiate(opt, sar)
        return values, gradients


class Update(nn.Cell):
    """Gradients followed by one step of the optimizer."""

    def __init__(self, cell, optimizer):
        super().__init__(auto_prefix=False)
        self.gradients = Gradients(cell)
        self.optimizer = optimizer

    def construct(self, opt, sar):
        values, gradients = self.gradients(opt, sar)
        self.optimizer(gradients)
        return values[0]


class Patch(nn.Cell):
    def construct(self, x):
        return normalize_patch(x)


@pytest.fixture(scope="module")
def forward_fixture():
    return seeded.load_fixture("SDNet")


@pytest.fixture(scope="module")
def train_fixture():
    return seeded.load_fixture("SDNet_train")


@pytest.fixture(scope="module")
def name_map(forward_fixture):
    return forward_fixture[0]["name_map"]


@pytest.mark.parametrize("variant", ["plain", "affine"])
def test_outputs_equal_published_code(forward_fixture, name_map, variant):
    description, arrays = forward_fixture
    network = SDNetNetwork()
    left = fill(network, description["params"], name_map, variant == "affine")
    assert left == {"model.embedding.13.dropout_calls"}
    network.set_train(False)
    inputs = [
        Tensor(seeded.network_input(name, description["inputs"][name]))
        for name in ("opt_img", "sar_img")
    ]
    decoy = [Tensor(-2.0 * x.asnumpy() + 1.0) for x in inputs]
    for _ in range(3):
        outputs = [output.asnumpy() for output in network(*inputs)]
        for name, output in zip(OUTPUTS, outputs, strict=True):
            # The framework's tanh alone is off by up to 1e-4 (fixture's note).
            tolerance = 1.5e-4 if name.endswith("recon") else 2e-6
            np.testing.assert_allclose(
                output, arrays[f"{variant}_{name}"], rtol=0, atol=tolerance, err_msg=name
            )
        other = network(*decoy)[0].asnumpy()
        assert np.abs(other - outputs[0]).max() > 1e-2


def test_descriptor_only_is_the_network_without_the_rest():
    network = SDNetNetwork(seed=3)
    network.set_train(False)
    part = DescriptorOnly(network)
    part.set_train(False)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        opt, sar = (Tensor(draw.uniform(-1, 1, (3, 1, 64, 64)).astype(np.float32)) for _ in "ab")
        whole = network(opt, sar)
        for mine, theirs in zip(part(opt, sar), whole[:2], strict=True):
            np.testing.assert_allclose(mine.asnumpy(), theirs.asnumpy(), atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(mine.asnumpy(), axis=1), 1, atol=1e-5)
    # Checkpoints of the part are checkpoints of the network.
    assert set(part.parameters_dict()) < set(network.parameters_dict())


def test_parameter_names_and_counts(forward_fixture, name_map):
    description, _ = forward_fixture
    network = SDNetNetwork()
    assert [p.name for p in network.trainable_params()] == [
        name_map[name] for name in description["trainable"]
    ]
    count = sum(p.size for p in network.trainable_params())
    assert count == description["parameter_count"] == 1_351_082
    weights = [p for p in network.get_parameters() if not p.name.endswith("dropout_calls")]
    assert {p.name for p in weights} == set(name_map.values())
    assert sum(p.size for p in weights) == description["parameter_count_with_buffers"]


def whole_or_part(kind, name, values, arrays):
    key = f"{kind}:{name}"
    if key in arrays:
        return key, values
    return f"{kind}sub:{name}", values.reshape(-1)[:: max(1, values.size // 256)]


def close_gradient(name, gradient, arrays):
    """Within 5e-5 of the fixture's largest value, the fixture's own tolerance."""
    key, values = whole_or_part("grad", name, gradient, arrays)
    limit = 5e-5 * np.abs(arrays[key]).max()
    np.testing.assert_allclose(values, arrays[key], rtol=0, atol=limit, err_msg=key)


def train_inputs(description):
    return [
        Tensor(np.tanh(seeded.network_input(name, shape)))
        for name, shape in description["inputs"].items()
    ]


def test_gradients_equal_published_code_in_every_run(train_fixture, name_map):
    description, arrays = train_fixture
    network = SDNetNetwork(dropout=0.0)
    fill(network, description["params"], name_map, affine=False)
    cell = SDNetTrainCell(network, SDNetLoss())
    cell.set_train(True)
    gradients = Gradients(cell)
    inputs = train_inputs(description)
    decoy = [Tensor(0.5 * x.asnumpy()[::-1].copy() + 0.1) for x in inputs]
    for _ in range(3):
        losses, found = gradients(*inputs)
        assert float(losses[0]) == pytest.approx(description["values"]["loss"], rel=1e-6)
        for parameter, gradient in zip(cell.trainable_params(), found, strict=True):
            close_gradient(parameter.name, gradient.asnumpy(), arrays)
        assert abs(float(gradients(*decoy)[0][0]) - float(losses[0])) > 1e-4


def test_statistics_and_weights_after_one_adam_step(train_fixture, name_map):
    description, arrays = train_fixture
    network = SDNetNetwork(dropout=0.0)
    fill(network, description["params"], name_map, affine=False)
    cell = SDNetTrainCell(network, SDNetLoss())
    cell.set_train(True)
    adam = description["options"]["adam"]
    optimizer = nn.Adam(
        cell.trainable_params(),
        adam["lr"],
        adam["beta1"],
        adam["beta2"],
        adam["eps"],
        weight_decay=1e-4,
    )
    loss = Update(cell, optimizer)(*train_inputs(description))
    assert float(loss) == pytest.approx(description["values"]["loss"], rel=1e-6)
    own = {name: value.asnumpy() for name, value in network.parameters_dict().items()}
    statistics = [key for key in arrays if key.startswith("bn:")]
    assert len(statistics) == 28  # 14 layers
    for key in statistics:
        np.testing.assert_allclose(
            own[name_map[key[3:]]], arrays[key], rtol=0, atol=2e-6, err_msg=key
        )
    for parameter in cell.trainable_params():
        key, values = whole_or_part("after", parameter.name, own[parameter.name], arrays)
        gradient = arrays[key.replace("after", "grad")]
        # Adam's first step is about lr * sign(gradient): small gradients may flip.
        sure = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
        assert sure.mean() >= 0.5
        np.testing.assert_allclose(values[sure], arrays[key][sure], rtol=0, atol=2e-6, err_msg=key)


def test_initial_convolutions_are_semi_orthogonal_times_0_6():
    network = SDNetNetwork(seed=5)
    checked = 0
    for name, cell in network.cells_and_names():
        if isinstance(cell, nn.Conv2d) and not isinstance(cell, nn.Conv2dTranspose):
            matrix = cell.weight.asnumpy().reshape(cell.weight.shape[0], -1).astype(np.float64)
            short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            product = short @ short.T
            np.testing.assert_allclose(product, 0.36 * np.eye(len(short)), atol=1e-6, err_msg=name)
            checked += 1
    assert checked == 14


def test_initial_transposed_convolutions_are_uniform_within_bounds():
    network = SDNetNetwork(seed=5)
    transposed = [c for _, c in network.cells_and_names() if isinstance(c, nn.Conv2dTranspose)]
    assert len(transposed) == 3
    for cell in transposed:
        bound = 1 / np.sqrt(np.prod(cell.weight.shape[1:]))
        values = np.concatenate([cell.weight.asnumpy().ravel(), cell.bias.asnumpy().ravel()])
        assert np.abs(values).max() <= bound
        # Standard deviation of a uniform variable: bound / sqrt(3), to its sampling error.
        assert np.std(values) == pytest.approx(bound / np.sqrt(3), rel=3 / np.sqrt(len(values)))


def test_seed_decides_initial_weights():
    same, again, other = (SDNetNetwork(seed=seed) for seed in (1, 1, 2))
    for first, second, third in zip(
        same.trainable_params(), again.trainable_params(), other.trainable_params(), strict=True
    ):
        np.testing.assert_array_equal(first.asnumpy(), second.asnumpy())
        assert np.abs(first.asnumpy() - third.asnumpy()).max() > 0


def test_normalize_patch_against_float64_and_constant_patch():
    cell = Patch()
    for seed in range(3):
        x = np.random.default_rng(seed).normal(3, 2, (4, 1, 64, 64)).astype(np.float32)
        x[1] = 0.7
        wide = x.astype(np.float64)
        centred = wide - wide.mean(axis=(1, 2, 3), keepdims=True)
        expected = centred / (wide.std(axis=(1, 2, 3), keepdims=True) + 1e-7)
        found = cell(Tensor(x)).asnumpy()
        np.testing.assert_allclose(found[[0, 2, 3]], expected[[0, 2, 3]], atol=3e-6)
        # Rounding leaves the mean of a constant patch off by an ulp, over a deviation of 1e-7.
        assert np.abs(found[1]).max() <= 1


def test_training_drops_out_and_evaluation_does_not():
    network = SDNetNetwork(seed=0)
    x = Tensor(np.random.default_rng(0).uniform(-1, 1, (4, 1, 64, 64)).astype(np.float32))
    network.set_train(False)
    first, second = (network(x, x)[0].asnumpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert int(network.parameters_dict()["model.embedding.13.dropout_calls"].asnumpy()[0]) == 0
    network.set_train(True)
    first, second = (network(x, x)[0].asnumpy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    # The shared embedding runs once per modality.
    assert int(network.parameters_dict()["model.embedding.13.dropout_calls"].asnumpy()[0]) == 4


def test_descriptor_size():
    assert SDNetNetwork().model.embedding[14].weight.shape == (DESCRIPTOR_SIZE, 128, 8, 8)


def test_torch_reference_has_the_same_outputs(forward_fixture, name_map):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from research.sdnet.src import torch_reference

    description, arrays = forward_fixture
    network = torch_reference.SDNetTorch().eval()
    weights = {
        name_map[name]: seeded.parameter(name, shape) for name, shape, _ in description["params"]
    }
    torch_reference.copy_weights(network, weights)
    inputs = [
        torch.from_numpy(seeded.network_input(name, shape))
        for name, shape in description["inputs"].items()
    ]
    with torch.inference_mode():
        outputs = network(*inputs)
    for name, output in zip(OUTPUTS, outputs, strict=True):
        tolerance = 1.5e-4 if name.endswith("recon") else 2e-6
        np.testing.assert_allclose(
            output.numpy(), arrays[f"plain_{name}"], rtol=0, atol=tolerance, err_msg=name
        )


def test_torch_reference_takes_the_same_step(train_fixture, name_map):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from research.sdnet.src import torch_reference

    description, arrays = train_fixture
    network = torch_reference.SDNetTorch(dropout=0.0).train()
    weights = {
        name_map[name]: seeded.parameter(name, shape) for name, shape, _ in description["params"]
    }
    torch_reference.copy_weights(network, weights)
    step = torch_reference.train_step(network, description["options"]["adam"]["lr"])
    (loss,) = step(*(torch.from_numpy(x.asnumpy()) for x in train_inputs(description)))
    assert loss == pytest.approx(description["values"]["loss"], rel=1e-6)
    # Gradients, not weights: PyTorch's Adam places epsilon elsewhere, which the decoder's
    # gradients of 1e-5 feel.
    for name, parameter in network.named_parameters():
        close_gradient(name, parameter.grad.numpy(), arrays)
