"""SDNet's evaluation: distances, figures, log lines."""

import json
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


def test_evaluation_over_batches_equals_the_stored_figures():
    case = json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"]["twenty_positives"]
    distances = np.array(case["distances"], np.float32)
    labels = np.array(case["labels"])
    # A "network" whose descriptors differ by exactly the wanted distance.
    patches = np.zeros((len(labels), 1, 64, 64), np.float32)
    patches[:, 0, 0, 0] = distances

    def describe(optical, sar):
        return optical[:, 0, 0, :4], sar[:, 0, 0, :4]

    batches = (
        (patches[i : i + 7], np.zeros_like(patches[i : i + 7]), labels[i : i + 7])
        for i in range(0, len(labels), 7)
    )
    figures, found, kept = metrics.evaluate_pairs(describe, batches)
    np.testing.assert_array_equal(found, distances)
    np.testing.assert_array_equal(kept, labels)
    assert figures["fpr95"] == case["fpr95"]
    assert figures["acc"] == pytest.approx(case["acc_at_positive_count"])


def test_broken_networks_are_not_scored():
    labels = np.array([1, 0])
    patches = np.zeros((2, 1, 64, 64), np.float32)

    def broken(optical, sar):
        return np.full((2, 4), np.nan), np.zeros((2, 4))

    def collapsed(optical, sar):
        return np.ones((2, 4)), np.zeros((2, 4))

    with pytest.raises(UserError, match="NaN"):
        metrics.evaluate_pairs(broken, [(patches, patches, labels)])
    figures, _, _ = metrics.evaluate_pairs(collapsed, [(patches, patches, labels)])
    assert figures["fpr95"] == 1 and figures["acc"] == 0.5 and figures["auc"] == 0.5
    with pytest.raises(UserError, match="no pairs"):
        metrics.evaluate_pairs(collapsed, [])
