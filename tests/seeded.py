"""Weights and inputs of the parity fixtures, derived from names and shapes alone.

Each array has a random generator of its own, seeded with the CRC-32 of its name, so that a
fixture needs to store results only.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def load_fixture(name):
    """Return (description, arrays) of tests/fixtures/NAME.{json,npz}."""
    description = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    path = FIXTURES / f"{name}.npz"
    arrays = dict(np.load(path, allow_pickle=False)) if path.exists() else {}
    return description, arrays


def _generator(key):
    return np.random.default_rng(zlib.crc32(key.encode("utf-8")))


def parameter(name, shape, gain=1.0):
    """A reference parameter: He-normal weights, unit-order statistics, small biases."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    draw = _generator(name)
    if len(shape) > 1 and not name.endswith(("running_var", "running_mean")):
        deviation = gain * np.sqrt(2.0 / np.prod(shape[1:], dtype=np.int64))
        return (deviation * draw.standard_normal(shape)).astype(np.float32)
    if name.endswith(("running_mean", "bias")):
        return (0.1 * draw.standard_normal(shape)).astype(np.float32)
    return draw.uniform(0.5, 1.5, shape).astype(np.float32)


def network_input(name, shape):
    """A standard-normal input."""
    return _generator("input:" + name).standard_normal(shape).astype(np.float32)
