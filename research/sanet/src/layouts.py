"""Where the files of a split are, in each data set's layout as distributed and by list files.

A list file names ``image mask`` per line. Without a configured one, ``<split>.lst`` in the
data folder is used, or the place of the reference implementation, ``list/<format>/<split>.lst``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from model_utils.files import require_file, require_folder
from model_utils.segmentation import ClassTable, Pair, pair_folders, read_list, read_palette
from model_utils.segmentation_data import FOLDER_LAYOUTS, find_folders, find_list, find_palette

from .classes import CAMVID, CITYSCAPES, GTAV, GTAV_MAPPED
from .config import SANetConfig, SANetData


def class_table(config: SANetConfig) -> ClassTable:
    """The classes of the configured data; reads the palette, but no images.

    Raises:
        UserError: no or a malformed palette; a format without masks.
    """
    data = config.data
    if data.format == "folder":
        return read_palette(find_palette(data.palette, [data.root] if data.root else []))
    if data.format == "gtav":
        return GTAV_MAPPED if data.map_classes else GTAV
    if data.format == "imagenet":
        raise UserError(
            "data.format imagenet has no masks; use task=classification, or another format"
        )
    return {"cityscapes": CITYSCAPES, "camvid": CAMVID}[data.format]


def mask_values(data: SANetData) -> str:
    """What the format's masks hold, as :func:`model_utils.segmentation.read_mask` names it."""
    return "colours" if data.format == "camvid" else "auto"


def find_pairs(data: SANetData, split: str) -> list[Pair] | None:
    """The files of a split; None without such a split.

    The list configured for the split is a file, or the name of another split (``trainval``).

    Raises:
        UserError: no data folder, no training data, a file that a list or layout calls for is
            missing.
    """
    if not data.root:
        raise UserError("no data given; add --data_path=FOLDER")
    root = require_folder(data.root, "data folder", "set data.root (--data_path)")
    chosen = getattr(data, f"{split}_list", "")
    if Path(chosen).suffix or "/" in chosen:
        found = find_list(root, chosen, f"data.{split}_list")
        return read_list(found, _bases(data, root), masks=split != "test")
    pairs = _split(data, root, chosen or split)
    if pairs is None and (split == "train" or chosen):
        raise UserError(
            f"{root} holds no {chosen or split} data of format {data.format}; "
            f"{_EXPECTED[data.format].format(split=chosen or split)}"
        )
    return pairs


def _split(data: SANetData, root: Path, split: str) -> list[Pair] | None:
    """A split by its list file, else as distributed; ``trainval`` may be put together."""
    reference = Path("list") / data.format / f"{split}.lst"
    places = [root / f"{split}.lst", root / reference, root.parent / reference]
    if data.format == "folder":
        places = [root / f"{split}.lst", root / f"{split}.txt"]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        return read_list(found, _bases(data, root), masks=split != "test")
    layouts = {"cityscapes": _cityscapes, "gtav": _gtav}
    pairs = layouts[data.format](data, root, split) if data.format in layouts else None
    if data.format == "folder":
        pairs = find_folders(root, data.images, data.masks, split)
    if pairs is None and split == "trainval":
        train, val = (_split(data, root, part) for part in ("train", "val"))
        return None if train is None or val is None else train + val
    return pairs


_EXPECTED = {
    "cityscapes": "unpack the archives so that leftImg8bit/{split} and gtFine/{split} exist, or "
    "add {split}.lst, or set data.format",
    "camvid": "add {split}.lst with lines 'images/X.png labels/X_L.png', or set data.{split}_list",
    "gtav": "unpack the archives so that images, labels and split.mat exist, or add {split}.lst",
    "folder": FOLDER_LAYOUTS,
}


def _bases(data: SANetData, root: Path) -> list[Path]:
    # The reference's ROOT holds one folder per data set.
    return [root, root / data.format]


def _cityscapes(data: SANetData, root: Path, split: str) -> list[Pair] | None:
    """``leftImg8bit/<split>/<city>/*.png`` with ``gtFine``; the test set's masks are dummies."""
    base = _base_with(data, root, "leftImg8bit")
    if base is None:
        return None
    ending = "_leftImg8bit.png"
    images = sorted((base / "leftImg8bit" / split).glob(f"*/*{ending}"))
    if not images:
        return None
    pairs = []
    for image in images:
        name = image.name.removesuffix(ending)
        mask = base / "gtFine" / split / image.parent.name / f"{name}_gtFine_labelIds.png"
        if split == "test":
            pairs.append(Pair(image, None))
            continue
        require_file(mask, "mask", f"unpack gtFine beside leftImg8bit ({image} needs it)")
        pairs.append(Pair(image, mask))
    return pairs


def _gtav(data: SANetData, root: Path, split: str) -> list[Pair] | None:
    """``images/00001.png`` with ``labels/00001.png``, split by ``split.mat`` if there is one."""
    base = _base_with(data, root, "images")
    if base is None:
        return None
    table = base / "split.mat"
    if not table.is_file():
        return pair_folders(base / "images", base / "labels") if split == "train" else None
    pairs = []
    for number in _split_numbers(table, split):
        files = [base / folder / f"{number:05d}.png" for folder in ("images", "labels")]
        for file in files:
            require_file(file, "file", f"{table} names it; unpack all ten archives, or use lists")
        pairs.append(Pair(*files))
    return pairs or None


def _split_numbers(table: Path, split: str) -> Sequence[int]:
    from scipy.io import loadmat

    try:
        content = loadmat(table)
    except (ValueError, OSError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"{table} is not a MATLAB file of GTAV ({error}); use list files"
        ) from error
    return [int(number) for number in np.ravel(content.get(f"{split}Ids", []))]


def _base_with(data: SANetData, root: Path, folder: str) -> Path | None:
    return next((base for base in _bases(data, root) if (base / folder).is_dir()), None)
