"""What is finished of a scene, tile by tile on disk, and the GeoTIFF that is made of it.

Beside the result ``NAME.tif`` a folder ``NAME.tif.parts`` holds one small GeoTIFF per finished
tile, the seams that neighbours still need, and what all belongs to. Each file is written whole
or not at all, so that a killed run leaves exactly its finished tiles. In the end GDAL joins
them, block by block, to a cloud-optimised GeoTIFF.
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.io import MemoryFile
from rasterio.shutil import copy as gdal_copy

from model_utils.errors import UserError
from model_utils.files import atomic_path, atomic_write, read_json, write_json
from model_utils.segmentation import IGNORE

from .grid import Grid, Tile
from .source import GDAL_ERRORS, SceneSource, gdal, reason

log = logging.getLogger("zoo")

RUN_TAG = "SCENE_RUN"
_PIECE = re.compile(r"tile_(\d{7})\.tif")
_VRT_TYPES = {"uint8": "Byte", "float32": "Float32"}
# Largest number that a probability of 1 becomes in 8 bits; 255 is no data.
PROBABILITY_TOP = 254


@dataclass(frozen=True)
class Layers:
    """What the bands of a result mean.

    Attributes:
        kind: ``classes``, one band of class numbers; ``probabilities``, a band per class; or
            ``values``, any quantities, a band each.
        names: of the classes or quantities.
        colours: (K, 3) uint8 of the classes, or None.
        dtype: of the file: uint8 or float32.
    """

    kind: str
    names: tuple[str, ...]
    colours: np.ndarray | None = None
    dtype: str = "uint8"

    @property
    def bands(self) -> int:
        """Number of bands."""
        return 1 if self.kind == "classes" else len(self.names)

    @property
    def nodata(self) -> float:
        """Value where the scene has no data."""
        return float("nan") if self.dtype == "float32" else IGNORE


class PartStore:
    """The finished tiles of one scene.

    Args:
        folder: where they are, or will be.
        grid: of the scene.
        layers: meaning of the bands.
    """

    def __init__(self, folder: Path, grid: Grid, layers: Layers) -> None:
        self.folder, self.grid, self.layers = folder, grid, layers

    # What all parts belong to --------------------------------------------------------------

    def open(self, identity: Mapping[str, Any], resume: bool) -> int:
        """How many tiles are finished; earlier parts of another kind are refused.

        Args:
            identity: what the parts depend on: scene, grid, network, settings.
            resume: False removes all earlier parts.

        Raises:
            UserError: the parts there are of another run; says what differs.
        """
        known = self.folder / "run.json"
        wanted = json.loads(json.dumps(identity))
        if not resume:
            for file in self.folder.iterdir():
                if file.name != ".lock":
                    file.unlink()
        if known.is_file():
            found = read_json(known)
            for name in {*found, *wanted}:
                if found.get(name) != wanted.get(name):
                    raise UserError(
                        f"{self.folder} holds tiles of a run with another {name} "
                        f"({_short(found.get(name))}, now {_short(wanted.get(name))}); go on with "
                        "the old setting, or begin anew with --infer.scene.resume=false"
                    )
        else:
            write_json(known, wanted)
        return self.finished()

    def finished(self) -> int:
        """Number of tiles from the first on that are there."""
        numbers = {
            int(match[1]) for file in self.folder.iterdir() if (match := _PIECE.match(file.name))
        }
        return next(number for number in range(len(self.grid) + 1) if number not in numbers)

    # Tiles ---------------------------------------------------------------------------------

    def piece_path(self, number: int) -> Path:
        """File of a finished tile."""
        return self.folder / f"tile_{number:07d}.tif"

    def write_piece(self, tile: Tile, values: np.ndarray, checksum: int) -> None:
        """Keep the finished part of a tile.

        Packed by runs of equal bytes, in half the time of fast deflate: the result is compressed
        when tiles are joined.

        Args:
            tile: which.
            values: (bands, h, w) of the layers' type.
            checksum: of the pixels it was computed from.
        """
        with gdal(), MemoryFile() as memory:
            with memory.open(
                driver="GTiff", count=values.shape[0], height=values.shape[1],
                width=values.shape[2], dtype=self.layers.dtype, compress="packbits",
                tiled=True, blockxsize=256, blockysize=256,
            ) as dataset:  # fmt: skip
                dataset.write(values)
                dataset.update_tags(INPUT=str(checksum))
            with atomic_write(self.piece_path(tile.number)) as stream:
                stream.write(memory.getbuffer())
        # The neighbours' seams are used up.
        for side, number in self._neighbours(tile):
            self._seam_path(side, number).unlink(missing_ok=True)

    def checksum(self, number: int) -> int:
        """Of the pixels that a finished tile was computed from."""
        with gdal(), rasterio.open(self.piece_path(number)) as dataset:
            return int(dataset.tags()["INPUT"])

    def read_piece(self, number: int) -> np.ndarray:
        """(bands, h, w) of a finished tile."""
        with gdal(), rasterio.open(self.piece_path(number)) as dataset:
            return dataset.read()

    # Seams ---------------------------------------------------------------------------------

    def _neighbours(self, tile: Tile) -> list[tuple[str, int]]:
        found = []
        if tile.left:
            found.append(("right", tile.number - 1))
        if tile.above:
            found.append(("bottom", tile.number - len(self.grid.columns.windows)))
        return found

    def _seam_path(self, side: str, number: int) -> Path:
        return self.folder / f"{side}_{number:07d}.npy"

    def write_seam(self, side: str, tile: Tile, values: np.ndarray) -> None:
        """Keep what the neighbour to the right or at the bottom will need of a tile."""
        # Through memory: NumPy writing to a file reports a full disk without its error number.
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(values), allow_pickle=False)
        with atomic_write(self._seam_path(side, tile.number)) as stream:
            stream.write(file.getbuffer())

    def read_seam(self, side: str, tile: Tile) -> np.ndarray:
        """What the tile to the left (side "right") or above (side "bottom") has kept.

        Raises:
            UserError: it is gone.
        """
        number = dict(self._neighbours(tile))[side]
        path = self._seam_path(side, number)
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is missing or damaged, though later tiles need it; begin anew with "
                "--infer.scene.resume=false"
            ) from error

    # The result ----------------------------------------------------------------------------

    def counts(self) -> np.ndarray:
        """Pixels of each value 0 to 255 in all finished class maps."""
        total = np.zeros(256, np.int64)
        for number in range(self.finished()):
            total += np.bincount(self.read_piece(number).ravel(), minlength=256)
        return total

    def write_mosaic(self, source: SceneSource, tags: Mapping[str, str]) -> Path:
        """A virtual raster of all finished tiles, which any GIS shows; the rest has no data."""
        path = self.folder / "finished.vrt"
        root = ElementTree.Element(
            "VRTDataset", rasterXSize=str(source.width), rasterYSize=str(source.height)
        )
        place, meaning = _georeference(source)
        root.extend(place)
        metadata = ElementTree.SubElement(root, "Metadata")
        for name, value in {**meaning, **tags}.items():
            ElementTree.SubElement(metadata, "MDI", key=name).text = value
        tiles = list(self.grid.tiles(0, self.finished()))
        for band in range(1, self.layers.bands + 1):
            root.append(self._band(band, tiles))
        ElementTree.indent(root)
        with atomic_write(path) as stream:
            ElementTree.ElementTree(root).write(stream, encoding="utf-8")
        return path

    def _band(self, band: int, tiles: Sequence[Tile]) -> ElementTree.Element:
        layers = self.layers
        element = ElementTree.Element(
            "VRTRasterBand", dataType=_VRT_TYPES[layers.dtype], band=str(band)
        )

        def add(name: str, text: str) -> None:
            ElementTree.SubElement(element, name).text = text

        add("Description", "class" if layers.kind == "classes" else layers.names[band - 1])
        add("NoDataValue", "nan" if np.isnan(layers.nodata) else str(int(layers.nodata)))
        if layers.kind == "probabilities" and layers.dtype == "uint8":
            add("Offset", "0")
            add("Scale", repr(1 / PROBABILITY_TOP))
        if layers.kind == "classes":
            names = ElementTree.SubElement(element, "CategoryNames")
            for name in layers.names:
                ElementTree.SubElement(names, "Category").text = name
            if layers.colours is not None:
                add("ColorInterp", "Palette")
                table = ElementTree.SubElement(element, "ColorTable")
                for colour in [*layers.colours.tolist(), *[[0, 0, 0]] * (256 - len(layers.names))]:
                    opaque = len(table) < len(layers.names)
                    values = {f"c{n}": str(v) for n, v in enumerate(colour, 1)}
                    values["c4"] = "255" if opaque else "0"
                    ElementTree.SubElement(table, "Entry", values)
        else:
            add("ColorInterp", "Undefined")
        for tile in tiles:
            _add_piece(element, self.piece_path(tile.number).name, band, tile, layers.dtype)
        return element

    def assemble(
        self,
        source: SceneSource,
        target: Path,
        tags: Mapping[str, str],
        compress: str,
        overviews: str,
    ) -> None:
        """Join all finished tiles to one cloud-optimised GeoTIFF, which then replaces ``target``.

        Args:
            source: the scene, whose place on earth is taken over.
            target: the file to write.
            tags: metadata to write into it.
            compress: deflate, zstd, lzw or none.
            overviews: resampling of the reduced copies, auto or none.

        Raises:
            UserError: GDAL cannot write it, for instance because the disk is full.
        """
        mosaic = self.write_mosaic(source, tags)
        if overviews == "auto":
            overviews = "nearest" if self.layers.kind == "classes" else "average"
        options: dict[str, Any] = {"COMPRESS": compress.upper(), "BIGTIFF": "IF_SAFER"}
        options["NUM_THREADS"] = min(4, os.cpu_count() or 1)
        if compress != "none" and self.layers.dtype == "float32":
            options["PREDICTOR"] = "YES"
        if overviews == "none":
            options["OVERVIEWS"] = "NONE"
        else:
            options["OVERVIEW_RESAMPLING"] = overviews.upper()
        with atomic_path(target) as temporary:
            # GDAL's own files of the moment (overviews) stay among the parts.
            joined = self.folder / "joined.tif"
            try:
                # Looking for side files of thousands of parts would take longer than reading them.
                with gdal(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
                    gdal_copy(os.fspath(mosaic), os.fspath(joined), driver="COG", **options)
                with gdal(), rasterio.open(joined) as check:
                    check.read(window=((check.height - 1, check.height), (0, 1)))
            except GDAL_ERRORS as error:
                joined.unlink(missing_ok=True)
                raise UserError(
                    f"{target} cannot be written ({reason(error)}); is the disk full? The finished "
                    f"tiles are kept in {self.folder}: run the same command again"
                ) from error
            names = Path(f"{joined}.aux.xml")
            if names.is_file():  # class names as GIS programs look for them
                os.replace(names, f"{target}.aux.xml")
            os.replace(joined, temporary)

    def remove(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else f"{text[:77]}..."


def _georeference(source: SceneSource) -> tuple[list[ElementTree.Element], dict[str, str]]:
    """What places a raster on earth, as GDAL itself writes it into a virtual one; pixel's meaning.

    The latter says whether coordinates are those of pixels' corners or centres.
    """
    with gdal(), MemoryFile(ext=".vrt") as memory:
        gdal_copy(source.dataset, memory.name, driver="VRT")
        root = ElementTree.fromstring(memory.read())
    place = [
        element
        for element in root
        if element.tag in ("SRS", "GeoTransform", "GCPList") or element.get("domain") == "RPC"
    ]
    meaning = root.findtext("Metadata/MDI[@key='AREA_OR_POINT']")
    return place, {"AREA_OR_POINT": meaning} if meaning else {}


def _add_piece(parent: ElementTree.Element, name: str, band: int, tile: Tile, dtype: str) -> None:
    (top, bottom), (left, right) = tile.piece
    width, height = str(right - left), str(bottom - top)
    source = ElementTree.SubElement(parent, "SimpleSource")
    ElementTree.SubElement(source, "SourceFilename", relativeToVRT="1").text = name
    ElementTree.SubElement(source, "SourceBand").text = str(band)
    # Known sizes and types: GDAL opens a part only when it is read.
    ElementTree.SubElement(
        source, "SourceProperties", RasterXSize=width, RasterYSize=height,
        DataType=_VRT_TYPES[dtype], BlockXSize="256", BlockYSize="256",
    )  # fmt: skip
    ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
    ElementTree.SubElement(
        source, "DstRect", xOff=str(left), yOff=str(top), xSize=width, ySize=height
    )


def run_number(identity: Mapping[str, Any]) -> str:
    """What a run depends on as one short number, for the result's metadata."""
    return f"{zlib.crc32(json.dumps(identity, sort_keys=True).encode()):08x}"


def is_finished(target: Path, number: str) -> bool:
    """Whether a result of exactly this run is there."""
    if not target.is_file():
        return False
    with contextlib.suppress(*GDAL_ERRORS), gdal(), rasterio.open(target) as dataset:
        return bool(dataset.tags().get(RUN_TAG) == number)
    return False
