"""Boundary maps: what the boundary head sees, and class boundaries of label files."""

import logging
from pathlib import Path

import cv2
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.drawing import colour_map, overlay
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.files import read_image, write_image, write_json
from model_utils.logs import Progress
from model_utils.segmentation import IGNORE, ClassTable, read_mask, to_eight_bits
from model_utils.segmenting import image_files, result_names

from ..api import SANet
from ..config import SANetConfig
from ..layouts import class_table, mask_values
from ..network import SANetNetwork
from .common import open_model, trained_network

log = logging.getLogger("zoo")
BOUNDARY_COLOUR = (255, 230, 0)
_LABEL_FILES = ("_labelIds", "_labelTrainIds")


class BoundaryPrediction(nn.Cell):
    """The boundary head's probabilities at the image's size; the main head is not computed."""

    def __init__(self, network: SANetNetwork) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, image: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to probabilities (N, H, W) in [0, 1]."""
        _, detail, _ = self.network.features(image)
        logits = self.network.seghead_d(detail)
        # Aligned corners, as in the boundary loss.
        resized = ops.ResizeBilinearV2(True, False)(logits, ops.shape(image)[2:])
        return ops.sigmoid(resized)[:, 0]


def boundary_map(model: SANet, image: np.ndarray) -> np.ndarray:
    """Probability of a class boundary at every pixel.

    Args:
        model: from a checkpoint.
        image: as for ``SANet.predict``.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        UserError: the model is an exported file, which lacks this head.
    """
    network = trained_network(model, "a boundary map")
    inputs = [ExportInput("image", (None, 3, None, None))]
    backend = model.open("boundary", lambda: BoundaryPrediction(network), inputs)
    return backend.run(model.normalise(image)[None])[0][0]


def draw_boundaries(
    image: np.ndarray, probability: np.ndarray, threshold: float = 0.8
) -> dict[str, np.ndarray]:
    """Pictures of a boundary map.

    Args:
        image: (H, W, 3) RGB uint8.
        probability: (H, W) in [0, 1].
        threshold: from which a pixel is drawn over the image.

    Returns:
        ``boundary``, the probabilities as colours, and ``boundary_overlay``.
    """
    near = np.where(probability > threshold, 0, -1)
    return {
        "boundary": colour_map(probability, "viridis", 0.0, 1.0),
        "boundary_overlay": overlay(image, near, [BOUNDARY_COLOUR], 0.9),
    }


def class_boundaries(labels: np.ndarray, classes: int) -> np.ndarray:
    """Boundaries that know their class (``multi_class_boundary_detection`` upstream).

    Canny finds the lines between labels, pixels beside a line keep their class, and these bands
    are widened twice, the higher class winning where two meet. Ignored pixels give no band.

    Args:
        labels: (H, W) uint8, 0 ... K-1 or 255.
        classes: K, at most 253.

    Returns:
        (H, W) uint8: a class, or 255 where there is no boundary.
    """
    if not 1 <= classes <= 253:
        raise UserError(f"{classes} classes; boundaries can be drawn of 1 to 253")
    numbers = np.where(labels < classes, labels, classes).astype(np.uint8) + np.uint8(1)
    line = (cv2.Canny(numbers, 0.1, 0.2) > 0).astype(np.uint8)
    square = np.ones((3, 3), np.uint8)
    beside = (cv2.dilate(line, square) > line) & (numbers <= classes)
    bands = cv2.dilate(np.where(beside, numbers, 0).astype(np.uint8), square, iterations=2)
    return np.where(bands > 0, bands - 1, IGNORE).astype(np.uint8)


def boundary(task: object, config: SANetConfig, output: Path) -> None:
    """boundary.py: draw boundary maps of images, or class boundaries of masks."""
    if config.boundary.masks:
        _of_masks(config, output)
    if config.infer.images or not config.boundary.masks:
        _of_images(config, output)


def _of_images(config: SANetConfig, output: Path) -> None:
    files = image_files(config.infer.images)
    names = result_names(config.infer.images, files)
    model = open_model(config)
    shares = {}
    progress = Progress(len(files), "boundary maps", unit="image")
    for path in files:
        image = to_eight_bits(read_image(path), path)
        probability = boundary_map(model, image)
        pictures = draw_boundaries(image, probability, config.boundary.threshold)
        for kind, picture in pictures.items():
            write_image(output / f"{names[path]}_{kind}.png", picture)
        shares[str(path)] = round(float((probability > config.boundary.threshold).mean()), 5)
        progress.advance()
    progress.close()
    write_json(
        output / "metrics.json",
        {
            "network": str(model.source),
            "threshold": config.boundary.threshold,
            "boundary_share": shares,
        },
    )
    log.info("boundary maps of %d images in %s", len(files), output)


def _of_masks(config: SANetConfig, output: Path) -> None:
    files = image_files(config.boundary.masks)
    names = result_names(config.boundary.masks, files)
    table: ClassTable = class_table(config)
    for path in files:
        bands = class_boundaries(read_mask(path, table, mask_values(config.data)), len(table))
        write_image(output / f"{names[path]}_class_boundaries.png", table.colourise(bands))
    log.info("class boundaries of %d masks in %s", len(files), output)
