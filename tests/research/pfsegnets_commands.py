"""PFNet's scripts, a data set of small chips, and a training of theirs that takes seconds."""

import functools

import cv2
import numpy as np

from tests.commands import run_script

run = functools.partial(run_script, "pfsegnets")


def write_chips(folder, count=6, side=96):
    """Fields of two colours with buildings, as a user's own folder with lists and a palette."""
    rng = np.random.default_rng(4)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for place in range(count):
        mask = np.zeros((side, side), np.uint8)
        mask[:, side // 2 + rng.integers(-9, 9) :] = 1
        x, y = rng.integers(5, side // 2, 2).tolist()
        mask[y : y + side // 3, x : x + side // 3] = 2
        colours = np.array([(60, 120, 60), (90, 150, 170), (150, 150, 200)])  # BGR
        image = np.clip(colours[mask] + rng.normal(0, 12, (side, side, 3)), 0, 255)
        cv2.imwrite(str(folder / "images" / f"{place}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{place}.png"), mask)
    names = [str(place) for place in range(count)]
    (folder / "train.txt").write_text("\n".join(names[:-2]) + "\n")
    (folder / "val.txt").write_text("\n".join(names[-2:]) + "\n")
    (folder / "palette.csv").write_text(
        "name,red,green,blue,id\nwood,60,120,60,0\nfield,170,150,90,1\nhouse,200,150,150,2\n"
    )
    return folder


def small(data):
    """Flags of a training of seconds on :func:`write_chips`."""
    return (
        "--config_path=quickstart",
        f"--data_path={data}",
        "--data.format=folder",
        f"--data.palette={data / 'palette.csv'}",
        "--data.class_uniform=0",
        "--loss.class_weights=[]",
        "--crop_size=64",
        "--epochs=2",
        "--batch_size=2",
        "--lr=0.01",
        "--train.evaluate_every=1",
        "--eval_batch_size=2",
    )
