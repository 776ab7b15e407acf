"""SDNet's scripts as a user runs them: by path, from a foreign folder, on good and bad input."""

import csv
import functools
import json
import os
import re

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
import yaml

from model_utils import checkpoint as checkpoints
from model_utils.errors import UserError
from model_utils.files import sha256
from research.sdnet import SDNet
from research.sdnet.src.config import SDNetConfig
from research.sdnet.src.network import SDNetNetwork
from tests import seeded
from tests.commands import run_script

run = functools.partial(run_script, "sdnet")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Generated SEN1-2 images, their patches and a short training run."""
    folder = tmp_path_factory.mktemp("sdnet")
    run("generate_data.py", f"--output_path={folder / 'images'}", cwd=folder)
    run(
        "prepare_data.py",
        f"--data_path={folder / 'images'}",
        f"--output_path={folder / 'patches'}",
        "--prepare.per_image=6",
        "--prepare.train_ratio=0.6",
        "--prepare.val_ratio=0.2",
        "--prepare.limit=6",
        cwd=folder,
    )
    log = run(
        "train.py",
        f"--data_path={folder / 'patches'}",
        f"--output_path={folder / 'train'}",
        "--epochs=2",
        "--batch_size=12",
        "--test_batch_size=16",
        cwd=folder,
    )
    (folder / "train.txt").write_text(log)
    return folder


@pytest.fixture(scope="module")
def best(work):
    return work / "train" / "best.ckpt"


def test_the_published_log_lines(work):
    text = (work / "train" / "train.log").read_text()
    number = r"\d+\.\d{3}"
    assert re.search(
        rf"(?m)^epoch: \[  1/  2\], epoch time: {number}, steps:     \d, per step time: {number}, "
        rf"avg loss: \d\.\d{{3}}, lr:\[0\.00\d{{4}}\]",
        text,
    )
    assert re.search(r"(?m)^Accuracy\(FPR95\): \d\.\d{8}  Acc:\d\.\d{8}$", text)
    assert "\033[" not in text
    assert {"checkpoint_SDNet_1.ckpt", "checkpoint_SDNet_2.ckpt"} <= set(os.listdir(work / "train"))


def test_evaluation_writes_what_it_measured(work, best):
    out = work / "eval"
    flags = [f"--data_path={work / 'patches'}", f"--checkpoint_path={best}", f"--output_path={out}"]
    text = run("eval.py", *flags, "--eval_batch_size=10", cwd=work)
    assert f"load checkpoint from [{best}]." in text
    # The published three lines.
    assert re.search(r"={13} CPU Inference ={13}\nAccuracy\(FPR95\): .*\n={41}\n", text)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["checkpoint"] == str(best)
    with open(out / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == metrics["samples"]
    # The figures follow from the distances written beside them, by scikit-learn's account.
    from sklearn.metrics import roc_auc_score

    labels = [int(row["label"]) for row in rows]
    distances = np.array([float(row["distance"]) for row in rows])
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, -distances), abs=1e-6)
    assert {"roc.png", "distances.png", "examples.png"} <= set(os.listdir(out))


@pytest.mark.parametrize("kind", ["MINDIR", "ONNX"])
def test_exported_files_compute_the_same(work, best, kind):
    text = run(
        "export.py",
        f"--ckpt_file={best}",
        f"--file_format={kind}",
        "--batch_size=0",
        "--export.descriptor_only",
        f"--file_name={work / 'exported'}",
        cwd=work,
    )
    assert "largest difference" in text
    path = work / f"exported.{kind.lower()}"
    figures = json.loads((work / f"exported.{kind.lower()}.json").read_text())
    assert figures["max_difference"] < 1e-6 and figures["checkpoint"] == str(best)
    assert figures["sha256"] == sha256(path)
    rng = np.random.default_rng(0)
    model = SDNet.from_checkpoint(best, backend="mindspore")
    for count in (1, 5):
        opt, sar = rng.uniform(-1, 1, (2, count, 1, 64, 64)).astype(np.float32)
        if kind == "ONNX":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = session.run(["opt_e", "sar_e"], {"opt_img": opt, "sar_img": sar})
        else:
            graph = ms.nn.GraphCell(ms.load(str(path)))
            got = [part.asnumpy() for part in graph(ms.Tensor(opt), ms.Tensor(sar))]
        np.testing.assert_allclose(got[0], model.describe_normalised(opt, "opt"), atol=2e-6)
        np.testing.assert_allclose(got[1], model.describe_normalised(sar, "sar"), atol=2e-6)


def test_a_file_for_one_pair_serves_any_number(work, best, tmp_path):
    run("export.py", f"--ckpt_file={best}", f"--file_name={tmp_path / 'one'}", cwd=work)
    rng = np.random.default_rng(0)
    opt, sar = rng.integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)
    expected = SDNet.from_checkpoint(best, "mindspore").predict(opt, sar)
    got = SDNet.from_checkpoint(tmp_path / "one.mindir", "mindir").predict(opt, sar)
    np.testing.assert_allclose(got, expected, atol=5e-6)


def test_evaluation_does_not_replace_a_training_run(work, best):
    flags = [f"--data_path={work / 'patches'}", f"--checkpoint_path={best}"]
    error = run("eval.py", *flags, f"--output_path={work / 'train'}", cwd=work, status=2)
    assert "holds a training run" in error


def test_air_is_refused_off_ascend(work, best):
    error = run("export.py", f"--ckpt_file={best}", "--file_format=AIR", cwd=work, status=2)
    assert "AIR" in error and "Ascend" in error


def test_weights_make_the_round_trip(work, best):
    back = work / "reference.npz"
    flags = [f"--source={best}", f"--output={back}", "--reverse"]
    run("convert.py", *flags, cwd=work)
    names = set(np.load(back).files)
    expected, _ = seeded.load_fixture("SDNet")
    assert names == {name for name, _, _ in expected["params"]}
    run("convert.py", f"--source={back}", f"--output={work / 'again.ckpt'}", cwd=work)
    first, second = checkpoints.load(best).arrays, checkpoints.load(work / "again.ckpt").arrays
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_tensor_too_many_or_too_few_fails_the_conversion(work, best):
    arrays = dict(checkpoints.load(best).arrays)
    spare = arrays.pop("model_D.decoder.0.bias")
    np.savez(work / "few.npz", **arrays)
    error = run("convert.py", f"--source={work / 'few.npz'}", cwd=work, status=2)
    assert "'model_D.decoder.0.bias' is missing" in error and "--allow_missing" in error
    np.savez(work / "many.npz", **arrays, **{"model_D.decoder.0.bias": spare, "head.weight": spare})
    error = run("convert.py", f"--source={work / 'many.npz'}", cwd=work, status=2)
    assert "'head.weight'" in error and "--allow_unused" in error
    text = run("convert.py", f"--source={work / 'many.npz'}", "--allow_unused", cwd=work)
    assert "unused: head.weight (16,)" in text


def test_checkpoints_of_the_model_zoo_load(tmp_path):
    """Its train cell wrote optimizer prefixes on weights and network prefixes on statistics."""
    network = SDNetNetwork(seed=3)
    wrapped = {}
    for name, value in checkpoints.weights_of(network).items():
        part = name.partition(".")[0]
        trained = name.endswith(("weight", "bias"))
        owner = {"model": "optimizer.", "model_L": "optimizer_L.", "model_D": "optimizer_D."}[part]
        wrapped[(owner if trained else "network._backbone.") + name] = value
    ms.save_checkpoint(
        [{"name": k, "data": ms.Tensor(v)} for k, v in wrapped.items()],
        str(tmp_path / "checkpoint_SDNet_20.ckpt"),
    )
    model = SDNet.from_checkpoint(tmp_path / "checkpoint_SDNet_20.ckpt", backend="mindspore")
    for name, value in checkpoints.weights_of(model.network).items():
        np.testing.assert_array_equal(value, checkpoints.weights_of(network)[name])


def test_backends_agree(work, best, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    opt, sar = rng.integers(0, 256, (2, 40, 64, 64)).astype(np.uint8)
    distances = {
        backend: SDNet.from_checkpoint(best, backend).predict(opt, sar)
        for backend in ("mindspore", "mindir", "onnxruntime")
    }
    for backend in ("mindir", "onnxruntime"):
        np.testing.assert_allclose(distances[backend], distances["mindspore"], atol=5e-6)


def test_bad_patches_are_refused_by_the_api(best):
    model = SDNet.from_checkpoint(best, "mindspore")
    with pytest.raises(UserError, match=r"\(2, 32, 32\)"):
        model.describe(np.zeros((2, 32, 32)), "opt")
    with pytest.raises(UserError, match="NaN"):
        model.describe(np.full((1, 64, 64), np.nan), "opt")
    with pytest.raises(UserError, match="neither opt nor sar"):
        model.describe(np.zeros((1, 64, 64)), "optical")
    with pytest.raises(UserError, match="2 optical and 3 SAR"):
        model.predict(np.zeros((2, 64, 64)), np.zeros((3, 64, 64)))
    # A constant patch is no error: zeros after the network's own normalisation.
    assert np.isfinite(model.describe(np.full((1, 64, 64), 7), "sar")).all()


def test_matching_two_images(work, best):
    image = "ROIs1158_spring/{0}_0/ROIs1158_spring_{0}_0_p0.png"
    text = run(
        "infer.py",
        f"--checkpoint_path={best}",
        f"--optical={work / 'images' / image.format('s2')}",
        f"--sar={work / 'images' / image.format('s1')}",
        f"--output_path={work / 'infer'}",
        "--infer.keypoints=40",
        cwd=work,
    )
    assert "inference runs on onnxruntime" in text
    summary = json.loads((work / "infer" / "metrics.json").read_text())
    with open(work / "infer" / "matches.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == summary["matches"]
    assert sum(int(row["inlier"]) for row in rows) == summary["inliers"]


def test_model_zoo_configuration_is_understood(work, tmp_path):
    """Upstream's flat keys, its three documents, and those of its keys that mean nothing."""
    old = {
        "modelArts_mode": False,
        "is_distributed": False,
        "dataroot": str(work / "patches"),
        "device_target": "CPU",
        "imageSize": 64,
        "mean_image": 0.5,
        "std_image": 0.5,
        "num_train": 583180,
        "epochs": 20,
        "batch_size": 500,
        "test_batch_size": 600,
        "ckpt_save_dir": str(tmp_path),
        "optimizer": "adam",
        "lr": 0.004,
        "beta1": 0.5,
        "beta2": 0.9,
        "wd": 0.0001,
        "loss": "triplet_margin",
        "reconw": 0.001,
        "anchorswap": True,
        "margin": 1.0,
        "temp": 0.1,
        "weight": 10,
    }
    path = tmp_path / "sen1-2_config.yaml"
    path.write_text(yaml.safe_dump(old) + "lr_decay: 1e-6\n---\nlr: help\n")
    from model_utils.entry import load_config
    from research.sdnet.src.task import SDNetTask

    config = load_config(SDNetTask(), "train", [f"--config_path={path}", "--weight", "0.5"])
    assert config.train.epochs == 20 and config.train.batch_size == 500
    assert config.optimizer.lr == 0.004 and config.optimizer.weight_decay == 1e-4
    assert config.loss.ranking == 0.5 and config.loss.reconstruction == 0.001
    assert config.data.root == str(work / "patches") and config.output_path == str(tmp_path)
    published = load_config(SDNetTask(), "train", [])
    for group in ("optimizer", "loss"):
        ours, theirs = vars(getattr(published, group)), vars(getattr(config, group))
        differing = {k for k in ours if ours[k] != theirs[k]} - {"schedule", "ranking"}
        assert not differing


@pytest.mark.parametrize("command", ["train", "eval", "export", "infer", "convert"])
def test_help_speaks_the_terms_of_the_task(command, tmp_path):
    text = run(f"{command}.py", "--help", cwd=tmp_path)
    for words in ("--loss.margin (number, default: 1.0; also --margin)", "--dropout", "SDNet:"):
        assert words in text
    # The defaults are those of the file that is used without --config_path.
    assert "--optimizer.lr (number, default: 0.004; also --lr)" in text


def archive(folder, **changes):
    """A small valid test.npz with some members replaced or (None) left out."""
    rng = np.random.default_rng(0)
    members = {
        "arr_0": rng.integers(0, 256, (8, 64, 128)).astype(np.uint8),
        "arr_1": np.array([1, 0] * 4),
        **changes,
    }
    folder.mkdir(exist_ok=True)
    np.savez(folder / "test.npz", **{k: v for k, v in members.items() if v is not None})
    return folder


def float_patches_with_nan():
    patches = np.random.default_rng(0).random((8, 64, 128)).astype(np.float32)
    patches[5, 3, 70] = np.nan
    return patches


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arr_0": None}, ["test.npz", "arr_0"]),
        ({"arr_1": np.array([0, 1, 2, 1] * 2)}, ["test.npz", "2"]),
        ({"arr_1": np.ones(8, int)}, ["non-matching"]),
        ({"arr_0": np.zeros((8, 64, 64), np.uint8)}, ["test.npz", "64"]),
        ({"arr_0": float_patches_with_nan()}, ["test.npz", "5", "NaN"]),
    ],
)
def test_bad_archives_are_sentences(tmp_path, best, changes, words):
    data = archive(tmp_path / "data", **changes)
    flags = [f"--data_path={data}", f"--checkpoint_path={best}"]
    error = run("eval.py", *flags, cwd=tmp_path, status=2)
    assert all(word in error for word in words), error


def test_missing_and_truncated_archives(tmp_path, best):
    data = archive(tmp_path / "data")
    whole = (data / "test.npz").read_bytes()
    (data / "test.npz").write_bytes(whole[: len(whole) // 2])
    flags = [f"--data_path={data}", f"--checkpoint_path={best}"]
    assert "test.npz" in run("eval.py", *flags, cwd=tmp_path, status=2)
    (data / "test.npz").unlink()
    assert "there is no split 'test'" in run("eval.py", *flags, cwd=tmp_path, status=2)
    flags = [f"--data_path={tmp_path / 'none'}", f"--checkpoint_path={best}"]
    assert "does not exist" in run("eval.py", *flags, cwd=tmp_path, status=2)
    assert "train.npz" in run("train.py", f"--data_path={data}", cwd=tmp_path, status=2)


def test_constant_patches_are_measured_like_others(tmp_path, best):
    patches = np.random.default_rng(0).integers(0, 256, (8, 64, 128)).astype(np.uint8)
    patches[2] = 9
    data = archive(tmp_path / "data", arr_0=patches)
    run("eval.py", f"--data_path={data}", f"--checkpoint_path={best}", cwd=tmp_path)


def test_wrong_commands_are_sentences(tmp_path, work):
    error = run("train.py", "--epoch=3", cwd=tmp_path, status=2)
    assert "unknown key 'epoch'; did you mean 'epochs'?" in error
    error = run("train.py", "--device_target=Ascend", cwd=tmp_path, status=2)
    assert "device_target=Ascend was asked for" in error
    other = checkpoints.save(tmp_path / "o.ckpt", {"w": np.zeros(3)}, network="sanet")
    flags = [f"--data_path={work / 'patches'}", f"--checkpoint_path={other}"]
    error = run("eval.py", *flags, cwd=tmp_path, status=2)
    assert "belongs to the network 'sanet', not 'sdnet'" in error
    error = run("eval.py", f"--data_path={work / 'patches'}", cwd=tmp_path, status=2)
    assert "add --checkpoint_path" in error


def test_a_corrupt_image_among_good_ones(tmp_path):
    run("generate_data.py", f"--output_path={tmp_path / 'images'}", cwd=tmp_path)
    victim = tmp_path / "images/ROIs1158_spring/s2_0/ROIs1158_spring_s2_0_p1.png"
    victim.write_bytes(victim.read_bytes()[:200])
    flags = [f"--data_path={tmp_path / 'images'}", f"--output_path={tmp_path / 'out'}"]
    error = run("prepare_data.py", *flags, cwd=tmp_path, status=2)
    assert victim.name in error
    text = run("prepare_data.py", *flags, "--prepare.on_error=skip", cwd=tmp_path)
    assert victim.name in text
    manifest = json.loads((tmp_path / "out" / "patches.json").read_text())
    assert victim.stem.rpartition("_")[2] in json.dumps(manifest)


def test_unused_settings_have_no_default_that_disagrees_with_the_published_file():
    """The class's own values are SDNet's, so that an API user without a file gets them too."""
    assert SDNetConfig().dropout == 0.3 and SDNetConfig().loss.ranking == 10
