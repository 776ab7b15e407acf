"""Hand-crafted distances: reference values, invariances, and order on structured scenes."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from model_utils.errors import UserError
from model_utils.metrics.ranking import fpr_at_recall, roc_auc
from research.sdnet.src import baselines, generator
from research.sdnet.src.patches import PatchWriter, open_patches
from research.sdnet.src.preparing import PrepareOptions, list_pairs, prepare

SDNET = Path(baselines.__file__).parents[1]


def noise(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 64, 64), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(image, (0, 0), 1.5) for image in images])


@pytest.fixture(scope="module")
def scene_archive(tmp_path_factory):
    """Patches of generated scenes, as many matching as not."""
    folder = tmp_path_factory.mktemp("scenes")
    generator.generate(folder, scenes=6, across=2, down=2, seed=11)
    options = PrepareOptions(per_image=12, train_ratio=0.01, min_distance=16)
    prepare(list_pairs(folder), folder / "out", options)
    return open_patches(folder / "out" / "test.npz")


def test_gaussian_matrices_are_opencv_filters():
    image = noise(1)[0].astype(np.float32)
    for sigma in (0.8, 2.0, 4.5):
        matrix = baselines._gaussian(sigma, 64)
        size = 2 * int(np.ceil(4 * sigma)) + 1
        expected = cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=0.02)
        sampled = baselines._gaussian(sigma, 64, 4)
        np.testing.assert_allclose(sampled @ image @ sampled.T, expected[2::4, 2::4], atol=0.02)


def test_correlation_is_that_of_numpy():
    first, second = noise(5), noise(5, 1)
    for index, value in enumerate(baselines.correlation(first, second)):
        expected = np.corrcoef(first[index].ravel(), second[index].ravel())[0, 1]
        assert value == pytest.approx(1 - abs(expected), abs=1e-9)
    assert baselines.correlation(first, 255 - first) == pytest.approx(0, abs=1e-9)


def test_mutual_information_is_that_of_scikit_learn():
    from sklearn.metrics import mutual_info_score

    first, second = noise(4), 255 - noise(4) // 2
    second[2:] = noise(2, 7)
    found = baselines.mutual_information(first, second, bins=6, sigma=0)
    for index, value in enumerate(found):
        classes = [
            np.searchsorted(
                np.sort(patch[index], axis=None)[np.arange(1, 6) * 4096 // 6],
                patch[index].ravel(),
                side="right",
            )
            for patch in (first, second)
        ]
        assert -value == pytest.approx(mutual_info_score(*classes), abs=1e-6)
    # A function of the other patch shares more than an unrelated patch.
    assert found[:2].max() < found[2:].min() - 0.5


@pytest.mark.parametrize("kind", [baselines.OrientationMoments, baselines.OrientationChannels])
def test_descriptors_ignore_contrast_and_its_sign(kind):
    describe = kind()
    patches = noise(6)[:, None].astype(np.float32) / 127.5 - 1
    descriptor = describe(patches)
    np.testing.assert_allclose(np.linalg.norm(descriptor, axis=1), 1, rtol=1e-5)
    assert descriptor.dtype == np.float32 and len(descriptor) == 6
    for changed in (-patches, 0.3 * patches + 0.5):
        np.testing.assert_allclose(describe(changed), descriptor, atol=2e-4)
    distances = np.linalg.norm(descriptor[:, None] - descriptor[None], axis=2)
    assert distances[~np.eye(6, dtype=bool)].min() > 0.5
    # A batch is no more than its rows, and constant patches do not divide by zero.
    np.testing.assert_allclose(describe(patches[2:3])[0], descriptor[2], atol=1e-6)
    assert np.isfinite(describe(np.zeros((1, 1, 64, 64), np.float32))).all()
    with pytest.raises(UserError, match="64,64"):
        describe(patches[:, :, :32])


def test_moments_follow_the_direction_of_edges():
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    describe = baselines.OrientationMoments(harmonics=1, centring=0, energy=0, power=1)
    for degrees in (0, 30, 45, 90, 120):
        angle = np.deg2rad(degrees)
        stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 4)[None, None]
        moments = describe(stripes)[0, : 2 * 256].reshape(2, 256)
        # exp(2ik) of the gradient direction, the same at every place but the borders
        found = np.rad2deg(np.arctan2(moments[1].sum(), moments[0].sum())) / 2
        assert abs((found - degrees + 90) % 180 - 90) < 2


def test_structure_beats_grey_values_on_generated_scenes(scene_archive):
    table = baselines.compare(scene_archive)
    assert table["orientation_moments"]["fpr95"] < 0.15
    assert table["orientation_moments"]["auc"] > 0.97
    assert table["correlation"]["auc"] < table["mutual_information"]["auc"] < 0.97
    assert table["orientation_channels"]["auc"] > table["gradient_correlation"]["auc"] > 0.8
    lines = baselines.table_lines(table)
    assert len(lines) == 7 and f"{table['correlation']['fpr95']:7.4f}" in "\n".join(lines)
    order = [line.split()[0] for line in lines[1:]]
    assert order == sorted(table, key=lambda name: table[name]["fpr95"])


def test_the_search_finds_the_shift():
    wide = np.stack([cv2.resize(image, (160, 160)) for image in noise(4)])
    still = wide[:, 40:104, 40:104]
    describe = baselines.OrientationMoments()
    for x, y in ((2, 0), (-1, 2), (-2, -2)):
        moved = wide[:, 40 - y : 104 - y, 40 - x : 104 - x]
        plain = baselines.descriptor_distance(describe, still, moved)
        assert (describe.searched(still, moved) < 0.6 * plain).all()
        # Out of reach the shift is not found.
        assert (describe.searched(still, moved, reach=1) > describe.searched(still, moved)).all()
    assert describe.searched(still, still).max() < 1e-5


def test_batches_do_not_change_distances(scene_archive):
    for distance in baselines.BASELINES.values():
        small = baselines.baseline_distances(scene_archive, distance, batch=17)
        large = baselines.baseline_distances(scene_archive, distance, batch=400)
        np.testing.assert_allclose(small, large, atol=1e-4)


def test_unrelated_noise_is_not_told_apart(tmp_path):
    with PatchWriter(tmp_path / "n.npz") as writer:
        writer.append(np.concatenate([noise(300), noise(300, 5)], axis=2), np.arange(300) % 2)
    archive = open_patches(tmp_path / "n.npz")
    for distance in baselines.BASELINES.values():
        found = baselines.baseline_distances(archive, distance)
        assert 0.4 < roc_auc(found, archive.labels) < 0.6
        assert fpr_at_recall(found, archive.labels) > 0.8


def test_the_command_writes_the_table(scene_archive, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, SDNET / "compare_baselines.py", *map(str, arguments)],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip

    folder = scene_archive.path.parent
    done = run("--dataroot", folder, "--methods", "correlation", "--output_path", "table")
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "table/metrics.json").read_text())["methods"]["correlation"]
    expected = baselines.baseline_distances(scene_archive, baselines.correlation)
    assert stored["fpr95"] == fpr_at_recall(expected, scene_archive.labels)
    assert f"{stored['fpr95']:.4f}" in done.stdout
    failed = run("--dataroot", folder, "--methods", "sift")
    assert failed.returncode == 2 and "no baseline 'sift'" in failed.stderr
    assert run("--dataroot", folder, "--split", "none").returncode == 2
