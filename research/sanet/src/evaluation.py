"""Measuring SANet on a split: mean IoU and its companions, the same on any number of ranks."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.data import EvaluationSampler, Loader
from model_utils.distributed import Ranks, sum_over_ranks
from model_utils.errors import UserError
from model_utils.logs import Progress
from model_utils.segmentation_evaluation import (
    ChosenSampler,
    Classifier,
    CompiledCell,
    Scorer,
    SplitFigures,
    figure_lines,
    four_axes,
    has_masks,
    require_class_count,
    results,
    whole_images,
)
from model_utils.segmentation_report import Report
from model_utils.windows import resize_aligned

from .config import SANetConfig
from .dataset import SegmentationDataset
from .imagenet import ImageFolder
from .multiscale import Protocol, exp_scores
from .network import SANetNetwork
from .prediction import Prediction
from .submission import Submission

log = logging.getLogger("zoo")


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


@functools.lru_cache(maxsize=3)
def _compiled(network: nn.Cell, output: str) -> CompiledCell:
    """Kept, so that the next evaluation of the same network does not compile again."""
    if output == "both":
        return CompiledCell(lambda: ClassMaps(network))
    return CompiledCell(lambda: Prediction(network, output))


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
        require_class_count(source.final_layer.conv2.out_channels, classes)
        if protocol.single:
            cell = _compiled(source, "both" if aux else "classes")
            cell.set_train(False)
            return lambda images: four_axes(cell(images))
        source = scorer_of(source)
    scorer: Scorer = source

    def checked(images: np.ndarray) -> np.ndarray:
        logits = scorer(images)
        require_class_count(logits.shape[1], classes)
        return logits

    def single(images: np.ndarray) -> np.ndarray:
        return four_axes(resize_aligned(checked(images), images.shape[2:]).argmax(axis=1))

    def summed(images: np.ndarray) -> np.ndarray:
        maps = [exp_scores(checked, image, protocol).classes() for image in images]
        return four_axes(np.stack(maps))

    return single if protocol.single else summed


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
    dataset = whole_images(dataset)
    labelled = has_masks(dataset)
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
    figures = SplitFigures(dataset, ranks, config.evaluate.boundary_tolerance, aux)
    sinks: list[Report | Submission] = []
    if output is not None:
        sinks.append(Report(output, dataset, config.evaluate.pictures))
        if config.evaluate.submission:
            sinks.append(Submission(output, dataset.classes))

    sampler = EvaluationSampler(len(dataset), 1, ranks)
    for index, label, maps in results(classify, dataset, sampler, config, ranks.first):
        figures.add(index, label, maps)
        for sink in sinks:
            sink.add(index, dataset, label, maps[0])
    metrics = figures.metrics(protocol.describe()) if labelled else {}
    if ranks.size > 1 and sinks:
        # Only this rank writes: what the others measured is predicted once more.
        rest = ChosenSampler(
            [
                index
                for index in range(len(dataset))
                if index not in sampler.indices and any(sink.wants(index) for sink in sinks)
            ]
        )
        for index, label, maps in results(classify, dataset, rest, config, True):
            for sink in sinks:
                sink.add(index, dataset, label, maps[0])
    for sink in sinks:
        metrics.update(sink.finish(figures.confusion, figures.boundary, dataset))
    return metrics


def protocol_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What eval.py prints: the figure with its protocol, the others, one line per class.

    Args:
        metrics: of :func:`evaluate`; of anything else, the result is empty.
    """
    lines = figure_lines(metrics)
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
