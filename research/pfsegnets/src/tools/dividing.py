"""The Gaofen contest's images and masks: checked, and divided into train and val."""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import FolderLock, explain_os_errors, require_file, require_folder
from model_utils.logs import Progress
from model_utils.manifest import Manifest, write_replacing
from model_utils.segmentation import ClassTable, Pair, pair_folders, read_mask
from model_utils.tiling import RowReader

from ..classes import TABLES
from ..config import PFNetConfig
from .cropping import in_parallel

log = logging.getLogger("zoo")

_ROWS = 256


def find_all(root: Path) -> list[Pair]:
    """All pairs of a track: ``all/image`` and ``all/gt``, or ``image`` and ``gt``.

    Raises:
        UserError: no such folders, no images, an image without mask.
    """
    base = root / "all" if (root / "all").is_dir() else root
    images = require_folder(base / "image", "image folder", "give the folder of image and gt")
    masks = require_folder(base / "gt", "mask folder", "give the folder of image and gt")
    return pair_folders(images, masks)


def divide(names: Sequence[str], share: float, seed: int) -> set[str]:
    """The names that become val: ``share`` of all, chosen by the seed."""
    order = np.random.default_rng(seed).permutation(len(names))
    return {sorted(names)[place] for place in order[: round(share * len(names))]}


def listed(path: str, names: Sequence[str]) -> set[str]:
    """The names in a list file, with or without suffixes.

    Raises:
        UserError: the file is missing or empty, or names an image that is not there.
    """
    text = require_file(path, "list file", "set prepare.val_list").read_text(encoding="utf-8-sig")
    wanted = {line.strip() for line in text.splitlines() if line.strip()}
    wanted = {Path(name).stem if name not in names else name for name in wanted}
    if not wanted:
        raise UserError(f"list file {path} names no images")
    if unknown := sorted(wanted - set(names)):
        raise UserError(f"{path} names {unknown[0]}, which is not among the images")
    return wanted


def check(pair: Pair, classes: ClassTable) -> np.ndarray:
    """Read a pair completely.

    Returns:
        (K,) pixels of each class.

    Raises:
        UserError: one is corrupt, sizes differ, or the mask holds another value than its classes'.
    """
    assert pair.mask is not None  # find_all asks for masks
    labels = read_mask(pair.mask, classes, values="ids")
    with RowReader(pair.image) as image:
        if (image.height, image.width) != labels.shape:
            raise UserError(
                f"image {pair.image} has {image.height} x {image.width} pixels, its mask "
                f"{pair.mask} {labels.shape[0]} x {labels.shape[1]}; replace the wrong one"
            )
        for top in range(0, image.height, _ROWS):
            image.read(top, min(top + _ROWS, image.height))
    return np.bincount(labels.ravel(), minlength=len(classes))[: len(classes)]


def divide_pairs(config: PFNetConfig, output: Path) -> dict[str, int]:
    """Check all pairs and write ``{all,train,val}/{image,gt}``; what is there is kept.

    Args:
        config: data.root, the track (data.format), share or list of val, seed.
        output: the folder; the data folder itself keeps its ``all``.

    Returns:
        Images per part.

    Raises:
        UserError: see :func:`check`, :func:`find_all` and :func:`listed`; the output holds
            another division or cannot be written.
    """
    keys = config.prepare
    if not config.data.root:
        raise UserError("no data given; add --data_path=FOLDER")
    root = require_folder(config.data.root, "data folder", "set data.root (--data_path)")
    classes = TABLES[config.data.format]
    pairs = {pair.image.stem: pair for pair in find_all(root)}
    val = listed(keys.val_list, list(pairs)) if keys.val_list else None
    if val is None:
        val = divide(list(pairs), keys.val_share, config.seed)
    parts = {"all": set(pairs), "train": set(pairs) - val, "val": val}
    if not parts["train"]:
        raise UserError("all images are in val; nothing is left to train on")
    settings = {"format": config.data.format, "val": sorted(val), "link": keys.link}
    manifest = Manifest(output / "manifest.jsonl", settings)
    stop, lock = threading.Event(), threading.Lock()
    totals = np.zeros(len(classes), np.int64)

    def place(name: str) -> None:
        if stop.is_set():
            return
        pair = pairs[name]
        targets = _targets(pair, output, [part for part in parts if name in parts[part]])
        entry = manifest.done.get(name)
        if entry is None or not _in_place(targets, entry["bytes"]):
            pixels = check(pair, classes).tolist()
            for file, target in targets:
                _place(file, target, keys.link)
            sizes = [file.stat().st_size for file, _ in targets]
            entry = {"file": name, "bytes": sizes, "pixels": pixels}
            manifest.add(entry)
        with lock:
            totals[:] += entry["pixels"]
            progress.advance()

    with FolderLock(output), manifest:
        progress = Progress(len(pairs), "checking", unit="image")
        try:
            in_parallel(place, sorted(pairs), keys.workers, stop)
        finally:
            progress.close()
    shares = ", ".join(
        f"{name} {share:.1%}"
        for name, share in zip(classes.names, totals / max(1, totals.sum()), strict=True)
    )
    log.info("pixels: %s", shares)
    return {part: len(members) for part, members in parts.items()}


def _targets(pair: Pair, output: Path, parts: Sequence[str]) -> list[tuple[Path, Path]]:
    """What goes where; without files that are in their place already."""
    assert pair.mask is not None
    targets = [
        (file, output / part / folder / file.name)
        for part in parts
        for file, folder in ((pair.image, "image"), (pair.mask, "gt"))
    ]
    return [(file, target) for file, target in targets if target.resolve() != file.resolve()]


def _in_place(targets: Sequence[tuple[Path, Path]], sizes: Sequence[int]) -> bool:
    return len(sizes) == len(targets) and all(
        target.is_file() and size == target.stat().st_size == file.stat().st_size
        for (file, target), size in zip(targets, sizes, strict=True)
    )


def _place(file: Path, target: Path, link: bool) -> None:
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            _link(file, target)
        else:
            write_replacing(target, file.read_bytes())


def _link(file: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), temporary)
    except OSError as error:
        raise UserError(
            f"cannot link {file} to {target}: {error.strerror}; leave out prepare.link to copy"
        ) from error
    os.replace(temporary, target)


def prepare_gaofen(task: Any, config: PFNetConfig, output: Path) -> None:
    """prepare_gaofen.py: check and divide a track of the contest."""
    if not config.data.format.startswith("gaofen"):
        raise UserError(
            f"this tool prepares gaofen_img and gaofen_sar, not {config.data.format}; set "
            "--data.format, or use the tool of that data"
        )
    counts = divide_pairs(config, output)
    log.info("%s in %s", ", ".join(f"{count} {part}" for part, count in counts.items()), output)
