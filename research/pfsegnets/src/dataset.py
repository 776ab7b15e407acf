"""PFNet's samples: images, labels and edge maps, from files in the data sets' own layouts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import segmentation_data
from model_utils.augmentation import Normalisation
from model_utils.errors import UserError
from model_utils.segmentation import ClassTable, Pair
from model_utils.segmentation_data import Sample

from .augment import Augmentation, edge_map, paste_classes, resize_image, resize_label
from .config import PFNetConfig, PFNetData
from .layouts import class_table, find_pairs
from .uniform import ClassUniform, look_up

__all__ = ["SegmentationDataset", "build_dataset", "class_table"]


class SegmentationDataset(segmentation_data.SegmentationDataset):
    """Aerial images with class masks; edges are made of the label as the network sees it.

    Args:
        pairs: the files; a pair without a mask has only ignored pixels.
        classes: the table of classes.
        augmentation: random changes; None gives whole images.
        normalisation: of the images.
        edge_thickness: see :func:`augment.edge_map`.
        edge_source: likewise.
        resize: without augmentation, the side of the square that images and labels are resized
            to; 0 keeps their own size.
        uniform: what an epoch shows; None shows every image once.
        cache: keep images and labels (4 bytes per pixel) in memory.
        root: folder that names are given relative to.
        class_mix: share of augmented images into which another's classes are pasted.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: ClassTable,
        augmentation: Augmentation | None = None,
        normalisation: Normalisation | None = None,
        edge_thickness: int = 8,
        edge_source: str = "foreground",
        resize: int = 0,
        uniform: ClassUniform | None = None,
        cache: bool = False,
        root: Path | None = None,
        class_mix: float = 0.0,
    ) -> None:
        super().__init__(pairs, classes, normalisation, root=root)
        self.augmentation = augmentation
        self.resize = resize
        self.class_mix = class_mix
        self.uniform = uniform
        self._edge_thickness, self._edge_source = edge_thickness, edge_source
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if cache else None

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels in memory: reading processes keep their own."""
        return {**self.__dict__, "_cache": None if self._cache is None else {}}

    @property
    def order(self) -> Callable[[int, int], np.ndarray] | None:
        """What an epoch shows, see :class:`model_utils.data.OrderedDataset`; None for all."""
        return None if self.uniform is None else self.uniform.order

    def name(self, index: int) -> str:
        """The image's file, relative to the data's folder."""
        return super().name(self._place(index)[0])

    def _place(self, index: int) -> tuple[int, tuple[int, int] | None]:
        return (index, None) if self.uniform is None else self.uniform.place(index)

    def edges(self, label: np.ndarray) -> np.ndarray:
        """Edges (H, W) uint8, 0 or 1, of a label (H, W) uint8."""
        return edge_map(label, self._edge_thickness, self._edge_source)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Image (3, H, W) float32, normalised; label (H, W) uint8; edges (H, W) uint8, 0 or 1.

        H and W are the crop's; without augmentation ``resize`` or the image's own.
        """
        index, centre = self._place(index)
        image, label = self._load(index)
        if self.augmentation is not None:
            image, label = self.augmentation(image, label, rng, centre)
            if self.class_mix and rng.random() < self.class_mix:
                other = self._load(int(rng.integers(len(self.pairs))))
                image, label = paste_classes(image, label, *self.augmentation(*other, rng), rng)
        elif self.resize:
            size = (self.resize, self.resize)
            image, label = resize_image(image, size), resize_label(label, size)
        return self.normalisation(image), label, self.edges(label)

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image = self.read_image(index)
        parts = (image, self.read_label(index, image.shape))
        if self._cache is not None:
            self._cache[index] = parts
        return parts


def build_dataset(
    config: PFNetConfig, split: str, augment: bool | None = None
) -> SegmentationDataset | None:
    """The samples of a split; None without such a split.

    Args:
        config: the configuration.
        split: ``train`` (which means ``data.train_split``), ``val``, ``test``, or another that
            the data has.
        augment: apply random changes; None applies them to ``train`` only.

    Raises:
        UserError: the folder is missing, a list names a missing file, no training data.
    """
    data = config.data
    augment = split == "train" if augment is None else augment
    pairs = find_pairs(data, split)
    if pairs is None:
        return None
    classes = class_table(config)
    dataset = SegmentationDataset(
        pairs,
        classes,
        _augmentation(data) if augment else None,
        Normalisation(tuple(data.mean), tuple(data.std)),
        data.edge_thickness,
        data.edge_source,
        config.evaluate.resize,
        cache=data.cache,
        root=Path(data.root),
        class_mix=data.augment.class_mix,
    )
    if augment and data.class_uniform:
        dataset.uniform = look_up(
            len(dataset),
            dataset.read_mask,
            classes,
            data.class_uniform_tile,
            data.class_uniform,
            data.workers,
        )
    return dataset


def _augmentation(data: PFNetData) -> Augmentation:
    keys = data.augment
    if keys.scale_max < keys.scale_min:
        raise UserError(
            f"data.augment.scale_max={keys.scale_max:g} is below scale_min={keys.scale_min:g}; set "
            "both, or both to 1 for no zoom"
        )
    return Augmentation(
        data.crop_size,
        data.resize == "whole",
        (keys.scale_min, keys.scale_max),
        data.pre_size,
        keys.flip,
        keys.vertical_flip,
        keys.rotate,
        keys.colour,
        keys.blur,
        keys.hue,
    )
