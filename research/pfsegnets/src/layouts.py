"""Where the files of a split are, in each data set's layout.

Every format can be split by list files instead: the configured one, or for ``folder`` the
``<split>.lst`` or ``<split>.txt`` of the data folder. A line is ``image mask`` relative to the
data folder, or a name that images and masks share up to the suffix.
"""

import logging
from pathlib import Path

from model_utils.errors import UserError
from model_utils.files import require_folder
from model_utils.segmentation import (
    ClassTable,
    Pair,
    list_images,
    pair_folders,
    read_list,
    read_palette,
)
from model_utils.segmentation_data import (
    FOLDER_LAYOUTS,
    find_folders,
    find_list,
    find_palette,
    read_names,
)

from .classes import TABLES
from .config import PFNetConfig, PFNetData

log = logging.getLogger("zoo")

# Tables of classes that come with the recipes.
_CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "pfsegnets"
# What an image's name is continued by in the mask's; masks may also have the plain name.
_ENDINGS = {
    "isaid": "_instance_color_RGB",
    "vaihingen": "_gray_mask",
    "potsdam": "_gray_mask",
}
_EXPECTED = {
    "isaid": "expected {split}/images/X.png and {split}/masks/X_instance_color_RGB.png as "
    "prepare_isaid.py writes them; set data.root, data.images, data.masks or data.format",
    "vaihingen": "expected {split}/images/X.png and {split}/masks/X_gray_mask.png as "
    "prepare_isprs.py writes them; set data.root, data.images, data.masks or data.format",
    "gaofen_img": "expected {split}/image/X.tif and {split}/gt/X.png; set data.root or "
    "data.train_split",
    "gaofen_sar": "expected {split}/image/X.png and {split}/gt/X.png; set data.root or "
    "data.train_split",
    "folder": FOLDER_LAYOUTS,
}
_EXPECTED["potsdam"] = _EXPECTED["vaihingen"]


def class_table(config: PFNetConfig) -> ClassTable:
    """The classes of the configured data; reads the palette, but no images.

    Raises:
        UserError: format ``folder`` without palette, or a malformed one.
    """
    data = config.data
    if data.format != "folder":
        return TABLES[data.format]
    return read_palette(find_palette(data.palette, [*([data.root] if data.root else []), _CONFIGS]))


def find_pairs(data: PFNetData, split: str) -> list[Pair] | None:
    """The files of a split; None without such a split.

    Args:
        data: the data's configuration; ``train`` means its ``train_split``.
        split: ``train``, ``val``, ``test`` or another that the data has; the masks of ``test``
            may be missing.

    Raises:
        UserError: no data folder, no training data, a file that a list or layout calls for is
            missing.
    """
    if not data.root:
        raise UserError("no data given; add --data_path=FOLDER")
    root = require_folder(data.root, "data folder", "set data.root (--data_path)")
    chosen = getattr(data, f"{split}_list", "")
    if chosen:
        return _listed(data, root, find_list(root, chosen, f"data.{split}_list"), split)
    actual = data.train_split if split == "train" else split
    pairs = _LAYOUTS[data.format](data, root, actual)
    if pairs is None and split == "train":
        raise UserError(
            f"{root} holds no {actual} data of format {data.format}; "
            f"{_EXPECTED[data.format].format(split=actual)}"
        )
    return pairs


def _listed(data: PFNetData, root: Path, path: Path, split: str) -> list[Pair]:
    """The files that a list names, by shared names or by paths."""
    choices = (
        (root / data.images, root / data.masks),
        (root / split / data.images, root / split / data.masks),
    )
    for images, masks in choices:
        pairs = read_names(path, images, masks if split != "test" or masks.is_dir() else None)
        if pairs is not None:
            return pairs
    return read_list(path, [root, root.parent], masks=split != "test")


def _folder(data: PFNetData, root: Path, split: str) -> list[Pair] | None:
    """A user's own data: lists, or folders."""
    for suffix in (".lst", ".txt"):
        if (root / f"{split}{suffix}").is_file():
            return _listed(data, root, root / f"{split}{suffix}", split)
    return find_folders(root, data.images, data.masks, split)


def _patches(data: PFNetData, root: Path, split: str) -> list[Pair] | None:
    """``<split>/images/X.png`` with ``<split>/masks/X<ending>.png``."""
    folder = root / split / data.images
    if not folder.is_dir():
        return None
    images = list_images(folder)
    if not images:
        raise UserError(f"{folder} holds no images; {_EXPECTED[data.format].format(split=split)}")
    masks = root / split / data.masks
    if not masks.is_dir():
        if any(image.stem.endswith(_ENDINGS[data.format]) for image in images):
            tool = "prepare_isaid.py" if data.format == "isaid" else "prepare_isprs.py"
            raise UserError(
                f"{folder} holds masks beside the images, as the data is distributed; cut it into "
                f"patches with {tool} and give these"
            )
        if split == "test":
            return [Pair(image, None) for image in images]
        others = [name for name in ("masks", "masks_new") if (root / split / name).is_dir()]
        hint = f"add --data.masks={others[0]}" if others else "set data.masks"
        require_folder(masks, "mask folder", hint)
    ending = _ENDINGS[data.format]
    found = {file.relative_to(masks).with_suffix(""): file for file in list_images(masks)}
    pairs = []
    for image in images:
        name = image.relative_to(folder).with_suffix("")
        mask = found.get(name.with_name(name.name + ending), found.get(name))
        if mask is None:
            raise UserError(
                f"image {image} has no mask {name}{ending}.png in {masks}; add the mask or remove "
                "the image"
            )
        pairs.append(Pair(image, mask))
    return pairs


def _isprs(data: PFNetData, root: Path, split: str) -> list[Pair] | None:
    """Patches; without a ``val`` folder validation uses ``test``, as the reference does."""
    if split == "val" and not (root / "val").is_dir() and (root / "test").is_dir():
        log.info("%s has no val folder: test is used, as in the reference", root)
        split = "test"
    return _patches(data, root, split)


def _gaofen(data: PFNetData, root: Path, split: str) -> list[Pair] | None:
    """``<split>/image/X`` with ``<split>/gt/X.png``, in the track's folder or the one above."""
    track = data.format.removeprefix("gaofen_")
    for base in (root, root / track):
        images, masks = base / split / "image", base / split / "gt"
        if images.is_dir():
            if split == "test" and not masks.is_dir():
                return pair_folders(images, None)
            return pair_folders(images, require_folder(masks, "mask folder", "add it"))
    return None


_LAYOUTS = {
    "isaid": _patches,
    "vaihingen": _isprs,
    "potsdam": _isprs,
    "gaofen_img": _gaofen,
    "gaofen_sar": _gaofen,
    "folder": _folder,
}
