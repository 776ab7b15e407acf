"""Where tiles lie and how they fade."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_utils.errors import UserError
from model_utils.scenes.grid import Grid, fade, mix, tile_axis


@st.composite
def layouts(draw):
    align = draw(st.sampled_from([1, 2, 8, 32]))
    halo, width = draw(st.integers(0, 70)), draw(st.integers(0, 40))
    tile = 2 * halo + max(3 * width, width + align) + draw(st.integers(0, 200))
    return draw(st.integers(1, 3000)), tile, halo, width, align


@given(layouts())
def test_every_pixel_is_used_away_from_inner_borders(layout):
    length, tile, halo, width, align = layout
    axis = tile_axis(*layout)
    # Pieces follow each other without gap or overlap.
    assert axis.pieces[0][0] == 0 and axis.pieces[-1][1] == length
    assert all(a[1] == b[0] for a, b in zip(axis.pieces, axis.pieces[1:], strict=False))
    assert all(a < b for a, b in axis.pieces)
    for number, ((start, end), (first, last)) in enumerate(
        zip(axis.windows, axis.used, strict=True)
    ):
        assert start % align == 0 and end - start <= tile
        # Nothing that is used lies in a halo, but for the scene's own border.
        assert first - start >= (halo if number else 0)
        assert end - last >= (halo if number + 1 < len(axis.windows) else 0)
    if length > tile:
        assert all(b - a == tile for a, b in axis.windows[:-1])
        assert axis.windows[-1][1] - axis.windows[-1][0] > tile - align
    # Seams are as wide as asked for and apart from each other: never three tiles at one place.
    assert all(b - a == width for a, b in axis.seams)
    assert all(a[1] <= b[0] for a, b in zip(axis.seams, axis.seams[1:], strict=False))


def test_a_known_layout():
    axis = tile_axis(250, 100, 10, 8, 4)
    assert axis.windows == ((0, 100), (72, 172), (144, 244), (152, 250))
    assert axis.seams == ((82, 90), (154, 162), (194, 202))
    assert axis.pieces == ((0, 82), (82, 154), (154, 194), (194, 250))


def test_tiles_of_a_grid():
    grid = Grid(tile_axis(30, 100, 10), tile_axis(250, 100, 10, 8, 4))
    assert len(grid) == 4
    tile = grid.tile(1)
    assert (tile.row, tile.column, tile.shape) == (0, 1, (30, 100))
    assert (tile.above, tile.left, tile.below, tile.right) == (False, True, False, True)
    assert tile.inside(tile.piece) == (slice(0, 30), slice(10, 82))
    assert [tile.number for tile in grid.tiles(2)] == [2, 3]


@pytest.mark.parametrize("layout", [(300, 64, 32, 0, 1), (300, 64, 8, 17, 1), (300, 64, 8, 0, 64)])
def test_a_tile_without_room(layout):
    with pytest.raises(UserError, match="tile of 64 pixels has no room .* use a tile of at least"):
        tile_axis(*layout)
    needed = 2 * layout[2] + max(3 * layout[3], layout[3] + layout[4])
    tile_axis(layout[0], needed, *layout[2:])


@pytest.mark.parametrize("blend", ["cosine", "gaussian"])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_weights_rise_from_one_tile_to_the_other(blend, width):
    weight = fade(width, blend)
    assert weight.dtype == np.float32 and ((weight > 0) & (weight < 1)).all()
    assert (np.diff(weight) > 0).all()
    np.testing.assert_allclose(weight + weight[::-1], 1, atol=1e-6)


def test_weights_have_the_shape_they_are_called_after():
    at = (np.arange(16) + 0.5) / 16
    np.testing.assert_allclose(fade(16, "cosine"), np.sin(np.pi / 2 * at) ** 2, atol=1e-6)
    # Two Gaussians of deviation 1/4 at both ends, normalised.
    first, second = np.exp(-8 * at**2), np.exp(-8 * (at - 1) ** 2)
    np.testing.assert_allclose(fade(16, "gaussian"), second / (first + second), atol=1e-6)


def test_equal_values_stay_bit_for_bit():
    rng = np.random.default_rng(3)
    values = (rng.standard_normal((5, 40, 64)) * 10.0 ** rng.integers(-6, 6, (5, 40, 64))).astype(
        np.float32
    )
    np.testing.assert_array_equal(mix(values, values.copy(), fade(64, "cosine")), values)
