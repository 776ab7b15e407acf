"""SANet's configuration; the reference's own keys are named where they differ."""

from dataclasses import dataclass

from model_utils.config import group, key
from model_utils.pixel_classifier import PixelClassifierConfig
from model_utils.segmentation_config import (
    SegmentationData,
    SegmentationEvaluate,
    SegmentationExport,
    SegmentationInfer,
    SegmentationLoss,
)
from model_utils.task import Config


@dataclass
class AugmentConfig:
    """Random changes of training images (section 3 of the README); each can be switched off."""

    scale_min: float = key(0.5, "smallest zoom, relative to base_size", minimum=0.05)
    scale_max: float = key(2.1, "largest zoom", minimum=0.05)
    scale_step: float = key(0.1, "zooms are scale_min plus multiples of this", minimum=0.001)
    flip: bool = key(True, "mirror half of the images left to right", "flip")
    brightness: float = key(0.0, "largest shift of the grey level, of 1", minimum=0, maximum=1)
    contrast: float = key(0.0, "largest relative change of contrast", minimum=0, maximum=0.99)
    saturation: float = key(0.0, "largest relative change of saturation", minimum=0, maximum=0.99)


@dataclass
class SANetData(SegmentationData):
    """Images with class masks, or ImageNet folders for pretraining."""

    format: str = key(
        "cityscapes",
        "how images and masks are stored",
        "dataset",
        choices=("cityscapes", "camvid", "gtav", "folder", "imagenet"),
    )
    train_list: str = key("", "list file for training; empty is the format's own", "train_set")
    val_list: str = key("", "list file for validation; empty is the format's own", "val_set")
    test_list: str = key("", "list file for testing; empty is the format's own", "test_set")
    map_classes: bool = key(False, "format gtav: Cityscapes' 19 classes instead of all 35")
    base_size: int = key(
        2048, "long side of an image at zoom 1; 0 is the image's own", "base_size", minimum=0
    )
    crop_height: int = key(1024, "rows of a training crop", minimum=1)
    crop_width: int = key(1024, "columns of a training crop", minimum=1)
    edge_frame: int = key(6, "pixels along the border without boundary labels", minimum=0)
    edge_size: int = key(4, "side of the square that widens boundaries", minimum=1)
    augment: AugmentConfig = group(AugmentConfig)


@dataclass
class LossConfig(SegmentationLoss):
    """Weights and settings of the losses (section 2)."""

    aux: float = key(0.4, "weight of the auxiliary head", minimum=0)
    main: float = key(1.0, "weight of the main head", minimum=0)
    boundary: float = key(20.0, "weight of the boundary head", minimum=0)
    boundary_aware: float = key(1.0, "weight of the main head near boundaries", minimum=0)
    boundary_threshold: float = key(
        0.8, "boundary probability from which a pixel is near", minimum=0, maximum=1
    )
    ohem: bool = key(True, "hard pixels only (online hard example mining)", "use_ohem")
    ohem_threshold: float = key(
        0.9, "pixels predicted with less probability are hard", "ohemthres", minimum=0, maximum=1
    )
    ohem_keep: int = key(
        131072, "least number of pixels per device and step", "ohemkeep", minimum=1
    )


@dataclass
class SANetEvaluate(SegmentationEvaluate):
    """Keys of eval.py."""

    window_height: int = key(
        0, "rows of a sliding window at zooms above 1; 0 is the whole image", minimum=0
    )
    window_width: int = key(0, "columns of such a window; 0 is the whole image", minimum=0)
    boundary_tolerance: int = key(
        0, "pixels of the boundary F-score; 0 is 0.75 % of the diagonal", minimum=0
    )
    submission: bool = key(
        False, "write label-id PNGs as the Cityscapes server wants them", "submission"
    )


@dataclass
class SANetExport(SegmentationExport):
    """Keys of export.py."""

    height: int = key(1024, "rows of the input; 0 is any", "export:height", minimum=0)
    width: int = key(2048, "columns of the input; 0 is any", "export:width", minimum=0)


@dataclass
class HeatmapConfig:
    """Keys of heatmap.py; images, alpha and weights are infer.py's."""

    layer: str = key("decoder", "layer to look at; final_layer gives the logits", "heatmap:layer")
    classes: list[str] = key([], "names or numbers of classes; empty is every class predicted")
    colours: str = key("turbo", "Matplotlib colour map; the reference's is jet", "heatmap:colours")


@dataclass
class BoundaryConfig:
    """Keys of boundary.py; images, alpha and weights are infer.py's."""

    threshold: float = key(
        0.8, "probability from which a pixel is drawn", "boundary:threshold", minimum=0, maximum=1
    )
    masks: str = key(
        "", "a mask, or a folder of masks, to draw class boundaries of", "boundary:masks"
    )


@dataclass
class ReceptiveFieldConfig:
    """Keys of receptive_field.py."""

    layers: list[str] = key(
        ["layer3", "dp2", "layer6", "decoder"],
        "layers whose effective field is measured; empty measures none",
        "receptive_field:layers",
    )
    size: int = key(
        768, "pixels of the square the field is measured on", "receptive_field:size", minimum=64
    )
    count: int = key(4, "how many squares to average over", "receptive_field:count", minimum=1)


@dataclass
class VideoConfig:
    """Keys of video.py; alpha, backend and weights are infer.py's."""

    source: str = key("", "a video, a folder of images or a pattern", "video:video", "video:source")
    output: str = key(
        "segmented.mp4", "video to write: .mp4, .avi, .mkv or .webm; a bare name is put into "
        "output_path"
    )  # fmt: skip
    draw: str = key(
        "overlay",
        "class colours over the frames, class colours alone, or frames beside overlays",
        "video:draw",
        choices=("overlay", "map", "both"),
    )
    rate: float = key(0.0, "frames per second; 0 is the source's", "video:rate", minimum=0)
    frames: int = key(0, "stop after so many; 0 takes all", "video:frames", minimum=0)
    batch_size: int = key(1, "frames at once", "video:batch_size", minimum=1)
    show_rate: bool = key(True, "write the network's images per second into the picture")


@dataclass
class SpeedConfig:
    """Keys of speed.py."""

    height: int = key(1024, "rows of the input", "speed:height", minimum=1)
    width: int = key(2048, "columns of the input", "speed:width", minimum=1)
    batch_size: int = key(1, "images at once", "speed:batch_size", minimum=1)
    warmup: int = key(5, "runs before measuring", "speed:warmup", minimum=1)
    repeats: int = key(30, "runs measured", "speed:repeats", minimum=2)
    output: str = key(
        "logits", "what the network ends with, as in export.py",
        choices=("logits", "scores", "classes")
    )  # fmt: skip
    backends: list[str] = key(
        ["mindspore", "mindir", "onnxruntime"], "what runs the network", "speed:backends"
    )
    half: bool = key(True, "also measure float16")


@dataclass
class ComplexityConfig:
    """Keys of complexity.py."""

    sizes: list[str] = key(
        ["1024x2048", "512x1024", "720x960"], "rows x columns to count for", "complexity:sizes"
    )
    depth: int = key(1, "parts of a layer's name that make a row", "depth", minimum=1)


@dataclass
class SANetConfig(Config):
    """All keys of SANet."""

    task: str = key(
        "segmentation",
        "segmentation, or classification to pretrain on ImageNet folders",
        choices=("segmentation", "classification"),
    )
    variant: str = key("S", "depth of the network", "model", choices=("S", "M", "L"))
    classes: int = key(0, "number of classes; 0 is the data's", "num_classes", minimum=0)
    pooling: str = key(
        "apppm",
        "pyramid pooling; the others are for ablation",
        choices=("apppm", "dappm", "dappm_few", "aappm", "sppf_tab", "sppf_tab_add"),
    )
    attention: str = key("add", "how the decoder joins its guides", choices=("add", "cat"))
    data: SANetData = group(SANetData)
    loss: LossConfig = group(LossConfig)
    evaluate: SANetEvaluate = group(SANetEvaluate)
    export: SANetExport = group(SANetExport)
    infer: SegmentationInfer = group(SegmentationInfer)
    baseline: PixelClassifierConfig = group(PixelClassifierConfig)
    heatmap: HeatmapConfig = group(HeatmapConfig)
    boundary: BoundaryConfig = group(BoundaryConfig)
    receptive_field: ReceptiveFieldConfig = group(ReceptiveFieldConfig)
    video: VideoConfig = group(VideoConfig)
    speed: SpeedConfig = group(SpeedConfig)
    complexity: ComplexityConfig = group(ComplexityConfig)
