"""PFNet's losses against the published training code."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn

from research.pfsegnets.src.losses import HardPixels, PFNetLoss
from tests import seeded
from tests.research.parity import relative


@pytest.fixture(scope="module")
def fixture():
    return seeded.load_fixture("PFNet_losses")


def inputs(arrays):
    """Class logits with some pixels sure of their label, edge logits, labels, edges."""
    logits = 3 * seeded.network_input("seg_logits", (2, 16, 64, 64))
    label = arrays["label"].astype(np.int64)
    chosen = np.where(label == 255, 0, label)[:, None] == np.arange(16).reshape(1, 16, 1, 1)
    logits = logits + 10 * (chosen & (arrays["boost"][:, None] == 1)).astype(np.float32)
    edges = [2 * seeded.network_input(f"edge_logits{n}", (2, 1, 64, 64)) for n in (3, 2, 1)]
    return logits.astype(np.float32), edges, arrays["label"], arrays["edge"]


class Differentiated(nn.Cell):
    """Losses, and gradients of the total by class logits and edge logits."""

    def __init__(self, loss):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.differentiate = ms.value_and_grad(self.run, (0, 1, 2, 3), None, has_aux=True)

    def run(self, logits, e3, e2, e1, label, edge):
        losses = self.loss(logits, (e3, e2, e1), label, edge)
        return losses[0], losses

    def construct(self, logits, e3, e2, e1, label, edge):
        (_, losses), gradients = self.differentiate(logits, e3, e2, e1, label, edge)
        return losses, gradients


def evaluated(loss, logits, edges, label, edge):
    run = Differentiated(loss)
    for repeat in range(3):
        losses, gradients = run(*(Tensor(x) for x in (logits, *edges, label, edge)))
        losses = [float(x) for x in losses]
        gradients = [g.asnumpy() for g in gradients]
        if repeat == 0:
            first = losses, gradients
        else:
            assert losses == first[0]
            np.testing.assert_array_equal(gradients[0], first[1][0])
        run(*(Tensor(x) for x in (logits[:, ::-1].copy(), *edges, label[::-1].copy(), edge)))
    return losses, gradients


@pytest.mark.parametrize(
    ("threshold", "keep"), [(0.7, 10000), (0.7, 500), (0.7, 6000), (0.05, 3000)]
)
def test_hard_pixels_equal_published_code(fixture, threshold, keep):
    description, arrays = fixture
    expected = description["values"][f"ohem_{threshold}_{keep}"]
    logits, edges, label, edge = inputs(arrays)
    loss = PFNetLoss(16, 1.0, 0.0, "bce", True, threshold, keep)
    losses, (gradient, *_) = evaluated(loss, logits, edges, label, edge)
    assert losses[1] == pytest.approx(expected["loss"], rel=2e-6)
    assert np.linalg.norm(gradient) == pytest.approx(expected["grad_l2"], rel=1e-5)
    touched = (np.abs(gradient).max(axis=1) > 0).sum()
    assert touched == expected["pixels_with_gradient"] == expected["kept"]


@pytest.mark.parametrize(
    ("name", "kind", "ohem"),
    [
        ("joint_ohem_bce", "bce", True),
        ("joint_ohem_dice", "dice", True),
        ("joint_ce_bce", "bce", False),
    ],
)
def test_joint_loss_equals_published_code(fixture, name, kind, ohem):
    description, arrays = fixture
    expected = description["values"][name]
    logits, edges, label, edge = inputs(arrays)
    loss = PFNetLoss(16, 1.0, 25.0, kind, ohem)
    (total, *parts, _), gradients = evaluated(loss, logits, edges, label, edge)
    assert total == pytest.approx(expected["total"], rel=2e-6)
    names = ("seg_loss", "edge_loss_layer3", "edge_loss_layer2", "edge_loss_layer1")
    assert parts == pytest.approx([expected[n] for n in names], rel=2e-6)
    norms = [np.linalg.norm(g) for g in gradients]
    assert norms == pytest.approx([expected["grad_seg_l2"], *expected["grad_edge_l2"]], rel=1e-5)
    if name == "joint_ohem_bce":
        assert relative(gradients[1], arrays["grad_edge3"]) < 1e-5


def test_without_hard_pixels_it_is_cross_entropy(fixture):
    description, arrays = fixture
    logits, edges, label, edge = inputs(arrays)
    losses, _ = evaluated(PFNetLoss(16, ohem=False), logits, edges, label, edge)
    assert losses[1] == pytest.approx(description["values"]["cross_entropy_ignore255"], rel=2e-6)
    # Equal weights change nothing; a weight on one class moves the mean towards it.
    weighted = PFNetLoss(16, ohem=False, class_weights=[2.5] * 16)
    again, _ = evaluated(weighted, logits, edges, label, edge)
    assert again[1] == pytest.approx(losses[1], rel=1e-6)
    accuracy = (logits.argmax(axis=1) == label).sum() / (label != 255).sum()
    assert losses[-1] == pytest.approx(accuracy)


def test_a_batch_without_valid_pixel_has_a_finite_loss(fixture):
    """The published code divides by zero there."""
    _, arrays = fixture
    logits, edges, label, edge = inputs(arrays)
    losses, gradients = evaluated(
        PFNetLoss(16), logits, edges, np.full_like(label, 255), np.zeros_like(edge)
    )
    assert losses[1] == 0 and losses[-1] == 0
    assert np.isfinite(losses).all() and not gradients[0].any()


@given(
    st.lists(st.sampled_from([0.1, 0.5, 0.7, 0.71, 0.9, 0.95, 1.0]), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.integers(1, 14),
)
@settings(max_examples=60, deadline=None)
def test_hard_pixels_follow_their_definition_under_ties(probabilities, valid, keep):
    probability = np.array(probabilities, np.float32).reshape(1, 3, 4)
    mask = np.array(valid, np.float32).reshape(1, 3, 4)
    cell = HARD.setdefault(keep, HardPixels(0.7, keep))
    kept = cell(Tensor(probability), Tensor(mask)).asnumpy()
    if mask.sum() < keep:
        expected = mask
    else:
        ranked = np.sort(np.where(mask > 0, probability, 1).ravel())
        limit = max(np.float32(0.7), ranked[min(len(ranked), keep) - 1])
        expected = mask * (probability <= limit)
    np.testing.assert_array_equal(kept, expected)


HARD: dict[int, HardPixels] = {}
