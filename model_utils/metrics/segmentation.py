"""How well class maps agree with the truth: confusion matrix, IoU, accuracies, boundary F-score.

Class maps are integer arrays of any shape (H, W) or (N, H, W) whose values are class numbers
0 .. K-1; a truth may also hold the number that marks pixels nobody labelled, which count nowhere.
Everything is counted in integers, so that the parts of several processes add up to exactly what
one process finds. Where there is nothing to measure (no labelled pixel, no boundary) every figure
is 0.0, never NaN.
"""

import math
from typing import TypeVar

import cv2
import numpy as np

from model_utils.distributed import Ranks, sum_over_ranks
from model_utils.errors import UserError
from model_utils.segmentation import IGNORE

# Share of the image diagonal within which boundaries agree (Csurka et al. 2013, section 4).
TOLERANCE = 0.0075

_Counts = TypeVar("_Counts", bound="_ClassCounts")


class _ClassCounts:
    """Integer counts per class that ranks can add up."""

    def __init__(self, classes: int, ignore: int, columns: int) -> None:
        if classes < 1:
            raise UserError(f"there must be at least one class, not {classes}")
        if 0 <= ignore < classes:
            raise UserError(f"{ignore} cannot both be one of {classes} classes and mark no class")
        self.classes = classes
        self.ignore = ignore
        self.counts = np.zeros((classes, columns), np.int64)

    def sum_over(self: _Counts, ranks: Ranks) -> _Counts:
        """Replace the counts by their sum over all ranks, which all must call; returns self."""
        self.counts = sum_over_ranks(self.counts, ranks)
        return self

    def _checked(self, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        truth, prediction = np.asarray(truth), np.asarray(prediction)
        if truth.shape != prediction.shape:
            raise UserError(f"truth {truth.shape} and prediction {prediction.shape} differ in size")
        for what, values in (("truth", truth), ("prediction", prediction)):
            if values.dtype.kind not in "iu":
                raise UserError(f"the {what} must hold whole class numbers, not {values.dtype}")
        _require_classes(prediction, self.classes, "prediction")
        return truth, prediction


def _require_classes(values: np.ndarray, classes: int, what: str) -> None:
    if values.size and (int(values.max()) >= classes or int(values.min()) < 0):
        odd = values[(values < 0) | (values >= classes)].flat[0]
        raise UserError(
            f"the {what} holds class {odd}, but there are only {classes} classes (0 to "
            f"{classes - 1}); use the data's table of classes and a network with as many outputs"
        )


class ConfusionMatrix(_ClassCounts):
    """Pixels by true class (rows) and predicted class (columns).

    Args:
        classes: number of classes, K.
        ignore: number in the truth of pixels to leave out; it must be no class.
    """

    def __init__(self, classes: int, ignore: int = IGNORE) -> None:
        super().__init__(classes, ignore, classes)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count the pixels of one or several class maps.

        Args:
            truth: any shape, 0 .. K-1 or ``ignore``.
            prediction: of the same shape, 0 .. K-1 everywhere.

        Raises:
            UserError: a number outside the table, other shapes, other types than integers.
        """
        truth, prediction = self._checked(truth, prediction)
        known = truth != self.ignore
        rows, columns = truth[known], prediction[known]
        _require_classes(rows, self.classes, "truth")
        cells = rows.astype(np.intp) * self.classes + columns
        counted = np.bincount(cells, minlength=self.classes * self.classes)
        self.counts += counted.reshape(self.classes, self.classes)

    @property
    def true_pixels(self) -> np.ndarray:
        """(K,) labelled pixels of each class."""
        return self.counts.sum(axis=1)

    @property
    def predicted_pixels(self) -> np.ndarray:
        """(K,) labelled pixels that were predicted as each class."""
        return self.counts.sum(axis=0)

    def iou(self) -> np.ndarray:
        """(K,) intersection over union in [0, 1]; a class that occurs nowhere has 0."""
        right = np.diag(self.counts)
        return right / np.maximum(1, self.true_pixels + self.predicted_pixels - right)

    def mean_iou(self) -> float:
        """Mean IoU over all K classes, absent ones counting 0 (HRNet, PIDNet, SANet)."""
        return float(self.iou().mean())

    def mean_iou_present(self) -> float:
        """Mean IoU over the classes that were labelled or predicted (Cityscapes' own scripts)."""
        present = self.true_pixels + self.predicted_pixels > 0
        return float(self.iou()[present].mean()) if present.any() else 0.0

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose class is right."""
        return float(np.trace(self.counts) / max(1, self.counts.sum()))

    def accuracy(self) -> np.ndarray:
        """(K,) share of each class's pixels that were found (recall)."""
        return np.diag(self.counts) / np.maximum(1, self.true_pixels)

    def precision(self) -> np.ndarray:
        """(K,) share of the pixels predicted as a class that belong to it."""
        return np.diag(self.counts) / np.maximum(1, self.predicted_pixels)

    def mean_accuracy(self) -> float:
        """Mean of ``accuracy`` over all K classes, absent ones counting 0."""
        return float(self.accuracy().mean())

    def frequency_weighted_iou(self) -> float:
        """IoU weighted by each class's share of the labelled pixels (Long et al. 2015)."""
        return float((self.true_pixels * self.iou()).sum() / max(1, self.counts.sum()))

    def scores(self) -> dict[str, float]:
        """Every mean of this class by name, for logs and JSON.

        Keys: ``miou``, ``miou_present``, ``pixel_accuracy``, ``mean_accuracy``,
        ``frequency_weighted_iou``.
        """
        return {
            "miou": self.mean_iou(),
            "miou_present": self.mean_iou_present(),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
        }


def boundary_pixels(labels: np.ndarray, ignore: int = IGNORE) -> np.ndarray:
    """Pixels of which a neighbour above, below, left or right belongs to another class.

    Both sides of a border are marked, each for its own class. Neither the edge of the image nor
    the edge of an ignored area is a border: nobody knows what lies beyond.

    Args:
        labels: (H, W) class numbers.
        ignore: number of pixels to leave out.

    Returns:
        (H, W) bool.
    """
    known = labels != ignore
    marked = np.zeros(labels.shape, bool)
    below = (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    right = (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    marked[1:] |= below
    marked[:-1] |= below
    marked[:, 1:] |= right
    marked[:, :-1] |= right
    return marked


class BoundaryScore(_ClassCounts):
    """Boundary F-score per class, accumulated over images.

    For a class, precision is the share of its predicted boundary pixels (``boundary_pixels``)
    that lie within the tolerance of its true boundary, recall the share of its true boundary
    pixels within the tolerance of its predicted one; distances are Euclidean, between pixel
    centres, and the tolerance itself still counts. F is their harmonic mean. This is the
    contour measure of Csurka, Larlus and Perronnin, "What is a good evaluation measure for
    semantic segmentation?", BMVC 2013 (with its tolerance of 0.75 % of the image diagonal); the
    boundary measure of Perazzi et al., CVPR 2016, has a tolerance of 0.8 %, rounded up. Both
    average over images, whereas the boundary pixels of all images are added up here, so that an
    image with a few pixels of a class does not weigh as much as one full of it. Where the truth
    is unknown, neither map has boundaries.

    Args:
        classes: number of classes, K.
        tolerance: pixels; 0 is 0.75 % of each image's diagonal.
        ignore: number in the truth of pixels to leave out.
    """

    def __init__(self, classes: int, tolerance: float = 0.0, ignore: int = IGNORE) -> None:
        # Columns: predicted boundary pixels, those near the truth; true ones, those found.
        super().__init__(classes, ignore, 4)
        self.tolerance = tolerance

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count the boundaries of one image.

        Args:
            truth: (H, W), 0 .. K-1 or ``ignore``.
            prediction: (H, W), 0 .. K-1.

        Raises:
            UserError: a number outside the table, other shapes, other types than integers.
        """
        truth, prediction = self._checked(truth, prediction)
        if truth.ndim != 2:
            raise UserError(f"boundaries need one class map (H, W), not {truth.shape}")
        known = truth != self.ignore
        _require_classes(truth[known], self.classes, "truth")
        prediction = np.where(known, prediction, self.ignore)
        true_edges = boundary_pixels(truth, self.ignore)
        found_edges = boundary_pixels(prediction, self.ignore)
        tolerance = self.tolerance or TOLERANCE * math.hypot(*truth.shape)
        present = np.unique(np.concatenate((truth[true_edges], prediction[found_edges])))
        for number in present:
            true_edge = true_edges & (truth == number)
            found_edge = found_edges & (prediction == number)
            self.counts[number] += _matches(found_edge, true_edge, tolerance)

    def precision(self) -> np.ndarray:
        """(K,) share of the predicted boundary that is near the true one; 0 without any."""
        return self.counts[:, 1] / np.maximum(1, self.counts[:, 0])

    def recall(self) -> np.ndarray:
        """(K,) share of the true boundary that is near the predicted one; 0 without any."""
        return self.counts[:, 3] / np.maximum(1, self.counts[:, 2])

    def f_score(self) -> np.ndarray:
        """(K,) harmonic mean of precision and recall; 0 where either is 0."""
        precision, recall = self.precision(), self.recall()
        total = precision + recall
        return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)

    def mean_f_score(self) -> float:
        """Mean F over the classes that have a boundary in the truth or the prediction."""
        present = self.counts[:, 0] + self.counts[:, 2] > 0
        return float(self.f_score()[present].mean()) if present.any() else 0.0


def _matches(found: np.ndarray, true: np.ndarray, tolerance: float) -> tuple[int, int, int, int]:
    """Counts of one class: predicted, of these near the truth; true, of these near the found."""
    rows = np.flatnonzero((found | true).any(axis=1))
    columns = np.flatnonzero((found | true).any(axis=0))
    # Nothing outside their common box matters, and the distance transform is the costly part.
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    found, true = found[box], true[box]
    if not found.any() or not true.any():
        return int(found.sum()), 0, int(true.sum()), 0
    near_truth = np.count_nonzero(_distance(true)[found] <= tolerance)
    near_found = np.count_nonzero(_distance(found)[true] <= tolerance)
    return np.count_nonzero(found), near_truth, np.count_nonzero(true), near_found


def _distance(target: np.ndarray) -> np.ndarray:
    """Exact Euclidean distance of every pixel to the nearest one of ``target``."""
    away = (~target).astype(np.uint8)
    distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    # Squares are whole numbers; rounding them undoes single precision, so that e.g. 5 is 5.
    return np.sqrt(np.rint(np.square(distance)))
