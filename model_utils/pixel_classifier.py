"""A per-pixel classifier without a neural network, to compare segmentation networks with.

Every pixel is described by its colour and that of its surroundings at several scales, by
gradients and texture around it and, where images have an up, by its position; scikit-learn's
gradient boosting or extremely randomised trees learn the class from these. Which of the two is
better is found on blocks of training images that are kept aside for that, never on the images
that are measured.

Training pixels are drawn from all training images. Rare classes are drawn more often than they
occur (``baseline.balance``), because mean IoU counts every class alike.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model_utils.config import key
from model_utils.errors import UserError
from model_utils.files import write_json
from model_utils.logs import Progress
from model_utils.metrics.segmentation import BoundaryScore, ConfusionMatrix
from model_utils.segmentation import IGNORE, ClassTable
from model_utils.segmentation_evaluation import SegmentationData
from model_utils.segmentation_report import Report
from model_utils.task import Task

log = logging.getLogger("zoo")

# Sides of the squares over which colour and texture are gathered, pixels.
_SQUARES = (5, 13, 31, 71)
# Where else the colour of a neighbourhood is looked up, pixels right and down.
_OFFSETS = ((-40, 0), (40, 0), (0, -40), (0, 40), (0, -90), (0, 90))
# Training images are numbered into this many blocks of neighbours in the list, usually in time;
# every fifth block chooses the classifier.
_BLOCKS = 10
_HELD_OUT = 200_000
CLASSIFIERS = ("boosting", "trees")


@dataclass
class PixelClassifierConfig:
    """Keys of compare_baselines.py; scikit-learn's classifiers on single pixels."""

    pixels: int = key(400_000, "training pixels drawn from all images", minimum=100)
    balance: float = key(
        0.5, "draw classes by their frequency to this power; 0 alike, 1 as they occur", minimum=0
    )
    position: bool = key(True, "tell the classifier where in the image a pixel is")
    long_side: int = key(480, "larger images are reduced to this; 0 keeps them", minimum=0)
    classifier: str = key(
        "auto",
        "gradient boosting, extremely randomised trees, or the better on images kept aside",
        choices=("auto", *CLASSIFIERS),
    )
    iterations: int = key(60, "rounds of boosting", minimum=1)
    trees: int = key(60, "number of randomised trees", minimum=1)
    jobs: int = key(1, "threads", minimum=1)


def pixel_features(image: np.ndarray, position: bool = True) -> np.ndarray:
    """Position, colour and texture of every pixel.

    Per pixel: if ``position`` asks for it, column and row as shares of the image and distance from
    the middle column; colour in CIELAB, and its difference from the image's mean; over squares of
    5, 13, 31 and 71 pixels mean colour, deviation and contrast of lightness, and strength and
    direction of gradients (the structure tensor of Bigün and Granlund 1987); gradient magnitude;
    fine texture; mean colour 40 pixels to the left and right, and 40 and 90 pixels above and below.

    Args:
        image: (H, W, 3) RGB uint8.
        position: whether the place in the image says something about the class, as it does in
            street scenes and not in aerial images.

    Returns:
        (H, W, 62) float32, or (H, W, 59) without position.
    """
    height, width = image.shape[:2]
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = np.ascontiguousarray(lab[:, :, 0])
    across, down = (cv2.Sobel(light, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    tensor = cv2.merge([across * across, down * down, across * down])
    parts = _position(height, width) if position else []
    parts += [lab, lab - lab.mean(axis=(0, 1))]
    for side in _SQUARES:
        parts += _surroundings(lab, light, tensor, side)
    parts.append(np.sqrt(tensor[:, :, 0] + tensor[:, :, 1]))
    fine = np.abs(light - _mean(light, 3))
    parts += [_mean(fine, 7), _mean(fine, 21)]
    colour = _mean(lab, 13)
    parts += [_shifted(colour, *offset) for offset in _OFFSETS]
    return np.concatenate([part.reshape(height, width, -1) for part in parts], axis=2)


def _position(height: int, width: int) -> list[np.ndarray]:
    columns, rows = np.meshgrid(
        (np.arange(width, dtype=np.float32) + 0.5) / width,
        (np.arange(height, dtype=np.float32) + 0.5) / height,
    )
    return [columns, rows, np.abs(columns - 0.5)]


def _mean(values: np.ndarray, side: int) -> np.ndarray:
    return cv2.blur(values, (side, side), borderType=cv2.BORDER_REPLICATE)


def _surroundings(
    lab: np.ndarray, light: np.ndarray, tensor: np.ndarray, side: int
) -> list[np.ndarray]:
    """Colour (3), deviation, contrast, gradient energy and its direction (2) in a square."""
    colour = _mean(lab, side)
    level = colour[:, :, 0]
    deviation = np.sqrt(np.maximum(_mean(light * light, side) - level * level, 0))
    xx, yy, xy = cv2.split(_mean(tensor, side))
    energy = xx + yy
    size = np.maximum(energy, 1e-6)
    return [colour, deviation, light - level, np.sqrt(energy), (xx - yy) / size, 2 * xy / size]


def _shifted(values: np.ndarray, right: int, down: int) -> np.ndarray:
    """``values`` at (row + down, column + right), at the border the nearest there is."""
    height, width = values.shape[:2]
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    return values[rows[:, None], columns[None]]


def shrunk(image: np.ndarray, long_side: int, interpolation: int) -> np.ndarray:
    """An image or label with at most ``long_side`` rows and columns; 0 changes nothing."""
    height, width = image.shape[:2]
    if not long_side or max(height, width) <= long_side:
        return image
    zoom = long_side / max(height, width)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    return cv2.resize(image, size, interpolation=interpolation)


@dataclass(frozen=True)
class Pixels:
    """Pixels to learn from, or to choose a classifier by.

    Attributes:
        features: (N, F) float32.
        labels: (N,) uint8 class numbers.
        kept_aside: (N,) bool, pixels of the images that choose the classifier.
    """

    features: np.ndarray
    labels: np.ndarray
    kept_aside: np.ndarray


def class_counts(dataset: SegmentationData) -> np.ndarray:
    """(K,) labelled pixels of each class in a data set.

    Raises:
        UserError: images without masks, or fewer than two classes in all masks.
    """
    counts = np.zeros(len(dataset.classes), np.int64)
    bar = Progress(len(dataset), "counting classes", unit="image")
    for index in range(len(dataset)):
        counts += np.bincount(_read(dataset, index)[1].ravel(), minlength=256)[: len(counts)]
        bar.advance()
    bar.close()
    if (counts > 0).sum() < 2:
        found = [name for name, count in zip(dataset.classes.names, counts, strict=True) if count]
        raise UserError(
            f"the training masks hold only {', '.join(found) or 'ignored pixels'}; a classifier "
            "needs two classes or more"
        )
    return counts


def _read(dataset: SegmentationData, index: int) -> tuple[np.ndarray, np.ndarray]:
    image, label = dataset.read(index)
    if label is None:
        raise _without_mask(dataset, index)
    return image, label


def _require_masks(dataset: SegmentationData) -> None:
    for index, pair in enumerate(dataset.pairs):
        if pair.mask is None:
            raise _without_mask(dataset, index)


def _without_mask(dataset: SegmentationData, index: int) -> UserError:
    return UserError(f"{dataset.name(index)} has no mask; choose a split with masks (--split)")


def kept_aside(count: int) -> np.ndarray:
    """(count,) bool: two blocks of a tenth each, neighbours of the list staying together."""
    return (np.arange(count) * _BLOCKS // max(count, 1)) % 5 == 2


def draw_pixels(
    dataset: SegmentationData, counts: np.ndarray, keys: PixelClassifierConfig, seed: int
) -> tuple[Pixels, Pixels]:
    """Pixels to learn from, of all images, and pixels to choose by, of the images kept aside.

    The first are about ``keys.pixels``; class k has a share proportional to the k-th count to
    the power of ``keys.balance``. The second are drawn without regard to class.

    Args:
        dataset: whole training images.
        counts: of :func:`class_counts`.
        keys: number of pixels, balance, image size.
        seed: of the choice.
    """
    wanted = np.zeros(len(counts))
    present = counts > 0
    wanted[present] = counts[present].astype(float) ** keys.balance
    # Chance of each pixel of a class to be drawn.
    chance = keys.pixels * wanted / wanted.sum() / np.maximum(counts, 1)
    aside = kept_aside(len(dataset))
    per_image = _HELD_OUT // max(int(aside.sum()), 1)
    learning: list[tuple[np.ndarray, np.ndarray, bool]] = []
    choosing: list[tuple[np.ndarray, np.ndarray, bool]] = []
    bar = Progress(len(dataset), "drawing pixels", unit="image")
    for index in range(len(dataset)):
        rng = np.random.default_rng((seed, index))
        whole, label = _read(dataset, index)
        image = shrunk(whole, keys.long_side, cv2.INTER_AREA)
        label = shrunk(label, keys.long_side, cv2.INTER_NEAREST)
        known = np.flatnonzero(label.ravel() != IGNORE)
        classes = label.ravel()[known]
        # A pixel of a shrunk image stands for several.
        drawn = rng.random(len(known)) < chance[classes] * whole[..., 0].size / label.size
        features = pixel_features(image, keys.position).reshape(label.size, -1)
        learning.append((features[known[drawn]], classes[drawn], bool(aside[index])))
        if aside[index]:
            some = rng.choice(len(known), min(per_image, len(known)), replace=False)
            choosing.append((features[known[some]], classes[some], True))
        bar.advance()
    bar.close()
    return _joined(learning), _joined(choosing)


def _joined(parts: list[tuple[np.ndarray, np.ndarray, bool]]) -> Pixels:
    if not parts:
        return Pixels(np.zeros((0, 1), np.float32), np.zeros(0, np.uint8), np.zeros(0, bool))
    features, labels, aside = zip(*parts, strict=True)
    flags = [np.full(len(part), flag) for part, flag in zip(labels, aside, strict=True)]
    return Pixels(np.concatenate(features), np.concatenate(labels), np.concatenate(flags))


def build_classifier(name: str, keys: PixelClassifierConfig, seed: int) -> Any:
    """An untrained scikit-learn classifier by its name in :data:`CLASSIFIERS`."""
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier

    if name == "boosting":
        return HistGradientBoostingClassifier(
            max_iter=keys.iterations,
            learning_rate=0.15,
            max_leaf_nodes=31,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
        )
    return ExtraTreesClassifier(
        n_estimators=keys.trees, min_samples_leaf=3, n_jobs=keys.jobs, random_state=seed
    )


def train_classifier(
    learning: Pixels, choosing: Pixels, classes: int, keys: PixelClassifierConfig, seed: int
) -> tuple[str, Any, dict[str, float]]:
    """Choose a classifier on the pixels kept aside and train it on all.

    Args:
        learning: pixels to learn from.
        choosing: pixels to choose by.
        classes: number of classes, K.
        keys: the classifier, or ``auto``; its size.
        seed: of the classifiers.

    Returns:
        Its name, the trained classifier, and the mean IoU of each on the pixels kept aside.
    """
    name, tried = keys.classifier, {}
    rest = ~learning.kept_aside
    if name == "auto":
        enough = len(choosing.labels) and len(np.unique(learning.labels[rest])) > 1
        for candidate in CLASSIFIERS if enough else ():
            log.info("trying %s on %d pixels", candidate, rest.sum())
            model = build_classifier(candidate, keys, seed)
            _fit(model, learning.features[rest], learning.labels[rest], keys)
            matrix = ConfusionMatrix(classes)
            matrix.update(choosing.labels, _predicted(model, choosing.features, keys))
            tried[candidate] = matrix.mean_iou()
            log.info("%s: mIoU %.4f on the images kept aside", candidate, tried[candidate])
        name = max(tried, key=lambda key: tried[key]) if tried else CLASSIFIERS[0]
    log.info("training %s on %d pixels", name, len(learning.labels))
    model = build_classifier(name, keys, seed)
    _fit(model, learning.features, learning.labels, keys)
    return name, model, tried


def _fit(model: Any, features: np.ndarray, labels: np.ndarray, keys: PixelClassifierConfig) -> None:
    with _threads(keys.jobs):
        model.fit(features, labels)


def _predicted(model: Any, features: np.ndarray, keys: PixelClassifierConfig) -> np.ndarray:
    with _threads(keys.jobs):
        return model.predict(features)


def _threads(count: int) -> AbstractContextManager[Any]:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(count, "openmp")


def predict(model: Any, image: np.ndarray, keys: PixelClassifierConfig) -> np.ndarray:
    """Class numbers of an image: (H, W, 3) RGB uint8 to (H, W) uint8."""
    small = shrunk(image, keys.long_side, cv2.INTER_AREA)
    features = pixel_features(small, keys.position).reshape(small.shape[0] * small.shape[1], -1)
    labels = _predicted(model, features, keys).reshape(small.shape[:2]).astype(np.uint8)
    return cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def measure(
    model: Any,
    dataset: SegmentationData,
    keys: PixelClassifierConfig,
    output: Path | None = None,
    pictures: int = 0,
    tolerance: int = 0,
) -> tuple[ConfusionMatrix, BoundaryScore]:
    """Count all labelled pixels of a data set, as eval.py counts them.

    Args:
        model: of :func:`train_classifier`.
        dataset: whole images with masks.
        keys: image size.
        output: folder of the tables and pictures that eval.py writes too; None writes none.
        pictures: how many images to draw, evenly spread over the data set.
        tolerance: pixels of the boundary F-score; 0 is 0.75 % of the diagonal.
    """
    matrix = ConfusionMatrix(len(dataset.classes))
    boundary = BoundaryScore(len(dataset.classes), tolerance)
    drawing = Report(output, dataset, pictures) if output is not None else None
    bar = Progress(len(dataset), "predicting", unit="image")
    for index in range(len(dataset)):
        image, label = _read(dataset, index)
        prediction = predict(model, image, keys)
        matrix.update(label, prediction)
        boundary.update(label, prediction)
        if drawing is not None:
            drawing.add(index, dataset, label, prediction)
        bar.advance(figures=f"mIoU {matrix.mean_iou():.3f}")
    bar.close()
    if drawing is not None:
        drawing.finish(matrix, boundary, dataset)
    return matrix, boundary


def majority(counts: np.ndarray, matrix: ConfusionMatrix) -> ConfusionMatrix:
    """What calling every pixel the most frequent training class gets on the same pixels."""
    result = ConfusionMatrix(matrix.classes, matrix.ignore)
    result.counts[:, int(np.argmax(counts))] = matrix.true_pixels
    return result


def figures(
    matrix: ConfusionMatrix, names: Sequence[str], boundary: BoundaryScore | None = None
) -> dict[str, Any]:
    """Figures under the names that eval.py gives them, IoU and accuracy of every class."""
    found: dict[str, Any] = dict(matrix.scores())
    if boundary is not None:
        found["boundary_f"] = boundary.mean_f_score()
    found["iou"] = dict(zip(names, matrix.iou().tolist(), strict=True))
    found["accuracy"] = dict(zip(names, matrix.accuracy().tolist(), strict=True))
    return found


def table_lines(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The comparison as text: one column per method, first the means, then IoU per class."""
    lines = [f"{'':<20} " + " ".join(f"{name:>10}" for name in methods)]
    for mean in ("miou", "pixel_accuracy", "mean_accuracy"):
        lines.append(f"{mean:<20} " + " ".join(f"{row[mean]:10.4f}" for row in methods.values()))
    for name in next(iter(methods.values()))["iou"]:
        values = (row["iou"][name] for row in methods.values())
        lines.append(f"{name:<20} " + " ".join(f"{value:10.4f}" for value in values))
    return lines


def report(task: Task, config: Any, output: Path) -> None:
    """compare_baselines.py: train a pixel classifier, measure it, print and write the table.

    Args:
        task: a segmentation network's.
        config: its configuration with ``baseline``, a :class:`PixelClassifierConfig`.
        output: folder of the figures and pictures.

    Raises:
        UserError: no such split, images without masks, or a single class.
    """
    keys, split = config.baseline, config.evaluate.split
    training, measured = (_images(task, config, name) for name in ("train", split))
    start = time.perf_counter()
    counts = class_counts(training)
    learning, choosing = draw_pixels(training, counts, keys, config.seed)
    name, model, tried = train_classifier(learning, choosing, len(counts), keys, config.seed)
    trained = time.perf_counter()
    # Networks whose evaluation scores boundaries in another way have no such key.
    tolerance = getattr(config.evaluate, "boundary_tolerance", 0)
    matrix, boundary = measure(model, measured, keys, output, config.evaluate.pictures, tolerance)
    done = time.perf_counter()
    names = measured.classes.names
    methods = {
        "majority": figures(majority(counts, matrix), names),
        name: figures(matrix, names, boundary),
    }
    for line in table_lines(methods):
        log.info(line)
    write_json(
        output / "metrics.json",
        {
            "methods": methods,
            "miou_kept_aside": tried,
            "confusion": matrix.counts,
            "pixels": len(learning.labels),
            "features": learning.features.shape[1],
            "train_images": len(training),
            "images": len(measured),
            "split": split,
            "data": config.data.root,
            "seed": config.seed,
            "seconds_training": round(trained - start, 1),
            "seconds_measuring": round(done - trained, 1),
        },
    )
    log.info("figures in %s, pictures in %s", output / "metrics.json", output / "predictions")


def _images(task: Task, config: Any, split: str) -> SegmentationData:
    dataset = task.build_dataset(config, split)
    if dataset is None:
        raise UserError(f"there is no split '{split}' in {config.data.root}; choose another")
    if not isinstance(getattr(dataset, "classes", None), ClassTable):
        raise UserError(f"the data of {config.data.root} have no masks; a classifier needs them")
    _require_masks(dataset)
    return dataset
