"""Whole aerial images and masks to overlapping patches, as training reads them.

Images pass through in strips of one patch's height, so that memory does not grow with them.
Whatever is finished stands in ``manifest.jsonl`` beside the patches; the same command goes on
from there after a kill, and repeats no patch but those it was just writing.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from model_utils.errors import UserError
from model_utils.files import FolderLock, explain_os_errors
from model_utils.logs import Progress
from model_utils.manifest import Manifest, write_replacing
from model_utils.png import PngWriter, encode_png
from model_utils.segmentation import ClassTable
from model_utils.tiling import Place, RowReader, column_groups, strips
from model_utils.windows import window_positions

from ..classes import TABLES
from ..config import PFNetConfig
from .conversion import LabelReader
from .sources import Source, find_sources

log = logging.getLogger("zoo")
JobT = TypeVar("JobT")

MANIFEST = "manifest.jsonl"
# Patch side and overlap: iSAID's patches as published results use them, ISPRS by the names of the
# reference's folders.
_PATCHES = {"isaid": (896, 384), "potsdam": (896, 384), "vaihingen": (768, 256)}
# Pixels of a strip that are in memory at once. Wider images are read in columns, from the top for
# each; iSAID's widest have 13,000 x 896.
_STRIP_PIXELS = 16 << 20
# Rows of a mask converted as a whole that are in memory at once.
_ROWS = 256


@dataclass(frozen=True)
class Patches:
    """How an image is divided.

    Attributes:
        height, width: of a patch, less where the image is smaller.
        overlap: rows and columns that neighbours share.
        thin: "crop" or "whole", see ``PrepareConfig``.
    """

    height: int
    width: int
    overlap: int
    thin: str = "crop"

    def __post_init__(self) -> None:
        """Check that patches proceed."""
        if not 0 <= self.overlap < min(self.height, self.width):
            raise UserError(
                f"patches of {self.height} x {self.width} pixels cannot overlap by {self.overlap}; "
                "set prepare.overlap to less than a patch's sides"
            )

    def keeps_whole(self, height: int, width: int) -> bool:
        """Whether an image is copied rather than cropped."""
        return self.thin == "whole" and (height <= self.height or width <= self.width)

    def places(self, height: int, width: int) -> list[Place]:
        """The patches of an image, row by row: the last ones end at the image's border."""
        if self.keeps_whole(height, width):
            return [Place(0, height, 0, width)]
        tops = sorted(set(window_positions(height, self.height, self.height - self.overlap)))
        lefts = sorted(set(window_positions(width, self.width, self.width - self.overlap)))
        return [
            Place(top, min(top + self.height, height), left, min(left + self.width, width))
            for top in tops
            for left in lefts
        ]


@dataclass(frozen=True)
class Job:
    """One whole image, checked.

    Attributes:
        source: its files.
        height, width: its size.
        places: its patches that are still to be made.
    """

    source: Source
    height: int
    width: int
    places: tuple[Place, ...]


def patches_of(config: PFNetConfig) -> Patches:
    """The configured patches, or the data set's own."""
    keys = config.prepare
    side, overlap = _PATCHES[config.data.format]
    return Patches(
        keys.patch_height or side,
        keys.patch_width or side,
        overlap if keys.overlap < 0 else keys.overlap,
        keys.thin,
    )


def mask_ending(config: PFNetConfig) -> str:
    """What follows a patch's name in that of its mask."""
    return "_instance_color_RGB" if config.data.format == "isaid" else "_gray_mask"


class Cropper:
    """Crops images into a folder.

    Args:
        output: the folder; ``<split>/<images>/NAME_y0_y1_x0_x1.png`` and
            ``<split>/<masks>/NAME_y0_y1_x0_x1<ending>.png`` are written.
        patches: how images are divided.
        classes: of the masks, which are written as class numbers.
        manifest: what is finished.
        config: names of folders, bands, unknown colours.
    """

    def __init__(
        self,
        output: Path,
        patches: Patches,
        classes: ClassTable,
        manifest: Manifest,
        config: PFNetConfig,
    ) -> None:
        self.output, self.patches, self.classes = output, patches, classes
        self.manifest, self.config = manifest, config
        self.stop = threading.Event()
        self.written: Callable[[int], None] = lambda count: None

    def plan(self, source: Source) -> Job:
        """Read the sizes of an image and its mask, and look up what is finished.

        Raises:
            UserError: unreadable, neither grey nor RGB, or image and mask differ in size.
        """
        with RowReader(source.image, self.config.prepare.bands) as image:
            size = image.height, image.width
            if image.channels not in (1, 3):
                raise UserError(
                    f"image {source.image} has {image.channels} bands; choose the three that are "
                    "red, green and blue, such as --prepare.bands=1,2,3"
                )
        if source.mask is not None:
            with LabelReader(source.mask, self.classes) as mask:
                if (mask.height, mask.width) != size:
                    raise UserError(
                        f"image {source.image} has {size[0]} x {size[1]} pixels, its mask "
                        f"{source.mask} {mask.height} x {mask.width}; replace the wrong one"
                    )
        places = [
            place for place in self.patches.places(*size) if not self._finished(source, place, size)
        ]
        return Job(source, *size, tuple(places))

    def _paths(self, source: Source, place: Place, size: tuple[int, int]) -> list[str]:
        """Files of a patch relative to the output: the image, then the mask if there is one."""
        data = self.config.data
        whole = self.patches.keeps_whole(*size)
        name = source.name if whole else place.tile_name(source.name)
        paths = [Path(source.split, data.images, f"{name}.png")]
        if source.mask is not None:
            paths.append(Path(source.split, data.masks, f"{name}{mask_ending(self.config)}.png"))
        return [path.as_posix() for path in paths]

    def _finished(self, source: Source, place: Place, size: tuple[int, int]) -> bool:
        paths = self._paths(source, place, size)
        entry = self.manifest.done.get(paths[0])
        expected = {"files": paths, "size": list(size), "sources": _states(source)}
        if entry is None or not entry.items() >= expected.items():
            return False
        return all(
            _length(self.output / path) == length
            for path, length in zip(paths, entry["bytes"], strict=True)
        )

    def crop(self, job: Job) -> None:
        """Write an image's missing patches.

        Raises:
            UserError: a file is corrupt, a colour unknown, the output not writable.
        """
        source = job.source
        missing = set(job.places)
        width = max(place.right - place.left for place in missing)
        height = max(place.bottom - place.top for place in missing)
        lefts = sorted({place.left for place in missing})
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(RowReader(source.image, self.config.prepare.bands))
            mask = None
            if source.mask is not None:
                mask = stack.enter_context(
                    LabelReader(source.mask, self.classes, self.config.prepare.unknown)
                )
            for group in column_groups(lefts, width, max(width, _STRIP_PIXELS // height)):
                first, last = group[0], group[-1] + width
                inside = {place for place in missing if place.left in group}
                tops = sorted({place.top for place in inside})
                images = strips(_columns(image, first, last), tops, height)
                masks = None if mask is None else strips(_columns(mask, first, last), tops, height)
                for top in tops:
                    pixels, labels = next(images), None if masks is None else next(masks)
                    for place in sorted(place for place in inside if place.top == top):
                        if self.stop.is_set():
                            return
                        columns = slice(place.left - first, place.right - first)
                        self._write(
                            job,
                            place,
                            pixels[:, columns],
                            None if labels is None else labels[:, columns],
                        )

    def _write(self, job: Job, place: Place, pixels: np.ndarray, labels: np.ndarray | None) -> None:
        size = job.height, job.width
        paths = self._paths(job.source, place, size)
        lengths = []
        for path, values in zip(paths, (pixels, labels), strict=False):
            data = encode_png(values)
            write_replacing(self.output / path, data)
            lengths.append(len(data))
        self.manifest.add(
            {
                "file": paths[0],
                "files": paths,
                "source": job.source.image.name,
                "sources": _states(job.source),
                "window": list(place),
                "size": list(size),
                "bytes": lengths,
            }
        )
        self.written(1)


def _states(source: Source) -> list[list[int]]:
    """Lengths and times of the source's files, to notice that they were exchanged.

    A corrected TIFF without compression is as long as before, so that the length is not enough.
    """
    return [_state(file) for file in (source.image, source.mask) if file is not None]


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _columns(
    reader: RowReader | LabelReader, left: int, right: int
) -> Callable[[int, int], np.ndarray]:
    return lambda top, bottom: reader.read(top, bottom, left, right)


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def in_parallel(
    work: Callable[[JobT], Any], jobs: Sequence[JobT], workers: int, stop: threading.Event
) -> list[Any]:
    """Results of a function for all jobs, in several threads; the first error ends it.

    Args:
        work: called with each job; it may look at ``stop`` to end early.
        jobs: in the order in which they are begun.
        workers: threads; 0 is the number of processors.
        stop: set when an error ends the rest.
    """
    count = workers or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def settings_of(config: PFNetConfig, patches: Patches, classes: ClassTable) -> dict[str, Any]:
    """What decides what patches look like, for the manifest."""
    return {
        "format": config.data.format,
        "patch": [patches.height, patches.width],
        "overlap": patches.overlap,
        "thin": patches.thin,
        "unknown": config.prepare.unknown,
        "bands": config.prepare.bands,
        "classes": list(classes.names),
    }


def crop_sources(
    sources: Sequence[Source], output: Path, patches: Patches, config: PFNetConfig
) -> int:
    """Crop images and masks into a folder, going on where an earlier call ended.

    Args:
        sources: the whole images.
        output: see :class:`Cropper`.
        patches: how images are divided.
        config: the configuration.

    Returns:
        The number of patches that this call wrote.

    Raises:
        UserError: see :meth:`Cropper.plan` and :meth:`Cropper.crop`; the folder is that of the
            images, of other settings or not writable.
    """
    for source in sources:
        if source.image.parent.resolve() == (output / source.split / config.data.images).resolve():
            raise UserError(
                f"patches would lie among the whole images in {source.image.parent}, and be taken "
                "for some; choose another output_path"
            )
    classes = TABLES[config.data.format]
    manifest = Manifest(output / MANIFEST, settings_of(config, patches, classes))
    with FolderLock(output), manifest:
        folders = {output / source.split / config.data.images for source in sources}
        # A test set without masks gets no folder for them, which readers take for missing masks.
        folders |= {output / source.split / config.data.masks for source in sources if source.mask}
        for path in sorted(folders):
            with explain_os_errors(path):
                path.mkdir(parents=True, exist_ok=True)
        cropper = Cropper(output, patches, classes, manifest, config)
        workers = config.prepare.workers
        jobs = in_parallel(cropper.plan, sources, workers, cropper.stop)
        count = sum(len(job.places) for job in jobs)
        total = sum(len(patches.places(job.height, job.width)) for job in jobs)
        log.info(
            "%d images: %d patches of %d x %d, overlap %d%s",
            len(jobs),
            total,
            patches.height,
            patches.width,
            patches.overlap,
            f"; {total - count} are there already" if count < total else "",
        )
        progress = Progress(total, "cropping", total - count, unit="patch")
        lock = threading.Lock()

        def written(number: int) -> None:
            with lock:
                progress.advance(number)

        cropper.written = written
        # The largest first, so that none is begun when the others are done.
        remaining = sorted(
            (job for job in jobs if job.places), key=lambda job: -job.height * job.width
        )
        try:
            in_parallel(cropper.crop, remaining, workers, cropper.stop)
        finally:
            progress.close()
    return count


def convert_masks(sources: Sequence[Source], output: Path, config: PFNetConfig) -> int:
    """Masks as they are, from class colours to class numbers, under their own names as PNG.

    Args:
        sources: images, of which only the masks count.
        output: ``<split>/<masks>/NAME.png`` is written.
        config: names of folders, unknown colours, format of the data.

    Returns:
        The number of masks that this call wrote.

    Raises:
        UserError: a corrupt mask, an unknown colour, a mask that would replace itself, the
            folder is of other settings or not writable.
    """
    classes = TABLES[config.data.format]
    settings = {
        "format": config.data.format,
        "unknown": config.prepare.unknown,
        "classes": list(classes.names),
    }
    manifest = Manifest(output / "manifest_masks.jsonl", settings)
    stop = threading.Event()

    def convert(source: Source) -> None:
        if stop.is_set() or source.mask is None:
            return
        name = Path(source.split, config.data.masks, f"{source.mask.stem}.png").as_posix()
        target = output / name
        if target.resolve() == source.mask.resolve():
            raise UserError(
                f"{target} would replace the mask it is made of; choose another output_path or "
                "data.masks (save_file_name)"
            )
        done, state = manifest.done.get(name, {}), _state(source.mask)
        if done.get("state") != state or _length(target) != done["bytes"]:
            length = _convert(source.mask, target, classes, config.prepare.unknown)
            entry = {"file": name, "source": source.mask.name, "state": state, "bytes": length}
            manifest.add(entry)
            new.append(name)
        with lock:
            progress.advance()

    masks = [source for source in sources if source.mask is not None]
    new: list[str] = []
    lock = threading.Lock()
    with FolderLock(output), manifest:
        progress = Progress(len(masks), "converting", unit="mask")
        try:
            in_parallel(convert, masks, config.prepare.workers, stop)
        finally:
            progress.close()
    return len(new)


def _convert(source: Path, target: Path, classes: ClassTable, unknown: str) -> int:
    temporary = target.with_name(f".{target.name}.part")
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with LabelReader(source, classes, unknown) as mask, open(temporary, "wb") as stream:
            with PngWriter(stream, mask.height, mask.width) as writer:
                for top in range(0, mask.height, _ROWS):
                    writer.write(mask.read(top, min(top + _ROWS, mask.height)))
            length = stream.tell()
        os.replace(temporary, target)
    return length


def _prepare(config: PFNetConfig, output: Path, formats: Sequence[str]) -> None:
    if config.data.format not in formats:
        raise UserError(
            f"this tool prepares {' and '.join(formats)}, not {config.data.format}; set "
            "--data.format, or use the tool of that data"
        )
    sources = find_sources(config)
    if config.prepare.action == "convert":
        count = convert_masks(sources, output, config)
        log.info("%d masks converted in %s", count, output)
        return
    count = crop_sources(sources, output, patches_of(config), config)
    log.info("%d patches written to %s, listed in %s", count, output, output / MANIFEST)


def prepare_isaid(task: Any, config: PFNetConfig, output: Path) -> None:
    """prepare_isaid.py: crop iSAID, colours of its masks to class numbers."""
    _prepare(config, output, ["isaid"])


def prepare_isprs(task: Any, config: PFNetConfig, output: Path) -> None:
    """prepare_isprs.py: the same of Vaihingen and Potsdam."""
    _prepare(config, output, ["vaihingen", "potsdam"])
