"""Multiply-adds and parameters against counts by hand."""

import csv

import pytest
from mindspore import nn, ops

from model_utils.complexity import count
from model_utils.errors import UserError
from model_utils.layers import Dropout, FullMapConv2d, conv2d, conv_transpose2d
from model_utils.tracing import trace


class Convolutions(nn.Cell):
    """One of every kind that networks here use; the branch ``spare`` is not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.SequentialCell(conv2d(3, 8, (3, 5), 2, (1, 1, 2, 2)), nn.BatchNorm2d(8))
        self.grouped = conv2d(8, 12, 3, padding=1, group=4, has_bias=True)
        self.up = conv_transpose2d(12, 4, 3, 2, 1, 1)
        self.volume = nn.Conv3d(4, 6, 3, pad_mode="pad", padding=1)
        self.unvolume = nn.Conv3dTranspose(
            6, 2, 3, stride=2, pad_mode="pad", padding=1, output_padding=1
        )
        self.line = nn.Conv1d(4, 5, 3, pad_mode="pad", padding=1)
        self.dense = nn.SequentialCell(nn.Dense(4, 7), Dropout(0.5))
        self.full = FullMapConv2d(4, 9, 16)
        self.spare = conv2d(3, 100, 3)

    def construct(self, x):
        """(1, 3, 16, 16) to one result per kind."""
        y = self.up(self.grouped(self.stem(x)))
        volume = self.unvolume(self.volume(y.expand_dims(2)))
        rows = y.reshape(1, 4, 256)
        similarity = ops.bmm(rows.swapaxes(1, 2), rows)
        return volume, self.line(y.mean(3)), self.dense(y.mean((2, 3))), self.full(y), similarity


@pytest.fixture(scope="module")
def counted():
    return count(Convolutions(), (1, 3, 16, 16))


@pytest.mark.parametrize(
    ("layer", "parameters", "multiply_adds"),
    [
        ("stem", 8 * 3 * 15 + 16, 8 * 8 * 8 * 3 * 15),  # outputs 8x8x8, filters of 3x3x5
        ("grouped", 12 * 2 * 9 + 12, 12 * 8 * 8 * 2 * 9),  # each filter sees 8 / 4 channels
        ("up", 12 * 4 * 9 + 4, 12 * 8 * 8 * 4 * 9),  # each input is spread over 4x3x3
        ("volume", 6 * 4 * 27, 6 * 1 * 16 * 16 * 4 * 27),
        ("unvolume", 6 * 2 * 27, 6 * 1 * 16 * 16 * 2 * 27),
        ("line", 5 * 4 * 3, 5 * 16 * 4 * 3),
        ("dense", 4 * 7 + 7, 4 * 7),
        ("full", 9 * 4 * 256, 9 * 4 * 256),  # a convolution computed as a matrix product
        ("", 0, 256 * 256 * 4),  # the product of two results belongs to no layer
        ("spare", 100 * 3 * 9, 0),
    ],
)
def test_layers_by_hand(counted, layer, parameters, multiply_adds):
    row = counted.modules().layers[layer]
    assert (row.parameters, row.multiply_adds) == (parameters, multiply_adds)


def test_sums_and_what_is_not_used(counted):
    rows = counted.layers.values()
    assert counted.multiply_adds == sum(row.multiply_adds for row in rows)
    assert counted.parameters - counted.used == 100 * 3 * 9
    # Running mean and variance are kept, not trained; Dropout's counter is neither.
    assert sum(row.statistics for row in rows) == 16
    assert counted.layers["stem.0"].shape == (1, 8, 8, 8)
    assert counted.modules(2).layers.keys() >= {"stem.0", "stem.1", "dense.0"}


def test_the_written_table_is_the_counted_one(counted, tmp_path):
    counted.write(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as stream:
        rows = {row["layer"]: row for row in csv.DictReader(stream)}
    assert int(rows["up"]["multiply_adds"]) == 12 * 64 * 36
    assert rows["spare"]["unused"] == rows["spare"]["parameters"] == "2700"
    assert rows["grouped"]["shape"] == "1x12x8x8"
    text = "\n".join(counted.lines())
    assert "2,700 " in text and f"{counted.multiply_adds:,}" in text


def test_large_inputs_cost_nothing():
    """A hundred thousand pixels a side would be 120 GB of image."""
    network = conv2d(3, 4, 3, 2, 1)
    assert count(network, (1, 3, 100_000, 100_000)).multiply_adds == 4 * 50_000**2 * 27


class Recurrent(nn.Cell):
    """Holds an operator that multiplies and is not known."""

    def __init__(self):
        super().__init__()
        self.product = ops.Einsum("ij,jk->ik")

    def construct(self, x):
        """(N, N) to its square."""
        return self.product((x, x))


def test_refusals():
    with pytest.raises(UserError, match="no elements"):
        count(conv2d(3, 4, 3), (1, 3, 0, 8))
    with pytest.raises(UserError, match="cannot be compiled for inputs of 1x5x8x8"):
        count(conv2d(3, 4, 3), (1, 5, 8, 8))
    with pytest.raises(UserError, match="Einsum"):
        count(Recurrent(), (4, 4))
    with pytest.raises(UserError, match="depth is 0"):
        count(conv2d(3, 4, 3), (1, 3, 8, 8)).modules(0)


def test_tracing_leaves_the_training_state_of_every_layer():
    network = nn.SequentialCell(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    network.set_train(True)
    network[1].set_train(False)
    calls = trace(network, (2, 3, 4, 4)).calls
    assert [call.layer for call in calls if call.operator == "BatchNorm"] == ["0", "1"]
    assert network[0].training and not network[1].training
