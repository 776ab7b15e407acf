"""SANet's training as a user runs it: validated, resumed, pretrained, on data of one's own."""

import json

import cv2
import numpy as np
import pytest

from model_utils import checkpoint as checkpoints
from tests.research.sanet_commands import SMALL, run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A generated Cityscapes and one pass of training."""
    folder = tmp_path_factory.mktemp("sanet_training")
    run("generate_data.py", f"--output_path={folder / 'data'}", cwd=folder)
    flags = [f"--data_path={folder / 'data'}", f"--output_path={folder / 'train'}"]
    run("train.py", *SMALL, *flags, cwd=folder)
    return folder


def test_training_validates_and_keeps_the_best(work):
    """The published training fails at its first validation."""
    metrics = json.loads((work / "train" / "metrics.json").read_text())
    assert metrics["split"] == "val" and len(metrics["iou"]) == 19
    assert metrics["miou"] == pytest.approx(np.mean(list(metrics["iou"].values())))
    text = (work / "train" / "train.log").read_text()
    assert "epoch:1 step:6, loss is " in text and "per step time: " in text
    run(
        "eval.py",
        "--config_path=quickstart",
        f"--data_path={work / 'data'}",
        f"--ckpt_file={work / 'train' / 'best.ckpt'}",
        f"--output_path={work / 'eval'}",
        cwd=work,
    )
    again = json.loads((work / "eval" / "metrics.json").read_text())
    assert again["miou"] == pytest.approx(metrics["miou"], abs=1e-9)


def test_pretraining_then_another_number_of_classes(work, tmp_path):
    """ImageNet folders, then a user's own data, with the weights that fit by name and shape.

    At last with masks that are ignored throughout, which the published training cannot read.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("cat", "dog", "emu")):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for place in range(count):
                pixels = rng.integers(0, 90, (40, 48, 3)) + 60 * number
                cv2.imwrite(str(folder / f"{place}.png"), pixels.astype(np.uint8))
    text = run(
        "train.py",
        "--config_path=imagenet_s",
        "--classes=3",
        f"--data_path={tmp_path / 'imagenet'}",
        f"--output_path={tmp_path / 'pre'}",
        *("--epochs=1", "--batch_size=4", "--eval_batch_size=2", "--lr=0.01"),
        *("--data.crop_height=32", "--data.crop_width=32"),
        cwd=tmp_path,
    )
    assert "top1" in text
    own = tmp_path / "own"
    (own / "images").mkdir(parents=True)
    (own / "masks").mkdir()
    (own / "palette.csv").write_text("name,red,green,blue\nsky,0,0,255\nland,0,255,0\n")
    for place in range(4):
        mask = np.zeros((64, 96, 3), np.uint8)
        mask[: 20 + place], mask[20 + place :] = (255, 0, 0), (0, 255, 0)  # BGR
        cv2.imwrite(str(own / "images" / f"{place}.png"), mask // 2 + 40)
        cv2.imwrite(str(own / "masks" / f"{place}.png"), mask)
    flags = [
        *SMALL,
        "--data.format=folder",
        f"--data.palette={own / 'palette.csv'}",
        f"--data_path={own}",
        "--loss.class_weights=[]",
        "--batch_size=2",
    ]
    pretrained = sorted((tmp_path / "pre").glob("best.ckpt"))[0]
    text = run(
        "train.py",
        *flags,
        f"--pretrained={pretrained}",
        f"--output_path={tmp_path / 'own_run'}",
        cwd=tmp_path,
    )
    assert "initial weights from" in text and "left-over parameter(s): classifier.0.weight" in text
    # Now without any labelled pixel, in training as in validation.
    (own / "palette.csv").write_text(
        "name,red,green,blue,ignore\nsky,0,0,255,0\nland,0,255,0,0\nvoid,9,9,9,1\n"
    )
    for mask in sorted((own / "masks").iterdir()):
        cv2.imwrite(str(mask), np.full((64, 96, 3), 9, np.uint8))
    (own / "val.lst").write_text("images/0.png masks/0.png\n")
    text = run(
        "train.py",
        *flags,
        f"--pretrained={work / 'train' / 'best.ckpt'}",
        f"--output_path={tmp_path / 'tuned'}",
        "--wd=0",
        cwd=tmp_path,
    )
    assert "final_layer.conv2.weight (19, 64, 1, 1) instead of (2, 64, 1, 1)" in text
    assert "epoch:1 step:2, loss is 0\n" in text
    assert json.loads((tmp_path / "tuned" / "metrics.json").read_text())["miou"] == 0
    # Without gradients and decay, the weights are still those that the training began with.
    before = checkpoints.load(work / "train" / "best.ckpt").arrays
    after = checkpoints.load(tmp_path / "tuned" / "checkpoint_SANet_1.ckpt").arrays
    kept = [name for name in before if before[name].shape == after[name].shape]
    assert {name for name in before if name not in kept} == {
        f"{head}.conv2.{kind}"
        for head in ("final_layer", "seghead_extra")
        for kind in ("weight", "bias")
    }
    for name in kept:
        if not name.endswith(("moving_mean", "moving_variance")):
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    # Measuring with the wrong number of classes is refused, though.
    wrong = ["--config_path=quickstart", f"--data_path={work / 'data'}"]
    weights = tmp_path / "tuned" / "checkpoint_SANet_1.ckpt"
    error = run("eval.py", *wrong, f"--checkpoint_path={weights}", cwd=tmp_path, status=2)
    assert "(2, 64, 1, 1) instead of (19, 64, 1, 1)" in error and "configuration" in error


def test_a_killed_training_resumes_to_the_same_weights(work, tmp_path):
    flags = [*SMALL, f"--data_path={work / 'data'}"]
    stopped = [*flags, f"--output_path={tmp_path}"]
    run("train.py", *stopped, "--train.stop_after_steps=3", cwd=tmp_path)
    run("train.py", *stopped, "--resume", cwd=tmp_path)
    whole = checkpoints.load(work / "train" / "state.ckpt").arrays
    pieces = checkpoints.load(tmp_path / "state.ckpt").arrays
    assert whole.keys() == pieces.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], pieces[name], err_msg=name)
