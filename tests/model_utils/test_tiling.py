import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_utils.errors import UserError
from model_utils.files import write_image
from model_utils.tiling import (
    Place,
    RowReader,
    column_groups,
    equal_values,
    mean_values,
    nearest_centre,
    parse_tile,
    put_together,
    strips,
)
from model_utils.windows import WindowMean, windows

DRAW = np.random.default_rng(0)
PICTURE = DRAW.integers(0, 256, (300, 50, 3)).astype(np.uint8)


def write_tiff(path, image, **form):
    bands = np.atleast_3d(image).transpose(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=len(bands),
            height=bands.shape[1],
            width=bands.shape[2],
            dtype=bands.dtype,
            **form,
        ) as data:
            data.write(bands)


# -- names


@settings(deadline=None)
@given(
    st.text("aZ0_9-. ä", min_size=1).filter(lambda text: "." not in text),
    st.tuples(*[st.integers(0, 99999)] * 4),
    st.sampled_from(["", "_instance_color_RGB", "_gray_mask"]),
)
def test_names_say_what_places_said(stem, corners, suffix):
    place = Place(*corners)
    name = place.tile_name(stem, suffix)
    tile = parse_tile(f"folder/{name}.png")
    if place.top < place.bottom and place.left < place.right:
        assert tile == (Path(f"folder/{name}.png"), stem, suffix, place)
    else:
        assert tile is None


@pytest.mark.parametrize("name", ["P0003.png", "P_1_2_3.png", "_0_8_0_8.png", "P_0_8_0_8_9x.png"])
def test_other_names_are_no_tiles(name):
    tile = parse_tile(name)
    assert tile is None or tile.place != Place(0, 8, 0, 8)


# -- reading


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_rows_are_those_of_the_file(tmp_path, suffix):
    path = tmp_path / f"ä b{suffix}"
    write_image(path, PICTURE)
    with RowReader(path) as reader:
        assert (reader.height, reader.width, reader.channels) == (300, 50, 3)
        np.testing.assert_array_equal(reader.read(17, 200), PICTURE[17:200])
        np.testing.assert_array_equal(reader.read(0, 20, 7, 31), PICTURE[:20, 7:31])
    write_image(path, PICTURE[:, :, 1])
    with RowReader(path) as reader:
        np.testing.assert_array_equal(reader.read(290, 300), PICTURE[290:, :, 1])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_palettes_become_colours_and_alpha_is_dropped(tmp_path):
    numbers = DRAW.integers(0, 4, (20, 30)).astype(np.uint8)
    colours = np.array([[0, 0, 0], [0, 0, 63], [10, 200, 30], [255, 255, 255]], np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    with RowReader(tmp_path / "palette.png") as reader:
        assert reader.channels == 3
        np.testing.assert_array_equal(reader.read(3, 20), colours[numbers][3:])
    alpha = np.dstack([PICTURE, PICTURE[:, :, :1]])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    with RowReader(tmp_path / "alpha.png") as reader:
        np.testing.assert_array_equal(reader.read(0, 300), PICTURE)


def test_bands_are_chosen(tmp_path):
    four = DRAW.integers(0, 256, (9, 8, 4)).astype(np.uint8)
    write_tiff(tmp_path / "a.tif", four, photometric="MINISBLACK")
    with RowReader(tmp_path / "a.tif", [4, 1, 2]) as reader:
        np.testing.assert_array_equal(reader.read(2, 9), four[2:, :, [3, 0, 1]])
    with pytest.raises(UserError, match=r"a.tif has 4 bands, no band 5"):
        RowReader(tmp_path / "a.tif", [1, 5])


def test_files_that_cannot_be_read_are_sentences(tmp_path):
    with pytest.raises(UserError, match=r"none.png does not exist"):
        RowReader(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text.png is corrupt or of an unknown format"):
        RowReader(tmp_path / "text.png")
    write_tiff(tmp_path / "deep.tif", np.zeros((4, 4), np.uint16))
    with pytest.raises(UserError, match=r"deep.tif holds uint16 values; convert it to 8 bits"):
        RowReader(tmp_path / "deep.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_cut_off_file_gives_its_first_rows_and_then_says_so(tmp_path, suffix):
    # GDAL decodes small PNGs as a whole; here it must go by rows.
    picture = np.tile(PICTURE, (4, 10, 1))
    path = tmp_path / f"whole{suffix}"
    if suffix == ".tif":  # OpenCV writes the directory last
        write_tiff(path, picture, blockysize=10)
    else:
        cv2.imwrite(str(path), picture[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 0])
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with RowReader(cut) as reader:
        np.testing.assert_array_equal(reader.read(0, 700), picture[:700])
        with pytest.raises(UserError, match=r"cut\.\w+ is corrupt or cut off between rows 700 and"):
            reader.read(700, 1200)


# -- strips


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.lists(st.integers(0, 500), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_strips_are_the_image_and_read_every_row_at_most_once(height, tops):
    image = np.arange(tops[-1] + height, dtype=np.int32)[:, None] * np.array([1, -1])
    asked = []

    def read(top, bottom):
        assert top < bottom
        asked.extend(range(top, bottom))
        return image[top:bottom]

    for top, strip in zip(tops, strips(read, tops, height), strict=True):
        np.testing.assert_array_equal(strip, image[top : top + height])
    assert asked == sorted(set(asked))


def test_column_groups_are_no_wider_than_allowed():
    assert column_groups([0, 5, 10, 15], 8, 18) == [[0, 5, 10], [15]]
    assert column_groups([0, 5, 10], 8, 1) == [[0], [5], [10]]
    assert column_groups([0, 5, 10], 8, 99) == [[0, 5, 10]]


# -- putting together


def cut(image, side, stride):
    places = [
        Place(rows.start, rows.stop, columns.start, columns.stop)
        for rows, columns in windows(image.shape[-2:], (side, side), (stride, stride))
    ]
    return places, [image[..., p.top : p.bottom, p.left : p.right] for p in places]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(4, 25),
    st.integers(3, 25),
    st.sampled_from([(), (3,)]),
    st.randoms(use_true_random=False),
)
def test_what_was_cut_is_whole_again(height, width, side, stride, channels, random):
    image = DRAW.integers(0, 256, (*channels, height, width)).astype(np.uint8)
    places, tiles = cut(image, side, max(side // 4, min(side, stride)))
    order = list(range(len(places)))
    random.shuffle(order)
    places, tiles = [places[i] for i in order], [tiles[i] for i in order]
    loads = []

    def load(number):
        loads.append(number)
        return tiles[number]

    for rule in (equal_values(places), nearest_centre(places, (height, width))):
        bands = list(put_together(places, (height, width), load, rule))
        np.testing.assert_array_equal(np.concatenate(bands, axis=-2), image)
    assert sorted(loads) == sorted([*range(len(places))] * 2)


def test_no_more_tiles_are_loaded_than_lie_across_a_row():
    image = np.zeros((400, 40), np.uint8)
    places, tiles = cut(image, 16, 8)
    inside = []

    class Tile:
        def __init__(self, number):
            inside.append(number)
            self.number, self.shape = number, tiles[number].shape

        def __getitem__(self, key):
            return tiles[self.number][key]

        def __del__(self):
            inside.remove(self.number)

    most = 0
    for _ in put_together(places, (400, 40), Tile, lambda parts, numbers, cell: parts[0]):
        most = max(most, len(inside))
    assert most <= 2 * len({place.left for place in places})


def test_the_mean_is_that_of_all_tiles():
    image = DRAW.standard_normal((4, 37, 52)).astype(np.float32)
    places, tiles = cut(image, 20, 9)
    noisy = [tile + DRAW.standard_normal(tile.shape).astype(np.float32) for tile in tiles]
    expected = WindowMean(image.shape)
    for place, tile in zip(places, noisy, strict=True):
        expected.add((slice(*place[:2]), slice(*place[2:])), tile)
    bands = list(put_together(places, (37, 52), noisy.__getitem__, mean_values))
    np.testing.assert_allclose(np.concatenate(bands, axis=-2), expected.mean(), atol=1e-5)


def test_the_nearest_centre_is_the_tile_with_the_farthest_edge():
    size = (30, 44)
    places, _ = cut(np.zeros(size), 20, 7)
    tiles = [np.full((p.bottom - p.top, p.right - p.left), i) for i, p in enumerate(places)]
    bands = put_together(places, size, tiles.__getitem__, nearest_centre(places, size))
    chosen = np.concatenate(list(bands))

    def reach(place, row, column):
        if not (place.top <= row < place.bottom and place.left <= column < place.right):
            return -1
        sides = [
            row - place.top if place.top else 99,
            place.bottom - 1 - row if place.bottom < size[0] else 99,
            column - place.left if place.left else 99,
            place.right - 1 - column if place.right < size[1] else 99,
        ]
        return min(sides)

    for row in range(size[0]):
        for column in range(size[1]):
            reaches = [reach(place, row, column) for place in places]
            assert reaches[chosen[row, column]] == max(reaches)


def test_tiles_that_do_not_fit_are_sentences():
    image = DRAW.integers(0, 256, (20, 20)).astype(np.uint8)
    places, tiles = cut(image, 8, 6)
    rule = equal_values([f"tile {number}" for number in range(len(places))])

    def whole(places, tiles, size=(20, 20)):
        return np.concatenate(list(put_together(places, size, tiles.__getitem__, rule)))

    with pytest.raises(UserError, match="no tile covers row 8, column 8"):
        whole(places[:4] + places[5:], tiles[:4] + tiles[5:])
    with pytest.raises(UserError, match="no tile covers row 20, column 0"):
        whole(places, tiles, (21, 20))
    with pytest.raises(UserError, match="rows 0 to 8, columns 12 to 20 reaches over"):
        whole(places, tiles, (20, 19))
    with pytest.raises(UserError, match="no tiles"):
        whole([], [])
    wrong = [tile.copy() for tile in tiles]
    wrong[1][3, 0] ^= 1
    with pytest.raises(UserError, match="tile 0 and tile 1 differ at row 3, column 6 of"):
        whole(places, wrong)


def test_reading_needs_no_more_memory_for_more_rows(tmp_path):
    """The decoder keeps nothing: 6 MB of image through a reader with 1 MB to spare."""
    import tracemalloc

    rows = np.tile(DRAW.integers(0, 256, (100, 2000)).astype(np.uint8), (30, 1))
    cv2.imwrite(str(tmp_path / "tall.png"), rows)
    tracemalloc.start()
    with RowReader(tmp_path / "tall.png") as reader:
        for _ in strips(reader.read, range(0, 2900, 50), 100):
            pass
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
