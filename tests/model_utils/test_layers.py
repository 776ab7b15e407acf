"""Layers against plain NumPy, and dropout as a random variable."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn

from model_utils.layers import (
    Dropout,
    FullMapConv2d,
    ResizeLike,
    conv2d,
    conv_transpose2d,
    l2_normalize,
    max_pool_after_relu,
    semi_orthogonal,
    zero_pad,
)


class Gradient(nn.Cell):
    """Gradients of sum(cell(x) * weight) by x and by the cell's parameters."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
        weights = cell.trainable_params() or None
        self.differentiate = ms.grad(self.weighted, grad_position=0, weights=weights)

    def weighted(self, x, weight):
        return (self.cell(x) * weight).sum()

    def construct(self, x, weight):
        return self.differentiate(x, weight)


class Normalize(nn.Cell):
    def construct(self, x):
        return l2_normalize(x)


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Resizing


class ResizeGradient(nn.Cell):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell
        self.differentiate = ms.grad(self.weighted, grad_position=0)

    def weighted(self, x, like, weight):
        return (self.cell(x, like) * weight).sum()

    def construct(self, x, like, weight):
        return self.differentiate(x, like, weight)


def places(source, target, align_corners):
    """Where the target's pixel centres lie among the source's."""
    if align_corners:
        return np.linspace(0, source - 1, target) if target > 1 else np.zeros(1)
    return (np.arange(target) + 0.5) * source / target - 0.5


def along(source, target, align_corners):
    """Interpolation of unit vectors, column by column, by NumPy."""
    columns = [
        np.interp(places(source, target, align_corners), np.arange(source), unit)
        for unit in np.eye(source)
    ]
    return np.stack(columns, 1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("source", "target"), [((3, 4), (7, 9)), ((1, 1), (4, 5)), ((1, 6), (3, 6)), ((5, 5), (5, 5))]
)
def test_resizing_is_linear_interpolation_in_both_modes(align_corners, source, target):
    rows, columns = (along(a, b, align_corners) for a, b in zip(source, target, strict=True))
    cell = ResizeLike(align_corners)
    gradient = ResizeGradient(cell)
    like = Tensor(np.zeros((1, 1, *target), np.float32))
    for seed in range(3):
        x, weight = normal((2, 3, *source), seed), normal((2, 3, *target), seed + 10)
        expected = np.einsum("yh,nchw,xw->ncyx", rows, x, columns)
        back = np.einsum("yh,ncyx,xw->nchw", rows, weight, columns)
        for training in (True, False):
            cell.set_train(training)
            np.testing.assert_allclose(cell(Tensor(x), like).asnumpy(), expected, atol=2e-6)
        gradient.set_train(True)
        computed = gradient(Tensor(x), like, Tensor(weight)).asnumpy()
        np.testing.assert_allclose(computed, back, atol=1e-5)


# Convolutions


def test_conv2d_pads_with_zeros_on_named_sides():
    cell = conv2d(1, 1, 2, padding=(1, 0, 2, 0))
    cell.weight.set_data(Tensor(np.array([[[[1, 10], [100, 1000]]]], np.float32)))
    for seed in range(3):
        x = normal((1, 1, 3, 3), seed)
        padded = np.zeros((4, 5), np.float32)
        padded[1:, 2:] = x[0, 0]
        expected = (
            padded[:-1, :-1] + 10 * padded[:-1, 1:] + 100 * padded[1:, :-1] + 1000 * padded[1:, 1:]
        )
        np.testing.assert_allclose(cell(Tensor(x)).asnumpy()[0, 0], expected, rtol=1e-5, atol=1e-3)


def scattered(x, weight, bias, stride, padding, output_padding):
    """Transposed convolution by its definition: every input adds a scaled kernel."""
    n, _, height, width = x.shape
    _, outputs, k, _ = weight.shape
    full = np.zeros((n, outputs, (height - 1) * stride + k + 9, (width - 1) * stride + k + 9))
    for i in range(height):
        for j in range(width):
            stamp = np.einsum("nc,cokl->nokl", x[:, :, i, j].astype(float), weight)
            full[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += stamp
    rows = (height - 1) * stride - 2 * padding + k + output_padding
    columns = (width - 1) * stride - 2 * padding + k + output_padding
    cut = full[:, :, padding : padding + rows, padding : padding + columns]
    return cut + bias[:, None, None]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "output_padding"),
    [(2, 2, 0, 0), (3, 2, 1, 1), (3, 2, 1, 0), (4, 2, 1, 0), (3, 1, 1, 0), (5, 3, 2, 2)],
)
def test_conv_transpose2d_is_its_definition(kernel, stride, padding, output_padding):
    cell = conv_transpose2d(3, 2, kernel, stride, padding, output_padding)
    bias = normal((2,), 9)
    cell.bias.set_data(Tensor(bias))
    for seed in range(3):
        x = normal((2, 3, 4, 5), seed)
        expected = scattered(x, cell.weight.asnumpy(), bias, stride, padding, output_padding)
        np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, atol=1e-5)


def test_conv_transpose2d_refuses_what_cropping_cannot_express():
    with pytest.raises(ValueError, match="output_padding 1 exceeds padding 0"):
        conv_transpose2d(1, 1, 2, 2, 0, 1)


def test_full_map_convolution_equals_convolution_with_its_gradients():
    fast, plain = FullMapConv2d(6, 5, 4), conv2d(6, 5, 4)
    weight = normal((5, 6, 4, 4), 1)
    for cell in (fast, plain):
        assert cell.weight.shape == weight.shape
        cell.weight.set_data(Tensor(weight))
    gradients = Gradient(fast), Gradient(plain)
    for seed in range(3):
        x, factor = Tensor(normal((3, 6, 4, 4), seed)), Tensor(normal((3, 5, 1, 1), seed + 10))
        exact = np.einsum("nchw,ochw->no", x.asnumpy().astype(float), weight)
        np.testing.assert_allclose(fast(x).asnumpy()[:, :, 0, 0], exact, atol=1e-4)
        (mine, mine_weight), (theirs, theirs_weight) = (g(x, factor) for g in gradients)
        np.testing.assert_allclose(mine.asnumpy(), theirs.asnumpy(), atol=1e-5)
        np.testing.assert_allclose(mine_weight[0].asnumpy(), theirs_weight[0].asnumpy(), atol=1e-5)


def test_full_map_convolution_refuses_another_map():
    # (2, 6, 8, 8) has the values of eight (6, 4, 4) maps: a mere reshape would take it.
    with pytest.raises(ValueError, match="the map must be"):
        FullMapConv2d(6, 5, 4)(Tensor(normal((2, 6, 8, 8), 0)))


# Padding, pooling, normalisation


def test_zero_pad_and_its_gradient_hold_over_repeated_runs():
    cell = zero_pad(1, 2, 3, 0)
    gradient = Gradient(cell)
    for seed in range(4):
        x = normal((2, 3, 4, 5), seed)
        np.testing.assert_array_equal(
            cell(Tensor(x)).asnumpy(), np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 0)))
        )
        factor = normal((2, 3, 7, 8), seed + 20)
        np.testing.assert_array_equal(
            gradient(Tensor(x), Tensor(factor)).asnumpy(), factor[:, :, 1:5, 3:]
        )


@given(
    size=st.integers(5, 9),
    kernel=st.sampled_from([2, 3, 5]),
    stride=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_max_pool_after_relu_is_padded_max_pooling(size, kernel, stride, seed):
    padding = kernel // 2
    x = np.maximum(normal((2, 2, size, size + 1), seed), 0)
    found = max_pool_after_relu(kernel, stride, padding)(Tensor(x)).asnumpy()
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(x, sides, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    np.testing.assert_array_equal(found, windows[:, :, ::stride, ::stride].max(axis=(4, 5)))


def test_l2_normalize_and_its_zero_row():
    cell = Normalize()
    for seed in range(3):
        x = normal((5, 128), seed)
        x[2] = 0
        wide = x.astype(float)
        expected = wide / np.sqrt((wide**2).sum(axis=1, keepdims=True) + 1e-10)
        np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 20), (20, 4), (8, 2, 3, 3), (32, 1, 3, 3)])
def test_semi_orthogonal(shape):
    weight = semi_orthogonal(shape, 0.6, np.random.default_rng(0))
    assert weight.shape == shape and weight.dtype == np.float32
    matrix = weight.reshape(shape[0], -1).astype(float)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 0.36 * np.eye(len(product)), atol=1e-6)


# Dropout


def dropout(p=0.3, seed=0, rank=0, calls=0):
    cell = Dropout(p, seed, rank)
    cell.set_train(True)
    cell.dropout_calls.set_data(Tensor([calls], ms.int32))
    return cell


def kept(cell, shape):
    """Which elements of one call survive, (N, everything else)."""
    return (cell(Tensor(np.ones(shape, np.float32))).asnumpy() != 0).reshape(shape[0], -1)


@pytest.fixture(scope="module")
def masks():
    """Eight successive calls of (512, 1024): 4.2 million decisions at p = 0.3."""
    cell = dropout()
    return np.stack([kept(cell, (512, 16, 8, 8)) for _ in range(8)])


def test_dropout_scales_what_it_keeps():
    cell = dropout(0.25)
    for seed in range(3):
        x = normal((4, 3, 5, 5), seed)
        found = cell(Tensor(x)).asnumpy()
        survived = found != 0
        assert 0 < survived.mean() < 1
        np.testing.assert_allclose(found[survived], x[survived] / 0.75, rtol=1e-6)


def test_dropout_gradient_passes_where_values_pass():
    cell = dropout()
    gradient = Gradient(cell)
    for _ in range(3):
        calls = int(cell.dropout_calls.asnumpy()[0])
        factor = normal((4, 6, 5, 5), calls)
        found = gradient(Tensor(normal((4, 6, 5, 5), calls + 1)), Tensor(factor)).asnumpy()
        mask = kept(dropout(calls=calls), (4, 6, 5, 5)).reshape(factor.shape)
        np.testing.assert_allclose(found, factor * mask / 0.7, rtol=1e-6)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_dropout_rate(p):
    cell = dropout(p, seed=2)
    mask = np.stack([kept(cell, (128, 8, 8, 8)) for _ in range(4)])
    deviations = (mask.mean() - (1 - p)) / np.sqrt(p * (1 - p) / mask.size)
    assert abs(deviations) < 4


def test_dropout_counts_calls_and_repeats_from_any_of_them():
    cell = dropout()
    drawn = [kept(cell, (8, 100)) for _ in range(5)]
    assert int(cell.dropout_calls.asnumpy()[0]) == 5
    assert len({mask.tobytes() for mask in drawn}) == 5
    resumed = dropout(calls=3)
    for expected in drawn[3:]:
        np.testing.assert_array_equal(kept(resumed, (8, 100)), expected)


def test_dropout_is_off_in_evaluation_and_at_zero():
    x = Tensor(normal((4, 30), 0))
    cell = dropout(0.5)
    cell.set_train(False)
    np.testing.assert_array_equal(cell(x).asnumpy(), x.asnumpy())
    assert int(cell.dropout_calls.asnumpy()[0]) == 0
    np.testing.assert_array_equal(dropout(0.0)(x).asnumpy(), x.asnumpy())


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_dropout_refuses_impossible_probabilities(p):
    with pytest.raises(ValueError, match="must be in"):
        Dropout(p)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_masks_of_ranks_join_to_the_mask_of_one(size):
    per_rank = 48 // size
    whole, parts = dropout(), [dropout(rank=rank) for rank in range(size)]
    for _ in range(3):
        expected = kept(whole, (48, 4, 5, 5))
        found = np.concatenate([kept(part, (per_rank, 4, 5, 5)) for part in parts])
        np.testing.assert_array_equal(found, expected)


def test_seeds_draw_independently():
    first, second = kept(dropout(seed=0), (512, 1024)), kept(dropout(seed=1), (512, 1024))
    assert abs(correlation(first, second)) < 4


def correlation(first, second):
    """Correlation of two masks in standard deviations of chance."""
    a, b = (mask.astype(np.float64) - 0.7 for mask in (first, second))
    return (a * b).sum() / (0.21 * np.sqrt(a.size))


@pytest.mark.parametrize(
    ("axis", "lag"),
    [(0, lag) for lag in (1, 2, 3)]  # calls
    + [(1, lag) for lag in (1, 2, 3, 8, 64)]  # samples
    + [(2, lag) for lag in (1, 2, 3, 8, 64, 512)],  # elements
)
def test_neighbours_are_independent(masks, axis, lag):
    moved = np.moveaxis(masks, axis, 0)
    assert abs(correlation(moved[:-lag], moved[lag:])) < 4.5


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2), (0,), (1,), (2,)])
def test_no_element_sample_or_call_is_favoured(masks, axes):
    # Chi-square of the counts: its mean is their number n, its variance 2n.
    counts = masks.sum(axis=axes).ravel()
    trials = masks.size / counts.size
    chi = ((counts - 0.7 * trials) ** 2 / (trials * 0.21)).sum()
    assert abs(chi - counts.size) < 4.5 * np.sqrt(2 * counts.size)


def test_pairs_of_elements_are_uncorrelated(masks):
    samples = masks.reshape(-1, masks.shape[2])[:, :512].astype(np.float64) - 0.7
    matrix = samples.T @ samples / (0.21 * np.sqrt(len(samples)))
    pairs = matrix[np.triu_indices(512, 1)]
    assert abs(pairs.mean()) < 4 / np.sqrt(pairs.size)
    assert np.mean(pairs**2) == pytest.approx(1, abs=0.02)
    # The largest of 130,816 normal variables is about 4.5.
    assert np.abs(pairs).max() < 6.5


def test_pairs_of_samples_are_uncorrelated(masks):
    samples = masks.reshape(-1, masks.shape[2])[:600].astype(np.float64) - 0.7
    matrix = samples @ samples.T / (0.21 * np.sqrt(samples.shape[1]))
    pairs = matrix[np.triu_indices(600, 1)]
    assert abs(pairs.mean()) < 4 / np.sqrt(pairs.size)
    assert np.mean(pairs**2) == pytest.approx(1, abs=0.02)
    assert np.abs(pairs).max() < 6.5


def test_the_tests_of_randomness_can_fail(masks):
    repeated = np.repeat(masks[:, :, ::2], 2, axis=2)
    assert abs(correlation(repeated[:, :, :-1], repeated[:, :, 1:])) > 100
    counts = np.sort(masks, axis=2).sum(axis=(0, 1))
    trials = masks.size / counts.size
    chi = ((counts - 0.7 * trials) ** 2 / (trials * 0.21)).sum()
    assert chi > 10 * counts.size
