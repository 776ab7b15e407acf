"""SANet on whole scenes: the script, the Python API, exported files."""

import json

import numpy as np
import pytest
import rasterio

from model_utils import checkpoint
from model_utils.errors import UserError
from model_utils.scenes.config import SceneConfig
from model_utils.scenes.generating import generate_scene
from research.sanet import SANet
from research.sanet.src.classes import CITYSCAPES
from research.sanet.src.network import SANetNetwork
from tests.model_utils.scene_cases import read
from tests.research.sanet_commands import run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Random weights, and a folder of two scenes, one of them smaller than a tile."""
    folder = tmp_path_factory.mktemp("scenes")
    weights = checkpoint.weights_of(SANetNetwork("S", 19, seed=3))
    checkpoint.save(folder / "net.ckpt", weights, network="sanet")
    (folder / "in" / "deep").mkdir(parents=True)
    generate_scene(folder / "in" / "flight 1 ü.tif", 200, 460)
    generate_scene(folder / "in" / "deep" / "small.tif", 60, 70, seed=2)
    return folder


@pytest.fixture(scope="module")
def model(work):
    return SANet.from_checkpoint(work / "net.ckpt", "mindspore")


def whole(model, path):
    return model.predict(np.moveaxis(read(path), 0, 2))


def test_the_script_on_a_folder(work, model):
    text = run(
        "infer.py", f"--scene={work / 'in'}", f"--checkpoint_path={work / 'net.ckpt'}",
        "--infer.scene.tile=256", "--infer.scene.halo=32", "--infer.scene.blend_width=16",
        "--backend=mindspore", f"--output_path={work / 'out'}", cwd=work,
    )  # fmt: skip
    assert "flight 1 ü_classes.tif" in text
    summary = json.loads((work / "out" / "metrics.json").read_text(encoding="utf-8"))["scenes"]
    assert [item["tiles"] for item in summary.values()] == [1, 3]
    for item in summary.values():
        assert item["finished"] and abs(sum(item["shares"].values()) - 1) < 2e-3
    # A scene within one tile is segmented as an image is, but for the way of resizing.
    small = read(work / "out" / "deep" / "small_classes.tif", 1)
    assert (small == whole(model, work / "in" / "deep" / "small.tif")).mean() > 0.999
    with rasterio.open(work / "out" / "flight 1 ü_classes.tif") as out:
        assert out.crs.to_epsg() == 32632 and out.shape == (200, 460)
        assert out.tags()["CLASS_0"] == "road" and out.tags()["WEIGHTS"] == "net.ckpt"
        assert out.colormap(1)[0][:3] == tuple(CITYSCAPES.colours[0].tolist())


@pytest.mark.parametrize("blend", ["flat", "cosine"])
def test_tiles_agree_with_the_whole_image(work, model, blend, tmp_path):
    """Exactly in one tile; in several nearly, as the network pools over all it sees."""
    source = work / "in" / "flight 1 ü.tif"
    expected = whole(model, source)
    keys = SceneConfig(tile=512, halo=32, blend=blend)
    model.predict_scene(source, tmp_path / "one.tif", keys, show=False)
    equal = (read(tmp_path / "one.tif", 1) == expected).mean()
    assert equal == 1 if blend == "flat" else equal > 0.999
    keys = SceneConfig(tile=320, halo=64, blend_width=32, blend=blend)
    report = model.predict_scene(source, tmp_path / "many.tif", keys, show=False)
    assert report.tiles == (2 if blend == "flat" else 3)
    assert (read(tmp_path / "many.tif", 1) == expected).mean() > 0.8


def test_probabilities(work, model, tmp_path):
    source = work / "in" / "deep" / "small.tif"
    keys = SceneConfig(result="probabilities", probability_type="float32")
    model.predict_scene(source, tmp_path / "p.tif", keys, show=False)
    found = read(tmp_path / "p.tif")
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    expected = model.scores(np.moveaxis(read(source), 0, 2))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_exported_files_of_a_fixed_size(work, model, tmp_path):
    run(
        "export.py", f"--checkpoint_path={work / 'net.ckpt'}", "--file_format=ONNX",
        "--height=128", "--width=192", "--batch_size=2", "--export.output=classes",
        f"--output_path={tmp_path}", cwd=work,
    )  # fmt: skip
    exported = SANet.from_checkpoint(next(tmp_path.glob("*.onnx")))
    source = work / "in" / "flight 1 ü.tif"
    with pytest.raises(UserError, match="class numbers cannot be blended.*blend=flat"):
        exported.predict_scene(source, tmp_path / "a.tif", SceneConfig(halo=16, blend_width=16))
    keys = SceneConfig(halo=16, blend="flat", resume=False)
    exported.predict_scene(source, tmp_path / "a.tif", keys, show=False)
    found = read(tmp_path / "a.tif", 1)
    corner = np.moveaxis(read(source)[:, :128, :192], 0, 2)
    # Two runtimes: equal but for scores that nearly tie.
    assert (found[:96, :160] == model.predict(corner)[:96, :160]).mean() > 0.999


def test_without_a_scene_or_an_image(work):
    message = run("infer.py", f"--checkpoint_path={work / 'net.ckpt'}", cwd=work, status=2)
    assert "--images=FILE_OR_FOLDER, or --scene=FILE_OR_FOLDER" in message
    message = run("infer.py", "--scene=missing.tif", f"--checkpoint_path={work / 'net.ckpt'}",
                  cwd=work, status=2)  # fmt: skip
    assert "scene missing.tif does not exist" in message
