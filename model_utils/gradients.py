"""What a trained network looks at: gradients at any layer, class activation maps from them.

All of it runs eagerly, where a hook can read and change what a layer hands on; graph mode is
restored afterwards. One backward pass costs a few forward passes.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from model_utils.errors import UserError

# Luo et al. 2016 call a pixel effective whose gradient exceeds 1 - 95.45 % of the largest.
EFFECTIVE_SHARE = 1 - 0.9545


@contextlib.contextmanager
def eager_mode() -> Iterator[None]:
    """PyNative mode inside, the mode that was in force afterwards."""
    import mindspore as ms

    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=before)


def find_layer(network: Any, name: str) -> Any:
    """A Cell inside a network by its name, e.g. "decoder" or "layer3.1.conv2".

    Raises:
        UserError: there is none; names what is there.
    """
    known = {path: cell for path, cell in network.cells_and_names() if path}
    if name in known:
        return known[name]
    parent = name.rpartition(".")[0]
    near = parent if parent in known else ""
    inside = [path for path in known if path.rpartition(".")[0] == near]
    raise UserError(
        f"{type(network).__name__} has no layer '{name}'; "
        f"{f'in {near} there are' if near else 'there are'} {', '.join(inside)}"
    )


class LayerGradients:
    """Results of one layer for one input, and gradients of scores with respect to them.

    Args:
        forward: from an input Tensor to the output Tensor, passing through ``layer`` once.
        layer: a Cell with one Tensor as its result.
        inputs: the network's input, float32.

    Attributes:
        activation: the layer's result, float32.
        output: the network's result, float32.

    Raises:
        UserError: the layer was not used, or more than once, or has several results.
    """

    def __init__(self, forward: Callable[[Any], Any], layer: Any, inputs: np.ndarray) -> None:
        import mindspore as ms

        self._forward, self._layer = forward, layer
        self._inputs = ms.Tensor(np.ascontiguousarray(inputs, np.float32))
        seen: list[Any] = []
        with eager_mode(), _hooked(layer, lambda result: seen.append(result)):
            self.output = forward(self._inputs).asnumpy()
        _require_one(seen, layer)
        self.activation = seen[0].asnumpy()

    def gradient(self, direction: np.ndarray) -> np.ndarray:
        """Gradient of sum(direction * output) with respect to the layer's result.

        Args:
            direction: of the output's shape.
        """
        import mindspore as ms

        weights = ms.Tensor(np.ascontiguousarray(direction, np.float32))

        def score(shift: Any) -> Any:
            with _hooked(self._layer, lambda result: result + shift):
                return (self._forward(self._inputs) * weights).sum()

        with eager_mode():
            # Zeros are added to the layer's result: their gradient is the result's.
            return ms.grad(score)(ms.Tensor(np.zeros_like(self.activation))).asnumpy()


@contextlib.contextmanager
def _hooked(layer: Any, function: Callable[[Any], Any]) -> Iterator[None]:
    """Apply a function to what a layer returns; None leaves that as it is."""
    handle = layer.register_forward_hook(lambda cell, inputs, result: function(result))
    try:
        yield
    finally:
        handle.remove()


def _require_one(seen: Sequence[Any], layer: Any) -> None:
    if len(seen) != 1:
        raise UserError(
            f"layer {type(layer).__name__} is used {len(seen)} times in one pass; choose one that "
            "is used once"
        )
    if isinstance(seen[0], tuple | list):
        raise UserError(f"layer {type(layer).__name__} has several results; choose one inside it")


def grad_cam(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Class activation map: channels weighted by their mean gradient, negative values cut off.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, equations 1 and 2.

    Args:
        activation, gradient: (C, H, W).

    Returns:
        (H, W) float64, not negative.
    """
    weights = gradient.astype(np.float64).mean(axis=(1, 2))
    return np.maximum(np.tensordot(weights, activation.astype(np.float64), 1), 0)


def stretched(values: np.ndarray) -> np.ndarray:
    """Values scaled linearly to [0, 1]; all zero where they are all equal."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def effective_receptive_field(
    forward: Callable[[Any], Any],
    layer: Any,
    images: np.ndarray,
    place: tuple[int, int] | None = None,
) -> np.ndarray:
    """How strongly every pixel moves one unit of a layer (Luo et al. 2016).

    Args:
        forward: as for :class:`LayerGradients`.
        layer: the Cell whose unit is looked at, all of its channels together.
        images: (N, C, H, W) float32; the result is the mean over them.
        place: row and column of the unit; default the middle.

    Returns:
        (H, W) float64: magnitudes of the gradient, summed over the image's channels.

    Raises:
        UserError: see :class:`LayerGradients`; or the unit lies outside the layer's map.
    """
    import mindspore as ms

    total = np.zeros(images.shape[2:])

    def unit(image: Any) -> Any:
        seen: list[Any] = []
        with _hooked(layer, lambda result: seen.append(result)):
            forward(image)
        _require_one(seen, layer)
        height, width = seen[0].shape[-2:]
        row, column = place or (height // 2, width // 2)
        if not (0 <= row < height and 0 <= column < width):
            raise UserError(f"unit {(row, column)} is outside the layer's {height}x{width} map")
        return seen[0][:, :, row, column].sum()

    with eager_mode():
        for image in images:
            tensor = ms.Tensor(np.ascontiguousarray(image[None], np.float32))
            total += np.abs(ms.grad(unit)(tensor).asnumpy()[0].astype(np.float64)).sum(axis=0)
    return total / len(images)


def effective_size(field: np.ndarray) -> float:
    """Side of a square with as many pixels as are effective, in pixels."""
    return float(np.sqrt((field > EFFECTIVE_SHARE * field.max()).sum()))
