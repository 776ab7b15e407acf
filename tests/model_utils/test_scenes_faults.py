"""Whole scenes when something is wrong: damaged input, kills, full disks, other settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from model_utils.errors import UserError
from model_utils.scenes import engine
from model_utils.scenes.engine import SceneNetwork, predict_scene
from model_utils.scenes.source import Patch, SceneSource, eight_bits, scene_files
from model_utils.scenes.store import Layers
from tests.model_utils.scene_cases import (
    CLASSES,
    NAMES,
    PLACE,
    picture,
    pointwise,
    pointwise_classes,
    prepare,
    read,
    run,
    settings,
    write_scene,
)

ROOT = Path(__file__).resolve().parents[2]


def tiles_of(target):
    return sorted(file.name for file in Path(f"{target}.parts").glob("tile_*.tif"))


def network_that_stops(calls, error=RuntimeError):
    """Fails at its call number ``calls``; remembers what it saw."""
    seen = []

    def work(images):
        if len(seen) == calls:
            raise error("power cut")
        seen.append(float(images.sum(dtype=np.float64)))
        return pointwise(images)

    return SceneNetwork(prepare, work, "pointwise"), seen


@pytest.fixture
def scene(tmp_path):
    pixels = picture(210, 240)
    return write_scene(tmp_path / "scene.tif", pixels, compress="none"), pixels


# ---------------------------------------------------------------------------------------------
# stopped and gone on with


@pytest.mark.parametrize("blend", ["flat", "cosine"])
@pytest.mark.parametrize("calls", [0, 1, 5, 13])
def test_an_error_keeps_every_tile_before_it(tmp_path, scene, calls, blend):
    source, pixels = scene
    network, before = network_that_stops(calls)
    target = tmp_path / "out.tif"
    with pytest.raises(RuntimeError, match="power cut"):
        run(source, target, network, blend=blend)
    assert len(tiles_of(target)) == calls and not target.exists()
    again, after = network_that_stops(10**6)
    report = run(source, target, again, blend=blend)
    assert report.earlier == calls and len(before) + len(after) == report.tiles
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(pixels))
    assert not Path(f"{target}.parts").exists()


def test_ctrl_c_keeps_tiles_and_shows_them(tmp_path, scene, caplog):
    source, pixels = scene
    network, _ = network_that_stops(6, KeyboardInterrupt)
    engine.log.propagate = True
    with caplog.at_level("INFO", "zoo"), pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out.tif", network)
    assert "6 of 30 tiles are kept" in caplog.text
    shown = read(tmp_path / "out.tif.parts" / "finished.vrt", 1)
    there = shown != 255
    assert 0.1 < there.mean() < 0.25
    np.testing.assert_array_equal(shown[there], pointwise_classes(pixels)[there])


@pytest.mark.parametrize("delay", [0.15, 0.6])
def test_killed_and_restarted(tmp_path, delay):
    """SIGKILL at any moment: only tiles in flight are computed again."""
    pixels = picture(400, 500)
    source, target = write_scene(tmp_path / "scene.tif", pixels), tmp_path / "out.tif"
    log = tmp_path / "calls.log"

    def start(seconds):
        return subprocess.Popen(
            [sys.executable, "-m", "tests.model_utils.scene_cases",
             str(source), str(target), str(log), str(seconds)],
            cwd=ROOT,
        )  # fmt: skip

    process = start(0.03)
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept, called = len(tiles_of(target)), len(log.read_text().splitlines())
    # Two results waiting, one being written, one being computed.
    assert 0 <= called - kept <= 4 and not target.exists()
    assert start(0).wait(timeout=120) == 0
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(calls) - len(set(calls)) == called - kept
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(pixels))
    assert not Path(f"{target}.parts").exists()


def test_killed_while_the_file_is_made(tmp_path, scene):
    """All tiles are there: none is computed again, whatever lies about."""
    source, pixels = scene
    target = tmp_path / "out.tif"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.PartStore, "assemble", lambda *a: os.kill(os.getpid(), 0) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(source, target)
    for name in ("joined.tif", "joined.tif.ovr.tmp", ".joined.abcdefgh.tmp.tif"):
        (tmp_path / "out.tif.parts" / name).write_bytes(b"half a file")
    network, seen = network_that_stops(0)
    run(source, target, network)
    assert not seen
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(pixels))


def test_a_complete_result_is_left_alone(tmp_path, scene):
    source, _ = scene
    target = tmp_path / "out.tif"
    run(source, target)
    before = target.stat().st_mtime_ns
    report = run(source, target, network_that_stops(0)[0])
    assert report.finished and target.stat().st_mtime_ns == before
    assert not Path(f"{target}.parts").exists()
    run(source, target, resume=False)
    assert target.stat().st_mtime_ns > before
    # Of a scene with another content, it is made anew.
    other = picture(210, 240, seed=9)
    write_scene(source, other)
    run(source, target)
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(other))


def test_parts_of_another_run(tmp_path, scene):
    source, pixels = scene
    target = tmp_path / "out.tif"
    run(source, target, most_tiles=3)
    for keys, what in (({"tile": 72}, "tile"), ({"halo": 9}, "halo"), ({"blend": "flat"}, "blend")):
        with pytest.raises(UserError, match=f"tiles of a run with another {what} .*resume=false"):
            run(source, target, **keys)
    with pytest.raises(UserError, match="another network"):
        run(source, target, SceneNetwork(prepare, pointwise, "other weights"))
    assert len(tiles_of(target)) == 3
    report = run(source, target, tile=72, resume=False)
    assert report.earlier == 0
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(pixels))


def test_the_scene_changed_in_between(tmp_path, scene):
    source, pixels = scene
    target = tmp_path / "out.tif"
    run(source, target, most_tiles=7)
    os.utime(source)  # written anew with the same content: goes on
    assert run(source, target, most_tiles=1).earlier == 7
    changed = pixels.copy()
    changed[0, 3, 70] ^= 1
    write_scene(source, changed, compress="none")
    with pytest.raises(UserError, match="scene.tif has changed since the tiles in .*resume=false"):
        run(source, target)


def test_damaged_parts(tmp_path, scene):
    source, _ = scene
    target = tmp_path / "out.tif"
    run(source, target, most_tiles=4)
    for file in Path(f"{target}.parts").glob("right_*.npy"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match="right_.*npy is missing or damaged"):
        run(source, target)


def test_one_run_at_a_time(tmp_path, scene):
    source, _ = scene
    with (
        engine.FolderLock(tmp_path / "out.tif.parts"),
        pytest.raises(UserError, match=f"is being written by process {os.getpid()}"),
    ):
        run(source, tmp_path / "out.tif")


# ---------------------------------------------------------------------------------------------
# damaged and unfitting scenes


@pytest.mark.parametrize("tiled", [True, False])
def test_a_truncated_tiff(tmp_path, tiled):
    """Tiles before the damage are kept, are right, and are not computed again."""
    pixels = picture(210, 240)
    layout = {} if tiled else {"tiled": False, "blockysize": 16, "blockxsize": 240}
    source = write_scene(tmp_path / "scene.tif", pixels, compress="none", **layout)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])
    target = tmp_path / "out.tif"
    with pytest.raises(UserError, match=r"scene\.tif, rows \d+ to \d+, .* cannot be read .* copy"):
        run(source, target)
    kept = len(tiles_of(target))
    assert 6 <= kept < 30
    shown = read(tmp_path / "out.tif.parts" / "finished.vrt", 1)
    there = shown != 255
    np.testing.assert_array_equal(shown[there], pointwise_classes(pixels)[there])
    with pytest.raises(UserError, match="cannot be read"):
        run(source, target)
    source.write_bytes(data)
    network, seen = network_that_stops(100)
    run(source, target, network)
    assert len(seen) == 30 - kept
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(pixels))


def test_files_that_are_no_scenes(tmp_path):
    target = tmp_path / "out.tif"
    with pytest.raises(UserError, match="scene .*none.tif does not exist"):
        run(tmp_path / "none.tif", target)
    (tmp_path / "empty.tif").touch()
    with pytest.raises(UserError, match=r"empty.tif is corrupt, cut off or of an .*0 bytes"):
        run(tmp_path / "empty.tif", target)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="text.png is corrupt"):
        run(tmp_path / "text.png", target)
    whole = tmp_path / "whole.png"
    cv2.imwrite(str(whole), np.moveaxis(picture(90, 80), 0, 2))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UserError, match="cut.png.* cannot be read .* copy it again"):
        run(tmp_path / "cut.png", target)
    jpeg = tmp_path / "cut.jpg"
    cv2.imwrite(str(jpeg), np.moveaxis(picture(90, 80), 0, 2))
    jpeg.write_bytes(jpeg.read_bytes()[: jpeg.stat().st_size // 2])
    with pytest.raises(UserError, match="cut.jpg.* cannot be read .* copy it again"):
        run(jpeg, target)
    assert not Path(f"{target}.parts").exists()
    folder = tmp_path / "nothing here"
    folder.mkdir()
    with pytest.raises(UserError, match=r"nothing here holds no scene \(\.png"):
        scene_files(folder)
    with pytest.raises(UserError, match="missing does not exist"):
        scene_files(tmp_path / "missing")


def test_bands_that_do_not_fit(tmp_path):
    scene = write_scene(tmp_path / "five.tif", picture(70, 80, bands=5))
    with pytest.raises(UserError, match=r"five.tif has 5 bands \(1 gray, .*bands=1,2,3"):
        run(scene, tmp_path / "out.tif")
    with pytest.raises(UserError, match=r"has no band 7, only 5"):
        run(scene, tmp_path / "out.tif", bands=[1, 2, 7])
    two = write_scene(tmp_path / "two.tif", picture(70, 80, bands=2), alpha="unspecified")
    with pytest.raises(UserError, match=r"two.tif has 2 bands .*bands=1$"):
        run(two, tmp_path / "out.tif")
    run(two, tmp_path / "out.tif", bands=[1])


def test_values_of_unknown_range(tmp_path):
    path = write_scene(tmp_path / "deep.tif", picture(20, 30).astype(np.float32) * 10)
    patch = SceneSource(path).read((0, 20), (0, 30))
    with pytest.raises(UserError, match=r"deep.tif, rows 0 .* float32 .*value_range=LOW,HIGH"):
        eight_bits(patch)
    for bad in ([1.0], [3.0, 3.0], [5.0, 1.0]):
        with pytest.raises(UserError, match="give two rising numbers"):
            eight_bits(patch, bad)
    expected = np.clip(np.rint((patch.pixels - 100) / 1500 * 255), 0, 255)
    np.testing.assert_array_equal(eight_bits(patch, [100, 1600]), expected)
    deep = (picture(20, 30).astype(np.uint16) * 257, np.ones((20, 30), bool), "x")
    np.testing.assert_array_equal(eight_bits(Patch(*deep)), picture(20, 30))


def test_scenes_that_do_not_cover_each_other(tmp_path):
    left = write_scene(tmp_path / "left.tif", picture(70, 80))
    network = SceneNetwork(prepare, lambda a, b: a - b, channels=(3, 3))
    layers = Layers("values", ("x", "y", "z"), dtype="float32")
    shifted = PLACE.__class__(0.5, 0, 500001, 0, -0.5, 5500000)
    for name, what, right in (
        ("size", "different sizes", (picture(70, 81), "EPSG:32632", PLACE)),
        ("crs", "different coordinate systems", (picture(70, 80), "EPSG:32633", PLACE)),
        ("place", "do not lie at one place", (picture(70, 80), "EPSG:32632", shifted)),
    ):
        other = write_scene(tmp_path / f"{name}.tif", *right)
        with pytest.raises(UserError, match=what):
            predict_scene([left, other], tmp_path / "o.tif", network, layers, settings())


# ---------------------------------------------------------------------------------------------
# networks and outputs


def test_networks_that_do_not_fit(tmp_path, scene):
    source, _ = scene
    target = tmp_path / "out.tif"

    def fails(network, message, **keys):
        with pytest.raises(UserError, match=message):
            run(source, target, SceneNetwork(prepare, network), resume=False, **keys)

    fails(lambda x: pointwise(x)[:, :3], "gives 3 scores per pixel, 4 classes are known")
    fails(lambda x: pointwise(x)[:, :, ::2, ::2], "gave 32x32 values for a tile of 64x64")
    fails(lambda x: pointwise(x).argmax(1), "class numbers cannot be blended.*blend=flat")
    with pytest.raises(UserError, match="tiles of 100 pixels do not fit .* multiples of 32"):
        run(source, target, SceneNetwork(prepare, pointwise, multiple=32), tile=100, resume=False)

    def breaks_down(images):
        scores = pointwise(images)
        scores[0, 1, 5, 5] = np.nan
        return scores

    fails(breaks_down, "NaN or infinite scores in the tile at row 0, column 0")
    run(source, target, SceneNetwork(prepare, lambda x: pointwise(x).argmax(1)), blend="flat",
        resume=False)  # fmt: skip


def test_outputs_that_cannot_be_written(tmp_path, scene):
    source, _ = scene
    with pytest.raises(UserError, match="cannot write /proc/nothing/out.tif.parts"):
        run(source, "/proc/nothing/out.tif")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/out.tif.parts"):
        run(source, tmp_path / "file" / "out.tif")
    (tmp_path / "out.tif").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*out.tif: a folder has this name"):
        run(source, tmp_path / "out.tif")
    (tmp_path / "out.tif").rmdir()
    assert run(source, tmp_path / "out.tif").done == 0  # nothing was lost


def test_a_full_disk(small_disk, tmp_path):
    """Seams and tiles of random values do not fit into a megabyte; what was finished is kept."""
    rng = np.random.default_rng(0)
    source = write_scene(tmp_path / "scene.tif", rng.integers(0, 256, (3, 900, 900), np.uint8))
    layers = Layers("values", NAMES, dtype="float32")
    target = small_disk / "out.tif"
    with pytest.raises(UserError, match=f"no space left while writing {small_disk}"):
        run(source, target, layers=layers, tile=256)
    kept = len(tiles_of(target))
    assert kept < 20
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert run(source, target, layers=layers, tile=256).earlier == kept
    expected = pointwise(read(source)[None].astype(np.float32))[0]
    np.testing.assert_array_equal(read(target), expected)


def test_a_disk_that_fills_while_the_file_is_made(small_disk, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 1300, 1300), np.uint8)
    source = write_scene(tmp_path / "scene.tif", pixels)
    target = small_disk / "out.tif"
    # Room for the tiles, 2 MB, but not for as much again.
    subprocess.run(["mount", "-o", "remount,size=3m", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"out.tif cannot be written .*tiles are kept in"):
        run(source, target, tile=512, compress="none")
    assert not target.exists()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    report = run(source, target, tile=512, compress="none")
    assert report.done == 0 and report.finished
    np.testing.assert_array_equal(read(target, 1), pointwise_classes(pixels))


_MEMORY = """
import resource, sys
from tests.model_utils.scene_cases import CLASSES, POINTWISE, settings
from model_utils.scenes.engine import predict_scene
predict_scene(sys.argv[1], sys.argv[2], POINTWISE, CLASSES,
              settings(tile=512, halo=32, blend_width=32), show=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path):
    """Nine times as many pixels, within ten percent; one raster alone would add 75 MB."""
    from model_utils.scenes.generating import generate_scene

    peaks = []
    for side in (2000, 6000):
        source = generate_scene(tmp_path / f"{side}.tif", side, side)
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(source), str(tmp_path / f"out{side}.tif")],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(float(done.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0], peaks
    assert CLASSES
