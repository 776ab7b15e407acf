"""Real videos through the pipeline: whole, cut off, odd, broken, interrupted."""

import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from model_utils.errors import UserError
from model_utils.files import write_image
from model_utils.video import FrameWriter, open_frames, process_video

ENCODINGS = {"avi": "MJPG", "lossless.avi": "FFV1", "mkv": "FFV1", "webm": "VP90", "mp4": "mp4v"}


def frames(count=12, height=64, width=96):
    """A texture that moves."""
    rng = np.random.default_rng(8)
    ground = rng.integers(0, 255, (height + 40, width + 60, 3), dtype=np.uint8)
    ground = cv2.GaussianBlur(ground, (7, 7), 0)
    return [ground[k : k + height, 2 * k : 2 * k + width].copy() for k in range(count)]


def record(path, pictures, code, rate=12.0):
    """Write with OpenCV itself."""
    height, width = pictures[0].shape[:2]
    fourcc = cv2.VideoWriter_fourcc(*code)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, rate, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(picture[:, :, ::-1])
    writer.release()
    return path


def decode(path):
    """Read with OpenCV itself: RGB frames and the rate."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    rate, found = capture.get(cv2.CAP_PROP_FPS), []
    while (item := capture.read())[0]:
        found.append(item[1][:, :, ::-1])
    return found, rate


def inverted(source, target, **options):
    """A pipeline whose result is known: the network negates, the picture is the negative."""
    return process_video(
        open_frames(source),
        target,
        lambda frame: frame.astype(np.float32),
        lambda batch: -batch,
        lambda frame, result, report: (255 + result).astype(np.uint8),
        show=False,
        **options,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {
        name: record(folder / f"clip.{name}", frames(), code) for name, code in ENCODINGS.items()
    }


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_frame_goes_through(clips, tmp_path, name):
    report = inverted(clips[name], tmp_path / "out.mkv", batch=5)
    expected, rate = decode(clips[name])
    found, found_rate = decode(tmp_path / "out.mkv")
    assert len(found) == len(expected) == report.frames == 12 and not report.remark
    assert found_rate == rate == 12
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, 255 - b)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm"])
def test_odd_sizes_in_every_format(tmp_path, suffix):
    pictures = frames(3, 47, 65)
    writer = FrameWriter(tmp_path / f"odd{suffix}", 25)
    for picture in pictures:
        writer.write(picture)
    writer.close()
    found, rate = decode(tmp_path / f"odd{suffix}")
    assert [picture.shape for picture in found] == [(48, 66, 3)] * 3 and rate == 25
    # The encoders but FFV1 lose detail; nothing is shifted or cut.
    limit = 0 if suffix == ".mkv" else 9
    for a, b in zip(found, pictures, strict=True):
        assert np.abs(a[:47, :65].astype(int) - b).mean() <= limit
        assert np.abs(a[47].astype(int) - a[46]).mean() <= limit


def index_first(path, target):
    """An MP4 rearranged for streaming: the index (moov) before the frames, offsets corrected."""
    data, boxes, position = path.read_bytes(), {}, 0
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        boxes[kind] = data[position : position + length]
        position += length
    index = bytearray(boxes[b"moov"])
    table = index.find(b"stco") + 8
    for entry in range(struct.unpack(">I", index[table : table + 4])[0]):
        place = table + 4 + 4 * entry
        offset = struct.unpack(">I", index[place : place + 4])[0]
        index[place : place + 4] = struct.pack(">I", offset + len(index))
    target.write_bytes(boxes[b"ftyp"] + bytes(index) + boxes[b"free"] + boxes[b"mdat"])
    return target


@pytest.mark.parametrize("name", ["avi", "lossless.avi", "mkv", "webm", "streamed.mp4"])
@pytest.mark.parametrize("share", [0.55, 0.8])
def test_a_video_that_ends_mid_frame(clips, tmp_path, name, share):
    """Exactly the whole frames come out, as they decode from the whole file."""
    whole = clips.get(name) or index_first(clips["mp4"], tmp_path / "whole.mp4")
    data = whole.read_bytes()
    size = int(len(data) * share)
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(data[:size])
    report = inverted(cut, tmp_path / "out.mkv")
    found, expected = decode(tmp_path / "out.mkv")[0], decode(whole)[0]
    assert 2 <= len(found) == report.frames < 12
    for a, b in zip(found, expected, strict=False):
        np.testing.assert_array_equal(a, 255 - b)
    if whole.suffix == ".avi":
        ends = [
            m.end() + 4 + struct.unpack("<I", data[m.end() : m.end() + 4])[0]
            for m in re.finditer(b"00dc", data[: data.find(b"idx1")])
            if m.start() > data.find(b"movi")
        ]
        assert len(ends) == 12
        assert report.frames == sum(end <= size for end in ends)
    assert f"ends in the middle ({size} of " in report.remark
    assert f"its {report.frames} " in report.remark and "whole frames were used" in report.remark


def test_a_transport_stream_that_ends_mid_packet(tmp_path):
    whole = record(tmp_path / "whole.ts", frames(), "mp4v")
    data = whole.read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[: len(data) // 2 // 188 * 188 + 90])
    report = inverted(tmp_path / "cut.ts", tmp_path / "out.mkv")
    found = decode(tmp_path / "out.mkv")[0]
    assert 2 <= len(found) < 11 and "ends in the middle" in report.remark
    for a, b in zip(found, decode(whole)[0], strict=False):
        np.testing.assert_array_equal(a, 255 - b)


def test_files_that_are_no_video(clips, tmp_path):
    target = tmp_path / "out.mp4"
    mp4 = clips["mp4"].read_bytes()
    contents = {
        "empty.mp4": b"",
        "text.avi": b"not a video at all",
        "head.webm": clips["webm"].read_bytes()[:40],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be opened: .*bytes"):
            inverted(tmp_path / name, target)
    (tmp_path / "cut.mp4").write_bytes(mp4[: len(mp4) // 2])
    with pytest.raises(UserError, match="its end is missing .* the index"):
        inverted(tmp_path / "cut.mp4", target)
    first = clips["avi"].read_bytes().find(b"00dc")
    (tmp_path / "none.avi").write_bytes(clips["avi"].read_bytes()[: first + 40])
    with pytest.raises(UserError, match=r"none\.avi (holds no whole frame|cannot be opened)"):
        inverted(tmp_path / "none.avi", target)
    with pytest.raises(UserError, match="video .*absent.mp4 does not exist"):
        inverted(tmp_path / "absent.mp4", target)
    with pytest.raises(UserError, match=r"must end in \.mp4, \.avi, \.mkv, \.webm"):
        inverted(clips["mp4"], tmp_path / "out.gif")
    assert not target.exists() and not list(tmp_path.glob(".*"))


def test_images_as_a_video(tmp_path):
    pictures = frames(11)
    for number, picture in enumerate(pictures, 1):
        write_image(tmp_path / f"frame_{number}.png", picture)
    (tmp_path / "notes.txt").write_text("not a frame")
    for source in (tmp_path, tmp_path / "frame_*.png"):
        report = inverted(source, tmp_path / "out.mkv")
        found, rate = decode(tmp_path / "out.mkv")
        assert report.frames == 11 and rate == 25
        for a, b in zip(found, pictures, strict=True):  # 9 before 10
            np.testing.assert_array_equal(a, 255 - b)
    write_image(tmp_path / "frame_12.png", pictures[0][:32])
    with pytest.raises(UserError, match=r"frame_12\.png has 32x96 pixels, the first one 64x96"):
        inverted(tmp_path, tmp_path / "other.mkv")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="bare holds no images"):
        inverted(tmp_path / "bare", tmp_path / "other.mkv")
    assert not (tmp_path / "other.mkv").exists()


def test_stages_run_in_threads_of_their_own_and_in_order(clips, tmp_path):
    """Reading goes on while the network is busy, but no further than a few batches."""
    seen = {"prepare": [], "network": [], "draw": []}
    ahead = []

    def note(stage, result):
        seen[stage].append(threading.get_ident())
        return result

    def network(batch):
        if not ahead:
            time.sleep(1.0)
            ahead.append(len(seen["prepare"]))
        assert batch.shape[0] == 1
        return note("network", batch)

    report = process_video(
        open_frames(clips["mkv"]),
        tmp_path / "out.mkv",
        lambda frame: note("prepare", frame),
        network,
        lambda frame, result, report: note("draw", result),
        show=False,
    )
    assert {stage: len(ids) for stage, ids in seen.items()} == dict.fromkeys(seen, 12)
    assert set(seen["network"]) == {threading.get_ident()}
    assert len({ids[0] for ids in seen.values()}) == 3
    assert 2 <= ahead[0] < 12
    assert report.first >= 1.0 and max(report.network) < 1.0  # compilation is not the rate
    assert report.network_rate == pytest.approx(1 / np.median(report.network))


def test_the_network_always_gets_full_batches(clips, tmp_path):
    sizes = []

    def network(batch):
        sizes.append(len(batch))
        return batch

    report = process_video(
        open_frames(clips["avi"]), tmp_path / "out.mp4", lambda frame: frame, network,
        lambda frame, result, report: result, batch=5, most=7, show=False,
    )  # fmt: skip
    assert sizes == [5, 5] and report.frames == 7
    assert len(decode(tmp_path / "out.mp4")[0]) == 7


@pytest.mark.parametrize("stage", ["prepare", "network", "draw"])
def test_an_error_leaves_the_earlier_file(clips, tmp_path, stage):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"an earlier result")

    def failing(name, value):
        if name == stage:
            counts.append(name)
            if len(counts) == 4:
                raise ValueError(f"{name} broke")
        return value

    counts = []
    with pytest.raises(ValueError, match=f"{stage} broke"):
        process_video(
            open_frames(clips["avi"]),
            target,
            lambda frame: failing("prepare", frame),
            lambda batch: failing("network", batch),
            lambda frame, result, report: failing("draw", frame),
            show=False,
        )
    assert target.read_bytes() == b"an earlier result"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


SLOW = """
import sys, time
from model_utils.video import open_frames, process_video
def network(batch):
    time.sleep(0.05)
    print("frame", flush=True)
    return batch
process_video(open_frames(sys.argv[1]), sys.argv[2], lambda f: f, network, lambda f, r, _: f)
print("finished", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_keeps_a_playable_file_and_a_kill_none(tmp_path, sent):
    source = record(tmp_path / "long.avi", frames(12) * 20, "MJPG")
    target = tmp_path / "out.mp4"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(source), str(target)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    for _ in range(6):
        assert process.stdout.readline() == "frame\n"
    process.send_signal(sent)
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "finished" not in output
    if sent == signal.SIGKILL:
        assert not target.exists()
        return
    assert "KeyboardInterrupt" in errors
    found = decode(target)[0]
    assert 5 <= len(found) < 120
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk(clips, small_disk):
    big = [np.random.default_rng(k).integers(0, 255, (256, 256, 3), np.uint8) for k in range(12)]
    source = record(clips["avi"].parent / "big.avi", big, "FFV1")
    with pytest.raises(UserError, match=r"disk full|no space left"):
        inverted(source, small_disk / "out.mkv")
    assert not list(small_disk.iterdir())
