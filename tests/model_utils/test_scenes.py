"""Whole scenes: what comes out does not depend on tiles, and lies where it should."""

import json
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine

from model_utils.errors import UserError
from model_utils.scenes import source as scene_source
from model_utils.scenes.engine import SceneNetwork, largest, predict_scene
from model_utils.scenes.generating import generate_scene
from model_utils.scenes.grid import fade
from model_utils.scenes.source import gdal, scene_files
from model_utils.scenes.store import Layers
from tests.model_utils.scene_cases import (
    CLASSES,
    COLOURS,
    NAMES,
    PLACE,
    POINTWISE,
    picture,
    pointwise,
    pointwise_classes,
    prepare,
    read,
    run,
    settings,
    write_scene,
)


class IntegerConvolutions:
    """Three layers of zero-padded convolutions, one of them with stride 2, of small integers.

    All sums stay below 2**24, so that float32 is exact in any order of addition. A pixel of the
    result sees 1 + 1 + 2 pixels on each side, and one more by the stride.
    """

    reach = 5
    layers = ((3, 4, 1), (4, 4, 2), (4, 4, 1))

    def __init__(self, seed=5):
        rng = np.random.default_rng(seed)
        self.weights = [
            rng.integers(-1, 2, (o, i, 3, 3)).astype(np.float32) for i, o, _ in self.layers
        ]

    def __call__(self, images):
        results = []
        for image in images:
            values, size = image, image.shape[1:]
            for weights, (_, _, stride) in zip(self.weights, self.layers, strict=True):
                values = self.convolve(values, weights)[:, ::stride, ::stride]
            values = values.repeat(2, axis=1).repeat(2, axis=2)
            results.append(values[:, : size[0], : size[1]])
        return np.stack(results)

    @staticmethod
    def convolve(values, weights):
        return np.stack(
            [
                sum(
                    cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_CONSTANT)
                    for plane, kernel in zip(values, kernels, strict=True)
                )
                for kernels in weights
            ]
        )


@pytest.fixture(scope="module")
def convolutions():
    return IntegerConvolutions()


@pytest.mark.parametrize("blend", ["flat", "cosine", "gaussian"])
@pytest.mark.parametrize("tile", [48, 62, 100])
def test_result_does_not_depend_on_tiles(tmp_path, convolutions, tile, blend):
    """Bit for bit, where the halo covers what a pixel sees: scores, not only classes."""
    pixels = picture(151, 203)
    pixels[:, 60:75, 30:90] = 0  # no data, inside tiles
    source = write_scene(tmp_path / "scene.tif", pixels, nodata=0)
    network = SceneNetwork(prepare, convolutions, align=2)
    layers = Layers("values", NAMES, dtype="float32")
    run(source, tmp_path / "out.tif", network, layers, tile=tile, halo=6, blend=blend)
    whole = convolutions(pixels[None].astype(np.float32))[0]
    assert np.abs(whole).max() > 1000
    whole[:, (pixels == 0).all(axis=0)] = np.nan
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), whole)
    run(source, tmp_path / "classes.tif", network, tile=tile, halo=6, blend=blend)
    expected = np.where(np.isnan(whole[0]), 255, np.nan_to_num(whole).argmax(axis=0))
    np.testing.assert_array_equal(read(tmp_path / "classes.tif", 1), expected)


def test_a_halo_that_is_too_small_shows(tmp_path, convolutions):
    """The test above can fail."""
    pixels = picture(151, 203)
    source = write_scene(tmp_path / "scene.tif", pixels)
    network = SceneNetwork(prepare, convolutions, align=2)
    layers = Layers("values", NAMES, dtype="float32")
    whole = convolutions(pixels[None].astype(np.float32))[0]
    run(source, tmp_path / "out.tif", network, layers, tile=48, halo=2, blend="flat")
    assert (read(tmp_path / "out.tif") != whole).any()
    unaligned = SceneNetwork(prepare, convolutions, align=1)
    run(source, tmp_path / "odd.tif", unaligned, layers, tile=47, halo=6, blend="flat")
    assert (read(tmp_path / "odd.tif") != whole).any()


@pytest.mark.parametrize("blend", ["cosine", "gaussian"])
def test_blending_is_a_weighted_mean(tmp_path, blend):
    """A network that sees its whole tile, against weights spread over the whole scene."""
    pixels = picture(120, 150)
    source = write_scene(tmp_path / "scene.tif", pixels)

    def whole_tile(images):
        return images + images.mean(axis=(2, 3), keepdims=True)

    layers = Layers("values", NAMES[:3], dtype="float32")
    network = SceneNetwork(prepare, whole_tile)
    run(source, tmp_path / "out.tif", network, layers, tile=64, halo=5, blend=blend)

    def ramps(length, starts):
        """Weight of each tile along a side, by hand: up over a seam, 1, down over the next."""
        rows = np.zeros((len(starts), length))
        for number, start in enumerate(starts):
            rows[number, start : start + 64] = 1
        for number in range(len(starts) - 1):
            first = (starts[number] + 64 + starts[number + 1]) // 2 - 4
            rows[number, first:] = 0
            rows[number + 1, :first] = 0
            rows[number, first : first + 8] = 1 - fade(8, blend)
            rows[number + 1, first : first + 8] = fade(8, blend)
        return rows

    tops, lefts = [0, 46, 56], [0, 46, 86]
    expected = np.zeros((3, 120, 150))
    for top, down in zip(tops, ramps(120, tops), strict=True):
        for left, along in zip(lefts, ramps(150, lefts), strict=True):
            tile = pixels[:, top : top + 64, left : left + 64].astype(np.float32)
            tile = tile + tile.mean(axis=(1, 2), keepdims=True)
            place = np.s_[:, top : top + 64, left : left + 64]
            expected[place] += np.outer(down, along)[place[1:]] * tile
    np.testing.assert_allclose(read(tmp_path / "out.tif"), expected, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_class_map_and_its_metadata(tmp_path, batch):
    pixels = picture(700, 1300)
    source = write_scene(tmp_path / "scene.tif", pixels)
    report = run(source, tmp_path / "out.tif", batch=batch, tile=256)
    expected = pointwise_classes(pixels)
    with gdal(), rasterio.open(tmp_path / "out.tif") as out:
        np.testing.assert_array_equal(out.read(1), expected)
        assert out.crs == rasterio.crs.CRS.from_epsg(32632) and out.transform == PLACE
        assert out.nodata == 255 and out.count == 1 and out.dtypes == ("uint8",)
        assert out.colorinterp == (ColorInterp.palette,)
        table = out.colormap(1)
        assert [table[k][:3] for k in range(4)] == [tuple(c) for c in COLOURS.tolist()]
        assert table[255][3] == 0 and table[3][3] == 255
        assert [out.tags()[f"CLASS_{k}"] for k in range(4)] == list(NAMES)
        assert (
            out.block_shapes == [(512, 512)]
            and out.compression == rasterio.enums.Compression.deflate
        )
        assert out.overviews(1) == [2, 4]
        assert out.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    # Class names where GIS programs look for them.
    names = ElementTree.parse(tmp_path / "out.tif.aux.xml").findall(".//Category")
    assert [name.text for name in names][:4] == list(NAMES)
    np.testing.assert_array_equal(report.counts[:4], np.bincount(expected.ravel(), minlength=4))
    assert report.counts.sum() == expected.size and report.finished
    assert report.done == report.tiles == 3 * 6 and not report.empty
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.tif", "out.tif.aux.xml", "scene.tif"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_probabilities(tmp_path, kind):
    pixels = picture(100, 90)
    pixels[:, :20, :30] = 0
    source = write_scene(tmp_path / "scene.tif", pixels, nodata=0)

    def scores(images):
        return pointwise(images) / 64

    layers = Layers("probabilities", NAMES, COLOURS, kind)
    run(source, tmp_path / "out.tif", SceneNetwork(prepare, scores), layers)
    values = np.exp(scores(pixels[None].astype(np.float64))[0])
    values /= values.sum(axis=0)
    with gdal(), rasterio.open(tmp_path / "out.tif") as out:
        assert out.descriptions == NAMES and out.dtypes == (kind,) * 4
        found = out.read(masked=True)
        assert (found.mask == (pixels == 0).all(axis=0)).all()
        scale = out.scales[0] if kind == "uint8" else 1
        tolerance = 0.51 / 254 if kind == "uint8" else 1e-5
        assert scale == pytest.approx(1 / 254 if kind == "uint8" else 1)
        assert np.abs(found * scale - values).max() < tolerance


def test_no_data(tmp_path):
    """Tiles without data are not computed; inside tiles the network sees no such values."""
    pixels = picture(300, 300).astype(np.int16)
    missing = np.zeros((300, 300), bool)
    missing[:, 150:] = True
    missing[40:70, 20:60] = True
    pixels[:, missing] = -9999
    pixels[1, 200, 20] = -9999  # a single band: with 16 bits no value, but a gap
    missing[200, 20] = True
    seen = []

    def watch(images):
        seen.append(images)
        return pointwise(images)

    source = write_scene(tmp_path / "scene.tif", pixels, nodata=-9999)
    network = SceneNetwork(prepare, watch)
    report = run(source, tmp_path / "out.tif", network)
    expected = np.where(missing, 255, pointwise_classes(pixels))
    np.testing.assert_array_equal(read(tmp_path / "out.tif", 1), expected)
    assert report.empty > 10 and len(seen) == report.tiles - report.empty
    assert min(images.min() for images in seen) == 0
    assert report.counts[255] == missing.sum()


def test_a_black_band_is_a_colour(tmp_path):
    """With 8 bits, pure red on a scene whose no-data value is 0 is data."""
    pixels = picture(40, 50) | 1
    pixels[1:, 5:9, 5:9] = 0
    pixels[:, 20:24, 20:24] = 0
    source = write_scene(tmp_path / "scene.tif", pixels, nodata=0)
    run(source, tmp_path / "out.tif")
    found = read(tmp_path / "out.tif", 1)
    assert (found[20:24, 20:24] == 255).all() and (found == 255).sum() == 16


def test_missing_by_alpha_and_by_nan(tmp_path):
    pixels = np.concatenate([picture(90, 80), np.full((1, 90, 80), 255, np.uint8)])
    pixels[3, 10:30, 10:70] = 0
    source = write_scene(tmp_path / "alpha.tif", pixels, photometric="RGB", alpha="yes")
    run(source, tmp_path / "a.tif")
    expected = np.where(pixels[3] == 0, 255, pointwise_classes(pixels[:3]))
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 1), expected)
    floats = pixels[:3].astype(np.float32)
    floats[2, 10:30, 10:70] = np.nan
    run(write_scene(tmp_path / "nan.tif", floats), tmp_path / "b.tif")
    np.testing.assert_array_equal(read(tmp_path / "b.tif", 1), expected)


ROTATED = Affine(0.3, 0.4, 1000, -0.4, 0.3, 2000)


@pytest.mark.parametrize(
    "crs, transform",
    [("EPSG:4326", Affine(1e-5, 0, 9, 0, -1e-5, 48)), ("EPSG:25832", ROTATED), (None, ROTATED)],
)
def test_place_on_earth_is_kept(tmp_path, crs, transform):
    source = write_scene(tmp_path / "scene.tif", picture(90, 80), crs, transform)
    with gdal(), rasterio.open(source, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")
    run(source, tmp_path / "out.tif")
    with gdal(), rasterio.open(tmp_path / "out.tif") as out, rasterio.open(source) as scene:
        assert out.crs == scene.crs and out.transform.almost_equals(transform, 1e-12)
        assert out.tags()["AREA_OR_POINT"] == "Point"
        np.testing.assert_array_equal(out.read(1), pointwise_classes(read(source)))


def test_scenes_without_geotransform(tmp_path):
    """Neither coordinate system nor place; control points; rational polynomials."""
    plain = write_scene(tmp_path / "plain.tif", picture(90, 80), None, None)
    run(plain, tmp_path / "a.tif")
    with gdal(), rasterio.open(tmp_path / "a.tif") as out:
        assert out.crs is None and out.transform == Affine.identity()
    points = [
        GroundControlPoint(row, column, 9 + column / 1e4, 48 - row / 1e4, 0)
        for row, column in ((0, 0), (0, 80), (90, 0), (90, 80))
    ]
    rpc = RPC(
        height_off=300, height_scale=500, lat_off=48, lat_scale=0.1, line_den_coeff=[1] + [0] * 19,
        line_num_coeff=[0, 0, 1] + [0] * 17, line_off=45, line_scale=45, long_off=9,
        long_scale=0.1, samp_den_coeff=[1] + [0] * 19, samp_num_coeff=[0, 1] + [0] * 18,
        samp_off=40, samp_scale=40,
    )  # fmt: skip
    for name, extra in (("gcps", {"gcps": points}), ("rpcs", {"rpcs": rpc})):
        crs = "EPSG:4326" if name == "gcps" else None
        source = write_scene(tmp_path / f"{name}.tif", picture(90, 80), crs, None, **extra)
        run(source, tmp_path / f"{name}_out.tif")
        with gdal(), rasterio.open(tmp_path / f"{name}_out.tif") as out:
            if name == "gcps":
                assert [(p.row, p.col, p.x, p.y) for p in out.gcps[0]] == [
                    (p.row, p.col, p.x, p.y) for p in points
                ]
                assert out.gcps[1] == rasterio.crs.CRS.from_epsg(4326)
            else:
                assert out.rpcs.long_off == 9 and out.rpcs.samp_num_coeff[1] == 1


def test_png_jpeg_grey_and_palette(tmp_path):
    pixels = picture(75, 130)
    bgr = np.moveaxis(pixels[::-1], 0, 2)
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    run(tmp_path / "a.png", tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 1), pointwise_classes(pixels))
    cv2.imwrite(str(tmp_path / "a.jpg"), bgr)
    run(tmp_path / "a.jpg", tmp_path / "b.tif")
    decoded = read(tmp_path / "a.jpg")  # decoders differ by a level
    np.testing.assert_array_equal(read(tmp_path / "b.tif", 1), pointwise_classes(decoded))
    cv2.imwrite(str(tmp_path / "grey.png"), pixels[0])
    run(tmp_path / "grey.png", tmp_path / "c.tif")
    grey = pointwise_classes(np.repeat(pixels[:1], 3, axis=0))
    np.testing.assert_array_equal(read(tmp_path / "c.tif", 1), grey)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3))
    source = write_scene(tmp_path / "palette.tif", pixels[:1], None, None)
    with gdal(), rasterio.open(source, "r+") as dataset:
        dataset.write_colormap(1, {k: (*map(int, c), 255) for k, c in enumerate(palette)})
    run(source, tmp_path / "d.tif")
    colours = pointwise_classes(np.moveaxis(palette[pixels[0]], 2, 0))
    np.testing.assert_array_equal(read(tmp_path / "d.tif", 1), colours)


def test_bands_are_found_by_what_the_file_says(tmp_path):
    """Blue, green, red, infrared; or as asked for; or in the file's order."""
    pixels = picture(70, 80, bands=4)
    path = write_scene(tmp_path / "bgrn.tif", pixels)
    with gdal(), rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [
            ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined
        ]  # fmt: skip
    run(path, tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 1), pointwise_classes(pixels[2::-1]))
    run(path, tmp_path / "b.tif", bands=[4, 1, 2])
    np.testing.assert_array_equal(read(tmp_path / "b.tif", 1), pointwise_classes(pixels[[3, 0, 1]]))
    plain = write_scene(tmp_path / "plain.tif", pixels[:3])
    run(plain, tmp_path / "c.tif")
    np.testing.assert_array_equal(read(tmp_path / "c.tif", 1), pointwise_classes(pixels[:3]))


@pytest.mark.parametrize("form", ["strips", "png"])
def test_files_that_cannot_be_read_in_windows_are_unpacked_once(tmp_path, monkeypatch, form):
    monkeypatch.setattr(scene_source, "CACHE_BYTES", 10_000)
    pixels = picture(75, 130)
    path = tmp_path / f"scene.{'png' if form == 'png' else 'tif'}"
    if form == "png":
        cv2.imwrite(str(path), np.moveaxis(pixels[::-1], 0, 2))
    else:
        write_scene(path, pixels, tiled=False, blockysize=16, blockxsize=130)
    run(path, tmp_path / "out.tif", most_tiles=1)
    (unpacked,) = (tmp_path / "out.tif.parts").glob("unpacked_scene_*.tif")
    np.testing.assert_array_equal(read(unpacked), pixels)
    before = unpacked.stat().st_mtime_ns
    run(path, tmp_path / "out.tif", most_tiles=1)
    assert unpacked.stat().st_mtime_ns == before
    run(path, tmp_path / "out.tif")
    np.testing.assert_array_equal(read(tmp_path / "out.tif", 1), pointwise_classes(pixels))
    tiled = write_scene(tmp_path / "tiled.tif", pixels)
    run(tiled, tmp_path / "b.tif", most_tiles=1)
    assert not list((tmp_path / "b.tif.parts").glob("unpacked*"))


def test_an_unpacked_copy_of_an_older_file_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_source, "CACHE_BYTES", 10_000)
    path = tmp_path / "scene.png"
    cv2.imwrite(str(path), np.moveaxis(picture(75, 130)[::-1], 0, 2))
    run(path, tmp_path / "out.tif", most_tiles=1)
    changed = picture(75, 130, seed=3)
    cv2.imwrite(str(path), np.moveaxis(changed[::-1], 0, 2))
    with pytest.raises(UserError, match="scene.png has changed since"):
        run(path, tmp_path / "out.tif")
    run(path, tmp_path / "out.tif", resume=False)
    np.testing.assert_array_equal(read(tmp_path / "out.tif", 1), pointwise_classes(changed))


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (64, 64), (40, 30)])
def test_small_scenes_and_networks_of_fixed_or_multiple_size(tmp_path, size):
    pixels = picture(*size)
    source = write_scene(tmp_path / "scene.tif", pixels)
    shapes = set()

    def watch(images):
        shapes.add(images.shape[2:])
        return pointwise(images)

    run(
        source,
        tmp_path / "a.tif",
        SceneNetwork(prepare, watch, multiple=32, align=32, least=64),
        tile=96,
    )
    assert all(side % 32 == 0 and side >= 64 for shape in shapes for side in shape)
    shapes.clear()
    run(source, tmp_path / "b.tif", SceneNetwork(prepare, watch, fixed=(48, 80)), batch=2)
    assert shapes == {(48, 80)}
    for name in "ab":
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif", 1), pointwise_classes(pixels))


def test_two_scenes_at_one_place(tmp_path):
    """Pairs, as stereo and change networks take them: 3 bands and 1 band."""
    left, right = picture(90, 140), picture(90, 140, bands=1, seed=1)
    right[0, 30:40, 50:60] = 0
    paths = [
        write_scene(tmp_path / "left.tif", left),
        write_scene(tmp_path / "right.tif", right, nodata=0),
    ]

    def difference(a, b):
        return (a - b).sum(axis=1, keepdims=True)

    network = SceneNetwork(prepare, difference, channels=(3, 1))
    layers = Layers("values", ("difference",), dtype="float32")
    predict_scene(paths, tmp_path / "out.tif", network, layers, settings(), show=False)
    expected = (left.astype(np.float32) - right).sum(axis=0)
    expected[30:40, 50:60] = np.nan
    np.testing.assert_array_equal(read(tmp_path / "out.tif", 1), expected)


@pytest.mark.parametrize("overviews, levels", [("none", []), ("mode", [2, 4])])
@pytest.mark.parametrize("compress", ["none", "zstd", "lzw"])
def test_form_of_the_file(tmp_path, overviews, levels, compress):
    source = write_scene(tmp_path / "scene.tif", picture(600, 1100))
    run(source, tmp_path / "out.tif", tile=512, overviews=overviews, compress=compress)
    with gdal(), rasterio.open(tmp_path / "out.tif") as out:
        assert out.overviews(1) == levels
        assert (out.compression is None) == (compress == "none")


def test_scenes_of_a_folder(tmp_path):
    for name in ("b.tif", "a b ü.PNG", "c.jp2", "notes.txt", ".hidden.tif"):
        (tmp_path / name).touch()
    (tmp_path / "out.tif.parts").mkdir()
    (tmp_path / "out.tif.parts" / "tile_0000000.tif").touch()
    assert [file.name for file in scene_files(tmp_path)] == ["a b ü.PNG", "b.tif", "c.jp2"]


def test_spaces_and_letters_in_paths(tmp_path):
    folder = tmp_path / "Nördliche Szenen & mehr <2>"
    folder.mkdir()
    pixels = picture(90, 80)
    source = write_scene(folder / "großes Bild 東京.tif", pixels)
    target = folder / "Ergebnis für alle.tif"
    run(source, target, most_tiles=1)
    run(source, target)
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(pixels))


@pytest.mark.parametrize("shape", [(7, 50, 60), (254, 8, 9), (5, 4, 1), (1, 1, 1)])
def test_fast_argmax_is_argmax(shape):
    scores = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    np.testing.assert_array_equal(largest(scores), scores.argmax(axis=0))
    inner = scores[:, shape[1] // 3 :, shape[2] // 3 :]
    np.testing.assert_array_equal(largest(inner), inner.argmax(axis=0))


def test_generated_scenes(tmp_path):
    a = generate_scene(tmp_path / "a.tif", 600, 1030)
    b = generate_scene(tmp_path / "b.tif", 520, 700, compress="none")
    one, other = read(a), read(b)
    assert one.shape == (3, 600, 1030) and one.std() > 20
    np.testing.assert_array_equal(one[:, :512, :512], other[:, :512, :512])
    assert (one[:, :512, :512] != one[:, :512, 512:1024]).any()
    run(a, tmp_path / "out.tif", tile=256)
    shares = np.bincount(read(tmp_path / "out.tif", 1).ravel(), minlength=4) / one[0].size
    assert (shares > 0.01).sum() >= 3


def test_settings_that_hold_in_the_identity(tmp_path):
    """The run's number follows everything tiles depend on."""
    source = write_scene(tmp_path / "scene.tif", picture(90, 80))
    run(source, tmp_path / "out.tif")
    tags = []
    for keys in ({}, {"halo": 9}, {"blend": "flat"}, {"value_range": [0.0, 9.0]}):
        run(source, tmp_path / f"{len(tags)}.tif", **keys)
        with gdal(), rasterio.open(tmp_path / f"{len(tags)}.tif") as out:
            tags.append(out.tags()["SCENE_RUN"])
    assert len(set(tags)) == 4, json.dumps(tags)
    assert POINTWISE.key and CLASSES.names
