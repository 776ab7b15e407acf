"""Data and a scorer whose predictions are known; also run as a script on several ranks.

The green channel of an image holds the class that the scorer predicts, its mask the truth.
"""

import sys
from pathlib import Path

import numpy as np

from model_utils.files import write_image, write_json
from model_utils.segmentation import IGNORE, ClassTable, Pair
from research.sanet.src.config import SANetConfig
from research.sanet.src.dataset import SegmentationDataset

TABLE = ClassTable(
    ("road", "tree", "sky", "kerb"),
    np.array([(128, 64, 128), (30, 140, 30), (70, 130, 220), (240, 200, 0)], np.uint8),
    ids=(7, 21, 23, 33),
    void_ids=(0, IGNORE),
)
STEP = 60
SIZES = [(24, 36), (24, 36), (17, 40), (24, 36), (1, 1), (17, 40), (24, 36)]


def blocks(rng, size, classes):
    coarse = rng.integers(0, classes, (-(-size[0] // 6), -(-size[1] // 6)))
    return np.kron(coarse, np.ones((6, 6), int))[: size[0], : size[1]].astype(np.uint8)


def make_data(folder, sizes=SIZES, masks=True, name="city_000000_{:06d}_photo.png"):
    """Write images and masks; returns the data set, the truths and the predictions."""
    rng = np.random.default_rng(5)
    truths, predictions, pairs = [], [], []
    for index, size in enumerate(sizes):
        truth = blocks(rng, size, 3)  # class 3 is never true
        prediction = np.where(rng.random(size) < 0.2, blocks(rng, size, 4), truth)
        truth = np.where(rng.random(size) < 0.1, IGNORE, truth).astype(np.uint8)
        if index == 3:
            truth[:] = IGNORE
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        image[:, :, 1] = STEP * prediction
        paths = folder / "images" / name.format(index), folder / "masks" / f"{index}.png"
        write_image(paths[0], image)
        # The first ignored number of the table, 0, stands for unlabelled pixels.
        write_image(paths[1], TABLE.encode_ids(truth))
        pairs.append(Pair(paths[0], paths[1] if masks else None))
        truths.append(truth)
        predictions.append(prediction.astype(np.uint8))
    return SegmentationDataset(pairs, TABLE, root=folder), truths, predictions


def scorer(images):
    """Logits at full resolution, largest for the class that the green channel names."""
    green = (images[:, 1] * 0.224 + 0.456) * 255
    return -np.abs(green[:, None] - STEP * np.arange(4)[None, :, None, None]).astype(np.float32)


def make_config(**keys):
    config = SANetConfig()
    config.data.base_size = 0
    for name, value in keys.items():
        setattr(config.evaluate, name, value)
    return config


if __name__ == "__main__":
    import mindspore

    from model_utils.distributed import initialize
    from research.sanet.src.evaluation import evaluate

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device("CPU")
    here = initialize()
    target = Path(sys.argv[-1])  # behind the launcher's own flags
    data, _, _ = make_data(target / f"data{here.rank}")
    figures = evaluate(
        scorer,
        data,
        make_config(pictures=99, submission=True),
        here,
        target / "out" if here.first else None,
    )
    write_json(target / f"metrics{here.rank}.json", figures)
