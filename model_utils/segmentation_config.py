"""Configuration keys of segmentation networks; networks extend these groups by their own."""

from dataclasses import dataclass

from model_utils.config import group, key
from model_utils.scenes.config import SceneConfig
from model_utils.task import DataConfig, EvaluateConfig, ExportConfig, InferConfig


@dataclass
class SegmentationData(DataConfig):
    """Images with class masks."""

    train_list: str = key("", "list file for training; empty is the format's own")
    val_list: str = key("", "list file for validation; empty is the format's own")
    test_list: str = key("", "list file for testing; empty is the format's own")
    images: str = key("images", "format folder: where the images are, below root/<split> or root")
    masks: str = key("masks", "format folder: where the masks are")
    palette: str = key("", "format folder: table of classes (name, red, green, blue or id)")
    mean: list[float] = key([0.485, 0.456, 0.406], "of red, green and blue in [0, 1]")
    std: list[float] = key([0.229, 0.224, 0.225], "of red, green and blue in [0, 1]")
    cache: bool = key(False, "keep decoded images in memory, for small data sets")


@dataclass
class SegmentationEvaluate(EvaluateConfig):
    """Keys of eval.py."""

    split: str = key("val", "part of the data to measure", "split")
    batch_size: int = key(
        1,
        "images of one size at once",
        "test_batch_size",
        "eval:batch_size",
        "eval_batch_size",
        minimum=1,
    )
    scales: list[float] = key([1.0], "zooms whose scores are added", "eval:scales", minimum=0.05)
    flip: bool = key(False, "average with the mirrored image", "flip_test", "eval:flip")


@dataclass
class SegmentationExport(ExportConfig):
    """Keys of export.py."""

    output: str = key(
        "logits",
        "logits, scores resized to the input, or class numbers at the input's size",
        choices=("logits", "scores", "classes"),
    )


@dataclass
class SegmentationInfer(InferConfig):
    """Keys of infer.py: images or a folder of images."""

    images: str = key("", "an image, or a folder of images", "images", "image")
    batch_size: int = key(1, "images or tiles at once", "infer:batch_size", minimum=1)
    scales: list[float] = key([1.0], "zooms whose scores are added", "infer:scales", minimum=0.05)
    flip: bool = key(False, "average with the mirrored image", "infer:flip")
    alpha: float = key(0.5, "weight of the class colours in the overlay", minimum=0, maximum=1)
    scene: SceneConfig = group(SceneConfig)


@dataclass
class SegmentationLoss:
    """What losses per pixel share."""

    class_weights: list[float] = key([], "one weight per class; empty weighs all alike", minimum=0)
