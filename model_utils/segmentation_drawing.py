"""Pictures and tables of class maps: legends, errors, panels, confusion matrices."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from model_utils import drawing
from model_utils.drawing import overlay, side_by_side
from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path
from model_utils.metrics.segmentation import BoundaryScore, ConfusionMatrix
from model_utils.segmentation import IGNORE, ClassTable

RIGHT_COLOUR = (225, 225, 225)
WRONG_COLOUR = (214, 39, 40)
UNLABELLED_COLOUR = (70, 70, 70)
# Up to so many classes the confusion matrix shows its numbers.
_NUMBERED = 25


def error_map(truth: np.ndarray, prediction: np.ndarray, ignore: int = IGNORE) -> np.ndarray:
    """Where a prediction is wrong: light right, red wrong, dark unlabelled.

    Args:
        truth, prediction: (H, W) class numbers.
        ignore: number of unlabelled pixels in the truth.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if truth.shape != prediction.shape:
        raise UserError(f"truth {truth.shape} and prediction {prediction.shape} differ in size")
    colours = np.array([WRONG_COLOUR, RIGHT_COLOUR, UNLABELLED_COLOUR], np.uint8)
    return colours[np.where(truth == ignore, 2, truth == prediction)]


def legend(classes: ClassTable, width: int = 640) -> np.ndarray:
    """The classes' colours beside their names, in as many columns as fit into ``width`` pixels.

    Returns:
        (H, W, 3) uint8 RGB, W at least ``width``; characters outside ASCII are shown as "?".
    """
    column = drawing.legend(classes.names, classes.colours).shape[1]
    columns = max(1, min(width // column, len(classes)))
    picture = drawing.legend(classes.names, classes.colours, columns)
    beside = max(0, width - picture.shape[1])
    return np.pad(picture, ((0, 0), (0, beside), (0, 0)), constant_values=255)


def panels(
    image: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray | None,
    classes: ClassTable,
    height: int = 0,
    alpha: float = 0.6,
) -> tuple[list[np.ndarray], list[str]]:
    """Image, predicted classes and, with a truth, true classes and errors, each with a title.

    Args:
        image: (H, W, 3) RGB uint8.
        prediction, truth: (H, W) class numbers.
        classes: their colours.
        height: shrink to so many rows, keeping the shape; 0, or more rows, keep the size.
        alpha: weight of the colours over the image.

    Returns:
        The pictures (RGB uint8) and their titles, for :func:`model_utils.drawing.side_by_side`.
    """
    rows, columns = prediction.shape
    if 0 < height < rows:
        size = (max(1, round(columns * height / rows)), height)
        # Classes by their nearest pixel: a mean of colours would show classes nobody predicted.
        nearest = {"interpolation": cv2.INTER_NEAREST}
        shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        small = cv2.resize(prediction, size, **nearest)
        small_truth = None if truth is None else cv2.resize(truth, size, **nearest)
    else:
        shown, small, small_truth = image, prediction, truth
    pictures = [shown, overlay(shown, small, classes.colours, alpha)]
    titles = ["image", "prediction"]
    if truth is not None and small_truth is not None:
        known = truth != IGNORE
        right = (truth == prediction)[known].mean() if known.any() else 0.0
        pictures += [
            overlay(shown, small_truth, classes.colours, alpha),
            error_map(small_truth, small),
        ]
        titles += ["truth", f"{right:.1%} right" if known.any() else "nothing labelled"]
    return pictures, titles


def comparison(
    rows: Sequence[tuple[list[np.ndarray], list[str]]], classes: ClassTable
) -> np.ndarray:
    """Several results of :func:`panels` below each other, a legend under them."""
    columns = max(len(pictures) for pictures, _ in rows)
    grids = [side_by_side(pictures, titles, columns) for pictures, titles in rows]
    width = max(grid.shape[1] for grid in grids)
    grids.append(legend(classes, width))
    width = max(grid.shape[1] for grid in grids)
    padded = [
        np.pad(grid, ((0, 6), (0, width - grid.shape[1]), (0, 0)), constant_values=255)
        for grid in grids
    ]
    return np.concatenate(padded)


def confusion_figure(
    confusion: ConfusionMatrix, names: Sequence[str], path: PathLike, title: str = ""
) -> Path:
    """Draw a confusion matrix; each row is the percentages of one true class.

    Args:
        confusion: counted pixels.
        names: of the classes.
        path: PNG, PDF or SVG by its suffix.
        title: above it.
    """
    from matplotlib.figure import Figure

    count = confusion.classes
    pixels = confusion.true_pixels
    shares = 100 * confusion.counts / np.maximum(1, pixels)[:, None]
    side = 2.4 + 0.42 * max(count, 4)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    labels = [
        name if total else f"{name} (none)" for name, total in zip(names, pixels, strict=True)
    ]
    axes.set_xticks(range(count), names, rotation=90, fontsize=8)
    axes.set_yticks(range(count), labels, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class")
    if title:
        axes.set_title(title, fontsize=10)
    if count <= _NUMBERED:
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{share:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share > 55 else "black",
            )
    figure.colorbar(drawn, ax=axes, label="% of the true class", shrink=0.8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return Path(path)


_COLUMNS = (
    "class", "iou", "accuracy", "precision", "boundary_f", "true_pixels", "predicted_pixels"
)  # fmt: skip


def class_rows(
    confusion: ConfusionMatrix, boundary: BoundaryScore, names: Sequence[str]
) -> list[tuple]:
    """Name, IoU, accuracy, precision, boundary F, true and predicted pixels of every class."""
    columns = (
        confusion.iou(),
        confusion.accuracy(),
        confusion.precision(),
        boundary.f_score(),
        confusion.true_pixels,
        confusion.predicted_pixels,
    )
    return list(zip(names, *(column.tolist() for column in columns), strict=True))


def class_csv(rows: Sequence[tuple]) -> str:
    """:func:`class_rows` as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for name, *figures in rows:
        writer.writerow([name, *(f"{f:.6f}" if isinstance(f, float) else f for f in figures)])
    return text.getvalue()


def class_text(rows: Sequence[tuple]) -> str:
    """:func:`class_rows` for reading: percentages, aligned."""
    width = max(5, *(len(row[0]) for row in rows))
    head = ("class".ljust(width), "IoU", "accuracy", "precision", "boundary F", "true pixels")
    lines = ["  ".join((head[0], *(f"{title:>11}" for title in head[1:])))]
    for name, iou, accuracy, precision, edge, pixels, _ in rows:
        figures = [f"{100 * value:>9.2f} %" for value in (iou, accuracy, precision, edge)]
        lines.append("  ".join((name.ljust(width), *figures, f"{pixels:>11,}")))
    return "\n".join(lines) + "\n"
