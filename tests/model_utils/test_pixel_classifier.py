"""The pixel classifier: features against plain formulas, sampling, choice, figures, bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_utils import pixel_classifier
from model_utils.errors import UserError
from model_utils.files import read_image, write_image
from model_utils.pixel_classifier import PixelClassifierConfig
from model_utils.segmentation import IGNORE, Pair
from research.sanet.src.classes import CAMVID, CITYSCAPES
from research.sanet.src.config import SANetConfig
from research.sanet.src.dataset import SegmentationDataset, build_dataset
from research.sanet.src.generator import generate

ROOT = Path(pixel_classifier.__file__).resolve().parents[1]
NET = ROOT / "research" / "sanet"
KEYS = PixelClassifierConfig(pixels=12000, classifier="trees", trees=15)


def run(*flags, cwd, status=0):
    done = subprocess.run(
        [sys.executable, str(NET / "compare_baselines.py"), *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """A small Cityscapes: folder, training and validation images."""
    folder = tmp_path_factory.mktemp("street")
    generate(folder, seed=3, train=10, val=4, test=1, height=96, width=192)
    config = SANetConfig()
    config.data.root = str(folder)
    return folder, *(build_dataset(config, split, augment=False) for split in ("train", "val"))


def picture(height=60, width=90, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


# --- features ---------------------------------------------------------------------------------


def test_features_are_the_plain_formulas():
    image = picture()
    features = pixel_classifier.pixel_features(image)
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).astype(np.float64)
    row, column, side = 20, 47, 13
    found = features[row, column]
    np.testing.assert_allclose(found[:3], [47.5 / 90, 20.5 / 60, abs(47.5 / 90 - 0.5)], atol=1e-6)
    np.testing.assert_allclose(found[3:6], lab[row, column], atol=1e-3)
    np.testing.assert_allclose(found[6:9], lab[row, column] - lab.mean((0, 1)), atol=1e-3)
    half = side // 2
    square = lab[row - half : row + half + 1, column - half : column + half + 1]
    start = 9 + 8  # behind the square of 5 pixels
    np.testing.assert_allclose(found[start : start + 3], square.mean((0, 1)), atol=1e-2)
    assert found[start + 3] == pytest.approx(square[:, :, 0].std(), abs=1e-2)
    assert found[start + 4] == pytest.approx(lab[row, column, 0] - square[:, :, 0].mean(), abs=0.01)
    # Mean colour 40 pixels to the left, over 13 pixels.
    square = lab[row - half : row + half + 1, column - 40 - half : column - 40 + half + 1]
    start = 9 + 4 * 8 + 3
    np.testing.assert_allclose(found[start : start + 3], square.mean((0, 1)), atol=1e-2)


def test_without_position_a_shifted_image_has_shifted_features():
    image = picture(300, 300)
    with_position = pixel_classifier.pixel_features(image)
    features = pixel_classifier.pixel_features(image, position=False)
    np.testing.assert_array_equal(features, with_position[..., 3:])
    # Far enough from the border; the mean colour of the image (features 3 to 5) changes.
    moved = pixel_classifier.pixel_features(np.roll(image, (4, 7), (0, 1)), position=False)
    inner = (slice(140, 144), slice(140, 160))
    shifted = (slice(144, 148), slice(147, 167))
    np.testing.assert_allclose(moved[shifted], features[inner], atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize(("angle", "expected"), [(0, (1, 0)), (90, (-1, 0)), (45, (0, 1))])
def test_the_direction_of_stripes_is_that_of_their_gradient(angle, expected):
    rows, columns = np.mgrid[:80, :80]
    phase = columns * np.cos(np.deg2rad(angle)) + rows * np.sin(np.deg2rad(angle))
    grey = (127 + 60 * np.sin(phase / 3)).astype(np.uint8)
    features = pixel_classifier.pixel_features(np.repeat(grey[:, :, None], 3, axis=2))
    start = 9 + 2 * 8  # the square of 31 pixels
    np.testing.assert_allclose(features[40, 40, start + 6 : start + 8], expected, atol=0.05)


def test_a_constant_image_has_no_texture():
    features = pixel_classifier.pixel_features(np.full((40, 50, 3), (90, 140, 30), np.uint8))
    varying = np.ptp(features.reshape(-1, features.shape[2]), axis=0) > 0.01
    assert np.flatnonzero(varying).tolist() == [0, 1, 2]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_any_size_gives_finite_features_that_mirror_with_the_image(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    features = pixel_classifier.pixel_features(image)
    assert features.shape == (height, width, 62) and np.isfinite(features).all()
    mirrored = pixel_classifier.pixel_features(image[:, ::-1].copy())[:, ::-1]
    # All but the column, the sign of the diagonal direction, and left against right.
    same = [1, 2, *range(3, 9), *range(9, 16), *range(41, 44), *range(50, 62)]
    np.testing.assert_allclose(mirrored[..., same], features[..., same], atol=2e-2, rtol=1e-3)


# --- sampling and choice ----------------------------------------------------------------------


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_pixels_are_drawn_by_the_power_of_their_frequency(tmp_path, balance):
    rng = np.random.default_rng(0)
    label = np.full((100, 200), IGNORE, np.uint8)
    label[:, :160], label[:, 160:190], label[:50, 190:] = 6, 9, 2  # 16000, 3000 and 500 pixels
    for number in range(10):
        write_image(tmp_path / f"{number}.jpg", rng.integers(0, 256, (100, 200, 3), dtype=np.uint8))
        write_image(tmp_path / f"{number}.png", CAMVID.colourise(label))
    pairs = [Pair(tmp_path / f"{n}.jpg", tmp_path / f"{n}.png") for n in range(10)]
    dataset = SegmentationDataset(pairs, CAMVID, values="colours")
    counts = pixel_classifier.class_counts(dataset)
    assert {k: v for k, v in enumerate(counts) if v} == {6: 160000, 9: 30000, 2: 5000}
    keys = PixelClassifierConfig(pixels=6000, balance=balance, long_side=0)
    learning, choosing = pixel_classifier.draw_pixels(dataset, counts, keys, seed=1)
    drawn = np.bincount(learning.labels, minlength=len(CAMVID))
    weight = np.where(counts, counts.astype(float) ** balance, 0)
    expected = 6000 * weight / weight.sum()
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected) + 1e-9).all(), (drawn, expected)
    # Pixels to choose by are as frequent as in the images, and only of those kept aside.
    shares = np.bincount(choosing.labels, minlength=len(CAMVID)) / len(choosing.labels)
    np.testing.assert_allclose(shares, counts / counts.sum(), atol=0.01)
    assert len(choosing.labels) == 2 * label[label != IGNORE].size
    assert learning.kept_aside.mean() == pytest.approx(0.2, abs=0.03)
    again = pixel_classifier.draw_pixels(dataset, counts, keys, seed=1)[0]
    other = pixel_classifier.draw_pixels(dataset, counts, keys, seed=2)[0]
    assert np.array_equal(again.features, learning.features)
    assert not np.array_equal(other.features[:100], learning.features[:100])


@given(st.integers(10, 4000))
def test_a_fifth_is_kept_aside_in_two_blocks(count):
    aside = pixel_classifier.kept_aside(count)
    assert abs(aside.mean() - 0.2) <= 2 / count
    assert (np.diff(aside.astype(int)) == 1).sum() == 2


def test_the_choice_knows_nothing_of_the_images_kept_aside():
    rng = np.random.default_rng(0)
    features = rng.random((4000, 2)).astype(np.float32)
    truth = (features[:, 0] > 0.5).astype(np.uint8)
    aside = np.arange(4000) >= 1000
    # Three quarters, all kept aside, are labelled the wrong way round.
    learning = pixel_classifier.Pixels(features, np.where(aside, 1 - truth, truth), aside)
    choosing = pixel_classifier.Pixels(features[aside], truth[aside], aside[aside])
    keys = PixelClassifierConfig(iterations=20, trees=20)
    name, model, tried = pixel_classifier.train_classifier(learning, choosing, 2, keys, seed=0)
    assert set(tried) == set(pixel_classifier.CLASSIFIERS) and min(tried.values()) > 0.97
    assert tried[name] == max(tried.values())
    assert (model.predict(features[~aside]) != truth[~aside]).mean() > 0.6  # trained on all


# --- learning ---------------------------------------------------------------------------------


def trained(dataset, keys=KEYS, shuffle=False):
    counts = pixel_classifier.class_counts(dataset)
    learning, choosing = pixel_classifier.draw_pixels(dataset, counts, keys, seed=0)
    if shuffle:
        labels = np.random.default_rng(0).permutation(learning.labels)
        learning = pixel_classifier.Pixels(learning.features, labels, learning.kept_aside)
    return pixel_classifier.train_classifier(learning, choosing, len(counts), keys, 0)[1], counts


def test_it_learns_the_streets_and_nothing_from_shuffled_labels(street):
    _, train, val = street
    model, counts = trained(train)
    matrix, boundary = pixel_classifier.measure(model, val, KEYS)
    most = pixel_classifier.majority(counts, matrix)
    labels = np.concatenate([val.read(index)[1].ravel() for index in range(len(val))])
    labels = labels[labels != IGNORE]
    assert most.pixel_accuracy() == pytest.approx(np.mean(labels == counts.argmax()))
    assert matrix.mean_iou_present() > 4 * most.mean_iou_present()
    assert matrix.pixel_accuracy() > most.pixel_accuracy() + 0.3
    assert 0 < boundary.mean_f_score() < 1
    blind, _ = trained(train, shuffle=True)
    nonsense = pixel_classifier.measure(blind, val, KEYS)[0]
    assert nonsense.mean_iou_present() < 0.4 * matrix.mean_iou_present()


def test_large_images_are_reduced_and_predictions_brought_back(street):
    _, train, val = street
    keys = PixelClassifierConfig(pixels=4000, classifier="trees", trees=5, long_side=64)
    model, _ = trained(train, keys)
    image = val.read(0)[0]
    assert pixel_classifier.shrunk(image, 64, cv2.INTER_AREA).shape == (32, 64, 3)
    prediction = pixel_classifier.predict(model, image, keys)
    assert prediction.shape == image.shape[:2] and prediction.dtype == np.uint8
    # Blocks of 3 x 3 pixels come from one.
    assert (prediction == np.kron(prediction[1::3, 1::3], np.ones((3, 3), np.uint8))).all()


def test_the_command_writes_what_scikit_learn_counts(street, tmp_path):
    from sklearn.metrics import confusion_matrix, jaccard_score

    folder, _, val = street
    flags = [f"--data_path={folder}", "--baseline.pixels=4000", "--baseline.trees=5"]
    flags += ["--baseline.iterations=3", "--evaluate.pictures=4", f"--output_path={tmp_path}"]
    text = run(*flags, cwd=tmp_path)
    assert "majority" in text and "on the images kept aside" in text
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    truth, found = [], []
    for index in range(len(val)):
        stem = Path(val.name(index)).stem
        truth.append(val.read(index)[1].ravel())
        found.append(read_image(tmp_path / f"predictions/{stem}_classes.png", 1).ravel())
    known = np.concatenate(truth) != IGNORE
    truth, found = np.concatenate(truth)[known], np.concatenate(found)[known]
    labels = range(len(CITYSCAPES))
    assert metrics["confusion"] == confusion_matrix(truth, found, labels=labels).tolist()
    name = max(metrics["miou_kept_aside"], key=metrics["miou_kept_aside"].get)
    expected = jaccard_score(truth, found, average=None, labels=labels, zero_division=0)
    iou = metrics["methods"][name]["iou"]
    np.testing.assert_allclose(list(iou.values()), expected, atol=1e-9)
    assert metrics["methods"][name]["miou"] == pytest.approx(expected.mean())
    assert tuple(iou) == CITYSCAPES.names and metrics["images"] == 4


# --- bad input --------------------------------------------------------------------------------


def test_one_class_is_a_sentence(tmp_path):
    write_image(tmp_path / "a.jpg", picture())
    write_image(tmp_path / "a.png", CAMVID.colourise(np.full((60, 90), 6, np.uint8)))
    dataset = SegmentationDataset([Pair(tmp_path / "a.jpg", tmp_path / "a.png")], CAMVID)
    with pytest.raises(UserError, match="hold only road"):
        pixel_classifier.class_counts(dataset)


def test_images_without_masks_are_a_sentence(street, tmp_path):
    folder, *_ = street
    error = run(f"--data_path={folder}", "--split=test", cwd=tmp_path, status=2)
    assert re.fullmatch(r"error: .*berlin.* has no mask; .*\n", error.splitlines(True)[-1])
    error = run(f"--data_path={folder}", "--split=nowhere", cwd=tmp_path, status=2)
    assert "there is no split 'nowhere'" in error and "Traceback" not in error
