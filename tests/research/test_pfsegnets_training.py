"""PFNet's training as a user runs it: validated, resumed, from an encoder, with its options."""

import json

import numpy as np
import pytest

from model_utils import checkpoint as checkpoints
from model_utils.distributed import Ranks
from model_utils.entry import load_config
from model_utils.errors import UserError
from model_utils.torch_counterpart import pytorch_name
from research.pfsegnets.src.network import PFNet
from research.pfsegnets.src.task import PFNetTask
from tests import seeded
from tests.research.pfsegnets_commands import run, small, write_chips


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    return write_chips(tmp_path_factory.mktemp("pfsegnets_training") / "data")


@pytest.fixture(scope="module")
def work(chips):
    """Chips, and two passes of training."""
    folder = chips.parent
    run("train.py", *small(chips), f"--output_path={folder / 'train'}", cwd=folder)
    return folder


def test_training_validates_and_keeps_the_best(work):
    metrics = json.loads((work / "train" / "metrics.json").read_text())
    assert metrics["split"] == "val" and set(metrics["iou"]) == {"wood", "field", "house"}
    rows = (work / "train" / "metrics.csv").read_text().splitlines()
    losses = ["segmentation", "edge_32", "edge_16", "edge_8", "accuracy"]
    assert set(losses) <= set(rows[0].split(",")) and len(rows) == 3
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    total = sum(float(first[name]) for name in losses[:-1])
    assert float(first["loss"]) == pytest.approx(total, rel=1e-4)
    flags = [f for f in small(work / "data") if "epochs" not in f and "lr=" not in f]
    run(
        "eval.py",
        *flags,
        f"--ckpt_file={work / 'train' / 'best.ckpt'}",
        f"--output_path={work / 'eval'}",
        cwd=work,
    )
    again = json.loads((work / "eval" / "metrics.json").read_text())
    assert again["miou"] == pytest.approx(metrics["miou"], abs=1e-9)
    noted = checkpoints.load(work / "train" / "best.ckpt").info["settings"]
    assert (noted["pool_style"], noted["edge_points"]) == ("torch", 24)


def test_a_stopped_training_resumes_to_the_same_weights(work, tmp_path):
    flags = [*small(work / "data"), f"--output_path={tmp_path}"]
    run("train.py", *flags, "--train.stop_after_steps=3", cwd=tmp_path)
    run("train.py", *flags, "--resume", cwd=tmp_path)
    whole = checkpoints.load(work / "train" / "state.ckpt").arrays
    pieces = checkpoints.load(tmp_path / "state.ckpt").arrays
    assert whole.keys() == pieces.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], pieces[name], err_msg=name)


def test_imagenet_encoder_frozen_statistics_and_the_ablation(chips, tmp_path):
    """An encoder under ImageNet names, batch statistics that stay, no PointFlow."""
    encoder = PFNet(classes=3, seed=5)
    arrays = {}
    for name, value in checkpoints.weights_of(encoder).items():
        if name.startswith("layer"):
            # Statistics that fit the weights; else stored ones leave gradients too small to act.
            value = seeded.parameter(pytorch_name(name), value.shape, 0.65)
            other = name.replace("layer0.0.", "conv1.").replace("layer0.1.", "bn1.")
            for ours, theirs in (
                ("gamma", "weight"),
                ("beta", "bias"),
                ("moving_mean", "running_mean"),
                ("moving_variance", "running_var"),
            ):
                if other.endswith(f".{ours}"):
                    other = other.removesuffix(ours) + theirs
            arrays[other] = value
    arrays["fc.weight"] = np.zeros((1000, 2048), np.float32)
    assert {"conv1.0.weight", "conv1.4.running_var", "bn1.bias", "layer4.2.bn3.weight"} <= set(
        arrays
    )
    np.savez(tmp_path / "resnet50-deep.npz", **arrays)
    flags = small(chips)
    chosen = [f for f in flags if f.startswith(("--config", "--data"))]
    error = run(
        "convert.py", *chosen, f"--source={tmp_path / 'resnet50-deep.npz'}", cwd=tmp_path, status=2
    )
    assert "--allow_missing" in error and "head." in error
    text = run(
        "convert.py",
        *chosen,
        f"--source={tmp_path / 'resnet50-deep.npz'}",
        f"--output={tmp_path / 'encoder.ckpt'}",
        "--allow_missing=true",
        cwd=tmp_path,
    )
    assert "1 tensors such as 'fc.weight' are left out" in text
    converted = checkpoints.load(tmp_path / "encoder.ckpt").arrays
    stored = seeded.parameter("layer0.1.running_mean", (128,))
    np.testing.assert_array_equal(converted["layer0.1.moving_mean"], stored)
    text = run(
        "train.py",
        *flags,
        f"--pretrained={tmp_path / 'encoder.ckpt'}",
        "--fix_bn=true",
        "--point_flow=false",
        "--epochs=1",
        "--train.evaluate_every=0",  # a graph less to compile
        "--loss.ohem=false",
        "--wd=0",  # so that only gradients move a parameter
        f"--output_path={tmp_path / 'run'}",
        cwd=tmp_path,
    )
    assert "left-over parameter(s): head.fpn_out_align" in text
    trained = checkpoints.load(tmp_path / "run" / "checkpoint_PFNet_1.ckpt").arrays
    assert not any("fpn_out_align" in name for name in trained)
    changed = 0
    for name, value in trained.items():
        if name.endswith(("moving_mean", "moving_variance")):
            np.testing.assert_array_equal(value, converted[name], err_msg=name)
        else:
            changed += not np.array_equal(value, converted[name])
    assert changed > 100
    assert "edge_32" not in (tmp_path / "run" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--batch_size=1"], "batches of at least 2, or freeze_batch_norm=true"),
        (["--crop_size=100"], "multiples of 32"),
        (["--pool_style=jittor"], "too small for pool_style=jittor"),
        (["--loss.class_weights=[1, 2]"], "2 numbers for 3 classes"),
        (["--num_classes=7"], "classes=7"),
        (["--edge_weigth=3"], "edge_weight"),
    ],
)
def test_settings_that_do_not_fit_are_sentences(chips, extra, words):
    """What train.py builds from its command line, in its order."""
    task = PFNetTask()
    with pytest.raises(UserError, match=words):
        config = load_config(task, "train", [*small(chips), *extra])
        task.build_dataset(config, "train")
        task.build_train_cell(task.build_network(config, Ranks()), config, Ranks())


def test_what_cannot_be_trained_is_refused(chips, tmp_path):
    error = run("train.py", *small(chips), "--crop_size=100", cwd=tmp_path, status=2)
    assert "multiples of 32" in error
