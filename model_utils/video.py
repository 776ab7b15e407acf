"""Videos through a network: frames in, pictures out, reading and writing beside the network.

Reads whatever OpenCV's FFmpeg reads, a folder of images, or a pattern such as ``frames/*.png``.
Writes .mp4 (MPEG-4), .avi (Motion JPEG), .mkv (lossless FFV1) or .webm (VP9): encoders that are
part of OpenCV's wheel; H.264 is not.
"""

import glob
import logging
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path, quiet_opencv, read_image, require_file
from model_utils.logs import Progress
from model_utils.segmentation import IMAGE_SUFFIXES
from model_utils.stages import run_stages

log = logging.getLogger("zoo")

# Container suffix to the code of the encoder used for it.
ENCODERS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "FFV1", ".webm": "VP90"}
# Frames per second of images that come without a rate.
DEFAULT_RATE = 25.0
# Batches waiting between two stages.
_AHEAD = 4
_MOST_RATE = 1000.0


class Frames:
    """Frames of a video file or of image files, RGB uint8, all of one size.

    Attributes:
        path: what was asked for.
        rate: frames per second.
        size: height and width.
        count: how many there should be; 0 if the file does not say.
        remark: after reading, one sentence if frames are missing, else "".
    """

    path: str
    rate: float
    size: tuple[int, int]
    count: int
    remark: str = ""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) arrays in order."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""


def open_frames(path: PathLike, rate: float = 0.0) -> Frames:
    """Open a video file, a folder of images or a pattern of image files.

    Args:
        path: image files are ordered by the numbers in their names.
        rate: frames per second, instead of the file's own; images alone have 25.

    Raises:
        UserError: nothing there, not a video, or no frame in it.
    """
    text = os.fspath(path)
    if not text:
        raise UserError("no video given; name a video file, a folder of images or a pattern")
    if os.path.isdir(text) or (glob.has_magic(text) and not os.path.exists(text)):
        return _ImageFrames(text, rate or DEFAULT_RATE)
    return _VideoFrames(text, rate)


class _ImageFrames(Frames):
    def __init__(self, path: str, rate: float) -> None:
        found = Path(path).iterdir() if os.path.isdir(path) else map(Path, glob.glob(path))
        self.files = sorted(
            (file for file in found if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural
        )
        if not self.files:
            raise UserError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}); check the path")
        self.path, self.rate, self.count = path, rate, len(self.files)
        first = self._read(self.files[0])
        self.size = (first.shape[0], first.shape[1])

    @staticmethod
    def _read(file: Path) -> np.ndarray:
        image = read_image(file)
        return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image

    def __iter__(self) -> Iterator[np.ndarray]:
        for file in self.files:
            image = self._read(file)
            if image.shape[:2] != self.size:
                raise UserError(
                    f"frame {file} has {image.shape[0]}x{image.shape[1]} pixels, the first one "
                    f"{self.size[0]}x{self.size[1]}; frames of one video must have one size"
                )
            yield image


def _natural(file: Path) -> list[tuple[int, str]]:
    """Order in which frame_9 comes before frame_10."""
    return [(int(part or 0), "") if part.isdigit() else (0, part)
            for part in re.split(r"(\d+)", str(file))]  # fmt: skip


class _VideoFrames(Frames):
    def __init__(self, path: str, rate: float) -> None:
        file = require_file(path, "video", "name a video file, a folder of images or a pattern")
        # FFmpeg's own messages; ours say what they mean. Read when the first file is opened.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        with quiet_opencv:
            self._capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            cut = _cut(file)
            why = (
                f"its end is missing ({file.stat().st_size} of {cut.declared} bytes), and with it "
                "the index without which no frame can be found"
                if cut is not None
                else f"its {file.stat().st_size} bytes are no video that OpenCV can read"
            )
            raise UserError(f"video {path} cannot be opened: {why}; convert or copy it again")
        self.path = path
        own = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate or (own if 0 < own <= _MOST_RATE else DEFAULT_RATE)
        self.size = (
            int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        )
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        cut = _cut(Path(self.path))
        done = 0
        waiting: np.ndarray | None = None
        while cut is None or cut.whole is None or done < cut.whole:
            good, frame = self._capture.read()
            if not good:
                break
            if cut is not None and cut.partial:
                # FFmpeg fills the missing part of the last frame; hold each back until the next
                # proves it whole.
                frame, waiting = waiting, frame
                if frame is None:
                    continue
            done += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if not done:
            raise UserError(f"video {self.path} holds no whole frame; convert or copy it again")
        if cut is not None:
            announced = f" of {self.count}" if self.count > done else ""
            self.remark = (
                f"video {self.path} ends in the middle ({Path(self.path).stat().st_size} of "
                f"{cut.declared} bytes): its {done}{announced} whole frames were used"
            )
        elif done < self.count - 1:
            # One less is rounding, where a container keeps a duration and no number.
            self.remark = (
                f"video {self.path} announces {self.count} frames, but only {done} could be "
                "read and were used"
            )

    def close(self) -> None:
        self._capture.release()


@dataclass(frozen=True)
class _Cut:
    """A file that ends before its container says.

    Attributes:
        declared: bytes it should have at least.
        whole: number of frames that are complete, where that can be counted.
        partial: whether the last frame to be decoded may be incomplete.
    """

    declared: int
    whole: int | None
    partial: bool


def _cut(path: Path) -> _Cut | None:
    """Whether a video file was cut off; None for whole files and unknown containers."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(12)
        stream.seek(0)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _cut_avi(stream, size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return _cut_mp4(stream, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _cut_matroska(stream, size)
        # MPEG transport streams are packets of 188 bytes, each beginning with 0x47.
        stream.seek(188)
        if head[:1] == b"\x47" and stream.read(1) == b"\x47" and size % 188:
            return _Cut(size + 188 - size % 188, None, True)
    return None


def _cut_avi(stream: BinaryIO, size: int) -> _Cut | None:
    """RIFF chunks: four letters, length, content, padded to even; frames are chunks ..dc/..db."""
    frames, position, declared = 0, 0, 0
    while position + 8 <= size:
        stream.seek(position)
        head = stream.read(12)
        kind, length = head[:4], int.from_bytes(head[4:8], "little")
        end = position + 8 + length
        declared = max(declared, end)
        if kind == b"RIFF" or (kind == b"LIST" and head[8:12] in (b"movi", b"rec ")):
            position += 12
            continue
        if kind[2:4] in (b"dc", b"db") and end <= size:
            frames += 1
        position = end + length % 2
    return _Cut(declared, frames, False) if declared > size else None


def _cut_mp4(stream: BinaryIO, size: int) -> _Cut | None:
    """Boxes: length, four letters, content; the frames are in mdat."""
    position = 0
    while position + 8 <= size:
        stream.seek(position)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0 means up to the end of the file
            return None
        position += length
        if position > size:
            return _Cut(position, None, head[4:8] == b"mdat")
    return None


def _cut_matroska(stream: BinaryIO, size: int) -> _Cut | None:
    """EBML: a header element, then the segment with everything; FFmpeg drops partial blocks."""
    stream.seek(4)
    header = _ebml_length(stream)
    if header is None:
        return None
    stream.seek(header, os.SEEK_CUR)
    if stream.read(4) != b"\x18\x53\x80\x67":
        return None
    length = _ebml_length(stream)
    end = None if length is None else stream.tell() + length
    return _Cut(end, None, False) if end is not None and end > size else None


def _ebml_length(stream: BinaryIO) -> int | None:
    """A number whose leading zeros tell how many bytes it has; None where it says "unknown"."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + stream.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value


class FrameWriter:
    """A video file being written, by the suffix of its name.

    The encoders halve the resolution of colours, so that odd heights and widths are filled up
    to even ones by repeating the last row or column.

    Args:
        path: .mp4, .avi, .mkv or .webm.
        rate: frames per second.

    Raises:
        UserError: another suffix, or OpenCV lacks the encoder.
    """

    def __init__(self, path: PathLike, rate: float) -> None:
        self.path, self.rate, self.count = Path(path), rate, 0
        self.code = encoder(path)
        self._size = (0, 0)
        self._writer: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Append an (H, W, 3) RGB uint8 picture; the first one decides the size."""
        height, width = picture.shape[:2]
        if self._writer is None:
            os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
            self._size = (height, width)
            code = cv2.VideoWriter_fourcc(*self.code)  # type: ignore[attr-defined]
            shape = (width + width % 2, height + height % 2)
            with quiet_opencv:
                self._writer = cv2.VideoWriter(
                    str(self.path), cv2.CAP_FFMPEG, code, self.rate, shape
                )
            if not self._writer.isOpened():
                raise UserError(
                    f"OpenCV cannot write {self.path.suffix} of {width}x{height} pixels at "
                    f"{self.rate:g} frames per second; choose another suffix or rate"
                )
        if (height, width) != self._size:
            raise UserError(f"a picture of {(height, width)} in a video of {self._size}")
        pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if height % 2 or width % 2:
            pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(pixels)
        self.count += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            UserError: it cannot be read back, for instance because the disk is full.
        """
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        # OpenCV does not tell when writing fails.
        with quiet_opencv:
            check = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        good = check.isOpened() and check.read()[0]
        found = int(check.get(cv2.CAP_PROP_FRAME_COUNT))
        check.release()
        if not good or found < self.count - 1:
            raise UserError(
                f"the video could not be written whole ({found if good else 0} of {self.count} "
                "frames); is the disk full?"
            )


def encoder(path: PathLike) -> str:
    """The encoder's code for a file name.

    Raises:
        UserError: a suffix that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ENCODERS:
        raise UserError(
            f"a video cannot be written to {path}; its name must end in {', '.join(ENCODERS)}"
        )
    return ENCODERS[suffix]


@dataclass
class VideoReport:
    """What was done, and how fast.

    Attributes:
        frames: pictures written.
        seconds: from the first frame to the last, without the first batch (compilation).
        network: seconds of each call of the network but the first.
        first: seconds of the first call, which compiles.
        batch: frames per call.
        remark: one sentence if the input was incomplete, else "".
        interrupted: stopped by the user; the file holds the frames so far.
    """

    frames: int = 0
    seconds: float = 0.0
    network: list[float] = field(default_factory=list)
    first: float = 0.0
    batch: int = 1
    remark: str = ""
    interrupted: bool = False

    @property
    def network_rate(self) -> float:
        """Images per second of the network alone: median over the calls; 0 before the second."""
        return self.batch / statistics.median(self.network) if self.network else 0.0

    @property
    def pipeline_rate(self) -> float:
        """Images per second of everything; 0 for a single batch."""
        later = self.frames - self.batch
        return later / self.seconds if later > 0 and self.seconds > 0 else 0.0

    @property
    def current_rate(self) -> float:
        """The network's images per second over its last calls."""
        return self.batch / statistics.median(self.network[-15:]) if self.network else 0.0


def process_video(
    source: Frames,
    target: PathLike,
    prepare: Callable[[np.ndarray], np.ndarray],
    network: Callable[[np.ndarray], np.ndarray],
    draw: Callable[[np.ndarray, np.ndarray, VideoReport], np.ndarray],
    batch: int = 1,
    most: int = 0,
    show: bool = True,
) -> VideoReport:
    """Run every frame through a network and write the pictures drawn from its results.

    Three stages run at once: a thread reads and prepares, the calling thread runs the network,
    a thread draws and writes. The file appears under its name when it is finished. Ctrl-C
    finishes it with the frames done so far and is raised again; a second one leaves no file.

    Args:
        source: frames, of :func:`open_frames`; closed at the end.
        target: the video to write.
        prepare: (H, W, 3) RGB uint8 to what the network takes for one frame.
        network: a stack of these, always ``batch`` long, to a stack of results.
        draw: frame, its result and the report so far to an (H, W, 3) picture.
        batch: frames per call of the network; the last call repeats its last frame.
        most: stop after so many frames; 0 takes all.
        show: report progress.

    Raises:
        UserError: see :func:`open_frames` and :class:`FrameWriter`.
        KeyboardInterrupt: after the file was finished.
    """
    encoder(target)
    report = VideoReport(batch=batch)
    expected = min(source.count, most) if most and source.count else most or source.count
    progress = Progress(expected, "frames", show=show, unit="image")
    try:
        with atomic_path(target) as temporary:
            _Pipeline(source, FrameWriter(temporary, source.rate), prepare, network, draw, report,
                      most, progress).run()  # fmt: skip
            if not report.frames:
                if report.interrupted:
                    raise KeyboardInterrupt
                raise UserError(f"video {source.path} holds no whole frame")
    finally:
        progress.close()
        source.close()
    report.remark = source.remark
    if report.interrupted:
        log.info("stopped; %s holds the %d frames done so far", target, report.frames)
        raise KeyboardInterrupt
    return report


@dataclass
class _Pipeline:
    source: Frames
    writer: FrameWriter
    prepare: Callable[[np.ndarray], np.ndarray]
    network: Callable[[np.ndarray], np.ndarray]
    draw: Callable[[np.ndarray, np.ndarray, VideoReport], np.ndarray]
    report: VideoReport
    most: int
    progress: Progress

    def __post_init__(self) -> None:
        self.begun = time.perf_counter()

    def run(self) -> None:
        try:
            run_stages(self._batches(), self._compute, self._write, _AHEAD)
        except KeyboardInterrupt:
            self.report.interrupted = True
        self.writer.close()

    def _batches(self) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        frames: list[np.ndarray] = []
        ready: list[np.ndarray] = []
        for number, frame in enumerate(self.source, 1):
            frames.append(frame)
            ready.append(self.prepare(frame))
            if len(frames) == self.report.batch:
                yield frames, ready
                frames, ready = [], []
            if number == self.most:
                break
        if frames:
            yield frames, ready

    def _compute(
        self, item: tuple[list[np.ndarray], list[np.ndarray]]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        frames, ready = item
        # One batch size: networks compile for each.
        filled = ready + [ready[-1]] * (self.report.batch - len(ready))
        start = time.perf_counter()
        results = self.network(np.stack(filled))
        seconds = time.perf_counter() - start
        if self.report.first:
            self.report.network.append(seconds)
        else:
            self.report.first = seconds
        return frames, results

    def _write(self, item: tuple[list[np.ndarray], np.ndarray]) -> None:
        frames, results = item
        for frame, result in zip(frames, results, strict=False):
            self.writer.write(self.draw(frame, result, self.report))
            self.report.frames += 1
        if self.report.frames == len(frames):
            self.begun = time.perf_counter()
        self.report.seconds = time.perf_counter() - self.begun
        rate = self.report.current_rate
        self.progress.advance(len(frames), f"network {rate:.2f} images/s" if rate else "")
