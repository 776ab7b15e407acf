"""Images with class masks: the table of classes, reading masks, pairing images with masks."""

import csv
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from model_utils.errors import UserError
from model_utils.files import PathLike, read_image, require_file, require_folder

log = logging.getLogger("zoo")

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

    def decode(
        self, mask: np.ndarray, source: object, origin: tuple[int, int] = (0, 0)
    ) -> np.ndarray:
        """Labels of a mask as it is in its file.

        Args:
            mask: (H, W) numbers, 8 or 16 bits, or (H, W, 3) RGB uint8.
            source: what the mask was read from, for messages.
            origin: row and column of the first pixel, where the mask is a part of its file.

        Returns:
            (H, W) uint8, 0 ... K-1 or :data:`IGNORE`.

        Raises:
            UserError: a number or colour that is neither a class nor ignored; names the pixel.
        """
        if mask.ndim == 2 and mask.dtype in (np.uint8, np.uint16):
            if mask.dtype == np.uint8:
                labels = cv2.LUT(mask, self._label_of_id[:256])
            else:
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
                f"mask {source} has {what} at row {origin[0] + row}, column {origin[1] + column}, "
                f"which is none of the {len(self)} classes and not declared as ignored; correct "
                "the mask (lossy formats such as JPEG change colours) or the table of classes"
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
            numbers in grey files, colours in RGB files; of a palette PNG the indices if the
            table gives numbers, else the colours.

    Returns:
        (H, W) uint8, 0 ... K-1 or :data:`IGNORE`.

    Raises:
        UserError: missing, corrupt, or with a number or colour that is not in the table.
    """
    colour_type, depth = _png_kind(path)
    numbers = values == "ids" or (values == "auto" and classes.ids is not None)
    if colour_type == _PALETTE and numbers:
        return classes.decode(_palette_indices(path), path)
    mask = read_image(path, channels=0)
    if values == "colours" and mask.ndim == 2:
        return _grey_colours(mask, classes, path)
    if mask.ndim == 3:
        mask = np.ascontiguousarray(mask[:, :, :3])
        if values == "ids":
            if (mask != mask[:, :, :1]).any():
                raise UserError(f"mask {path} is a colour image; class numbers (grey) are expected")
            mask = mask[:, :, 0]
    elif depth < 8:
        # Decoders stretch 1, 2 and 4 bits to 0 ... 255.
        mask = mask // np.uint8(255 // ((1 << depth) - 1))
    return classes.decode(mask, path)


def _grey_colours(mask: np.ndarray, classes: ClassTable, path: PathLike) -> np.ndarray:
    """Labels of a colour mask stored as grey, refusing numbers where others are ignored."""
    labels = classes.decode(np.repeat(mask[:, :, None], 3, axis=2), path)
    if (labels == IGNORE).all() and mask.any():
        raise UserError(
            f"mask {path} is grey and holds no class colour; if these are class numbers, name them "
            "in a palette (name,id)"
        )
    return labels


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
        masks: every line must name a mask; otherwise only where a line does.

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
        found = [base / field for field in fields[:2]]
        for file in found:
            if not file.is_file():
                raise UserError(
                    f"{path}, line {number}: {file} does not exist; correct the list or data.root"
                )
        pairs.append(Pair(found[0], found[1] if len(found) > 1 else None))
    if not pairs:
        raise UserError(f"list file {path} names no images; write 'image mask' lines")
    return pairs


def list_images(folder: PathLike) -> list[Path]:
    """All image files below a folder, sorted.

    Raises:
        UserError: no such folder.
    """
    found = require_folder(folder, "image folder")
    return sorted(
        path
        for path in found.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def pair_folders(images: PathLike, masks: PathLike | None) -> list[Pair]:
    """Images of a folder with the masks that have the same name up to the suffix.

    Sub-folders count as part of the name. If both are one folder, PNGs beside an image of
    another type are the masks.

    Args:
        images: folder of images.
        masks: folder of masks; None for images without masks.

    Raises:
        UserError: no images, an image without a mask, two files of one name.
    """
    files = list_images(images)
    mask_files: list[Path] = []
    if masks is not None and Path(masks).resolve() == Path(images).resolve():
        mask_files = [file for file in files if file.suffix.lower() == ".png"]
        files = [file for file in files if file.suffix.lower() != ".png"]
    elif masks is not None:
        mask_files = list_images(masks)
    if not files:
        raise UserError(f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    image_of = _by_stem(images, files)
    if masks is None:
        return [Pair(file, None) for file in image_of.values()]
    mask_of = _by_stem(masks, mask_files)
    for stem, file in image_of.items():
        if stem not in mask_of:
            raise UserError(f"image {file} has no mask {stem}.* in {masks}; add it or use a list")
    surplus = len(mask_of) - len(image_of)
    if surplus:
        log.warning("%s: %d masks have no image and are not used", masks, surplus)
    return [Pair(file, mask_of[stem]) for stem, file in image_of.items()]


def _by_stem(folder: PathLike, files: Iterable[Path]) -> dict[Path, Path]:
    found: dict[Path, Path] = {}
    for file in files:
        stem = file.relative_to(folder).with_suffix("")
        if stem in found:
            raise UserError(f"{found[stem]} and {file} have one name; remove one of them")
        found[stem] = file
    return found


def to_eight_bits(image: np.ndarray, source: object) -> np.ndarray:
    """An image as uint8; 16 bits are scaled so that 65535 becomes 255.

    The whole range rather than each image's own, so that brightness stays comparable.

    Raises:
        UserError: floating point or 32-bit values, whose range is unknown.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return cv2.convertScaleAbs(image, alpha=255 / 65535)
    raise UserError(
        f"image {source} holds {image.dtype} values; convert it to 8 or 16 bits per channel"
    )


# ---------------------------------------------------------------------------------------------
# palettes


def default_colours(count: int) -> np.ndarray:
    """Distinct colours (count, 3) uint8: the colour map of PASCAL VOC, without its black."""
    numbers = np.arange(1, count + 1)
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours


def read_palette(path: PathLike) -> ClassTable:
    """The table of classes from a user's file; see :data:`PALETTE_HELP` for its forms.

    Classes are numbered in the file's order, rows marked ``ignore`` left out. Colours and
    numbers that are not in the file are errors in masks; number 255 is ignored unless it is a
    class of the file, as in masks of 0 and 255.

    Raises:
        UserError: malformed, a value out of range, a name, colour or number twice.
    """
    require_file(path, "palette")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"palette {path} is not UTF-8 text ({error})") from error
    is_yaml = Path(path).suffix.lower() in (".yaml", ".yml")
    rows = _yaml_rows(path, text) if is_yaml else _text_rows(path, text)
    entries = [_entry(where, row) for where, row in rows]
    _refuse_doubles(path, entries)
    classes = [entry for entry in entries if not entry.ignore]
    void = [entry for entry in entries if entry.ignore]
    if not classes:
        raise UserError(f"palette {path} names no class; {PALETTE_HELP}")
    for part in ("number", "colour"):
        given = [getattr(entry, part) is not None for entry in classes]
        if any(given) and not all(given):
            name = classes[given.index(False)].name
            raise UserError(f"palette {path}: {name!r} has no {part}, other classes have one")
    colours = [entry.colour for entry in classes if entry.colour is not None]
    numbers = tuple(entry.number for entry in classes if entry.number is not None)
    return ClassTable(
        names=tuple(entry.name for entry in classes),
        colours=np.array(colours, np.uint8) if colours else default_colours(len(classes)),
        ids=numbers or None,
        void_ids=(IGNORE, *(entry.number for entry in void if entry.number is not None)),
        void_colours=tuple(entry.colour for entry in void if entry.colour is not None),
    )


PALETTE_HELP = (
    "write a table with a header of some of name,r,g,b,id,ignore, lines 'name r g b' or "
    "'name id', or YAML 'name: [r, g, b]' or 'name: id'"
)
_COLUMNS = ("name", "r", "g", "b", "id", "ignore")
_ALIASES = {
    "red": "r",
    "green": "g",
    "blue": "b",
    "class": "name",
    "label": "name",
    "void": "ignore",
}
_WITHOUT_HEADER = {
    2: ("name", "id"),
    4: ("name", "r", "g", "b"),
    5: ("name", "r", "g", "b", "ignore"),
}
_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


@dataclass(frozen=True)
class _Entry:
    name: str
    colour: Colour | None
    number: int | None
    ignore: bool


def _text_rows(path: PathLike, text: str) -> list[tuple[str, dict[str, str]]]:
    lines = [
        (f"palette {path}, line {number}", line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    separator = next((mark for mark in ",;\t" if lines and mark in lines[0][1]), None)
    cells = [(where, [cell.strip() for cell in _split(line, separator)]) for where, line in lines]
    if not cells:
        return []
    first = [_ALIASES.get(cell.lower(), cell.lower()) for cell in cells[0][1]]
    if "name" in first:
        unknown = [name for name in first if name not in _COLUMNS]
        if unknown:
            raise UserError(f"{cells[0][0]}: unknown column {unknown[0]!r}; {PALETTE_HELP}")
        columns: Sequence[str] = first
        cells = cells[1:]
    else:
        columns = _WITHOUT_HEADER.get(len(first), ())
    rows = []
    for where, row in cells:
        if len(row) != len(columns):
            raise UserError(f"{where}: {len(row)} columns; {PALETTE_HELP}")
        rows.append((where, dict(zip(columns, row, strict=True))))
    return rows


def _split(line: str, separator: str | None) -> list[str]:
    return next(csv.reader([line], delimiter=separator)) if separator else line.split()


def _yaml_rows(path: PathLike, text: str) -> list[tuple[str, dict[str, str]]]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"palette {path} is not valid YAML: {error}") from error
    if isinstance(content, Mapping):
        content = [{"name": name, **_yaml_value(value)} for name, value in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise UserError(f"palette {path} is not a table of classes; {PALETTE_HELP}")
    rows = []
    for number, row in enumerate(content, 1):
        where = f"palette {path}, entry {number}"
        cells = {str(key): value for key, value in row.items()}
        for key in ("colour", "color"):
            cells.update(_yaml_value(cells.pop(key, {})))
        cells = {_ALIASES.get(key.lower(), key.lower()): cells[key] for key in cells}
        unknown = [key for key in cells if key not in _COLUMNS]
        if unknown:
            raise UserError(f"{where}: unknown key {unknown[0]!r}; {PALETTE_HELP}")
        rows.append((where, {key: str(value).strip() for key, value in cells.items()}))
    return rows


def _yaml_value(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        # A colour of another length fails as the missing or surplus column it is.
        return dict(zip(("r", "g", "b", "ignore"), value, strict=False))
    return {"id": value}


def _entry(where: str, row: Mapping[str, str]) -> _Entry:
    def number(key: str, top: int) -> int:
        value = row.get(key, "")
        if not re.fullmatch(r"\d{1,5}", value) or int(value) > top:
            raise UserError(f"{where}: {key} is {value!r}; it must be a number from 0 to {top}")
        return int(value)

    name = row.get("name", "")
    if not name:
        raise UserError(f"{where}: the class has no name; {PALETTE_HELP}")
    colour = None
    if any(key in row for key in "rgb"):
        colour = (number("r", 255), number("g", 255), number("b", 255))
    flag = row.get("ignore", "").lower()
    if flag not in _FLAGS:
        raise UserError(f"{where}: ignore is {flag!r}; write 0 or 1")
    identity = number("id", 65535) if "id" in row else None
    return _Entry(name, colour, identity, _FLAGS[flag])


def _refuse_doubles(path: PathLike, entries: Sequence[_Entry]) -> None:
    for part in ("name", "colour", "number"):
        seen: dict[Any, str] = {}
        for entry in entries:
            value = getattr(entry, part)
            if value is not None and value in seen:
                raise UserError(
                    f"palette {path}: {seen[value]!r} and {entry.name!r} have one {part}, {value}"
                )
            seen[value] = entry.name
