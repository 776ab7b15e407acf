"""PFNet's data sets of known predictions; also run as a script on several ranks."""

import numpy as np

from model_utils.files import write_image, write_json
from model_utils.segmentation import IGNORE, ClassTable, Pair
from model_utils.windows import windows
from research.pfsegnets.src.config import PFNetConfig
from research.pfsegnets.src.dataset import SegmentationDataset
from tests.research import known_predictions
from tests.research.known_predictions import draw_maps, paint, start_rank

TABLE = ClassTable(
    ("ground", "ship", "harbour", "plane"),
    np.array([(90, 90, 90), (0, 0, 63), (0, 100, 155), (0, 127, 255)], np.uint8),
)
SIZES = [(64, 96), (64, 96), (37, 40), (64, 96), (1, 1), (37, 40), (64, 96)]


def write_pair(folder, stem, truth, prediction, rng):
    """One image and its mask."""
    pair = Pair(folder / "images" / f"{stem}.png", folder / "masks" / f"{stem}.png")
    write_image(pair.image, paint(rng, prediction))
    write_image(pair.mask, truth)
    return pair


def make_data(folder, sizes=SIZES):
    """Write images and masks; returns the data set, the truths and the predictions."""
    rng = np.random.default_rng(5)
    truths, predictions, pairs = [], [], []
    for index, size in enumerate(sizes):
        truth, prediction = draw_maps(rng, size)
        if index == 3:
            truth[:] = IGNORE
        pairs.append(write_pair(folder, f"P{index:04d}", truth, prediction, rng))
        truths.append(truth)
        predictions.append(prediction)
    return SegmentationDataset(pairs, TABLE, root=folder), truths, predictions


def cut(folder, sources, side, overlap):
    """Patches of (truth, prediction) maps, named as the iSAID tools name them."""
    rng = np.random.default_rng(6)
    pairs = []
    for name, (truth, prediction) in sources.items():
        for rows, columns in windows(truth.shape, (side, side), (side - overlap,) * 2):
            place = f"{rows.start}_{rows.stop}_{columns.start}_{columns.stop}"
            part = np.s_[rows, columns]
            pairs.append(write_pair(folder, f"{name}_{place}", truth[part], prediction[part], rng))
    rng.shuffle(pairs)
    return SegmentationDataset(pairs, TABLE, root=folder)


def make_patches(folder):
    """Patches of three images, some of different sizes, and the images they were cut from."""
    whole, truths, predictions = make_data(folder / "whole", [(100, 40), (50, 130), (64, 64)])
    names = ("P0010", "P0002", "area_1_2")
    sources = dict(zip(names, zip(truths, predictions, strict=True), strict=True))
    return cut(folder / "patches", sources, 40, 16), whole


def scorer(images):
    """The known predictions, of sizes that PFNet takes."""
    assert images.shape[2] % 32 == images.shape[3] % 32 == 0
    return known_predictions.scorer(images)


def make_config(**keys):
    config = PFNetConfig()
    for name, value in keys.items():
        setattr(config.evaluate, name, value)
    return config


if __name__ == "__main__":
    from research.pfsegnets.src.evaluation import evaluate

    here, target = start_rank()
    for kind in ("images", "patches"):
        place = target / f"{kind}{here.rank}"
        data = make_patches(place)[0] if kind == "patches" else make_data(place)[0]
        written = target / f"out_{kind}" if here.first else None
        figures = evaluate(scorer, data, make_config(pictures=3), here, written)
        write_json(target / f"{kind}{here.rank}.json", figures)
