"""SANet's scripts as a user runs them: by path, from a foreign folder, on good and bad input."""

import json

import cv2
import numpy as np
import onnxruntime
import pytest

from model_utils import checkpoint as checkpoints
from model_utils.distributed import Ranks
from model_utils.entry import load_config
from model_utils.errors import UserError
from model_utils.segmenting import image_files, result_names
from model_utils.torch_counterpart import pytorch_name
from research.sanet import SANet
from research.sanet.src.network import SANetClassifier, SANetNetwork
from research.sanet.src.task import SANetTask
from tests import seeded
from tests.research.sanet_commands import SMALL, run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A generated Cityscapes."""
    folder = tmp_path_factory.mktemp("sanet")
    run("generate_data.py", f"--output_path={folder / 'data'}", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def best(work):
    """Initial weights: what the commands do with them does not depend on training."""
    weights = checkpoints.weights_of(SANetNetwork("S", 19, seed=0))
    return checkpoints.save(work / "best.ckpt", weights, network="sanet")


def photo(work):
    return sorted((work / "data" / "leftImg8bit" / "val").rglob("*.png"))[0]


def test_evaluation_at_a_single_and_at_several_scales(work, best):
    flags = ["--config_path=quickstart", f"--data_path={work / 'data'}", f"--ckpt_file={best}"]
    text = run("eval.py", *flags, f"--output_path={work / 'one'}", cwd=work)
    assert "single scale, whole image, 256x128, upsampling align_corners=True" in text
    several = [*flags, "--scales=0.5,1.0", "--flip=true", f"--output_path={work / 'many'}"]
    text = run("eval.py", *several, cwd=work)
    assert "scores added over scales 0.5, 1" in text and "mirrored" in text
    one, many = (json.loads((work / name / "metrics.json").read_text()) for name in ("one", "many"))
    assert one["miou"] != many["miou"]


def test_weights_make_the_round_trip_through_the_published_names(work, best):
    """As the published files are: wrapped, with entries that no layer uses."""
    back = work / "reference.npz"
    run("convert.py", f"--source={best}", f"--output={back}", "--reverse", cwd=work)
    arrays = dict(np.load(back))
    description, _ = seeded.load_fixture("SANet_S")
    published = {name: shape for name, shape, _ in description["params"]}
    assert all(list(value.shape) == published[name] for name, value in arrays.items())
    wrapped = {f"model.{name}": value for name, value in arrays.items()}
    for name in published.keys() - arrays.keys():
        wrapped[f"model.{name}"] = np.ones(published[name], np.float32)
    wrapped["sem_loss.criterion.weight"] = np.ones(19, np.float32)
    np.savez(work / "best.npz", **wrapped)
    text = run(
        "convert.py", f"--source={work / 'best.npz'}", f"--output={work / 'again.ckpt'}", cwd=work
    )
    assert "left out: the reference stores but never uses them" in text
    first, second = checkpoints.load(best).arrays, checkpoints.load(work / "again.ckpt").arrays
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    wrapped["model.layer9.weight"] = np.ones(3, np.float32)
    np.savez(work / "odd.npz", **wrapped)
    error = run("convert.py", f"--source={work / 'odd.npz'}", cwd=work, status=2)
    assert "layer9.weight" in error and "--allow_unused" in error


def test_exported_class_numbers_at_any_size(work, best):
    flags = [f"--ckpt_file={best}", "--config_path=quickstart", f"--output_path={work / 'onnx'}"]
    free = ["--batch_size=0", "--height=0", "--width=0"]
    run("export.py", *flags, *free, "--file_format=ONNX", "--export.output=classes", cwd=work)
    session = onnxruntime.InferenceSession(work / "onnx" / "SANet.onnx")
    model = SANet.from_checkpoint(best, "mindspore", settings())
    rng = np.random.default_rng(0)
    for size in ((64, 96), (50, 130), (33, 40)):
        image = cv2.resize(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8), size[::-1])
        expected = model.predict(image)
        (got,) = session.run(None, {"image": model.normalise(image)[None]})
        assert got.shape == (1, *size) and (got[0] == expected).mean() > 0.999
    own = settings("--data.format=camvid", "--loss.class_weights=[]")
    with pytest.raises(UserError, match="at least .* classes apart, the configuration has 11"):
        SANet.from_checkpoint(work / "onnx" / "SANet.onnx", config=own).checked(
            np.array([[[0, 11]]], np.int32)
        )
    with pytest.raises(UserError, match="tells 19 classes apart, the configuration has 11"):
        SANet.from_checkpoint(work / "onnx" / "SANet.onnx", config=own).checked(
            np.zeros((1, 19, 2, 2), np.float32)
        )
    exported = SANet.from_checkpoint(work / "onnx" / "SANet.onnx", config=settings())
    assert (exported.predict(image) == expected).mean() > 0.999
    with pytest.raises(UserError, match="gives class numbers"):
        exported.scores(image)


def settings(*flags):
    return load_config(SANetTask(), "infer", ["--config_path=quickstart", *flags])


def test_backends_and_exported_forms_agree(work, best, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = cv2.cvtColor(cv2.imread(str(photo(work))), cv2.COLOR_BGR2RGB)
    logits = {}
    for backend in ("mindspore", "mindir", "onnxruntime"):
        model = SANet.from_checkpoint(best, backend, settings())
        logits[backend] = model.run_network(model.normalise(image)[None])
    for backend in ("mindir", "onnxruntime"):
        np.testing.assert_allclose(logits[backend], logits["mindspore"], rtol=1e-3, atol=2e-4)
    scores = model.scores(image)
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-5)
    assert (scores.argmax(axis=0) == model.predict(image)).mean() > 0.999


def test_inference_on_photographs_of_every_kind(work, best):
    """Colour, grey, 16 bits, one pixel, an odd size; all in one folder."""
    folder = work / "photos"
    (folder / "more").mkdir(parents=True)
    image = cv2.imread(str(photo(work)))
    cv2.imwrite(str(folder / "colour.jpg"), image)
    cv2.imwrite(str(folder / "grey.png"), cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    cv2.imwrite(str(folder / "deep.png"), image.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "more" / "odd.png"), image[:77, :101])
    cv2.imwrite(str(folder / "pixel.png"), image[:1, :1])
    flags = ["--config_path=quickstart", f"--checkpoint_path={best}", f"--images={folder}"]
    run("infer.py", *flags, f"--output_path={work / 'infer'}", cwd=work)
    shapes = {
        path.relative_to(work / "infer").as_posix(): cv2.imread(str(path), -1).shape
        for path in (work / "infer").rglob("*_classes.png")
    }
    assert shapes == {
        "colour_classes.png": image.shape[:2],
        "grey_classes.png": image.shape[:2],
        "deep_classes.png": image.shape[:2],
        "more/odd_classes.png": (77, 101),
        "pixel_classes.png": (1, 1),
    }
    summary = json.loads((work / "infer" / "metrics.json").read_text())
    assert summary["images"] == 5
    assert all(abs(sum(shares.values()) - 1) < 2e-3 for shares in summary["shares"].values())
    # 16 bits are the same picture in finer steps.
    a, b = (cv2.imread(str(work / "infer" / f"{n}_classes.png"), -1) for n in ("deep", "colour"))
    assert (a == b).mean() > 0.9


def test_images_that_differ_in_folder_or_suffix_only_keep_results_of_their_own(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "more/a.png", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = result_names(tmp_path, image_files(tmp_path))
    found = {str(path.relative_to(tmp_path)): name for path, name in names.items()}
    assert found == {
        "a.png": "a.png", "a.jpg": "a.jpg", "b.png": "b", "more/a.png": "more/a"
    }  # fmt: skip
    assert result_names(tmp_path / "b.png", [tmp_path / "b.png"]) == {tmp_path / "b.png": "b"}


def test_the_imagenet_build_is_no_segmentation(tmp_path):
    config = settings("--task=classification", "--classes=3")
    weights = checkpoints.weights_of(SANetClassifier("S", 3, seed=0))
    best = checkpoints.save(tmp_path / "pre.ckpt", weights, network="sanet")
    with pytest.raises(UserError, match="tells no pixels apart"):
        SANet.from_checkpoint(best, "mindspore", config)
    with pytest.raises(UserError, match="only serves pretraining and is not exported"):
        SANetTask().export_cell(SANetClassifier("S", 3), config)


def test_the_test_split_can_only_be_handed_in(work, best):
    flags = ["--config_path=quickstart", f"--data_path={work / 'data'}", f"--ckpt_file={best}"]
    text = run(
        "eval.py",
        *flags,
        "--split=test",
        "--submission=true",
        f"--output_path={work / 'hand_in'}",
        cwd=work,
    )
    assert "submission of 4 images" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--variant=XL"], ["variant", "XL"]),
        (["--data.format=camvid"], ["train.lst"]),
        (["--loss.class_weights=1,2"], ["2 numbers for 19 classes"]),
        (["--classes=7"], ["classes=7, but cityscapes has 19"]),
        (["--data.mean=0.5,0.5"], ["data.mean"]),
        (["--batch_size=1"], ["train.batch_size=1", "at least 2"]),
        (["--task=classification"], ["data.format", "imagenet"]),
    ],
)
def test_settings_that_do_not_fit_are_sentences(work, flags, words):
    """What train.py builds from its command line, in its order."""
    task = SANetTask()
    with pytest.raises(UserError) as error:
        config = load_config(task, "train", [*SMALL, f"--data_path={work / 'data'}", *flags])
        task.build_dataset(config, "train")
        task.build_train_cell(None, config, Ranks())
    assert all(word in str(error.value) for word in words), error.value


def test_recipes_are_the_published_ones():
    """Section 3 of the paper's code, by configuration name."""
    table = {
        "cityscapes_s": ("S", 19, 484, 12, 0.01, (1024, 1024), 2048),
        "cityscapes_m": ("M", 19, 484, 12, 0.01, (1024, 1024), 2048),
        "cityscapes_l": ("L", 19, 484, 12, 0.01, (1024, 1024), 2048),
        "camvid_s": ("S", 11, 150, 8, 0.001, (720, 960), 960),
        "gtav_s": ("S", 35, 150, 12, 0.001, (1024, 1024), 960),
    }
    from research.sanet.src.layouts import class_table

    for name, (variant, classes, epochs, batch, lr, crop, base) in table.items():
        config = load_config(SANetTask(), "train", [f"--config_path={name}"])
        assert (config.variant, len(class_table(config))) == (variant, classes)
        assert (config.train.epochs, config.train.batch_size) == (epochs, batch)
        keys = config.optimizer
        assert (keys.name, keys.lr, keys.momentum, keys.nesterov) == ("sgd", lr, 0.9, True)
        assert (keys.weight_decay, keys.schedule, keys.power) == (5e-4, "poly", 0.9)
        assert (config.data.crop_height, config.data.crop_width) == crop
        assert config.data.base_size == base
        assert len(config.loss.class_weights) in (0, classes)
        loss = config.loss
        assert (loss.aux, loss.main, loss.boundary, loss.boundary_aware) == (0.4, 1, 20, 1)
        assert (loss.ohem_threshold, loss.ohem_keep) == (0.9, 131072)


def test_parameters_keep_their_published_names():
    description, _ = seeded.load_fixture("SANet_S")
    published = [name for name, _, _ in description["params"]]
    ours = [pytorch_name(p.name) for p in SANetNetwork("S").get_parameters()]
    assert set(ours) < set(published)
    classifier = {pytorch_name(p.name) for p in SANetClassifier("S").get_parameters()}
    assert {n for n in classifier if n.startswith("classifier")} - set(published) == {
        "classifier.3.dropout_calls"
    }
