"""Heat maps: which places speak for a class (Grad-CAM), at any layer of the network."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model_utils.drawing import colour_map, overlay, side_by_side
from model_utils.errors import UserError
from model_utils.files import read_image, write_image, write_json
from model_utils.gradients import LayerGradients, find_layer, grad_cam, stretched
from model_utils.logs import Progress
from model_utils.segmentation import ClassTable, to_eight_bits
from model_utils.segmenting import image_files, result_names
from model_utils.windows import resize_aligned

from ..config import SANetConfig
from ..prediction import Prediction
from .common import ascii_names, open_model, trained_network

log = logging.getLogger("zoo")
# The layer whose results are the logits: there the gradient is known without a backward pass.
LOGIT_LAYER = "final_layer"


@dataclass(frozen=True)
class HeatMap:
    """One class in one image.

    Attributes:
        number: of the class.
        values: (h, w) float64 class activation map at the layer's resolution, not negative.
        mask: (H, W) bool, the pixels predicted to be of the class.
    """

    number: int
    values: np.ndarray
    mask: np.ndarray


def logit_heat_map(logits: np.ndarray, number: int) -> np.ndarray:
    """Class activation map at the logits, in closed form as the reference's tool ends up with.

    The score is the sum of the class's logits over the pixels predicted so; its gradient with
    respect to the logits is that mask, so the class's channel is weighted by the mask's mean.

    Args:
        logits: (K, h, w).
        number: of the class.

    Returns:
        (h, w) float64, not negative.
    """
    share = (logits.argmax(axis=0) == number).mean()
    return np.maximum(share * logits[number].astype(np.float64), 0)


def heat_maps(
    network: Any,
    pixels: np.ndarray,
    layer: str = "decoder",
    wanted: Sequence[int] | None = None,
) -> list[HeatMap]:
    """Grad-CAM of the classes predicted in an image.

    The score of a class is the sum of its logits over the pixels predicted to be of it.

    Args:
        network: a SANetNetwork in evaluation mode.
        pixels: (3, H, W) normalised image.
        layer: name of the layer looked at; ``final_layer`` is computed in closed form.
        wanted: classes; default every class predicted. Those that are predicted nowhere have no
            score and are left out.

    Raises:
        UserError: there is no such layer, or it is not on the way to the logits.
    """
    probe = LayerGradients(Prediction(network), find_layer(network, layer), pixels[None])
    logits = probe.output[0]
    if probe.activation.ndim != 4:
        raise UserError(f"layer '{layer}' gives {probe.activation.shape}, which is no map")
    coarse = logits.argmax(axis=0)
    fine = resize_aligned(logits, pixels.shape[1:]).argmax(axis=0)
    found = np.unique(coarse).tolist()
    maps = []
    for number in found if wanted is None else [k for k in wanted if k in found]:
        if layer == LOGIT_LAYER:
            values = logit_heat_map(logits, number)
        else:
            direction = np.zeros_like(probe.output)
            direction[0, number] = coarse == number
            values = grad_cam(probe.activation[0], probe.gradient(direction)[0])
        maps.append(HeatMap(number, values, fine == number))
    return maps


def draw_heat_map(
    image: np.ndarray, found: HeatMap, table: ClassTable, colours: str = "turbo", alpha: float = 0.5
) -> dict[str, np.ndarray]:
    """The two pictures of a class in an image.

    Args:
        image: (H, W, 3) RGB uint8.
        found: of :func:`heat_maps`.
        table: names and colours.
        colours: a Matplotlib colour map.
        alpha: weight of the heat map over the image.

    Returns:
        ``prediction``, the image beside the class's pixels, and ``heatmap``, an overlay of the
        map stretched to its own range.
    """
    height, width = image.shape[:2]
    name = table.names[found.number]
    mask = np.where(found.mask, found.number, -1)
    values = cv2.resize(stretched(found.values), (width, height), interpolation=cv2.INTER_LINEAR)
    heat = colour_map(values, colours, 0.0, 1.0).astype(np.float32)
    mixed = (1 - alpha) * image.astype(np.float32) + alpha * heat
    return {
        "prediction": side_by_side(
            [image, overlay(image, mask, table.colours, 0.6)], ["image", f"predicted {name}"]
        ),
        "heatmap": np.rint(mixed).astype(np.uint8),
    }


def class_numbers(wanted: Sequence[str], table: ClassTable) -> list[int] | None:
    """Classes by name or number; None for an empty list.

    Raises:
        UserError: there is no such class.
    """
    numbers = []
    for text in wanted:
        names = [name.lower() for name in table.names]
        if text.lower() in names:
            numbers.append(names.index(text.lower()))
        elif text.isdecimal() and int(text) < len(table):
            numbers.append(int(text))
        else:
            raise UserError(
                f"there is no class '{text}'; classes are {', '.join(table.names)}, or numbers "
                f"0 to {len(table) - 1}"
            )
    return numbers or None


def heatmap(task: object, config: SANetConfig, output: Path) -> None:
    """heatmap.py: draw what speaks for each class in images."""
    keys = config.heatmap
    files = image_files(config.infer.images)
    names = result_names(config.infer.images, files)
    model = open_model(config, "mindspore")
    network = trained_network(model, "a heat map")
    table = model.classes
    wanted = class_numbers(keys.classes, table)
    find_layer(network, keys.layer)
    labels = ascii_names(table.names)
    drawn: dict[str, list[str]] = {}
    progress = Progress(len(files), "heat maps", unit="image")
    for path in files:
        image = to_eight_bits(read_image(path), path)
        maps = heat_maps(network, model.normalise(image, path), keys.layer, wanted)
        for found in maps:
            stem = f"{names[path]}-{labels[found.number]}"
            pictures = draw_heat_map(image, found, table, keys.colours, config.infer.alpha)
            for kind, picture in pictures.items():
                write_image(output / f"{stem}-{kind}.png", picture)
        drawn[str(path)] = [table.names[found.number] for found in maps]
        _tell_missing(path, table, wanted, maps)
        progress.advance()
    progress.close()
    write_json(
        output / "metrics.json",
        {"network": str(model.source), "layer": keys.layer, "classes": drawn},
    )
    log.info("heat maps of %d images at layer %s in %s", len(files), keys.layer, output)


def _tell_missing(
    path: Path, table: ClassTable, wanted: list[int] | None, maps: Sequence[HeatMap]
) -> None:
    missing = set(wanted or ()) - {found.number for found in maps}
    if missing:
        names = ", ".join(table.names[number] for number in sorted(missing))
        log.warning("%s: no pixel is predicted to be %s, so there is no heat map", path, names)
