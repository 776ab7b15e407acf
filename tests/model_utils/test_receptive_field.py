"""Receptive fields against the reference's figures and against which pixels really matter."""

from fractions import Fraction

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import nn, ops

from model_utils.errors import UserError
from model_utils.gradients import eager_mode
from model_utils.layers import conv2d, conv_transpose2d
from model_utils.receptive_field import chain, path_counts, receptive_fields
from model_utils.tracing import trace
from tests.seeded import load_fixture

windows = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


def test_chains_of_the_reference():
    """Its layer lists count half of the layers; the same lists must give the same figures."""
    values = load_fixture("SANet_tools")[0]["values"]
    main, branch = values["rf_layers"]["SANet_main"], values["rf_layers"]["SANet_branch"]
    assert [list(pair) for pair in chain(main)][13:] == [
        values["rf"]["SANet_main_no_pool"],
        *values["rf"]["SANet_main"],
    ]
    assert [list(pair) for pair in chain(branch)][-5:] == values["rf"]["SANet_branch"]
    assert list(chain(main)[7]) == values["rf"]["L3"]


def test_path_counts_of_the_reference():
    _, arrays = load_fixture("SANet_tools")
    stem = [(3, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)]
    np.testing.assert_array_equal(path_counts(stem), arrays["rf_map_stem_layer1"])
    dilated = [*stem, (3, 1, 1), (3, 1, 2)]
    np.testing.assert_array_equal(path_counts(dilated), arrays["rf_map_then_dilated_1_2"])


@given(st.lists(windows, min_size=1, max_size=5))
def test_path_counts_cover_the_receptive_field(layers):
    counts = path_counts(layers)
    assert counts.shape == (chain(layers)[-1][0],) * 2
    # Every layer multiplies the number of paths by its taps.
    assert counts.sum() == np.prod([kernel**2 for kernel, _, _ in layers])
    assert counts[0, 0] == counts[-1, -1] == 1


class Branches(nn.Cell):
    """Everything that the fields are followed through; a plain sum of positive numbers."""

    def __init__(self):
        super().__init__()
        self.stem = conv2d(1, 2, (5, 3), 2, (2, 2, 1, 1))
        self.dilated = conv2d(2, 2, 3, padding=3, dilation=3)
        self.pool = nn.AvgPool2d((1, 5), (1, 4), pad_mode="pad", padding=(0, 2))
        self.pooled = conv2d(2, 2, 3, padding=1)
        self.same = nn.MaxPool2d(3, 2, pad_mode="same")
        self.up = conv_transpose2d(2, 2, 3, 2, 1, 1)
        for parameter in self.get_parameters():
            value = np.full(parameter.shape, 0.1, np.float32)
            parameter.set_data(ms.Tensor(value))

    def construct(self, x):
        """(1, 1, H, W) to (1, 4, H / 2, W / 2)."""
        x = self.stem(x)
        wide = ops.ResizeBilinearV2(False, True)(self.pooled(self.pool(x)), ops.shape(x)[2:])
        fine = self.up(self.same(x))
        return ops.concat((wide + self.dilated(x), fine), 1)


class Averaged(nn.Cell):
    """A branch that sees everything."""

    def __init__(self):
        super().__init__()
        self.stem = conv2d(1, 2, 3, 2, 1)

    def construct(self, x):
        """(1, 1, H, W) to (1, 2, H / 2, W / 2)."""
        x = self.stem(x)
        return x + x.mean(axis=(2, 3), keep_dims=True)


def pixels_that_matter(network, size, channels, row, column):
    """First and last row and column whose pixels change a unit, by its gradient."""

    def unit(image):
        return network(image)[0, channels, row, column].sum()

    rng = np.random.default_rng(3)
    image = rng.uniform(1, 2, (1, 1, *size)).astype(np.float32)
    with eager_mode():
        gradient = ms.grad(unit)(ms.Tensor(image)).asnumpy()[0, 0]
    rows, columns = np.nonzero(gradient)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_branches_against_gradients():
    """The extent is the largest over the phases of resizing; the centre is their mean."""
    network = Branches()
    graph = trace(network, (1, 1, 512, 512))
    all_paths = [f for f in receptive_fields(graph) if f.operator == "output"][0]
    extents, centres = [], []
    for step in range(4):
        bounds = pixels_that_matter(network, (96, 96), slice(0, 2), 24 + step, 24 + step)
        extents.append([bounds[1] - bounds[0] + 1, bounds[3] - bounds[2] + 1])
        first = [(low + high) / 2 for low, high in (bounds[:2], bounds[2:])]
        centres.append([first[0] - 2 * (24 + step), first[1] - 2 * (24 + step)])
    assert all_paths.size == tuple(np.max(extents, axis=0))
    assert all_paths.step == (Fraction(2), Fraction(2))
    np.testing.assert_allclose(all_paths.centre, np.mean(centres, axis=0))


def test_single_paths_against_gradients():
    network = Branches()
    graph = trace(network, (1, 1, 512, 512))
    without = ["pooled", "dilated"]
    fine = [f for f in receptive_fields(graph, without) if f.operator == "output"][0]
    extents = []
    for row in (20, 21):
        low, high, left, right = pixels_that_matter(network, (96, 96), slice(2, 4), row, row)
        extents.append((high - low + 1, right - left + 1))
    # Max pooling has one winner per window: its gradient is never wider than the field.
    assert np.all(np.array(fine.size) >= np.max(extents, axis=0))
    assert fine.size == (13, 11)  # two windows of 3, 5 places of the stem: 5 + 4 * 2, 3 + 4 * 2
    rows = {f.layer: f for f in receptive_fields(graph, without)}
    assert rows["pooled"].size == (0, 0) and rows["pool"].size == (5, 3 + 8)


def test_what_sees_the_whole_image():
    rows = receptive_fields(trace(Averaged(), (1, 1, 64, 96)))
    assert rows[0].size == (3, 3) and rows[0].whole == (False, False)
    assert rows[-1].whole == (True, True) and rows[-1].size == (64, 96)


def test_refusals():
    graph = trace(Branches(), (1, 1, 32, 32))
    with pytest.raises(UserError, match="does not fit into 32 pixels"):
        receptive_fields(graph)
    with pytest.raises(UserError, match="no input 'right'; inputs: x"):
        receptive_fields(graph, source="right")
    with pytest.raises(UserError, match="below 1"):
        chain([(3, 0, 1)])


class Chain(nn.Cell):
    """Convolutions one after another, of positive weights."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.SequentialCell(
            [
                nn.Conv2d(1, 1, k, s, pad_mode="pad", padding=0, dilation=d, weight_init="ones")
                for k, s, d in layers
            ]
        )

    def construct(self, x):
        """(1, 1, H, W) to a smaller map."""
        return self.layers(x)


@settings(max_examples=8, deadline=None)
@given(st.lists(windows, min_size=1, max_size=3))
def test_a_network_that_is_a_chain(layers):
    """Two ways to the same figures."""
    rows = receptive_fields(trace(Chain(layers), (1, 1, 1024, 1024)))
    found = [(row.size[0], int(row.step[0])) for row in rows[: len(layers)]]
    assert found == chain(layers)
