"""A network over whole scenes: reading, computing and writing at once, in bounded memory.

At any time a few tiles are in memory, whatever the scene's size: those being read, computed and
written and those waiting between (two each). What neighbours need of each other, and what is
finished, lies on disk (``store``), so that a stopped run goes on where it stopped.
"""

import contextlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import FolderLock, PathLike
from model_utils.logs import Progress, duration
from model_utils.segmentation import IGNORE
from model_utils.stages import run_stages
from model_utils.windows import fill_up

from .config import SceneConfig
from .grid import Grid, Tile, fade, mix, tile_axis
from .source import Patch, SceneSource
from .store import PROBABILITY_TOP, RUN_TAG, Layers, PartStore, is_finished, run_number

log = logging.getLogger("zoo")

# Items that may wait between two stages; each holds the scores of a tile.
_AHEAD = 2
# Rows of scores that are looked at together: few enough to stay in the processor's cache.
_ROWS = 64


@dataclass(frozen=True)
class SceneNetwork:
    """What the engine has to know of a network.

    Attributes:
        prepare: the patches of a tile, one per scene, to the network's inputs, each (C, h, w).
            Runs in the reading thread.
        run: stacks of inputs, each (N, C, h, w), to scores or values (N, K, h, w) float32, or to
            class numbers (N, h, w) of any integer type.
        key: tells the weights and what is computed with them apart from others.
        channels: bands that each scene must have.
        multiple: heights and widths must be multiples of this; smaller tiles are filled up by
            reflection at the bottom and the right.
        least: the smallest height and width; likewise.
        align: tiles begin at multiples of this, the product of the network's strides.
        fixed: the only height and width possible, of exported files; None takes any.
    """

    prepare: Callable[[list[Patch]], tuple[np.ndarray, ...]]
    run: Callable[..., np.ndarray]
    key: str = ""
    channels: tuple[int, ...] = (3,)
    multiple: int = 1
    least: int = 1
    align: int = 1
    fixed: tuple[int, int] | None = None


@dataclass
class SceneReport:
    """What was done, and how fast.

    Attributes:
        target: the result; written if ``finished``.
        size: height and width of the scene.
        tiles: number of tiles of the scene.
        earlier: tiles finished by earlier runs.
        done: tiles finished by this run.
        empty: those of ``done`` without data, which the network did not see.
        seconds: of this run, with joining.
        joining: seconds that making one file of the tiles took.
        network: seconds of each call of the network but the first.
        first: seconds of the first call, which compiles.
        finished: whether the result is complete.
        counts: pixels of each value, of class maps; the last one counts pixels without data.
    """

    target: Path
    size: tuple[int, int]
    tiles: int
    earlier: int = 0
    done: int = 0
    empty: int = 0
    seconds: float = 0.0
    joining: float = 0.0
    network: list[float] = field(default_factory=list)
    first: float = 0.0
    finished: bool = False
    counts: np.ndarray | None = None

    @property
    def outside(self) -> float:
        """Share of the time in which the network was not running."""
        return 1 - (self.first + sum(self.network)) / self.seconds if self.seconds else 0.0

    def figures(self, names: Sequence[str]) -> dict[str, Any]:
        """For metrics.json: sizes, times, and the share of each class in what has data."""
        found: dict[str, Any] = {
            "size": list(self.size),
            "tiles": self.tiles,
            "tiles_of_earlier_runs": self.earlier,
            "tiles_without_data": self.empty,
            "finished": self.finished,
            "seconds": round(self.seconds, 2),
            "share_outside_network": round(self.outside, 4),
        }
        if self.counts is not None:
            classes = self.counts[: len(names)]
            shares = classes / max(1, classes.sum())
            found["pixels_without_data"] = int(self.counts[IGNORE])
            found["shares"] = {
                name: round(float(share), 4)
                for name, share in zip(names, shares, strict=True)
                if share
            }
        return found


def predict_scene(
    scenes: PathLike | Sequence[PathLike],
    target: PathLike,
    network: SceneNetwork,
    layers: Layers,
    settings: SceneConfig,
    batch: int = 1,
    tags: Mapping[str, str] | None = None,
    show: bool = True,
) -> SceneReport:
    """Run a network over a scene, or over several that cover each other pixel by pixel.

    Finished tiles are kept in ``TARGET.parts`` until the result is complete. An earlier run with
    the same scene, network and settings is gone on with; a complete result of such a run is left
    as it is. Ctrl-C and errors keep what was finished; ``finished.vrt`` in that folder shows it.

    Args:
        scenes: a raster, or one per input of the network.
        target: the GeoTIFF to write.
        network: what to run.
        layers: meaning of the result's bands.
        settings: tiles, blending, output format.
        batch: tiles at once.
        tags: further metadata for the result.
        show: report progress.

    Raises:
        UserError: a scene cannot be read or does not fit, settings contradict each other, the
            result cannot be written, or earlier tiles belong to another run.
        KeyboardInterrupt: Ctrl-C; what was finished is kept.
    """
    paths = [scenes] if isinstance(scenes, str | os.PathLike) else list(scenes)
    result = Path(target)
    folder = Path(f"{result}.parts")
    begun = time.perf_counter()
    with FolderLock(folder), contextlib.ExitStack() as stack:
        stack.callback(_remove_if_empty, folder)
        sources = []
        for place, path in enumerate(paths):
            source = SceneSource(path, network.channels[place], settings.bands, folder)
            stack.callback(source.close)
            sources.append(source)
        _check_alike(sources)
        first = sources[0]
        grid = scene_grid((first.height, first.width), network, settings)
        store = PartStore(folder, grid, layers)
        report = SceneReport(result, (first.height, first.width), len(grid))
        identity = _identity(sources, network, layers, settings)
        files = {"files": [source.state() for source in sources]}
        form = [settings.compress, settings.overviews, str(layers.colours)]
        number = run_number({**identity, **files, "form": form})
        if settings.resume and is_finished(result, number):
            log.info("%s is complete; --infer.scene.resume=false makes it anew", result)
            store.remove()
            report.earlier, report.finished = len(grid), True
            return report
        report.earlier = store.open(identity, settings.resume)
        _check_files(sources, store, report.earlier, files)
        run = _Run(sources, network, layers, settings, store, report, batch, show)
        try:
            run.tiles()
            report.finished = report.earlier + report.done == len(grid)
            if report.finished:
                joining = time.perf_counter()
                if layers.kind == "classes":
                    report.counts = store.counts()
                names = {f"CLASS_{k}": name for k, name in enumerate(layers.names)}
                labels = {**names, **(tags or {}), RUN_TAG: number}
                store.assemble(first, result, labels, settings.compress, settings.overviews)
                report.joining = time.perf_counter() - joining
                store.remove()
        finally:
            report.seconds = time.perf_counter() - begun
            if not report.finished:
                _tell_kept(store, first)
    if report.finished and show:
        log.info(
            "%s: %d tiles in %s, %.0f %% of it outside the network",
            result, report.done, duration(report.seconds), 100 * report.outside,
        )  # fmt: skip
    return report


def scene_grid(size: tuple[int, int], network: SceneNetwork, settings: SceneConfig) -> Grid:
    """Tiles over a scene of (height, width).

    Raises:
        UserError: tiles too small for their halos, or no multiple of what the network takes.
    """
    wanted = network.fixed or (settings.tile, settings.tile)
    for side in wanted:
        if side % network.multiple or side < network.least:
            raise UserError(
                f"tiles of {side} pixels do not fit the network, which takes multiples of "
                f"{network.multiple} from {network.least} on; set --infer.scene.tile accordingly"
            )
    width = 0 if settings.blend == "flat" else settings.blend_width
    rows, columns = (
        tile_axis(length, tile, settings.halo, width, network.align)
        for length, tile in zip(size, wanted, strict=True)
    )
    return Grid(rows, columns)


def _check_alike(sources: Sequence[SceneSource]) -> None:
    first = sources[0]
    for other in sources[1:]:
        for what, a, b in (
            ("sizes", (first.width, first.height), (other.width, other.height)),
            ("coordinate systems", first.crs, other.crs),
        ):
            if a != b:
                raise UserError(
                    f"{first.path} and {other.path} have different {what} ({a} and {b}); bring "
                    "them to one grid"
                )
        if not first.transform.almost_equals(other.transform, 1e-6):
            raise UserError(
                f"{first.path} and {other.path} do not lie at one place (geotransforms differ); "
                "bring them to one grid"
            )


def _identity(
    sources: Sequence[SceneSource],
    network: SceneNetwork,
    layers: Layers,
    settings: SceneConfig,
) -> dict[str, Any]:
    """What finished tiles depend on."""
    return {
        "scene": [
            [s.path.name, s.width, s.height, s.bands, str(s.dtype), list(s.transform)]
            for s in sources
        ],
        "network": network.key,
        "tile": list(network.fixed or (settings.tile, settings.tile)),
        "halo": settings.halo,
        "blend": [settings.blend, settings.blend_width if settings.blend != "flat" else 0],
        "result": [layers.kind, layers.dtype, list(layers.names)],
        "value_range": settings.value_range,
    }


def _check_files(
    sources: Sequence[SceneSource], store: PartStore, finished: int, files: dict[str, Any]
) -> None:
    """Make sure that finished tiles came from the scenes as they are now."""
    from model_utils.files import read_json, write_json

    path = store.folder / "files.json"
    if finished:
        log.info("going on after %d of %d tiles", finished, len(store.grid))
        if not path.is_file() or read_json(path) != files:
            log.info("the scene was written anew; comparing it with the finished tiles")
            for tile in store.grid.tiles(0, finished):
                if _checksum(_read(sources, tile)) != store.checksum(tile.number):
                    raise UserError(
                        f"{sources[0].path} has changed since the tiles in {store.folder} were "
                        "computed; begin anew with --infer.scene.resume=false"
                    )
    write_json(path, files)


def _tell_kept(store: PartStore, source: SceneSource) -> None:
    kept = store.finished()
    if not kept:
        return
    # Only a convenience: what made the run end is what must reach the user.
    with contextlib.suppress(UserError, OSError):
        mosaic = store.write_mosaic(source, {})
        log.info(
            "%d of %d tiles are kept (to look at: %s); the same command goes on from there",
            kept, len(store.grid), mosaic,
        )  # fmt: skip


def _remove_if_empty(folder: Path) -> None:
    """Leave nothing behind a run that could not begin."""
    if folder.is_dir() and all(file.suffix in ("", ".json") for file in folder.iterdir()):
        shutil.rmtree(folder)


def _read(sources: Sequence[SceneSource], tile: Tile) -> list[Patch]:
    return [source.read(*tile.window) for source in sources]


def _checksum(patches: Sequence[Patch]) -> int:
    value = 0
    for patch in patches:
        value = zlib.crc32(np.ascontiguousarray(patch.pixels).data, value)
        value = zlib.crc32(np.packbits(patch.valid).data, value)
    return value


@dataclass
class _Job:
    """A tile on its way; ``inputs`` and ``output`` are None where there is no data at all."""

    tile: Tile
    valid: np.ndarray
    checksum: int
    inputs: tuple[np.ndarray, ...] | None
    output: np.ndarray | None = None


@dataclass
class _Run:
    sources: Sequence[SceneSource]
    network: SceneNetwork
    layers: Layers
    settings: SceneConfig
    store: PartStore
    report: SceneReport
    batch: int
    show: bool

    def tiles(self) -> None:
        """Work on all tiles that are left, or on as many as asked for."""
        total = len(self.store.grid)
        self.progress = Progress(
            total, "tiles", self.report.earlier, show=self.show, unit="tile"
        )  # fmt: skip
        blend = self.settings.blend
        self.weight = fade(self.settings.blend_width, blend) if blend != "flat" else None
        try:
            run_stages(self._batches(), self._compute, self._finish, _AHEAD)
        finally:
            self.progress.close()

    # Reading thread --------------------------------------------------------------------------

    def _jobs(self) -> Iterator[_Job]:
        begin, most = self.report.earlier, self.settings.most_tiles
        for tile in self.store.grid.tiles(begin, begin + most if most else None):
            patches = _read(self.sources, tile)
            valid = np.logical_and.reduce([patch.valid for patch in patches])
            inputs = None
            if valid.any():
                inputs = tuple(
                    fill_up(array, self._size(tile.shape))
                    for array in self.network.prepare(patches)
                )
            yield _Job(tile, valid[tile.inside(tile.piece)], _checksum(patches), inputs)

    def _size(self, shape: tuple[int, int]) -> tuple[int, int]:
        """What the network gets for a tile of this shape."""
        if self.network.fixed:
            return self.network.fixed
        multiple, least = self.network.multiple, self.network.least
        height, width = (max(least, -(-side // multiple) * multiple) for side in shape)
        return height, width

    def _batches(self) -> Iterator[list[_Job]]:
        """Consecutive tiles of one shape, as many as the network takes at once."""
        jobs: list[_Job] = []
        shapes: list[tuple[int, ...]] = []
        for job in self._jobs():
            shape = job.inputs[0].shape if job.inputs else None
            other = bool(shape and shapes and shape != shapes[0])
            # Tiles without data wait for others, but not in any number.
            if jobs and (len(shapes) == self.batch or other or len(jobs) == 4 * self.batch):
                yield jobs
                jobs, shapes = [], []
            jobs.append(job)
            if shape:
                shapes.append(shape)
        if jobs:
            yield jobs

    # Calling thread --------------------------------------------------------------------------

    def _compute(self, jobs: list[_Job]) -> list[_Job]:
        full = [job for job in jobs if job.inputs is not None]
        if not full:
            return jobs
        # One batch size: networks compile for each.
        rows = [job.inputs or () for job in full]
        rows += [rows[-1]] * (self.batch - len(full))
        stacks = [
            arrays[0][None] if self.batch == 1 else np.stack(arrays)  # one needs no copy
            for arrays in zip(*rows, strict=True)
        ]
        start = time.perf_counter()
        outputs = self.network.run(*stacks)
        seconds = time.perf_counter() - start
        if self.report.first:
            self.report.network.append(seconds)
        else:
            self.report.first = seconds
        if outputs.shape[-2:] != stacks[0].shape[-2:]:
            raise UserError(
                f"the network gave {outputs.shape[-2]}x{outputs.shape[-1]} values for a tile of "
                f"{stacks[0].shape[-2]}x{stacks[0].shape[-1]} pixels; they must agree"
            )
        if outputs.ndim == 3 and self.weight is not None:
            raise UserError(
                "class numbers cannot be blended; use --infer.scene.blend=flat, or a network that "
                "gives scores"
            )
        for job, output in zip(full, outputs, strict=False):
            job.inputs, job.output = None, output
        return jobs

    # Writing thread --------------------------------------------------------------------------

    def _finish(self, jobs: list[_Job]) -> None:
        for job in jobs:
            output = self._blended(job.tile, job.output)
            (top, bottom), (left, right) = job.tile.piece
            if output is None:
                shape = (self.layers.bands, bottom - top, right - left)
                values = np.full(shape, self.layers.nodata, self.layers.dtype)
                self.report.empty += 1
            else:
                values = finish(output, job.valid, self.layers, job.tile)
            self.store.write_piece(job.tile, values, job.checksum)
            job.output = None
            self.report.done += 1
            self.progress.advance()

    def _blended(self, tile: Tile, output: np.ndarray | None) -> np.ndarray | None:
        """The finished part of a tile, faded into from its neighbours; None without data.

        Left and right first, then top and bottom; seams are handed on in that state. A neighbour
        without data has none where this tile has, so that an empty seam changes nothing.
        """
        if output is None:
            empty = np.zeros(0, np.float32)
            if self.weight is not None and tile.right:
                self.store.write_seam("right", tile, empty)
            if self.weight is not None and tile.below:
                self.store.write_seam("bottom", tile, empty)
            return None
        if self.weight is None:
            rows, columns = tile.inside(tile.piece)
            return output[..., rows, columns]
        (top, bottom), (left, right) = tile.piece
        width = len(self.weight)
        rows, columns = tile.inside(tile.used)
        part = output[..., rows, columns]
        if not part.flags.writeable:
            part = part.copy()
        if tile.left:
            before = self.store.read_seam("right", tile)
            if before.size:
                part[..., :width] = mix(before, part[..., :width], self.weight)
        if tile.right:
            self.store.write_seam("right", tile, part[..., -width:])
        part = part[..., : right - left]
        if tile.above:
            before = self.store.read_seam("bottom", tile)
            if before.size:
                part[..., :width, :] = mix(before, part[..., :width, :], self.weight[:, None])
        if tile.below:
            self.store.write_seam("bottom", tile, part[..., -width:, :])
        return part[..., : bottom - top, :]


def finish(output: np.ndarray, valid: np.ndarray, layers: Layers, tile: Tile) -> np.ndarray:
    """What is written of a tile.

    Args:
        output: scores or values (K, h, w), or class numbers (h, w).
        valid: (h, w) bool; elsewhere the result has no data.
        layers: what is wanted.
        tile: for messages.

    Returns:
        (bands, h, w) of the layers' type.

    Raises:
        UserError: NaN or infinite scores, or other than the layers' number of classes.
    """
    if output.ndim == 3:
        if output.shape[0] != len(layers.names):
            raise UserError(
                f"the network gives {output.shape[0]} scores per pixel, {len(layers.names)} "
                "classes are known; give the configuration it was trained with (--config_path)"
            )
    if layers.kind == "classes":
        if output.ndim == 3:
            bands = (output[:, top : top + _ROWS] for top in range(0, output.shape[1], _ROWS))
            classes = np.concatenate([largest(_finite(rows, tile)) for rows in bands])
        else:
            classes = output.astype(np.uint8)
        return np.where(valid, classes, np.uint8(IGNORE))[None]
    _finite(output, tile)
    if layers.kind == "probabilities":
        values = softmax(output)
        if layers.dtype == "uint8":
            values = np.rint(values * np.float32(PROBABILITY_TOP)).astype(np.uint8)
    else:
        values = output.astype(layers.dtype)
    return np.where(valid, values, np.array(layers.nodata, layers.dtype))


def _finite(scores: np.ndarray, tile: Tile) -> np.ndarray:
    # The sum first: one pass without a temporary.
    if not np.isfinite(scores.sum()) and not np.isfinite(scores).all():
        raise UserError(
            f"the network gives NaN or infinite scores in the tile at row {tile.window[0][0]}, "
            f"column {tile.window[1][0]}; check its weights and the scene's values there"
        )
    return scores


def largest(scores: np.ndarray) -> np.ndarray:
    """Place of the largest of (K, h, w) scores, (h, w) uint8, the first of equal ones.

    Several times as fast as ``argmax`` along the first axis, whose steps lie far apart.
    """
    best = np.array(scores[0], np.float32)
    place = np.zeros(best.shape, np.uint8)
    for number in range(1, len(scores)):
        better = cv2.compare(scores[number], best, cv2.CMP_GT)  # 255 where it is
        cv2.max(best, scores[number], best)
        # Numbers rise, so that the larger one is the later one. (OpenCV's own minimum with a
        # number takes an image of one pixel for a number as well.)
        cv2.max(place, np.minimum(better, np.uint8(number)), place)
    return place


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (K, h, w) float32 of scores."""
    values = np.exp(scores - scores.max(axis=0))
    values /= values.sum(axis=0)
    return values
