"""Predictions for the Cityscapes test server, and a check of their format.

The format is what the official evaluation reads (mcordts/cityscapesScripts,
``evaluation/evalPixelLevelSemanticLabeling.py``): anywhere below one folder, exactly one PNG per
image whose name begins with ``<city>_<sequence>_<frame>`` of the image, one channel, as large as
the image, every pixel the *regular* number of a class, 0 to 33, not its place among the 19
trained ones. The server takes such a folder as a ZIP archive. Its other limits, such as the
archive's size, are not written down in that script and not checked here.
"""

import logging
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path, require_folder, write_image
from model_utils.segmentation import ClassTable

from .classes import CITYSCAPES
from .dataset import SegmentationDataset

log = logging.getLogger("zoo")
# Rows and columns of every Cityscapes image.
SIZE = (1024, 2048)
# Numbers in Cityscapes' table of labels; -1, the licence plate, has no place in an image.
LABEL_IDS = range(34)
_IMAGE = re.compile(r"(?P<key>[^_]+_\d{6}_\d{6})(_.*)?\.\w+")
_SHOWN = 10


class Submission:
    """Writes ``submission/<image>.png`` with label numbers, then ``submission.zip``.

    Args:
        output: folder that both are written to.
        classes: the table with the numbers.

    Raises:
        UserError: the table has no label numbers.
    """

    def __init__(self, output: Path, classes: ClassTable) -> None:
        # Masks may hold training numbers; the classes are Cityscapes' all the same.
        if classes.names == CITYSCAPES.names:
            classes = CITYSCAPES
        if classes.ids is None:
            raise UserError(
                "a submission needs Cityscapes' label numbers, which this data does not have; "
                "use it with data.format=cityscapes"
            )
        self.folder = output / "submission"
        self.archive = output / "submission.zip"
        self.classes = classes
        self.images: list[str] = []

    def wants(self, index: int) -> bool:
        """Every image."""
        return True

    def add(
        self, index: int, dataset: SegmentationDataset, label: np.ndarray, prediction: np.ndarray
    ) -> None:
        """Write one image's (H, W) prediction under the image's name."""
        name = Path(dataset.name(index)).name
        # What is no class becomes 0, "unlabeled": 8 bits have no -1.
        write_image(self.folder / f"{Path(name).stem}.png", self.classes.encode_ids(prediction))
        self.images.append(name)

    def finish(self, *_: Any) -> dict[str, Any]:
        """Pack and check; every fault becomes a warning.

        Returns:
            ``submission``, the archive; ``submitted``, how many images it holds;
            ``submission_faults``, how many sentences :func:`check_submission` has.
        """
        images = sorted(self.images)
        pack(self.folder, self.archive, [f"{Path(name).stem}.png" for name in images])
        faults = check_submission(self.folder, images)
        for fault in faults[:_SHOWN]:
            log.warning("submission: %s", fault)
        if len(faults) > _SHOWN:
            log.warning("submission: %d more", len(faults) - _SHOWN)
        return {
            "submission": str(self.archive),
            "submitted": len(images),
            "submission_faults": len(faults),
        }


def pack(folder: PathLike, archive: PathLike, names: Iterable[str]) -> None:
    """Put files of a folder into a ZIP archive, atomically; equal files give equal archives."""
    with (
        atomic_path(archive) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target,
    ):
        for name in sorted(names):
            # A fixed date; PNG is compressed already.
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            target.writestr(entry, (Path(folder) / name).read_bytes())


def check_submission(
    folder: PathLike, images: Sequence[str], size: tuple[int, int] = SIZE
) -> list[str]:
    """What the evaluation server would reject, or score as wrong; empty if nothing.

    Args:
        folder: the predictions, in subfolders or not.
        images: files that should have one each, such as
            ``berlin/berlin_000000_000019_leftImg8bit.png``.
        size: rows and columns of the images.

    Returns:
        One sentence per fault, naming the file.

    Raises:
        UserError: there is no such folder, or no image.
    """
    root = require_folder(folder, "submission folder")
    if not images:
        raise UserError("the list of images is empty; there is nothing to check against")
    faults: list[str] = []
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        match = _IMAGE.fullmatch(path.name)
        if match is None or path.suffix != ".png":
            faults.append(
                f"{path} is not named <city>_<6 digits>_<6 digits>*.png and will not be found."
            )
        else:
            found[match["key"]].append(path)
    for image in images:
        match = _IMAGE.fullmatch(Path(image).name)
        if match is None:
            faults.append(f"Image {image} is not named <city>_<6 digits>_<6 digits>*.")
            continue
        paths = found.pop(match["key"], [])
        if not paths:
            faults.append(f"Image {image} has no prediction {match['key']}*.png.")
        elif len(paths) > 1:
            names = ", ".join(str(path) for path in paths)
            faults.append(
                f"Image {image} has {len(paths)} predictions, of which one may be: {names}."
            )
        for path in paths:
            faults += _check_file(path, size)
    for paths in found.values():
        faults += [f"{path} belongs to none of the {len(images)} images." for path in paths]
    return faults


def _check_file(path: Path, size: tuple[int, int]) -> list[str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            kind, mode, labels = image.format, image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        return [f"{path} cannot be decoded ({error})."]
    faults = []
    if kind != "PNG":
        faults.append(f"{path} is a {kind} file named as PNG.")
    if labels.shape[:2] != size:
        faults.append(
            f"{path} has {labels.shape[0]}x{labels.shape[1]} pixels (rows x columns) instead of "
            f"{size[0]}x{size[1]}."
        )
    if mode != "L":
        # Pillow's names: 1 is black and white, P has a palette, I;16 has 16 bits.
        faults.append(f"{path} is an image of mode {mode}, not one channel of 8 bits (L).")
        return faults
    numbers = np.unique(labels)
    outside = [str(number) for number in numbers if number not in LABEL_IDS]
    if outside:
        faults.append(f"{path} holds {', '.join(outside)}, but label numbers are 0 to 33.")
    scored = {0, *(CITYSCAPES.ids or ())}
    unscored = [str(n) for n in numbers if n in LABEL_IDS and int(n) not in scored]
    if unscored:
        faults.append(
            f"{path} holds {', '.join(unscored)}, numbers of labels that are never scored; "
            "they look like training numbers."
        )
    return faults
