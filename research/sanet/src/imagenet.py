"""ImageNet folders, or any folder per class, for pretraining by classification."""

import math
from pathlib import Path

import cv2
import numpy as np

from model_utils.augmentation import Normalisation
from model_utils.errors import UserError
from model_utils.files import PathLike, read_image, require_folder
from model_utils.segmentation import list_images, to_eight_bits

# Evaluation shrinks the short side to this many times the crop: 256 for 224.
_MARGIN = 256 / 224
# Outputs of the classifier where the configuration names no number.
IMAGENET_CLASSES = 1000


class ImageFolder:
    """Images in ``root/<split>/<class>/``; a class's number is its place in sorted order.

    Args:
        root: folder of the data set.
        split: ``train`` or ``val``.
        size: (height, width) of the network's input.
        augment: random resized crops and mirroring; otherwise the centre.
        normalisation: of the images.

    Raises:
        UserError: no class folders, a class without images, a class unknown in training.
    """

    def __init__(
        self,
        root: PathLike,
        split: str,
        size: tuple[int, int] = (224, 224),
        augment: bool = False,
        normalisation: Normalisation | None = None,
    ) -> None:
        folder = require_folder(Path(root) / split, "image folder", "set data.root")
        reference = Path(root) / "train"
        self.root = Path(root)
        self.names = _subfolders(reference if reference.is_dir() else folder)
        if not self.names:
            raise UserError(f"{folder} has no folders; put the images into one folder per class")
        self._size, self._augment = size, augment
        self._normalisation = normalisation or Normalisation()
        number = {name: place for place, name in enumerate(self.names)}
        self._samples: list[tuple[Path, int]] = []
        for name in _subfolders(folder):
            if name not in number:
                raise UserError(f"{folder / name} is no class of {reference}; remove or rename it")
            found = list_images(folder / name)
            if not found:
                raise UserError(f"{folder / name} holds no images; add some or remove the folder")
            self._samples += [(path, number[name]) for path in found]
        if not self._samples:
            raise UserError(f"{folder} has no folders; put the images into one folder per class")

    def __len__(self) -> int:
        """Number of images."""
        return len(self._samples)

    def name(self, index: int) -> str:
        """The image's file, relative to the data's folder."""
        return str(self._samples[index][0].relative_to(self.root))

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Image (H, W, 3) RGB uint8 and class number."""
        path, number = self._samples[index]
        return to_eight_bits(read_image(path), path), number

    def sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Image (3, H, W) float32, normalised, and class number, an int32 scalar."""
        image, number = self.read(index)
        if self._augment:
            image = random_resized_crop(image, self._size, rng)
            if rng.random() < 0.5:
                image = cv2.flip(image, 1)
        else:
            image = centre(image, self._size)
        return self._normalisation(image), np.asarray(number, np.int32)


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def random_resized_crop(
    image: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """A random 8 to 100 % of the area with an aspect of 3/4 to 4/3, resized (Inception's crop)."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(rng.integers(height - rows + 1))
            left = int(rng.integers(width - columns + 1))
            return _resize(image[top : top + rows, left : left + columns], size)
    # Very long images hold no such part: the middle, with the nearest aspect.
    columns, rows = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return _resize(_middle(image, (max(1, rows), max(1, columns))), size)


def centre(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image, after its short side became 256 / 224 of the crop's."""
    height, width = image.shape[:2]
    zoom = max(side * _MARGIN / have for side, have in zip(size, (height, width), strict=True))
    target = [
        max(side, round(have * zoom)) for side, have in zip(size, (height, width), strict=True)
    ]
    return _middle(_resize(image, (target[0], target[1])), size)


def _middle(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = ((have - want) // 2 for have, want in zip(image.shape[:2], size, strict=True))
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # Averaging when shrinking: bilinear reading alone would skip pixels.
    shrinks = image.shape[0] > size[0] and image.shape[1] > size[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=method)
