"""Images with class masks: the table of classes, reading masks, pairing images with masks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, read_image, require_file, require_folder

# Label of pixels that no loss and no metric counts.
IGNORE = 255
# Marks, inside the lookup tables, what a file may not contain.
_UNKNOWN = 254
MAXIMUM_CLASSES = 254

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")

Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ClassTable:
    """The classes of a data set, and how its mask files name them.

    Attributes:
        names: one name per class; class k is label k everywhere behind the reader.
        colours: (K, 3) uint8, red, green, blue of each class, in colour masks and in pictures.
        ids: number of each class in grey masks; None numbers them 0 ... K-1.
        void_ids: numbers in grey masks that are ignored; None ignores all that are no class.
        void_colours: colours that are ignored; None ignores all that are no class.
    """

    names: tuple[str, ...]
    colours: np.ndarray
    ids: tuple[int, ...] | None = None
    void_ids: tuple[int, ...] | None = (IGNORE,)
    void_colours: tuple[Colour, ...] | None = ()

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        count = len(self.names)
        if not 1 <= count <= MAXIMUM_CLASSES:
            raise UserError(f"{count} classes; a table needs 1 to {MAXIMUM_CLASSES}")
        colours = np.array(self.colours, np.uint8)
        if colours.shape != (count, 3):
            raise UserError(f"colours of shape {colours.shape} for {count} classes")
        colours.setflags(write=False)
        object.__setattr__(self, "colours", colours)
        if self.ids is not None and len(self.ids) != count:
            raise UserError(f"{len(self.ids)} ids for {count} classes")

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        """Without the lookup tables: reading processes build their own."""
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}

    @cached_property
    def _label_of_id(self) -> np.ndarray:
        table = np.full(1 << 16, IGNORE if self.void_ids is None else _UNKNOWN, np.uint8)
        table[list(self.void_ids or ())] = IGNORE
        table[list(range(len(self)) if self.ids is None else self.ids)] = np.arange(len(self))
        return table

    @cached_property
    def _label_of_colour(self) -> np.ndarray:
        table = np.full(1 << 24, IGNORE if self.void_colours is None else _UNKNOWN, np.uint8)
        if self.void_colours:
            table[_colour_number(np.array(self.void_colours, np.uint8)[None])] = IGNORE
        # Backwards, so that of two classes with one colour the first wins.
        table[_colour_number(self.colours[None])[0, ::-1]] = np.arange(len(self))[::-1]
        return table

    def decode(self, mask: np.ndarray, source: object) -> np.ndarray:
        """Labels of a mask as it is in its file.

        Args:
            mask: (H, W) numbers, 8 or 16 bits, or (H, W, 3) RGB uint8.
            source: what the mask was read from, for messages.

        Returns:
            (H, W) uint8, 0 ... K-1 or :data:`IGNORE`.

        Raises:
            UserError: a number or colour that is neither a class nor ignored; names the pixel.
        """
        if mask.ndim == 2 and mask.dtype in (np.uint8, np.uint16):
            labels = self._label_of_id[mask]
        elif mask.ndim == 3 and mask.shape[2] == 3 and mask.dtype == np.uint8:
            labels = self._label_of_colour[_colour_number(mask)]
        else:
            raise UserError(
                f"mask {source} holds {mask.dtype} of shape {mask.shape}; masks are grey (8 or 16 "
                "bits, class numbers) or RGB (8 bits, class colours)"
            )
        unknown = labels == _UNKNOWN
        if unknown.any():
            row, column = np.argwhere(unknown)[0]
            value = mask[row, column]
            if mask.ndim == 2:
                what = f"class number {value}"
            else:
                what = "colour ({}, {}, {})".format(*value)
            raise UserError(
                f"mask {source} has {what} at row {row}, column {column}, which is none of the "
                f"{len(self)} classes and not declared as ignored; correct the mask (lossy "
                "formats such as JPEG change colours) or the table of classes"
            )
        return labels

    def colourise(self, labels: np.ndarray) -> np.ndarray:
        """Class colours of (H, W) labels as (H, W, 3) RGB uint8; ignored pixels are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colours
        return table[labels]

    def encode_ids(self, labels: np.ndarray) -> np.ndarray:
        """Numbers as grey masks hold them, uint8, of (H, W) labels 0 ... K-1.

        An ignored pixel becomes the first number that is ignored, or 255.
        """
        ids = range(len(self)) if self.ids is None else self.ids
        if max(ids) > 255:
            raise UserError(f"class number {max(ids)} does not fit into an 8-bit mask")
        table = np.full(256, self.void_ids[0] if self.void_ids else IGNORE, np.uint8)
        table[: len(self)] = list(ids)
        return table[labels]


def _colour_number(colours: np.ndarray) -> np.ndarray:
    # Four bytes per pixel read as one number, without a temporary array per channel.
    padded = cv2.cvtColor(colours, cv2.COLOR_RGB2BGRA)
    return padded.view("<u4")[..., 0] & np.uint32(0xFFFFFF)


def read_mask(path: PathLike, classes: ClassTable, values: str = "auto") -> np.ndarray:
    """Labels of a mask file.

    Args:
        path: PNG or another lossless format.
        classes: the table of classes.
        values: "ids" (class numbers; of a palette PNG its indices), "colours", or "auto":
            numbers in grey and palette files, colours in RGB files.

    Returns:
        (H, W) uint8, 0 ... K-1 or :data:`IGNORE`.

    Raises:
        UserError: missing, corrupt, or with a number or colour that is not in the table.
    """
    colour_type, depth = _png_kind(path)
    if colour_type == _PALETTE and values != "colours":
        return classes.decode(_palette_indices(path), path)
    mask = read_image(path, channels=3 if values == "colours" else 0)
    if mask.ndim == 3:
        mask = mask[:, :, :3]
        if values == "ids":
            if (mask != mask[:, :, :1]).any():
                raise UserError(f"mask {path} is a colour image; class numbers (grey) are expected")
            mask = mask[:, :, 0]
    elif depth < 8:
        # Decoders stretch 1, 2 and 4 bits to 0 ... 255.
        mask = mask // np.uint8(255 // ((1 << depth) - 1))
    return classes.decode(mask, path)


_PALETTE = 3


def _png_kind(path: PathLike) -> tuple[int, int]:
    """Colour type and bit depth of a PNG; (-1, 8) of other files."""
    require_file(path, "mask")
    with open(path, "rb") as stream:
        head = stream.read(26)
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n":
        return -1, 8
    return head[25], head[24]


def _palette_indices(path: PathLike) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"mask {path} is corrupt ({error}); replace or remove it") from error


@dataclass(frozen=True)
class Pair:
    """An image file and its mask, if it has one."""

    image: Path
    mask: Path | None


def read_list(path: PathLike, bases: Sequence[Path], masks: bool = True) -> list[Pair]:
    """Pairs named by a list file: ``image mask`` per line, relative to a folder.

    Fields are separated by tabs if the line has one (names may then hold spaces), otherwise by
    white space; ``#`` starts a comment at the beginning of a line or behind white space.

    Args:
        path: the list.
        bases: folders that names may be relative to; the first that holds the first image
            counts for the whole list.
        masks: every line must name a mask; otherwise a second field is not looked at.

    Raises:
        UserError: list missing or empty, a line without a mask, a missing file (named with its
            line).
    """
    require_file(path, "list file")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"list file {path} is not UTF-8 text ({error})") from error
    pairs: list[Pair] = []
    base: Path | None = None
    for number, line in enumerate(text.splitlines(), 1):
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if not content:
            continue
        fields = [
            field.strip() for field in re.split(r"\t+" if "\t" in content else r"\s+", content)
        ]
        if base is None:
            base = next((folder for folder in bases if (folder / fields[0]).is_file()), bases[0])
        if masks and len(fields) < 2:
            raise UserError(f"{path}, line {number}: {content!r} names no mask; write 'image mask'")
        found = [base / field for field in fields[: 2 if masks else 1]]
        for file in found:
            if not file.is_file():
                raise UserError(
                    f"{path}, line {number}: {file} does not exist; correct the list or data.root"
                )
        pairs.append(Pair(found[0], found[1] if masks else None))
    if not pairs:
        raise UserError(f"list file {path} names no images; write 'image mask' lines")
    return pairs


def list_images(folder: PathLike) -> list[Path]:
    """All image files below a folder, sorted."""
    found = require_folder(folder, "image folder")
    return sorted(
        path
        for path in found.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
