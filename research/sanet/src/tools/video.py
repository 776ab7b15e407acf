"""Videos, segmented frame by frame."""

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import write_json
from model_utils.segmentation import ClassTable
from model_utils.segmenting import to_classes
from model_utils.video import VideoReport, encoder, open_frames, process_video

from ..config import SANetConfig
from .common import open_model

log = logging.getLogger("zoo")


def draw_frame(
    frame: np.ndarray, classes: np.ndarray, table: ClassTable, kind: str, alpha: float
) -> np.ndarray:
    """A frame of the video to write.

    Args:
        frame: (H, W, 3) RGB uint8.
        classes: (H, W).
        table: colours of the classes.
        kind: "overlay", "map", or "both": frame and overlay side by side.
        alpha: weight of the class colours in an overlay.
    """
    if kind == "map":
        return table.colourise(classes)
    # Ten times faster than drawing.overlay, which also leaves ignored pixels alone: here are none.
    covered = cv2.addWeighted(frame, 1 - alpha, table.colourise(classes), alpha, 0)
    return covered if kind == "overlay" else np.concatenate([frame, covered], axis=1)


def write_rate(picture: np.ndarray, rate: float) -> np.ndarray:
    """The network's images per second in the upper left corner; nothing before it is known."""
    if not rate:
        return picture
    text = f"{rate:.1f} images/s"
    scale = max(0.4, picture.shape[0] / 900)
    thickness = max(1, round(scale * 1.5))
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    picture = np.ascontiguousarray(picture)
    corner = (min(picture.shape[1], width + 16), min(picture.shape[0], height + below + 12))
    cv2.rectangle(picture, (0, 0), corner, (0, 0, 0), cv2.FILLED)
    cv2.putText(
        picture, text, (8, height + 6), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255),
        thickness, cv2.LINE_AA,
    )  # fmt: skip
    return picture


def segment_video(
    source: str,
    target: Path,
    scorer: Callable[[np.ndarray], np.ndarray],
    normalise: Callable[[np.ndarray], np.ndarray],
    table: ClassTable,
    kind: str = "overlay",
    alpha: float = 0.5,
    rate: float = 0.0,
    most: int = 0,
    batch: int = 1,
    show_rate: bool = True,
) -> VideoReport:
    """Segment every frame of a video and write the pictures as a video.

    Args:
        source: a video file, a folder of images or a pattern.
        target: the video to write; its suffix chooses the format.
        scorer: normalised frames (N, 3, H, W) float32 to scores of any resolution (N, K, h, w),
            or to classes (N, H, W).
        normalise: a frame (H, W, 3) RGB uint8 to (3, H, W) float32.
        table: names and colours of the classes.
        kind, alpha: see :func:`draw_frame`.
        rate: frames per second of both; 0 takes the source's.
        most: stop after so many frames; 0 takes all.
        batch: frames at once.
        show_rate: write the network's rate into the pictures.

    Raises:
        UserError: see ``model_utils.video.process_video``.
    """

    def draw(frame: np.ndarray, result: np.ndarray, report: VideoReport) -> np.ndarray:
        classes = to_classes(result, (frame.shape[0], frame.shape[1]))
        picture = draw_frame(frame, classes, table, kind, alpha)
        return write_rate(picture, report.current_rate) if show_rate else picture

    return process_video(open_frames(source, rate), target, normalise, scorer, draw, batch, most)


def video(task: object, config: SANetConfig, output: Path) -> None:
    """video.py: a video in, a segmented video out."""
    keys = config.video
    if not keys.source:
        raise UserError("video.py needs a video: --video=FILE, a folder of images or a pattern")
    target = Path(keys.output) if "/" in keys.output else output / keys.output
    encoder(target)
    # Before the weights are loaded: a wrong name should not take half a minute to be told.
    open_frames(keys.source, keys.rate).close()
    model = open_model(config)
    table = model.classes
    report = segment_video(
        keys.source,
        target,
        lambda images: model.outputs("scores", images),
        model.normalise,
        table,
        keys.draw,
        config.infer.alpha,
        keys.rate,
        keys.frames,
        keys.batch_size,
        keys.show_rate,
    )
    if report.remark:
        log.warning(report.remark)
    log.info(
        "%d frames in %s; network alone %.2f images/s, with reading, drawing and writing %.2f; "
        "the first batch took %.1f s",
        report.frames,
        target,
        report.network_rate,
        report.pipeline_rate,
        report.first,
    )
    write_json(
        output / "metrics.json",
        {
            "video": keys.source,
            "frames": report.frames,
            "network_images_per_second": round(report.network_rate, 3),
            "pipeline_images_per_second": round(report.pipeline_rate, 3),
            "first_batch_seconds": round(report.first, 3),
            "remark": report.remark,
            "network": str(model.source),
        },
    )
