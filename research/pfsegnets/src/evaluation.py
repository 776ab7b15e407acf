"""Measuring PFNet on a split: mean IoU and its companions, the same on any number of ranks."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from model_utils.data import EvaluationSampler
from model_utils.distributed import Ranks, sum_over_ranks
from model_utils.errors import UserError
from model_utils.segmentation_evaluation import (
    ChosenSampler,
    Classifier,
    CompiledCell,
    Scorer,
    SegmentationData,
    SplitFigures,
    figure_lines,
    four_axes,
    has_masks,
    require_class_count,
    results,
    whole_images,
)
from model_utils.segmentation_report import Report

from .config import PFNetConfig
from .multiscale import Protocol, full_logits, mean_logits, padded
from .prediction import Prediction


@functools.lru_cache(maxsize=3)
def _compiled(network: nn.Cell, output: str) -> CompiledCell:
    """Kept, so that the next evaluation of the same network does not compile again.

    The number of points and the pooling windows follow from the size, so that every size has a
    graph of its own.
    """
    return CompiledCell(lambda: Prediction(network, output), free=False)


def scorer_of(network: nn.Cell, output: str = "logits") -> Scorer:
    """A network on arrays, compiled once per size.

    Args:
        network: PFNet.
        output: see :class:`prediction.Prediction`.
    """
    cell = _compiled(network, output)
    cell.set_train(False)
    return cell


def classifier_of(source: nn.Cell | Scorer, classes: int, protocol: Protocol) -> Classifier:
    """What gives class maps (N, 1, H, W) of normalised images (N, 3, H, W) of any size.

    Args:
        source: a network, or anything that gives logits of sides that are multiples of 32.
        classes: how many there are in the data.
        protocol: how images are scored.
    """
    if isinstance(source, nn.Cell) and protocol.single:
        _require_classes(source, classes)
        cell = scorer_of(source, "classes")

        def maps(images: np.ndarray) -> np.ndarray:
            height, width = images.shape[2:]
            return four_axes(cell(padded(images, protocol.least))[:, :height, :width])

        return maps
    scores = scores_of(source, classes, protocol)
    return lambda images: four_axes(np.stack([s.argmax(axis=0) for s in scores(images)]))


def scores_of(
    source: nn.Cell | Scorer, classes: int, protocol: Protocol
) -> Callable[[np.ndarray], np.ndarray]:
    """What gives mean logits (N, K, H, W) of normalised images (N, 3, H, W) of any size.

    Args:
        source: a network, or anything that gives logits of sides that are multiples of 32.
        classes: how many there are in the data.
        protocol: how images are scored.

    Raises:
        UserError: the network has another number of classes.
    """
    if isinstance(source, nn.Cell):
        _require_classes(source, classes)
        scorer = scorer_of(source, "scores" if protocol.single else "logits")
    else:
        scorer = source

    def checked(images: np.ndarray) -> np.ndarray:
        logits = scorer(images)
        require_class_count(logits.shape[1], classes)
        return logits

    if protocol.single:
        return lambda images: full_logits(checked, images, protocol.least)
    return lambda images: np.stack([mean_logits(checked, image, protocol) for image in images])


def _require_classes(network: nn.Cell, classes: int) -> None:
    require_class_count(network.head.conv_last[1].out_channels, classes)


def evaluate(
    source: nn.Cell | Scorer,
    dataset: SegmentationData,
    config: PFNetConfig,
    ranks: Ranks,
    output: Path | None = None,
) -> dict[str, Any]:
    """Measure a network, or whatever gives logits, on whole images.

    Args:
        source: PFNet in evaluation mode, or a scorer (N, 3, H, W) -> (N, K, h, w) of images whose
            sides are multiples of 32.
        dataset: the split; random changes are left out.
        config: ``evaluate`` and ``data``.
        ranks: this process's place; all get the same figures.
        output: where the first rank writes predictions, pictures and tables; None writes none
            and leaves out the boundary F-score.

    Returns:
        ``miou`` over all classes (absent ones count 0), ``miou_present`` over those that were
        labelled or predicted (the reference's), ``pixel_accuracy``, ``mean_accuracy``,
        ``frequency_weighted_iou``, and with an output ``boundary_f``, in [0, 1]; ``iou`` by class
        name; ``protocol`` in words. Without any labelled pixel all figures are 0.

    Raises:
        UserError: no masks, or another number of classes than the network's.
    """
    dataset = whole_images(dataset)
    if not has_masks(dataset):
        raise UserError(
            f"none of the {len(dataset)} images has a mask, so there is nothing to measure; "
            "infer.py segments images without masks"
        )
    # Only one rank has an output folder; what is measured must not depend on the rank.
    writes = bool(sum_over_ranks(np.array([output is not None]), ranks)[0])
    protocol = Protocol.of(config)
    classify = classifier_of(source, len(dataset.classes), protocol)
    figures = SplitFigures(dataset, ranks, has_boundary=writes)
    report = Report(output, dataset, config.evaluate.pictures) if output is not None else None
    sampler = EvaluationSampler(len(dataset), 1, ranks)
    for index, label, maps in results(classify, dataset, sampler, config, ranks.first):
        figures.add(index, label, maps)
        if report:
            report.add(index, dataset, label, maps[0])
    metrics = figures.metrics(protocol.describe())
    if report:
        # Only this rank writes: what the others measured is predicted once more.
        others = set(range(len(dataset))) - set(sampler.indices)
        rest = ChosenSampler(sorted(filter(report.wants, others)))
        for index, label, maps in results(classify, dataset, rest, config, False):
            report.add(index, dataset, label, maps[0])
        metrics.update(report.finish(figures.confusion, figures.boundary, dataset))
    return metrics


def protocol_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What eval.py prints: the figure with its protocol, the others, one line per class.

    Args:
        metrics: of :func:`evaluate`; of anything else, the result is empty.
    """
    return figure_lines(metrics)
