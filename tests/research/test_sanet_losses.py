"""SANet's losses and two optimizer steps against the published training code."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn

from model_utils.distributed import Ranks
from model_utils.optimizers import OptimizerConfig, build_optimizer
from model_utils.segmentation_losses import NegativeLogLikelihood, limit_below
from model_utils.torch_counterpart import pytorch_name
from model_utils.training import TrainStep
from research.sanet.src.losses import (
    HardExamples,
    SANetLoss,
    SANetTrainCell,
)
from research.sanet.src.network import SANetNetwork
from tests import seeded
from tests.research.parity import fill, relative


@pytest.fixture(scope="module")
def fixture():
    return seeded.load_fixture("SANet_losses")


class Differentiated(nn.Cell):
    """A cell's outputs and the gradients of the first one by the first inputs."""

    def __init__(self, cell, inputs):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.differentiate = ms.value_and_grad(self.run, tuple(range(inputs)), None, has_aux=True)

    def run(self, *inputs):
        values = self.cell(*inputs)
        return values[0], values

    def construct(self, *inputs):
        (_, values), gradients = self.differentiate(*inputs)
        return values, gradients


class Hard(nn.Cell):
    """OHEM cross entropy of logits and labels."""

    def __init__(self, threshold, keep, weights):
        super().__init__()
        self.likelihood = NegativeLogLikelihood(19)
        self.hard = HardExamples(threshold, keep)
        table = np.zeros(256, np.float32)
        table[:19] = weights
        self.table = Tensor(table)

    def construct(self, logits, label):
        loss, _ = self.likelihood(logits, label)
        valid = (label != 255).astype(ms.float32)
        return (self.hard(loss * ms.ops.gather(self.table, label, 0), ms.ops.exp(-loss), valid),)


def ohem_logits(arrays):
    logits = 3 * seeded.network_input("ohem_logits", (2, 19, 16, 24))
    label = arrays["ohem_label"].astype(np.int64)
    chosen = np.where(label == 255, 0, label)[:, None] == np.arange(19).reshape(1, 19, 1, 1)
    return logits + 6 * (chosen & (arrays["ohem_boost"][:, None] == 1)).astype(np.float32), label


@pytest.mark.parametrize("weighted", ["w", "n"])
@pytest.mark.parametrize(
    ("threshold", "keep"), [(0.9, 131072), (0.7, 50), (0.7, 500), (0.9, 100), (0.3, 600)]
)
def test_hard_examples_equal_published_code(fixture, weighted, threshold, keep):
    description, arrays = fixture
    name = f"ohem_{weighted}_{threshold}_{keep}"
    weights = description["options"]["class_weights"] if weighted == "w" else np.ones(19)
    cell = Differentiated(Hard(threshold, keep, weights), 1)
    logits, label = ohem_logits(arrays)
    logits, label = Tensor(logits.astype(np.float32)), Tensor(label.astype(np.int32))
    for repeat in range(3):
        (loss,), gradient = cell(logits, label)
        assert float(loss.asnumpy()) == pytest.approx(description["values"][name], rel=1e-6)
        if f"grad_{name}" in arrays:
            gradient = gradient[0] if isinstance(gradient, tuple) else gradient
            assert relative(gradient.asnumpy(), arrays[f"grad_{name}"]) < 1e-5
        cell(logits * 0.1 * repeat, label)


class Limit(nn.Cell):
    def construct(self, values, place):
        return limit_below(values, place, 0.3)


LIMIT = Limit()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 63))
def test_bisection_keeps_what_sorting_keeps(seed, place):
    draw = np.random.default_rng(seed)
    near = np.nextafter(np.float32(0.75), np.float32(1))
    values = draw.choice([0.0, 1e-30, 0.3, 0.5, 0.75, near, 1.0, 2.0, *draw.random(40)], 64)
    values = np.minimum(values, 1 if place > 50 else 2).astype(np.float32)
    last = max(min(int((values <= 1).sum()) - 1, place), 0)
    limit = LIMIT(Tensor(values), Tensor(np.float32(last))).asnumpy()
    expected = max(np.float32(0.3), np.sort(values)[last])
    np.testing.assert_array_equal(values < limit, values < expected)


def full_inputs(arrays):
    names = {"aux": (2, 19, 4, 6), "main": (2, 19, 8, 12), "bd": (2, 1, 8, 12)}
    scale = {"aux": 2, "main": 6, "bd": 2}
    return [
        Tensor(scale[k] * seeded.network_input(f"full_{k}", shape)) for k, shape in names.items()
    ]


@pytest.mark.parametrize("keep", [131072, 1500])
def test_full_loss_equals_published_code(fixture, keep):
    description, arrays = fixture
    expected = description["values"][f"full_{keep}"]
    loss = SANetLoss(19, keep=keep, class_weights=description["options"]["class_weights"])
    cell = Differentiated(loss, 3)
    inputs = full_inputs(arrays)
    label = arrays["full_label"].astype(np.uint8)
    targets = (Tensor(label), Tensor(arrays["full_edge"].astype(np.uint8)))
    for repeat in range(3):
        values, gradients = cell(*inputs, *targets)
        total, aux, main, boundary, aware, accuracy = (float(v.asnumpy()) for v in values)
        assert total == pytest.approx(expected["loss"], rel=1e-6)
        assert 0.4 * aux + main == pytest.approx(expected["loss_s_mean"], rel=1e-6)
        assert 20 * boundary == pytest.approx(expected["loss_b"], rel=1e-6)
        assert aware == pytest.approx(expected["loss_sb"], rel=1e-6)
        # The reference's accuracy counts ignored pixels as wrong; ours leaves them out.
        assert accuracy * (label != 255).mean() == pytest.approx(expected["acc"], abs=1e-6)
        for key, gradient in zip(("aux", "main", "bd"), gradients, strict=True):
            assert relative(gradient.asnumpy(), arrays[f"grad_full_{keep}_{key}"]) < 1e-5, key
        cell(*(value * (0.3 * repeat) for value in inputs), *targets)


def test_without_hard_examples_it_is_the_weighted_mean(fixture):
    description, arrays = fixture
    weights = np.array(description["options"]["class_weights"])
    loss = SANetLoss(19, ohem=False, aux=0, boundary=0, boundary_aware=0, class_weights=weights)
    aux, main, boundary = full_inputs(arrays)
    label = arrays["full_label"]
    edge = Tensor(arrays["full_edge"].astype(np.uint8))
    for scale in (1.0, 0.5, -0.2):
        total = loss(aux, main * scale, boundary, Tensor(label.astype(np.uint8)), edge)[0].asnumpy()
        logits = loss_size(main.asnumpy() * scale, *label.shape[1:]).astype(np.float64)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        valid = label != 255
        target = np.take_along_axis(logp, np.where(valid, label, 0)[:, None].astype(int), 1)[:, 0]
        weight = weights[np.where(valid, label, 0).astype(int)] * valid
        assert float(total) == pytest.approx(-(weight * target).sum() / weight.sum(), rel=1e-5)


def loss_size(logits, height, width):
    """Bilinear resize with aligned corners by two interpolation matrices."""

    def matrix(source, target):
        place = np.arange(target) * (source - 1) / (target - 1)
        low = np.minimum(place.astype(int), source - 2)
        rows = np.zeros((target, source))
        rows[np.arange(target), low] = 1 - (place - low)
        rows[np.arange(target), low + 1] = place - low
        return rows

    return np.einsum(
        "yh,nkhw,xw->nkyx", matrix(logits.shape[2], height), logits, matrix(logits.shape[3], width)
    )


@pytest.mark.parametrize("edge_value", [0, 1])
def test_batches_that_break_the_published_loss_are_finite_here(fixture, edge_value):
    """All labels ignored, then no pixel below the threshold: an IndexError and NaN upstream."""
    _, arrays = fixture
    cell = Differentiated(SANetLoss(19, keep=100), 3)
    aux, main, boundary = full_inputs(arrays)
    edge = Tensor(np.full((2, 64, 96), edge_value, np.uint8))
    ignored = Tensor(np.full((2, 64, 96), 255, np.uint8))
    for _ in range(3):
        values, gradients = cell(aux, main, boundary, ignored, edge)
        assert [float(v.asnumpy()) for v in values] == [0.0] * 6
        assert all(not gradient.asnumpy().any() for gradient in gradients)
        sure = np.full((2, 19, 8, 12), -50, np.float32)
        sure[:, 3] = 50
        zeros = Tensor(np.full((2, 64, 96), 3, np.uint8))
        values, gradients = cell(aux, Tensor(sure), boundary, zeros, edge)
        assert [float(values[k].asnumpy()) for k in (2, 3, 4)] == [0.0] * 3
        assert float(values[5].asnumpy()) == 1.0
        assert all(np.isfinite(gradient.asnumpy()).all() for gradient in gradients)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_boundary_thresholds_at_the_ends_take_all_pixels_or_none(fixture, threshold):
    _, arrays = fixture
    loss = SANetLoss(19, keep=100, boundary_threshold=threshold)
    label, edge = (arrays[f"full_{name}"].astype(np.uint8) for name in ("label", "edge"))
    values = loss(*full_inputs(arrays), Tensor(label), Tensor(edge))
    main, aware = (float(values[place].asnumpy()) for place in (2, 4))
    assert main > 0.1 and aware == (0 if threshold else pytest.approx(main, rel=1e-6))


def test_two_optimizer_steps_equal_published_code():
    description, arrays = seeded.load_fixture("SANet_S_train")
    options, values = description["options"], description["values"]
    network = SANetNetwork("S", 19)
    fill(network, description["params"], description["gain"])
    loss = SANetLoss(
        19,
        keep=options["ohem_keep"],
        threshold=options["ohem_thres"],
        class_weights=options["class_weights"],
    )
    cell = SANetTrainCell(network, loss)
    cell.set_train(True)
    config = OptimizerConfig(name="sgd", lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    optimizer = build_optimizer(
        config, [{"params": network.trainable_params()}], np.full(3, 1e-4, np.float32)
    )
    step = TrainStep(cell, optimizer, Ranks())
    shape = description["inputs"]["train_image"]
    batch = (
        Tensor(seeded.network_input("train_image", shape)),
        Tensor(arrays["label"].astype(np.uint8)),
        Tensor(arrays["edge"].astype(np.uint8)),
    )
    gradients = Gradients(cell)(*batch)
    fill(network, description["params"], description["gain"])  # running statistics moved
    norms = dict(zip(description["grad_norm_names"], arrays["grad_norm"], strict=True))
    trained = {pytorch_name(p.name) for p in network.trainable_params()}
    assert trained == set(norms)
    for parameter, gradient in zip(network.trainable_params(), gradients, strict=True):
        name = pytorch_name(parameter.name)
        if name in ("stom.0.bias", "stom.3.bias"):
            continue  # zero: a batch normalisation follows
        assert np.linalg.norm(gradient.asnumpy()) == pytest.approx(norms[name], rel=1e-2), name
        if f"grad::{name}" in arrays:
            computed = gradient.asnumpy()
            expected = arrays[f"grad::{name}"]
            if computed.shape != expected.shape:
                computed = computed.reshape(-1)[::16]
            assert relative(computed, expected) < 1e-2, name
    go_on = Tensor(np.zeros(1, np.float32))
    for expected in np.array(values["loss_trajectory_fp64"]):
        _, total, aux, main, boundary, aware, _ = step(go_on, *batch).asnumpy()
        assert 0.4 * aux + main == pytest.approx(expected[1], rel=5e-4)
        assert 20 * boundary == pytest.approx(expected[2], rel=5e-4)
        assert aware == pytest.approx(expected[3], rel=3e-2)
        assert total == pytest.approx(expected[0], rel=1e-2)


class Gradients(nn.Cell):
    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.differentiate = ms.grad(self.total, None, cell.trainable_params())

    def total(self, *batch):
        return self.cell(*batch)[0]

    def construct(self, *batch):
        return self.differentiate(*batch)
