"""What the shared drawing functions put where."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from model_utils import drawing
from model_utils.errors import UserError
from model_utils.files import read_image


def test_to_rgb_keeps_bytes_and_stretches_the_rest():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(drawing.to_rgb(grey)[..., 2], grey)
    floats = np.array([[-2.0, 0.0], [2.0, np.nan]])
    assert drawing.to_rgb(floats)[..., 0].tolist() == [[0, 128], [255, 0]]
    assert drawing.to_rgb(np.full((2, 2), 7.0)).max() == 0
    with pytest.raises(UserError, match="cannot be drawn"):
        drawing.to_rgb(np.zeros((2, 3, 4)))


def test_panels_lie_where_they_should():
    first, second = np.full((20, 30, 3), 10, np.uint8), np.full((10, 40), 200, np.uint8)
    row = drawing.side_by_side([first, second], gap=4)
    assert row.shape == (20, 30 + 4 + 40, 3)
    assert (row[:, :30] == 10).all() and (row[:, 30:34] == 255).all()
    assert (row[:10, 34:] == 200).all() and (row[10:, 34:] == 255).all()
    grid = drawing.side_by_side([first, second, first], columns=2, gap=2)
    assert grid.shape == (20 + 2 + 20, 40 + 2 + 40, 3)
    assert (grid[22:, :30] == 10).all()
    scaled = drawing.side_by_side([first, second], height=40)
    assert scaled.shape == (40, 60 + 4 + 160, 3)
    assert not np.shares_memory(drawing.side_by_side([first]), first)


def test_titles_are_written_above():
    image = np.full((50, 120), 100, np.uint8)
    titled = drawing.side_by_side([image, image], ["left", "a far too long title for it"])
    bar = titled.shape[0] - 50
    assert (titled[bar:, :120] == 100).all()
    assert titled[:bar, :60].min() < 80 and titled[:bar, 80:118].min() == 255
    assert titled.shape[1] > 244  # widened, not cut
    with pytest.raises(UserError, match="1 titles for 2"):
        drawing.side_by_side([image, image], ["x"])
    with pytest.raises(UserError, match="no image"):
        drawing.side_by_side([])


def test_colour_maps_are_those_of_matplotlib():
    values = np.array([[0.0, 5.0], [10.0, np.nan]])
    found = drawing.colour_map(values, "gray")
    assert found[..., 1].tolist()[0] == [0, 128] and found[1, 0].tolist() == [255] * 3
    assert tuple(found[1, 1]) == drawing.INVALID_COLOUR
    # Published ends of viridis: (68, 1, 84) and (253, 231, 37).
    viridis = drawing.colour_map(values, vmin=0, vmax=10)
    assert viridis[0, 0].tolist() == [68, 1, 84]
    np.testing.assert_allclose(viridis[1, 0], [253, 231, 36], atol=1)
    np.testing.assert_array_equal(drawing.colour_map(values * 0 + 50, vmax=10, vmin=0)[0, 0],
                                  viridis[1, 0])  # fmt: skip
    assert drawing.colour_map(np.full((2, 2), np.nan)).shape == (2, 2, 3)
    assert drawing.colour_map(np.array([[3, 3]], np.int16)).dtype == np.uint8
    with pytest.raises(UserError, match="no colour map 'jets'"):
        drawing.colour_map(values, "jets")


def test_overlays_mix_by_alpha_and_leave_other_classes_alone():
    image = np.full((2, 3, 3), 100, np.uint8)
    mask = np.array([[0, 1, 255], [-1, 2, 1]])
    palette = [(200, 0, 0), (0, 0, 0)]
    mixed = drawing.overlay(image, mask, palette, alpha=0.25)
    assert mixed[0, 0].tolist() == [125, 75, 75] and mixed[0, 1].tolist() == [75, 75, 75]
    for place in ((0, 2), (1, 0), (1, 1)):
        assert mixed[place].tolist() == [100] * 3
    assert (image == 100).all()
    with pytest.raises(UserError, match="differ in size"):
        drawing.overlay(image, mask[:1], palette)
    with pytest.raises(UserError, match="alpha"):
        drawing.overlay(image, mask, palette, 1.5)


def test_match_lines_join_their_points():
    left, right = np.zeros((60, 80), np.uint8), np.zeros((60, 50), np.uint8)
    picture = drawing.draw_matches(
        left, right, np.array([[10.0, 15], [70, 50]]), np.array([[40.0, 15], [5, 50]]),
        np.array([True, False]),
    )  # fmt: skip
    # 80 columns, a gap of 6, then the right image.
    middle_left, middle_right = 45, 86 + 10
    for column in (middle_left, middle_right):
        red, green, _ = picture[15, column].astype(int)
        assert green > 150 > 100 > red
    red, green, _ = picture[50, 78].astype(int)
    assert red > 150 > 100 > green
    assert picture[30, :80].max() == 0
    assert (drawing.draw_matches(left, right, np.zeros((0, 2)), np.zeros((0, 2))) < 255).any()
    with pytest.raises(UserError, match="cannot be matched"):
        drawing.draw_matches(left, right, np.zeros((2, 2)), np.zeros((3, 2)))


def test_few_lines_are_drawn_of_many():
    image = np.zeros((400, 40), np.uint8)
    points = np.stack([np.full(100, 20.0), np.arange(100) * 4.0], axis=1)
    picture = drawing.draw_matches(image, image, points, points, np.ones(100, bool), most=5)
    column = (picture[:, 30, 1] > 100) & (picture[:, 30, 0] < 150)
    assert 5 <= column.sum() <= 15 and column[:3].any() and column[394:].any()


def curve_pixels(path):
    """Columns and rows of Matplotlib's first colour, (31, 119, 180)."""
    picture = read_image(path).astype(int)
    return np.nonzero((np.abs(picture - (31, 119, 180)) < 40).all(axis=2)), picture.shape


def test_roc_figures_show_the_curve(tmp_path):
    rate = np.linspace(0, 1, 50)
    good = drawing.roc_curve_figure({"good": (rate, rate**0.1)}, tmp_path / "good.png")
    poor = drawing.roc_curve_figure({"poor": (rate, rate**4)}, tmp_path / "poor.png")
    (rows_good, _), shape = curve_pixels(good)
    (rows_poor, _), _ = curve_pixels(poor)
    # Rows count from the top: the better curve lies higher.
    assert np.median(rows_good) + shape[0] * 0.1 < np.median(rows_poor)
    drawing.roc_curve_figure({"a": (rate, rate)}, tmp_path / "log.svg", log=True)
    assert (tmp_path / "log.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_training_curves_from_rows_and_csv(tmp_path):
    rows = [{"epoch": n, "loss": 1.0 / n, "fpr95": "" if n % 2 else n, "note": "x"}
            for n in range(1, 9)]  # fmt: skip
    with open(tmp_path / "log.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    first = drawing.training_curves(rows, tmp_path / "a.png")
    second = drawing.training_curves(tmp_path / "log.csv", tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(first), read_image(second))
    one = drawing.training_curves(rows, tmp_path / "c.png", ["loss"])
    # Two panels (loss, fpr95; not the text) are twice as wide as one.
    assert read_image(first).shape[1] == 2 * read_image(one).shape[1]
    (found_rows, columns), _ = curve_pixels(one)
    assert found_rows[columns == columns.min()].mean() < found_rows[columns == columns.max()].mean()
    with pytest.raises(UserError, match="no column 'acc'; the columns are epoch, loss"):
        drawing.training_curves(rows, tmp_path / "d.png", ["acc"])
    with pytest.raises(UserError, match="no numbers"):
        drawing.training_curves([{"note": "x"}], tmp_path / "d.png")
    (tmp_path / "empty.csv").write_text("epoch,loss\n")
    with pytest.raises(UserError, match="no rows"):
        drawing.training_curves(tmp_path / "empty.csv", tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()


def test_histograms_share_their_bins(tmp_path):
    rng = np.random.default_rng(0)
    groups = {"low": rng.normal(0, 1, 500), "high": np.append(rng.normal(9, 1, 90), np.nan)}
    path = drawing.histogram(groups, tmp_path / "h.png", lines={"cut": 4.5})
    (_, columns), shape = curve_pixels(path)
    assert read_image(path).shape[1] == shape[1] and columns.size >= 0
    picture = read_image(path).astype(int)
    blue = np.nonzero(picture[..., 2] - picture[..., 0] > 60)[1]
    orange = np.nonzero(picture[..., 0] - picture[..., 2] > 60)[1]
    assert np.median(blue) < shape[1] * 0.45 < np.median(orange)
    with pytest.raises(UserError, match="no finite"):
        drawing.histogram({"x": np.array([np.nan])}, tmp_path / "n.png")


def test_unknown_suffixes_leave_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="xyz"):
        drawing.histogram({"x": np.arange(5)}, tmp_path / "h.xyz")
    assert not list(tmp_path.iterdir())


def test_drawing_needs_no_pyplot_and_imports_matplotlib_late():
    code = (
        "import sys, numpy as np\n"
        "from model_utils import drawing\n"
        "assert 'matplotlib' not in sys.modules\n"
        "drawing.histogram({'x': np.arange(9.0)}, sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code, f"{folder}/x.png"], check=True)
