"""How well a distance tells matching pairs from others: FPR95, accuracies, ROC.

All functions take distances (smaller = more alike; negate a similarity score) and labels
(1 = matching, 0 = not). Ties are always decided at the threshold: a pair counts as called
"matching" when ``distance <= threshold``, so no figure depends on the order of the pairs.
"""

from dataclasses import dataclass

import numpy as np

from model_utils.errors import UserError


@dataclass(frozen=True)
class _Steps:
    """The pairs sorted by distance, one entry per distinct distance."""

    thresholds: np.ndarray  # (K,) distinct distances, ascending
    true_positives: np.ndarray  # (K,) positives with distance <= threshold
    false_positives: np.ndarray  # (K,) negatives with distance <= threshold
    positives: int
    negatives: int


def _steps(distances: np.ndarray, labels: np.ndarray) -> _Steps:
    distances = np.asarray(distances)
    labels = np.asarray(labels)
    if distances.ndim != 1 or distances.shape != labels.shape:
        raise UserError(
            f"distances {distances.shape} and labels {labels.shape} must be two equally long "
            "vectors"
        )
    if distances.size == 0:
        raise UserError("there are no pairs to evaluate; check that the test set is not empty")
    if distances.dtype.kind not in "fiub":
        raise UserError(f"distances must be numbers, not {distances.dtype}")
    missing = np.flatnonzero(np.isnan(distances))
    if missing.size:
        raise UserError(
            f"{missing.size} of {distances.size} distances are NaN (first: pair {missing[0]}); "
            "the network or its input is broken"
        )
    if not np.isin(labels, (0, 1)).all():
        odd = labels[~np.isin(labels, (0, 1))][0]
        raise UserError(f"labels must be 0 or 1, found {odd!r}")
    order = np.argsort(distances, kind="stable")
    ordered = distances[order]
    hits = np.cumsum(labels[order].astype(np.int64))
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)
    true_positives = hits[ends]
    return _Steps(
        thresholds=ordered[ends],
        true_positives=true_positives,
        false_positives=ends + 1 - true_positives,
        positives=int(hits[-1]),
        negatives=int(ordered.size - hits[-1]),
    )


def _need(steps: _Steps, positives: bool, negatives: bool, what: str) -> None:
    for needed, count, name in (
        (positives, steps.positives, "matching (label 1)"),
        (negatives, steps.negatives, "non-matching (label 0)"),
    ):
        if needed and not count:
            total = steps.positives + steps.negatives
            raise UserError(
                f"{what} is undefined: none of the {total} pairs is {name}; "
                "evaluate on a set that holds both kinds"
            )


def _index_at_recall(steps: _Steps, recall: float) -> int:
    if not 0 < recall <= 1:
        raise UserError(f"recall must lie in (0, 1], not {recall}")
    # The subtraction keeps e.g. 0.95 * 20 = 19.000000000000004 at 19.
    needed = int(np.ceil(recall * steps.positives - 1e-9 * steps.positives))
    return int(np.searchsorted(steps.true_positives, max(needed, 1)))


def fpr_at_recall(distances: np.ndarray, labels: np.ndarray, recall: float = 0.95) -> float:
    """False-positive rate at the smallest threshold reaching ``recall``; FPR95 by default.

    With t the ceil(recall * P)-th smallest distance of the P matching pairs: the share of
    the non-matching pairs with distance <= t, in [0, 1], smaller is better.

    Raises:
        UserError: no pair of one kind, NaN distances, labels other than 0 and 1.
    """
    steps = _steps(distances, labels)
    _need(steps, True, True, f"the false-positive rate at {recall:.0%} recall")
    return float(steps.false_positives[_index_at_recall(steps, recall)] / steps.negatives)


def accuracy_at_recall(distances: np.ndarray, labels: np.ndarray, recall: float = 0.95) -> float:
    """Share of correctly classified pairs at the threshold of :func:`fpr_at_recall`.

    Raises:
        UserError: no matching pair, NaN distances, labels other than 0 and 1.
    """
    steps = _steps(distances, labels)
    _need(steps, True, False, f"the accuracy at {recall:.0%} recall")
    index = _index_at_recall(steps, recall)
    right = steps.true_positives[index] + steps.negatives - steps.false_positives[index]
    return float(right / (steps.positives + steps.negatives))


def accuracy_at_positive_count(distances: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy when exactly the P closest pairs are called matching, P matching pairs in all.

    This is the ``Acc`` that the reference implementation of SDNet reports (the break-even
    point of precision and recall; its threshold knows the number of matching pairs). Where
    equal distances straddle the cut, the expectation over their orders is returned.

    Raises:
        UserError: NaN distances, labels other than 0 and 1, no pairs.
    """
    steps = _steps(distances, labels)
    called = steps.positives
    if not called:
        return 1.0
    counts = steps.true_positives + steps.false_positives
    index = int(np.searchsorted(counts, called))
    hits_before, count_before = (
        (int(steps.true_positives[index - 1]), int(counts[index - 1])) if index else (0, 0)
    )
    tied = int(counts[index]) - count_before
    tied_hits = int(steps.true_positives[index]) - hits_before
    hits = hits_before + (called - count_before) * tied_hits / tied
    return float(1.0 - 2.0 * (called - hits) / (steps.positives + steps.negatives))


def best_threshold_accuracy(distances: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Best accuracy over all thresholds and the threshold that reaches it.

    The threshold lies on a distance of the set; -inf means that calling no pair matching is
    best.

    Raises:
        UserError: NaN distances, labels other than 0 and 1, no pairs.
    """
    steps = _steps(distances, labels)
    right = steps.true_positives + steps.negatives - steps.false_positives
    index = int(np.argmax(right))
    total = steps.positives + steps.negatives
    if steps.negatives > right[index]:
        return steps.negatives / total, float("-inf")
    return float(right[index] / total), float(steps.thresholds[index])


def roc_curve(
    distances: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rates, true-positive rates, thresholds: one point per distinct distance.

    The first point is (0, 0) with threshold -inf, the last one (1, 1).

    Raises:
        UserError: no pair of one kind, NaN distances, labels other than 0 and 1.
    """
    steps = _steps(distances, labels)
    _need(steps, True, True, "the ROC curve")
    return (
        np.append(0.0, steps.false_positives / steps.negatives),
        np.append(0.0, steps.true_positives / steps.positives),
        np.append(-np.inf, steps.thresholds.astype(np.float64)),
    )


def roc_auc(distances: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: P(matching pair closer than another), ties count one half.

    Raises:
        UserError: no pair of one kind, NaN distances, labels other than 0 and 1.
    """
    false_rate, true_rate, _ = roc_curve(distances, labels)
    return float(np.sum(np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2))


def ranking_metrics(distances: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every figure of this module by name, for logs and JSON.

    Keys: ``fpr95``, ``acc`` (at the positive count), ``acc_best``, ``threshold_best``,
    ``acc_at_95_recall``, ``auc``, ``positives``, ``negatives``.

    Raises:
        UserError: no pair of one kind, NaN distances, labels other than 0 and 1.
    """
    best, threshold = best_threshold_accuracy(distances, labels)
    positives = int(np.count_nonzero(labels))
    return {
        "fpr95": fpr_at_recall(distances, labels),
        "acc": accuracy_at_positive_count(distances, labels),
        "acc_best": best,
        "threshold_best": threshold,
        "acc_at_95_recall": accuracy_at_recall(distances, labels),
        "auc": roc_auc(distances, labels),
        "positives": positives,
        "negatives": int(np.size(labels) - positives),
    }
