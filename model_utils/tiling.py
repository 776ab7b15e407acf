"""Large images in parts: rows read strip by strip, tiles named by their place, put together again.

Nothing here holds an image as a whole, except where one strip does. Places are half-open ranges
of rows and columns; names of tiles carry them as ``NAME_y0_y1_x0_x1``, as the published crops of
iSAID do.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, require_file

# Rows read at a time: temporary arrays stay small, and blocks of usual TIFFs are not cut often.
_ROWS_AT_ONCE = 128
# GDAL's own default is a share of the machine's memory.
_CACHE_MEGABYTES = 32


class Place(NamedTuple):
    """A tile's rows ``top`` to ``bottom`` and columns ``left`` to ``right``, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def tile_name(self, stem: str, suffix: str = "") -> str:
        """``stem_y0_y1_x0_x1`` and the suffix."""
        return f"{stem}_{self.top}_{self.bottom}_{self.left}_{self.right}{suffix}"


class Tile(NamedTuple):
    """A tile's file, by its name: of which image (stem and suffix), and which part of it."""

    path: Path
    stem: str
    suffix: str
    place: Place


_TILE = re.compile(r"(?P<stem>.+)_(\d+)_(\d+)_(\d+)_(\d+)(?P<suffix>(\D.*)?)")


def parse_tile(path: PathLike) -> Tile | None:
    """What a tile's name says; None if it names no place or an empty one."""
    found = _TILE.fullmatch(Path(path).stem)
    if found is None:
        return None
    place = Place(*(int(found[number]) for number in range(2, 6)))
    if place.top >= place.bottom or place.left >= place.right:
        return None
    return Tile(Path(path), found["stem"], found["suffix"], place)


class RowReader:
    """Rows of an image file, read in order without ever holding the whole.

    Formats that are compressed as one stream, such as PNG, are decoded row by row from the top;
    going back begins anew. A context manager, for one thread.

    Args:
        path: PNG, JPEG, TIFF or anything else GDAL reads; 8 bits per channel. Paletted files
            come as RGB.
        bands: which bands to take, from 1; empty takes all but an alpha band.

    Attributes:
        height, width, channels: of what is read.

    Raises:
        UserError: missing, corrupt, another data type, or a band that is not there.
    """

    def __init__(self, path: PathLike, bands: Sequence[int] = ()) -> None:
        require_file(path, "image")
        self.path = path
        self._stack = contextlib.ExitStack()
        try:
            self._open(bands)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, bands: Sequence[int]) -> None:
        import rasterio
        from rasterio.enums import ColorInterp
        from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

        self._stack.enter_context(
            rasterio.Env(
                GDAL_CACHEMAX=_CACHE_MEGABYTES,
                # Neither look for nor write files beside the image.
                GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
                GDAL_PAM_ENABLED="NO",
            )
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                self._data = self._stack.enter_context(rasterio.open(self.path))
        except RasterioIOError as error:
            raise UserError(
                f"image {self.path} is corrupt or of an unknown format; replace or remove it"
            ) from error
        data = self._data
        self.height, self.width = data.height, data.width
        interpretation = data.colorinterp
        chosen = list(bands) or [
            band for band in data.indexes if interpretation[band - 1] != ColorInterp.alpha
        ]
        if absent := [band for band in chosen if band not in data.indexes]:
            raise UserError(
                f"image {self.path} has {data.count} bands, no band {absent[0]}; choose others"
            )
        self._bands = chosen
        self._palette: np.ndarray | None = None
        if len(chosen) == 1 and interpretation[chosen[0] - 1] == ColorInterp.palette:
            palette = np.zeros((256, 3), np.uint8)
            for number, colour in data.colormap(chosen[0]).items():
                palette[number] = colour[:3]
            # Grey BMPs have a palette of all greys.
            if (palette != np.arange(256)[:, None]).any():
                self._palette = palette
        self.channels = 3 if self._palette is not None else len(chosen)
        kinds = {data.dtypes[band - 1] for band in chosen}
        if kinds != {"uint8"}:
            raise UserError(
                f"image {self.path} holds {', '.join(sorted(kinds))} values; convert it to 8 bits "
                "per channel"
            )

    def read(self, top: int, bottom: int, left: int = 0, right: int = 0) -> np.ndarray:
        """Rows ``top`` to ``bottom`` of some columns; ``right`` 0 is the width.

        Returns:
            (rows, columns) or, with several channels, (rows, columns, channels) uint8.

        Raises:
            UserError: the file is corrupt or cut off here.
        """
        from rasterio.errors import RasterioIOError
        from rasterio.windows import Window

        right = right or self.width
        window = Window(left, top, right - left, bottom - top)
        pixels = np.empty((bottom - top, right - left, len(self._bands)), np.uint8)
        try:
            self._data.read(self._bands, window=window, out=pixels.transpose(2, 0, 1))
        except RasterioIOError as error:
            reason = re.sub(r".*?: ", "", str(error.__cause__ or error), count=1)
            raise UserError(
                f"image {self.path} is corrupt or cut off between rows {top} and {bottom} "
                f"({reason}); replace or remove it"
            ) from error
        if len(self._bands) > 1:
            return pixels
        return pixels[:, :, 0] if self._palette is None else self._palette[pixels[:, :, 0]]

    def __enter__(self) -> "RowReader":
        """The reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._stack.close()


# Rows from one to another, ends excluded, of the columns in question.
ReadRows = Callable[[int, int], np.ndarray]


def strips(read: ReadRows, tops: Sequence[int], height: int) -> Iterator[np.ndarray]:
    """Overlapping strips of an image, every row of which is read once, from top to bottom.

    Args:
        read: gives rows.
        tops: first rows of the strips, rising.
        height: rows of each strip.

    Yields:
        (height, ...) for each of ``tops``; one array, filled anew each time.
    """
    strip: np.ndarray | None = None
    before = done = 0
    for top in tops:
        kept = max(0, done - top)  # rows that the strip before holds too
        for start in range(0, kept, _ROWS_AT_ONCE):
            assert strip is not None
            end = min(start + _ROWS_AT_ONCE, kept)
            strip[start:end] = strip[top - before + start : top - before + end]
        for start in range(kept, height, _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, height)
            rows = read(top + start, top + end)
            if strip is None:
                strip = np.empty((height, *rows.shape[1:]), rows.dtype)
            strip[start:end] = rows
        assert strip is not None
        before, done = top, top + height
        yield strip


def column_groups(lefts: Sequence[int], width: int, widest: int) -> list[list[int]]:
    """Neighbouring tile columns in groups that are at most ``widest`` pixels wide together.

    A tile wider than that is a group of its own.

    Args:
        lefts: first columns of the tiles, rising.
        width: of a tile.
        widest: most pixels from a group's first column to its last.
    """
    groups: list[list[int]] = []
    for left in lefts:
        if groups and left + width - groups[-1][0] <= widest:
            groups[-1].append(left)
        else:
            groups.append([left])
    return groups


# ---------------------------------------------------------------------------------------------
# putting together

# The values of one area, from every tile that covers it: their arrays (..., rows, columns),
# the tiles' numbers, and the area.
Combine = Callable[[list[np.ndarray], Sequence[int], Place], np.ndarray]
# The values (..., rows, columns) of one tile, by its number.
Load = Callable[[int], np.ndarray]


def put_together(
    places: Sequence[Place], size: tuple[int, int], load: Load, combine: Combine
) -> Iterator[np.ndarray]:
    """Bands of rows of the image that tiles were cut from, or predicted for.

    The image is divided along all edges of tiles, so that each area lies in the same tiles
    everywhere. Every tile is loaded once, when its first row is due, and dropped behind its last.

    Args:
        places: of the tiles.
        size: height and width of the image.
        load: gives a tile's values.
        combine: gives an area's values from those of its tiles, in their order in ``places``.

    Yields:
        (..., rows, width), from the top to the bottom.

    Raises:
        UserError: a pixel lies in no tile, or a tile reaches over the image.
    """
    if not places:
        raise UserError("no tiles to put together")
    for place in places:
        if place.bottom > size[0] or place.right > size[1]:
            raise UserError(
                f"a tile of rows {place.top} to {place.bottom}, columns {place.left} to "
                f"{place.right} reaches over an image of {size[0]} x {size[1]} pixels"
            )
    loaded: dict[int, np.ndarray] = {}
    cuts = sorted({0, size[0], *(p.top for p in places), *(p.bottom for p in places)})
    for top, bottom in zip(cuts, cuts[1:], strict=False):
        active = [i for i, p in enumerate(places) if p.top <= top and bottom <= p.bottom]
        for number in [number for number in loaded if number not in active]:
            del loaded[number]
        for number in active:
            if number not in loaded:
                loaded[number] = load(number)
        yield _band(Place(top, bottom, 0, size[1]), places, active, loaded, combine)


def _band(
    area: Place,
    places: Sequence[Place],
    active: Sequence[int],
    loaded: dict[int, np.ndarray],
    combine: Combine,
) -> np.ndarray:
    edges = {area.left, area.right}
    for number in active:
        edges |= {places[number].left, places[number].right}
    cuts = sorted(edges)
    band: np.ndarray | None = None
    for left, right in zip(cuts, cuts[1:], strict=False):
        cell = Place(area.top, area.bottom, left, right)
        numbers = [i for i in active if places[i].left <= left and right <= places[i].right]
        if not numbers:
            raise UserError(f"no tile covers row {cell.top}, column {cell.left}")
        parts = [
            loaded[i][
                ...,
                cell.top - places[i].top : cell.bottom - places[i].top,
                left - places[i].left : right - places[i].left,
            ]
            for i in numbers
        ]
        values = combine(parts, numbers, cell)
        if band is None:
            band = np.empty((*values.shape[:-1], area.right), values.dtype)
        band[..., left:right] = values
    assert band is not None
    return band


def equal_values(names: Sequence[Any]) -> Combine:
    """A :data:`Combine` for tiles that must agree where they overlap.

    Args:
        names: of the tiles, for the message.
    """

    def combine(parts: list[np.ndarray], numbers: Sequence[int], cell: Place) -> np.ndarray:
        for number, part in zip(numbers[1:], parts[1:], strict=True):
            different = part != parts[0]
            if different.any():
                row, column = np.argwhere(different)[0][-2:]
                raise UserError(
                    f"{names[numbers[0]]} and {names[number]} differ at row {cell.top + row}, "
                    f"column {cell.left + column} of the whole image; they are no parts of one "
                    "image, or predictions, which need another rule for overlaps"
                )
        return parts[0]

    return combine


def nearest_centre(places: Sequence[Place], size: tuple[int, int]) -> Combine:
    """A :data:`Combine` that takes each pixel from the tile whose edge is farthest away.

    Edges of the image do not count: nothing is missing there. Of equals the first tile wins.
    """

    def distance(place: Place, cell: Place) -> np.ndarray:
        rows = np.arange(cell.top, cell.bottom)[:, None]
        columns = np.arange(cell.left, cell.right)[None]
        far = sum(size)
        reach = np.full((cell.bottom - cell.top, cell.right - cell.left), far)
        for inner, steps in (
            (place.top > 0, rows - place.top),
            (place.bottom < size[0], place.bottom - 1 - rows),
            (place.left > 0, columns - place.left),
            (place.right < size[1], place.right - 1 - columns),
        ):
            if inner:
                np.minimum(reach, steps, out=reach)
        return reach

    def combine(parts: list[np.ndarray], numbers: Sequence[int], cell: Place) -> np.ndarray:
        if len(parts) == 1:
            return parts[0]
        nearest = np.argmax([distance(places[i], cell) for i in numbers], axis=0)
        chosen = parts[0].copy()
        for number, part in enumerate(parts):
            np.copyto(chosen, part, where=nearest == number)
        return chosen

    return combine


def mean_values(parts: list[np.ndarray], numbers: Sequence[int], cell: Place) -> np.ndarray:
    """A :data:`Combine` that takes the mean of all tiles, float32."""
    total = parts[0].astype(np.float32)
    for part in parts[1:]:
        total += part
    return total / np.float32(len(parts))
