"""Folded networks against the networks they were made of."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from model_utils.folding import BorderedConv, Gone, fold, folded_or_same
from model_utils.layers import conv2d


class Chain(nn.Cell):
    """BatchNorm after a plain, a biased, a grouped and a dilated convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.SequentialCell(conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = conv2d(8, 12, 3, padding=2, dilation=2, group=4, has_bias=True)
        self.norm = nn.BatchNorm2d(12, eps=1e-3)
        self.last = nn.CellList([conv2d(12, 5, (1, 3), padding=(0, 0, 1, 1)), nn.BatchNorm2d(5)])

    def construct(self, x):
        x = ops.relu(self.norm(self.grouped(self.first(x))))
        return self.last[1](self.last[0](x))


class Untouchable(nn.Cell):
    """BatchNorm that must stay: before a convolution, or the convolution has other users."""

    def __init__(self):
        super().__init__()
        self.early = nn.BatchNorm2d(4)
        self.twice = conv2d(4, 6, 3, padding=1)
        self.after_twice = nn.BatchNorm2d(6)
        self.shared = conv2d(6, 6, 1)
        self.left = nn.BatchNorm2d(6)
        self.right = nn.BatchNorm2d(6)

    def construct(self, x):
        y = self.twice(self.early(x))
        z = self.after_twice(y) + y
        return self.left(self.shared(z)) + self.right(self.shared(ops.relu(z)))


class Pointwise(nn.Cell):
    """1 x 1 in front of another convolution, with all settings that matter."""

    def __init__(self, inputs=3, middle=16, stride=1, dilation=1, bias=True, padding=1):
        super().__init__()
        self.widen = conv2d(inputs, middle, 1, has_bias=bias)
        self.second = conv2d(middle, 7, 3, stride, padding, dilation, has_bias=True)
        self.norm = nn.BatchNorm2d(7)

    def construct(self, x):
        return ops.relu(self.norm(self.second(self.widen(x))))


class Wrapper(nn.Cell):
    """A part of a network that leaves the parameters' names alone."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x):
        return self.network(x)


def randomise(cell, seed=0):
    draw = np.random.default_rng(seed)
    for parameter in cell.get_parameters():
        value = draw.standard_normal(parameter.shape)
        if parameter.name.endswith(("moving_variance", "gamma")):
            value = 0.2 + np.abs(value)
        parameter.set_data(Tensor(value.astype(np.float32)))
    return cell


def compare(cell, folded, shape):
    cell.set_train(False)
    seen = []
    for repeat in range(3):
        x = np.random.default_rng(repeat).standard_normal(shape).astype(np.float32)
        wanted, found = cell(Tensor(x)).asnumpy(), folded(Tensor(x)).asnumpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 3e-6 * np.abs(wanted).max()
        seen.append(wanted)
    assert np.abs(seen[1] - seen[2]).max() > 0.1  # the input matters


def norms(cell):
    return [name for name, member in cell.cells_and_names() if isinstance(member, nn.BatchNorm2d)]


@pytest.mark.parametrize("wrap", [False, True])
def test_batch_norms_become_part_of_convolutions(wrap):
    network = randomise(Chain())
    cell = Wrapper(network) if wrap else network
    network.set_train(True)
    before = {p.name: p.asnumpy().copy() for p in cell.get_parameters()}
    result = fold(cell, (1, 3, 12, 16))
    # The original is as it was, mode included.
    assert network.norm.training
    assert {p.name for p in cell.get_parameters()} == before.keys()
    for parameter in cell.get_parameters():
        assert np.array_equal(parameter.asnumpy(), before[parameter.name])
    prefix = "network." if wrap else ""
    assert set(result.norms) == {f"{prefix}{name}" for name in ("first.1", "norm", "last.1")}
    assert not norms(result.cell)
    assert len(norms(cell)) == 3
    names = {p.name for p in result.cell.get_parameters()}
    assert names == {
        *("first.0.weight", "first.0.bias", "grouped.weight", "grouped.bias"),
        *("last.0.weight", "last.0.bias"),
    }
    compare(cell, result.cell, (2, 3, 24, 20))


def test_norms_with_other_neighbours_stay():
    cell = randomise(Untouchable())
    result = fold(cell, (1, 4, 8, 8))
    assert result.norms == ()
    assert norms(result.cell) == norms(cell)
    compare(cell, result.cell, (2, 4, 8, 8))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, BorderedConv),
        ({"stride": 2, "dilation": 3, "padding": 3}, BorderedConv),
        ({"padding": 0}, BorderedConv),
        ({"bias": False}, nn.Conv2d),
    ],
)
def test_pointwise_convolutions_are_multiplied_out(settings, kind):
    cell = randomise(Pointwise(**settings))
    result = fold(cell, (1, 3, 12, 12))
    assert result.pointwise == ("widen",)
    assert result.norms == ("norm",)
    assert isinstance(result.cell.widen, Gone)
    assert type(result.cell.second) is kind
    # Borders included: there the zero padding meets the first bias.
    compare(cell, result.cell, (2, 3, 11, 13))


def test_pointwise_convolutions_that_save_work_stay():
    # 32 to 2 to 7 channels: one 3 x 3 convolution from 32 would take more multiplications.
    cell = randomise(Pointwise(inputs=32, middle=2))
    result = fold(cell, (1, 32, 8, 8))
    assert result.pointwise == ()
    compare(cell, result.cell, (1, 32, 8, 8))


def test_folded_network_exports_without_batch_norm(tmp_path):
    import onnx

    from model_utils.exporting import ExportInput, export

    cell = randomise(Pointwise())
    inputs = [ExportInput("image", (None, 3, None, None))]
    path = tmp_path / "folded.onnx"
    folded = fold(cell, (1, 3, 16, 16)).cell
    report = export(folded, inputs, path, "ONNX", reference=cell)
    assert report.max_difference < 1e-5
    assert len(report.checked_shapes) == 2
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators


class Branching(nn.Cell):
    """Its graph depends on the data."""

    def __init__(self):
        super().__init__()
        self.conv = conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def construct(self, x):
        y = self.norm(self.conv(x))
        if x.sum() > 0:
            return y
        return ops.sin(y)


def test_a_network_that_cannot_be_read_stays_as_it_is(caplog):
    cell = Branching()
    cell.set_train(False)
    assert folded_or_same(cell, (1, 3, 8, 8)) is cell
    assert "BatchNorm is not folded" in caplog.text
    assert ms.get_context("mode") == ms.GRAPH_MODE
