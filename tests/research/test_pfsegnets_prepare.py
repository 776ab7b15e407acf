"""Cropping, converting, dividing and putting together again, on files in the data sets' layouts."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_utils.errors import UserError
from model_utils.files import read_image, write_image
from model_utils.manifest import read_manifest
from model_utils.png import encode_png
from model_utils.tiling import Place
from research.pfsegnets.src.classes import ISAID, ISPRS
from research.pfsegnets.src.config import PFNetConfig
from research.pfsegnets.src.layouts import find_pairs
from research.pfsegnets.src.tools import comparison, cropping, dividing
from research.pfsegnets.src.tools.cropping import (
    Patches,
    convert_masks,
    crop_sources,
    in_parallel,
    prepare_isaid,
)
from research.pfsegnets.src.tools.sources import find_sources
from research.pfsegnets.src.tools.stitching import find_wholes, stitch_folder, stitched
from tests.commands import ROOT, run_script
from tests.seeded import load_fixture

COLOUR = "_instance_color_RGB"


def scene(height, width, classes=ISAID, seed=0):
    """A noisy image and a mask of rectangles."""
    draw = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for _ in range(40):
        top, left, rows, columns = draw.integers(0, (height, width, 30, 30))
        labels[top : top + rows, left : left + columns] = draw.integers(len(classes))
    return draw.integers(0, 256, (height, width, 3)).astype(np.uint8), labels


def write_isaid(folder, sizes, split="train"):
    """Images P0, P1, ... and masks in one folder, as iSAID has them; returns the labels."""
    found = {}
    for number, size in enumerate(sizes):
        image, labels = scene(*size, seed=number)
        path = folder / split / "images" / f"P{number}.png"
        write_image(path, image)
        write_image(path.with_name(f"P{number}{COLOUR}.png"), ISAID.colourise(labels))
        write_image(path.with_name(f"P{number}_instance_id_RGB.png"), image)
        found[f"P{number}"] = image, labels
    return found


def configured(root, side=64, overlap=16, **keys):
    config = PFNetConfig()
    config.data.root = str(root)
    prepare = {"patch_height": side, "patch_width": side, "overlap": overlap, "workers": 2, **keys}
    for name, value in prepare.items():
        assert hasattr(config.prepare, name)
        setattr(config.prepare, name, value)
    return config


def prepare(config, output):
    return crop_sources(find_sources(config), output, cropping.patches_of(config), config)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


# -- windows and names


def test_windows_are_the_references():
    fixture, _ = load_fixture("PFNet_metrics")
    checked = 0
    for name, expected in fixture["values"]["split"].items():
        height, width, side, overlap = (
            int(x) for x in re.fullmatch(r"H(\d+)_W(\d+)_p(\d+)_ov(\d+)", name).groups()
        )
        whole = Patches(side, side, overlap, "whole")
        if expected is None:
            assert whole.places(height, width) == [Place(0, height, 0, width)]
            assert whole.keeps_whole(height, width)
            continue
        # The reference visits places behind the last window again and overwrites them.
        distinct = {tuple(window) for window in expected}
        total, count = fixture["values"]["split_distinct"][name]
        assert (len(expected), len(distinct)) == (total, count)
        for thin in ("crop", "whole"):
            places = Patches(side, side, overlap, thin).places(height, width)
            assert len(places) == count and {tuple(place) for place in places} == distinct
        checked += 1
    assert checked == 3


def test_long_thin_images_are_cropped_along_their_length():
    places = Patches(800, 800, 200).places(700, 4000)
    assert {(place.top, place.bottom) for place in places} == {(0, 700)}
    assert [place.left for place in places] == [0, 600, 1200, 1800, 2400, 3000, 3200]
    assert Patches(800, 800, 200).places(300, 500) == [Place(0, 300, 0, 500)]
    with pytest.raises(UserError, match="cannot overlap by 64"):
        Patches(64, 64, 64)


def test_class_colours_are_the_references():
    values = load_fixture("PFNet_metrics")[0]["values"]
    for table, name in ((ISAID, "isaid_bgr_to_id"), (ISPRS, "isprs_bgr_to_id")):
        for bgr, number in values[name]:
            assert table.colours[number].tolist() == bgr[::-1]


# -- cropping


def test_patches_are_those_of_a_pillow_loop(tmp_path):
    write_isaid(tmp_path / "data", [(301, 250), (128, 400)])
    folder = tmp_path / "data" / "train" / "images"
    comparison.pillow_loop(folder, tmp_path / "theirs", 100, 30, ISAID.colours)
    config = configured(folder, 100, 30, splits=["."])
    # Three columns at once: wide images are read in groups.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cropping, "_STRIP_PIXELS", 100 * 250)
        count = prepare(config, tmp_path / "ours")
    assert comparison.compare(tmp_path / "theirs", tmp_path / "ours") == 2 * count > 40
    (tmp_path / "ours" / "images" / "P0_0_100_0_100.png").unlink()
    with pytest.raises(UserError, match=r"different files: images/P0_0_100_0_100.png"):
        comparison.compare(tmp_path / "theirs", tmp_path / "ours")


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(5, 40),
    st.integers(0, 30),
    st.sampled_from(["crop", "whole"]),
)
def test_stitched_patches_are_the_images(tmp_path_factory, height, width, side, overlap, thin):
    folder = tmp_path_factory.mktemp("round_trip")
    ((image, labels),) = write_isaid(folder / "data", [(height, width)]).values()
    config = configured(folder / "data", side, min(overlap, side - 1), thin=thin, splits=["train"])
    prepare(config, folder / "out")
    for part, classes, expected in (
        ("images", None, image),
        ("masks", None, labels),
        ("masks", ISAID, ISAID.colourise(labels)),
    ):
        target = folder / f"{part}{classes is None}"
        (file,) = stitch_folder(folder / "out" / "train" / part, target, classes=classes)
        assert file.name == f"P0{COLOUR if part == 'masks' else ''}.png"
        np.testing.assert_array_equal(read_image(file, 0), expected)


def test_training_finds_what_was_written(tmp_path):
    found = write_isaid(tmp_path / "data", [(130, 100)])
    image = found["P0"][0]
    for split in ("val", "test"):
        write_image(tmp_path / "data" / split / "images" / "P9.png", image)
    write_image(
        tmp_path / "data" / "val" / "masks" / f"P9{COLOUR}.png", ISAID.colourise(found["P0"][1])
    )
    config = configured(tmp_path / "data")
    count = prepare(config, tmp_path / "out")
    entries = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert count == len(entries) == 3 * 6
    config.data.root = str(tmp_path / "out")
    for split in ("train", "val", "test"):
        pairs = find_pairs(config.data, split)
        assert len(pairs) == 6
        for pair in pairs:
            top, bottom, left, right = map(int, re.findall(r"\d+", pair.image.stem)[1:])
            np.testing.assert_array_equal(read_image(pair.image), image[top:bottom, left:right])
            if split == "test":
                assert pair.mask is None
                continue
            labels = found["P0"][1][top:bottom, left:right]
            np.testing.assert_array_equal(read_image(pair.mask, 0), labels)
    one = next(entry for entry in entries if entry["file"].startswith("val/"))
    assert one["size"] == [130, 100] and one["source"] == "P9.png" and len(one["window"]) == 4
    lengths = [(tmp_path / "out" / file).stat().st_size for file in one["files"]]
    assert one["bytes"] == lengths


def test_upstreams_skipped_images_are_left_out(tmp_path):
    write_isaid(tmp_path / "data", [(70, 70)] * 2)
    config = configured(tmp_path / "data", skip=["P1"])
    assert [source.name for source in find_sources(config)] == ["P0"]
    config.prepare.skip = ["P0", "P1"]
    with pytest.raises(UserError, match="holds no images to prepare; check prepare.splits and"):
        find_sources(config)


@pytest.mark.parametrize(
    ("data", "folders", "names"),
    [
        ("vaihingen", ("top", "gts_for_participants"), ("top_mosaic_09cm_area{}.tif",) * 2),
        (
            "potsdam",
            ("2_Ortho_RGB", "5_Labels_for_participants"),
            ("top_potsdam_{}_RGB.tif", "top_potsdam_{}_label.tif"),
        ),
    ],
)
def test_isprs_data_is_divided_as_the_benchmark_does(tmp_path, data, folders, names):
    tiles = {"vaihingen": ["1", "2", "37", "38"], "potsdam": ["2_10", "2_13", "7_12", "7_13"]}
    for number, tile in enumerate(tiles[data]):
        image, labels = scene(80, 70, ISPRS, number)
        write_image(tmp_path / folders[0] / names[0].format(tile), image)
        if number < 3:  # masks of the test set are not always there
            write_image(tmp_path / folders[1] / names[1].format(tile), ISPRS.colourise(labels))
    config = configured(tmp_path, images=folders[0], masks=folders[1])
    config.data.format = data
    sources = find_sources(config)
    assert [source.split for source in sources] == ["train", "test", "train", "test"]
    prepare(config, tmp_path / "out")
    masks = sorted((tmp_path / "out" / "train" / "masks").iterdir())
    assert len(masks) == 8 and all(mask.stem.endswith("_gray_mask") for mask in masks)
    (whole, _) = find_wholes(tmp_path / "out" / "train" / "masks")
    np.testing.assert_array_equal(np.concatenate(list(stitched(whole))), scene(80, 70, ISPRS)[1])
    config.data.root = str(tmp_path / "out")
    assert len(find_pairs(config.data, "train")) == 8


def write_corrected(path):
    """As if a file of the same length had replaced it a second later."""
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def test_masks_are_converted_whole(tmp_path):
    found = write_isaid(tmp_path, [(600, 90), (50, 70)])
    config = configured(tmp_path)
    config.data.masks = "masks_new"
    sources = find_sources(config)
    assert convert_masks(sources, tmp_path, config) == 2
    for name, (_, labels) in found.items():
        mask = tmp_path / "train" / "masks_new" / f"{name}{COLOUR}.png"
        np.testing.assert_array_equal(read_image(mask, 0), labels)
    assert convert_masks(sources, tmp_path, config) == 0
    mask.write_bytes(b"cut")
    assert convert_masks(sources, tmp_path, config) == 1
    write_corrected(sources[0].mask)
    assert convert_masks(sources, tmp_path, config) == 1
    config.data.masks = "images"
    with pytest.raises(UserError, match="would replace the mask it is made of"):
        convert_masks(sources, tmp_path, config)


# -- going on after a kill


@pytest.mark.parametrize("moment", [3, 200])
def test_a_killed_run_is_continued_where_it_was(tmp_path, moment):
    write_isaid(tmp_path / "data", [(900, 900), (400, 700), (70, 600)])
    config = configured(tmp_path / "data", 64, 32)
    total = prepare(config, tmp_path / "whole")
    output = tmp_path / "killed"
    command = [
        *(sys.executable, str(ROOT / "research" / "pfsegnets" / "prepare_isaid.py")),
        *(f"--data_path={tmp_path / 'data'}", f"--output_path={output}", "--patch_height=64"),
        *("--patch_width=64", "--overlap_area=32", "--prepare.workers=2"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    manifest = output / "manifest.jsonl"
    while not manifest.exists() or manifest.read_bytes().count(b"\n") <= moment:
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {e["file"] for e in read_manifest(manifest)}
    assert moment <= len(done) < total
    before = {file: (output / file).stat().st_mtime_ns for file in done}
    # Two threads were writing one patch each, of two files, and one line may be cut off.
    assert len(list(output.rglob("*.png"))) - 2 * len(done) <= 4

    assert prepare(config, output) == total - len(done)
    assert {file: (output / file).stat().st_mtime_ns for file in done} == before
    assert contents(output) == contents(tmp_path / "whole")
    assert not list(output.rglob("*.part"))
    assert prepare(config, output) == 0


def test_what_is_damaged_or_exchanged_is_made_again(tmp_path):
    write_isaid(tmp_path / "data", [(100, 100), (70, 70)])
    config = configured(tmp_path / "data")
    total = prepare(config, tmp_path / "out")
    whole = contents(tmp_path / "out")
    patches = sorted((tmp_path / "out" / "train" / "images").iterdir())
    patches[0].unlink()
    patches[1].write_bytes(patches[1].read_bytes()[:-1])  # as after a power cut
    next((tmp_path / "out" / "train" / "masks").iterdir()).write_bytes(b"")
    assert 2 <= prepare(config, tmp_path / "out") <= 3
    assert contents(tmp_path / "out") == whole
    image = read_image(tmp_path / "data" / "train" / "images" / "P1.png")
    write_image(tmp_path / "data" / "train" / "images" / "P1.png", image // 2)
    assert prepare(config, tmp_path / "out") == 4 < total
    write_corrected(tmp_path / "data" / "train" / "images" / f"P1{COLOUR}.png")
    assert prepare(config, tmp_path / "out") == 4
    with pytest.raises(UserError, match=r"was written with overlap 16, not 8; choose another"):
        prepare(configured(tmp_path / "data", 64, 8), tmp_path / "out")


def test_one_writer_at_a_time(tmp_path):
    write_isaid(tmp_path / "data", [(70, 70)])
    holder = (
        "import sys\nfrom model_utils.files import FolderLock\n"
        f"with FolderLock({str(tmp_path / 'out')!r}):\n    print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=f"is being written by process {process.pid}"):
            prepare(configured(tmp_path / "data"), tmp_path / "out")
        process.stdin.close()


def test_the_first_error_ends_the_others():
    begun, stop = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 1:
            raise UserError("one")
        stop.wait(10)

    started = time.monotonic()
    with pytest.raises(UserError, match="one"):
        in_parallel(work, range(100), 2, stop)
    assert len(begun) <= 4 and time.monotonic() - started < 5
    assert in_parallel(lambda x: x * x, range(5), 3, threading.Event()) == [0, 1, 4, 9, 16]


_MEMORY = """
import re, sys
from pathlib import Path
from research.pfsegnets.src.config import PFNetConfig
from research.pfsegnets.src.tools.cropping import Patches, crop_sources
from research.pfsegnets.src.tools.sources import find_sources
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
config = PFNetConfig()
config.data.root = sys.argv[1]
config.prepare.splits = ["."]
config.prepare.workers = 1
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
crop_sources(find_sources(config), Path(sys.argv[2]), Patches(256, 256, 64), config)
print(status("VmHWM") - before)
"""


def test_memory_does_not_grow_with_the_image(tmp_path):
    peaks = {}
    for rows in (1000, 20000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        block = np.random.default_rng(0).integers(0, 256, (1000, 1024, 3)).astype(np.uint8)
        image = np.tile(block, (rows // 1000, 1, 1))
        (folder / "P0.png").write_bytes(encode_png(image))
        (folder / f"P0{COLOUR}.png").write_bytes(encode_png(np.zeros_like(image)))
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(folder), str(folder / "out")],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        peaks[rows] = float(done.stdout.splitlines()[-1])
    # 58 MB more of image, as much of mask; 10 MB for threads, lists and the allocator's moods.
    assert peaks[20000] < peaks[1000] + 10, peaks


# -- bad input


def test_an_unknown_colour_names_file_pixel_and_colour(tmp_path):
    write_isaid(tmp_path, [(300, 500)])
    path = tmp_path / "train" / "images" / f"P0{COLOUR}.png"
    mask = read_image(path)
    mask[251, 417] = (1, 2, 3)
    write_image(path, mask)
    config = configured(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cropping, "_STRIP_PIXELS", 64 * 150)
        with pytest.raises(UserError) as caught:
            prepare(config, tmp_path / "out")
    assert f"mask {path} has colour (1, 2, 3) at row 251, column 417" in str(caught.value)
    # What came before is written and kept.
    done = len(read_manifest(tmp_path / "out" / "manifest.jsonl"))
    assert done >= 4
    mask[251, 417] = (0, 0, 63)
    write_image(path, mask)
    prepare(config, tmp_path / "out")
    (whole,) = find_wholes(tmp_path / "out" / "train" / "masks")
    assert np.concatenate(list(stitched(whole)))[251, 417] == 1


@pytest.mark.parametrize(("unknown", "value"), [("ignore", 255), ("background", 0)])
def test_unknown_colours_may_have_a_meaning(tmp_path, caplog, unknown, value):
    ((_, labels),) = write_isaid(tmp_path, [(100, 100)]).values()
    path = tmp_path / "train" / "images" / f"P0{COLOUR}.png"
    mask = read_image(path)
    mask[3:5, 40:90] = 7
    mask[99, 99] = 8
    write_image(path, mask)
    prepare(configured(tmp_path, unknown=unknown), tmp_path / "out")
    (whole,) = find_wholes(tmp_path / "out" / "train" / "masks")
    labels[3:5, 40:90] = labels[99, 99] = value
    np.testing.assert_array_equal(np.concatenate(list(stitched(whole))), labels)


def test_grey_and_paletted_masks_are_read(tmp_path):
    found = write_isaid(tmp_path, [(90, 80), (90, 80)])
    folder = tmp_path / "train" / "images"
    write_image(folder / f"P0{COLOUR}.png", found["P0"][1])
    palette = Image.fromarray(found["P1"][1], "P")
    palette.putpalette(ISAID.colours.tobytes())
    palette.save(folder / f"P1{COLOUR}.png")
    prepare(configured(tmp_path), tmp_path / "out")
    for whole in find_wholes(tmp_path / "out" / "train" / "masks"):
        expected = found[whole.name.removesuffix(COLOUR)][1]
        np.testing.assert_array_equal(np.concatenate(list(stitched(whole))), expected)


def break_mask_missing(folder):
    (folder / f"P1{COLOUR}.png").unlink()


def break_mask_size(folder):
    write_image(folder / f"P1{COLOUR}.png", np.zeros((70, 80, 3), np.uint8))


def break_cut_off(folder):
    data = (folder / "P1.png").read_bytes()
    (folder / "P1.png").write_bytes(data[: len(data) // 2])


def break_empty_file(folder):
    (folder / "P1.png").write_bytes(b"")


def break_channels(folder):
    (folder / "P1.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        form = {"driver": "GTiff", "count": 4, "height": 70, "width": 70, "dtype": "uint8"}
        with rasterio.open(folder / "P1.tif", "w", photometric="MINISBLACK", **form) as data:
            data.write(np.zeros((4, 70, 70), np.uint8))


def break_sixteen_bits(folder):
    write_image(folder / "P1.png", np.zeros((70, 70), np.uint16))


def break_name_twice(folder):
    write_image(folder / "P1.tif", np.zeros((70, 70, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_mask_missing, "image {folder}/P1.png has no mask P1_*, beside it or in masks"),
        (break_mask_size, "P1.png has 70 x 70 pixels, its mask {folder}/P1{colour}.png 70 x 80"),
        (break_cut_off, "image {folder}/P1.png is corrupt or cut off between rows"),
        (break_empty_file, "image {folder}/P1.png is corrupt or of an unknown format"),
        (break_channels, "P1.tif has 4 bands; choose the three that are red, green and blue"),
        (break_sixteen_bits, "image {folder}/P1.png holds uint16 values; convert it to 8 bits"),
        (break_name_twice, "P1.png and {folder}/P1.tif have one name"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_files_are_sentences(tmp_path, damage, words):
    root = tmp_path / "with space and ä"
    write_isaid(root, [(70, 70)] * 3)
    folder = root / "train" / "images"
    damage(folder)
    with pytest.raises(UserError) as caught:
        prepare(configured(root), tmp_path / "out")
    assert words.format(folder=folder, colour=COLOUR) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bands_are_chosen(tmp_path):
    write_isaid(tmp_path, [(70, 70)] * 2)
    break_channels(tmp_path / "train" / "images")
    assert prepare(configured(tmp_path, bands=[3, 1, 2]), tmp_path / "out") == 8


def test_missing_folders_are_sentences(tmp_path):
    with pytest.raises(UserError, match="no data given"):
        find_sources(PFNetConfig())
    with pytest.raises(UserError, match=r"holds no folder train or val or test; set data.root"):
        find_sources(configured(tmp_path))
    (tmp_path / "train" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train/images holds no images \(\.png, "):
        find_sources(configured(tmp_path))
    with pytest.raises(UserError, match=r"mask folder .*labels does not exist; set prepare.masks"):
        write_isaid(tmp_path, [(9, 9)])
        find_sources(configured(tmp_path, masks="labels"))


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path):
    write_isaid(tmp_path / "data", [(70, 70)])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/out"):
        prepare(configured(tmp_path / "data"), tmp_path / "file" / "out")
    with pytest.raises(UserError, match="cannot write /proc/"):
        prepare(configured(tmp_path / "data"), Path("/proc/out"))
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "images").write_text("")
    with pytest.raises(UserError, match="cannot write .*train/images"):
        prepare(configured(tmp_path / "data"), tmp_path / "out")


def test_results_do_not_go_among_their_sources(tmp_path):
    write_isaid(tmp_path / "data", [(100, 100)])
    before = contents(tmp_path / "data")
    with pytest.raises(UserError, match="among the whole images in .*; choose another output"):
        prepare(configured(tmp_path / "data"), tmp_path / "out" / ".." / "data")
    prepare(configured(tmp_path / "data"), tmp_path / "out")
    masks = tmp_path / "out" / "train" / "masks"
    with pytest.raises(UserError, match="input and output folder, .* choose another output"):
        stitch_folder(masks, masks)
    assert contents(tmp_path / "data") == before and len(list(masks.iterdir())) == 4


def test_a_full_disk_is_a_sentence_and_leaves_whole_files(tmp_path, monkeypatch):
    write_isaid(tmp_path / "data", [(200, 200)])
    calls = []

    def full(self, data):
        calls.append(self)
        if len(calls) > 5:
            raise OSError(28, "No space left on device", str(self))
        return original(self, data)

    original = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    config = configured(tmp_path / "data", workers=1)
    with pytest.raises(UserError, match="no space left while writing"):
        prepare(config, tmp_path / "out")
    monkeypatch.undo()
    for path in (tmp_path / "out").rglob("*.png"):
        read_image(path)
    assert len(read_manifest(tmp_path / "out" / "manifest.jsonl")) == 2
    assert prepare(config, tmp_path / "out") == 14


def test_the_wrong_tool_says_so(tmp_path):
    config = configured(tmp_path)
    config.data.format = "potsdam"
    with pytest.raises(UserError, match="prepares isaid, not potsdam"):
        prepare_isaid(None, config, tmp_path / "out")
    with pytest.raises(UserError, match="prepares gaofen_img and gaofen_sar, not potsdam"):
        dividing.prepare_gaofen(None, config, tmp_path / "out")


# -- putting together


def test_probabilities_are_averaged(tmp_path):
    draw = np.random.default_rng(0)
    total, count = np.zeros((4, 50, 60)), np.zeros((50, 60))
    (tmp_path / "patches").mkdir()
    for place in Patches(24, 32, 9).places(50, 60):
        values = draw.random((4, place.bottom - place.top, place.right - place.left))
        np.save(tmp_path / "patches" / place.tile_name("a b"), values.astype(np.float32))
        total[:, place.top : place.bottom, place.left : place.right] += values
        count[place.top : place.bottom, place.left : place.right] += 1
    mean = total / count
    (classes,) = stitch_folder(tmp_path / "patches", tmp_path / "c", "mean")
    np.testing.assert_array_equal(read_image(classes, 0), mean.argmax(0))
    (file,) = stitch_folder(tmp_path / "patches", tmp_path / "p", "mean", probabilities=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(file) as data:
            np.testing.assert_allclose(data.read(), mean, atol=1e-6)


def test_stitching_keeps_what_is_finished_and_redoes_what_changed(tmp_path):
    write_isaid(tmp_path / "data", [(100, 100), (90, 90)])
    prepare(configured(tmp_path / "data"), tmp_path / "out")
    masks = tmp_path / "out" / "train" / "masks"
    files = stitch_folder(masks, tmp_path / "whole")
    before = [file.stat().st_mtime_ns for file in files]
    stitch_folder(masks, tmp_path / "whole")
    assert [file.stat().st_mtime_ns for file in files] == before
    patch = sorted(masks.glob("P1*"))[0]
    values = read_image(patch, 0)
    values[0, 0] = 9
    write_image(patch, values)
    stitch_folder(masks, tmp_path / "whole")
    changed = [file.stat().st_mtime_ns != time for file, time in zip(files, before, strict=True)]
    assert changed == [False, True] and read_image(files[1], 0)[0, 0] == 9
    with pytest.raises(UserError, match="was written with colours False, not True"):
        stitch_folder(masks, tmp_path / "whole", classes=ISAID)


def test_bad_patches_are_sentences(tmp_path):
    write_isaid(tmp_path / "data", [(100, 100)])
    prepare(configured(tmp_path / "data"), tmp_path / "out")
    masks = tmp_path / "out" / "train" / "masks"
    manifest = str(tmp_path / "out" / "manifest.jsonl")
    last = masks / f"P0_36_100_36_100{COLOUR}.png"
    saved = last.read_bytes()

    def fails(words, overlap="equal"):
        with pytest.raises(UserError, match=words):
            stitch_folder(masks, tmp_path / overlap, overlap, manifest=manifest)
        assert not (tmp_path / overlap / f"P0{COLOUR}.png").exists()

    last.unlink()
    fails(f"image P0{COLOUR}: no tile covers row 64, column 64; complete the patches")
    write_image(last, np.zeros((64, 63), np.uint8))
    fails(r"has 64 x 63 pixels, by its name it is 64 x 64; do not resize patches")
    write_image(last, np.zeros((64, 64, 3), np.uint8))
    fails("have different channels")
    last.write_bytes(saved[:-30])
    fails("is corrupt or of an unknown format")
    write_image(last, np.full((64, 64), 99, np.uint8))
    fails("differ at row 36, column 36 of the whole image")
    fails("holds class numbers or colours, which have no mean", "mean")
    np.save(masks / "Q_0_8_0_8.npy", np.zeros((8, 8)))
    last.write_bytes(saved)
    with pytest.raises(UserError, match="lists no patches of Q"):
        find_wholes(masks, manifest)
    with pytest.raises(UserError, match=r"probabilities are floating point \(classes, rows"):
        list(stitched(find_wholes(masks)[1]))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no patches NAME_y0_y1_x0_x1"):
        find_wholes(tmp_path / "nothing")


# -- Gaofen


def write_gaofen(root, count, suffix=".tif"):
    for number in range(count):
        image, labels = scene(40, 50, seed=number)
        write_image(root / "image" / f"{number}{suffix}", image)
        write_image(root / "gt" / f"{number}.png", np.where(labels > 3, 255, 0).astype(np.uint8))


def gaofen(root, track="gaofen_img", **keys):
    config = configured(root, val_share=0.25, **keys)
    config.data.format = track
    return config


def test_gaofen_data_is_divided_and_read(tmp_path):
    write_gaofen(tmp_path / "data", 12)
    config = gaofen(tmp_path / "data")
    counts = dividing.divide_pairs(config, tmp_path / "out")
    assert counts == {"all": 12, "train": 9, "val": 3}
    config.data.root = str(tmp_path / "out")
    parts = {part: find_pairs(config.data, part) for part in ("train", "val")}
    names = {part: {pair.image.name for pair in pairs} for part, pairs in parts.items()}
    assert not names["train"] & names["val"]
    assert names["train"] | names["val"] == {f"{number}.tif" for number in range(12)}
    for pair in parts["val"]:
        for file, folder in ((pair.image, "image"), (pair.mask, "gt")):
            assert file.read_bytes() == (tmp_path / "data" / folder / file.name).read_bytes()
    # The same seed divides alike, another one not.
    assert dividing.divide("abcdefghijkl", 0.5, 1) == dividing.divide("lkjihgfedcba", 0.5, 1)
    assert dividing.divide("abcdefghijkl", 0.5, 1) != dividing.divide("abcdefghijkl", 0.5, 2)
    config = gaofen(tmp_path / "data")
    config.seed = 5
    with pytest.raises(UserError, match="was written with val"):
        dividing.divide_pairs(config, tmp_path / "out")


def test_gaofen_data_in_its_place_links_and_lists(tmp_path):
    write_gaofen(tmp_path / "all", 6, ".png")
    (tmp_path / "val.txt").write_text("2\n4.png\n")
    config = gaofen(tmp_path, "gaofen_sar", val_list=str(tmp_path / "val.txt"), link=True)
    assert dividing.divide_pairs(config, tmp_path) == {"all": 6, "train": 4, "val": 2}
    assert {path.name for path in (tmp_path / "val" / "gt").iterdir()} == {"2.png", "4.png"}
    assert (tmp_path / "val" / "gt" / "2.png").samefile(tmp_path / "all" / "gt" / "2.png")
    (tmp_path / "val" / "gt" / "2.png").unlink()
    dividing.divide_pairs(config, tmp_path)
    assert (tmp_path / "val" / "gt" / "2.png").exists()
    (tmp_path / "val.txt").write_text("7\n")
    with pytest.raises(UserError, match="val.txt names 7, which is not among the images"):
        dividing.divide_pairs(config, tmp_path)


def test_finished_gaofen_pairs_are_not_read_again(tmp_path, monkeypatch):
    write_gaofen(tmp_path / "data", 8)
    config = gaofen(tmp_path / "data", workers=1)
    original, seen = dividing.check, []

    def check(pair, classes):
        seen.append(pair.image.stem)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return original(pair, classes)

    monkeypatch.setattr(dividing, "check", check)
    with pytest.raises(KeyboardInterrupt):
        dividing.divide_pairs(config, tmp_path / "out")
    dividing.divide_pairs(config, tmp_path / "out")
    assert sorted(seen) == sorted([*map(str, range(8)), seen[4]])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "gt" / "1.png").unlink(), "image {d}/image/1.tif has no mask"),
        (
            lambda d: write_image(d / "gt" / "1.png", np.eye(40, 50, dtype=np.uint8)),
            "mask {d}/gt/1.png has class number 1 at row 0, column 0",
        ),
        (
            lambda d: write_image(d / "gt" / "1.png", np.zeros((50, 40), np.uint8)),
            "image {d}/image/1.tif has 40 x 50 pixels, its mask {d}/gt/1.png 50 x 40",
        ),
        (
            lambda d: (d / "image" / "1.tif").write_bytes(b"II*\0"),
            "image {d}/image/1.tif is corrupt or of an unknown format",
        ),
    ],
    ids=["no mask", "value", "size", "corrupt"],
)
def test_bad_gaofen_files_are_sentences(tmp_path, damage, words):
    write_gaofen(tmp_path / "data", 3)
    damage(tmp_path / "data")
    with pytest.raises(UserError) as caught:
        dividing.divide_pairs(gaofen(tmp_path / "data"), tmp_path / "out")
    assert words.format(d=tmp_path / "data") in str(caught.value)


# -- the scripts


def test_the_scripts_crop_and_put_together(tmp_path):
    ((image, labels),) = write_isaid(tmp_path / "my data", [(130, 100)]).values()
    text = run_script(
        "pfsegnets",
        "prepare_isaid.py",
        "--data_path=my data",
        "--patch_height=64",
        "--patch_width=48",
        "--overlap_area=16",
        "--output_path=patches",
        cwd=tmp_path,
    )
    assert "9 patches written to patches" in text
    first = json.loads((tmp_path / "patches" / "manifest.jsonl").read_text().splitlines()[0])
    assert first["settings"]["patch"] == [64, 48] and first["settings"]["overlap"] == 16
    run_script(
        "pfsegnets",
        "stitch.py",
        "--stitch.source=patches/train/masks",
        "--colours=true",
        "--manifest=patches/manifest.jsonl",
        "--output_path=whole",
        cwd=tmp_path,
    )
    whole = read_image(tmp_path / "whole" / f"P0{COLOUR}.png")
    np.testing.assert_array_equal(whole, ISAID.colourise(labels))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("prepare_isprs.py", "prepares vaihingen and potsdam, not isaid"),
        ("prepare_gaofen.py", "prepares gaofen_img and gaofen_sar, not isaid"),
        ("stitch.py", "no patches given; add --stitch.source=FOLDER"),
    ],
)
def test_the_scripts_say_what_is_wrong(tmp_path, script, words):
    assert words in run_script("pfsegnets", script, cwd=tmp_path, status=2)


def test_the_comparison_reports_speed_and_memory(tmp_path):
    text = run_script(
        "pfsegnets",
        "benchmark_tools.py",
        *("--sizes=130x100", "--patch=64", "--overlap=16", "--rounds=1", "--images=1"),
        *(f"--folder={tmp_path}", "--workers=1"),
        cwd=tmp_path,
    )
    record = json.loads((tmp_path / "outputs" / "benchmark_tools.json").read_text())
    (size,) = record["sizes"]
    assert size["patches"] == 6
    for name in ("Pillow loop", "ours, 1 workers"):
        assert name in text
        figures = size["figures"][name]
        assert 0 < figures["memory_mb"] < figures["peak_mb"] and figures["written_mb"] > 0
    theirs, ours = (entries[0]["seconds"] for entries in size["rounds"].values())
    assert figures["times_as_fast"][0] == pytest.approx(theirs / ours)
