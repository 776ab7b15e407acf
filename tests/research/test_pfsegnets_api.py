"""PFNet from Python and by infer.py: any size, padding, zooms, resizing, exported files."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from model_utils import checkpoint as checkpoints
from model_utils.distributed import Ranks
from model_utils.entry import load_config
from model_utils.errors import UserError
from model_utils.exporting import export
from model_utils.files import read_image, write_image
from model_utils.windows import resize_aligned
from research.pfsegnets import PFSegNets
from research.pfsegnets.src.augment import resize_image
from research.pfsegnets.src.evaluation import evaluate
from research.pfsegnets.src.multiscale import Protocol, mean_logits
from research.pfsegnets.src.task import PFNetTask
from tests.research.pfsegnets_scorer import make_config, make_data

SMALL = ("--max_pool_size=2", "--avg_pool_size=2", "--edge_points=8")


def settings(*flags):
    return load_config(PFNetTask(), "infer", [*SMALL, *flags])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    network = PFNetTask().build_network(settings(), Ranks())
    path = tmp_path_factory.mktemp("weights") / "best.ckpt"
    return checkpoints.save(path, checkpoints.weights_of(network), network="pfsegnets")


@pytest.fixture(scope="module")
def model(weights):
    return PFSegNets.from_checkpoint(weights, "mindspore", settings())


@pytest.fixture(scope="module")
def image():
    """Smooth, so that the untrained network tells regions apart."""
    coarse = np.random.default_rng(7).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return resize_image(coarse, (50, 70))


def test_images_of_any_size_are_padded_and_cut(model, image):
    """50 x 70 pixels are filled up to 64 x 96 by reflection, the result is cut again."""
    filled = np.pad(image, ((0, 14), (0, 26), (0, 0)), "symmetric")
    logits = model.run_network(model.normalise(filled)[None])
    assert logits.shape == (1, 16, 16, 24)
    expected = resize_aligned(logits, (64, 96))[0, :, :50, :70]
    classes = model.predict(image)
    assert classes.shape == (50, 70) and classes.dtype == np.uint8
    assert len(np.unique(classes)) > 1
    assert (classes == expected.argmax(axis=0)).mean() > 0.999
    np.testing.assert_allclose(model.scores(image), softmax(expected, axis=0), atol=1e-5)
    grey = image[:, :, 1]
    np.testing.assert_array_equal(
        model.predict(grey), model.predict(np.repeat(grey[:, :, None], 3, axis=2))
    )


def test_sizes_that_share_a_padded_size_share_a_graph(model, image):
    model.predict(image)
    opened = list(model._opened)
    model.predict(image[:40, :69])
    assert list(model._opened) == opened


def test_logits_are_averaged_as_in_evaluation(model, image):
    found = model.logits(image, flip=True)
    normalised = model.normalise(image)
    expected = mean_logits(model.run_network, normalised, Protocol(flip=True))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = mean_logits(model.run_network, normalised, Protocol())
    assert np.abs(plain - expected).max() > 1e-3


def test_python_api_and_evaluation_predict_alike(model, tmp_path):
    dataset, _, _ = make_data(tmp_path / "data", [(50, 70)])
    dataset.classes = model.classes
    evaluate(model.network, dataset, make_config(pictures=1), Ranks(), tmp_path / "out")
    written = read_image(tmp_path / "out/predictions/P0000_classes.png", 0)
    agree = (written == model.predict(dataset.read(0)[0])).mean()
    assert agree > 0.999


def test_batches_are_filled_up_and_cut(weights, image):
    config = settings("--infer.batch_size=2")
    model = PFSegNets.from_checkpoint(weights, "mindspore", config)
    images = np.stack([model.normalise(np.roll(image, shift, 0)) for shift in (0, 7, 23)])
    maps = model.class_maps(images)
    assert maps.shape == (3, 50, 70)
    for found, each in zip(maps, images, strict=True):
        assert (found == model.class_maps(each[None])[0]).mean() > 0.999
    assert len(model._opened) == 1


def test_other_images_and_sizes_are_refused(model, weights):
    with pytest.raises(UserError, match=r"the image has shape \(5, 6, 4\); PFNet takes"):
        model.predict(np.zeros((5, 6, 4), np.uint8))
    with pytest.raises(UserError, match="multiples of 32, not 40x64"):
        model.run_network(np.zeros((1, 3, 40, 64), np.float32))
    with pytest.raises(UserError, match="holds float64 values"):
        model.predict(np.zeros((5, 6, 3)))
    jittor = settings("--pool_style=jittor", "--psp_sizes=[1,2,3,7]")
    small = PFSegNets.from_checkpoint(weights, "mindspore", jittor)
    assert small.fitting((20, 300)) == (224, 320)


def test_exported_files_take_smaller_images(model, image, tmp_path):
    """A file of one size: smaller images are padded to it, larger ones refused."""
    config = settings("--export.height=96", "--export.width=96")
    task = PFNetTask()
    cell, names = task.export_cell(model.network, config)
    report = export(
        cell, task.export_inputs(config), tmp_path / "net", "MINDIR", output_names=names
    )
    exported = PFSegNets.from_checkpoint(report.path, config=config)
    filled = np.pad(image, ((0, 46), (0, 26), (0, 0)), "symmetric")
    logits = exported.open("file", None, []).run(exported.normalise(filled)[None])[0]
    expected = resize_aligned(logits, (96, 96))[0, :, :50, :70]
    np.testing.assert_array_equal(exported.predict(image), expected.argmax(axis=0))
    np.testing.assert_allclose(exported.scores(image), softmax(expected, axis=0), atol=1e-5)
    with pytest.raises(UserError, match="96"):
        exported.predict(np.zeros((97, 96, 3), np.uint8))


def test_infer_writes_classes_of_every_image(model, weights, image, tmp_path):
    folder = tmp_path / "photos with spaces"
    write_image(folder / "a.png", image)
    write_image(folder / "deep" / "ä.tif", image[:40].astype(np.uint16) * 257)
    flags = (f"--images={folder}", f"--checkpoint_path={weights}", "--backend=mindspore")
    PFSegNets.run(settings(*flags), tmp_path / "out")
    for name, expected in (("a", model.predict(image)), ("deep/ä", model.predict(image[:40]))):
        found = read_image(tmp_path / "out" / f"{name}_classes.png", 0)
        assert found.shape == expected.shape and (found == expected).mean() > 0.999
        for kind in ("map", "overlay", "legend"):
            assert read_image(tmp_path / "out" / f"{name}_{kind}.png").std() > 1
    summary = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert summary["images"] == 2


def test_one_bad_image_does_not_cost_the_others(model, image, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "in"
    for name in ("a", "c"):
        write_image(folder / f"{name}.png", image)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:-200])
    monkeypatch.setattr(PFSegNets, "from_checkpoint", classmethod(lambda cls, *_: model))
    with pytest.raises(UserError, match=r"1 of 3 images have no result.*in/b\.png; replace"):
        PFSegNets.run(settings(f"--images={folder}"), tmp_path / "out")
    assert "b.png is corrupt or of an unknown format" in caplog.text
    for name in ("a", "c"):
        found = read_image(tmp_path / "out" / f"{name}_classes.png", 0)
        np.testing.assert_array_equal(found, model.predict(image))
    assert json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))["images"] == 2


def test_images_are_resized_as_in_training_and_logits_back(model, image, monkeypatch):
    monkeypatch.setattr(model.config.infer, "resize", 64)
    (found,) = model.segment([image], ["a"])
    logits = model.logits(resize_image(image, (64, 64)))
    np.testing.assert_array_equal(found, resize_aligned(logits, (50, 70)).argmax(axis=0))
    assert (found != model.predict(image)).any()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: None, "holds no image"),
        (lambda f: (f / "a.png").write_bytes(b""), "a.png is corrupt or of an unknown format"),
        (lambda f: write_image(f / "a.tif", np.zeros((9, 9), np.float32)), "float32"),
    ],
)
def test_bad_images_have_one_sentence(weights, tmp_path, spoil, words):
    folder = tmp_path / "in"
    folder.mkdir()
    spoil(folder)
    flags = (f"--images={folder}", f"--checkpoint_path={weights}", "--backend=mindspore")
    with pytest.raises(UserError, match=words):
        PFSegNets.run(settings(*flags), tmp_path / "out")
