"""The boundary F-score as the original counts it: image by image, class by class.

It differs from :class:`model_utils.metrics.segmentation.BoundaryScore`, which adds up boundary
pixels over images: here every image weighs alike, and a class that an image has neither in truth
nor in prediction scores 1 there. Rare classes therefore look nearly perfect; both are reported.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from model_utils.distributed import Ranks, sum_over_ranks
from model_utils.errors import UserError
from model_utils.segmentation import IGNORE

# Whole number that stands for an F of 1; sum_over_ranks adds numbers below 2^48.
_ONE = 1 << 46


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour.

    One pixel wide, on the upper left side of a border. The last row and column only look along
    themselves.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    right, below = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    marked = np.zeros(mask.shape, bool)
    marked[:, :-1] = right
    marked[:-1] |= below
    marked[:-1, :-1] |= mask[1:, 1:] != mask[:-1, :-1]
    return marked


def radius(threshold: float, size: tuple[int, int]) -> int:
    """Pixels within which boundaries match.

    Args:
        threshold: share of the diagonal below 1, rounded up; pixels from 1 on.
        size: height and width of the image.
    """
    if threshold >= 1:
        return int(threshold)
    return math.ceil(threshold * math.hypot(*size))


def boundary_scores(
    truth: np.ndarray, prediction: np.ndarray, classes: int, thresholds: Sequence[float]
) -> np.ndarray:
    """Boundary precision, recall and F of every class in one image.

    Precision is the share of predicted boundary pixels with a true one within the radius (a disk,
    its rim included), recall the reverse, F their harmonic mean. A class without boundary in both
    has 1, in one of both 0. Ignored pixels belong to no class in either map.

    Args:
        truth: (H, W) 0 .. K-1 or 255.
        prediction: (H, W) 0 .. K-1.
        classes: K.
        thresholds: see :func:`radius`.

    Returns:
        (T, K, 3) float64 in [0, 1]: precision, recall, F.
    """
    known = truth != IGNORE
    radii = np.array([radius(threshold, truth.shape) for threshold in thresholds])
    scores = np.ones((len(radii), classes, 3))
    for number in range(classes):
        true, found = (boundary_map((labels == number) & known) for labels in (truth, prediction))
        if not true.any() or not found.any():
            scores[:, number] = float(true.any() == found.any())
            continue
        # Squared distances are whole numbers; rounding undoes single precision.
        near_truth, near_found = (
            np.rint(_distance(target)[where] ** 2)
            for target, where in ((true, found), (found, true))
        )
        squared = (radii**2)[:, None]
        precision = (near_truth <= squared).mean(axis=1)
        recall = (near_found <= squared).mean(axis=1)
        total = precision + recall
        f_score = np.divide(
            2 * precision * recall, total, out=np.zeros_like(total), where=total > 0
        )
        scores[:, number] = np.stack((precision, recall, f_score), axis=1)
    return scores


def _distance(target: np.ndarray) -> np.ndarray:
    """Euclidean distance of every pixel to the nearest one of ``target``."""
    away = (~target).astype(np.uint8)
    return cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)


class ImageBoundaryScores:
    """Boundary F of a split: the mean over images of each class, then over classes.

    Args:
        images: how many there are over all ranks.
        classes: K.
        thresholds: see :func:`radius`.
    """

    def __init__(self, images: int, classes: int, thresholds: Sequence[float]) -> None:
        if not thresholds:
            raise UserError("evaluate.boundary_thresholds is empty; give at least one tolerance")
        self.thresholds = tuple(thresholds)
        # One row of whole numbers per image: ranks add them exactly, and in the same order.
        self._f_scores = np.zeros((images, len(self.thresholds), classes), np.int64)

    def add(self, index: int, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Measure one image.

        Args:
            index: of the image in the split.
            truth, prediction: (H, W), see :func:`boundary_scores`.
        """
        classes = self._f_scores.shape[2]
        f_scores = boundary_scores(truth, prediction, classes, self.thresholds)[..., 2]
        self._f_scores[index] = np.rint(f_scores * _ONE)

    def f_scores(self, ranks: Ranks) -> dict[float, np.ndarray]:
        """(K,) mean F over all images by threshold; all ranks must call."""
        mean = (sum_over_ranks(self._f_scores, ranks) / _ONE).mean(axis=0)
        return dict(zip(self.thresholds, mean, strict=True))
