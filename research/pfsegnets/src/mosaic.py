"""Patches put together to their whole images again, to measure these.

The public data sets are cut into overlapping patches, and a figure over patches counts what lies
in several of them several times. Here the logits of all patches that hold a pixel are averaged,
the largest mean decides, and every pixel of an image counts once. Images pass through strip by
strip, so that memory holds one patch's height of one image, not the image.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model_utils.distributed import Ranks
from model_utils.metrics.segmentation import ConfusionMatrix
from model_utils.segmentation import IGNORE
from model_utils.segmentation_report import spread
from model_utils.tiling import parse_tile

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Patch:
    """Where a patch lies.

    Attributes:
        source: the image it was cut from, with its folder.
        rows: first row and the row after the last.
        columns: first column and the column after the last.
    """

    source: str
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @classmethod
    def of(cls, name: str) -> "Patch | None":
        """The patch that a file holds by its name; None if it is no patch.

        Args:
            name: such as ``val/images/P0003_0_896_512_1408.png``: rows 0 to 895, columns 512 to
                1407 of P0003.
        """
        tile = parse_tile(name)
        if tile is None:
            return None
        top, bottom, left, right = tile.place
        return cls(str(tile.path.parent / tile.stem), (top, bottom), (left, right))


@dataclass(frozen=True)
class Source:
    """One image and its patches.

    Attributes:
        name: see :attr:`Patch.source`.
        members: indices of its patches, in the order in which they are to be added.
        size: rows and columns that the patches cover together.
        along: the axis along which strips follow each other, the longer one.
    """

    name: str
    members: tuple[int, ...]
    size: tuple[int, int]
    along: int


class MosaicPlan:
    """Which images of a split belong together.

    Args:
        names: of all images of the split. Those that are no patches are left out.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.patches = {
            index: patch for index, name in enumerate(names) if (patch := Patch.of(name))
        }
        members: dict[str, list[int]] = {}
        for index, patch in self.patches.items():
            members.setdefault(patch.source, []).append(index)
        self.sources = [self._source(name, found) for name, found in sorted(members.items())]
        self._alone = [index for index in range(len(names)) if index not in self.patches]

    def _source(self, name: str, members: list[int]) -> Source:
        patches = [self.patches[index] for index in members]
        size = max(p.rows[1] for p in patches), max(p.columns[1] for p in patches)
        along = int(size[1] > size[0])
        starts = {i: (self.patches[i].rows[0], self.patches[i].columns[0]) for i in members}
        ordered = sorted(members, key=lambda i: (starts[i][along], starts[i][1 - along]))
        return Source(name, tuple(ordered), size, along)

    def order(self, ranks: Ranks) -> list[int]:
        """The images of a rank: whole sources, about as many patches for every rank."""
        groups = [source.members for source in self.sources] + [(i,) for i in self._alone]
        total = sum(len(group) for group in groups)
        mine: list[int] = []
        before = 0
        for group in groups:
            if before * ranks.size // total == ranks.rank:
                mine += group
            before += len(group)
        return mine


class Mosaic:
    """The confusion matrix over whole images, from patches in a plan's order.

    Args:
        plan: of the split.
        classes: K.
    """

    def __init__(self, plan: MosaicPlan, classes: int) -> None:
        self.plan = plan
        self.drawn_members: set[int] = set()
        self._draw: Callable[[str, np.ndarray], None] | None = None
        self.confusion = ConfusionMatrix(classes)
        self.images = 0
        self._sources = {source.name: source for source in plan.sources}
        self._strip: _Strip | None = None
        self._name = ""
        self._warned = False

    def draw_to(self, draw: Callable[[str, np.ndarray], None], count: int) -> None:
        """Also give the class maps of some sources.

        Args:
            draw: takes a source's name and its classes (H, W) uint8, 255 where no patch lies.
            count: how many, evenly spread; their maps are in memory while their patches come in.
        """
        self._draw = draw
        for place in spread(len(self.plan.sources), count):
            self.drawn_members.update(self.plan.sources[place].members)

    def add(self, index: int, truth: np.ndarray, logits: np.ndarray) -> None:
        """Add one image of the split; what is no patch is left out.

        Args:
            index: of the image.
            truth: (H, W) uint8.
            logits: (K, H, W) float32.
        """
        patch = self.plan.patches.get(index)
        if patch is None:
            return
        if truth.shape != patch.size:
            self._warn(
                f"{patch.source}: a patch named {patch.size[0]}x{patch.size[1]} (rows x columns) "
                f"has {truth.shape[0]}x{truth.shape[1]} pixels; such files are left out of the "
                "whole images"
            )
            return
        if patch.source != self._name:
            self.finish()
            source = self._sources[patch.source]
            self._strip = _Strip(source, self.confusion, index in self.drawn_members)
            self._name = patch.source
        assert self._strip is not None
        if self._strip.add(patch, truth, logits):
            self._warn(
                f"{patch.source}: patches disagree about the true class where they overlap (first "
                f"in the one at row {patch.rows[0]}, column {patch.columns[0]}); the earlier one "
                "counts"
            )

    def _warn(self, text: str) -> None:
        if not self._warned:
            log.warning(text)
        self._warned = True

    def finish(self) -> None:
        """Count what is left of the last image."""
        if self._strip is not None:
            self._strip.close()
            self.images += 1
            if self._strip.map is not None and self._draw:
                self._draw(self._name, self._strip.map)
        self._strip, self._name = None, ""


class _Strip:
    """The part of one image that later patches may still change."""

    def __init__(self, source: Source, confusion: ConfusionMatrix, drawn: bool) -> None:
        self.source, self.confusion = source, confusion
        self.map = np.full(source.size, IGNORE, np.uint8) if drawn else None
        self.first = 0
        across = source.size[1 - source.along]
        # Strips are kept with their direction of travel first: (line, K, across).
        self.logits = np.zeros((0, confusion.classes, across), np.float32)
        self.counts = np.zeros((0, across), np.uint16)
        self.truth = np.zeros((0, across), np.uint8)

    def add(self, patch: Patch, truth: np.ndarray, logits: np.ndarray) -> bool:
        """Add a patch; returns whether an earlier one had another truth."""
        lines, across = patch.rows, patch.columns
        logits = np.moveaxis(logits, 1, 0)  # (H, K, W)
        if self.source.along:
            lines, across = across, lines
            logits, truth = logits.transpose(2, 1, 0), truth.T
        self._count_before(lines[0])
        missing = lines[1] - self.first - len(self.truth)
        if missing > 0:
            beside = ((0, missing), (0, 0))
            self.logits = np.pad(self.logits, ((0, missing), (0, 0), (0, 0)))
            self.counts, self.truth = np.pad(self.counts, beside), np.pad(self.truth, beside)
        place = slice(lines[0] - self.first, lines[1] - self.first), slice(*across)
        self.logits[place[0], :, place[1]] += logits
        known = self.counts[place] > 0
        conflict = bool((known & (self.truth[place] != truth)).any())
        self.truth[place] = np.where(known, self.truth[place], truth)
        self.counts[place] += 1
        return conflict

    def _count_before(self, line: int) -> None:
        """Measure and forget all lines before ``line``."""
        done = min(max(0, line - self.first), len(self.truth))
        covered = self.counts[:done] > 0
        # The sum's largest class is the mean's: a pixel's logits are all divided alike.
        classes = self.logits[:done].argmax(axis=1).astype(np.uint8)
        self.confusion.update(np.where(covered, self.truth[:done], IGNORE), classes)
        if self.map is not None:
            lines = slice(self.first, self.first + done)
            target = self.map.T if self.source.along else self.map
            target[lines] = np.where(covered, classes, IGNORE)
        self.logits, self.counts = self.logits[done:].copy(), self.counts[done:].copy()
        self.truth = self.truth[done:].copy()
        self.first = max(self.first, line) if not len(self.truth) else self.first + done

    def close(self) -> None:
        """Measure what is left."""
        self._count_before(self.first + len(self.truth))
