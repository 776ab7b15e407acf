"""Where the whole images and masks are, before they are cropped."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model_utils.errors import UserError
from model_utils.files import require_folder
from model_utils.segmentation import IMAGE_SUFFIXES

from ..config import PFNetConfig

log = logging.getLogger("zoo")

# What follows an image's name in that of its mask, longest first: in the published data sets, and
# in the names that their readers expect.
_MASK_ENDINGS = (
    "_instance_color_RGB",
    "_label_noBoundary",
    "_noBoundary",
    "_gray_mask",
    "_label",
)
# What an image's own name ends with, which its mask's does not have.
_IMAGE_ENDINGS = ("_RGBIR", "_IRRG", "_RGB", "")
# iSAID's masks of single objects are no classes.
_NEITHER = "_instance_id_RGB"
# Tiles that the benchmark gives the masks of; all others are the test set.
_ISPRS_TRAIN = {
    "vaihingen": "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37".split(),
    "potsdam": (
        "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
        "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12"
    ).split(),
}
_ISPRS_TILE = {"vaihingen": re.compile(r"area(\d+)$"), "potsdam": re.compile(r"(\d+_\d+)$")}


@dataclass(frozen=True)
class Source:
    """A whole image.

    Attributes:
        name: of its patches.
        split: the part of the data, a folder of the output.
        image: the file.
        mask: its mask, if it has one.
    """

    name: str
    split: str
    image: Path
    mask: Path | None


def find_sources(config: PFNetConfig) -> list[Source]:
    """The whole images of all parts of the data that are there.

    Masks are beside the images or in a folder of their own and have the image's name, up to the
    data sets' own endings. Parts called ``test`` may have none. ISPRS data as it is distributed,
    without parts, is divided as the benchmark does.

    Raises:
        UserError: no data folder, none of the parts, an image without mask, nothing to do.
    """
    keys = config.prepare
    if not config.data.root:
        raise UserError("no data given; add --data_path=FOLDER")
    root = require_folder(config.data.root, "data folder", "set data.root (--data_path)")
    found: list[Source] = []
    missing = []
    for split in keys.splits:
        if (root / split).is_dir():
            found += _part(config, root / split, split)
        else:
            missing.append(split)
    if len(missing) == len(keys.splits) and config.data.format in _ISPRS_TILE and keys.images:
        found = _by_benchmark(config.data.format, _part(config, root, ""))
    elif len(missing) == len(keys.splits):
        raise UserError(
            f"{root} holds no folder {' or '.join(keys.splits)}; set data.root (--data_path), or "
            "prepare.splits, which is . for a folder without parts"
        )
    elif missing:
        log.warning("%s holds no %s, which is left out", root, " and no ".join(missing))
    if not found:
        raise UserError(f"{root} holds no images to prepare; check prepare.splits and prepare.skip")
    _check(found)
    return found


def _part(config: PFNetConfig, folder: Path, split: str) -> list[Source]:
    keys = config.prepare
    images = folder / (keys.images or "images")
    if not keys.images and not images.is_dir():
        images = folder
    require_folder(images, "image folder", "set prepare.images")
    beside = _files(images)
    files = [file for file in beside if not _is_mask(file)]
    if not files:
        raise UserError(
            f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)}); set prepare.images to their "
            "folder"
        )
    if keys.masks:
        masks = _files(require_folder(folder / keys.masks, "mask folder", "set prepare.masks"))
    else:
        masks = [file for file in beside if _is_mask(file)]
        if not masks and (folder / "masks").is_dir():
            masks = _files(folder / "masks")
    mask_of = {}
    for file in masks:
        if not file.stem.endswith(_NEITHER):
            mask_of[_without(file.stem, _MASK_ENDINGS)] = file
    skipped = [file.stem for file in files if file.stem in keys.skip]
    if skipped:
        log.info("%s: left out, as prepare.skip says: %s", images, ", ".join(skipped))
    sources = []
    for file in files:
        if file.stem in keys.skip:
            continue
        name = _without(file.stem, _IMAGE_ENDINGS)
        sources.append(Source(file.stem, split, file, mask_of.get(file.stem, mask_of.get(name))))
    return sources


def _by_benchmark(data: str, sources: Iterable[Source]) -> list[Source]:
    divided = []
    for source in sources:
        name = _without(source.name, _IMAGE_ENDINGS)
        tile = _ISPRS_TILE[data].search(name)
        if tile is None:
            raise UserError(
                f"{source.image} is not named as a tile of {data}; put images into folders train "
                "and test"
            )
        number = tile[1].replace("_0", "_")  # Potsdam's 2_10; some copies write 6_07
        split = "train" if number in _ISPRS_TRAIN[data] else "test"
        divided.append(Source(source.name, split, source.image, source.mask))
    return divided


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )


def _is_mask(file: Path) -> bool:
    return file.stem.endswith((*_MASK_ENDINGS, _NEITHER))


def _without(stem: str, endings: Iterable[str]) -> str:
    return next((stem.removesuffix(end) for end in endings if stem.endswith(end)), stem)


def _check(sources: Iterable[Source]) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for source in sources:
        if source.mask is None and source.split != "test":
            raise UserError(
                f"image {source.image} has no mask {source.name}_*, beside it or in masks; add it, "
                "set prepare.masks to the folder of masks, or leave the image out (prepare.skip)"
            )
        key = source.split, source.name
        if key in seen:
            raise UserError(
                f"{seen[key]} and {source.image} have one name; their patches would replace each "
                "other"
            )
        seen[key] = source.image
