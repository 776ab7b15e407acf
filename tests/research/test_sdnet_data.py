"""Patch archives, patch preparation, data sets and the generated scenes."""

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_utils.errors import UserError
from model_utils.files import read_image, write_image
from research.sdnet.src import generator, patches, preparing
from research.sdnet.src.dataset import (
    Augmentation,
    ImagePairDataset,
    PatchDataset,
    normalise,
    symmetry,
)
from research.sdnet.src.patches import PatchWriter, find_archive, open_patches
from research.sdnet.src.preparing import PrepareOptions, list_pairs, prepare

SDNET = Path(patches.__file__).parents[1]


@pytest.fixture
def zoo_log(caplog):
    """What the library says, even after another test turned propagation off."""
    logger = logging.getLogger("zoo")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "zoo")
    yield caplog
    logger.removeHandler(caplog.handler)


def rows(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 128), dtype=np.uint8)


def labels_of(count):
    return (np.arange(count) % 3 > 0).astype(np.int64)


# ---------------------------------------------------------------------------------------------
# archives


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_archives_return_what_was_appended(tmp_path, suffix, dtype):
    images, labels = rows(53).astype(dtype), labels_of(53)
    sources = [(f"a{i % 5}", f"b{i % 4}") for i in range(53)]
    positions = np.arange(53 * 4).reshape(53, 4)
    path = tmp_path / f"set{suffix}"
    with PatchWriter(path, dtype) as writer:
        for start in range(0, 53, 10):
            part = slice(start, start + 10)
            writer.append(images[part], labels[part], sources[part], positions[part])
    archive = open_patches(path)
    assert len(archive) == 53 and archive.dtype == dtype and not archive.in_memory
    np.testing.assert_array_equal(archive.labels, labels)
    for index in (0, 17, 52):
        optical, sar = archive.pair(index)
        np.testing.assert_array_equal(optical, images[index, :, :64])
        np.testing.assert_array_equal(sar, images[index, :, 64:])
    np.testing.assert_array_equal(np.concatenate(archive.pairs(9, 31), axis=2), images[9:31])
    assert archive.name(7) == "a2@28,29|b3@30,31"
    with pytest.raises(IndexError):
        archive.pair(53)


def test_the_npz_layout_is_that_of_numpy(tmp_path):
    images, labels = rows(20), labels_of(20)
    np.savez(tmp_path / "theirs.npz", images, labels)
    archive = open_patches(tmp_path / "theirs.npz")
    assert isinstance(archive._images, np.memmap)
    np.testing.assert_array_equal(archive.pair(11)[1], images[11, :, 64:])
    assert archive.name(11) == "000011"
    with PatchWriter(tmp_path / "ours.npz") as writer:
        writer.append(images, labels)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["arr_0"], images)
        np.testing.assert_array_equal(loaded["arr_1"], labels)


def test_fortran_order_is_read_correctly(tmp_path):
    images = rows(12)
    np.savez(tmp_path / "f.npz", np.asfortranarray(images), labels_of(12))
    np.testing.assert_array_equal(open_patches(tmp_path / "f.npz").pair(5)[0], images[5, :, :64])


def test_compressed_archives_are_loaded_and_say_so(tmp_path, zoo_log):
    images = rows(9)
    np.savez_compressed(tmp_path / "c.npz", images, labels_of(9))
    archive = open_patches(tmp_path / "c.npz")
    assert archive.in_memory
    assert "compressed" in zoo_log.text and "convert(" in zoo_log.text
    np.testing.assert_array_equal(archive.pair(8)[0], images[8, :, :64])
    assert preparing.convert(tmp_path / "c.npz", tmp_path / "d.h5") == 9
    converted = open_patches(tmp_path / "d.h5")
    np.testing.assert_array_equal(np.concatenate(converted.pairs(0, 9), axis=2), images)
    assert not converted.in_memory


MEMORY_PROBE = """
import re, sys
import numpy as np
from research.sdnet.src.patches import open_patches
def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
import h5py
before = private()
archive = open_patches(sys.argv[1])
total = 0
for index in np.random.default_rng(0).integers(len(archive), size=3000):
    total += int(archive.pair(index)[0][0, 0])
print(private() - before, total)
"""


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_reading_does_not_load_the_archive(tmp_path, suffix):
    path = tmp_path / f"large{suffix}"
    block = rows(1000)
    with PatchWriter(path) as writer:
        for _ in range(30):
            writer.append(block, np.ones(1000))
    assert path.stat().st_size > 240e6
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, path], capture_output=True, text=True, check=True
    )
    grown, total = run.stdout.split()
    assert float(grown) < 30  # MiB of 234
    chosen = np.random.default_rng(0).integers(30000, size=3000) % 1000
    assert int(total) == block[chosen, 0, 0].sum(dtype=np.int64)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_threads_forks_and_pickling(tmp_path, suffix):
    path, images = tmp_path / f"set{suffix}", rows(200)
    with PatchWriter(path) as writer:
        writer.append(images, np.ones(200))
    archive = open_patches(path)
    archive.pair(0)  # the parent's handle is open before the fork
    assert len(pickle.dumps(archive)) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(archive)).pair(3)[0], images[3, :, :64])
    wrong = []

    def check(first):
        for index in range(first, 200, 4):
            if not np.array_equal(archive.pair(index)[1], images[index, :, 64:]):
                wrong.append(index)

    threads = [threading.Thread(target=check, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(archive.pair(150)[0], images[150, :, :64]) else 7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def save_h5(path, **members):
    with h5py.File(path, "w") as file:
        for name, value in members.items():
            file.create_dataset(name, data=value)


BAD_ARRAYS = {
    "labels outside": (dict(arr_0=rows(4), arr_1=[1, 0, 2, 1]), "label 2 in row 2"),
    "NaN label": (dict(arr_0=rows(4), arr_1=[1, 0, np.nan, 1]), "label nan in row 2"),
    "label count": (dict(arr_0=rows(4), arr_1=[1, 0]), r"shape \(2,\) for 4 patches"),
    "channel axis": (dict(arr_0=rows(4)[..., None], arr_1=[1] * 4), r"expected arr_0 \(N,64,128\)"),
    "square": (dict(arr_0=rows(4)[:, :, :64], arr_1=[1] * 4), r"\(4, 64, 64\)"),
    "integers": (dict(arr_0=rows(4).astype(np.int32), arr_1=[1] * 4), "int32 are not supported"),
    "empty": (dict(arr_0=rows(0), arr_1=np.zeros(0)), "holds no patches"),
    "other keys": (dict(images=rows(4), labels=[1] * 4), "lacks arr_0 and arr_1"),
    "no labels": (dict(arr_0=rows(4)), "lacks arr_1"),
    "loose sources": (
        dict(arr_0=rows(2), arr_1=[1, 1], names=np.array([b"a"]), sources=[[0, 0], [0, 1]]),
        "outside the 1 names",
    ),
}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_archives_of_another_layout_are_refused(tmp_path, suffix, case):
    members, message = BAD_ARRAYS[case]
    path = tmp_path / f"bad{suffix}"
    np.savez(path, **members) if suffix == ".npz" else save_h5(path, **members)
    with pytest.raises(UserError, match=message) as error:
        open_patches(path)
    assert str(path) in str(error.value)


def test_python_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    trap = np.empty(3, object)
    trap[:] = [Trap()] * 3
    np.savez(tmp_path / "images.npz", trap, labels_of(3))
    np.savez(tmp_path / "labels.npz", rows(3), trap)
    for name in ("images", "labels"):
        with pytest.raises(UserError, match=r"object|cannot be read"):
            open_patches(tmp_path / f"{name}.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_archives_are_named(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    with PatchWriter(path) as writer:
        writer.append(rows(40), np.ones(40))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match="truncated") as error:
        open_patches(path)
    assert str(path) in str(error.value)


def test_a_member_shorter_than_its_header_says_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", rows(5))
    np.save(tmp_path / "b.npy", np.ones(5))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", (tmp_path / "a.npy").read_bytes()[:-100])
        archive.write(tmp_path / "b.npy", "arr_1.npy")
    with pytest.raises(UserError, match="announces"):
        open_patches(tmp_path / "x.npz")


def test_damaged_compressed_data_is_a_sentence(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", rows(20), np.ones(20))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[2000:2100] = bytes(100)
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(UserError, match="truncated or not an npz"):
        open_patches(tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_nan_pixels_name_their_row(tmp_path, suffix):
    images = rows(30).astype(np.float32)
    images[21, 5, 70] = np.nan
    with PatchWriter(tmp_path / f"nan{suffix}", np.float32) as writer:
        writer.append(images, np.ones(30), [("img", "img")] * 30)
    archive = open_patches(tmp_path / f"nan{suffix}")
    archive.pair(20)
    with pytest.raises(UserError, match=r"row 21 \(img\)"):
        archive.pair(21)
    with pytest.raises(UserError, match="row 21"):
        archive.pairs(16, 30)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_patches(tmp_path / "none.npz")
    (tmp_path / "x.mat").write_bytes(b"x")
    with pytest.raises(UserError, match="unknown suffix"):
        open_patches(tmp_path / "x.mat")
    with pytest.raises(UserError, match="holds no test"):
        find_archive(tmp_path, "test")
    for suffix in (".npz", ".h5"):
        (tmp_path / f"test{suffix}").write_bytes(b"")
    with pytest.raises(UserError, match="both test.npz and test.h5"):
        find_archive(tmp_path, "test")
    (tmp_path / "test.h5").unlink()
    assert find_archive(tmp_path, "test") == tmp_path / "test.npz"


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_an_interrupted_writer_leaves_the_earlier_archive(tmp_path, suffix):
    path = tmp_path / f"set{suffix}"
    with PatchWriter(path) as writer:
        writer.append(rows(5), np.ones(5))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="stop"), PatchWriter(path) as writer:
        writer.append(rows(9), np.ones(9))
        raise RuntimeError("stop")
    with pytest.raises(UserError, match="no patches"), PatchWriter(path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    script = (
        "import os, signal, numpy as np\n"
        "from research.sdnet.src.patches import PatchWriter\n"
        f"with PatchWriter({str(path)!r}) as writer:\n"
        "    writer.append(np.zeros((50, 64, 128), np.uint8), np.ones(50))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_full_disk_is_explained(small_disk, suffix):
    with (
        pytest.raises(UserError, match="no space left"),
        PatchWriter(small_disk / f"set{suffix}") as writer,
    ):
        for _ in range(40):
            writer.append(rows(10), np.ones(10))
    assert not (small_disk / f"set{suffix}").exists()


def test_the_writer_refuses_rows_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="suffix"):
        PatchWriter(tmp_path / "x.csv")
    with pytest.raises(UserError, match="int16"):
        PatchWriter(tmp_path / "x.npz", np.int16)
    with PatchWriter(tmp_path / "x.npz") as writer:
        writer.append(rows(1), np.ones(1))
        for images, labels in ((rows(2)[:, :, :64], [1, 1]), (rows(2).astype(float), [1, 1])):
            with pytest.raises(UserError, match="cannot append"):
                writer.append(images, labels)
        with pytest.raises(UserError, match="label 3"):
            writer.append(rows(1), [3])
    assert len(open_patches(tmp_path / "x.npz")) == 1


# ---------------------------------------------------------------------------------------------
# generated scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sen12")
    assert generator.generate(folder, scenes=5, across=2, down=2, seed=3) == 20
    return folder


def test_generated_files_have_the_public_format(scenes):
    sar = read_image(scenes / "ROIs1868_summer/s1_1/ROIs1868_summer_s1_1_p2.png", 0)
    optical = read_image(scenes / "ROIs1868_summer/s2_1/ROIs1868_summer_s2_1_p2.png", 0)
    assert (sar.shape, sar.dtype, optical.shape) == ((256, 256), np.uint8, (256, 256, 3))
    pairs = list_pairs(scenes)
    assert len(pairs) == 20 and len({pair.scene for pair in pairs}) == 5
    # Neighbours overlap by half, as in SEN1-2: p0's right half is p1's left half.
    neighbour = [read_image(pair.sar, 0) for pair in pairs if pair.scene == "ROIs1868_summer/1"]
    np.testing.assert_array_equal(neighbour[0][:, 128:], neighbour[1][:, :128])
    np.testing.assert_array_equal(neighbour[0][128:], neighbour[2][:128])


def test_generated_scenes_depend_on_the_seed_only(scenes, tmp_path):
    generator.generate(tmp_path / "same", scenes=1, across=1, down=1, seed=3)
    generator.generate(tmp_path / "other", scenes=1, across=1, down=1, seed=4)
    name = "ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p0.png"
    again, other = (read_image(tmp_path / part / name, 0) for part in ("same", "other"))
    assert np.mean(again != other) > 0.9
    first = generator.make_scene(3, 0, 256)
    np.testing.assert_array_equal(again, first[1])
    with pytest.raises(UserError, match="at least 1"):
        generator.generate(tmp_path, scenes=0)


def test_generated_modalities_share_structure_but_not_brightness():
    rng = np.random.default_rng(1)
    land = generator.make_landscape(rng, 512)
    optical = generator.render_optical(land, rng).mean(axis=2)
    sar = generator.render_sar(land, rng).astype(float)
    means = {
        kind: (optical[land.classes == kind].mean(), sar[land.classes == kind].mean())
        for kind in (generator.WATER, generator.FOREST, generator.SOIL, generator.BUILDING)
    }
    # Water is dark in both, buildings bright in both, forest and soil change places.
    assert means[generator.WATER][0] < 0.6 * optical.mean()
    assert means[generator.WATER][1] < 0.4 * sar.mean()
    assert means[generator.BUILDING] == tuple(np.max(list(means.values()), axis=0))
    assert means[generator.FOREST][0] < means[generator.SOIL][0]
    assert means[generator.FOREST][1] > 1.3 * means[generator.SOIL][1]


def test_generated_speckle_is_multiplicative_and_of_the_stated_looks():
    size = 256
    flat = generator.Landscape(
        classes=np.repeat([[generator.SOIL, generator.GRASS]], size, 0).repeat(size // 2, 1),
        crops=np.zeros((size, size), np.uint8),
        height=np.zeros((size, size), np.float32),
        walls=np.zeros((size, size), np.float32),
        rows=np.zeros((size, size), np.float32),
    )
    rng = np.random.default_rng(0)
    clean = generator.render_sar(flat, rng, looks=1e6).astype(float)
    # Without speckle: parcels and slow shading, whose neighbouring pixels are alike.
    assert np.median(np.abs(np.diff(clean, axis=1))) <= 1
    for half in (np.s_[20:-20, 20:108], np.s_[20:-20, 148:236]):
        noisy = generator.render_sar(flat, rng, looks=4.4)[half].astype(float) ** 2
        local = cv2.GaussianBlur(noisy, (0, 0), 8)
        spread = np.std(noisy / local)
        # 1 / sqrt(looks) = 0.477, less what the slight blur averages away.
        assert 0.25 < spread < 0.477


# ---------------------------------------------------------------------------------------------
# preparing


def options(**changes):
    return PrepareOptions(**{"per_image": 6, "train_ratio": 0.6, "workers": 2, **changes})


def test_rows_are_the_windows_they_claim_to_be(scenes, tmp_path):
    pairs = list_pairs(scenes)
    manifest = prepare(pairs, tmp_path, options())
    grey = {pair.name: preparing.read_pair(pair) for pair in pairs}
    seen = {}
    for split in ("train", "test"):
        archive = open_patches(tmp_path / f"{split}.npz")
        for index in range(len(archive)):
            optical, sar = archive.pair(index)
            first, second = (str(archive.names[i]) for i in archive.sources[index])
            x, y, u, v = archive.positions[index]
            np.testing.assert_array_equal(optical, grey[first][0][y - 32 : y + 32, x - 32 : x + 32])
            np.testing.assert_array_equal(sar, grey[second][1][v - 32 : v + 32, u - 32 : u + 32])
            same_scene = first.rpartition("/")[0] == second.rpartition("/")[0]
            assert same_scene == bool(archive.labels[index])
            if archive.labels[index]:
                assert (first, x, y) == (second, u, v)
                seen.setdefault(first, []).append((x, y))
        counts = manifest["splits"][split]
        assert counts["matching"] == archive.labels.sum()
        assert counts["non_matching"] == len(archive) - archive.labels.sum()
    assert manifest["splits"]["train"]["non_matching"] == 0
    assert manifest["splits"]["test"]["non_matching"] == manifest["splits"]["test"]["matching"]
    assert not set(manifest["splits"]["train"]["scenes"]) & set(
        manifest["splits"]["test"]["scenes"]
    )
    assert json.loads((tmp_path / "patches.json").read_text()) == manifest
    for points in seen.values():
        gaps = np.linalg.norm(np.array(points)[:, None] - np.array(points)[None], axis=2)
        assert 1 < len(points) <= 6 and gaps[~np.eye(len(points), dtype=bool)].min() >= 32


def test_keypoints_are_those_of_sift():
    # One bright blob on a flat image: SIFT must find its centre and nothing else of note.
    image = np.full((200, 200), 60, np.uint8)
    cv2.circle(image, (120, 84), 7, 220, -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    flat = np.full_like(image, 50)
    points = preparing.detect_points(image, flat, "opt", min_distance=40)
    np.testing.assert_allclose(points[0], (120, 84), atol=1)
    assert not len(preparing.detect_points(image, flat, "sar", 8))
    np.testing.assert_array_equal(preparing.detect_points(flat, image, "both", 40), points)
    # Too close to the border for a window:
    assert not len(preparing.detect_points(image[60:], flat[60:], "opt", 40))


def test_archives_do_not_depend_on_threads_but_on_the_seed(scenes, tmp_path):
    pairs = list_pairs(scenes)
    for name, changes in (("a", {}), ("b", {"workers": 5}), ("c", {"seed": 1})):
        prepare(pairs, tmp_path / name, options(**changes))
    content = {name: (tmp_path / name / "train.npz").read_bytes() for name in "abc"}
    assert content["a"] == content["b"] != content["c"]


def test_hdf5_and_npz_hold_the_same_rows(scenes, tmp_path):
    pairs = list_pairs(scenes)
    prepare(pairs, tmp_path / "n", options())
    prepare(pairs, tmp_path / "h", options(suffix=".h5"))
    first, second = open_patches(tmp_path / "n/test.npz"), open_patches(tmp_path / "h/test.h5")
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.pairs(0, len(first))[1], second.pairs(0, len(second))[1])
    assert [first.name(i) for i in range(9)] == [second.name(i) for i in range(9)]


def test_counts_follow_the_options(scenes, tmp_path):
    pairs = list_pairs(scenes)
    manifest = prepare(
        pairs,
        tmp_path,
        options(train_per_image=9, val_ratio=0.2, test_negative_ratio=2.5, limit=3, min_distance=8),
    )["splits"]
    assert manifest["train"]["images"] == 3 and manifest["train"]["matching"] == 27
    assert manifest["val"]["matching"] == 18 and manifest["val"]["non_matching"] == 45
    assert manifest["test"]["non_matching"] == round(2.5 * manifest["test"]["matching"])


def test_corrupt_images_stop_or_are_skipped(scenes, tmp_path):
    pairs = list_pairs(scenes)
    broken = tmp_path / "broken.png"
    broken.write_bytes(pairs[4].sar.read_bytes()[:300])
    small = tmp_path / "small.png"
    write_image(small, np.zeros((256, 255), np.uint8))
    changed = list(pairs)
    changed[4] = preparing.ImagePair("broken", pairs[4].scene, pairs[4].optical, broken)
    changed[9] = preparing.ImagePair("small", pairs[9].scene, pairs[9].optical, small)
    with pytest.raises(UserError, match=r"broken\.png is corrupt.*on_error"):
        prepare([pair for pair in changed if pair.name != "small"], tmp_path / "a", options())
    assert not (tmp_path / "a" / "patches.json").exists()
    manifest = prepare(changed, tmp_path / "b", options(on_error="skip"))
    assert sorted(entry["pair"] for entry in manifest["skipped"]) == ["broken", "small"]
    assert "255x256" in str(manifest["skipped"])
    assert sum(split["images"] for split in manifest["splits"].values()) == 18


def test_explicit_lists_decide_the_split(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        image = cv2.GaussianBlur(rng.integers(0, 256, (160, 160), dtype=np.uint8), (0, 0), 2)
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
        write_image(tmp_path / f"opt/{number:03d}.png", np.repeat(image[..., None], 3, 2))
        write_image(tmp_path / f"sar/{number:03d}.tif", image.astype(np.uint16) * 100)
    (tmp_path / "train.txt").write_text("000.png\n001.png\n")
    (tmp_path / "val.txt").write_text("002\n003\n")
    (tmp_path / "test.txt").write_text("004.png\n005.png\n")
    pairs = list_pairs(tmp_path)
    manifest = prepare(pairs, tmp_path / "out", options(splits=str(tmp_path)))
    assert [manifest["splits"][name]["scenes"] for name in ("train", "val", "test")] == [
        ["000", "001"],
        ["002", "003"],
        ["004", "005"],
    ]
    # 16-bit images are stretched to 8 bits: equal images stay equal up to a linear change.
    optical, sar = open_patches(tmp_path / "out/train.npz").pair(0)
    middle = (optical > 20) & (optical < 235)
    assert np.corrcoef(optical[middle], sar[middle])[0, 1] > 0.999
    for text, message in (
        ("004.png\n009.png\n", "names 009.png"),
        ("001.png\n003.png\n", "listed in train.txt and again|listed in train"),
    ):
        (tmp_path / "test.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            preparing.split_pairs(pairs, options(splits=str(tmp_path)))
    joined = list_pairs(tmp_path, scene_pattern=r"^0(0)")
    (tmp_path / "test.txt").write_text("004.png\n")
    with pytest.raises(UserError, match="scene 0 of 002"):
        preparing.split_pairs(joined, options(splits=str(tmp_path)))


def test_list_files_and_layout_errors(scenes, tmp_path):
    pairs = list_pairs(scenes)
    lines = [f"{pair.optical}\t{pair.sar}\ts{number // 2}" for number, pair in enumerate(pairs)]
    (tmp_path / "list.txt").write_text("# optical sar scene\n" + "\n".join(lines))
    listed = list_pairs(tmp_path, pair_list="list.txt")
    assert {pair.sar for pair in listed} == {pair.sar for pair in pairs}
    assert len({pair.scene for pair in listed}) == 10
    (tmp_path / "list.txt").write_text("a.png b.png\n")
    with pytest.raises(UserError, match=r"list.txt, line 1, .*a\.png"):
        list_pairs(tmp_path, pair_list="list.txt")
    (tmp_path / "list.txt").write_text("one\n")
    with pytest.raises(UserError, match="line 1: expected"):
        list_pairs(tmp_path, pair_list="list.txt")
    with pytest.raises(UserError, match="neither SEN1-2"):
        list_pairs(tmp_path)
    (tmp_path / "opt").mkdir()
    (tmp_path / "sar").mkdir()
    with pytest.raises(UserError, match="same name"):
        list_pairs(tmp_path)
    with pytest.raises(UserError, match="does not match"):
        list_pairs(scenes, scene_pattern="xyz")
    with pytest.raises(UserError, match="does not exist"):
        list_pairs(tmp_path / "nowhere")


def test_partnerless_images_are_reported(tmp_path, zoo_log):
    write_image(tmp_path / "opt/a.png", np.zeros((80, 80), np.uint8))
    write_image(tmp_path / "opt/b.png", np.zeros((80, 80), np.uint8))
    write_image(tmp_path / "sar/b.png", np.zeros((80, 80), np.uint8))
    assert [pair.name for pair in list_pairs(tmp_path)] == ["b"]
    assert "1 images have no partner" in zoo_log.text
    with pytest.raises(UserError, match="no keypoint"):
        prepare(list_pairs(tmp_path), tmp_path / "out", options(train_ratio=1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detect": "vv"}, "opt, sar or both"),
        ({"per_image": 0}, "at least 1"),
        ({"train_ratio": 1.2}, r"in \(0, 1\]"),
        ({"train_ratio": 0.9, "val_ratio": 0.2}, "at most 1"),
        ({"suffix": ".csv"}, "one of .npz"),
        ({"on_error": "ignore"}, "stop or skip"),
    ],
)
def test_options_out_of_range(scenes, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(list_pairs(scenes), tmp_path, options(**changes))


def test_too_few_scenes_for_a_split(scenes):
    pairs = [pair for pair in list_pairs(scenes) if pair.scene.endswith(("/0", "/1"))]
    with pytest.raises(UserError, match=r"2 scenes cannot be split so that val gets .* 0\.01"):
        preparing.split_pairs(pairs, options(val_ratio=0.01))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60).filter(lambda x: len(set(x)) > 1),
       st.integers(0, 99))  # fmt: skip
@settings(deadline=None)
def test_partners_come_from_another_scene(owners, seed):
    scenes_of = np.array([f"s{owner}" for owner in owners])
    partners = preparing.other_scene(scenes_of, np.random.default_rng(seed))
    assert (scenes_of[partners] != scenes_of).all()
    if 2 * max(np.unique(scenes_of, return_counts=True)[1]) <= len(owners):
        assert sorted(partners) == list(range(len(owners)))


def test_one_scene_cannot_make_negatives():
    with pytest.raises(UserError, match="two scenes"):
        preparing.other_scene(np.array(["a", "a"]), np.random.default_rng(0))


@given(st.integers(30, 400), st.floats(0.1, 0.9), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_random_splits_meet_the_ratio_and_keep_scenes_together(count, ratio, seed):
    pairs = [preparing.ImagePair(f"{i}", f"{i // 3}", Path(), Path()) for i in range(count)]
    split = preparing.split_pairs(pairs, PrepareOptions(train_ratio=ratio, seed=seed))
    assert abs(len(split["train"]) - ratio * count) <= 3.01
    assert len({pair.scene for pair in split["test"]}) >= 2
    assert sorted(int(p.name) for part in split.values() for p in part) == list(range(count))
    assert not {p.scene for p in split["train"]} & {p.scene for p in split["test"]}


def test_the_command_prepares_and_explains(scenes, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, SDNET / "prepare_data.py", *arguments],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip

    done = run(f"--data_path={scenes}", f"--output_path={tmp_path}/out", "--prepare.per_image=2")
    assert done.returncode == 0, done.stderr
    archive = open_patches(tmp_path / "out/test.npz")
    assert archive.labels.mean() == 0.5
    assert preparing.convert(archive.path, tmp_path / "test.h5") == len(archive)
    converted = open_patches(tmp_path / "test.h5")
    assert converted.name(3) == archive.name(3)
    np.testing.assert_array_equal(converted.pair(3)[0], archive.pair(3)[0])
    with pytest.raises(UserError, match="into itself"):
        preparing.convert(archive.path, archive.path)
    failed = run(f"--data_path={tmp_path}/out", f"--output_path={tmp_path}/x")
    assert failed.returncode == 2 and "neither SEN1-2" in failed.stderr


# ---------------------------------------------------------------------------------------------
# data sets


def test_normalisation_is_that_of_opencv_and_maps_constants_to_minus_one():
    for patch in rows(5)[:, :, :64] // 3 + 20:
        expected = cv2.normalize(patch.astype(np.float32), None, 0, 1, cv2.NORM_MINMAX)
        np.testing.assert_allclose(normalise(patch), (expected - 0.5) / 0.5, atol=1e-6)
    assert (normalise(np.full((64, 64), 77, np.uint8)) == -1).all()
    both = normalise(np.stack([np.full((64, 64), 9), np.arange(4096).reshape(64, 64)]), 0.25, 0.5)
    assert both.dtype == np.float32
    assert both[0].max() == -0.5 and (both[1].min(), both[1].max()) == (-0.5, 1.5)


@pytest.fixture
def archive(tmp_path):
    with PatchWriter(tmp_path / "train.npz") as writer:
        writer.append(rows(10), np.ones(10), [("i", "i")] * 10)
    return tmp_path / "train.npz"


def test_patch_dataset_samples(archive):
    dataset = PatchDataset(archive)
    optical, sar, label = dataset.sample(4, np.random.default_rng(0))
    assert optical.shape == sar.shape == (1, 64, 64) and optical.dtype == np.float32
    assert label == 1 and label.dtype == np.int32 and dataset.name(4) == "i" and len(dataset) == 10
    np.testing.assert_array_equal(optical[0], normalise(rows(10)[4, :, :64]))
    np.testing.assert_array_equal(sar[0], normalise(rows(10)[4, :, 64:]))
    with pytest.raises(UserError, match="64 only"):
        PatchDataset(archive, image_size=32)


def test_training_refuses_non_matching_rows(tmp_path):
    with PatchWriter(tmp_path / "x.npz") as writer:
        writer.append(rows(4), [1, 0, 1, 0])
    assert len(PatchDataset(tmp_path / "x.npz")) == 4
    with pytest.raises(UserError, match="2 non-matching rows"):
        PatchDataset(tmp_path / "x.npz", require_matching=True)


def test_symmetries_are_eight_and_common_to_both_patches(archive):
    corner = np.arange(9).reshape(3, 3)
    assert len({symmetry(corner, number).tobytes() for number in range(8)}) == 8
    dataset = PatchDataset(archive, augment=True)
    plain = [normalise(half) for half in dataset.archive.pair(2)]
    found = set()
    for seed in range(80):
        optical, sar, _ = dataset.sample(2, np.random.default_rng(seed))
        number = [np.array_equal(symmetry(plain[0], n), optical[0]) for n in range(8)].index(True)
        np.testing.assert_array_equal(symmetry(plain[1], number), sar[0])
        found.add(number)
    assert found == set(range(8))


@pytest.fixture
def ramps(tmp_path):
    """Two image pairs whose grey values are the column (optical) and the row (SAR)."""
    column = np.tile(np.arange(200, dtype=np.uint8), (180, 1))
    row = np.tile(np.arange(180, dtype=np.uint8)[:, None], (1, 200))
    for name in "ab":
        write_image(tmp_path / f"opt/{name}.png", column)
        write_image(tmp_path / f"sar/{name}.png", row)
    return list_pairs(tmp_path)


def windows_of(dataset, seed):
    return dataset._windows(
        dataset._images[0], dataset._points[0], np.random.default_rng(seed), anywhere=True
    )


def test_image_pairs_are_cut_at_one_place(ramps):
    dataset = ImagePairDataset(
        ramps, 50, centres="any", augmentation=Augmentation(symmetries=False)
    )
    places = set()
    for seed in range(40):
        optical, sar = windows_of(dataset, seed)
        x, y = int(optical[0, 0]), int(sar[0, 0])
        np.testing.assert_array_equal(optical, np.tile(np.arange(x, x + 64), (64, 1)))
        np.testing.assert_array_equal(sar, np.tile(np.arange(y, y + 64)[:, None], (1, 64)))
        places.add((x, y))
    assert len(places) > 30
    assert len(dataset) == 50 and dataset.name(3) == "b"
    first = dataset.sample(7, np.random.default_rng(5))
    again = dataset.sample(7, np.random.default_rng(5))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[0].shape == (1, 64, 64) and first[0].min() == -1 and first[2] == 1


def test_rotation_and_zoom_are_exact_and_common_to_both(ramps):
    dataset = ImagePairDataset(
        ramps, 5, centres="any", augmentation=Augmentation(rotation=30, scale=0.2, symmetries=False)
    )
    angles, zooms = [], []
    grid = np.arange(64) - 32.0
    inside = np.hypot(*np.meshgrid(grid, grid)) < 24
    for seed in range(30):
        optical, sar = (window.astype(float) for window in windows_of(dataset, seed))
        x, y = optical[32, 32], sar[32, 32]
        if not (45 < x < 155 and 45 < y < 135):
            continue  # the turned window touches the border, where it is mirrored
        # In a turned ramp, column and row follow a rotation matrix divided by the zoom.
        across, down = optical[32, 52] - optical[32, 12], sar[32, 52] - sar[32, 12]
        zooms.append(40 / np.hypot(across, down))
        angle = np.arctan2(down, across)
        angles.append(np.rad2deg(angle))
        u, v = np.meshgrid(grid, grid)
        expected = x + (np.cos(angle) * u - np.sin(angle) * v) / zooms[-1]
        assert np.abs(expected - optical)[inside].max() < 2
        expected = y + (np.sin(angle) * u + np.cos(angle) * v) / zooms[-1]
        assert np.abs(expected - sar)[inside].max() < 2
    assert len(angles) > 5 and np.ptp(angles) > 15 and np.ptp(zooms) > 0.08
    assert np.abs(angles).max() < 32 and 0.78 < min(zooms) and max(zooms) < 1.23


def test_registration_jitter_moves_the_sar_window_only(tmp_path):
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    for folder in ("opt", "sar"):
        write_image(tmp_path / folder / "a.png", ramp)
    dataset = ImagePairDataset(
        list_pairs(tmp_path), 5, centres="any",
        augmentation=Augmentation(symmetries=False, shift=3),
    )  # fmt: skip
    shifts = set()
    for seed in range(200):
        optical, sar = windows_of(dataset, seed)
        if 3 <= optical[0, 0] <= 133:
            shifts.add(int(sar[0, 0]) - int(optical[0, 0]))
    assert shifts == set(range(-3, 4))


def test_grey_changes_are_drawn_for_each_image_alone(tmp_path):
    image = rows(1)[0].repeat(2, 0)
    for folder in ("opt", "sar"):
        write_image(tmp_path / folder / "a.png", image)
    pairs = list_pairs(tmp_path)
    still = ImagePairDataset(pairs, 5, centres="any")
    moving = ImagePairDataset(pairs, 5, centres="any", augmentation=Augmentation(gamma=0.8))
    optical, sar, _ = still.sample(0, np.random.default_rng(0))
    np.testing.assert_array_equal(optical, sar)
    optical, sar, _ = moving.sample(0, np.random.default_rng(0))
    assert np.abs(optical - sar).mean() > 0.02
    # Gamma keeps the order of grey values and the range.
    order = np.argsort(optical, axis=None, kind="stable")
    assert (np.diff(sar.ravel()[order]) >= -1e-6).all()
    assert optical.min() == sar.min() == -1 and optical.max() == sar.max() == 1


def test_windows_lie_around_keypoints_and_avoid_empty_areas(tmp_path):
    rng = np.random.default_rng(0)
    image = np.zeros((256, 256), np.uint8)
    image[100:156, 100:156] = cv2.GaussianBlur(rng.integers(0, 256, (56, 56), np.uint8), (0, 0), 1)
    for folder in ("opt", "sar"):
        write_image(tmp_path / folder / "a.png", image)
    dataset = ImagePairDataset(list_pairs(tmp_path), 5)
    for seed in range(30):
        optical, _, _ = dataset.sample(0, np.random.default_rng(seed))
        assert (optical > -1).mean() > 0.2


def test_unreadable_pairs_stop_or_are_skipped(ramps, tmp_path):
    ramps[0].sar.write_bytes(b"no image")
    with pytest.raises(UserError, match="corrupt"):
        ImagePairDataset(ramps, 5)
    dataset = ImagePairDataset(ramps, 5, centres="any", on_error="skip")
    assert dataset.name(0) == dataset.name(1) == "b"
    ramps[1].sar.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 2"):
        ImagePairDataset(ramps, 5, on_error="skip")
    for changes in ({"shift": 99}, {"rotation": -1}):
        with pytest.raises(UserError, match="must lie in"):
            ImagePairDataset(ramps, 5, augmentation=Augmentation(**changes))
    with pytest.raises(UserError, match="sift or any"):
        ImagePairDataset(ramps, 5, centres="corner")


def test_images_are_read_anew_without_the_cache(ramps):
    cached, fresh = (ImagePairDataset(ramps, 9, centres="any", cache=c) for c in (True, False))
    for index in range(3):
        first, second = (d.sample(index, np.random.default_rng(2)) for d in (cached, fresh))
        np.testing.assert_array_equal(first[1], second[1])
