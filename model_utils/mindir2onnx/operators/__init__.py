"""Translations of MINDIR operators, grouped by topic; importing this package registers them."""

from model_utils.mindir2onnx.operators import (
    activation,
    arithmetic,
    convolution,
    indexing,
    normalization,
    padding,
    plumbing,
    pooling,
    reduction,
    resizing,
    scalars,
    shaping,
)

__all__ = [
    "activation",
    "arithmetic",
    "convolution",
    "indexing",
    "normalization",
    "padding",
    "plumbing",
    "pooling",
    "reduction",
    "resizing",
    "scalars",
    "shaping",
]
