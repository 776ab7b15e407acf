"""Sliding windows and resizing: PyTorch's values, plain references, properties."""

import math

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor, nn, ops

from model_utils.errors import UserError
from model_utils.windows import WindowMean, resize_aligned, taps, window_positions, windows
from tests.seeded import load_fixture, network_input


@pytest.mark.parametrize("key", sorted(load_fixture("resize_aligned")[1]))
def test_resizing_gives_pytorchs_values(key):
    expected = load_fixture("resize_aligned")[1][key]
    height, width = map(int, key.partition("_")[0].split("x"))
    source = network_input(key, (2, 2, height, width))
    kept = source.copy()
    result = resize_aligned(source, expected.shape[-2:])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(source, kept)


class Resize(nn.Cell):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def construct(self, x):
        return ops.ResizeBilinearV2(True, False)(x, self.size)


def test_resizing_agrees_with_the_frameworks_operator():
    # Evaluation resizes in the graph or on the host, with the same result either way.
    for size in ((23, 31), (5, 9), (1, 1)):
        cell = Resize(size)
        for seed in range(3):
            x = np.random.default_rng(seed).standard_normal((1, 3, 7, 11)).astype(np.float32)
            np.testing.assert_allclose(
                resize_aligned(x, size), cell(Tensor(x, ms.float32)).asnumpy(), rtol=0, atol=2e-6
            )


@given(st.integers(1, 40), st.integers(1, 80))
def test_interpolation_follows_the_definition(source, target):
    below, above, weight = taps(source, target)
    for place in range(target):
        position = place * (source - 1) / (target - 1) if target > 1 else 0.0
        mixed = below[place] * (1 - weight[place]) + above[place] * weight[place]
        assert mixed == pytest.approx(position, abs=1e-5)
        assert 0 <= below[place] <= above[place] < source


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 80))
def test_windows_cover_the_side_and_stay_inside(length, window, stride):
    if stride > window:
        return
    positions = window_positions(length, window, stride)
    covered = np.zeros(length, bool)
    for position in positions:
        assert 0 <= position and (position + window <= length or position == 0)
        covered[position : position + window] = True
    assert covered.all()
    step = stride or window
    assert len(positions) == max(0, math.ceil((length - window) / step)) + 1
    assert positions[:-1] == [place * step for place in range(len(positions) - 1)]


def test_the_references_windows():
    # 160 x 320 (zoom 1.25 of 128 x 256) in windows of 128 x 256: the last is shifted back.
    assert list(windows((160, 320), (128, 256))) == [
        (slice(0, 128), slice(0, 256)),
        (slice(0, 128), slice(64, 320)),
        (slice(32, 160), slice(0, 256)),
        (slice(32, 160), slice(64, 320)),
    ]
    assert list(windows((100, 320), (128, 256))) == [
        (slice(0, 100), slice(0, 256)),
        (slice(0, 100), slice(64, 320)),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 5), "at least 1"), ((9, 0), "at least 1"), ((9, 4, 5), "leaves gaps")],
)
def test_impossible_windows_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        window_positions(*arguments)


def test_the_mean_counts_every_window_that_holds_a_pixel():
    rng = np.random.default_rng(1)
    mean = WindowMean((2, 7, 10))
    expected = [[[] for _ in range(10)] for _ in range(7)]
    for rows, columns in windows((7, 10), (4, 6), (2, 5)):
        values = rng.standard_normal((2, 4, 6)).astype(np.float32)
        mean.add((rows, columns), values)
        for row in range(4):
            for column in range(6):
                expected[rows.start + row][columns.start + column].append(values[:, row, column])
    result = mean.mean()
    for row in range(7):
        for column in range(10):
            np.testing.assert_allclose(
                result[:, row, column], np.mean(expected[row][column], axis=0), atol=1e-6
            )


def test_an_uncovered_pixel_is_said():
    mean = WindowMean((3, 4))
    mean.add((slice(0, 3), slice(0, 3)), np.ones((3, 3)))
    with pytest.raises(UserError, match="row 0, column 3"):
        mean.mean()
