"""Measures what whole scenes cost: memory, time beside the network, restarts.

Every run is a process of its own, so that peaks of memory are its own.
"""

import argparse
import importlib
import json
import logging
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.windows import Window

from model_utils.errors import UserError
from model_utils.files import write_json

from .config import SceneConfig
from .engine import SceneNetwork, SceneReport, predict_scene, scene_grid
from .generating import generate_scene
from .source import Patch, gdal
from .store import Layers

log = logging.getLogger("zoo")

# Of the stand-in network: colours that pixels are compared with.
_COLOURS = np.array(
    [[60, 90, 60], [100, 100, 105], [200, 200, 200], [160, 80, 60], [70, 80, 150], [150, 150, 60]],
    np.float32,
)
_NAMES = ("field", "road", "bright roof", "red roof", "water", "crop")


def stand_in(calls: Path | None = None) -> tuple[SceneNetwork, Layers]:
    """A cheap network of six classes: how near the smoothed colour is to one of six.

    Args:
        calls: a file that each call adds a line to.
    """

    def prepare(patches: list[Patch]) -> tuple[np.ndarray, ...]:
        return (patches[0].pixels.astype(np.float32),)

    def run(images: np.ndarray) -> np.ndarray:
        if calls is not None:
            with open(calls, "a", encoding="ascii") as stream:
                stream.write("call\n")
        scores = np.empty((len(images), len(_COLOURS), *images.shape[2:]), np.float32)
        for image, result in zip(images, scores, strict=True):
            smooth = [cv2.blur(plane, (9, 9)) for plane in image]
            for colour, plane in zip(_COLOURS, result, strict=True):
                np.copyto(plane, smooth[0] * (2 * colour[0]))
                for part, level in zip(smooth[1:], colour[1:], strict=True):
                    cv2.scaleAdd(part, 2 * float(level), plane, plane)
                plane -= float(colour @ colour)
        return scores

    table = np.clip(_COLOURS, 0, 255).astype(np.uint8)
    return SceneNetwork(prepare, run, "stand-in"), Layers("classes", _NAMES, table)


def _peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(*arguments: object) -> subprocess.Popen:
    script = "from model_utils.scenes.measuring import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def _answer(process: subprocess.Popen) -> dict[str, Any]:
    """What a child prints last.

    Raises:
        UserError: it failed.
    """
    text = process.communicate()[0]
    if process.returncode:
        raise UserError(f"a measuring process ended with status {process.returncode}:\n{text}")
    return json.loads(text.splitlines()[-1])


def _scene(folder: Path, height: int, width: int) -> Path:
    path = folder / f"scene_{height}x{width}.tif"
    if not path.is_file():
        log.info("generating %s", path)
        generate_scene(path, height, width, compress="none")
    return path


# ---------------------------------------------------------------------------------------------
# memory and restart, with the stand-in


def _run_stand_in(options: argparse.Namespace) -> dict[str, Any]:
    network, layers = stand_in(options.calls)
    report = predict_scene(
        options.scene, options.target, network, layers, SceneConfig(), show=False
    )
    return {**report.figures(_NAMES), "peak_mb": round(_peak(), 1)}


def measure_memory(folder: Path, small: int, large: int) -> dict[str, Any]:
    """Peak resident memory for a small and a large square scene, all of it processed."""
    found: dict[str, Any] = {}
    for side in (small, large):
        scene, target = _scene(folder, side, side), folder / f"classes_{side}.tif"
        target.unlink(missing_ok=True)
        figures = _answer(_child("child", "--scene", scene, "--target", target))
        found[f"{side}x{side}"] = figures
        log.info(
            "%d x %d: peak %.0f MB, %d tiles in %.0f s",
            side, side, figures["peak_mb"], figures["tiles"], figures["seconds"],
        )  # fmt: skip
    peaks = [figures["peak_mb"] for figures in found.values()]
    found["growth"] = round(peaks[1] / peaks[0] - 1, 4)
    log.info("memory grows by %.1f %%", 100 * found["growth"])
    return found


def measure_restart(folder: Path, side: int) -> dict[str, Any]:
    """Kill a run in its middle, start it again, compare with an undisturbed one."""
    scene, target, calls = _scene(folder, side, side), folder / "killed.tif", folder / "calls.log"
    whole = folder / f"classes_{side}.tif"
    if not whole.is_file():
        _answer(_child("child", "--scene", scene, "--target", whole))
    for file in (target, calls):
        file.unlink(missing_ok=True)
    arguments = ("child", "--scene", scene, "--target", target, "--calls", calls)
    process = _child(*arguments)
    parts = Path(f"{target}.parts")
    wanted = len(scene_grid((side, side), stand_in()[0], SceneConfig())) // 2
    while len(list(parts.glob("tile_*.tif"))) < wanted:
        if process.poll() is not None:
            raise UserError("the run to be killed ended before; take a larger --small")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept, called = len(list(parts.glob("tile_*.tif"))), len(calls.read_text().splitlines())
    again = _answer(_child(*arguments))
    total = len(calls.read_text().splitlines())
    found = {
        "tiles": again["tiles"],
        "kept_when_killed": kept,
        "computed_when_killed": called,
        "computed_twice": total - again["tiles"],
        "equal_to_undisturbed": _equal(target, whole),
    }
    log.info(
        "killed after %d of %d tiles: %d computed twice, result %s",
        kept, found["tiles"], found["computed_twice"],
        "equal" if found["equal_to_undisturbed"] else "DIFFERENT",
    )  # fmt: skip
    return found


def _equal(one: Path, other: Path) -> bool:
    """Whether two rasters hold the same values, compared block by block."""
    with gdal(), rasterio.open(one) as a, rasterio.open(other) as b:
        if a.shape != b.shape:
            return False
        for top in range(0, a.height, 1024):
            window = Window(0, top, a.width, min(1024, a.height - top))
            if (a.read(1, window=window) != b.read(1, window=window)).any():
                return False
    return True


# ---------------------------------------------------------------------------------------------
# time, with real networks


def _model(options: argparse.Namespace) -> Any:
    """The network's Python API with its configuration; without a checkpoint random weights."""
    from model_utils import checkpoint, runtime
    from model_utils.distributed import Ranks
    from model_utils.entry import load_config

    module = importlib.import_module(f"research.{options.network}")
    kind = getattr(module, module.__all__[0])
    task = kind.task_class()
    config = load_config(task, "infer", options.keys)
    runtime.start(config.device_target, config.seed)
    path = Path(config.checkpoint_path or options.folder / f"{options.network}.ckpt")
    if not config.checkpoint_path:
        weights = checkpoint.weights_of(task.build_network(config, Ranks()))
        checkpoint.save(path, weights, network=task.name)
    return kind.from_checkpoint(path, config.infer.backend, config)


def _run_network(options: argparse.Namespace) -> dict[str, Any]:
    model = _model(options)
    keys: SceneConfig = replace(model.config.infer.scene, resume=False)
    network = model.scene_network(keys)
    rows, columns = options.tiles
    tile = network.fixed or (keys.tile, keys.tile)
    width = 0 if keys.blend == "flat" else keys.blend_width
    step = [(side - 2 * keys.halo - width) // network.align * network.align for side in tile]
    size = tile[0] + (rows - 1) * step[0], tile[1] + (columns - 1) * step[1]
    scene = _scene(options.folder, *size)
    target = options.folder / f"{options.network}.tif"
    # Once without counting: compilation, caches, exported files.
    model.predict_scene(scene, target, replace(keys, most_tiles=2), show=False)
    report: SceneReport = model.predict_scene(scene, target, keys, show=False)
    patch = Patch(np.full((3, *tile), 127, np.uint8), np.ones(tile, bool), "grey")
    inputs = [array[None] for array in network.prepare([patch])]
    alone = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        network.run(*inputs)
        alone.append(time.perf_counter() - start)
    tiles = len(scene_grid((options.large, options.large), network, keys))
    per_tile = report.seconds / report.tiles
    return {
        "network": model.task_class.title,
        "backend": next(iter(model._opened.values())).name,
        "tile": list(tile),
        "blend": keys.blend,
        "slice": list(size),
        **report.figures(model.classes.names),
        "seconds_per_tile": round(per_tile, 4),
        "network_alone_per_tile": round(statistics.median(alone), 4),
        # Of an undisturbed network: counts also what reading and writing take from it.
        "share_beyond_network_alone": round(1 - statistics.median(alone) / per_tile, 4),
        "tiles_of_whole": tiles,
        "hours_of_whole": round(tiles * per_tile / 3600, 3),
        "peak_mb": round(_peak(), 1),
    }


def measure_network(
    folder: Path, network: str, tiles: str, large: int, repeats: int, keys: Sequence[str]
) -> dict[str, Any]:
    """Time and memory of a real network on a slice of some tiles; the whole is extrapolated."""
    figures = _answer(
        _child("child", "--network", network, "--folder", folder, "--tiles", tiles,
               "--large", large, "--repeats", repeats, *keys)
    )  # fmt: skip
    log.info(
        "%s, %s, tiles of %s: %.2f s per tile, %.1f %% outside the network (%.1f %% beyond the "
        "network alone), peak %.0f MB; %d x %d would take %.2f hours",
        figures["network"], figures["backend"], figures["tile"], figures["seconds_per_tile"],
        100 * figures["share_outside_network"], 100 * figures["share_beyond_network_alone"],
        figures["peak_mb"], large, large, figures["hours_of_whole"],
    )  # fmt: skip
    return figures


def _tiles(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not ROWSxCOLUMNS, such as 3x4")
    return int(parts[0]), int(parts[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of ``scripts/measure_scenes.py``; keys with a dot go to the network."""
    from model_utils.logs import start_logging

    parser = argparse.ArgumentParser(
        prog="measure_scenes.py",
        description="Measure whole scenes: memory and restart with a cheap stand-in network, "
        "time and memory with real ones. --infer.scene.tile=512 and the like go to the network.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("what", choices=("memory", "restart", "network", "child"))
    parser.add_argument("--network", default="", help="folder below research/, for 'network'")
    parser.add_argument("--small", type=int, default=5000, help="side of the small scene")
    parser.add_argument("--large", type=int, default=20000, help="side of the large scene")
    parser.add_argument("--tiles", type=_tiles, default="3x4", help="slice, ROWSxCOLUMNS of tiles")
    parser.add_argument("--repeats", type=int, default=7, help="runs of the network alone")
    parser.add_argument("--folder", type=Path, help="where scenes and results lie; else removed")
    parser.add_argument("--output", type=Path, help="figures as JSON")
    for hidden in ("--scene", "--target", "--calls"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    options, keys = parser.parse_known_args(argv)
    options.keys = keys
    if options.what == "child":
        figures = _run_network(options) if options.network else _run_stand_in(options)
        print(json.dumps(figures))
        return
    start_logging()
    if options.what == "network" and not options.network:
        parser.error("--network is missing, for instance --network=sanet")
    if options.what != "network" and options.keys:
        parser.error(f"unknown: {' '.join(options.keys)}")
    with tempfile.TemporaryDirectory(prefix="scenes_") as name:
        folder = (options.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if options.what == "memory":
            found = measure_memory(folder, options.small, options.large)
        elif options.what == "restart":
            found = measure_restart(folder, options.small)
        else:
            tiles = "x".join(map(str, options.tiles))
            found = measure_network(
                folder, options.network, tiles, options.large, options.repeats, options.keys
            )
    found["load_average"] = round(os.getloadavg()[0], 2)
    if options.output:
        write_json(options.output, found)
