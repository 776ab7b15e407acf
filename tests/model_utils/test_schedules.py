import numpy as np
import pytest

from model_utils.schedules import learning_rates
from tests import seeded


def test_model_zoo_sdnet_log():
    """The learning rates printed in the published logs (one card, then eight)."""
    one = learning_rates("linear", 0.004, 20 * 1167, linear_total=20 * 583180 / 500)
    assert [f"{one[k * 1167 - 1]:.6f}" for k in (1, 2, 3)] == ["0.003800", "0.003600", "0.003400"]
    eight = learning_rates("linear", 0.01, 20 * 146, linear_total=20 * 583180 / 4000)
    assert [f"{eight[k * 146 - 1]:.6f}" for k in (1, 2, 3)] == ["0.009503", "0.009002", "0.008501"]
    # Upstream's tables end below zero.
    assert one[-1] == 0 and eight[-1] == 0 and (one >= 0).all()


@pytest.mark.parametrize("kind", ["constant", "linear", "poly", "cosine", "step"])
def test_warm_up_rises_to_the_base_rate_and_then_never_rises(kind):
    rates = learning_rates(kind, 0.1, 100, warmup=10, warmup_start=0.2, milestones=[0.5, 0.9])
    assert rates[0] == pytest.approx(0.1 * (0.2 + 0.8 / 10))
    assert rates[9] == pytest.approx(0.1)
    assert (np.diff(rates[:10]) > 0).all() and (np.diff(rates[9:]) <= 1e-9).all()


def test_known_values():
    assert learning_rates("poly", 1.0, 10, power=0.9)[5] == pytest.approx(0.5**0.9)
    assert learning_rates("cosine", 1.0, 10)[5] == pytest.approx(0.5)
    assert learning_rates("cosine", 1.0, 10, final=0.2)[5] == pytest.approx(0.6)
    steps = learning_rates("step", 1.0, 10, milestones=[0.5, 0.8], gamma=0.1)
    np.testing.assert_allclose(steps, [1] * 5 + [0.1] * 3 + [0.01] * 2, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 7, 583, 7 / 3])
def test_poly_by_epoch_equals_published_schedules(steps):
    """PFNet's reference steps its scheduler before the epoch: the last epoch changes nothing."""
    expected = seeded.load_fixture("PFNet_metrics")[0]["values"]["lr_off_by_one"]
    for name, lr, epochs in (
        ("iSAID_torch_0.007_16_0.9", 0.007, 16),
        ("iSAID_jittor_0.007_20_0.9", 0.007, 20),
        ("gaofen_0.001_64_0.9_first8_last3", 0.001, 64),
    ):
        total = round(epochs * steps)
        hold = total / epochs
        ahead = learning_rates("poly", lr, total, power=0.9, hold=hold, ahead=1)
        level = learning_rates("poly", lr, total, power=0.9, hold=hold)
        first = np.ceil(np.arange(epochs) * hold - 1e-9).astype(int)
        chosen = list(range(epochs)) if epochs < 64 else [*range(8), 61, 62, 63]
        np.testing.assert_allclose(ahead[first][chosen], expected[name], rtol=1e-6, atol=1e-12)
        # One rate throughout an epoch; without the reference's slip, one epoch later.
        np.testing.assert_allclose(level[first][1:], ahead[first][:-1], rtol=1e-6)
        assert level[0] == pytest.approx(lr) and len(set(level.tolist())) == epochs
