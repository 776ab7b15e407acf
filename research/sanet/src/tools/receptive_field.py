"""Receptive fields of SANet: computed for every layer, counted in paths, and measured."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model_utils.augmentation import Normalisation
from model_utils.drawing import colour_map, side_by_side
from model_utils.errors import UserError
from model_utils.files import read_image, write_image, write_json
from model_utils.gradients import effective_receptive_field, effective_size, find_layer
from model_utils.logs import Progress
from model_utils.receptive_field import (
    Field,
    Window,
    path_counts,
    receptive_fields,
    texts,
    write_fields,
)
from model_utils.segmentation import to_eight_bits
from model_utils.segmenting import image_files
from model_utils.tracing import trace

from ..config import SANetConfig
from ..network import VARIANTS, SANetNetwork
from .common import fresh_network, network_or_fresh

log = logging.getLogger("zoo")
# Nothing of this size is computed; it only has to be larger than every field.
TRACED_SIZE = 16384
# Layers without which a single path is left: the deep one alone, the detail path alone, and
# everything but the branch that averages the whole image.
PATHS = {
    "deep path": ("dp1", "dp2", "down4", "down5", "compression"),
    "detail path": ("layer4", "layer5", "layer6", "compression"),
    "without global pooling": ("spp.scale4",),
}
# What the table at the end shows: the last convolution of each, and on which path.
MILESTONES = (
    ("layer3", "deep path"),
    ("layer4", "deep path"),
    ("layer5", "deep path"),
    ("layer6", "deep path"),
    ("dp1", "detail path"),
    ("dp2", "detail path"),
    ("spp.scale11", "deep path"),
    ("spp.scale22", "deep path"),
    ("spp.scale33", "deep path"),
    ("final_layer", "without global pooling"),
)
_OUTPUTS = {"seghead_extra": "aux", "final_layer": "main", "seghead_d": "boundary"}


def sanet_fields(network: SANetNetwork) -> dict[str, list[Field]]:
    """Receptive fields of all layers: over all paths, and over each of :data:`PATHS` alone."""
    graph = trace(network, (1, 3, TRACED_SIZE, TRACED_SIZE))
    return {
        "all paths": receptive_fields(graph),
        **{name: receptive_fields(graph, without) for name, without in PATHS.items()},
    }


def last_of(fields: Sequence[Field], layer: str) -> Field:
    """The last convolution of the main branch of a layer.

    Raises:
        UserError: there is none.
    """
    inside = [field for field in _on_main_branch(fields) if _within(field.layer, layer)]
    if not inside:
        raise UserError(f"there is no convolution in layer '{layer}'")
    return inside[-1]


def chain_to(fields: Sequence[Field], layers: Sequence[str]) -> list[Window]:
    """Kernel, stride and dilation of the convolutions of some layers one after another.

    Shortcuts are left out; the longest way is the one through the blocks. Only square kernels.
    """
    return [
        (field.kernel[0], field.stride[0], field.dilation[0])
        for field in _on_main_branch(fields)
        if any(_within(field.layer, layer) for layer in layers)
    ]


def _on_main_branch(fields: Sequence[Field]) -> list[Field]:
    return [f for f in fields if f.operator == "Conv2D" and "downsample" not in f.layer]


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def draw_path_counts(fields: Sequence[Field]) -> np.ndarray:
    """Number of paths from each pixel to a unit at the end of three chains, as pictures."""
    deep = ["stom", "layer1", "layer2", "layer3"]
    chains = {
        "layer3": deep,
        "dp2, the detail path": [*deep, "dp1", "dp2"],
        "layer6, the deep path": [*deep, "layer4", "layer5", "layer6"],
    }
    pictures, titles = [], []
    for name, layers in chains.items():
        counts = path_counts(chain_to(fields, layers))
        pictures.append(colour_map(counts / counts.max(), "inferno", 0.0, 1.0))
        titles.append(f"{name}: {len(counts)} x {len(counts)}")
    return side_by_side(pictures, titles, height=360)


def draw_effective(measured: np.ndarray, field: Field, layer: str) -> tuple[np.ndarray, str]:
    """A measured field with the computed one as a rectangle, and a title.

    Args:
        measured: (H, W) gradient magnitudes.
        field: of the same unit, over all paths.
        layer: for the title.
    """
    # The square root shows the faint parts; a Gaussian falls off within a few pixels.
    relative = np.sqrt(measured / max(measured.max(), 1e-30))
    picture = np.ascontiguousarray(colour_map(relative, "inferno", 0.0, 1.0))
    height, width = measured.shape
    extent = "all" if all(field.whole) else f"{field.size[0]}"
    if not all(field.whole):
        centre = (width // 2, height // 2)
        corner = (centre[0] - field.size[1] // 2, centre[1] - field.size[0] // 2)
        opposite = (corner[0] + field.size[1], corner[1] + field.size[0])
        cv2.rectangle(picture, corner, opposite, (90, 220, 255), max(1, height // 256))
    return picture, f"{layer}: {effective_size(measured):.0f} effective of {extent}"


def squares(config: SANetConfig, size: int, count: int) -> tuple[np.ndarray, str]:
    """Normalised square inputs: cut from the user's images, or noise; and which it is.

    Images smaller than the square are enlarged.
    """
    rng = np.random.default_rng(config.seed)
    if not config.infer.images:
        return rng.standard_normal((count, 3, size, size)).astype(np.float32), "normal noise"
    files = image_files(config.infer.images)
    normalise = Normalisation(tuple(config.data.mean), tuple(config.data.std))
    parts = []
    for number in range(count):
        path = files[number % len(files)]
        image = to_eight_bits(read_image(path), path)
        scale = size / min(*image.shape[:2], size)
        shape = [max(size, round(length * scale)) for length in image.shape[1::-1]]
        image = cv2.resize(image, shape, interpolation=cv2.INTER_LINEAR)
        top = int(rng.integers(image.shape[0] - size + 1))
        left = int(rng.integers(image.shape[1] - size + 1))
        parts.append(normalise(np.ascontiguousarray(image[top : top + size, left : left + size])))
    return np.stack(parts), f"squares of {config.infer.images}"


def receptive_field(task: Any, config: SANetConfig, output: Path) -> None:
    """receptive_field.py: tables of all variants, path counts, measured fields of one network."""
    summary: dict[str, Any] = {}
    by_variant = {}
    for variant in VARIANTS:
        fields = sanet_fields(fresh_network(task, config, variant))
        by_variant[variant] = fields
        columns = {name: [texts(row)[3] for row in fields[name]] for name in PATHS}
        named = [row if row.operator != "output" else _renamed(row) for row in fields["all paths"]]
        write_fields(output / f"receptive_field_{variant}.csv", named, **columns)
        write_image(output / f"paths_{variant}.png", draw_path_counts(fields["deep path"]))
        summary[variant] = {
            layer: dict(
                zip(("size", "step"), texts(last_of(fields[path], layer))[3:5], strict=True)
            )
            for layer, path in MILESTONES
        }
    for line in milestone_lines(by_variant):
        log.info(line)
    measured = {}
    if config.receptive_field.layers:
        measured = _measure(task, config, by_variant[config.variant]["all paths"], output)
    write_json(output / "metrics.json", {"computed": summary, "measured": measured})
    log.info("receptive fields in %s", output)


def _renamed(row: Field) -> Field:
    return replace(row, layer=_OUTPUTS.get(row.layer.split(".")[0], row.layer))


def milestone_lines(by_variant: dict[str, dict[str, list[Field]]]) -> list[str]:
    """The table of extents, in pixels, at the ends of the modules."""
    lines = [
        f"{'end of':<12} {'path':<24} {'step':>6} "
        + " ".join(f"{'SANet-' + variant:>12}" for variant in by_variant)
    ]
    for layer, path in MILESTONES:
        rows = [last_of(fields[path], layer) for fields in by_variant.values()]
        sizes = " ".join(f"{texts(row)[3]:>12}" for row in rows)
        lines.append(f"{layer:<12} {path:<24} {texts(rows[0])[4]:>6} {sizes}")
    return lines


def _measure(
    task: Any, config: SANetConfig, fields: Sequence[Field], output: Path
) -> dict[str, Any]:
    keys = config.receptive_field
    network, source = network_or_fresh(task, config)
    layers = [(name, find_layer(network, name)) for name in keys.layers]
    inputs, what = squares(config, keys.size, keys.count)
    pictures, titles, sizes = [], [], {}
    progress = Progress(len(layers), "effective fields", unit="layer")
    for name, layer in layers:
        measured = effective_receptive_field(network, layer, inputs)
        field = last_of(fields, name)
        picture, title = draw_effective(measured, field, name)
        pictures.append(picture)
        titles.append(title)
        sizes[name] = {
            "effective": round(effective_size(measured), 1),
            "computed": texts(field)[3],
        }
        log.info("%s (%s, %s)", title, source, what)
        progress.advance()
    progress.close()
    write_image(output / "effective.png", side_by_side(pictures, titles, columns=2, height=384))
    return {"network": source, "inputs": what, "square": keys.size, "layers": sizes}
