"""Measuring PFNet on a split: mean IoU and its companions, the same on any number of ranks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from model_utils.data import EvaluationSampler
from model_utils.distributed import Ranks, sum_over_ranks
from model_utils.errors import UserError
from model_utils.files import write_image
from model_utils.metrics.segmentation import ConfusionMatrix
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

from .boundary import ImageBoundaryScores
from .config import PFNetConfig
from .mosaic import Mosaic, MosaicPlan
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
        In [0, 1]: ``miou`` over all classes (absent ones count 0), ``miou_present`` over those
        that were labelled or predicted (the reference's), ``pixel_accuracy``, ``mean_accuracy``,
        ``frequency_weighted_iou``, ``mean_f``; by class name ``iou``, ``precision``, ``recall``,
        ``f_score`` (weighted by ``evaluate.beta``); ``protocol`` in words. If images are patches
        of larger ones (:class:`mosaic.Patch`), ``mosaic``: the same figures of the whole images
        and their number, ``images``. With an output ``boundary_f`` (pooled over images), and
        ``boundary_f_by_image``: by tolerance the reference's mean F and by class. Without any
        labelled pixel all figures are 0.

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
    protocol, counted = Protocol.of(config), len(dataset.classes)
    figures = _Figures(dataset, config, ranks, writes, output)
    process: Callable[[np.ndarray], np.ndarray]
    if figures.mosaic is None:
        process, largest = classifier_of(source, counted, protocol), _first_map
    else:
        process, largest = scores_of(source, counted, protocol), _largest
    report = Report(output, dataset, config.evaluate.pictures) if output is not None else None
    sampler, in_order = figures.sampler, figures.mosaic is not None
    for index, label, result in results(
        process, dataset, sampler, config, ranks.first, ordered=in_order
    ):
        classes = largest(result)
        figures.add(index, label, classes, result)
        if report:
            report.add(index, dataset, label, classes)
    metrics = figures.metrics(protocol.describe())
    if report:
        # Only this rank writes: what the others measured is predicted once more.
        rest = figures.rest(report.wants)
        for index, label, result in results(
            process, dataset, ChosenSampler(rest), config, False, ordered=in_order
        ):
            report.add(index, dataset, label, largest(result))
            figures.draw(index, label, result)
        figures.finish()
        metrics.update(report.finish(figures.split.confusion, figures.split.boundary, dataset))
    return metrics


def _first_map(maps: np.ndarray) -> np.ndarray:
    return maps[0]


def _largest(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=0).astype(np.uint8)


class _Figures:
    """Everything counted over a split: patch by patch, whole images, boundaries.

    Args:
        dataset: the split.
        config: ``evaluate``.
        ranks: this process's place.
        boundaries: measure boundaries, too.
        output: where class maps of whole images are written; None writes none.
    """

    def __init__(
        self,
        dataset: SegmentationData,
        config: PFNetConfig,
        ranks: Ranks,
        boundaries: bool,
        output: Path | None,
    ) -> None:
        keys, self.ranks, self.classes = config.evaluate, ranks, dataset.classes
        self.beta, count = keys.beta, len(dataset)
        self.split = SplitFigures(dataset, ranks, has_boundary=boundaries)
        self.by_image: ImageBoundaryScores | None = None
        if boundaries:
            self.by_image = ImageBoundaryScores(count, len(self.classes), keys.boundary_thresholds)
        self.mosaic: Mosaic | None = None
        self.sampler = EvaluationSampler(count, 1, ranks)
        self.order: Sequence[int] = range(count)
        # Resized patches no longer fit together.
        plan = MosaicPlan([dataset.name(index) for index in range(count)])
        if keys.mosaic and not keys.resize and plan.patches:
            self.mosaic = Mosaic(plan, len(self.classes))
            self.sampler = ChosenSampler(plan.order(ranks))
            self.order = plan.order(Ranks())
            if output is not None:
                self.mosaic.draw_to(functools.partial(self._write, output), keys.pictures)

    def add(self, index: int, label: np.ndarray, classes: np.ndarray, result: np.ndarray) -> None:
        """Count one image: label and classes (H, W), and logits (K, H, W) for mosaics."""
        self.split.add(index, label, classes[None])
        if self.by_image:
            self.by_image.add(index, label, classes)
        if self.mosaic:
            self.mosaic.add(index, label, result)

    def rest(self, wanted: Callable[[int], bool]) -> list[int]:
        """Images to draw that another rank has measured: those ``wanted``, those of mosaics."""
        mine = set(self.sampler.indices)
        drawn = self.mosaic.drawn_members if self.mosaic else set()
        return [i for i in self.order if i not in mine and (i in drawn or wanted(i))]

    def draw(self, index: int, label: np.ndarray, result: np.ndarray) -> None:
        """Add one of the ``rest`` to its mosaic, after ``metrics``: it is drawn, not counted."""
        if self.mosaic and index in self.mosaic.drawn_members:
            self.mosaic.add(index, label, result)

    def finish(self) -> None:
        """Write the last mosaic."""
        if self.mosaic:
            self.mosaic.finish()

    def _write(self, output: Path, source: str, classes: np.ndarray) -> None:
        # Images elsewhere than in the data's folder have absolute names.
        below = [part for part in Path(source).parts if part not in ("..", Path(source).anchor)]
        stem = output.joinpath("whole_images", *below)
        write_image(stem.with_name(f"{stem.name}_classes.png"), classes)
        write_image(stem.with_name(f"{stem.name}_colours.png"), self.classes.colourise(classes))

    def metrics(self, protocol: str) -> dict[str, Any]:
        """The figures over all ranks, which all must call."""
        found = self.split.metrics(protocol)
        found.update(self._class_scores(self.split.confusion))
        if self.mosaic:
            self.mosaic.finish()
            confusion = self.mosaic.confusion.sum_over(self.ranks)
            images = int(sum_over_ranks(np.array([self.mosaic.images]), self.ranks)[0])
            iou = self._by_name(confusion.iou())
            if images:  # none if names only look like those of patches
                found["mosaic"] = {
                    **confusion.scores(),
                    "iou": iou,
                    **self._class_scores(confusion),
                    "images": images,
                }
        if self.by_image:
            found["boundary_f_by_image"] = {
                f"{threshold:g}": {"mean": float(f.mean()), "classes": self._by_name(f)}
                for threshold, f in self.by_image.f_scores(self.ranks).items()
            }
        return found

    def _class_scores(self, confusion: ConfusionMatrix) -> dict[str, Any]:
        f_score = f_beta(confusion, self.beta)
        true = confusion.true_pixels > 0
        return {
            "mean_f": float(f_score[true].mean()) if true.any() else 0.0,
            "beta": self.beta,
            "precision": self._by_name(confusion.precision()),
            "recall": self._by_name(confusion.accuracy()),
            "f_score": self._by_name(f_score),
        }

    def _by_name(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.classes.names, values.tolist(), strict=True))


def f_beta(confusion: ConfusionMatrix, beta: float = 1.0) -> np.ndarray:
    """(K,) weighted harmonic mean of precision and recall, van Rijsbergen's F.

    Args:
        confusion: over a split.
        beta: weight of recall; 0 leaves precision alone. The original's own formula is right for
            1 only.
    """
    precision, recall, square = confusion.precision(), confusion.accuracy(), beta * beta
    total = square * precision + recall
    weighted = (1 + square) * precision * recall
    return np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)


def protocol_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What eval.py prints: the figure with its protocol, the others, one line per class.

    Patch by patch first, then whole images, then boundaries, each said to be so.

    Args:
        metrics: of :func:`evaluate`; of anything else, the result is empty.
    """
    lines = figure_lines(metrics)
    if not lines:
        return []
    mosaic = metrics.get("mosaic")
    width = max(len(name) for name in metrics["iou"])
    headings = ["IoU", "precision", "recall", f"F{metrics['beta']:g}"]
    columns = [metrics[key] for key in ("iou", "precision", "recall", "f_score")]
    if mosaic:
        headings.append("IoU in whole images")
        columns.append(mosaic["iou"])
    lines = lines[:2] + ["  ".join([" " * (width + 2), *(f"{h:>9}" for h in headings)])]
    for name in metrics["iou"]:
        cells = (
            f"{column[name]:>{max(9, len(h))}.2%}"
            for column, h in zip(columns, headings, strict=True)
        )
        lines.append("  ".join([f"  {name:<{width}}", *cells]))
    lines.append(f"mean F{metrics['beta']:g} of labelled classes {metrics['mean_f']:.2%}")
    if mosaic:
        lines[0] = lines[0].replace("mIoU ", "mIoU, patch by patch, ", 1)
        lines.append(
            f"mIoU of the {mosaic['images']} whole images {mosaic['miou']:.2%}, of present classes "
            f"{mosaic['miou_present']:.2%}, pixel accuracy {mosaic['pixel_accuracy']:.2%}: patches "
            "put together, mean of logits where they overlap, every pixel counted once"
        )
    if "boundary_f_by_image" in metrics:
        listed = ", ".join(
            f"{f['mean']:.2%} within {_tolerance(key)}"
            for key, f in metrics["boundary_f_by_image"].items()
        )
        lines.append(f"boundary F, mean over images and classes (absent ones count 1): {listed}")
    return lines


def _tolerance(threshold: str) -> str:
    value = float(threshold)
    return f"{value:g} pixels" if value >= 1 else f"{100 * value:g} % of the diagonal"
