"""The PointFlow module: semantics flow from a coarse to a fine map at a few matched points.

Li, He, Li, Li, Cheng, Shi, Weng, Tong, Lin, "PointFlow: Flowing Semantics Through Points for
Aerial Image Segmentation", CVPR 2021, section 3; parameter names of the published code
(lxtGH/PFSegNets, which the Jittor port shares).
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.layers import ResizeLike, conv2d

from .pooling import AdaptiveAverage, AdaptiveMaximum


class PointMatcher(nn.Cell):
    """How certain it is that a place of the coarse map is salient, from both maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.match_conv = conv2d(2 * channels, 1, 3, padding=1, has_bias=True)

    def construct(self, high: Tensor, low: Tensor) -> Tensor:
        """Two maps (N, channels, H, W) to (N, 1, H, W) in (0, 1)."""
        x = self.match_conv(ops.concat((high, low), 1))
        if self.training:
            return ops.sigmoid(x)
        # Points are chosen by the order of these values, however small: a trained network's may
        # all be below 1e-15. ONNX Runtime's sigmoid is 0 there, and all of them would be equal.
        # Below exp(-87) numbers are subnormal, which some libraries keep and others take for 0.
        return 1.0 / (1.0 + ops.exp(ops.minimum(-x, 87.0)))


class LargestPoints(nn.Cell):
    """Where the k largest values of a map are; of equal values the first ones.

    The framework's top-k takes any of equal values. So a second one follows on numbers that are
    all different: places above the k-th value first, those equal to it next.

    Args:
        count: k; maps with fewer places give all of them.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.top = ops.TopK(sorted=True)

    def construct(self, x: Tensor) -> Tensor:
        """(N, P) float32, P below 5 million, to flat places (N, min(k, P)) int32."""
        places = x.shape[1]
        count = min(self.count, places)
        x = ops.stop_gradient(x)
        least = self.top(x, count)[0][:, count - 1 :]
        order = _descending(places)
        above = (x > least).astype(ms.float32)
        equal = (x >= least).astype(ms.float32) - above
        # From 2P down to P + 1, from P down to 1, and 0.
        return self.top(above * (order + float(places)) + equal * order, count)[1]


@ms.constexpr
def _descending(count: int) -> Tensor:
    return Tensor(np.arange(count, 0, -1, dtype=np.float32).reshape(1, count))


@ms.constexpr
def _block_corners(height: int, width: int) -> Tensor:
    """Flat place of the top left pixel of every coarse cell's 2 x 2 block in the fine map."""
    rows, columns = np.mgrid[:height, :width]
    return Tensor((2 * rows * 2 * width + 2 * columns).reshape(-1).astype(np.int32))


class PointFlow(nn.Cell):
    """Dual point flow: boundary points and salient points (sections 3.2 and 3.3).

    Points are read by gathering. Where upstream samples the fine map between pixels, at the
    middle of a 2 x 2 block, the block's mean is the same number.

    Args:
        channels: of both maps.
        match_dim: channels of the matcher's inputs.
        max_pool_size: n, n^2 salient points per image.
        avg_pool_size: side of the averaged certainty, which damps inner regions before the
            boundary is predicted.
        edge_points: boundary points per image.
        pool_style: ``torch`` or ``jittor``.
    """

    def __init__(
        self,
        channels: int = 256,
        match_dim: int = 64,
        max_pool_size: int = 14,
        avg_pool_size: int = 9,
        edge_points: int = 128,
        pool_style: str = "torch",
    ) -> None:
        super().__init__()
        self.point_matcher = PointMatcher(match_dim)
        self.down_h = conv2d(channels, match_dim, 1, has_bias=True)
        self.down_l = conv2d(channels, match_dim, 1, has_bias=True)
        self.edge_final = nn.SequentialCell(
            conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv2d(channels, 1, 3, padding=1),
        )
        self.average = AdaptiveAverage(avg_pool_size, pool_style)
        self.maximum = AdaptiveMaximum(max_pool_size, pool_style)
        self.largest = LargestPoints(edge_points)
        self.resize = ResizeLike(align_corners=True)
        self.max_pool_size = max_pool_size

    def certainty(self, high: Tensor, low: Tensor) -> Tensor:
        """Salience (N, 1, H, W) in (0, 1) of a coarse map (N, C, H, W) and a fine one."""
        return self.point_matcher(self.down_h(high), self.resize(self.down_l(low), high))

    def points(self, high: Tensor, certainty: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which points flow, from the coarse map (N, C, H, W) and its certainty (N, 1, H, W).

        Returns:
            Edge logits (N, 1, H, W); flat places in H * W of boundary points (N, K) and of
            salient points (N, n^2), int32; the salient points' certainties (N, n^2).
        """
        height, width = high.shape[2:]
        inner = self.resize(self.average(certainty), high)
        edge = self.edge_final(high - high * inner)
        boundary = self.largest(edge.reshape(-1, height * width))
        values, salient = self.maximum(certainty)
        return edge, boundary, salient, values

    def construct(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse map (N, C, H, W) and fine map (N, C, 2H, 2W).

        Returns:
            The fine map with the chosen points replaced, and edge logits (N, 1, H, W).
        """
        channels, height, width = high.shape[1:]
        edge, boundary, salient, values = self.points(high, self.certainty(high, low))
        coarse = high.reshape(-1, channels, height * width)
        fine = low.reshape(-1, channels, 4 * height * width)
        corners = _block_corners(height, width)
        edge_to, salient_to = ops.gather(corners, boundary, 0), ops.gather(corners, salient, 0)

        # Boundary points: the mean of the block is read, its top left pixel is written.
        upper = take(fine, edge_to) + take(fine, edge_to + 1)
        lower = take(fine, edge_to + 2 * width) + take(fine, edge_to + (2 * width + 1))
        edge_out = attend(take(coarse, boundary), (upper + lower) * 0.25)
        # Salient points: high * (1 + certainty), read at the points only.
        grown = values.reshape(-1, 1, self.max_pool_size, self.max_pool_size)
        grown = self.resize(grown, high).reshape(-1, 1, height * width)
        salient_in = take(coarse, salient) * (1.0 + take(grown, salient))
        salient_out = attend(salient_in, take(fine, salient_to))

        fine = put(fine, edge_to, edge_out)
        fine = put(fine, salient_to, salient_out)
        return fine.reshape(-1, channels, 2 * height, 2 * width), edge


def _for_channels(places: Tensor, x: Tensor) -> Tensor:
    """Places (N, K) repeated for the channels of x (N, C, P)."""
    return ops.expand_dims(places, 1) + ops.zeros_like(x[:, :, :1]).astype(ms.int32)


def take(x: Tensor, places: Tensor) -> Tensor:
    """Columns ``places`` (N, K) of x (N, C, P): (N, C, K)."""
    return ops.gather_elements(x, 2, _for_channels(places, x))


def put(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """x (N, C, P) with columns ``places`` (N, K) replaced by values (N, C, K).

    A place that occurs twice must have equal values; both get the full gradient, as upstream.
    """
    return ops.tensor_scatter_elements(x, _for_channels(places, x), values, axis=2)


def attend(high: Tensor, low: Tensor) -> Tensor:
    """Fine points plus what matches them among the coarse points (equation 4; not scaled).

    Args:
        high: (N, C, K) coarse points.
        low: (N, C, K) fine points.

    Returns:
        (N, C, K).
    """
    affinity = ops.softmax(ops.bmm(low.transpose(0, 2, 1), high), -1)
    return low + ops.bmm(high, affinity.transpose(0, 2, 1))
