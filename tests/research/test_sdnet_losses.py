"""SDNet's losses against float64 values and gradients of the published code."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from research.sdnet.src.losses import (
    MatchingLoss,
    RankingLoss,
    SDNetLoss,
    distance_matrix,
)
from tests import seeded

# In the order of SDNetLoss.construct.
ARGUMENTS = (
    "opt_img",
    "sar_img",
    "opt_e",
    "sar_e",
    "opt_low",
    "sar_low",
    "opt_recon",
    "sar_recon",
)


class Distances(nn.Cell):
    def construct(self, anchor, positive):
        return distance_matrix(anchor, positive)


class Ranking(nn.Cell):
    """The divergence of two sets of descriptors."""

    def __init__(self, temperature):
        super().__init__()
        self.rank = RankingLoss(temperature)

    def construct(self, student, teacher):
        return self.rank(self.rank.log_ranking(student), self.rank.log_ranking(teacher))


class MatchGradient(nn.Cell):
    def __init__(self):
        super().__init__()
        self.loss = MatchingLoss()
        self.differentiate = ms.value_and_grad(self.loss, grad_position=(0, 1))

    def construct(self, opt, sar):
        return self.differentiate(opt, sar)


class TotalGradient(nn.Cell):
    """The total and its gradient by every argument."""

    def __init__(self):
        super().__init__()
        self.loss = SDNetLoss()
        self.differentiate = ms.value_and_grad(self.total, grad_position=tuple(range(8)))

    def total(self, *arguments):
        return self.loss(*arguments)[0]

    def construct(self, *arguments):
        return self.differentiate(*arguments)


@pytest.fixture(scope="module")
def fixture():
    return seeded.load_fixture("SDNet_losses")


def unit(count, size, seed):
    x = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_distances_equal_published_code_and_float64(fixture):
    _, arrays = fixture
    cell = Distances()
    np.testing.assert_allclose(
        cell(Tensor(arrays["opt_e"]), Tensor(arrays["sar_e"])).asnumpy(),
        arrays["dist_matrix"],
        atol=1e-6,
    )
    for seed in range(3):
        a, b = unit(7, 16, seed), unit(7, 16, seed + 100)
        exact = np.linalg.norm(a[:, None].astype(float) - b[None].astype(float), axis=2)
        np.testing.assert_allclose(cell(Tensor(a), Tensor(b)).asnumpy(), exact, atol=2e-6)


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_matching(fixture, swap, margin):
    description, arrays = fixture
    loss = MatchingLoss(margin, swap)
    opt, sar = Tensor(arrays["opt_e"]), Tensor(arrays["sar_e"])
    expected = description["values"][f"match_swap{swap}_m{margin}"]["correct"]
    for _ in range(3):
        assert float(loss(opt, sar)) == pytest.approx(expected, rel=1e-6)
        assert float(loss(sar * -1.0, opt)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("count", [2, 9, 33])
@pytest.mark.parametrize("swap", [True, False])
def test_matching_against_definition_in_float64(count, swap):
    for seed in range(3):
        opt, sar = unit(count, 8, seed), unit(count, 8, seed + 50)
        sar = sar + 1.5 * opt
        sar /= np.linalg.norm(sar, axis=1, keepdims=True)
        wide = np.linalg.norm(opt[:, None].astype(float) - sar[None].astype(float), axis=2)
        losses = []
        for i in range(count):
            others = [wide[i, j] for j in range(count) if j != i]
            if swap:
                others += [wide[j, i] for j in range(count) if j != i]
            losses.append(max(0.0, 0.7 + wide[i, i] - min(others)))
        found = float(MatchingLoss(0.7, swap)(Tensor(opt), Tensor(sar)))
        assert found == pytest.approx(np.mean(losses), abs=3e-6)


def test_near_duplicates_are_no_negatives(fixture):
    description, arrays = fixture
    loss = MatchingLoss()
    found = loss(Tensor(arrays["dup_opt_e"]), Tensor(arrays["dup_sar_e"]))
    expected = description["values"]["match_duplicates"]["correct"]
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_satisfied_triplets_cost_nothing_and_push_nowhere(fixture):
    description, arrays = fixture
    value = description["values"]["match_all_satisfied"]
    # The published code is negative here, with a gradient of 0.35.
    assert value["correct"] == 0 > value["upstream"]
    cell = MatchGradient()
    e = Tensor(arrays["satisfied_e"])
    for _ in range(3):
        loss, gradients = cell(e, e)
        assert float(loss) == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient.asnumpy(), 0)
        loss, gradients = cell(Tensor(arrays["opt_e"]), Tensor(arrays["sar_e"]))
        assert float(loss) > 0.5
        assert np.abs(gradients[0].asnumpy()).max() > 1e-2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [("rank_low_to_e", "opt_low", "opt_e"), ("rank_e_to_e", "opt_e", "sar_e")],
)
def test_ranking(fixture, temperature, name, student, teacher):
    description, arrays = fixture
    cell = Ranking(temperature)
    expected = description["values"][f"{name}_t{temperature}"]["float64"]
    for _ in range(3):
        found = float(cell(Tensor(arrays[student]), Tensor(arrays[teacher])))
        assert found == pytest.approx(expected, rel=5e-6, abs=5e-8)
        swapped = float(cell(Tensor(arrays[teacher]), Tensor(arrays[student])))
        assert swapped != pytest.approx(found, rel=1e-4)


def test_ranking_of_equal_sets_is_zero(fixture):
    _, arrays = fixture
    x = Tensor(arrays["opt_e"])
    assert abs(float(Ranking(0.1)(x, x))) < 1e-8


def test_log_ranking_rows_are_distributions():
    for seed in range(3):
        x = unit(20, 16, seed)
        found = RankingLoss(0.1).log_ranking(Tensor(x)).asnumpy().astype(np.float64)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
        wide = x.astype(np.float64)
        logits = (1 + wide @ wide.T) / 0.2
        expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_total_and_its_parts(fixture):
    description, arrays = fixture
    values = description["values"]
    loss = SDNetLoss()
    arguments = [Tensor(arrays[name]) for name in ARGUMENTS]
    decoy = [Tensor(-arrays[name]) for name in ARGUMENTS[:-1]] + [arguments[-1]]
    parts = values["total_parts_weighted"]
    ranking = sum(value for name, value in parts.items() if name not in ("match", "recon"))
    for _ in range(3):
        total, match, rank, reconstruction = (float(value) for value in loss(*arguments))
        assert total == pytest.approx(values["total"]["float64"], rel=1e-6)
        assert match == pytest.approx(parts["match"], rel=1e-6)
        assert 10 * rank == pytest.approx(ranking, rel=5e-6)
        assert 1e-3 * reconstruction == pytest.approx(parts["recon"], rel=1e-6)
        assert float(loss(*decoy)[0]) != pytest.approx(total, rel=1e-6)


def test_weights_enter_the_total(fixture):
    _, arrays = fixture
    arguments = [Tensor(arrays[name]) for name in ARGUMENTS]
    total, match, rank, reconstruction = SDNetLoss(reconstruction=0.5, ranking=3.0)(*arguments)
    expected = float(match) + 0.5 * float(reconstruction) + 3.0 * float(rank)
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_gradients_of_the_total_equal_published_code(fixture):
    description, arrays = fixture
    cell = TotalGradient()
    arguments = [Tensor(arrays[name]) for name in ARGUMENTS]
    decoy = [Tensor(arrays[name][::-1].copy() * 0.9) for name in ARGUMENTS]
    for _ in range(3):
        total, gradients = cell(*arguments)
        assert float(total) == pytest.approx(description["values"]["total"]["float64"], rel=1e-6)
        for name, gradient in zip(ARGUMENTS, gradients, strict=True):
            expected = arrays[f"grad_total_{name}"]
            limit = 2e-5 * max(np.abs(expected).max(), 1e-3)
            np.testing.assert_allclose(
                gradient.asnumpy(), expected, rtol=0, atol=limit, err_msg=name
            )
        assert float(cell(*decoy)[0]) != pytest.approx(float(total), rel=1e-6)


def test_torch_reference_has_the_same_total(fixture):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from research.sdnet.src import losses, torch_reference

    description, arrays = fixture
    opt, sar, *outputs = (torch.from_numpy(arrays[name]) for name in ARGUMENTS)
    total = torch_reference.total_loss(opt, sar, tuple(outputs))
    assert float(total) == pytest.approx(description["values"]["total"]["float64"], rel=1e-6)
    assert torch_reference.NEAR_DUPLICATE == losses.NEAR_DUPLICATE
    assert torch_reference.EXCLUDED == losses.EXCLUDED
