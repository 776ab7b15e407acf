"""SDNet's evaluation: distances, figures, log lines."""

from pathlib import Path

import numpy as np
import pytest

from model_utils.errors import UserError
from research.sdnet.src import metrics

FIXTURE = Path(__file__).parents[1] / "fixtures" / "SDNet_metrics.json"


def test_log_lines_are_the_published_ones():
    figures = {"fpr95": 0.35339745, "acc": 0.87125515}
    assert metrics.accuracy_line(figures) == "Accuracy(FPR95): 0.35339745  Acc:0.87125515"
    assert metrics.accuracy_line(figures, colour=True) == (
        "\033[91mAccuracy(FPR95): 0.35339745  Acc:0.87125515\033[0m"
    )
    # 654675.890 ms and 1167 steps are printed with 560.990 ms per step.
    assert metrics.epoch_line(1, 20, 654675.890, 1167, 1.0391, 0.0038) == (
        "epoch: [  1/ 20], epoch time: 654675.890, steps:  1167, per step time: 560.990, "
        "avg loss: 1.039, lr:[0.003800]"
    )
    assert metrics.inference_lines(figures, "910") == [
        "============= 910 Inference =============",
        "Accuracy(FPR95): 0.35339745  Acc:0.87125515",
        "=========================================",
    ]


def test_distances_match_a_float64_computation():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((50, 128)).astype(np.float32)
    second = first + 1e-3 * rng.standard_normal((50, 128)).astype(np.float32)
    expected = np.linalg.norm(first.astype(np.float64) - second, axis=1)
    np.testing.assert_allclose(metrics.descriptor_distances(first, second), expected, rtol=1e-5)
    with pytest.raises(UserError, match="equal"):
        metrics.descriptor_distances(first, second[:10])
