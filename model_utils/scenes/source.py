"""Scenes as they are read: windows of any raster that GDAL knows, with what is missing in them."""

import contextlib
import glob
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.shutil import copy as gdal_copy
from rasterio.windows import Window

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path, require_file, require_folder
from model_utils.segmentation import IMAGE_SUFFIXES

from .grid import Span

log = logging.getLogger("zoo")

SCENE_SUFFIXES = (*IMAGE_SUFFIXES, ".vrt", ".jp2", ".img")
# Copying raises what GDAL reports itself, which has no public name.
GDAL_ERRORS = (RasterioError, CPLE_BaseError)
# GDAL's cache of blocks; its own default is a share of the machine's memory.
CACHE_BYTES = 64 << 20
# Formats that are decoded from the first row on, whatever is asked for.
_SEQUENTIAL = {"PNG", "JPEG", "GIF", "WEBP", "BIGGIF"}
_ENVIRONMENT = {
    "GDAL_CACHEMAX": CACHE_BYTES,
    # Open files of a virtual mosaic; the default of 450 holds a block of each.
    "GDAL_MAX_DATASET_POOL_SIZE": 32,
    # A JPEG that ends early is an error, not grey below.
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
}


@contextlib.contextmanager
def gdal(**options: Any) -> Iterator[None]:
    """GDAL with bounded memory; rasters without georeference are nothing to be warned of."""
    with rasterio.Env(**_ENVIRONMENT, **options), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@dataclass(frozen=True)
class Patch:
    """A window of a scene.

    Attributes:
        pixels: (B, h, w), the bands asked for, in the file's type.
        valid: (h, w) bool, False where the scene has no data.
        name: what to call it in messages.
    """

    pixels: np.ndarray
    valid: np.ndarray
    name: str


class SceneSource:
    """A raster that is read window by window, by one thread at a time.

    A pixel has no data where an alpha or mask band says so; where all bands hold their no-data
    value (with more than 8 bits: any band, as the value is no colour then); where a band is NaN.

    Args:
        path: any raster file that GDAL reads.
        channels: bands wanted.
        bands: which, counted from 1; empty chooses, see :func:`choose_bands`.
        scratch: folder for copies of files that cannot be read in windows; None reads them as
            they are.

    Raises:
        UserError: missing, no raster, or without fitting bands.
    """

    def __init__(
        self,
        path: PathLike,
        channels: int = 3,
        bands: Sequence[int] = (),
        scratch: Path | None = None,
    ) -> None:
        self.path = require_file(path, "scene", "give an image that GDAL reads")
        with gdal():
            self.dataset = _open(self.path)
            try:
                self.bands, self._colours = choose_bands(self.dataset, channels, bands, self.path)
                if scratch is not None and _is_sequential(self.dataset):
                    self.dataset = _unpacked(self.dataset, self.path, scratch)
            except BaseException:
                self.dataset.close()
                raise
        self.channels = channels
        self.height, self.width = self.dataset.height, self.dataset.width
        self.dtype = np.dtype(self.dataset.dtypes[self.bands[0] - 1])
        flags = self.dataset.mask_flag_enums
        self._complete = all(MaskFlags.all_valid in flags[band - 1] for band in self.bands)
        self.crs, self.transform = self.dataset.crs, self.dataset.transform

    def read(self, rows: Span, columns: Span) -> Patch:
        """A window.

        Raises:
            UserError: the file is damaged or cut off there.
        """
        window = Window.from_slices(rows, columns)
        name = f"{self.path}, rows {rows[0]} to {rows[1]}, columns {columns[0]} to {columns[1]}"
        try:
            with gdal():
                pixels = self.dataset.read(self.bands, window=window)
                valid = self._valid(window)
        except GDAL_ERRORS as error:
            raise UserError(
                f"scene {name} cannot be read ({reason(error)}): the file is cut off or damaged; "
                "copy it again"
            ) from error
        if self._colours is not None:
            pixels = self._colours[:, pixels[0]]
        elif len(self.bands) < self.channels:
            pixels = np.repeat(pixels, self.channels, axis=0)
        if self.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=0)
        return Patch(pixels, valid, name)

    def _valid(self, window: Window) -> np.ndarray:
        if self._complete:
            return np.ones((round(window.height), round(window.width)), bool)
        masks = self.dataset.read_masks(self.bands, window=window)
        return masks.any(axis=0) if self.dtype.itemsize == 1 else masks.all(axis=0)

    def state(self) -> list[int]:
        """Size and time of the file: where both are as before, its content is taken to be."""
        found = self.path.stat()
        return [found.st_size, found.st_mtime_ns]

    def close(self) -> None:
        """Let go of the file."""
        self.dataset.close()


def _open(path: Path) -> Any:
    try:
        # An absolute path, which GDAL cannot take for one of its prefixes such as "ZIP:".
        dataset = rasterio.open(path.resolve())
    except GDAL_ERRORS as error:
        size = path.stat().st_size
        raise UserError(
            f"scene {path} is corrupt, cut off or of an unknown format ({size} bytes; "
            f"{reason(error)}); copy it again or convert it to GeoTIFF"
        ) from error
    if not dataset.count or 0 in dataset.shape:
        dataset.close()
        raise UserError(f"scene {path} is a container without an image of its own; extract one")
    return dataset


def reason(error: Exception) -> str:
    """GDAL's own words, which hang below rasterio's general ones."""
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    return (str(deepest).strip().splitlines() or [type(deepest).__name__])[0]


def choose_bands(
    dataset: Any, channels: int, wanted: Sequence[int], path: Path
) -> tuple[list[int], np.ndarray | None]:
    """Which bands of a raster a network gets.

    Without a wish: red, green and blue where three are wanted and the file says which they are;
    else all bands but alpha, in the file's order. A single band is repeated, or has its palette
    applied, where three are wanted.

    Args:
        dataset: open.
        channels: how many the network takes.
        wanted: the user's choice, counted from 1.
        path: for messages.

    Returns:
        Bands to read, and a palette (3, 256) uint8 or None.

    Raises:
        UserError: a band that is not there, or another number of them.
    """
    meanings = list(dataset.colorinterp)
    described = ", ".join(f"{number} {kind.name}" for number, kind in enumerate(meanings, 1))
    chosen = list(wanted)
    for band in chosen:
        if not 1 <= band <= dataset.count:
            raise UserError(
                f"scene {path} has no band {band}, only {dataset.count} ({described}); correct "
                "--infer.scene.bands"
            )
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if not chosen and channels == 3 and all(meanings.count(colour) == 1 for colour in colours):
        chosen = [meanings.index(colour) + 1 for colour in colours]
        if chosen != [1, 2, 3]:
            log.info("%s: bands %s are red, green, blue", path, chosen)
    if not chosen:
        chosen = [band for band, kind in enumerate(meanings, 1) if kind != ColorInterp.alpha]
    if len(chosen) == 1 and channels == 3:
        return chosen, _palette(dataset, chosen[0]) if not wanted else None
    if len(chosen) != channels:
        # A single band can stand for three.
        most = channels if dataset.count >= channels else 1
        example = ",".join(map(str, range(1, most + 1)))
        raise UserError(
            f"scene {path} has {dataset.count} bands ({described}), the network takes {channels}; "
            f"name them in order, e.g. --infer.scene.bands={example}"
        )
    kinds = {dataset.dtypes[band - 1] for band in chosen}
    if len(kinds) > 1:
        raise UserError(
            f"scene {path} has bands of different types ({', '.join(sorted(kinds))}); convert them "
            "to one"
        )
    return chosen, None


def _palette(dataset: Any, band: int) -> np.ndarray | None:
    if dataset.colorinterp[band - 1] != ColorInterp.palette or dataset.dtypes[band - 1] != "uint8":
        return None
    table = np.zeros((3, 256), np.uint8)
    for number, colour in dataset.colormap(band).items():
        table[:, number] = colour[:3]
    return table


def _is_sequential(dataset: Any) -> bool:
    """Whether reading windows row by row would decode much of the file again and again."""
    size = sum(np.dtype(kind).itemsize for kind in dataset.dtypes) * dataset.height * dataset.width
    if size <= CACHE_BYTES:  # decoded once, and kept
        return False
    if dataset.driver in _SEQUENTIAL:
        return True
    strips = dataset.block_shapes[0][1] == dataset.width
    return strips and dataset.compression is not None


def _unpacked(dataset: Any, path: Path, scratch: Path) -> Any:
    """The raster as a tiled file without compression, written now unless it is there."""
    found = path.stat()
    # Its name tells of which state of which file it is a copy.
    target = scratch / f"unpacked_{path.stem}_{found.st_size}_{found.st_mtime_ns}.tif"
    if not target.is_file():
        for stale in scratch.glob(f"unpacked_{glob.escape(path.stem)}_*.tif"):
            stale.unlink()
        log.info("%s cannot be read in windows; unpacking it once to %s", path, target)
        with atomic_path(target) as temporary:
            options = {"TILED": "YES", "BLOCKXSIZE": 512, "BLOCKYSIZE": 512, "BIGTIFF": "IF_SAFER"}
            try:
                gdal_copy(dataset, os.fspath(temporary), driver="GTiff", **options)
            except GDAL_ERRORS as error:
                raise UserError(
                    f"scene {path} cannot be unpacked to {target} ({reason(error)}): either it is "
                    "cut off or damaged, or the disk is full"
                ) from error
    dataset.close()
    return _open(target)


def scene_files(given: PathLike) -> list[Path]:
    """One scene, or all scenes of a folder and the folders below it, in order of name.

    Raises:
        UserError: nothing there.
    """
    path = Path(given)
    if not path.is_dir():
        return [require_file(path, "scene", "give a raster file or a folder of them")]
    require_folder(path, "scene folder")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SCENE_SUFFIXES and not file.name.startswith(".")
        and not any(part.endswith(".parts") for part in file.relative_to(path).parts)
    )  # fmt: skip
    if not found:
        raise UserError(f"{path} holds no scene ({', '.join(SCENE_SUFFIXES)}); check the path")
    return found


def eight_bits(patch: Patch, value_range: Sequence[float] = ()) -> np.ndarray:
    """Pixels of a patch as (B, h, w) uint8.

    Args:
        patch: of any type.
        value_range: values that become 0 and 255, those outside cut off; empty takes 8 bits as
            they are and 16 bits by their whole range.

    Raises:
        UserError: a range is needed or is none.
    """
    pixels = patch.pixels
    if value_range:
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise UserError(
                f"value_range is {list(value_range)}; give two rising numbers: the values that "
                "become 0 and 255"
            )
        low, high = value_range
        scaled = (pixels.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        # What has no data may be NaN; its value does not matter.
        scaled = np.nan_to_num(scaled, nan=0.0)
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return np.rint(pixels * np.float32(255 / 65535)).astype(np.uint8)
    raise UserError(
        f"scene {patch.name} holds {pixels.dtype} values, whose range is unknown; say which "
        "values are black and white: --infer.scene.value_range=LOW,HIGH"
    )
