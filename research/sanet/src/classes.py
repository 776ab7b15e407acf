"""The classes of the data sets SANet was trained on, with their numbers and colours in files."""

import numpy as np

from model_utils.segmentation import IGNORE, ClassTable

# Name, number in labelIds files, colour; in the order of the 19 training classes.
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
# Numbers 0 to 33 that are not trained on, and -1 (license plate), which 8 bits store as 255.
_CITYSCAPES_VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, IGNORE)

CITYSCAPES = ClassTable(
    names=tuple(name for name, _, _ in _CITYSCAPES),
    colours=np.array([colour for _, _, colour in _CITYSCAPES], np.uint8),
    ids=tuple(number for _, number, _ in _CITYSCAPES),
    void_ids=_CITYSCAPES_VOID,
    void_colours=None,
)

# Masks that already hold the training classes (*_labelTrainIds.png).
CITYSCAPES_TRAIN_IDS = ClassTable(CITYSCAPES.names, CITYSCAPES.colours, void_colours=None)

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
