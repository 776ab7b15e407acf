"""Convolving before resizing gives what MindSpore computes the other way round."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from model_utils.mindir2onnx import convert, reordering
from model_utils.mindir2onnx.reordering import shifted_resizing
from model_utils.windows import resize_aligned
from tests.model_utils import reordering_cells as cells
from tests.model_utils.test_mindir2onnx import export_mindir, run, session_of

FINE, HALF, QUARTER = (4, 20, 28), (4, 10, 14), (4, 5, 7)

# Name: Cell, channels and sizes of its maps, how many convolutions are left as one node.
CASES = {
    "three_levels": (lambda: cells.Pyramid([4, 4, 4]), [FINE, HALF, QUARTER], 3),
    "no_bias": (lambda: cells.Pyramid([4, 4], bias=False), [FINE, HALF], 2),
    "half_pixel": (lambda: cells.Pyramid([4, 4], corners=False), [FINE, (4, 7, 9)], 2),
    "dilated": (
        lambda: cells.Pyramid([4, 4], padding=(2, 2, 2, 2), dilation=2),
        [FINE, (4, 9, 5)],
        2,
    ),
    "row_kernel": (
        lambda: cells.Pyramid([4, 4], kernel=(1, 5), padding=(0, 0, 2, 2)),
        [FINE, HALF],
        2,
    ),
    "points": (lambda: cells.Pyramid([4, 9], kernel=1, padding=0), [FINE, (9, 1, 1)], 2),
    "plain_ones_around": (
        lambda: cells.Pyramid([4, 3, 2]),
        [FINE, (3, 10, 14), (2, 20, 28)],
        2,
    ),
    "alone": (lambda: cells.Alone((20, 28)), [(5, 6, 9)], 1),
}
# These stay: the result has another size, or channels are grouped.
UNCHANGED = {
    "strided": lambda: cells.Pyramid([4, 4], stride=2),
    "unpadded": lambda: cells.Pyramid([4, 4], padding=0),
    "grouped": lambda: cells.Pyramid([4, 4], group=2),
    "used_twice": lambda: cells.Pair(shared=True),
}


@pytest.fixture(autouse=True)
def _small_maps_too(monkeypatch):
    monkeypatch.setattr(reordering, "LEAST_SAVING", -(10**12))
    monkeypatch.setattr(reordering, "LARGEST_SHARE", 100.0)


def exported(build, sizes, folder, batch=2):
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((batch, *size)).astype(np.float32) for size in sizes]
    cell = build()
    return cell, arrays, export_mindir(cell, arrays, [a.shape for a in arrays], folder / "n.mindir")


def kinds(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", CASES)
def test_results_stay(name, tmp_path):
    build, sizes, convolutions = CASES[name]
    cell, arrays, path = exported(build, sizes, tmp_path)
    direct, model = convert(path, reorder=False), convert(path)
    assert "Resize" in kinds(direct)
    assert "Resize" not in kinds(model)
    assert kinds(model).count("Conv") == convolutions
    expected = cell(*[ms.Tensor(array) for array in arrays]).asnumpy()
    for opset in (17, 20):
        computed = run(session_of(convert(path, opset=opset)), arrays)[0]
        np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-5)
    # Parameters stay what they were.
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for parameter in cell.get_parameters():
        np.testing.assert_array_equal(stored[parameter.name], parameter.asnumpy())


@pytest.mark.parametrize("name", UNCHANGED)
def test_others_are_left_alone(name, tmp_path):
    _, _, path = exported(UNCHANGED[name], [FINE, HALF], tmp_path)
    assert convert(path) == convert(path, reorder=False)


def test_any_batch(tmp_path):
    cell = cells.Pyramid([4, 4])
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((3, *size)).astype(np.float32) for size in (FINE, HALF)]
    shapes = [(None, *size) for size in (FINE, HALF)]
    model = convert(export_mindir(cell, arrays, shapes, tmp_path / "n.mindir"))
    assert "Resize" not in kinds(model)
    expected = cells.Pyramid([4, 4])
    ms.load_param_into_net(expected, {p.name: p for p in cell.get_parameters()})
    expected = expected(*[ms.Tensor(array) for array in arrays]).asnumpy()
    computed = run(session_of(model), arrays)[0]
    np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-5)


def test_maps_of_any_size_stay_resized(tmp_path):
    """Matrices need known lengths."""
    cell = cells.Pair()
    arrays = [np.ones((1, *size), np.float32) for size in (FINE, HALF)]
    shapes = [(1, *FINE), (1, 4, None, None)]
    path = export_mindir(cell, arrays, shapes, tmp_path / "n.mindir")
    assert convert(path) == convert(path, reorder=False)


def test_only_what_saves_much(tmp_path, monkeypatch):
    """Half the side: 9 taps cost a quarter, and matrices by the map's size."""
    _, _, path = exported(lambda: cells.Pyramid([4, 4]), [FINE, HALF], tmp_path)
    direct = 20 * 28 * 4 * 6 * 9
    before = 10 * 14 * 4 * 6 * 9 + 6 * 3 * 20 * 30 * 14 + 6 * 20 * 42 * 28
    monkeypatch.setattr(reordering, "LARGEST_SHARE", before / direct + 1e-6)
    assert "Resize" not in kinds(convert(path))
    monkeypatch.setattr(reordering, "LARGEST_SHARE", before / direct - 1e-6)
    assert "Resize" in kinds(convert(path))
    monkeypatch.setattr(reordering, "LARGEST_SHARE", 100.0)
    monkeypatch.setattr(reordering, "LEAST_SAVING", direct - before + 1)
    assert "Resize" in kinds(convert(path))
    monkeypatch.setattr(reordering, "LEAST_SAVING", direct - before)
    assert "Resize" not in kinds(convert(path))


@given(
    st.integers(1, 12),
    st.integers(1, 24),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_matrix_is_resizing_then_taps(source, target, taps, dilation, seed):
    signal = np.random.default_rng(seed).standard_normal(source)
    pad = dilation * (taps - 1) // 2
    matrix = shifted_resizing("align_corners", source, target, taps, pad, dilation)
    found = (matrix.reshape(target, taps, source) @ signal).T
    resized = resize_aligned(signal[:, None], (target, 1))[:, 0]
    padded = np.pad(resized, pad)
    for tap in range(taps):
        wanted = padded[tap * dilation : tap * dilation + target]
        np.testing.assert_allclose(found[tap], wanted, atol=1e-5)
