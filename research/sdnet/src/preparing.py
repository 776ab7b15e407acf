"""Cut training and test patches out of registered optical/SAR images (SEN1-2 or any other).

The published SDNet names a ``prepare_data.py`` that was never released; its README only says
that 64x64 patches lie around SIFT keypoints of SEN1-2 images. This is our own design:
keypoints by SIFT (Lowe 2004, via OpenCV), strongest first and at least ``min_distance`` apart,
the same window cut from both images, the split made by *scene* because neighbouring SEN1-2
patches overlap by half (Schmitt, Hughes, Zhu 2018).
"""

import logging
import os
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from model_utils.config import key
from model_utils.errors import UserError
from model_utils.files import FolderLock, read_image, require_file, require_folder, write_json
from model_utils.logs import Progress

from .patches import PATCH_SIZE, ROW_SHAPE, SUFFIXES, PatchWriter, open_patches

log = logging.getLogger("zoo")

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
MANIFEST = "patches.json"
_BLOCK = 1024  # rows moved at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImagePair:
    """Two registered images of one place.

    Attributes:
        name: unique name; appears in archives and messages.
        scene: images of one scene never appear in two splits.
        optical, sar: the files.
    """

    name: str
    scene: str
    optical: Path
    sar: Path


@dataclass
class PrepareOptions:
    """How patches are cut; the defaults follow the published figures of SDNet."""

    per_image: int = key(3, "most patches per image pair", "per_image")
    train_per_image: int = key(0, "the same for the training split; 0: per_image")
    min_distance: int = key(
        32, "smallest distance between two keypoints of an image, pixels", "min_distance"
    )
    detect: str = key(
        "opt", "image in which SIFT looks for keypoints", "detect", choices=("opt", "sar", "both")
    )
    train_ratio: float = key(0.7, "share of image pairs for training", "train_ratio")
    val_ratio: float = key(0.0, "share for validation; the rest is for testing", "val_ratio")
    splits: str = key(
        "", "folder with train.txt, val.txt, test.txt (image names) instead of the ratios", "splits"
    )
    test_negative_ratio: float = key(
        1.0, "non-matching rows per matching row of val and test", "test_negative_ratio"
    )
    limit: int = key(0, "use at most this many image pairs of each split; 0: all", "limit")
    seed: int = key(0, "decides splits, order and non-matching partners")
    suffix: str = key(".npz", "format of the archives", choices=SUFFIXES)
    on_error: str = key("stop", "at an unreadable image", "on_error", choices=("stop", "skip"))
    workers: int = key(0, "threads; 0: one per core, at most 8")

    def check(self) -> None:
        """Raise a UserError for a value out of range."""
        rules = (
            (self.per_image >= 1, "per_image", "at least 1"),
            (self.train_per_image >= 0, "train_per_image", "0 or more"),
            (self.min_distance >= 1, "min_distance", "at least 1 pixel"),
            (self.detect in ("opt", "sar", "both"), "detect", "opt, sar or both"),
            (0 < self.train_ratio <= 1, "train_ratio", "in (0, 1]"),
            (self.val_ratio >= 0, "val_ratio", "0 or more"),
            (self.train_ratio + self.val_ratio <= 1, "val_ratio", "at most 1 - train_ratio"),
            (self.test_negative_ratio >= 0, "test_negative_ratio", "0 or more"),
            (self.limit >= 0, "limit", "0 (all) or more"),
            (self.suffix in SUFFIXES, "suffix", f"one of {', '.join(SUFFIXES)}"),
            (self.on_error in ("stop", "skip"), "on_error", "stop or skip"),
        )
        for valid, name, allowed in rules:
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")


# ---------------------------------------------------------------------------------------------
# finding image pairs


def list_pairs(
    root: str | Path,
    optical: str = "",
    sar: str = "",
    pair_list: str = "",
    scene_pattern: str = "",
) -> list[ImagePair]:
    """Registered image pairs below ``root``, sorted by name.

    Three layouts, tried in this order:

    * ``pair_list``: a text file, one pair per line: optical file, SAR file, optionally a scene,
      separated by tabs or spaces; relative paths start at the list's folder;
    * two folders of equally named files (suffixes may differ): ``optical`` and ``sar`` below
      ``root``, by default ``opt`` and ``sar`` where they exist; scene = name;
    * SEN1-2: ``ROIs*/s1_<scene>/*_s1_<scene>_p<k>.png`` and the same with ``s2``.

    Args:
        root: data folder.
        optical: sub-folder of the optical images.
        sar: sub-folder of the SAR images.
        pair_list: list file, relative to ``root`` or absolute.
        scene_pattern: regular expression; its first group (or whole match) in the name is the
            scene.

    Raises:
        UserError: no pairs, or a listed file is missing.
    """
    folder = require_folder(root, "data folder")
    if pair_list:
        pairs = _listed_pairs(folder / pair_list)
    elif optical or sar or ((folder / "opt").is_dir() and (folder / "sar").is_dir()):
        pairs = _folder_pairs(folder / (optical or "opt"), folder / (sar or "sar"))
    else:
        pairs = _sen12_pairs(folder)
    if scene_pattern:
        pairs = [_with_scene(pair, scene_pattern) for pair in pairs]
    repeated = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    if repeated:
        raise UserError(f"{folder}: several image pairs are called {repeated[0]}; rename them")
    return sorted(pairs, key=lambda pair: _natural(pair.name))


def _natural(name: str) -> list[Any]:
    # p2 before p10; alternating text and numbers keeps the lists comparable.
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _with_scene(pair: ImagePair, pattern: str) -> ImagePair:
    try:
        match = re.search(pattern, pair.name)
    except re.error as error:
        raise UserError(
            f"scene_pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    if match is None:
        raise UserError(f"scene_pattern {pattern!r} does not match the image name {pair.name!r}")
    return ImagePair(pair.name, match.group(1 if match.groups() else 0), pair.optical, pair.sar)


def _listed_pairs(path: Path) -> list[ImagePair]:
    require_file(path, "list of image pairs")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not fields or line.startswith("#"):
            continue
        if len(fields) not in (2, 3):
            raise UserError(
                f"{path}, line {number}: expected 'optical sar [scene]', found {line!r}"
            )
        first, second = path.parent / fields[0], path.parent / fields[1]
        for file in (first, second):
            require_file(file, f"image of {path.name}, line {number},", "correct the list")
        name = Path(fields[0]).with_suffix("").as_posix()
        pairs.append(ImagePair(name, fields[2] if len(fields) == 3 else name, first, second))
    if not pairs:
        raise UserError(f"{path} lists no image pairs; one 'optical sar' per line is expected")
    return pairs


def _images_by_stem(folder: Path) -> dict[str, Path]:
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    return {file.stem: file for file in sorted(files)}


def _folder_pairs(optical: Path, sar: Path) -> list[ImagePair]:
    first = _images_by_stem(require_folder(optical, "folder of optical images"))
    second = _images_by_stem(require_folder(sar, "folder of SAR images"))
    common = first.keys() & second.keys()
    if not common:
        raise UserError(
            f"no image of {optical} ({len(first)}) has the same name as one of {sar} "
            f"({len(second)}); registered images must share their names"
        )
    _report_single(sorted(first.keys() ^ second.keys()), f"{optical} and {sar}")
    return [ImagePair(stem, stem, first[stem], second[stem]) for stem in common]


def _sen12_pairs(root: Path) -> list[ImagePair]:
    pairs, single = [], []
    for folder in sorted(root.glob("ROIs*/s1_*")):
        scene = f"{folder.parent.name}/{folder.name.removeprefix('s1_')}"
        other = folder.with_name(f"s2_{folder.name.removeprefix('s1_')}")
        for sar in sorted(folder.glob("*.png")):
            optical = other / sar.name.replace("_s1_", "_s2_")
            if optical.is_file():
                name = f"{scene}/{sar.stem.rpartition('_')[2]}"
                pairs.append(ImagePair(name, scene, optical, sar))
            else:
                single.append(sar.name)
    if not pairs:
        raise UserError(
            f"{root} holds neither SEN1-2 images (ROIs*/s1_*/*_s1_*.png with s2 partners) nor the "
            "folders opt and sar; correct the root or name the folders"
        )
    _report_single(single, str(root))
    return pairs


def _report_single(names: Sequence[str], where: str) -> None:
    if names:
        log.warning(
            "%s: %d images have no partner and are left out, e.g. %s",
            where, len(names), ", ".join(names[:3]),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# splitting


def split_pairs(pairs: Sequence[ImagePair], options: PrepareOptions) -> dict[str, list[ImagePair]]:
    """Image pairs of "train", "val" and "test"; no scene is in two of them.

    Raises:
        UserError: a list names an unknown image, or one image or scene twice.
    """
    if options.splits:
        split = _listed_splits(pairs, Path(options.splits))
    else:
        split = _random_splits(pairs, options)
    if options.limit:
        generator = np.random.default_rng([options.seed, 1])
        for name, members in split.items():
            if len(members) > options.limit:
                chosen = np.sort(generator.permutation(len(members))[: options.limit])
                split[name] = [members[index] for index in chosen]
    return split


def _random_splits(
    pairs: Sequence[ImagePair], options: PrepareOptions
) -> dict[str, list[ImagePair]]:
    scenes: dict[str, list[ImagePair]] = {}
    for pair in pairs:
        scenes.setdefault(pair.scene, []).append(pair)
    names = sorted(scenes)
    order = np.random.default_rng([options.seed, 0]).permutation(len(names))
    members = [scenes[names[index]] for index in order]
    sizes = np.array([len(scene) for scene in members])
    # A scene goes where its middle falls, so the shares are met on average.
    middles = np.cumsum(sizes) - sizes / 2
    wanted = options.train_ratio * len(pairs)
    train_end = int(np.searchsorted(middles, wanted, "right"))
    val_end = int(np.searchsorted(middles, wanted + options.val_ratio * len(pairs), "right"))
    # Non-matching pairs need two scenes, so val and test get two each where they are wanted.
    for_val = 2 * (options.val_ratio > 0)
    for_test = 2 * (options.train_ratio + options.val_ratio < 1 - 1e-9)
    if len(names) > for_val + for_test:
        train_end = min(max(train_end, 1), len(names) - for_val - for_test)
        val_end = min(max(val_end, train_end + for_val), len(names) - for_test)
    split = {
        "train": [pair for scene in members[:train_end] for pair in scene],
        "val": [pair for scene in members[train_end:val_end] for pair in scene],
        "test": [pair for scene in members[val_end:] for pair in scene],
    }
    for name, share in (
        ("train", options.train_ratio),
        ("val", options.val_ratio),
        ("test", 1 - options.train_ratio - options.val_ratio),
    ):
        if share > 1e-9 and not split[name]:
            raise UserError(
                f"{len(names)} scenes cannot be split so that {name} gets a share of {share:.2f}; "
                "change train_ratio and val_ratio, or use more scenes"
            )
    return split


def _listed_splits(pairs: Sequence[ImagePair], folder: Path) -> dict[str, list[ImagePair]]:
    require_folder(folder, "folder of split lists")
    known = {pair.name: pair for pair in pairs}
    where: dict[str, str] = {}
    scenes: dict[str, str] = {}
    split: dict[str, list[ImagePair]] = {name: [] for name in SPLITS}
    for name in SPLITS:
        path = folder / f"{name}.txt"
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").split():
            stem = line if line in known else Path(line).with_suffix("").as_posix()
            if stem not in known:
                raise UserError(f"{path} names {line}, of which there is no image pair")
            if stem in where:
                raise UserError(f"{line} is listed in {where[stem]}.txt and again in {path}")
            where[stem] = name
            scene = known[stem].scene
            if scenes.setdefault(scene, name) != name:
                raise UserError(
                    f"{path}: scene {scene} of {line} is also in {scenes[scene]}.txt; "
                    "a scene must stay in one split"
                )
            split[name].append(known[stem])
    if not where:
        raise UserError(f"{folder} holds no train.txt, val.txt or test.txt with image names")
    if len(where) < len(known):
        log.info("%d image pairs are in no list and are left out", len(known) - len(where))
    return split


# ---------------------------------------------------------------------------------------------
# cutting


def read_grey(path: Path) -> np.ndarray:
    """An image as (H, W) uint8 grey; colour by ITU-R 601 weights.

    16-bit and float images are stretched linearly between their 0.5 and 99.5 percentiles
    (patches are normalised one by one later, so only the 8-bit rounding remains of this).

    Raises:
        UserError: missing, corrupt, or with NaN pixels.
    """
    image = read_image(path, channels=1)
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"image {path} holds NaN or infinite pixels; fill them before")
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def read_pair(pair: ImagePair, size: int = PATCH_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Both images of a pair as (H, W) uint8 grey.

    Raises:
        UserError: unreadable, of different sizes, or smaller than ``size``.
    """
    optical, sar = read_grey(pair.optical), read_grey(pair.sar)
    if optical.shape != sar.shape:
        raise UserError(
            f"{pair.optical} has {optical.shape[1]}x{optical.shape[0]} pixels but {pair.sar} "
            f"{sar.shape[1]}x{sar.shape[0]}; registered images must be of one size"
        )
    if min(optical.shape) < size:
        raise UserError(
            f"{pair.optical} has {optical.shape[1]}x{optical.shape[0]} pixels, too few for one "
            f"{size}x{size} patch; remove the pair"
        )
    return optical, sar


def detect_points(
    optical: np.ndarray,
    sar: np.ndarray,
    detect: str,
    min_distance: int,
    most: int = 0,
    size: int = PATCH_SIZE,
) -> np.ndarray:
    """SIFT keypoints whose ``size`` window lies inside the image, strongest first.

    Args:
        optical: (H, W) uint8.
        sar: (H, W) uint8.
        detect: "opt", "sar", or "both" (taken in turns, since strengths do not compare).
        min_distance: smallest distance between two points, pixels.
        most: largest number of points; 0 = no limit.
        size: window; pixel (x, y) of a point is column and row ``size // 2`` of its window.

    Returns:
        (K, 2) int32 x, y.
    """
    half = size // 2
    height, width = optical.shape
    ranked = [
        _sift_points(image)
        for name, image in (("opt", optical), ("sar", sar))
        if detect in (name, "both")
    ]
    if len(ranked) == 2:
        shared = min(map(len, ranked))
        turns = np.stack([points[:shared] for points in ranked], axis=1).reshape(-1, 2)
        points = np.concatenate([turns, *(points[shared:] for points in ranked)])
    else:
        points = ranked[0]
    x, y = points[:, 0], points[:, 1]
    inside = (x >= half) & (x <= width - size + half) & (y >= half) & (y <= height - size + half)
    chosen: list[np.ndarray] = []
    free = np.ones((height, width), bool)
    reach = min_distance - 1
    for point in points[inside]:
        if free[point[1], point[0]]:
            chosen.append(point)
            if len(chosen) == most:
                break
            _block_disc(free, point, reach)
    return np.array(chosen, np.int32).reshape(-1, 2)


def _block_disc(free: np.ndarray, point: np.ndarray, reach: int) -> None:
    """Mark every pixel closer than ``reach + 1`` to ``point`` as taken."""
    x, y = int(point[0]), int(point[1])
    top, left = max(0, y - reach), max(0, x - reach)
    window = free[top : y + reach + 1, left : x + reach + 1]
    rows = np.arange(top, top + window.shape[0])[:, None] - y
    columns = np.arange(left, left + window.shape[1])[None] - x
    window[rows * rows + columns * columns < (reach + 1) ** 2] = False


def _sift_points(image: np.ndarray) -> np.ndarray:
    # A detector of its own per call: OpenCV detectors must not be shared by threads.
    keypoints = cv2.SIFT.create().detect(image, None)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float64).reshape(-1, 2)
    strength = np.array([keypoint.response for keypoint in keypoints])
    # Stable order: strength, then row, then column.
    order = np.lexsort((points[:, 0], points[:, 1], -strength))
    return np.rint(points[order]).astype(np.int32)


def crop(image: np.ndarray, x: int, y: int, size: int = PATCH_SIZE) -> np.ndarray:
    """The (size, size) window whose pixel (size // 2, size // 2) is column x, row y."""
    half = size // 2
    return image[y - half : y - half + size, x - half : x - half + size]


def cut_pair(pair: ImagePair, options: PrepareOptions, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of one image pair: (k, 64, 128) uint8 and their centres (k, 2) int32 x, y.

    Windows that are constant in either image (no-data areas) are dropped.
    """
    optical, sar = read_pair(pair)
    points = detect_points(optical, sar, options.detect, options.min_distance)
    rows, kept = [], []
    for x, y in points:
        halves = crop(optical, x, y), crop(sar, x, y)
        if all(half.min() < half.max() for half in halves):
            rows.append(np.concatenate(halves, axis=1))
            kept.append((x, y))
            if len(rows) == most:
                break
    return (
        np.array(rows, np.uint8).reshape(-1, *ROW_SHAPE),
        np.array(kept, np.int32).reshape(-1, 2),
    )


# ---------------------------------------------------------------------------------------------
# the whole preparation


def prepare(pairs: Sequence[ImagePair], out: str | Path, options: PrepareOptions) -> dict[str, Any]:
    """Cut patches and write ``<split>.npz`` (or ``.h5``) and ``patches.json`` into ``out``.

    Training rows are all matching and shuffled. Validation and test rows are matching pairs
    and ``test_negative_ratio`` times as many non-matching ones, made of the same patches: each
    optical patch with the SAR patch of another scene. Equal inputs and options give equal
    archives, whatever the number of threads.

    Returns:
        The content of the manifest.

    Raises:
        UserError: wrong options or images; or too few scenes for non-matching pairs.
    """
    options.check()
    split = split_pairs(pairs, options)
    folder = Path(out)
    manifest: dict[str, Any] = {"options": asdict(options), "splits": {}, "skipped": []}
    with FolderLock(folder):
        for number, name in enumerate(SPLITS):
            if not split[name]:
                continue
            generator = np.random.default_rng([options.seed, 2 + number])
            path = folder / f"{name}{options.suffix}"
            summary, skipped = _prepare_split(name, split[name], path, options, generator)
            manifest["splits"][name] = summary
            manifest["skipped"] += skipped
            log.info(
                "%s: %d matching and %d non-matching patches of %d images in %d scenes -> %s",
                name, summary["matching"], summary["non_matching"], summary["images"],
                len(summary["scenes"]), path,
            )  # fmt: skip
        write_json(folder / MANIFEST, manifest)
    if manifest["skipped"]:
        log.warning("%d image pairs were skipped, listed in %s", len(manifest["skipped"]),
                       folder / MANIFEST)  # fmt: skip
    return manifest


def _prepare_split(
    name: str,
    pairs: Sequence[ImagePair],
    path: Path,
    options: PrepareOptions,
    generator: np.random.Generator,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    most = (options.train_per_image or options.per_image) if name == "train" else options.per_image
    skipped: list[dict[str, str]] = []

    def cut(pair: ImagePair) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            return cut_pair(pair, options, most)
        except UserError as error:
            if options.on_error == "stop":
                raise UserError(f"{error} (or set on_error to skip)") from error
            log.warning("skipped: %s", error)
            skipped.append({"pair": pair.name, "reason": str(error)})
            return None

    # A nameless file of all patches: rows are written in another order than they are cut.
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        owners: list[int] = []
        centres: list[np.ndarray] = []
        results = map_parallel(cut, pairs, options.workers)
        for index, patches in enumerate(progress(results, len(pairs), name)):
            if patches is not None:
                spool.write(patches[0].data)
                owners += [index] * len(patches[0])
                centres.append(patches[1])
        if not owners:
            raise UserError(
                f"no patch could be cut from the {len(pairs)} image pairs of {name}: SIFT found "
                "no keypoint far enough from the borders, or every image was skipped"
            )
        spool.flush()
        store = np.memmap(spool, np.uint8, "r", shape=(len(owners), *ROW_SHAPE))
        owner = np.array(owners)
        rows = _rows(name, np.array([pairs[index].scene for index in owner]), options, generator)
        _write_rows(path, store, rows, [pairs[i].name for i in owner], np.concatenate(centres))
    summary = {
        "file": path.name,
        "matching": int(rows[:, 2].sum()),
        "non_matching": int((rows[:, 2] == 0).sum()),
        "images": len(np.unique(owner)),
        "scenes": sorted({pairs[index].scene for index in owner}),
    }
    return summary, sorted(skipped, key=lambda entry: entry["pair"])


def _rows(
    name: str, scenes: np.ndarray, options: PrepareOptions, generator: np.random.Generator
) -> np.ndarray:
    """(N, 3) optical patch, SAR patch, label of every row, in final order."""
    count = len(scenes)
    own = np.arange(count)
    rows = np.stack([own, own, np.ones(count, int)], axis=1)
    wanted = round(options.test_negative_ratio * count) if name != "train" else 0
    while wanted > 0:
        others = other_scene(scenes, generator)
        chosen = generator.permutation(count)[:wanted]
        negative = np.stack([chosen, others[chosen], np.zeros(len(chosen), int)], axis=1)
        rows = np.concatenate([rows, negative])
        wanted -= len(chosen)
    return rows[generator.permutation(len(rows))]


def other_scene(scenes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random permutation p with ``scenes[p[i]] != scenes[i]`` for all i.

    Where one scene holds more than half of the patches no such permutation exists; partners
    are then drawn with repetition.

    Raises:
        UserError: there is only one scene.
    """
    _, number, counts = np.unique(scenes, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise UserError(
            f"non-matching pairs need patches of two scenes, but all {len(scenes)} come from "
            f"{scenes[0]}; use more scenes or test_negative_ratio 0"
        )
    if 2 * counts.max() > len(scenes):
        partners = np.empty(len(scenes), int)
        for scene in range(len(counts)):
            own = number == scene
            partners[own] = generator.choice(np.flatnonzero(~own), size=int(own.sum()))
        return partners
    partners = generator.permutation(len(scenes))
    clashes = np.flatnonzero(number[partners] == number)
    while clashes.size:
        # Exchange partners with someone for whom the exchange is harmless on both sides.
        for row in clashes:
            fits = (number[partners] != number[row]) & (number != number[partners[row]])
            other = generator.choice(np.flatnonzero(fits))
            partners[[row, other]] = partners[[other, row]]
        clashes = np.flatnonzero(number[partners] == number)
    return partners


def _write_rows(
    path: Path, store: np.ndarray, rows: np.ndarray, names: Sequence[str], centres: np.ndarray
) -> None:
    with PatchWriter(path) as writer:
        for start in range(0, len(rows), _BLOCK):
            first, second, labels = rows[start : start + _BLOCK].T
            images = np.concatenate(
                [store[first, :, :PATCH_SIZE], store[second, :, PATCH_SIZE:]], axis=2
            )
            writer.append(
                images,
                labels,
                [(names[i], names[j]) for i, j in zip(first, second, strict=True)],
                np.concatenate([centres[first], centres[second]], axis=1),
            )


def convert(source: str | Path, target: str | Path) -> int:
    """Copy an archive into another format (by suffix), keeping order, labels and sources.

    Returns:
        The number of rows.
    """
    archive = open_patches(source)
    if Path(source).resolve() == Path(target).resolve():
        raise UserError(f"{source} cannot be converted into itself; choose another target")
    names, sources = archive.names, archive.sources
    with PatchWriter(target, archive.dtype) as writer:
        for start in range(0, len(archive), _BLOCK):
            stop = min(start + _BLOCK, len(archive))
            origin = None
            if names is not None and sources is not None:
                origin = [(str(names[i]), str(names[j])) for i, j in sources[start:stop]]
            writer.append(
                np.concatenate(archive.pairs(start, stop), axis=2),
                archive.labels[start:stop],
                origin,
                None if archive.positions is None else archive.positions[start:stop],
            )
    return len(archive)


def map_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0
) -> Iterator[Result]:
    """``map`` over threads: results in order, only a few of them waiting in memory.

    OpenCV and file reading release Python's lock, so threads are enough. The first exception
    ends the iteration. ``workers`` 0 means one per core, at most 8.
    """
    count = workers or min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(count)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """``items`` with a bar on a terminal, else with a log line now and then."""
    bar = Progress(total, what, unit="image")
    try:
        for item in items:
            yield item
            bar.advance()
    finally:
        bar.close()
