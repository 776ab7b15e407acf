"""Measuring SANet on a split: mean IoU and its companions, the same on any number of ranks."""

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.data import EvaluationSampler, Loader
from model_utils.distributed import Ranks, gather_parts, sum_over_ranks
from model_utils.errors import UserError
from model_utils.logs import Progress
from model_utils.metrics.segmentation import BoundaryScore, ConfusionMatrix
from model_utils.windows import resize_aligned

from .config import SANetConfig
from .dataset import SegmentationDataset
from .imagenet import ImageFolder
from .multiscale import Protocol, Scorer, exp_scores
from .network import SANetNetwork
from .prediction import Prediction
from .report import Report
from .submission import Submission

log = logging.getLogger("zoo")
# Normalised images (N, 3, H, W) to one or more class maps each, uint8 (N, M, H, W).
Classifier = Callable[[np.ndarray], np.ndarray]


class ClassMaps(nn.Cell):
    """Classes by the main and the auxiliary head, both resized with aligned corners."""

    def __init__(self, network: SANetNetwork) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, image: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to class numbers int32 (N, 2, H, W)."""
        aux, main, _ = self.network(image)
        size = ops.shape(image)[2:]
        resize = ops.ResizeBilinearV2(True, False)
        largest = ops.Argmax(axis=1, output_type=ms.int32)
        return ops.stack((largest(resize(main, size)), largest(resize(aux, size))), 1)


class _Compiled:
    """A Cell on host arrays; one graph for the first shape, one for all others together.

    Compiling takes seconds and is never given back, so that a graph for every size of a folder
    of photographs, or for every zoom, would not do.
    """

    def __init__(self, build: Callable[[], nn.Cell]) -> None:
        self.fixed, self.free = build(), build()
        self.free.set_inputs(Tensor(shape=(None, 3, None, None), dtype=ms.float32))
        self.shape: tuple[int, ...] | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.shape = self.shape or images.shape
        cell = self.fixed if images.shape == self.shape else self.free
        return cell(Tensor(images)).asnumpy()

    def set_train(self, mode: bool) -> None:
        self.fixed.set_train(mode)
        self.free.set_train(mode)


@functools.lru_cache(maxsize=3)
def _compiled(network: nn.Cell, output: str) -> _Compiled:
    """Kept, so that the next evaluation of the same network does not compile again."""
    if output == "both":
        return _Compiled(lambda: ClassMaps(network))
    return _Compiled(lambda: Prediction(network, output))


def scorer_of(network: SANetNetwork) -> Scorer:
    """Main logits of a network, compiled once."""
    cell = _compiled(network, "logits")
    cell.set_train(False)
    return cell


def classifier_of(
    source: SANetNetwork | Scorer, classes: int, protocol: Protocol, aux: bool = False
) -> Classifier:
    """What gives class maps of images.

    Args:
        source: a network, or anything that gives main logits.
        classes: how many there are in the data.
        protocol: how images are scored.
        aux: also the auxiliary head's classes, as a second map, if ``source`` has it and every
            image goes through the network once.

    Raises:
        UserError: the network has another number of classes.
    """
    if isinstance(source, nn.Cell):
        _require_count(source.final_layer.conv2.out_channels, classes)
        if protocol.single:
            cell = _compiled(source, "both" if aux else "classes")
            cell.set_train(False)
            return lambda images: _four_axes(cell(images))
        source = scorer_of(source)
    scorer: Scorer = source

    def checked(images: np.ndarray) -> np.ndarray:
        logits = scorer(images)
        _require_count(logits.shape[1], classes)
        return logits

    def single(images: np.ndarray) -> np.ndarray:
        return _four_axes(resize_aligned(checked(images), images.shape[2:]).argmax(axis=1))

    def summed(images: np.ndarray) -> np.ndarray:
        maps = [exp_scores(checked, image, protocol).classes() for image in images]
        return _four_axes(np.stack(maps))

    return single if protocol.single else summed


def _four_axes(maps: np.ndarray) -> np.ndarray:
    maps = maps.astype(np.uint8)
    return maps[:, None] if maps.ndim == 3 else maps


def _require_count(outputs: int, classes: int) -> None:
    if outputs != classes:
        raise UserError(
            f"the network tells {outputs} classes apart, the data has {classes}; use the "
            "data set the checkpoint was trained for, or leave 'classes' at 0 when training"
        )


def evaluate(
    source: SANetNetwork | Scorer,
    dataset: SegmentationDataset,
    config: SANetConfig,
    ranks: Ranks,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure a network, or whatever gives logits, on whole images.

    Args:
        source: a network in evaluation mode, or a scorer (N, 3, H, W) -> (N, K, h, w).
        dataset: the split; random changes are left out.
        config: ``evaluate`` and ``data``.
        ranks: this process's place; all get the same figures.
        output: where the first rank writes predictions, pictures and tables; None writes none
            and leaves out the auxiliary head.

    Returns:
        ``miou``, ``miou_present``, ``pixel_accuracy``, ``mean_accuracy``,
        ``frequency_weighted_iou``, ``boundary_f`` in [0, 1], and of a network at a single scale
        ``miou_aux``; ``iou`` by class name; ``protocol`` in words. Without any labelled pixel
        all figures are 0. Of data without masks only what the submission adds
        (:meth:`submission.Submission.finish`).

    Raises:
        UserError: no masks and no submission wanted, or another number of classes than the
            network's.
    """
    dataset = _whole_images(dataset)
    labelled = any(pair.mask is not None for pair in dataset.pairs)
    # Only one rank has an output folder; what is measured must not depend on the rank.
    writes = bool(sum_over_ranks(np.array([output is not None]), ranks)[0])
    if not labelled and not (config.evaluate.submission and writes):
        raise UserError(
            f"none of the {len(dataset)} images has a mask, so there is nothing to measure; "
            "--submission=true writes predictions to hand in"
        )
    if not labelled:
        if output is None:
            return {}
        ranks = Ranks()
    protocol = Protocol.of(config)
    aux = writes and labelled and protocol.single and isinstance(source, nn.Cell)
    classify = classifier_of(source, len(dataset.classes), protocol, aux)
    figures = _Figures(dataset, config, ranks, aux)
    sinks: list[Report | Submission] = []
    if output is not None:
        sinks.append(Report(output, dataset, config.evaluate.pictures))
        if config.evaluate.submission:
            sinks.append(Submission(output, dataset.classes))

    sampler = EvaluationSampler(len(dataset), 1, ranks)
    for index, label, maps in _predictions(classify, dataset, sampler, config, ranks.first):
        figures.add(index, label, maps)
        for sink in sinks:
            sink.add(index, dataset, label, maps[0])
    metrics = figures.metrics(protocol) if labelled else {}
    if ranks.size > 1 and sinks:
        # Only this rank writes: what the others measured is predicted once more.
        rest = _Chosen(
            [
                index
                for index in range(len(dataset))
                if index not in sampler.indices and any(sink.wants(index) for sink in sinks)
            ]
        )
        for index, label, maps in _predictions(classify, dataset, rest, config, True):
            for sink in sinks:
                sink.add(index, dataset, label, maps[0])
    for sink in sinks:
        metrics.update(sink.finish(figures.confusion, figures.boundary, dataset))
    return metrics


def _whole_images(dataset: SegmentationDataset) -> SegmentationDataset:
    """The same images without random changes, for measuring on the training split."""
    if dataset.augmentation is None:
        return dataset
    whole = copy.copy(dataset)
    whole.augmentation = None
    return whole


class _Chosen(EvaluationSampler):
    """Given samples, one after the other."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices  # type: ignore[assignment]
        self.batch_size = 1


def _predictions(
    classify: Classifier,
    dataset: SegmentationDataset,
    sampler: EvaluationSampler,
    config: SANetConfig,
    show: bool,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Index, label (H, W) and class maps (M, H, W) of samples, images of one size together."""
    data, size = config.data, config.evaluate.batch_size
    loader = Loader(dataset, sampler, config.seed, data.workers, data.worker_kind)
    progress = Progress(len(sampler.indices), "evaluating", show=show, unit="image")
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def flush(group: list[tuple[int, np.ndarray, np.ndarray]]) -> Iterator[tuple]:
        # Filled up to a full batch, so that one graph serves all.
        images = np.stack([group[place % len(group)][1] for place in range(size)])
        for (index, _, label), maps in zip(group, classify(images), strict=False):
            yield index, label, maps
        progress.advance(len(group))
        group.clear()

    batches = loader.batches(0, len(sampler))
    for index, (images, labels, *_) in zip(sampler.indices, batches, strict=True):
        group = waiting.setdefault(images.shape[2:], [])
        group.append((index, images[0], labels[0]))
        if len(group) == size:
            yield from flush(group)
    for group in waiting.values():
        if group:
            yield from flush(group)
    progress.close()


class _Figures:
    """Everything counted over a split."""

    def __init__(
        self, dataset: SegmentationDataset, config: SANetConfig, ranks: Ranks, has_aux: bool
    ) -> None:
        self.classes, self.ranks, self.length = dataset.classes, ranks, len(dataset)
        count = len(dataset.classes)
        self.tolerance = config.evaluate.boundary_tolerance
        self.confusion = ConfusionMatrix(count)
        self.aux = ConfusionMatrix(count)
        self.boundary = BoundaryScore(count, self.tolerance)
        self.part = EvaluationSampler(self.length, 1, ranks).indices
        self.sizes = np.zeros((2, len(self.part)), np.int64)
        self.has_aux = has_aux

    def add(self, index: int, label: np.ndarray, maps: np.ndarray) -> None:
        """Count one image."""
        self.confusion.update(label, maps[0])
        self.boundary.update(label, maps[0])
        if self.has_aux:
            self.aux.update(label, maps[1])
        self.sizes[:, index - self.part.start] = label.shape

    def metrics(self, protocol: Protocol) -> dict[str, Any]:
        """The figures over all ranks."""
        for counts in (self.confusion, self.aux, self.boundary):
            counts.sum_over(self.ranks)
        sizes = [gather_parts(side, self.part, self.length, self.ranks) for side in self.sizes]
        found: dict[str, Any] = self.confusion.scores()
        if self.has_aux:
            found["miou_aux"] = self.aux.mean_iou()
        found["boundary_f"] = self.boundary.mean_f_score()
        iou = dict(zip(self.classes.names, self.confusion.iou().tolist(), strict=True))
        return {**found, "iou": iou, "protocol": self._protocol(protocol, sizes)}

    def _protocol(self, protocol: Protocol, sizes: list[np.ndarray]) -> str:
        shapes = sorted({(int(high), int(wide)) for high, wide in zip(*sizes, strict=True)})
        named = [f"{wide}x{high}" for high, wide in shapes]
        size = named[0] if len(named) == 1 else f"{len(named)} sizes {named[0]} to {named[-1]}"
        count = len(self.classes)
        absent = int((self.confusion.true_pixels == 0).sum())
        missing = f" ({absent} without a labelled pixel)" if absent else ""
        near = f"{self.tolerance} pixels" if self.tolerance else "0.75 % of the diagonal"
        return (
            f"{protocol.describe()}, {size}, upsampling align_corners=True, mIoU over all "
            f"{count} classes{missing}, boundary F within {near}"
        )


def protocol_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What eval.py prints: the figure with its protocol, the others, one line per class.

    Args:
        metrics: of :func:`evaluate`; of anything else, the result is empty.
    """
    lines = []
    if "miou" in metrics:
        lines.append(f"mIoU {metrics['miou']:.2%}: {metrics['protocol']}")
        others = [
            f"{title} {metrics[name]:.2%}"
            for name, title in (
                ("miou_present", "mIoU of present classes"),
                ("miou_aux", "mIoU of the auxiliary head"),
                ("pixel_accuracy", "pixel accuracy"),
                ("mean_accuracy", "mean accuracy"),
                ("frequency_weighted_iou", "frequency-weighted IoU"),
                ("boundary_f", "boundary F"),
            )
            if name in metrics
        ]
        lines.append(", ".join(others))
        width = max(len(name) for name in metrics["iou"])
        lines += [f"  {name:<{width}} {value:7.2%}" for name, value in metrics["iou"].items()]
    if "submission" in metrics:
        lines.append(
            f"submission of {metrics['submitted']} images in {metrics['submission']}, "
            + (
                f"{metrics['submission_faults']} faults (listed above)"
                if metrics["submission_faults"]
                else "no fault found"
            )
        )
    return lines


def evaluate_classifier(
    network: nn.Cell, dataset: ImageFolder, config: SANetConfig, ranks: Ranks
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy of the ImageNet build, in [0, 1].

    Args:
        network: images (N, 3, H, W) to logits (N, K).
        dataset: images of one size with class numbers.
        config: ``evaluate.batch_size`` and ``data``.
        ranks: this process's place; all get the same figures.
    """
    size, data = config.evaluate.batch_size, config.data
    sampler = EvaluationSampler(len(dataset), size, ranks)
    loader = Loader(dataset, sampler, config.seed, data.workers, data.worker_kind)
    progress = Progress(len(sampler.indices), "evaluating", show=ranks.first, unit="image")
    network.set_train(False)
    hits = np.zeros(2, np.int64)
    for images, numbers in loader.batches(0, len(sampler)):
        count = len(numbers)
        logits = network(Tensor(np.resize(images, (size, *images.shape[1:])))).asnumpy()[:count]
        if int(numbers.max()) >= logits.shape[1]:
            raise UserError(
                f"the data has class number {numbers.max()}, the network only "
                f"{logits.shape[1]} classes; set 'classes' to the data's number and train again"
            )
        # Rank of the true class; equal logits of other classes, and NaN, count against it.
        true = logits[np.arange(count), numbers][:, None]
        place = (~(logits < true)).sum(axis=1)
        hits += [(place <= 1).sum(), (place <= 5).sum()]
        progress.advance(count)
    progress.close()
    top1, top5 = sum_over_ranks(hits, ranks) / len(dataset)
    return {"top1": float(top1), "top5": float(top5)}
