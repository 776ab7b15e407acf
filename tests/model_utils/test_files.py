import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from model_utils.errors import UserError
from model_utils.files import (
    FolderLock,
    atomic_path,
    atomic_write,
    read_image,
    read_json,
    require_file,
    require_folder,
    write_image,
    write_json,
)


def test_a_failed_write_leaves_the_earlier_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_write(path, "w") as stream:
        stream.write("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    code = (
        "import sys, time\nfrom model_utils.files import atomic_write\n"
        f"with atomic_write({str(path)!r}) as stream:\n"
        "    stream.write(b'x' * 1000000); stream.flush(); print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"before"
    # What it left goes with the next lock; what others called so stays.
    assert len(list(tmp_path.iterdir())) == 2
    others = {".a.tmp", ".a.12345678.tmp.d.bin", "a.abcdefgh.tmp.bin", ".lock", "a.bin"}
    for name in others - {"a.bin"}:
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "no_suffix") as temporary:
        (tmp_path / f"{temporary.name[:-12]}abcdefgh.tmp").touch()
    with FolderLock(tmp_path):
        assert set(os.listdir(tmp_path)) == others | {"no_suffix"}


def test_a_full_disk_is_a_sentence_and_keeps_the_earlier_file(small_disk):
    path = small_disk / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(UserError, match=r"no space left while writing .*a\.bin"):
        with atomic_write(path) as stream:
            stream.write(b"x" * (4 << 20))
    assert path.read_bytes() == b"before"
    assert os.listdir(small_disk) == ["a.bin"]


def test_written_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": np.arange(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640
    assert read_json(tmp_path / "a.json") == {"x": 0.5, "y": [0, 1]}


def test_bad_json_is_a_sentence(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_the_second_writer_of_a_folder_is_refused_and_told_who_has_it(tmp_path):
    code = (
        "import time\nfrom model_utils.files import FolderLock\n"
        f"with FolderLock({str(tmp_path)!r}):\n    print('locked', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=f"process {process.pid}"), FolderLock(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:  # the kernel frees a dead owner's lock
        try:
            with FolderLock(tmp_path):
                break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_come_back_as_written(tmp_path, suffix, dtype):
    rng = np.random.default_rng(0)
    path = tmp_path / f"Bild ä 图{suffix}"
    colour = rng.integers(0, np.iinfo(dtype).max, (5, 7, 3)).astype(dtype)
    write_image(path, colour)
    np.testing.assert_array_equal(read_image(path), colour)
    np.testing.assert_array_equal(read_image(path, 0), colour)
    grey = colour[:, :, 0]
    write_image(path, grey)
    np.testing.assert_array_equal(read_image(path, 1), grey)
    np.testing.assert_array_equal(read_image(path), np.stack([grey] * 3, 2))


def test_alpha_is_dropped_unless_asked_for(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (4, 4, 4)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :, [2, 1, 0, 3]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image[:, :, :3])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 0), image)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken", b"text"])
def test_a_corrupt_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png is corrupt"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"b\.png does not exist"):
        read_image(tmp_path / "b.png")


def test_an_image_of_many_bands_is_not_called_corrupt(tmp_path):
    import rasterio
    from rasterio import Affine

    path = tmp_path / "Luftbild ä.tif"
    profile = {"driver": "GTiff", "width": 6, "height": 4, "dtype": "uint8"}
    profile["transform"] = Affine(1, 0, 9, 0, -1, 9)
    pixels = np.arange(120, dtype=np.uint8).reshape(5, 4, 6)
    for count in (3, 4, 5):
        with rasterio.open(path, "w", count=count, **profile) as target:
            target.write(pixels[:count])
        if count < 5:
            # Also beside a fourth band, near infrared for instance, which is no transparency.
            np.testing.assert_array_equal(read_image(path), pixels[:3].transpose(1, 2, 0))
            np.testing.assert_array_equal(read_image(path, 0), pixels[:count].transpose(1, 2, 0))
    with pytest.raises(
        UserError, match=r"Luftbild ä\.tif has 5 bands; only grey, RGB and RGB with"
    ):
        read_image(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"Luftbild ä\.tif is corrupt"):
        read_image(path)


def test_opencv_says_nothing_of_its_own_about_a_corrupt_image(tmp_path, capfd):
    def read():
        with pytest.raises(UserError, match=r"a\.png is corrupt"):
            read_image(tmp_path / "a.png")

    _, data = cv2.imencode(".png", np.zeros((4, 4), np.uint8))
    (tmp_path / "a.png").write_bytes(data.tobytes()[:20])
    level = cv2.getLogLevel()
    cv2.imdecode(data[:20], cv2.IMREAD_UNCHANGED)
    assert "WARN" in capfd.readouterr().err
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(read) for _ in range(200)]:
            done.result()
    assert capfd.readouterr().err == "" and cv2.getLogLevel() == level


def test_an_unwritable_target_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "file" / "x"):
        pass


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/proc/run/a.json", "cannot write /proc/run/a.json: the folder does not exist"),
        ("{tmp}/" + "x" * 300 + "/a.json", "File name too long"),
        ("{tmp}", "cannot write {tmp}: a folder has this name"),
    ],
)
def test_places_that_cannot_hold_a_file_are_sentences(tmp_path, place, words):
    with pytest.raises(UserError, match=re.escape(words.format(tmp=tmp_path))):
        write_json(place.format(tmp=tmp_path), {})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_input_is_not_blamed_on_the_target(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "out" / "a.bin") as stream:
        stream.write((tmp_path / "input.bin").read_bytes())


def test_a_lock_in_an_impossible_place_is_a_sentence():
    with pytest.raises(UserError, match=r"cannot write /proc/run/\.lock"), FolderLock("/proc/run"):
        pass


def test_an_input_that_cannot_be_read_is_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("1")
    assert require_file(path, "table") == path and require_folder(tmp_path, "data") == tmp_path
    with pytest.raises(UserError, match="is a file, not a folder"):
        require_folder(path, "data")
    with pytest.raises(UserError, match="is a folder, not a file"):
        require_file(tmp_path, "table")
    with pytest.raises(UserError, match="File name too long; check the path"):
        require_file(tmp_path / ("x" * 300), "table")
    with pytest.raises(UserError, match="/dev/null is not a regular file"):
        require_file("/dev/null", "table")
    # Not by permissions: root may read everything.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=rf"table {path} cannot be read: permission denied"):
        require_file(path, "table")
    with pytest.raises(UserError, match=rf"data {tmp_path} cannot be read: permission denied"):
        require_folder(tmp_path, "data")
