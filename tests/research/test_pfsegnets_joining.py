"""The pyramid's convolution level by level is the one of the resized maps side by side."""

import numpy as np
import pytest
from mindspore import Tensor

from research.pfsegnets.src.joining import PyramidConv
from tests.research.parity import relative
from tests.research.pfsegnets_cells import FourMaps, Gradients, Joined


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_levels_equal_the_whole_and_so_do_gradients(size):
    rng = np.random.default_rng(3)
    ours, plain = PyramidConv(5, 4, 7), Joined(20, 7)
    weight = Tensor(rng.standard_normal(ours.weight.shape).astype(np.float32))
    ours.weight.set_data(weight)
    plain.conv.weight.set_data(weight)
    ours.set_train(True)
    cells = [FourMaps(cell) for cell in (ours, plain)]
    gradients = [Gradients(cell) for cell in cells]
    for _ in range(3):  # changed inputs through one compiled graph
        maps = tuple(
            Tensor(rng.standard_normal((2, 5, size[0] >> k, size[1] >> k)).astype(np.float32))
            for k in range(4)
        )
        sense = Tensor(rng.standard_normal((2, 7, *size)).astype(np.float32))
        computed, wanted = (cell(*maps).asnumpy() for cell in cells)
        assert relative(computed, wanted) < 2e-6
        found, expected = ([g.asnumpy() for g in cell(*maps, sense)] for cell in gradients)
        assert len(found) == len(expected) == 5
        for mine, other in zip(found, expected, strict=True):
            assert relative(mine, other) < 5e-6


def test_in_evaluation_it_is_one_convolution():
    """So that BatchNorm folds into it and exported files hold the weight as published."""
    from model_utils.tracing import trace

    cell = FourMaps(PyramidConv(5, 4, 7))
    graph = trace(cell, *((1, 5, 16 >> k, 16 >> k) for k in range(4)))
    convolutions = [call for call in graph.calls if call.operator == "Conv2D"]
    assert [call.inputs[1] for call in convolutions] == [cell.cell.weight.name]
