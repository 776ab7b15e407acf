"""Pictures and tables of class maps, against what they show."""

import csv

import numpy as np
import pytest

from model_utils.errors import UserError
from model_utils.metrics.segmentation import BoundaryScore, ConfusionMatrix
from model_utils.segmentation import IGNORE, ClassTable
from model_utils.segmentation_drawing import (
    RIGHT_COLOUR,
    UNLABELLED_COLOUR,
    WRONG_COLOUR,
    class_csv,
    class_rows,
    class_text,
    comparison,
    error_map,
    legend,
    panels,
)

TABLE = ClassTable(("road", "sky", "tree"), np.array([(128, 64, 0), (0, 0, 255), (0, 200, 0)]))
TRUTH = np.array([[0, 0, 1, 1], [0, 2, 2, IGNORE]], np.uint8)
PREDICTION = np.array([[0, 1, 1, 1], [0, 2, 0, 2]], np.uint8)


def test_errors_right_pixels_and_unlabelled_ones_have_their_colours():
    found = error_map(TRUTH, PREDICTION)
    expected = np.array(
        [[RIGHT_COLOUR, WRONG_COLOUR, RIGHT_COLOUR, RIGHT_COLOUR],
         [RIGHT_COLOUR, RIGHT_COLOUR, WRONG_COLOUR, UNLABELLED_COLOUR]]
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(UserError, match="differ in size"):
        error_map(TRUTH, PREDICTION[:1])


@pytest.mark.parametrize("width", [1, 200, 640])
def test_the_legend_has_every_colour_and_the_width_asked_for(width):
    picture = legend(TABLE, width)
    assert picture.shape[1] >= width
    shown = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in TABLE.colours.tolist()} <= shown
    # More columns, fewer rows.
    assert legend(TABLE, 640).shape[0] < legend(TABLE, 1).shape[0]


def test_panels_show_classes_that_were_predicted_and_say_how_many_are_right():
    image = np.full((40, 60, 3), 100, np.uint8)
    prediction = np.repeat(np.repeat(PREDICTION, 20, 0), 15, 1)
    truth = np.repeat(np.repeat(TRUTH, 20, 0), 15, 1)
    pictures, titles = panels(image, prediction, truth, TABLE, height=20, alpha=1.0)
    assert titles == ["image", "prediction", "truth", "71.4% right"]
    assert {picture.shape for picture in pictures} == {(20, 30, 3)}
    # Shrinking takes the nearest pixel: no colours between the classes'.
    classes = {tuple(colour) for colour in TABLE.colours.tolist()}
    assert {tuple(colour) for colour in pictures[1].reshape(-1, 3).tolist()} == classes
    unknown = np.full_like(truth, IGNORE)
    assert panels(image, prediction, unknown, TABLE)[1][3] == "nothing labelled"
    pictures, titles = panels(image, prediction, None, TABLE)
    assert len(pictures) == len(titles) == 2
    rows = comparison([(pictures, titles)] * 3, TABLE)
    assert rows.shape[0] > 3 * 40 and rows.shape[1] >= 2 * 60


def test_tables_hold_the_figures():
    confusion, boundary = ConfusionMatrix(3), BoundaryScore(3, 1)
    confusion.update(TRUTH, PREDICTION)
    boundary.update(TRUTH, PREDICTION)
    rows = class_rows(confusion, boundary, TABLE.names)
    read = list(csv.DictReader(class_csv(rows).splitlines()))
    assert [row["class"] for row in read] == list(TABLE.names)
    # road: 2 right of 3 true and 3 predicted; sky 2 of 2 and 3; tree 1 of 2 and 1.
    assert [float(row["iou"]) for row in read] == pytest.approx([2 / 4, 2 / 3, 1 / 2], abs=1e-6)
    assert [float(row["precision"]) for row in read] == pytest.approx([2 / 3, 2 / 3, 1], abs=1e-6)
    assert [int(row["true_pixels"]) for row in read] == [3, 2, 2]
    assert [int(row["predicted_pixels"]) for row in read] == [3, 3, 1]
    lines = class_text(rows).splitlines()
    assert len(lines) == 4 and "50.00 %" in lines[1] and "66.67 %" in lines[2]
