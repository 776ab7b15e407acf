"""Measuring a segmentation network on a split, whatever network it is.

A network's own ``evaluation.py`` says how images become class maps; here is what surrounds that:
reading and grouping images, compiled graphs, the figures over all ranks, the lines that eval.py
prints.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from model_utils.data import EvaluationSampler, Loader
from model_utils.distributed import Ranks, sum_over_ranks
from model_utils.errors import UserError
from model_utils.logs import Progress
from model_utils.metrics.segmentation import BoundaryScore, ConfusionMatrix
from model_utils.segmentation import ClassTable, Pair

# Normalised float32 images (N, 3, H, W) to logits float32 (N, K, h, w).
Scorer = Callable[[np.ndarray], np.ndarray]
# Normalised images (N, 3, H, W) to one or more class maps each, uint8 (N, M, H, W).
Classifier = Callable[[np.ndarray], np.ndarray]


class SegmentationData(Protocol):
    """What evaluation needs of a data set.

    Attributes:
        pairs: the files; a pair without a mask has only ignored pixels.
        classes: the table of classes.
        augmentation: random changes, or None.
    """

    pairs: list[Pair]
    classes: ClassTable
    augmentation: Any

    def __len__(self) -> int:
        """Number of images."""
        ...

    def name(self, index: int) -> str:
        """The image's file, relative to the data's folder."""
        ...

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Image (H, W, 3) RGB uint8 and label (H, W) uint8, None without a mask."""
        ...

    def sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Image (3, H, W) float32, normalised; label (H, W) uint8; whatever training needs."""
        ...


DataT = TypeVar("DataT", bound=SegmentationData)


class CompiledCell:
    """A Cell on host arrays; one graph for the first shape, one for all others together.

    Compiling takes seconds and is never given back, so that a graph for every size of a folder
    of photographs, or for every zoom, would not do.

    Args:
        build: makes the Cell (N, 3, H, W) -> array.
        free: whether the Cell can be compiled for any size. If not, each size has a graph.
    """

    def __init__(self, build: Callable[[], nn.Cell], free: bool = True) -> None:
        self.fixed = build()
        self.free = build() if free else self.fixed
        if free:
            self.free.set_inputs(Tensor(shape=(None, 3, None, None), dtype=ms.float32))
        self.shape: tuple[int, ...] | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """What the Cell gives for images (N, 3, H, W)."""
        self.shape = self.shape or images.shape
        cell = self.fixed if images.shape == self.shape else self.free
        return cell(Tensor(images)).asnumpy()

    def set_train(self, mode: bool) -> None:
        """Switch batch normalisation and dropout of both graphs."""
        self.fixed.set_train(mode)
        self.free.set_train(mode)


def four_axes(maps: np.ndarray) -> np.ndarray:
    """Class maps (N, H, W) or (N, M, H, W) as uint8 (N, M, H, W)."""
    maps = maps.astype(np.uint8)
    return maps[:, None] if maps.ndim == 3 else maps


def require_class_count(outputs: int, classes: int) -> None:
    """Refuse a network that tells another number of classes apart than the data has.

    Raises:
        UserError: so.
    """
    if outputs != classes:
        raise UserError(
            f"the network tells {outputs} classes apart, the data has {classes}; use the "
            "data set the checkpoint was trained for, or leave 'classes' at 0 when training"
        )


def has_masks(dataset: SegmentationData) -> bool:
    """Whether there is anything to measure."""
    return any(pair.mask is not None for pair in dataset.pairs)


def whole_images(dataset: DataT) -> DataT:
    """The same images without random changes, for measuring on the training split."""
    if dataset.augmentation is None:
        return dataset
    whole = copy.copy(dataset)
    whole.augmentation = None
    return whole


class ChosenSampler(EvaluationSampler):
    """Given samples, one after the other, all on this rank."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices  # type: ignore[assignment]
        self.batch_size = 1


def results(
    process: Callable[[np.ndarray], Sequence[np.ndarray] | np.ndarray],
    dataset: SegmentationData,
    sampler: EvaluationSampler,
    config: Any,
    show: bool,
    ordered: bool = False,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Index, label (H, W) and the network's result of samples, images of one size together.

    Args:
        process: normalised images (N, 3, H, W) to one result per image.
        dataset: the split.
        sampler: which images, one per step.
        config: ``evaluate.batch_size``, ``data.workers``, ``data.worker_kind`` and ``seed``.
        show: show progress.
        ordered: give results in the sampler's order, so that only neighbours of one size share
            a batch; otherwise images wait until a batch of their size is full.
    """
    data, size = config.data, config.evaluate.batch_size
    loader = Loader(dataset, sampler, config.seed, data.workers, data.worker_kind)
    progress = Progress(len(sampler.indices), "evaluating", show=show, unit="image")
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def flush(group: list[tuple[int, np.ndarray, np.ndarray]]) -> Iterator[tuple]:
        # Filled up to a full batch, so that one graph serves all.
        images = np.stack([group[place % len(group)][1] for place in range(size)])
        for (index, _, label), result in zip(group, process(images), strict=False):
            yield index, label, result
        progress.advance(len(group))
        group.clear()

    batches = loader.batches(0, len(sampler))
    for index, (images, labels, *_) in zip(sampler.indices, batches, strict=True):
        if ordered and images.shape[2:] not in waiting:
            for group in waiting.values():
                yield from flush(group)
            waiting.clear()
        group = waiting.setdefault(images.shape[2:], [])
        group.append((index, images[0], labels[0]))
        if len(group) == size:
            yield from flush(group)
            if ordered:
                waiting.clear()
    for group in waiting.values():
        if group:
            yield from flush(group)
    progress.close()


class SplitFigures:
    """Everything counted over the class maps of a split.

    Args:
        dataset: the split.
        ranks: this process's place.
        tolerance: of the boundary F-score, see :class:`BoundaryScore`.
        has_aux: a second class map per image, an auxiliary head's, is counted too.
        has_boundary: count boundaries, which takes longer than all else.
    """

    def __init__(
        self,
        dataset: SegmentationData,
        ranks: Ranks,
        tolerance: float = 0.0,
        has_aux: bool = False,
        has_boundary: bool = True,
    ) -> None:
        self.classes, self.ranks = dataset.classes, ranks
        count = len(dataset.classes)
        self.tolerance, self.has_aux, self.has_boundary = tolerance, has_aux, has_boundary
        self.confusion = ConfusionMatrix(count)
        self.aux = ConfusionMatrix(count)
        self.boundary = BoundaryScore(count, tolerance)
        self.sizes = np.zeros((len(dataset), 2), np.int64)

    def add(self, index: int, label: np.ndarray, maps: np.ndarray) -> None:
        """Count one image: its label (H, W) and class maps (M, H, W)."""
        self.confusion.update(label, maps[0])
        if self.has_boundary:
            self.boundary.update(label, maps[0])
        if self.has_aux:
            self.aux.update(label, maps[1])
        self.sizes[index] = label.shape

    def metrics(self, protocol: str) -> dict[str, Any]:
        """The figures over all ranks, which all must call.

        Args:
            protocol: how images were scored, in words.
        """
        for counts in (self.confusion, self.aux, self.boundary):
            counts.sum_over(self.ranks)
        self.sizes = sum_over_ranks(self.sizes, self.ranks)
        found: dict[str, Any] = self.confusion.scores()
        if self.has_aux:
            found["miou_aux"] = self.aux.mean_iou()
        if self.has_boundary:
            found["boundary_f"] = self.boundary.mean_f_score()
        iou = dict(zip(self.classes.names, self.confusion.iou().tolist(), strict=True))
        return {**found, "iou": iou, "protocol": self._protocol(protocol)}

    def _protocol(self, protocol: str) -> str:
        shapes = sorted({(int(high), int(wide)) for high, wide in self.sizes if high})
        named = [f"{wide}x{high}" for high, wide in shapes]
        size = named[0] if len(named) == 1 else f"{len(named)} sizes {named[0]} to {named[-1]}"
        count = len(self.classes)
        absent = int((self.confusion.true_pixels == 0).sum())
        missing = f" ({absent} without a labelled pixel)" if absent else ""
        text = (
            f"{protocol}, {size}, upsampling align_corners=True, mIoU over all "
            f"{count} classes{missing}"
        )
        if self.has_boundary:
            near = f"{self.tolerance} pixels" if self.tolerance else "0.75 % of the diagonal"
            text += f", boundary F within {near}"
        return text


# Figures that belong on the second line of :func:`figure_lines`, in order.
FIGURE_TITLES = {
    "miou_present": "mIoU of present classes",
    "miou_aux": "mIoU of the auxiliary head",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "boundary_f": "boundary F",
}


def figure_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The figure with its protocol, the others, one line per class.

    Args:
        metrics: of :meth:`SplitFigures.metrics`; of anything else, the result is empty.
    """
    if "miou" not in metrics:
        return []
    others = [
        f"{title} {metrics[name]:.2%}" for name, title in FIGURE_TITLES.items() if name in metrics
    ]
    width = max(len(name) for name in metrics["iou"])
    return [
        f"mIoU {metrics['miou']:.2%}: {metrics['protocol']}",
        ", ".join(others),
        *(f"  {name:<{width}} {value:7.2%}" for name, value in metrics["iou"].items()),
    ]
