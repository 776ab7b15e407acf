"""SANet's samples: images, labels and edge maps, from files in the data sets' own layouts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import segmentation_data
from model_utils.augmentation import Normalisation
from model_utils.errors import UserError
from model_utils.files import require_folder
from model_utils.segmentation import ClassTable, Pair
from model_utils.segmentation_data import Sample

from .augment import Augmentation, edge_map
from .classes import CITYSCAPES, CITYSCAPES_TRAIN_IDS
from .config import SANetConfig, SANetData
from .imagenet import IMAGENET_CLASSES, ImageFolder
from .layouts import class_table, find_pairs, mask_values


class SegmentationDataset(segmentation_data.SegmentationDataset):
    """Images with class masks, and edges of the whole labels.

    Args:
        pairs: the files; a pair without a mask has only ignored pixels.
        classes: the table of classes.
        augmentation: random changes; None gives whole images as they are.
        normalisation: of the images.
        edge_frame: see :func:`augment.edge_map`.
        edge_size: likewise.
        values: what masks hold, see :func:`model_utils.segmentation.read_mask`.
        cache: keep images, labels and edges (5 bytes per pixel) in memory.
        root: folder that names are given relative to.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: ClassTable,
        augmentation: Augmentation | None = None,
        normalisation: Normalisation | None = None,
        edge_frame: int = 6,
        edge_size: int = 4,
        values: str = "auto",
        cache: bool = False,
        root: Path | None = None,
    ) -> None:
        super().__init__(pairs, classes, normalisation, values, root)
        self.augmentation = augmentation
        self._edge_frame, self._edge_size = edge_frame, edge_size
        self._cache: dict[int, Sample] | None = {} if cache else None

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels in memory: reading processes keep their own."""
        return {**self.__dict__, "_cache": None if self._cache is None else {}}

    def edges(self, label: np.ndarray) -> np.ndarray:
        """Edges (H, W) uint8, 0 or 1, of a whole label."""
        return edge_map(label, self._edge_frame, self._edge_size)

    def _table(self, mask: Path) -> ClassTable:
        # Cityscapes' scripts can also write masks with the training classes.
        if self.classes.names == CITYSCAPES.names and mask.name.endswith("_labelTrainIds.png"):
            return CITYSCAPES_TRAIN_IDS
        return self.classes

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Image (3, H, W) float32, normalised; label (H, W) uint8; edges (H, W) uint8, 0 or 1.

        H and W are the crop's, or without augmentation the image's own.
        """
        image, label, edge = self._load(index)
        if self.augmentation is not None:
            image, label, edge = self.augmentation(image, label, edge, rng)
        return self.normalisation(image), label, edge

    def _load(self, index: int) -> Sample:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image = self.read_image(index)
        label = self.read_label(index, image.shape)
        parts = (image, label, self.edges(label))
        if self._cache is not None:
            self._cache[index] = parts
        return parts


def build_dataset(
    config: SANetConfig, split: str, augment: bool | None = None
) -> SegmentationDataset | ImageFolder | None:
    """The samples of a split; None without such a split.

    Args:
        config: the configuration.
        split: ``train``, ``val``, ``test``, or another that the data has.
        augment: apply random changes; None applies them to ``train`` only.

    Raises:
        UserError: the folder is missing, a list names a missing file, no training data, task
            and format do not fit.
    """
    data = config.data
    augment = split == "train" if augment is None else augment
    normalisation = Normalisation(tuple(data.mean), tuple(data.std))
    if config.task == "classification":
        folder = _image_folder(data, split, augment, normalisation)
        outputs = config.classes or IMAGENET_CLASSES
        if folder is not None and len(folder.names) > outputs:
            raise UserError(
                f"{data.root} has {len(folder.names)} classes, the network {outputs} outputs; add "
                f"--classes={len(folder.names)}"
            )
        return folder
    pairs = find_pairs(data, split)
    if pairs is None:
        return None
    return SegmentationDataset(
        pairs,
        class_table(config),
        _augmentation(data) if augment else None,
        normalisation,
        data.edge_frame,
        data.edge_size,
        mask_values(data),
        data.cache,
        Path(data.root),
    )


def _image_folder(
    data: SANetData, split: str, augment: bool, normalisation: Normalisation
) -> ImageFolder | None:
    if data.format != "imagenet":
        raise UserError(
            f"task classification needs data.format imagenet, not {data.format}; or use "
            "task=segmentation"
        )
    if not data.root:
        raise UserError("no data given; add --data_path=FOLDER")
    root = require_folder(data.root, "data folder", "set data.root (--data_path)")
    if split != "train" and not (root / split).is_dir():
        return None
    return ImageFolder(root, split, (data.crop_height, data.crop_width), augment, normalisation)


def _augmentation(data: SANetData) -> Augmentation:
    keys = data.augment
    if keys.scale_max < keys.scale_min:
        raise UserError(
            f"data.augment.scale_max={keys.scale_max:g} is below scale_min={keys.scale_min:g}; set "
            "both, or both to 1 for no zoom"
        )
    count = int((keys.scale_max - keys.scale_min) / keys.scale_step + 1e-6) + 1
    return Augmentation(
        (data.crop_height, data.crop_width),
        data.base_size,
        tuple(keys.scale_min + step * keys.scale_step for step in range(count)),
        keys.flip,
        keys.brightness,
        keys.contrast,
        keys.saturation,
    )
