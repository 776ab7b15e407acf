"""The contest's entry: a folder of images in, a folder of masks of 0 and 255 out.

As upstream's ``run.py``: every image is resized to a square, scored plain and mirrored, and the
mean of the logits, brought to the image's own size, decides. Both Gaofen tracks (sea ice in
visible light, off-shore farms in SAR images) are called alike.
"""

import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model_utils.entry import command, guarded
from model_utils.errors import UserError
from model_utils.files import read_image, require_folder, write_image
from model_utils.logs import Progress
from model_utils.segmentation import IMAGE_SUFFIXES, to_eight_bits
from model_utils.windows import resize_aligned

from .api import PFSegNets
from .config import ContestConfig, PFNetConfig
from .task import PFNetTask

log = logging.getLogger("zoo")

USAGE = "python run.py INPUT_FOLDER OUTPUT_FOLDER [--key=value ...]"
CONFIG = "gaofen_img"  # the networks of both tracks are alike
# Looked for in the folder that run.py is started from, as contest images carry their weights.
WEIGHTS = ("weights.onnx", "weights.ckpt", "outputs/train/best.ckpt")
_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: two folders, then keys of the configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"}.isdisjoint(arguments):
        folders = list(itertools.takewhile(lambda text: not text.startswith("-"), arguments))
        if len(folders) != 2:
            guarded(_refuse)
        source, target = folders
        arguments = [f"--images={source}", f"--output_path={target}", *arguments[2:]]
    if not any(argument.startswith("--config_path") for argument in arguments):
        arguments.append(f"--config_path={CONFIG}")
    command(PFNetTask(), "run", run, arguments)


def _refuse() -> None:
    raise UserError(f"run.py takes two folders: {USAGE}")


def run(task: PFNetTask, config: PFNetConfig, output: Path) -> None:
    """Write a mask for every image of ``config.infer.images``, a folder, to ``output``.

    What cannot be read is named in the end; all other masks are written before.

    Raises:
        UserError: no images, two that would share a mask, no weights, not two classes, or some
            images that could not be read.
    """
    source = require_folder(config.infer.images, "input folder", USAGE)
    if source.resolve() == output.resolve():
        raise UserError(f"{source} is input and output folder; masks would replace images")
    files = contest_images(source)
    names = mask_names(files)
    model = PFSegNets.from_checkpoint(_weights(config), config.infer.backend, config)
    if len(model.classes) != 2:
        raise UserError(
            f"the configuration has {len(model.classes)} classes, the contest's masks two; use "
            "--config_path=gaofen_img or gaofen_sar"
        )
    failed: list[str] = []
    progress = Progress(len(files), "segmenting", unit="image")
    for path in files:
        try:
            image = to_eight_bits(read_image(path), path)
        except UserError as error:
            log.error("%s", error)
            failed.append(path.name)
        else:
            write_image(output / names[path], contest_mask(model, image))
        progress.advance()
    progress.close()
    log.info("%d masks in %s", len(files) - len(failed), output)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(files)} images could not be read and have no mask: "
            f"{', '.join(failed)}; replace them and run again"
        )


def contest_images(folder: Path) -> list[Path]:
    """The images of a folder, in order of name; other files are left out with a warning.

    Raises:
        UserError: there is none.
    """
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    others = [path.name for path in files if path not in set(images)]
    if others:
        log.warning("%s: left out, no images by their names: %s", folder, ", ".join(others))
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return images


def mask_names(files: Sequence[Path]) -> dict[Path, str]:
    """What the masks are called: the image's name with ``.png`` instead of its suffix.

    Like upstream, any further ``.tif`` and ``.png`` in the name go, too.

    Raises:
        UserError: two images would have one mask.
    """
    names: dict[Path, str] = {}
    taken: dict[str, Path] = {}
    for path in files:
        name = path.stem.replace(".tif", "").replace(".png", "") + ".png"
        if name in taken:
            raise UserError(
                f"{taken[name].name} and {path.name} would both have the mask {name}; rename one"
            )
        taken[name] = path
        names[path] = name
    return names


def contest_mask(model: PFSegNets, image: np.ndarray) -> np.ndarray:
    """The mask of an image.

    Args:
        model: a network of two classes.
        image: (H, W, 3) RGB uint8.

    Returns:
        (H, W) uint8, 0 or 255.
    """
    keys: ContestConfig = model.config.contest
    small = resized(image, keys.size, keys.interpolation)
    logits = model.logits(small, tuple(keys.scales), keys.flip)
    logits = resize_aligned(logits, (image.shape[0], image.shape[1]))
    return logits.argmax(axis=0).astype(np.uint8) * np.uint8(255)


def resized(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """An image (H, W, 3) uint8 as a square of ``size`` pixels by Pillow; 0 changes nothing."""
    if not size or image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), _INTERPOLATIONS[interpolation]))


def _weights(config: PFNetConfig) -> Path:
    if config.checkpoint_path:
        return Path(config.checkpoint_path)
    found = next((Path(name) for name in WEIGHTS if Path(name).is_file()), None)
    if found is None:
        raise UserError(
            f"no weights: none of {', '.join(WEIGHTS)} is here; add --checkpoint_path=FILE"
        )
    return found
