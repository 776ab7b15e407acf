"""FPR95, accuracies and AUC against stored cases, scikit-learn and brute force."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_utils.errors import UserError
from model_utils.metrics import ranking

FIXTURE = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "SDNet_metrics.json").read_text(encoding="utf-8")
)
FIGURES = {
    "fpr95": ranking.fpr_at_recall,
    "acc_at_positive_count": ranking.accuracy_at_positive_count,
    "acc_best_threshold": lambda d, y: ranking.best_threshold_accuracy(d, y)[0],
    "acc_at_95_recall": ranking.accuracy_at_recall,
}


def case_data(case):
    if "distances" in case:
        return np.array(case["distances"]), np.array(case["labels"])
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 500)
    distances = np.where(labels == 1, 0.6, 1.2) + 0.25 * rng.standard_normal(500)
    return distances.astype(np.float32), labels


@pytest.mark.parametrize("name", FIXTURE["cases"])
@pytest.mark.parametrize("figure", FIGURES)
def test_stored_cases(name, figure):
    case = FIXTURE["cases"][name]
    distances, labels = case_data(case)
    if case[figure] is None:
        with pytest.raises(UserError, match="none of the 3 pairs"):
            FIGURES[figure](distances, labels)
    else:
        assert FIGURES[figure](distances, labels) == pytest.approx(case[figure], abs=1e-12)


@pytest.mark.parametrize(
    "name", ["perfect", "inverted", "one_swap", "interleaved", "unbalanced", "random500"]
)
def test_equals_the_published_definition_without_ties(name):
    case = FIXTURE["cases"][name]
    distances, labels = case_data(case)
    assert ranking.fpr_at_recall(distances, labels) == pytest.approx(case["upstream_fpr95"])
    assert ranking.accuracy_at_positive_count(distances, labels) == pytest.approx(
        case["upstream_acc"]
    )


# Few distinct values on purpose: most examples have ties.
PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=2, max_size=60).filter(
    lambda pairs: 0 < sum(label for _, label in pairs) < len(pairs)
)


def unzip(pairs):
    distances, labels = np.array(pairs).T
    return distances.astype(np.float32) / 8, labels


@given(PAIRS)
@settings(deadline=None)  # the first import of scikit-learn is slow
def test_auc_is_that_of_scikit_learn(pairs):
    from sklearn.metrics import roc_auc_score

    distances, labels = unzip(pairs)
    assert ranking.roc_auc(distances, labels) == pytest.approx(roc_auc_score(labels, -distances))


@given(PAIRS, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
@settings(deadline=None)
def test_fpr_and_accuracies_by_trying_every_threshold(pairs, recall):
    distances, labels = unzip(pairs)
    rates = []
    for threshold in [-np.inf, *sorted(set(distances))]:
        called = distances <= threshold
        rates.append(
            (
                (called & (labels == 1)).sum() / labels.sum(),
                (called & (labels == 0)).sum() / (labels == 0).sum(),
                (called == labels).mean(),
            )
        )
    first = next(rate for rate in rates if rate[0] >= recall - 1e-12)
    assert ranking.fpr_at_recall(distances, labels, recall) == pytest.approx(first[1])
    assert ranking.accuracy_at_recall(distances, labels, recall) == pytest.approx(first[2])
    best, threshold = ranking.best_threshold_accuracy(distances, labels)
    assert best == pytest.approx(max(rate[2] for rate in rates))
    assert best == pytest.approx(((distances <= threshold) == labels).mean())


@given(PAIRS, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_no_figure_depends_on_the_order_of_the_pairs(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert ranking.ranking_metrics(*unzip(pairs)) == ranking.ranking_metrics(*unzip(shuffled))


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_accuracy_at_the_positive_count_is_the_mean_over_orders_of_ties(pairs):
    distances, labels = unzip(pairs)
    rng = np.random.default_rng(0)
    count, total = labels.sum(), len(labels)
    values = []
    for _ in range(600):
        order = np.lexsort((rng.random(total), distances))
        values.append(1 - 2 * (labels[order[:count]] == 0).sum() / total)
    error = 4 * np.std(values) / np.sqrt(600) + 1e-9
    assert ranking.accuracy_at_positive_count(distances, labels) == pytest.approx(
        np.mean(values), abs=error
    )


@pytest.mark.parametrize("count", [20, 40, 100, 140, 200, 1860, 124137])
def test_the_needed_number_of_positives_is_exact(count):
    # Negatives sit right behind each positive: FPR95 tells how many positives were taken.
    distances = np.arange(2 * count, dtype=np.float64)
    labels = np.tile([1, 0], count)
    needed = -(-95 * count // 100)
    assert ranking.fpr_at_recall(distances, labels) == (needed - 1) / count


def test_a_quarter_million_pairs_take_well_under_a_second():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 248_274)
    distances = (rng.standard_normal(248_274) - 1.5 * labels).astype(np.float32)
    start = time.process_time()
    metrics = ranking.ranking_metrics(distances, labels)
    assert time.process_time() - start < 2
    # Two unit normals 1.5 apart: AUC = Phi(1.5 / sqrt 2), FPR95 = Phi(1.645 - 1.5).
    assert metrics["auc"] == pytest.approx(0.8556, abs=0.003)
    assert metrics["fpr95"] == pytest.approx(0.5576, abs=0.008)


def test_roc_curve_ends_at_both_corners():
    false_rate, true_rate, thresholds = ranking.roc_curve(
        np.array([0.1, 0.2, 0.2, 0.9]), np.array([1, 1, 0, 0])
    )
    assert false_rate.tolist() == [0, 0, 0.5, 1]
    assert true_rate.tolist() == [0, 0.5, 1, 1]
    assert thresholds.tolist() == [-np.inf, 0.1, 0.2, 0.9]


@pytest.mark.parametrize(
    ("distances", "labels", "message"),
    [
        ([0.1, np.nan, 0.3], [1, 0, 1], "1 of 3 distances are NaN .first: pair 1"),
        ([0.1, 0.2], [1, 2], "labels must be 0 or 1"),
        ([0.1, 0.2], [1], "equally long"),
        ([], [], "no pairs"),
        (["a", "b"], [0, 1], "must be numbers"),
        ([0.1, 0.2], [1, 1], "non-matching"),
        ([0.1, 0.2], [0, 0], "matching .label 1."),
    ],
)
def test_bad_input_is_explained(distances, labels, message):
    with pytest.raises(UserError, match=message):
        ranking.ranking_metrics(np.array(distances), np.array(labels))
    with pytest.raises(UserError, match="recall must lie"):
        ranking.fpr_at_recall(np.array([0.1, 0.2]), np.array([0, 1]), 95)
