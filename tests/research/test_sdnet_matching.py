"""Matching generated image pairs under known displacements."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_utils.errors import UserError
from research.sdnet.src import generator
from research.sdnet.src.baselines import OrientationMoments
from research.sdnet.src.dataset import normalise
from research.sdnet.src.matching import (
    Matches,
    MatchOptions,
    describe_points,
    draw_matches,
    estimate_transform,
    match_images,
    nearest_pairs,
    register_images,
    transform_points,
)

DESCRIBE = OrientationMoments()


@pytest.fixture(scope="module")
def scene():
    optical, sar = generator.make_scene(5, 0, 448)
    return cv2.cvtColor(optical, cv2.COLOR_RGB2GRAY), sar


def corner_errors(found, truth, size):
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], float)
    return np.linalg.norm(
        transform_points(found, corners) - transform_points(truth, corners), axis=1
    )


@pytest.mark.parametrize("model", ["translation", "similarity"])
def test_a_translation_is_recovered_by_search(scene, model):
    optical, sar = scene[0][60:340, 60:340], scene[1][52:332, 71:351]
    truth = np.array([[1, 0, -11], [0, 1, 8], [0, 0, 1.0]])
    matches = match_images(optical, sar, DESCRIBE, options=MatchOptions(model=model, most=120))
    assert corner_errors(matches.transform, truth, 280).max() < 2
    assert matches.inlier_count > 40 and matches.inliers.mean() > 0.6
    errors = transform_points(truth, matches.optical[matches.inliers])
    errors = np.linalg.norm(errors - matches.sar[matches.inliers], axis=1)
    assert np.median(errors) < 2
    assert matches.summary()["inliers"] == matches.inlier_count


def test_a_translation_is_recovered_without_any_guess(scene):
    # 100 pixels: far outside any search window.
    optical, sar = scene[0][0:300, 0:300], scene[1][20:320, 100:400]
    truth = np.array([[1, 0, -100], [0, 1, -20], [0, 0, 1.0]])
    options = MatchOptions(method="global", step=4, model="translation")
    matches = match_images(optical, sar, DESCRIBE, options=options)
    assert corner_errors(matches.transform, truth, 300).max() < 2


def test_rotation_and_scale_are_recovered_in_two_stages(scene):
    matrix = cv2.getRotationMatrix2D((224, 224), 4, 1.02)
    matrix[:, 2] += (6, -9)
    turned = cv2.warpAffine(scene[1], matrix, (448, 448), borderMode=cv2.BORDER_REFLECT_101)
    truth = np.vstack([matrix, [0, 0, 1]])
    # 4 degrees move the corners by up to 21 pixels.
    assert corner_errors(np.eye(3), truth, 448).max() > 15
    options = MatchOptions(radius=32, step=4, most=150)
    coarse = match_images(scene[0], turned, DESCRIBE, options=options)
    fine = register_images(scene[0], turned, DESCRIBE, options=options)
    assert corner_errors(fine.transform, truth, 448).max() < 2
    assert fine.inlier_count > coarse.inlier_count > 20
    residuals = np.linalg.norm(transform_points(truth, fine.optical) - fine.sar, axis=1)
    assert np.median(residuals) < 1.5


def test_unrelated_images_are_not_registered(scene):
    other = generator.make_scene(6, 1, 448)[1]
    options = MatchOptions(most=60, step=4)
    right = match_images(*scene, DESCRIBE, options=options)
    wrong = match_images(scene[0], other, DESCRIBE, options=options)
    assert right.inlier_count > 5 * wrong.inlier_count


def test_memory_is_bounded_by_the_batch(scene):
    sizes = []

    def describe(patches):
        assert patches.shape[1:] == (1, 64, 64) and patches.dtype == np.float32
        assert patches.min() >= -1 and patches.max() <= 1
        sizes.append(len(patches))
        return DESCRIBE(patches)

    image = scene[0][:200, :200]
    match_images(image, scene[1][:200, :200], describe, options=MatchOptions(batch=50, radius=8))
    assert max(sizes) == 50 and sum(sizes) > 500


def test_each_position_is_described_once_and_by_its_own_branch(scene):
    seen = {"optical": 0, "sar": 0}

    def branch(name):
        def describe(patches):
            seen[name] += len(patches)
            return DESCRIBE(patches)

        return describe

    image, other = scene[0][:160, :160], scene[1][:160, :160]
    options = MatchOptions(radius=12, step=2, min_distance=4)
    matches = match_images(image, other, branch("optical"), branch("sar"), options)
    assert seen["optical"] == matches.keypoints
    # At most every second row and column of the area where windows fit, however many keypoints.
    assert matches.keypoints * 13 * 13 > 49 * 49 >= seen["sar"]


def test_points_are_described_by_their_windows():
    image = np.random.default_rng(0).integers(0, 256, (100, 120), dtype=np.uint8)
    points = np.array([[32, 32], [88, 68], [50, 40]])
    found = describe_points(image, points, lambda p: p.reshape(len(p), -1), batch=2)
    for (x, y), row in zip(points, found, strict=True):
        expected = normalise(image[y - 32 : y + 32, x - 32 : x + 32]).ravel()
        np.testing.assert_array_equal(row, expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50), st.booleans())
@settings(deadline=None, max_examples=40)
def test_nearest_pairs_equal_brute_force(count, others, seed, mutual):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((count, 6)).astype(np.float32)
    second = rng.standard_normal((others, 6)).astype(np.float32)
    table = np.linalg.norm(first[:, None].astype(float) - second[None], axis=2)
    expected = []
    for row in range(count):
        order = np.argsort(table[row])
        clear = others == 1 or table[row, order[0]] < 0.9 * table[row, order[1]]
        if clear and (not mutual or table[:, order[0]].argmin() == row):
            expected.append((row, order[0]))
    left, right, distances = nearest_pairs(first, second, 0.9, mutual)
    assert list(zip(left, right, strict=True)) == expected
    np.testing.assert_allclose(distances, table[left, right], rtol=1e-4)


def test_nearest_pairs_over_several_blocks():
    rng = np.random.default_rng(1)
    second = rng.standard_normal((9000, 8)).astype(np.float32)
    chosen = rng.permutation(9000)[:200]
    first = second[chosen] + 0.01 * rng.standard_normal((200, 8)).astype(np.float32)
    left, right, _ = nearest_pairs(first, second, ratio=0.8)
    assert len(left) > 150
    np.testing.assert_array_equal(right, chosen[left])


@pytest.mark.parametrize("model", ["translation", "similarity", "affine", "homography"])
def test_transformations_survive_outliers(model):
    rng = np.random.default_rng(2)
    source = rng.uniform(0, 500, (100, 2))
    truth = {
        "translation": np.array([[1, 0, 12.5], [0, 1, -7], [0, 0, 1]]),
        "similarity": np.array([[0.98, -0.2, 30], [0.2, 0.98, -10], [0, 0, 1]]),
        "affine": np.array([[1.1, -0.2, 30], [0.1, 0.95, -10], [0, 0, 1]]),
        "homography": np.array([[1.1, -0.2, 30], [0.1, 0.95, -10], [2e-4, -1e-4, 1]]),
    }[model]
    target = transform_points(truth, source) + rng.normal(0, 0.3, (100, 2))
    target[:40] = rng.uniform(0, 500, (40, 2))
    found, inliers = estimate_transform(source, target, model, threshold=2)
    assert corner_errors(found, truth, 500).max() < 1.5
    assert inliers[40:].all() and inliers[:40].sum() <= 2


def test_too_few_matches_give_no_transformation():
    points = np.random.default_rng(0).uniform(0, 100, (4, 2))
    for model, count in (("similarity", 2), ("affine", 3), ("homography", 4), ("translation", 1)):
        found, inliers = estimate_transform(points[:count], points[:count], model)
        assert found is None and not inliers.any() and len(inliers) == count
    scattered = np.array([[0, 0], [50, 0], [0, 70.0]])
    assert estimate_transform(scattered, scattered * -3, "translation")[0] is None
    with pytest.raises(UserError, match="no model"):
        estimate_transform(points, points, "spline")


def test_images_without_keypoints_give_no_matches():
    flat = np.full((128, 128), 90, np.uint8)
    for method in ("search", "global"):
        matches = match_images(flat, flat, DESCRIBE, options=MatchOptions(method=method))
        assert len(matches) == 0 and matches.transform is None and matches.summary()["matches"] == 0
        assert draw_matches(flat, flat, matches).shape[1] > 256


def test_bad_input_is_explained(scene):
    with pytest.raises(UserError, match="SAR image: float"):
        match_images(scene[0], scene[1].astype(float), DESCRIBE)
    with pytest.raises(UserError, match="40x300 pixels is smaller"):
        match_images(scene[0][:300, :40], scene[1], DESCRIBE)
    for changes in ({"method": "best"}, {"ratio": 0}, {"step": 0}, {"model": "spline"}):
        with pytest.raises(UserError, match=next(iter(changes))):
            match_images(*scene, DESCRIBE, options=MatchOptions(**changes))


def test_inliers_are_green_and_outliers_red():
    image = np.zeros((100, 100), np.uint8)
    points = np.array([[20.0, 30], [20, 80]])
    matches = Matches(points, points, np.zeros(2, np.float32), np.array([True, False]), None, 2)
    picture = draw_matches(image, image, matches)
    top = picture.shape[0] - 100
    # Green minus red in a band around either point's line.
    bands = [picture[top + y - 5 : top + y + 6].astype(int) for y in (30, 80)]
    inlier, outlier = (band[..., 1] - band[..., 0] for band in bands)
    assert inlier.max() > 100 and inlier.min() > -60
    assert outlier.min() < -100 and outlier.max() < 60
