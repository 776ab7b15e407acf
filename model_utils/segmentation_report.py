"""What eval.py writes besides the figures: predictions, pictures, tables."""

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model_utils.files import atomic_write, write_image
from model_utils.metrics.segmentation import BoundaryScore, ConfusionMatrix
from model_utils.segmentation_drawing import (
    class_csv,
    class_rows,
    class_text,
    comparison,
    confusion_figure,
    legend,
    panels,
)
from model_utils.segmentation_evaluation import SegmentationData

# Rows of the picture that shows several samples, and the height of each.
_ROWS, _HEIGHT = 6, 240


class Report:
    """Predictions and pictures of some samples while they are measured, tables at the end.

    In ``predictions``, for each chosen image: ``NAME_classes.png`` (class numbers, 8 bits),
    ``NAME_colours.png`` (class colours) and ``NAME.png`` (image, prediction, truth and errors side
    by side). Above it ``predictions.png`` with several samples, ``legend.png``,
    ``confusion_matrix.png``, ``classes.csv`` and ``classes.txt``.

    Args:
        output: the folder.
        dataset: the samples.
        pictures: how many samples to draw, evenly spread over the split; at least its length
            draws all, 0 none.
    """

    def __init__(self, output: Path, dataset: SegmentationData, pictures: int) -> None:
        self.output = output
        self.chosen = spread(len(dataset), pictures)
        self.names = _file_names(dataset)
        self.shown = set(np.array(sorted(self.chosen), int)[_places(len(self.chosen), _ROWS)])
        self.rows: dict[int, tuple[list[np.ndarray], list[str]]] = {}

    def wants(self, index: int) -> bool:
        """Whether the sample is drawn."""
        return index in self.chosen

    def add(
        self, index: int, dataset: SegmentationData, label: np.ndarray, prediction: np.ndarray
    ) -> None:
        """Write one sample's predictions and pictures if it is among the chosen."""
        if not self.wants(index):
            return
        image, truth = dataset.read(index)
        if image.shape[:2] != prediction.shape:  # measured at another size than the file's
            size = (prediction.shape[1], prediction.shape[0])
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            truth = None if truth is None else label
        classes, name = dataset.classes, self.names[index]
        folder = self.output / "predictions"
        write_image(folder / f"{name}_classes.png", prediction)
        write_image(folder / f"{name}_colours.png", classes.colourise(prediction))
        write_image(
            folder / f"{name}.png",
            comparison([panels(image, prediction, truth, classes)], classes),
        )
        if index in self.shown:
            self.rows[index] = panels(image, prediction, truth, classes, _HEIGHT)

    def finish(
        self, confusion: ConfusionMatrix, boundary: BoundaryScore, dataset: SegmentationData
    ) -> dict[str, Any]:
        """Write tables and overviews; adds nothing to the metrics."""
        classes = dataset.classes
        write_image(self.output / "legend.png", legend(classes))
        if self.rows:
            rows = [self.rows[index] for index in sorted(self.rows)]
            write_image(self.output / "predictions.png", comparison(rows, classes))
        if confusion.counts.any():
            confusion_figure(
                confusion,
                classes.names,
                self.output / "confusion_matrix.png",
                f"mIoU {confusion.mean_iou():.2%}, {confusion.pixel_accuracy():.2%} of the "
                "pixels right",
            )
            table = class_rows(confusion, boundary, classes.names)
            for name, text in (("csv", class_csv(table)), ("txt", class_text(table))):
                with atomic_write(self.output / f"classes.{name}", "w") as stream:
                    stream.write(text)
        return {}


def _places(length: int, count: int) -> np.ndarray:
    """``count`` places among ``length``, first and last included; all if there are fewer."""
    return np.unique(np.linspace(0, max(0, length - 1), min(count, length)).round().astype(int))


def spread(length: int, count: int) -> set[int]:
    """``count`` numbers below ``length``, evenly spread, ends included; all if there are fewer."""
    return set(_places(length, count).tolist())


def _file_names(dataset: SegmentationData) -> list[str]:
    """The images' names without suffix, numbered where several are alike."""
    stems = [Path(dataset.name(index)).stem for index in range(len(dataset))]
    alike = Counter(stems)
    return [stem if alike[stem] == 1 else f"{index:06d}_{stem}" for index, stem in enumerate(stems)]
