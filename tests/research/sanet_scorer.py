"""SANet's data sets of known predictions; also run as a script on several ranks."""

import numpy as np

from model_utils.files import write_image, write_json
from model_utils.segmentation import IGNORE, ClassTable, Pair
from research.sanet.src.config import SANetConfig
from research.sanet.src.dataset import SegmentationDataset
from tests.research.known_predictions import draw_maps, paint, scorer, start_rank

TABLE = ClassTable(
    ("road", "tree", "sky", "kerb"),
    np.array([(128, 64, 128), (30, 140, 30), (70, 130, 220), (240, 200, 0)], np.uint8),
    ids=(7, 21, 23, 33),
    void_ids=(0, IGNORE),
)
SIZES = [(24, 36), (24, 36), (17, 40), (24, 36), (1, 1), (17, 40), (24, 36)]


def make_data(folder, sizes=SIZES, masks=True, name="city_000000_{:06d}_photo.png"):
    """Write images and masks; returns the data set, the truths and the predictions."""
    rng = np.random.default_rng(5)
    truths, predictions, pairs = [], [], []
    for index, size in enumerate(sizes):
        truth, prediction = draw_maps(rng, size)
        if index == 3:
            truth[:] = IGNORE
        paths = folder / "images" / name.format(index), folder / "masks" / f"{index}.png"
        write_image(paths[0], paint(rng, prediction))
        # The first ignored number of the table, 0, stands for unlabelled pixels.
        write_image(paths[1], TABLE.encode_ids(truth))
        pairs.append(Pair(paths[0], paths[1] if masks else None))
        truths.append(truth)
        predictions.append(prediction)
    return SegmentationDataset(pairs, TABLE, root=folder), truths, predictions


def make_config(**keys):
    config = SANetConfig()
    config.data.base_size = 0
    for name, value in keys.items():
        setattr(config.evaluate, name, value)
    return config


if __name__ == "__main__":
    from research.sanet.src.evaluation import evaluate

    here, target = start_rank()
    data, _, _ = make_data(target / f"data{here.rank}")
    figures = evaluate(
        scorer,
        data,
        make_config(pictures=99, submission=True),
        here,
        target / "out" if here.first else None,
    )
    write_json(target / f"metrics{here.rank}.json", figures)
