"""What eval.py writes besides the figures: every pair's distance, curves, examples."""

import csv
import io
from pathlib import Path

import cv2
import numpy as np

from model_utils.drawing import histogram, roc_curve_figure, side_by_side
from model_utils.files import atomic_write, write_image
from model_utils.metrics.ranking import ranking_metrics, roc_curve

from .dataset import PatchDataset


def write_report(
    output: Path,
    dataset: PatchDataset,
    distances: np.ndarray,
    labels: np.ndarray,
    pictures: int,
) -> None:
    """Write predictions.csv, roc.png, distances.png and examples.png.

    Args:
        output: the folder.
        dataset: the pairs.
        distances: (N,) descriptor distances.
        labels: (N,) 1 for matching pairs.
        pictures: examples per kind; 0 draws none.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pair", "label", "distance"])
    for index in range(len(distances)):
        writer.writerow([dataset.name(index), int(labels[index]), f"{distances[index]:.6f}"])
    with atomic_write(output / "predictions.csv", "w") as stream:
        stream.write(text.getvalue())
    false_positive, true_positive, _ = roc_curve(distances, labels)
    roc_curve_figure({"SDNet": (false_positive, true_positive)}, output / "roc.png")
    threshold = ranking_metrics(distances, labels)["threshold_best"]
    groups = {"matching": distances[labels == 1], "non-matching": distances[labels == 0]}
    histogram(
        groups, output / "distances.png", "descriptor distance", lines={"best threshold": threshold}
    )
    if pictures:
        _examples(output / "examples.png", dataset, distances, labels, pictures)


def _examples(
    path: Path, dataset: PatchDataset, distances: np.ndarray, labels: np.ndarray, count: int
) -> None:
    """Rows: most and least certain matching pairs, most and least certain others."""
    order = np.argsort(distances, kind="stable")
    matching, others = order[labels[order] == 1], order[labels[order] == 0]
    images, titles = [], []
    for kind, chosen in (
        ("match, near", matching[:count]),
        ("match, far", matching[::-1][:count]),
        ("other, far", others[::-1][:count]),
        ("other, near", others[:count]),
    ):
        chosen = np.resize(chosen, count)  # equal rows, however few pairs there are
        for index in chosen:
            optical, sar = dataset.archive.pair(int(index))
            images.append(np.vstack([optical, sar]))
            titles.append(f"{kind} {distances[index]:.2f}")
    write_image(path, side_by_side(images, titles, columns=count, height=256))


def draw_registration(
    optical: np.ndarray, sar: np.ndarray, transform: np.ndarray, tile: int = 64
) -> np.ndarray:
    """The optical image laid onto the SAR image, in alternating squares.

    Args:
        optical, sar: (H, W) uint8 grey images.
        transform: (3, 3) from optical to SAR pixels.
        tile: side of the squares, pixels.

    Returns:
        (H, W) uint8 of the SAR image's size; lines run through where the registration is right.
    """
    height, width = sar.shape
    warped = cv2.warpPerspective(optical, transform, (width, height))
    rows, columns = np.indices(sar.shape)
    take_sar = (rows // tile + columns // tile) % 2 == 1
    return np.where(take_sar, sar, warped)
