"""Cropping beside the reference's way of doing it: time, size of the files, memory.

The reference's way is a loop over Pillow: load the whole image, crop, save every patch of image
and colour mask; then load every mask again, compare it with every class colour, save it. It is
written here from that description. Every measurement is a process of its own, contenders take
turns, and what they wrote is compared pixel by pixel.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.benchmarking import describe_machine, positive
from model_utils.errors import UserError
from model_utils.files import read_image, write_json

SCRIPT = Path(__file__).resolve().parents[2] / "benchmark_tools.py"
_PILLOW = "Pillow loop"


def mosaic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image of any size made of mirrored copies of a smaller one."""
    rows = -(-size[0] // (2 * image.shape[0]))
    columns = -(-size[1] // (2 * image.shape[1]))
    block = np.concatenate([image, image[::-1]])
    block = np.concatenate([block, block[:, ::-1]], axis=1)
    repeats = (rows, columns) + (1,) * (image.ndim - 2)
    return np.tile(block, repeats)[: size[0], : size[1]]


def made_up(colours: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image (1000, 1000, 3) with the grain of an aerial one, and its mask in class colours."""
    import cv2

    draw = np.random.default_rng(seed)
    side = 1000
    image = np.zeros((side, side, 3), np.float32)
    for cells, strength in ((8, 40.0), (60, 25.0), (500, 12.0)):
        noise = draw.standard_normal((cells, cells, 3)).astype(np.float32)
        image += strength * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    image += 5 * draw.standard_normal((side, side, 1)).astype(np.float32)
    mask = np.zeros((side, side), np.uint8)
    for _ in range(120):
        top, left = draw.integers(0, side, 2)
        height, width = draw.integers(8, 60, 2)
        number = int(draw.integers(1, len(colours)))
        mask[top : top + height, left : left + width] = number
        image[top : top + height, left : left + width] += 8 * number - 60
    return np.clip(image + 110, 0, 255).astype(np.uint8), colours[mask]


def pillow_loop(source: Path, output: Path, side: int, overlap: int, colours: np.ndarray) -> None:
    """The reference's way: crop images and colour masks, then convert the masks."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # its guard against huge images refuses 20,000 x 20,000
    images, masks = output / "images", output / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    ending = "_instance_color_RGB"
    for path in sorted(source.glob("P*.png")):
        if "_" in path.stem:  # masks
            continue
        image = Image.open(path).convert("RGB")
        mask = Image.open(path.with_name(f"{path.stem}{ending}.png")).convert("RGB")
        width, height = image.size
        for x in range(0, width, side - overlap):
            for y in range(0, height, side - overlap):
                left, top = min(x, width - side), min(y, height - side)
                box = left, top, left + side, top + side
                name = f"{path.stem}_{top}_{top + side}_{left}_{left + side}"
                image.crop(box).save(images / f"{name}.png")
                mask.crop(box).save(masks / f"{name}{ending}.png")
    for path in sorted(masks.glob("*.png")):
        values = np.array(Image.open(path))
        labels = np.zeros(values.shape[:2], np.uint8)
        for number, colour in enumerate(colours):
            labels[(values == colour).all(axis=-1)] = number
        Image.fromarray(labels).save(path)


def our_way(source: Path, output: Path, side: int, overlap: int, workers: int) -> None:
    """The same by prepare_isaid.py's function."""
    from ..config import PFNetConfig
    from .cropping import Patches, crop_sources
    from .sources import find_sources

    config = PFNetConfig()
    config.data.root = str(source)
    config.prepare.splits = ["."]
    config.prepare.workers = workers
    crop_sources(find_sources(config), output, Patches(side, side, overlap), config)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Run one contender in this process; MB count from before it began."""
    from ..classes import ISAID

    if options.contender == _PILLOW:
        import PIL.Image  # noqa: F401

        def run() -> None:
            pillow_loop(options.source, options.target, options.patch, options.overlap, colours)
    else:
        from . import cropping  # noqa: F401

        def run() -> None:
            workers = int(options.contender.split()[1])
            our_way(options.source, options.target, options.patch, options.overlap, workers)

    colours = ISAID.colours
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of imports
    before = _status("VmRSS")
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "before_mb": before,
        "peak_mb": _status("VmHWM"),
    }


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None  # Linux always reports it
    return int(found[1]) / 1024


def write_sources(folder: Path, size: tuple[int, int], count: int, data: str) -> None:
    """Images and colour masks of one size, as Pillow saves them.

    Args:
        folder: gets ``P1.png``, ``P1_instance_color_RGB.png``, ...
        size: rows and columns.
        count: number of images.
        data: a folder of iSAID images to make them of; empty makes up images.
    """
    from PIL import Image

    from ..classes import ISAID

    folder.mkdir()
    ending = "_instance_color_RGB"
    if data:
        masks = sorted(Path(data).glob(f"P*{ending}.png"))
        if not masks:
            raise UserError(f"{data} holds no P*{ending}.png; set --data_path to iSAID images")
        found = [
            (read_image(p.with_name(p.name.replace(ending, ""))), read_image(p)) for p in masks
        ]
    else:
        found = [made_up(ISAID.colours, seed) for seed in range(count)]
    for number in range(count):
        image, mask = found[number % len(found)]
        Image.fromarray(mosaic(image, size)).save(folder / f"P{number}.png")
        Image.fromarray(mosaic(mask, size)).save(folder / f"P{number}{ending}.png")


def compare(first: Path, second: Path) -> int:
    """Number of files; all must have equal pixels in both folders.

    Raises:
        UserError: a file is missing or differs.
    """
    names = {path.relative_to(first) for path in first.rglob("*.png")}
    others = {path.relative_to(second) for path in second.rglob("*.png")}
    if names != others:
        raise UserError(f"contenders wrote different files: {min(names ^ others)}")
    for name in names:
        if not np.array_equal(read_image(first / name, 0), read_image(second / name, 0)):
            raise UserError(f"contenders wrote different pixels: {name}")
    return len(names)


def run_size(
    options: argparse.Namespace, size: tuple[int, int], contenders: Sequence[str], scratch: Path
) -> dict[str, Any]:
    """All rounds with images of one size."""
    source = scratch / "source"
    write_sources(source, size, options.images, options.data_path)
    results: dict[str, Any] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name in contenders if number % 2 == 0 else contenders[::-1]:
            target = scratch / name.replace(" ", "_")
            shutil.rmtree(target, ignore_errors=True)
            command = [
                *(sys.executable, str(SCRIPT), "--contender", name),
                *("--source", str(source), "--target", str(target)),
                *("--patch", str(options.patch), "--overlap", str(options.overlap)),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{size[0]}x{size[1]}, round {number + 1}: {name}", file=sys.stderr, flush=True)
    folders = [scratch / name.replace(" ", "_") for name in contenders]
    counts = {compare(folders[0], folder) for folder in folders[1:]}
    sizes = {
        name: sum(file.stat().st_size for file in folder.rglob("*.png")) / 2**20
        for name, folder in zip(contenders, folders, strict=True)
    }
    shutil.rmtree(source)
    return {
        "rows": size[0],
        "columns": size[1],
        "patches": counts.pop() // 2,
        "rounds": results,
        "written_mb": sizes,
    }


def summarise(record: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Lines of a table for one size, and its figures."""
    lines = [
        f"{record['rows']} x {record['columns']}, {record['patches']} patches",
        f"  {'':<18}{'seconds':>9}{'cpu s':>9}{'peak MB':>9}{'over start':>12}{'written':>9}"
        "  times as fast (by cpu time)",
    ]
    figures = {}
    baseline = record["rounds"][_PILLOW]
    for name, entries in record["rounds"].items():
        seconds, processor = (
            np.array([entry[key] for entry in entries]) for key in ("seconds", "processor_seconds")
        )
        ratios = np.array([entry["seconds"] for entry in baseline]) / seconds
        by_processor = np.array([entry["processor_seconds"] for entry in baseline]) / processor
        figures[name] = {
            "seconds": float(np.median(seconds)),
            "processor_seconds": float(np.median(processor)),
            "memory_mb": float(max(e["peak_mb"] - e["before_mb"] for e in entries)),
            "peak_mb": float(max(e["peak_mb"] for e in entries)),
            "written_mb": record["written_mb"][name],
            "times_as_fast": [float(f(ratios)) for f in (np.median, np.min, np.max)],
            "times_as_fast_by_processor": float(np.median(by_processor)),
        }
        own = figures[name]
        shown = "{:.1f}, {:.1f} to {:.1f}".format(*own["times_as_fast"])
        lines.append(
            f"  {name:<18}{own['seconds']:9.2f}{own['processor_seconds']:9.2f}"
            f"{own['peak_mb']:9.0f}{own['memory_mb']:12.1f}{own['written_mb']:9.1f}  "
            f"{shown} ({own['times_as_fast_by_processor']:.1f})"
        )
    return lines, figures


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Sizes such as ``2000x3000,400x500``, rows and columns.

    Raises:
        argparse.ArgumentTypeError: they are written otherwise.
    """
    sizes = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in text.split(",")]
    if not all(sizes):
        raise argparse.ArgumentTypeError(f"{text} is not written as ROWSxCOLUMNS,...")
    return [(int(found[1]), int(found[2])) for found in sizes if found]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of benchmark_tools.py; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmark_tools.py",
        description="Time cropping beside the reference's way, in turns; peak memory of both.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=parse_sizes, default="2000x2000,13000x4000", help="rows x columns"
    )
    parser.add_argument("--images", type=positive, default=2, help="images of each size")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each contender")
    parser.add_argument("--patch", type=positive, default=896, help="side of a patch")
    parser.add_argument("--overlap", type=int, default=384, help="of neighbouring patches")
    parser.add_argument(
        "--workers", default="1,2", help="numbers of threads, a contender each; separated by commas"
    )
    parser.add_argument("--data_path", default="", help="iSAID images to use instead of made-up")
    parser.add_argument("--folder", default=None, help="where to write; default the system's")
    parser.add_argument("--output", default="outputs/benchmark_tools.json", help="figures as JSON")
    for hidden in ("--contender", "--source", "--target"):
        kind = str if hidden == "--contender" else Path
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.contender:
        print(json.dumps(measure(options)))
        return 0
    if min(min(size) for size in options.sizes) < options.patch:
        parser.error("sizes must be at least the patch; --patch makes it smaller")
    try:
        _report(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(options: argparse.Namespace) -> None:
    contenders = [_PILLOW, *(f"ours, {number} workers" for number in options.workers.split(","))]
    machine = describe_machine(0)
    records: list[dict[str, Any]] = []
    if options.folder is not None:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pfnet_tools_", dir=options.folder) as name:
        for size in options.sizes:
            records.append(run_size(options, size, contenders, Path(name)))
    machine["load_average_after"] = round(describe_machine(0)["load_average"], 2)
    print(
        f"{options.images} images of each size, patches of {options.patch}, overlap "
        f"{options.overlap}, {options.rounds} rounds\n{machine['processor']}, "
        f"{machine['processors']} processors; load {machine['load_average']} before, "
        f"{machine['load_average_after']} after"
    )
    for record in records:
        lines, record["figures"] = summarise(record)
        print("\n".join(["", *lines]))
    write_json(options.output, {"machine": machine, "sizes": records})
    print(f"\nwritten: {options.output}")
