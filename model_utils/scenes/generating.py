"""Large scenes to test with: fields, roads and roofs, written in bounded memory."""

from pathlib import Path

import cv2
import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from model_utils.files import PathLike, atomic_path

from .source import gdal

_BLOCK = 512


def generate_scene(
    path: PathLike, height: int, width: int, seed: int = 1, compress: str = "lzw"
) -> Path:
    """Write a three-band 8-bit GeoTIFF that looks a little like the ground from above.

    Each block of 512 x 512 pixels depends on the seed and its place only: smooth ground of
    several colours, straight roads, bright rectangular roofs, noise. 0.3 m pixels in UTM zone 32.

    Args:
        path: the file.
        height: rows.
        width: columns.
        seed: other seeds give other scenes.
        compress: of the file; "none" for none.
    """
    with (
        gdal(),
        atomic_path(path) as temporary,
        rasterio.open(
            temporary, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8",
            crs="EPSG:32632", transform=from_origin(500000, 5500000, 0.3, 0.3), tiled=True,
            blockxsize=_BLOCK, blockysize=_BLOCK, photometric="RGB", bigtiff="IF_SAFER",
            interleave="pixel", compress=None if compress == "none" else compress,
        ) as dataset,
    ):  # fmt: skip
        for top in range(0, height, _BLOCK):
            for left in range(0, width, _BLOCK):
                block = _block(seed, top // _BLOCK, left // _BLOCK)
                part = block[: height - top, : width - left]
                window = Window(left, top, part.shape[1], part.shape[0])
                dataset.write(np.moveaxis(part, 2, 0), window=window)
    return Path(path)


def _block(seed: int, row: int, column: int) -> np.ndarray:
    rng = np.random.default_rng((seed, row, column))
    corners = rng.integers(40, 170, (5, 5, 3), dtype=np.uint8)
    picture = cv2.resize(corners, (_BLOCK, _BLOCK), interpolation=cv2.INTER_LINEAR)
    for _ in range(3):
        a, b = rng.integers(0, _BLOCK, (2, 2)).tolist()
        cv2.line(picture, a, b, (95, 95, 100), int(rng.integers(6, 22)))
    for _ in range(12):
        x, y = rng.integers(0, _BLOCK, 2).tolist()
        w, h = rng.integers(15, 70, 2).tolist()
        colour = tuple(int(c) for c in rng.integers(120, 250, 3))
        cv2.rectangle(picture, (x, y), (x + w, y + h), colour, cv2.FILLED)
    # Values lie in 40 to 249, so that the sum stays within 8 bits.
    noise = rng.integers(-6, 7, (_BLOCK, _BLOCK, 1), dtype=np.int8)
    return picture + noise.view(np.uint8)
