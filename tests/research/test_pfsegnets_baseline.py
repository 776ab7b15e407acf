"""The pixel classifier on a user's own aerial chips, by PFNet's command."""

import functools
import json

import numpy as np
import pytest

from model_utils.files import write_image
from tests.commands import run_script

run = functools.partial(run_script, "pfsegnets", "compare_baselines.py")


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """Green fields with grey roofs, at another place in every chip: a folder with lists."""
    folder = tmp_path_factory.mktemp("chips")
    rng = np.random.default_rng(0)
    for number in range(12):
        label = np.zeros((60, 70), np.uint8)
        top, left = rng.integers(0, 40, 2)
        label[top : top + 20, left : left + 25] = 7
        image = np.where(label[..., None] == 7, (150, 150, 155), (70, 130, 60))
        image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        write_image(folder / "images" / f"chip.{number}.jpg", image)
        write_image(folder / "labels" / f"chip.{number}.png", label)
    names = [f"chip.{number}" for number in range(12)]
    (folder / "train.txt").write_text("\n".join(names[:9]))
    (folder / "val.txt").write_text("\n".join(names[9:]))
    (folder / "classes.csv").write_text("name,id\nfield,0\nroof,7\n")
    return folder


def test_colours_without_position_tell_roofs_from_fields(chips, tmp_path):
    run(
        f"--data_path={chips}",
        "--data.format=folder",
        "--data.masks=labels",
        "--data.palette=classes.csv",
        "--baseline.pixels=3000",
        "--baseline.trees=10",
        "--baseline.iterations=5",
        "--evaluate.pictures=1",
        f"--output_path={tmp_path}",
        cwd=tmp_path,
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["features"], metrics["train_images"], metrics["images"]) == (59, 9, 3)
    assert np.sum(metrics["confusion"]) == 3 * 60 * 70
    majority, best = metrics["methods"].values()
    assert list(best["iou"]) == ["field", "roof"] and min(best["iou"].values()) > 0.8
    assert majority["iou"]["roof"] == 0
