"""Where tiles lie, where neighbours meet, and how they fade into each other.

Along each axis tiles overlap. In the middle of an overlap lies the *seam*, a zone across which
the earlier tile fades into the later one; outside their seams, tiles count alone. What lies
beyond a seam, towards the tile's border, is its halo: computed for context, never used.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model_utils.errors import UserError

Span = tuple[int, int]
BLENDS = ("flat", "cosine", "gaussian")


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of a scene; spans are (first, behind the last) in scene pixels.

    Attributes:
        windows: what each tile reads.
        seams: where each tile fades into the next one.
        used: the part of each tile that counts, its seams included.
        pieces: the part of the result that is complete with each tile; together the whole side.
    """

    windows: tuple[Span, ...]
    seams: tuple[Span, ...]
    used: tuple[Span, ...]
    pieces: tuple[Span, ...]


def tile_axis(length: int, tile: int, halo: int, width: int = 0, align: int = 1) -> Axis:
    """Lay tiles along one side.

    All tiles have the full length but the last, which begins where the network's strides allow
    it and ends with the scene; so does the only tile of a scene no longer than a tile.

    Args:
        length: pixels of the side.
        tile: pixels of a tile.
        halo: pixels along inner borders that are not used.
        width: pixels of a seam.
        align: tiles begin at multiples of this (the network's total stride), so that its grids
            of features fall on the same pixels whatever the tile.

    Raises:
        UserError: the tile is too short for its halos and seams.
    """
    if length <= tile:
        return _axis([(0, length)], length, width)
    step = (tile - 2 * halo - width) // align * align
    if step < 1 or tile < 2 * halo + 3 * width:
        raise UserError(
            f"a tile of {tile} pixels has no room for halos of {halo} on both sides and seams of "
            f"{width} at steps of {align}; use a tile of at least "
            f"{2 * halo + max(3 * width, width + align)}, or smaller halos"
        )
    # Rounded up: the last tile may be shorter by less than align, but never longer.
    last = -((tile - length) // align) * align
    starts = [*range(0, last, step), last]
    return _axis([(start, min(start + tile, length)) for start in starts], length, width)


def _axis(windows: list[Span], length: int, width: int) -> Axis:
    seams = []
    for (_, end), (start, _) in zip(windows, windows[1:], strict=False):
        first = (start + end) // 2 - width // 2
        seams.append((first, first + width))
    begins = [0, *(seam[0] for seam in seams)]
    return Axis(
        tuple(windows),
        tuple(seams),
        tuple(zip(begins, [*(seam[1] for seam in seams), length], strict=True)),
        tuple(zip(begins, [*(seam[0] for seam in seams), length], strict=True)),
    )


@dataclass(frozen=True)
class Tile:
    """One tile; all spans in scene pixels.

    Attributes:
        number: its place in the order of work, row by row.
        row, column: its place in the grid.
        window: rows and columns that are read.
        used: rows and columns that count.
        piece: rows and columns of the result that are complete with it.
        above, left: whether it has such neighbours.
        below, right: the same.
    """

    number: int
    row: int
    column: int
    window: tuple[Span, Span]
    used: tuple[Span, Span]
    piece: tuple[Span, Span]
    above: bool
    left: bool
    below: bool
    right: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is read."""
        (top, bottom), (left, right) = self.window
        return bottom - top, right - left

    def inside(self, spans: tuple[Span, Span]) -> tuple[slice, slice]:
        """Rows and columns of the scene as slices of what was read."""
        (top, _), (left, _) = self.window
        (first, last), (begin, end) = spans
        return slice(first - top, last - top), slice(begin - left, end - left)


@dataclass(frozen=True)
class Grid:
    """Tiles over a scene."""

    rows: Axis
    columns: Axis

    def __len__(self) -> int:
        return len(self.rows.windows) * len(self.columns.windows)

    def tile(self, number: int) -> Tile:
        """The tile of a number."""
        row, column = divmod(number, len(self.columns.windows))
        return Tile(
            number,
            row,
            column,
            (self.rows.windows[row], self.columns.windows[column]),
            (self.rows.used[row], self.columns.used[column]),
            (self.rows.pieces[row], self.columns.pieces[column]),
            row > 0,
            column > 0,
            row + 1 < len(self.rows.windows),
            column + 1 < len(self.columns.windows),
        )

    def tiles(self, begin: int = 0, end: int | None = None) -> Iterator[Tile]:
        """Tiles in order of work."""
        return map(self.tile, range(begin, len(self) if end is None else min(end, len(self))))


def fade(width: int, blend: str) -> np.ndarray:
    """Weight of the later tile at each pixel of a seam, (width,) float32 rising within (0, 1).

    Args:
        width: pixels of the seam.
        blend: ``cosine``, half a period from 0 to 1; ``gaussian``, the share of the later of two
            Gaussians, which are centred on the seam's ends and a quarter of it wide.
    """
    place = (np.arange(width) + 0.5) / max(1, width)
    if blend == "cosine":
        weight = 0.5 - 0.5 * np.cos(np.pi * place)
    elif blend == "gaussian":
        weight = 1 / (1 + np.exp(16 * (0.5 - place)))
    else:
        raise UserError(f"blend {blend} does not fade; choose cosine or gaussian")
    return weight.astype(np.float32)


def mix(earlier: np.ndarray, later: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Earlier values faded into later ones; where both are equal, exactly those."""
    return earlier + weight * (later - earlier)
