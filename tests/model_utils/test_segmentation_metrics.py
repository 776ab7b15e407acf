"""Segmentation metrics against the reference's values, scikit-learn and a slow, plain reference."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix, jaccard_score

from model_utils.errors import UserError
from model_utils.metrics.segmentation import (
    BoundaryScore,
    ConfusionMatrix,
    boundary_pixels,
)
from tests.seeded import load_fixture


def class_maps(classes=4):
    """Pairs of small truth and prediction maps."""
    values = [*range(classes), 255]
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
    return shapes.flatmap(
        lambda shape: st.tuples(
            arrays(np.uint8, shape, elements=st.sampled_from(values)),
            arrays(np.uint8, shape, elements=st.integers(0, classes - 1)),
        )
    )


# -- confusion matrix ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["c19", "c11", "missing"])
def test_the_references_values(case):
    about, values = load_fixture("SANet_miou")
    matrix = ConfusionMatrix(values[f"{case}_iou"].size)
    for truth, prediction in zip(values[f"{case}_label"], values[f"{case}_pred"], strict=True):
        matrix.update(truth, prediction)
    assert matrix.counts.dtype == np.int64
    np.testing.assert_array_equal(matrix.counts, values[f"{case}_confusion"])
    np.testing.assert_array_equal(matrix.iou(), values[f"{case}_iou"])
    expected = about["values"][case]
    assert matrix.mean_iou() == expected["miou"]
    assert matrix.pixel_accuracy() == expected["pixel_acc"]
    assert matrix.mean_accuracy() == expected["mean_acc"]


@given(class_maps())
def test_agrees_with_scikit_learn(maps):
    truth, prediction = maps
    matrix = ConfusionMatrix(4)
    matrix.update(truth, prediction)
    known = truth != 255
    if not known.any():
        assert not matrix.counts.any()
        return
    true, predicted = truth[known], prediction[known]
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(true, predicted, labels=range(4)))
    expected = jaccard_score(true, predicted, labels=range(4), average=None, zero_division=0)
    np.testing.assert_allclose(matrix.iou(), expected, rtol=1e-12)
    present = sorted(set(true) | set(predicted))
    assert matrix.mean_iou_present() == pytest.approx(
        jaccard_score(true, predicted, labels=present, average="macro", zero_division=0)
    )
    assert matrix.frequency_weighted_iou() == pytest.approx(
        jaccard_score(true, predicted, average="weighted", zero_division=0)
    )
    assert matrix.pixel_accuracy() == pytest.approx((true == predicted).mean())


def test_absent_classes_count_zero_or_not_at_all():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 0]]))
    # Class 0: 2 of 3; class 1: 1 of 2; classes 2 and 3 occur nowhere.
    assert matrix.mean_iou() == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert matrix.mean_iou_present() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert matrix.frequency_weighted_iou() == pytest.approx(0.5 * 2 / 3 + 0.5 * 1 / 2)


def test_a_class_only_predicted_is_present_and_wrong():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0]), np.array([0, 2]))
    assert matrix.mean_iou_present() == pytest.approx((1 / 2 + 0) / 2)


def test_nothing_but_ignored_pixels_gives_zeros_without_warnings(recwarn):
    matrix, boundary = ConfusionMatrix(3), BoundaryScore(3)
    nobody_knows = np.full((5, 6), 255, np.uint8)
    prediction = np.arange(30).reshape(5, 6) % 3
    for metric in (matrix, boundary):
        metric.update(nobody_knows, prediction)
    assert set(matrix.scores().values()) == {0.0}
    assert boundary.mean_f_score() == 0.0
    assert not recwarn


def test_ignored_pixels_change_nothing():
    truth, prediction = np.array([[0, 1], [1, 0]]), np.array([[0, 1], [0, 0]])
    plain, more = ConfusionMatrix(2), ConfusionMatrix(2)
    plain.update(truth, prediction)
    more.update(np.vstack([truth, [[255, 255]]]), np.vstack([prediction, [[1, 0]]]))
    np.testing.assert_array_equal(plain.counts, more.counts)


@pytest.mark.parametrize(
    ("truth", "prediction", "words"),
    [
        ([[0, 1]], [[0, 11]], "prediction holds class 11, but there are only 3"),
        ([[0, 255]], [[0, 255]], "prediction holds class 255"),
        ([[0, 3]], [[0, 1]], "truth holds class 3"),
        ([[0, -1]], [[0, 1]], "truth holds class -1"),
        ([[0, 1]], [[0, -2]], "prediction holds class -2"),
        ([[0, 1]], [[0]], "differ in size"),
        ([[0.0, 1.0]], [[0, 1]], "not float64"),
    ],
)
@pytest.mark.parametrize("metric", [ConfusionMatrix, BoundaryScore])
def test_what_is_outside_the_table_is_said(metric, truth, prediction, words):
    with pytest.raises(UserError, match=words):
        metric(3).update(np.array(truth), np.array(prediction))


def test_a_class_cannot_be_the_ignored_number():
    with pytest.raises(UserError, match="255 cannot both"):
        ConfusionMatrix(256)
    ConfusionMatrix(255)


@settings(max_examples=30)
@given(class_maps(), class_maps())
def test_parts_add_up(first, second):
    both, one, two = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    for metric, maps in ((both, first), (both, second), (one, first), (two, second)):
        metric.update(*maps)
    np.testing.assert_array_equal(both.counts, one.counts + two.counts)


# -- boundaries ---------------------------------------------------------------------------------


def slow_boundary(labels, number):
    """Coordinates of a class's boundary by the words of the definition."""
    height, width = labels.shape
    found = []
    for row in range(height):
        for column in range(width):
            if labels[row, column] != number:
                continue
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                y, x = row + down, column + right
                if not (0 <= y < height and 0 <= x < width):
                    continue
                if labels[y, x] not in (number, 255):
                    found.append((row, column))
                    break
    return found


def slow_scores(pairs, classes, tolerance):
    """F per class (None without any boundary) over images, by exhaustive search."""
    counts = np.zeros((classes, 4), np.int64)
    for truth, prediction in pairs:
        prediction = np.where(truth == 255, 255, prediction)
        limit = tolerance or 0.0075 * math.hypot(*truth.shape)
        for number in range(classes):
            true, found = slow_boundary(truth, number), slow_boundary(prediction, number)
            for column, here, there in ((0, found, true), (2, true, found)):
                near = [any(math.dist(point, other) <= limit for other in there) for point in here]
                counts[number, column : column + 2] += [len(near), sum(near)]
    scores = []
    for found, near_truth, true, near_found in counts:
        if found + true == 0:
            scores.append(None)
            continue
        precision = near_truth / found if found else 0.0
        recall = near_found / true if true else 0.0
        total = precision + recall
        scores.append(2 * precision * recall / total if total else 0.0)
    return scores


@settings(max_examples=60, deadline=None)
@given(st.lists(class_maps(3), min_size=1, max_size=2), st.sampled_from([0, 1, 1.5, 2, 5]))
def test_boundary_score_agrees_with_exhaustive_search(pairs, tolerance):
    score = BoundaryScore(3, tolerance)
    for truth, prediction in pairs:
        score.update(truth, prediction)
    expected = slow_scores(pairs, 3, tolerance)
    np.testing.assert_allclose(score.f_score(), [value or 0.0 for value in expected])
    present = [value for value in expected if value is not None]
    assert score.mean_f_score() == pytest.approx(np.mean(present) if present else 0.0)


def test_boundary_score_of_larger_regions_agrees_with_exhaustive_search():
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(2):
        truth = np.kron(rng.integers(0, 5, (4, 6)), np.ones((9, 9), int)).astype(np.uint8)
        prediction = np.roll(truth, (2, -1), (0, 1))
        truth[5:12, 20:31] = 255
        pairs.append((truth, prediction))
    score = BoundaryScore(5, 2)
    for truth, prediction in pairs:
        score.update(truth, prediction)
    np.testing.assert_allclose(score.f_score(), slow_scores(pairs, 5, 2))
    assert 0.5 < score.mean_f_score() < 0.99


def test_a_shifted_border_is_found_up_to_the_tolerance_and_not_beyond():
    truth = np.zeros((20, 40), np.uint8)
    truth[:, 20:] = 1
    for shift, tolerance, expected in ((3, 3, 1.0), (4, 3, 0.0), (-3, 3, 1.0), (5, 4.9, 0.0)):
        prediction = np.zeros_like(truth)
        prediction[:, 20 + shift :] = 1
        score = BoundaryScore(2, tolerance)
        score.update(truth, prediction)
        assert score.mean_f_score() == expected, (shift, tolerance)


def test_the_default_tolerance_is_three_quarters_of_a_percent_of_the_diagonal():
    truth = np.zeros((300, 400), np.uint8)  # diagonal 500, tolerance 3.75
    truth[:, 200:] = 1
    for shift, expected in ((3, 1.0), (4, 0.0)):
        prediction = truth.copy()
        prediction[:, 200 : 200 + shift] = 0
        score = BoundaryScore(2)
        score.update(truth, prediction)
        assert score.mean_f_score() == expected


def test_neither_the_image_edge_nor_an_ignored_area_is_a_border():
    labels = np.array([[0, 0, 255, 1], [0, 0, 255, 1], [0, 0, 255, 1]], np.uint8)
    assert not boundary_pixels(labels).any()
    labels[1, 2] = 0
    assert np.argwhere(boundary_pixels(labels)).tolist() == [[1, 2], [1, 3]]


@settings(max_examples=50, deadline=None)
@given(class_maps())
def test_boundary_score_properties(maps):
    truth, prediction = maps
    perfect = BoundaryScore(4)
    perfect.update(truth, np.where(truth == 255, prediction, truth))
    edges = boundary_pixels(truth)
    assert perfect.mean_f_score() == (1.0 if edges.any() else 0.0)
    looser, tighter = BoundaryScore(4, 2), BoundaryScore(4, 1)
    looser.update(truth, prediction)
    tighter.update(truth, prediction)
    assert (looser.f_score() >= tighter.f_score() - 1e-12).all()
    # Truth and prediction are on a par where everything is known.
    if (truth != 255).all():
        swapped = BoundaryScore(4, 1)
        swapped.update(prediction, truth)
        np.testing.assert_allclose(swapped.f_score(), tighter.f_score())
        np.testing.assert_allclose(swapped.precision(), tighter.recall())
