"""Masks in class colours to masks of class numbers."""

import logging
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from model_utils.errors import UserError
from model_utils.segmentation import IGNORE, ClassTable
from model_utils.tiling import RowReader

log = logging.getLogger("zoo")


class LabelReader:
    """Class numbers of a mask file, rows in order; see :class:`model_utils.tiling.RowReader`.

    Args:
        path: a mask in class colours, or already in class numbers.
        classes: the table of classes.
        unknown: what becomes of colours that are no class: "error", "ignore" (255) or
            "background" (0, as the reference's converters do without a word).

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, path: Path, classes: ClassTable, unknown: str = "error") -> None:
        self.path, self.unknown = path, unknown
        self._rows = RowReader(path)
        self._classes = classes
        self.height, self.width = self._rows.height, self._rows.width

    def read(self, top: int, bottom: int, left: int = 0, right: int = 0) -> np.ndarray:
        """(rows, columns) uint8, 0 ... K-1 or 255.

        Raises:
            UserError: a colour that is no class, unless it has another meaning; names file,
                pixel and colour.
        """
        mask = self._rows.read(top, bottom, left, right)
        try:
            labels = self._classes.decode(mask, self.path, (top, left))
        except UserError as error:
            if self.unknown == "error":
                raise UserError(
                    f"{error}, or say with prepare.unknown what becomes of such pixels"
                ) from error
            log.warning("%s (prepare.unknown=%s)", error, self.unknown)
            self._classes = replace(self._classes, void_ids=None, void_colours=None)
            labels = self._classes.decode(mask, self.path, (top, left))
        if self.unknown == "background":
            labels[labels == IGNORE] = 0
        return labels

    def __enter__(self) -> "LabelReader":
        """The reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._rows.__exit__(kind, error, trace)
