"""Data sets of images with class masks: reading them, and finding a user's own.

A network's data set extends :class:`SegmentationDataset` by its samples: how images are
changed and which further maps, such as edges, are made of the labels.
"""

import abc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.augmentation import Normalisation
from model_utils.errors import UserError
from model_utils.files import PathLike, read_image, require_file, require_folder
from model_utils.segmentation import (
    IGNORE,
    IMAGE_SUFFIXES,
    ClassTable,
    Pair,
    pair_folders,
    read_mask,
    to_eight_bits,
)

log = logging.getLogger("zoo")

Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


class SegmentationDataset(abc.ABC):
    """Images with class masks.

    Args:
        pairs: the files; a pair without a mask has only ignored pixels.
        classes: the table of classes.
        normalisation: of the images.
        values: what masks hold, see :func:`model_utils.segmentation.read_mask`.
        root: folder that names are given relative to.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: ClassTable,
        normalisation: Normalisation | None = None,
        values: str = "auto",
        root: Path | None = None,
    ) -> None:
        if not pairs:
            raise UserError("the data set is empty; check the data folder and the split's name")
        self.pairs = list(pairs)
        self.classes = classes
        self.normalisation = normalisation or Normalisation()
        self._values, self._root = values, root
        self._noted = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pairs)

    @abc.abstractmethod
    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Image (3, H, W) float32, normalised; label (H, W) uint8; edges (H, W) uint8, 0 or 1."""

    @abc.abstractmethod
    def edges(self, label: np.ndarray) -> np.ndarray:
        """Edges (H, W) uint8, 0 or 1, of a label (H, W) uint8."""

    def name(self, index: int) -> str:
        """The image's file, relative to the data's folder."""
        path = self.pairs[index].image
        if self._root is not None and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        return str(path)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Image (H, W, 3) RGB uint8 and label (H, W) uint8, None without a mask."""
        image = self.read_image(index)
        if self.pairs[index].mask is None:
            return image, None
        return image, self.read_label(index, image.shape)

    def read_image(self, index: int) -> np.ndarray:
        """Image (H, W, 3) RGB uint8."""
        path = self.pairs[index].image
        image = read_image(path)
        if image.dtype == np.uint16 and not self._noted:
            self._noted = True
            log.info("%s has 16 bits (largest value %d): 65535 becomes 255", path, image.max())
        return to_eight_bits(image, path)

    def read_label(self, index: int, shape: Sequence[int]) -> np.ndarray:
        """Label (H, W) uint8; all ignored without a mask.

        Args:
            index: of the pair.
            shape: of the image, rows and columns first.

        Raises:
            UserError: mask corrupt, of another size, or with values that are no class.
        """
        label = self.read_mask(index)
        if label is None:
            return np.full(shape[:2], IGNORE, np.uint8)
        if label.shape != tuple(shape[:2]):
            pair = self.pairs[index]
            raise UserError(
                f"mask {pair.mask} has {label.shape[0]}x{label.shape[1]} pixels (rows x columns), "
                f"its image {pair.image} {shape[0]}x{shape[1]}; both must be equal"
            )
        return label

    def read_mask(self, index: int) -> np.ndarray | None:
        """Label (H, W) uint8 of the mask alone, without its image; None without a mask.

        Raises:
            UserError: mask corrupt, or with values that are no class.
        """
        mask = self.pairs[index].mask
        return None if mask is None else read_mask(mask, self._table(mask), self._values)

    def _table(self, mask: Path) -> ClassTable:
        """The table that a mask file is read by."""
        return self.classes


# ---------------------------------------------------------------------------------------------
# a user's own folders


FOLDER_LAYOUTS = (
    "expected <images>/{split} and <masks>/{split}, or {split}/<images> and "
    "{split}/<masks>, or {split}.lst, or for training just <images> and <masks>; set data.images "
    "and data.masks"
)


def find_folders(root: Path, images: str, masks: str, split: str) -> list[Pair] | None:
    """A user's folders of images and masks, divided into splits or not; None without the split.

    Args:
        root: the data folder.
        images: name of the folder of images, in ``root`` or in each split's folder.
        masks: likewise; a split ``test`` needs none.
        split: ``train``, ``val`` or another; undivided folders are all ``train``.

    Raises:
        UserError: images without their folder of masks, or an image without a mask.
    """
    choices = [
        (root / split / images, root / split / masks),
        (root / images / split, root / masks / split),
    ]
    divided = any((place / "train").is_dir() for place in (root, root / images) if place.is_dir())
    if split == "train" and not divided:
        choices.append((root / images, root / masks))
    for image_folder, mask_folder in choices:
        if image_folder.is_dir():
            if split == "test" and not mask_folder.is_dir():
                return pair_folders(image_folder, None)
            require_folder(mask_folder, "mask folder", "set data.masks")
            return pair_folders(image_folder, mask_folder)
    return None


def find_list(root: Path, chosen: str, setting: str) -> Path:
    """The list file that the user chose: in the data folder, beside it, or anywhere.

    Raises:
        UserError: it is in none of these places.
    """
    # The lists of published data sets often lie beside the data set's folder.
    places = [root / chosen, root.parent / chosen, Path(chosen)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"{setting} {chosen} is neither in {root} nor in {root.parent} nor here; "
            "correct it, or leave it empty for the format's own"
        )
    return found


def read_names(path: Path, images: Path, masks: Path | None) -> list[Pair] | None:
    """Pairs of a list that holds one name per line, without folder and suffix.

    Args:
        path: the list.
        images: folder that holds ``<name>.*``.
        masks: likewise; None for images without masks.

    Returns:
        The pairs in the list's order; None if the list is not of this kind: its first line has
        more than a name, or names no image of the folder.

    Raises:
        UserError: a later line without its image or mask; names the line.
    """
    require_file(path, "list file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"list file {path} is not UTF-8 text ({error})") from error
    names = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    names = [(number, name) for number, name in names if not name.startswith("#")]
    if not names or not images.is_dir():
        return None
    image_of = _files_by_stem(images)
    if names[0][1] not in image_of:
        return None
    mask_of = (
        _files_by_stem(require_folder(masks, "mask folder", "set data.masks")) if masks else {}
    )
    for number, name in names:
        for folder, files in ((images, image_of), (masks, mask_of)):
            if folder is not None and name not in files:
                raise UserError(
                    f"{path}, line {number}: {folder} holds no {name}.*; correct the list, "
                    "data.root, data.images or data.masks"
                )
    return [Pair(image_of[name], mask_of.get(name)) for _, name in names]


def _files_by_stem(folder: Path) -> dict[str, Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    return {file.stem: file for file in files}


def find_palette(palette: str, places: Sequence[PathLike]) -> Path:
    """The file of the table of classes.

    Args:
        palette: as configured.
        places: folders it may be relative to, tried in order before the working folder.

    Raises:
        UserError: none is configured.
    """
    if not palette:
        raise UserError(
            "data.format folder needs data.palette, a table of the classes (name, red, green, "
            "blue, or name, id)"
        )
    found = (Path(place) / palette for place in places)
    return next((path for path in found if path.is_file()), Path(palette))


def count_classes(config: Any, class_table: Callable[[Any], ClassTable]) -> int:
    """How many classes a network tells apart: ``classes``, or the data's.

    Args:
        config: of a segmentation network, with ``classes`` and ``data``.
        class_table: reads the classes of the configured data.

    Raises:
        UserError: another number is asked for than the data has.
    """
    data = config.data
    if config.classes and data.format == "folder" and not data.palette:
        return int(config.classes)  # exporting and converting need no names
    count = len(class_table(config))
    if config.classes not in (0, count):
        raise UserError(
            f"classes={config.classes}, but {data.format} has {count}; leave 'classes' at 0, or "
            "use data.format=folder with a palette of your own"
        )
    return count
