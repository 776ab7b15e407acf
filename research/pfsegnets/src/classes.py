"""The classes of the data sets PFNet was trained on, with their numbers and colours in files."""

import numpy as np

from model_utils.segmentation import ClassTable

# Class numbers and colours (red, green, blue) of iSAID's semantic masks (`*_color_RGB.png`).
_ISAID = (
    ("background", (0, 0, 0)),
    ("ship", (0, 0, 63)),
    ("storage tank", (0, 63, 63)),
    ("baseball diamond", (0, 63, 0)),
    ("tennis court", (0, 63, 127)),
    ("basketball court", (0, 63, 191)),
    ("ground track field", (0, 63, 255)),
    ("bridge", (0, 127, 63)),
    ("large vehicle", (0, 127, 127)),
    ("small vehicle", (0, 0, 127)),
    ("helicopter", (0, 0, 191)),
    ("swimming pool", (0, 0, 255)),
    ("roundabout", (0, 191, 127)),
    ("soccer ball field", (0, 127, 191)),
    ("plane", (0, 127, 255)),
    ("harbor", (0, 100, 155)),
)

_ISPRS = (
    ("impervious surface", (255, 255, 255)),
    ("building", (0, 0, 255)),
    ("low vegetation", (0, 255, 255)),
    ("tree", (0, 255, 0)),
    ("car", (255, 255, 0)),
    ("clutter", (255, 0, 0)),
)


def _table(classes: tuple[tuple[str, tuple[int, int, int]], ...]) -> ClassTable:
    return ClassTable(
        names=tuple(name for name, _ in classes),
        colours=np.array([colour for _, colour in classes], np.uint8),
    )


# Grey masks hold 0 ... 15, colour masks the colours; number 255 is ignored.
ISAID = _table(_ISAID)

# Vaihingen and Potsdam; all six count, clutter too.
ISPRS = _table(_ISPRS)

# The contest's masks hold 0 and 255, so that no number is left to be ignored.
_BLACK_WHITE = np.array([(0, 0, 0), (255, 255, 255)], np.uint8)
GAOFEN_ICE = ClassTable(("background", "ice"), _BLACK_WHITE, ids=(0, 255), void_ids=())
GAOFEN_FARM = ClassTable(("background", "farm"), _BLACK_WHITE, ids=(0, 255), void_ids=())

TABLES = {
    "isaid": ISAID,
    "vaihingen": ISPRS,
    "potsdam": ISPRS,
    "gaofen_img": GAOFEN_ICE,
    "gaofen_sar": GAOFEN_FARM,
}
