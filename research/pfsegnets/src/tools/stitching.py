"""Patches to whole images again: masks, images, predicted classes, probabilities.

Images are written from the top, a band of rows at a time, and patches are read when their first
row is due; memory holds the patches that lie across one row.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import (
    FolderLock,
    atomic_path,
    read_image,
    require_file,
    require_folder,
)
from model_utils.logs import Progress
from model_utils.manifest import Manifest, read_manifest
from model_utils.png import PngWriter
from model_utils.segmentation import IMAGE_SUFFIXES, ClassTable
from model_utils.tiling import (
    Combine,
    Place,
    RowReader,
    Tile,
    equal_values,
    mean_values,
    nearest_centre,
    parse_tile,
    put_together,
)

from ..config import PFNetConfig

log = logging.getLogger("zoo")

_PROBABILITIES = ".npy"


@dataclass(frozen=True)
class Whole:
    """An image to put together.

    Attributes:
        name: its file's, without suffix.
        tiles: its patches, from the top and the left.
        size: height and width.
    """

    name: str
    tiles: tuple[Tile, ...]
    size: tuple[int, int]


def find_wholes(folder: Path, manifest: str = "") -> list[Whole]:
    """The images that a folder's patches belong to.

    Args:
        folder: holds ``NAME_y0_y1_x0_x1<ending>`` as PNG, TIFF or, for probabilities, npy.
        manifest: a cropping's, for the sizes of the images. Without one an image ends where its
            last patches do.

    Raises:
        UserError: no patches there, or patches that the manifest lists are missing.
    """
    require_folder(folder, "folder of patches", "set stitch.source")
    tiles: dict[str, list[Tile]] = {}
    for file in sorted(folder.iterdir()):
        suffix = file.suffix.lower()
        if not file.name.startswith(".") and suffix in (*IMAGE_SUFFIXES, _PROBABILITIES):
            tile = parse_tile(file) or _whole_file(file)
            tiles.setdefault(tile.stem + tile.suffix, []).append(tile)
    if not tiles:
        raise UserError(f"{folder} holds no patches NAME_y0_y1_x0_x1.png or .npy")
    sizes = _sizes(manifest)
    wholes = []
    for name, found in tiles.items():
        size = max(t.place.bottom for t in found), max(t.place.right for t in found)
        if manifest and parse_tile(found[0].path):
            if found[0].stem not in sizes:
                raise UserError(f"{manifest} lists no patches of {found[0].stem}; set its own")
            size = sizes[found[0].stem]
        ordered = sorted(found, key=lambda tile: tile.place)
        wholes.append(Whole(name, tuple(ordered), size))
    return wholes


def _whole_file(file: Path) -> Tile:
    """A file whose name gives no place: an image that was too small to be cropped."""
    if file.suffix.lower() == _PROBABILITIES:
        height, width = _array(file).shape[-2:]
    else:
        with RowReader(file) as image:
            height, width = image.height, image.width
    return Tile(file, file.stem, "", Place(0, height, 0, width))


def _sizes(manifest: str) -> dict[str, tuple[int, int]]:
    """Height and width of the images in a manifest, by name."""
    if not manifest:
        return {}
    require_file(manifest, "manifest", "set stitch.manifest")
    sizes = {}
    for entry in read_manifest(manifest):
        if tile := parse_tile(entry["file"]):
            height, width = entry["size"]
            sizes[tile.stem] = height, width
    return sizes


def stitched(whole: Whole, overlap: str = "equal") -> Iterator[np.ndarray]:
    """An image's bands of rows, from the top.

    Args:
        whole: the image.
        overlap: "equal", "centre" or "mean", see ``StitchConfig``.

    Yields:
        (rows, W) uint8 class numbers, (3, rows, W) uint8 RGB, or (K, rows, W) float32
        probabilities.

    Raises:
        UserError: patches that do not cover the image, differ where they should not, or are not
            what their names say.
    """
    places = [tile.place for tile in whole.tiles]
    rules: dict[str, Combine] = {
        "equal": equal_values([tile.path for tile in whole.tiles]),
        "centre": nearest_centre(places, whole.size),
        "mean": mean_values,
    }
    kinds: dict[tuple[int, ...], Path] = {}

    def load(number: int) -> np.ndarray:
        tile = whole.tiles[number]
        values = _values(tile)
        kinds.setdefault(values.shape[:-2], tile.path)
        if len(kinds) > 1:
            first, other = kinds
            raise UserError(
                f"{kinds[first]} and {kinds[other]} have different channels ({first}, {other}); "
                "patches of one image must be alike"
            )
        if overlap == "mean" and values.dtype == np.uint8:
            raise UserError(
                f"{tile.path} holds class numbers or colours, which have no mean; set "
                "stitch.overlap to equal or centre"
            )
        return values

    try:
        yield from put_together(places, whole.size, load, rules[overlap])
    except UserError as error:
        if str(error).startswith(("no tile", "a tile")):  # these cannot say of which image
            raise UserError(f"image {whole.name}: {error}; complete the patches") from error
        raise


def _values(tile: Tile) -> np.ndarray:
    """A patch, channels first."""
    if tile.path.suffix.lower() == _PROBABILITIES:
        values = _array(tile.path)
    else:
        values = read_image(tile.path, channels=0)
        if values.dtype != np.uint8:
            raise UserError(f"{tile.path} holds {values.dtype} values; convert it to 8 bits")
        if values.ndim == 3:
            values = values.transpose(2, 0, 1)
    place = tile.place
    if values.shape[-2:] != (place.bottom - place.top, place.right - place.left):
        raise UserError(
            f"{tile.path} has {values.shape[-2]} x {values.shape[-1]} pixels, by its name it is "
            f"{place.bottom - place.top} x {place.right - place.left}; do not resize patches"
        )
    return values


def _array(path: Path) -> np.ndarray:
    """Probabilities, (K, rows, columns), mapped rather than read."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no NumPy array: {error}; replace it") from error
    if values.ndim != 3 or values.dtype.kind != "f":
        raise UserError(
            f"{path} holds {values.dtype} {values.shape}; probabilities are floating point "
            "(classes, rows, columns)"
        )
    return values


def write_classes(
    target: Path, bands: Iterator[np.ndarray], size: tuple[int, int], classes: ClassTable | None
) -> int:
    """Write bands as a PNG, which appears when complete; returns its length in bytes.

    Args:
        target: the file.
        bands: of :func:`stitched`; of probabilities the likeliest class is written.
        size: height and width.
        classes: write class colours; None writes numbers, and images as they are.
    """
    with atomic_path(target) as temporary, open(temporary, "wb") as stream:
        writer: PngWriter | None = None
        for band in bands:
            rows = band.argmax(0).astype(np.uint8) if band.dtype != np.uint8 else band
            if rows.ndim == 3:
                rows = rows.transpose(1, 2, 0)
            elif classes is not None:
                rows = classes.colourise(rows)
            if writer is None:
                writer = PngWriter(stream, *size, rows.shape[2] if rows.ndim == 3 else 1)
            writer.write(np.ascontiguousarray(rows))
        assert writer is not None
        writer.close()
        return stream.tell()


def write_probabilities(target: Path, bands: Iterator[np.ndarray], size: tuple[int, int]) -> int:
    """Write bands as a tiled TIFF of float32, one band per class; returns its length in bytes."""
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.windows import Window

    first = next(bands)
    height, width = size
    form = {
        "driver": "GTiff",
        "count": len(first),
        "height": height,
        "width": width,
        "dtype": "float32",
        "compress": "deflate",
        "predictor": 3,
        "interleave": "band",
        "BIGTIFF": "IF_SAFER",
    }
    with atomic_path(target) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(temporary, "w", **form) as data:
            top, band = 0, first
            while band is not None:
                values = np.ascontiguousarray(band, np.float32)
                data.write(values, window=Window(0, top, width, values.shape[1]))
                top, band = top + values.shape[1], next(bands, None)
        length = os.path.getsize(temporary)
    return length


def stitch_folder(
    source: Path,
    output: Path,
    overlap: str = "equal",
    classes: ClassTable | None = None,
    probabilities: bool = False,
    manifest: str = "",
) -> Sequence[Path]:
    """Put all images of a folder of patches together; images already finished are kept.

    Args:
        source: the patches.
        output: gets ``NAME.png``, or ``NAME.tif`` of probabilities.
        overlap: see :func:`stitched`.
        classes: write class colours of class numbers.
        probabilities: write probabilities instead of the likeliest class.
        manifest: see :func:`find_wholes`.

    Returns:
        The images.

    Raises:
        UserError: see :func:`find_wholes` and :func:`stitched`, or both folders are one.
    """
    wholes = find_wholes(source, manifest)
    if source.resolve() == output.resolve():
        raise UserError(
            f"{source} is input and output folder, so that images would be taken for patches; "
            "choose another output_path"
        )
    settings = {
        "source": str(source.resolve()),
        "overlap": overlap,
        "colours": classes is not None,
        "probabilities": probabilities,
    }
    record = Manifest(output / "manifest_stitched.jsonl", settings)
    with FolderLock(output), record:
        progress = Progress(len(wholes), "stitching", unit="image")
        targets = []
        for whole in wholes:
            target = output / f"{whole.name}.{'tif' if probabilities else 'png'}"
            targets.append(target)
            done = record.done.get(target.name)
            state = {
                "patches": len(whole.tiles),
                "newest": max(tile.path.stat().st_mtime_ns for tile in whole.tiles),
                "size": list(whole.size),
            }
            # Stitched anew if patches came or changed.
            if not (done and done.items() >= state.items() and target.is_file()):
                bands = stitched(whole, overlap)
                if probabilities:
                    length = write_probabilities(target, bands, whole.size)
                else:
                    length = write_classes(target, bands, whole.size, classes)
                record.add({"file": target.name, **state, "bytes": length})
            progress.advance()
        progress.close()
    return targets


def stitch(task: Any, config: PFNetConfig, output: Path) -> None:
    """stitch.py: put patches together to whole images."""
    from ..layouts import class_table

    keys = config.stitch
    if not keys.source:
        raise UserError("no patches given; add --stitch.source=FOLDER")
    targets = stitch_folder(
        Path(keys.source),
        output,
        keys.overlap,
        class_table(config) if keys.colours else None,
        keys.probabilities,
        keys.manifest,
    )
    log.info("%d images in %s", len(targets), output)
