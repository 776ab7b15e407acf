"""PFNet's configuration; upstream's own flags are understood, too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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
    """Random changes of training images; each can be switched off."""

    scale_min: float = key(1.0, "smallest zoom before cropping", "scale_min", minimum=0.05)
    scale_max: float = key(1.0, "largest zoom before cropping", "scale_max", minimum=0.05)
    flip: bool = key(True, "mirror half of the images left to right")
    vertical_flip: bool = key(True, "mirror half of the images top to bottom")
    rotate: bool = key(True, "turn by a random multiple of 90 degrees")
    colour: float = key(
        0.0, "largest relative change of brightness, contrast, saturation and hue", "color_aug",
        minimum=0, maximum=0.5
    )  # fmt: skip
    hue: float = key(
        -1.0, "largest turn of the hue, 1 is the full circle; -1 takes colour's", minimum=-1
    )
    blur: str = key(
        "gaussian",
        "random blur of every image; upstream cannot switch it off",
        choices=("none", "gaussian", "bilateral"),
    )
    class_mix: float = key(
        0.0,
        "share of the images into which half of the classes of another one are pasted",
        minimum=0,
        maximum=1,
    )


@dataclass
class PFNetData(SegmentationData):
    """Aerial images with class masks."""

    format: str = key(
        "isaid",
        "how images and masks are stored",
        "dataset",
        choices=("isaid", "vaihingen", "potsdam", "gaofen_img", "gaofen_sar", "folder"),
        synonyms={"posdam": "potsdam", "gaofenimg": "gaofen_img", "gaofensar": "gaofen_sar"},
    )
    train_split: str = key("train", "split to train on; Gaofen's entry trained on 'all'")
    masks: str = key(
        "masks",
        "folder of the masks; iSAID of the Jittor port: masks_new",
        "prepare:save_file_name",
    )
    crop_size: int = key(896, "rows and columns of a training sample", "crop_size", minimum=32)
    resize: str = key(
        "whole",
        "whole: images resized to crop_size; crop: random zoom, then a crop of crop_size",
        choices=("whole", "crop"),
    )
    pre_size: int = key(0, "shorter side before zoom and crop; 0 keeps it", "pre_size", minimum=0)
    edge_thickness: int = key(8, "width of boundary labels in pixels", "thicky", minimum=1)
    edge_source: str = key(
        "foreground",
        "foreground: contours of all non-background classes together, as upstream; "
        "classes: wherever two classes meet",
        choices=("foreground", "classes"),
    )
    class_uniform: float = key(
        0.0,
        "share of an epoch drawn evenly over the classes",
        "class_uniform_pct",
        minimum=0,
        maximum=1,
    )
    class_uniform_tile: int = key(
        1024, "side of the tiles whose classes are looked up", "class_uniform_tile", minimum=32
    )
    augment: AugmentConfig = group(AugmentConfig)


@dataclass
class LossConfig(SegmentationLoss):
    """Weights and settings of the joint loss, see losses.py."""

    segmentation: float = key(1.0, "weight of the class loss", "seg_weight", minimum=0)
    edge: float = key(25.0, "weight of each edge loss", "edge_weight", minimum=0)
    edge_loss: str = key(
        "bce", "class-balanced cross entropy, or dice of raw logits", choices=("bce", "dice")
    )
    ohem: bool = key(True, "hard pixels only (online hard example mining)", "ohem")
    ohem_threshold: float = key(
        0.7, "pixels predicted with at most this probability are hard", minimum=0, maximum=1
    )
    ohem_keep: int = key(10000, "least number of pixels per device and step", minimum=1)


@dataclass
class PFNetEvaluate(SegmentationEvaluate):
    """Keys of eval.py."""

    batch_size: int = key(
        1,
        "images of one size at once",
        "test_batch_size",
        "eval:batch_size",
        "eval_batch_size",
        "bs_mult_val",
        minimum=1,
    )
    inference: str = key(
        "whole",
        "whole images, or overlapping windows",
        "inference_mode",
        choices=("whole", "sliding"),
    )
    resize: int = key(
        0, "images and masks are first resized to this square; 0 keeps them", "resize_scale",
        minimum=0
    )  # fmt: skip
    scales: list[float] = key([1.0], "zooms whose logits are averaged", "eval:scales", minimum=0.05)
    window: int = key(896, "side of a sliding window at zoom 1", "eval:crop_size", minimum=32)
    overlap: float = key(
        1 / 3,
        "of neighbouring windows: a share below 1, or pixels",
        "sliding_overlap",
        minimum=0,
    )
    mosaic: bool = key(
        True, "besides patch by patch, measure patches put together to their whole images again"
    )
    boundary_thresholds: list[float] = key(
        [0.0005, 0.001875, 0.00375, 0.005],
        "tolerances of the boundary F-score: shares of the diagonal, or pixels from 1 on",
        "eval_thresholds",
        minimum=0,
    )
    beta: float = key(1.0, "weight of recall in the class F-score", "beta", minimum=0)


@dataclass
class PFNetExport(SegmentationExport):
    """Keys of export.py."""

    height: int = key(512, "rows of the input, a multiple of 32", "export:height", minimum=32)
    width: int = key(512, "columns of the input, a multiple of 32", "export:width", minimum=32)


@dataclass
class PFNetInfer(SegmentationInfer):
    """Keys of infer.py: images or a folder of images."""

    scales: list[float] = key(
        [1.0], "zooms whose logits are averaged", "infer:scales", minimum=0.05
    )
    resize: int = key(0, "side of the square images are resized to; 0 keeps them", minimum=0)


@dataclass
class ContestConfig:
    """Keys of run.py; backend and weights are infer.py's."""

    size: int = key(512, "images are resized to this square; 0 keeps them", "run:size", minimum=0)
    interpolation: str = key(
        "bilinear",
        "of that resizing; upstream's run.py is bilinear, its training bicubic",
        "run:interpolation",
        choices=("bilinear", "bicubic"),
    )
    scales: list[float] = key([1.0], "zooms whose logits are averaged", "run:scales", minimum=0.05)
    flip: bool = key(True, "average with the mirrored image", "run:flip")


@dataclass
class PrepareConfig:
    """Keys of prepare_isaid.py, prepare_isprs.py and prepare_gaofen.py.

    Sources are below data.root, patches and masks go to data.images and data.masks of the output.
    """

    splits: list[str] = key(
        ["train", "val", "test"],
        "parts of the data, each a folder; . is the data folder itself",
        "prepare:set",
        "prepare:phase",
    )
    images: str = key("", "folder of a part's images; empty is images", "prepare:image_sub_folder")
    masks: str = key("", "folder of its masks; empty looks beside the images, then in masks")
    action: str = key(
        "crop",
        "crop images and masks; convert: only masks, whole, from colours to class numbers",
        choices=("crop", "convert"),
    )
    patch_height: int = key(
        0,
        "rows of a patch; 0: 896, Vaihingen 768 (the reference's tools: 800)",
        "prepare:patch_height",
        minimum=0,
    )
    patch_width: int = key(0, "columns of a patch; 0 likewise", "prepare:patch_width", minimum=0)
    overlap: int = key(
        -1,
        "rows and columns that neighbours share; -1: 384, Vaihingen 256 (the reference's tools: "
        "200)",
        "prepare:overlap_area",
        minimum=-1,
    )
    thin: str = key(
        "crop",
        "images with a side no longer than a patch: cropped along the other, or copied whole as "
        "upstream however long",
        choices=("crop", "whole"),
    )
    unknown: str = key(
        "error",
        "mask colours that are no class: an error, ignored (255), or background as upstream",
        choices=("error", "ignore", "background"),
    )
    bands: list[int] = key([], "bands of the images to take, from 1; empty is all", minimum=1)
    skip: list[str] = key(
        ["P1527", "P1530"], "names of images to leave out; upstream leaves out these of iSAID"
    )
    val_share: float = key(0.1, "Gaofen: share of all pairs that becomes val", minimum=0, below=1)
    val_list: str = key("", "Gaofen: file with the names of val instead, one per line")
    link: bool = key(False, "Gaofen: hard links instead of copies")
    workers: int = key(0, "images at once; 0 is the number of processors", minimum=0)


@dataclass
class StitchConfig:
    """Keys of stitch.py."""

    source: str = key("", "folder of patches NAME_y0_y1_x0_x1*", "stitch:patches", "stitch:source")
    overlap: str = key(
        "equal",
        "where patches overlap: they must be equal (masks, images), the one whose edge is farthest "
        "counts, or the mean (probabilities)",
        "stitch:overlap",
        choices=("equal", "centre", "mean"),
    )
    colours: bool = key(False, "class colours instead of class numbers", "stitch:colours")
    probabilities: bool = key(
        False,
        "of probabilities: write them (TIFF) instead of the likeliest class",
        "stitch:probabilities",
    )
    manifest: str = key(
        "",
        "manifest.jsonl of the cropping, for the sizes of the images; empty is by the patches",
        "stitch:manifest",
    )


@dataclass
class PFNetConfig(Config):
    """All keys of PFNet."""

    backbone: str = key(
        "resnet50",
        "encoder",
        "arch",
        choices=("resnet50", "resnet101", "res2net101"),
        synonyms={
            "deepr50_pf_maxavg_deeply": "resnet50",
            "deepr101_pf_maxavg_deeply": "resnet101",
            "deepr2n101_pf_maxavg_deeply": "res2net101",
        },
    )
    classes: int = key(0, "number of classes; 0 is the data's", "num_classes", minimum=0)
    psp_sizes: list[int] = key(
        [1, 2, 3, 6], "bins of the pyramid pooling; 1 2 3 7 in the Jittor port", minimum=1
    )
    pool_style: str = key(
        "torch",
        "windows of adaptive pooling: the original's, or the equal ones of the Jittor port",
        choices=("torch", "jittor"),
    )
    dropout: str = key(
        "channel",
        "of the pyramid pooling: whole channels as the original, or elements as the port",
        choices=("channel", "element", "none"),
    )
    max_pool_size: int = key(14, "salient points per side and level", "maxpool_size", minimum=1)
    avg_pool_size: int = key(9, "side of the pooled certainty", "avgpool_size", minimum=1)
    edge_points: int = key(128, "boundary points per level", "edge_points", minimum=1)
    match_dim: int = key(64, "channels of the point matcher", "match_dim", minimum=1)
    point_flow: bool = key(
        True, "False replaces the PointFlow modules by bilinear upsampling (ablation)"
    )
    zero_residual: bool = key(
        False, "residual blocks begin as their shortcuts; faster without pretrained weights"
    )
    freeze_batch_norm: bool = key(False, "train with the stored statistics", "fix_bn")
    data: PFNetData = group(PFNetData)
    loss: LossConfig = group(LossConfig)
    evaluate: PFNetEvaluate = group(PFNetEvaluate)
    export: PFNetExport = group(PFNetExport)
    infer: PFNetInfer = group(PFNetInfer)
    contest: ContestConfig = group(ContestConfig)
    prepare: PrepareConfig = group(PrepareConfig)
    stitch: StitchConfig = group(StitchConfig)
    # The place in an aerial image says nothing about the class.
    baseline: PixelClassifierConfig = group(PixelClassifierConfig, position=False)

    SPELLINGS: ClassVar[Mapping[str, str]] = {
        "max_epoch": "train.epochs",
        "bs_mult": "train.batch_size",
        "eval_freq": "train.evaluate_every",
        "weight_decay": "optimizer.weight_decay",
        "lr_schedule": "optimizer.schedule",
        "poly_exp": "optimizer.power",
        "snapshot": "checkpoint_path",
        "dataset_dir": "data.root",
        "num_workers": "data.workers",
    }
    SWITCHES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "adam": ("optimizer.name", "adam"),
        "dice_loss": ("loss.edge_loss", "dice"),
        "bblur": ("data.augment.blur", "bilateral"),
        "with_aug": ("data.resize", "crop"),
    }
    LEGACY: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("cv", "max_cu_epoch", "freeze_trunk", "hardnm", "trunk", "maxSkip", "scf"),
            "nor had it upstream",
        ),
        "ignore_background": "nor had it upstream",
        "aux": "nor had it upstream beside the joint loss",
        **dict.fromkeys(
            ("img_wt_loss", "batch_weighting", "jointwtborder", "strict_bdr_cls", "wt_bound"),
            "upstream's alternative losses no longer run and are left out",
        ),
        **dict.fromkeys(
            ("rlx_off_epoch", "rescale", "repoly"), "it belongs to a schedule that is left out"
        ),
        "joint_edge_loss_pfnet": "always on; --edge_weight=0 leaves the edge losses out",
        "sgd": "the recipes' own; --optimizer chooses",
        "amsgrad": "left out; --optimizer=adam is plain Adam",
        "gblur": "on in the recipes; --data.augment.blur chooses",
        "start_epoch": "--resume knows where a run stopped",
        "restore_optimizer": "--resume goes on with everything",
        **dict.fromkeys(("fp16", "apex"), "--amp_level chooses the precision"),
        "local_rank": "the launcher decides",
        "syncbn": "on; --train.sync_batch_norm chooses",
        **dict.fromkeys(("exp", "tb_tag", "ckpt", "tb_path", "exp_name"), "use --output_path"),
        **dict.fromkeys(("evaluateF", "with_f1"), "eval.py always measures it"),
        "print_freq": "progress is shown by time",
        "test_mode": "use --train.stop_after_steps",
        "dump_images": "--pictures says how many are drawn",
        "single_scale": "the default; --scales chooses",
        "no_flip": "the default; --flip chooses",
        "speed_test": "use benchmark.py",
        **dict.fromkeys(
            ("dump_augmentation_images", "draw_train", "dist_bn", "profile", "fixed_aspp_pool"),
            "left out",
        ),
        **dict.fromkeys(
            ("dataset_cls", "mode", "cv_split", "split_index", "split_count"), "left out"
        ),
    }
