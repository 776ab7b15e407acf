"""Resizing by interpolation and sampling at computed positions."""

from typing import Any

import numpy as np

from model_utils.mindir2onnx.graph import Symbol, Unsupported
from model_utils.mindir2onnx.registry import Call, operator


def _resize(call: Call, size: Any, mode: str, coordinates: str, scales: Any = None) -> Symbol:
    """A Resize node that leaves batch and channels alone.

    Args:
        call: the call whose first input is resized.
        size: target lengths of the spatial axes, known or computed, or None.
        mode: "linear" or "nearest".
        coordinates: ONNX coordinate_transformation_mode.
        scales: factors per spatial axis, used where size is None.
    """
    graph, x = call.graph, call.tensor(0)
    # Nearest: corners round to the nearest pixel; the others take the pixel a centre falls into,
    # which in ONNX's shifted half-pixel coordinates means rounding too.
    rounding = "floor" if coordinates == "asymmetric" else "round_prefer_ceil"
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": rounding if mode == "nearest" else None,
    }
    if size is None:
        if scales is None:
            raise Unsupported("it has neither a size nor scales")
        factors = graph.constant([1.0, 1.0, *(float(scale) for scale in scales)], np.float32)
        return graph.add("Resize", [x, None, factors], **attributes)
    batch_and_channels = (graph.length(x, 0), graph.length(x, 1))
    if isinstance(size, tuple):
        sizes = graph.integers((*batch_and_channels, *size))
        spatial = tuple(n if isinstance(n, int) else None for n in size)
    else:
        parts = [graph.integers(batch_and_channels), graph.integers(size)]
        sizes = graph.add("Concat", parts, shape=(x.rank,), axis=0)
        spatial = (None,) * (x.rank - 2)
    shape = (*(x.shape or (None, None))[:2], *spatial)
    return graph.add("Resize", [x, None, None, sizes], shape=shape, **attributes)


def _coordinates(align_corners: bool, half_pixel: bool) -> str:
    if align_corners:
        return "align_corners"
    return "half_pixel" if half_pixel else "asymmetric"


@operator("ResizeBilinearV2")
def resize_bilinear(call: Call) -> Symbol:
    """Bilinear; PyTorch's align_corners=False is half_pixel_centers=True here."""
    coordinates = _coordinates(bool(call.known(2)), bool(call.known(3)))
    return _resize(call, call.inputs[1], "linear", coordinates)


@operator("ResizeNearestNeighborV2")
def resize_nearest(call: Call) -> Symbol:
    """Nearest neighbour."""
    coordinates = _coordinates(bool(call.known(2)), bool(call.known(3)))
    return _resize(call, call.inputs[1], "nearest", coordinates)


@operator("ResizeLinear1D")
def resize_linear(call: Call) -> Symbol:
    """Linear along the last axis; mode 1 aligns the corners, 0 does not."""
    return _resize(call, call.inputs[1], "linear", _coordinates(call.known(2) == 1, True))


@operator("UpsampleTrilinear3D")
def resize_trilinear(call: Call) -> Symbol:
    """Trilinear to a size or by factors."""
    coordinates = _coordinates(bool(call.known(3)), True)
    return _resize(call, call.inputs[1], "linear", coordinates, call.inputs[2])


@operator("UpsampleNearest3D")
def resize_nearest_3d(call: Call) -> Symbol:
    """Nearest neighbour in a volume."""
    return _resize(call, call.inputs[1], "nearest", "asymmetric", call.inputs[2])


@operator("GridSampler2D", "GridSampler3D")
def grid_sample(call: Call) -> Symbol:
    """Sample at positions in -1..1; what lies outside is zero, the border or a reflection."""
    graph, x, grid = call.graph, call.tensor(0), call.tensor(1)
    if call.node.operator == "GridSampler3D" and graph.opset < 20:
        raise Unsupported(f"ONNX samples volumes from opset 20 on, not in opset {graph.opset}")
    modes = (
        ("linear", "nearest", "cubic") if graph.opset >= 20 else ("bilinear", "nearest", "bicubic")
    )
    shape = None
    if x.shape is not None and grid.shape is not None:
        shape = (*x.shape[:2], *grid.shape[1:-1])
    return graph.add(
        "GridSample",
        [x, grid],
        shape=shape,
        mode=modes[call.known(2)],
        padding_mode=("zeros", "border", "reflection")[call.known(3)],
        align_corners=int(call.known(4)),
    )
