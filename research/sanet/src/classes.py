"""The classes of the data sets SANet was trained on, with their numbers and colours in files."""

from dataclasses import replace

import numpy as np

from model_utils.segmentation import IGNORE, ClassTable

# All labels of Cityscapes in the order of their numbers, 0 to 33, which GTAV shares; then
# GTAV's number 34. True marks the 19 that are trained on.
_LABELS = (
    ("unlabeled", (0, 0, 0), False),
    ("ego vehicle", (0, 0, 0), False),
    ("rectification border", (0, 0, 0), False),
    ("out of roi", (0, 0, 0), False),
    ("static", (0, 0, 0), False),
    ("dynamic", (111, 74, 0), False),
    ("ground", (81, 0, 81), False),
    ("road", (128, 64, 128), True),
    ("sidewalk", (244, 35, 232), True),
    ("parking", (250, 170, 160), False),
    ("rail track", (230, 150, 140), False),
    ("building", (70, 70, 70), True),
    ("wall", (102, 102, 156), True),
    ("fence", (190, 153, 153), True),
    ("guard rail", (180, 165, 180), False),
    ("bridge", (150, 100, 100), False),
    ("tunnel", (150, 120, 90), False),
    ("pole", (153, 153, 153), True),
    ("polegroup", (153, 153, 153), False),
    ("traffic light", (250, 170, 30), True),
    ("traffic sign", (220, 220, 0), True),
    ("vegetation", (107, 142, 35), True),
    ("terrain", (152, 251, 152), True),
    ("sky", (70, 130, 180), True),
    ("person", (220, 20, 60), True),
    ("rider", (255, 0, 0), True),
    ("car", (0, 0, 142), True),
    ("truck", (0, 0, 70), True),
    ("bus", (0, 60, 100), True),
    ("caravan", (0, 0, 90), False),
    ("trailer", (0, 0, 110), False),
    ("train", (0, 80, 100), True),
    ("motorcycle", (0, 0, 230), True),
    ("bicycle", (119, 11, 32), True),
    ("license plate", (0, 0, 142), False),
)
_TRAINED = [number for number, (_, _, trained) in enumerate(_LABELS) if trained]
_LICENSE_PLATE = len(_LABELS) - 1

# Every number of Cityscapes' labelIds files that is not trained on is ignored, as is -1
# (license plate), which 8 bits hold as 255; any other number is an error.
CITYSCAPES = ClassTable(
    names=tuple(_LABELS[number][0] for number in _TRAINED),
    colours=np.array([_LABELS[number][1] for number in _TRAINED], np.uint8),
    ids=tuple(_TRAINED),
    void_ids=(*(n for n in range(_LICENSE_PLATE) if n not in _TRAINED), IGNORE),
    void_colours=None,
)

# Masks that already hold the training classes (*_labelTrainIds.png).
CITYSCAPES_TRAIN_IDS = replace(CITYSCAPES, ids=None, void_ids=(IGNORE,))

# GTAV with all its numbers as classes, as the reference trains it. Among the colours the five
# blacks are "unlabeled" and license plates are "car"; numbers tell them apart.
GTAV = ClassTable(
    names=tuple(name for name, _, _ in _LABELS),
    colours=np.array([colour for _, colour, _ in _LABELS], np.uint8),
    ids=tuple(range(len(_LABELS))),
)

# GTAV with the classes of Cityscapes.
GTAV_MAPPED = replace(CITYSCAPES, void_ids=(*(CITYSCAPES.void_ids or ()), _LICENSE_PLATE))

# The 11 classes commonly used of CamVid's 32, in the reference's order; the masks are colour
# images, and every other colour is ignored.
CAMVID = ClassTable(
    names=(
        "bicyclist", "building", "car", "pole", "fence", "pedestrian", "road", "sidewalk",
        "sign", "sky", "tree",
    ),
    colours=np.array(
        [
            (0, 128, 192), (128, 0, 0), (64, 0, 128), (192, 192, 128), (64, 64, 128),
            (64, 64, 0), (128, 64, 128), (0, 0, 192), (192, 128, 128), (128, 128, 128),
            (128, 128, 0),
        ],
        np.uint8,
    ),
    void_colours=None,
)  # fmt: skip
