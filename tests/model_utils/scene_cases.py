"""Stand-in networks and small scenes for the tests of whole scenes."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from model_utils.scenes.config import SceneConfig
from model_utils.scenes.engine import SceneNetwork, predict_scene
from model_utils.scenes.source import gdal
from model_utils.scenes.store import Layers

NAMES = ("Wasser & Schlamm", "route <étroite>", "roof", "field")
COLOURS = np.array([[0, 0, 255], [90, 90, 90], [255, 0, 0], [0, 200, 0]], np.uint8)
CLASSES = Layers("classes", NAMES, COLOURS)
PLACE = from_origin(500000, 5500000, 0.5, 0.5)


def picture(height, width, bands=3, seed=0):
    """Smooth and noisy at once, (B, H, W) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (bands, height // 16 + 2, width // 16 + 2))
    smooth = np.kron(coarse, np.ones((1, 16, 16), int))[:, :height, :width]
    return (smooth + rng.integers(0, 56, (bands, height, width))).astype(np.uint8)


def write_scene(path, pixels, crs="EPSG:32632", transform=PLACE, **options):
    """A GeoTIFF of (B, H, W) pixels."""
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"} | options
    with (
        gdal(),
        rasterio.open(
            path, "w", driver="GTiff", count=pixels.shape[0], height=pixels.shape[1],
            width=pixels.shape[2], dtype=pixels.dtype, crs=crs, transform=transform, **profile,
        ) as dataset,
    ):  # fmt: skip
        dataset.write(pixels)
    return path


def read(path, band=None):
    """Pixels of a raster, read by rasterio alone."""
    with gdal(), rasterio.open(path) as dataset:
        return dataset.read(band) if band else dataset.read()


def prepare(patches):
    """Raw values as float32; no data is 0."""
    return tuple(np.where(p.valid, p.pixels, 0).astype(np.float32) for p in patches)


def pointwise(images):
    """Scores of single pixels, (N, 4, h, w), exact in any order: integers."""
    red, green, blue = np.moveaxis(images, 1, 0)
    return np.stack([2 * blue, red + green - blue, 2 * red - 40, 2 * green - 20], 1)


def pointwise_classes(pixels):
    """What a class map made with it must hold, (H, W)."""
    return pointwise(pixels[None].astype(np.float32))[0].argmax(axis=0)


POINTWISE = SceneNetwork(prepare, pointwise, "pointwise")


def settings(**keys):
    """Small tiles."""
    return SceneConfig(**{"tile": 64, "halo": 8, "blend_width": 8} | keys)


def run(source, target, network=POINTWISE, layers=CLASSES, batch=1, **keys):
    return predict_scene(source, target, network, layers, settings(**keys), batch, show=False)


def slow_main(source, target, log, seconds):
    """A process to be killed: notes every call of its network in a file."""

    def slow(images):
        time.sleep(float(seconds))
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(float(images.sum(dtype=np.float64))) + "\n")
        return pointwise(images)

    run(Path(source), Path(target), SceneNetwork(prepare, slow, "pointwise"))


if __name__ == "__main__":
    slow_main(*sys.argv[1:])
