"""Pictures of a segmentation: class colours, an overlay, a legend."""

import numpy as np

from model_utils.drawing import legend, overlay
from model_utils.segmentation import ClassTable


def draw_segmentation(
    image: np.ndarray, classes: np.ndarray, table: ClassTable, alpha: float = 0.5
) -> dict[str, np.ndarray]:
    """The pictures of one segmented image.

    Args:
        image: (H, W, 3) RGB uint8.
        classes: (H, W) class of each pixel; 255 (ignored) is black in the map and left out of
            the overlay.
        table: names and colours of the classes.
        alpha: weight of the colours in the overlay, 0 to 1.

    Returns:
        (H, W, 3) uint8 pictures ``map`` and ``overlay``, and ``legend``: the classes in the
        image with their shares of its pixels, largest first.

    Raises:
        UserError: sizes differ or alpha lies outside [0, 1].
    """
    return {
        "map": table.colourise(classes),
        "overlay": overlay(image, classes, table.colours, alpha),
        "legend": class_legend(classes, table),
    }


def class_legend(classes: np.ndarray, table: ClassTable) -> np.ndarray:
    """Colours and names of the classes in a map with their shares, largest first."""
    counts = np.bincount(classes.ravel().astype(np.int64), minlength=256)[: len(table)]
    present = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    if not present:
        return legend(["all pixels ignored"], np.zeros((1, 3), np.uint8))
    shares = [f"{100 * counts[k] / classes.size:.1f} %" for k in present]
    return legend([table.names[k] for k in present], table.colours[present], 1, shares)
