"""Networks with the fixtures' weights, for comparison with stored reference values."""

import numpy as np
from mindspore import Tensor

from model_utils.torch_counterpart import pytorch_name
from tests import seeded


def fill(cell, params, gain, prefix=""):
    """Give every parameter its fixture value; returns the fixture names that nothing took."""
    names = {
        pytorch_name(prefix + p.name): p
        for p in cell.get_parameters()
        if not p.name.endswith("dropout_calls")
    }
    unused = []
    for name, shape, _ in params:
        parameter = names.pop(prefix + name, None)
        if parameter is None:
            unused.append(name)
            continue
        assert list(parameter.shape) == shape, name
        parameter.set_data(Tensor(seeded.parameter(name, shape, gain)))
    assert not names, f"the fixture lacks {sorted(names)[:3]}"
    return [name for name in unused if not name.endswith("num_batches_tracked")]


def relative(computed, expected):
    """Largest difference over the largest magnitude of what is expected."""
    expected = np.asarray(expected, np.float64)
    return np.abs(np.asarray(computed) - expected).max() / max(np.abs(expected).max(), 1e-12)
