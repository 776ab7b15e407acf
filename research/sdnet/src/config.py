"""SDNet's configuration; flat spellings are those of the ModelZoo's sen1-2_config.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from model_utils.config import group, key
from model_utils.task import Config, DataConfig, ExportConfig, InferConfig

from .preparing import PrepareOptions


@dataclass
class AugmentConfig:
    """Random changes of training windows cut from images; 0 is off."""

    point_jitter: int = key(8, "pixels a window may lie beside its keypoint", minimum=0)
    symmetries: bool = key(True, "flips and quarter turns, the same for both images")
    rotation: float = key(0.0, "largest rotation in degrees", minimum=0, maximum=180)
    scale: float = key(0.0, "largest relative zoom", minimum=0, maximum=0.5)
    brightness: float = key(0.0, "largest shift of grey, of 1", minimum=0, maximum=1)
    contrast: float = key(0.0, "largest relative change of contrast", minimum=0, maximum=0.99)
    gamma: float = key(0.0, "largest change of gamma", minimum=0)
    shift: int = key(0, "largest registration error in pixels", minimum=0, maximum=16)


@dataclass
class SDNetData(DataConfig):
    """Patch archives (train, val, test .npz or .h5 in ``root``), or images to cut from."""

    images: str = key("", "registered images to cut training windows from, instead of an archive")
    optical: str = key("", "sub-folder of the optical images; empty is opt, or SEN1-2's folders")
    sar: str = key("", "sub-folder of the SAR images; empty is sar, or SEN1-2's folders")
    pair_list: str = key("", "text file naming image pairs: optical, SAR and optionally a scene")
    scene_pattern: str = key("", "regular expression that finds the scene in an image's name")
    windows: int = key(20000, "windows per epoch cut from images", minimum=1)
    centres: str = key("sift", "where windows lie", choices=("sift", "any"))
    detect: str = key("both", "image whose keypoints count", choices=("opt", "sar", "both"))
    min_distance: int = key(8, "pixels between keypoints", minimum=1)
    archive_symmetries: bool = key(False, "flips and quarter turns of archived training patches")
    image_size: int = key(64, "side of a patch; the network exists for 64", "imageSize")
    mean_image: float = key(0.5, "subtracted from a patch stretched to [0, 1]", "mean_image")
    std_image: float = key(0.5, "divisor after that", "std_image", minimum=1e-6)
    augment: AugmentConfig = group(AugmentConfig)


@dataclass
class LossConfig:
    """Weights and settings of the three losses."""

    margin: float = key(1.0, "of the triplet loss", "margin", minimum=0)
    anchor_swap: bool = key(True, "negatives of the SAR patch too", "anchorswap")
    temperature: float = key(0.1, "of the similarity rankings", "temp", minimum=1e-6)
    ranking: float = key(10.0, "weight of self-distillation", "weight", minimum=0)
    reconstruction: float = key(0.001, "weight of reconstruction", "reconw", minimum=0)
    negatives: str = key(
        "global", "negatives from all devices or each its own", choices=("global", "local")
    )


@dataclass
class SDNetInfer(InferConfig):
    """Keys of infer.py: two images to match."""

    optical: str = key("", "optical image", "optical", "opt")
    sar: str = key("", "SAR image", "sar")
    registered: bool = key(True, "the images lie on each other up to search_radius", "registered")
    search_radius: int = key(16, "pixels of offset to search, registered images", minimum=1)
    step: int = key(2, "pixels between tried SAR positions", minimum=0)
    keypoints: int = key(300, "most keypoints in the optical image", minimum=4)
    ratio: float = key(0.97, "largest ratio of best to second best distance", maximum=1)
    refine: int = key(1, "times to match again after registering", minimum=0)
    ransac: float = key(3.0, "pixels an inlier may be off", minimum=0)
    model: str = key(
        "similarity",
        "transformation to fit",
        choices=("translation", "similarity", "affine", "homography"),
    )


@dataclass
class SDNetExport(ExportConfig):
    """Keys of export.py."""

    # MindSpore's tanh on CPU is off by up to 1e-4 where it saturates; other runtimes' is exact.
    tolerance: float = key(2e-4, "largest difference from the checkpoint, of max(1, |value|)")
    descriptor_only: bool = key(False, "only the two descriptors that matching needs")


@dataclass
class SDNetConfig(Config):
    """All keys of SDNet."""

    data: SDNetData = group(SDNetData)
    loss: LossConfig = group(LossConfig)
    infer: SDNetInfer = group(SDNetInfer)
    export: SDNetExport = group(SDNetExport)
    prepare: PrepareOptions = group(PrepareOptions)
    baselines: list[str] = key([], "compare_baselines: which ones; none is all", "methods")
    dropout: float = key(0.3, "before the last convolution", minimum=0, maximum=0.99)

    LEGACY: ClassVar[Mapping[str, str]] = {
        "num_train": "the size of the data is used",
        "num_tests": "the size of the data is used",
        "augmentation": "was never read",
        "lr_decay": "was never read",
        "loss": "always triplet_margin",
        "batch_reduce": "always the hardest negative",
        "anchorave": "was never read",
        "onnx_filename": "use file_name",
        "air_filename": "use file_name",
        "rank": "the launcher decides",
        "group_size": "the launcher decides",
    }
