"""Matching an optical with a SAR image by any patch descriptor, and estimating their registration.

Two ways to find candidates:

* ``search``: the images are roughly registered; for each keypoint of the optical image the SAR
  image is searched in a window around the same place, on a grid, refined below the grid step;
* ``global``: nothing is known; keypoints of both images are compared with each other.

Either way, matches must be each other's nearest neighbours and clearly better than the second
best (Lowe's ratio test); RANSAC then finds the transformation most of them agree on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from model_utils.drawing import draw_matches as draw_point_matches
from model_utils.errors import UserError

from .dataset import normalise
from .patches import PATCH_SIZE
from .preparing import detect_points

Descriptor = Callable[[np.ndarray], np.ndarray]

# Fewest matches that determine each model.
MODELS = {"translation": 1, "similarity": 2, "affine": 3, "homography": 4}


@dataclass
class MatchOptions:
    """How two images are matched.

    Attributes:
        method: "search" (roughly registered) or "global".
        most: largest number of optical keypoints.
        min_distance: smallest distance between keypoints, pixels.
        detect: where SIFT looks for the keypoints of the search: "opt" or "grid" (regular).
        radius: search: half side of the window, pixels.
        step: search: spacing of the tried SAR positions, pixels. global: spacing of the SAR
            points; 0 = SIFT keypoints there too.
        ratio: largest best / second-best distance that is accepted; 1 = no test.
        mutual: whether a match must be best in both directions.
        model: "translation", "similarity", "affine" or "homography".
        threshold: largest distance of an inlier from the model, pixels.
        confidence: of RANSAC.
        batch: patches described at a time; bounds the memory.
    """

    method: str = "search"
    most: int = 300
    min_distance: int = 8
    detect: str = "opt"
    radius: int = 16
    step: int = 2
    ratio: float = 0.97
    mutual: bool = True
    model: str = "similarity"
    threshold: float = 3.0
    confidence: float = 0.999
    batch: int = 256

    def check(self) -> None:
        """Raise a UserError for a value out of range."""
        rules = (
            (self.method in ("search", "global"), "method", "search or global"),
            (self.detect in ("opt", "grid"), "detect", "opt or grid"),
            (self.model in MODELS, "model", f"one of {', '.join(MODELS)}"),
            (self.most >= 4, "most", "at least 4"),
            (self.min_distance >= 1, "min_distance", "at least 1 pixel"),
            (self.radius >= 1, "radius", "at least 1 pixel"),
            (self.step >= (self.method == "search"), "step", "at least 1 pixel"),
            (0 < self.ratio <= 1, "ratio", "in (0, 1]"),
            (self.threshold > 0, "threshold", "positive"),
            (0 < self.confidence < 1, "confidence", "in (0, 1)"),
            (self.batch >= 1, "batch", "at least 1"),
        )
        for valid, key, allowed in rules:
            if not valid:
                raise UserError(f"{key} is {getattr(self, key)!r}; it must be {allowed}")


@dataclass
class Matches:
    """Result of :func:`match_images`; points are x, y in pixels.

    Attributes:
        optical: (N, 2) float64.
        sar: (N, 2) float64.
        distances: (N,) float32 descriptor distances.
        inliers: (N,) bool, those that agree with ``transform``.
        transform: (3, 3) float64 from optical to SAR coordinates (homogeneous), or None where
            too few matches agree.
        keypoints: number of optical keypoints tried.
    """

    optical: np.ndarray
    sar: np.ndarray
    distances: np.ndarray
    inliers: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    transform: np.ndarray | None = None
    keypoints: int = 0

    def __len__(self) -> int:
        return len(self.optical)

    @property
    def inlier_count(self) -> int:
        """Matches that agree with the transformation."""
        return int(np.count_nonzero(self.inliers))

    def summary(self) -> dict[str, object]:
        """The result in plain numbers, for JSON."""
        return {
            "keypoints": self.keypoints,
            "matches": len(self),
            "inliers": self.inlier_count,
            "inlier_share": self.inlier_count / len(self) if len(self) else 0.0,
            "transform": None if self.transform is None else self.transform.tolist(),
        }


def transform_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) x, y under a homogeneous (3, 3) transformation."""
    mapped = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ transform.T
    return mapped[:, :2] / mapped[:, 2:]


def describe_points(
    image: np.ndarray, points: np.ndarray, describe: Descriptor, batch: int = 256
) -> np.ndarray:
    """Descriptors (N, D) float32 of the windows around integer points (N, 2), batch by batch.

    Args:
        image: (H, W) uint8.
        points: x, y; every window must lie inside the image.
        describe: normalised patches (n, 1, 64, 64) float32 to (n, D).
        batch: patches at a time.
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, (PATCH_SIZE, PATCH_SIZE))
    half = PATCH_SIZE // 2
    results = []
    for start in range(0, len(points), batch):
        x, y = points[start : start + batch].T - half
        results.append(np.asarray(describe(normalise(windows[y, x])[:, None]), np.float32))
    return np.concatenate(results) if results else np.zeros((0, 1), np.float32)


def match_images(
    optical: np.ndarray,
    sar: np.ndarray,
    describe_optical: Descriptor,
    describe_sar: Descriptor | None = None,
    options: MatchOptions | None = None,
    guess: np.ndarray | None = None,
) -> Matches:
    """Match two grey images and estimate the transformation from optical to SAR pixels.

    Args:
        optical: (H, W) uint8.
        sar: (H', W') uint8; sizes may differ.
        describe_optical: patches (n, 1, 64, 64) float32 in [-1, 1] to descriptors (n, D).
        describe_sar: the same for SAR; default ``describe_optical``.
        options: see :class:`MatchOptions`.
        guess: search: (3, 3) expected transformation, e.g. of a coarser run; default identity.

    Raises:
        UserError: images that are no grey uint8 images or smaller than a patch, wrong options.
    """
    options = options or MatchOptions()
    options.check()
    for name, image in (("optical", optical), ("SAR", sar)):
        if image.ndim != 2 or image.dtype != np.uint8:
            raise UserError(f"{name} image: {image.dtype} {image.shape}; expected grey uint8 (H,W)")
        if min(image.shape) < PATCH_SIZE:
            raise UserError(
                f"{name} image of {image.shape[1]}x{image.shape[0]} pixels is smaller than a "
                f"{PATCH_SIZE}x{PATCH_SIZE} patch"
            )
    describe_sar = describe_sar or describe_optical
    points = _keypoints(optical, options)
    if options.method == "search":
        expected = points if guess is None else transform_points(guess, points)
        matches = _search(optical, sar, points, expected, describe_optical, describe_sar, options)
    else:
        others = _grid(sar, options.step) if options.step else _sift(sar, options)
        first = describe_points(optical, points, describe_optical, options.batch)
        second = describe_points(sar, others, describe_sar, options.batch)
        left, right, distances = nearest_pairs(first, second, options.ratio, options.mutual)
        matches = Matches(points[left].astype(float), others[right].astype(float), distances)
    matches.keypoints = len(points)
    matches.transform, matches.inliers = estimate_transform(
        matches.optical, matches.sar, options.model, options.threshold, options.confidence
    )
    return matches


def register_images(
    optical: np.ndarray,
    sar: np.ndarray,
    describe_optical: Descriptor,
    describe_sar: Descriptor | None = None,
    options: MatchOptions | None = None,
    radius: int = 6,
    rounds: int = 1,
) -> Matches:
    """:func:`match_images`, then refined on the SAR image resampled into the optical geometry.

    Resampling removes rotation and scale, which patch descriptors do not tolerate, so that the
    refinement finds more matches and places them better.

    Args:
        optical: (H, W) uint8.
        sar: (H', W') uint8.
        describe_optical: see :func:`match_images`.
        describe_sar: see :func:`match_images`.
        options: of the first stage; model, threshold and keypoints serve the refinement too.
        radius: search radius of the refinement, pixels, at a step of one pixel.
        rounds: how often to refine.

    Returns:
        Matches of the last round in the coordinates of the given images; those of the first
        stage where it found no transformation or the refinement agrees on fewer matches.
    """
    options = options or MatchOptions()
    best = match_images(optical, sar, describe_optical, describe_sar, options)
    fine = replace(options, method="search", radius=radius, step=1)
    for _ in range(rounds):
        if best.transform is None:
            break
        resampled = cv2.warpPerspective(
            sar,
            best.transform,
            (optical.shape[1], optical.shape[0]),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        found = match_images(optical, resampled, describe_optical, describe_sar, fine)
        if found.transform is None or found.inlier_count < best.inlier_count:
            break
        found.sar = transform_points(best.transform, found.sar)
        found.transform = best.transform @ found.transform
        found.transform /= found.transform[2, 2]
        best = found
    return best


def _keypoints(image: np.ndarray, options: MatchOptions) -> np.ndarray:
    if options.detect == "opt":
        return _sift(image, options)
    points = _grid(image, options.min_distance)
    chosen = np.linspace(0, len(points) - 1, min(options.most, len(points)))
    return points[chosen.astype(int)]


def _sift(image: np.ndarray, options: MatchOptions) -> np.ndarray:
    return detect_points(image, image, "opt", options.min_distance, options.most)


def _grid(image: np.ndarray, step: int) -> np.ndarray:
    half = PATCH_SIZE // 2
    x = np.arange(half, image.shape[1] - half + 1, step)
    y = np.arange(half, image.shape[0] - half + 1, step)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _search(
    optical: np.ndarray,
    sar: np.ndarray,
    points: np.ndarray,
    expected: np.ndarray,
    describe_optical: Descriptor,
    describe_sar: Descriptor,
    options: MatchOptions,
) -> Matches:
    """Best SAR position for each keypoint within the window around its expected position."""
    reach = options.radius // options.step
    offsets = np.arange(-reach, reach + 1) * options.step
    # On a common grid, overlapping windows share positions and each is described once.
    corner = np.rint(expected / options.step).astype(int) * options.step
    x = corner[:, 0, None, None] + offsets[None, None, :] + 0 * offsets[None, :, None]
    y = corner[:, 1, None, None] + offsets[None, :, None] + 0 * offsets[None, None, :]
    half = PATCH_SIZE // 2
    valid = (x >= half) & (x <= sar.shape[1] - half) & (y >= half) & (y <= sar.shape[0] - half)
    codes, place = np.unique((y * sar.shape[1] + x)[valid], return_inverse=True)
    positions = np.stack([codes % sar.shape[1], codes // sar.shape[1]], axis=1)
    number = np.full(valid.shape, -1)
    number[valid] = place
    first = describe_points(optical, points, describe_optical, options.batch)
    second = describe_points(sar, positions, describe_sar, options.batch)
    found: list[tuple[int, int, np.ndarray, float]] = []
    for index in range(len(points)):
        surface = np.full(valid.shape[1:], np.inf, np.float32)
        known = number[index] >= 0
        if known.any():
            surface[known] = np.linalg.norm(second[number[index][known]] - first[index], axis=1)
            best = np.unravel_index(int(np.argmin(surface)), surface.shape)
            if _distinct(surface, best, options):
                shift = _refined(surface, best) * options.step
                place_xy = np.array([x[index][best], y[index][best]]) + shift
                found.append((index, number[index][best], place_xy, float(surface[best])))
    if not found:
        return Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, np.float32))
    left = np.array([item[0] for item in found])
    right = np.array([item[1] for item in found])
    keep = np.ones(len(found), bool)
    if options.mutual:
        for row in range(len(found)):
            # Rivals: all keypoints whose window covers the place found.
            gap = np.abs(expected - positions[right[row]]).max(axis=1)
            rivals = np.flatnonzero(gap <= options.radius)
            distances = np.linalg.norm(first[rivals] - second[right[row]], axis=1)
            keep[row] = rivals.size == 0 or rivals[np.argmin(distances)] == left[row]
    return Matches(
        points[left[keep]].astype(float),
        np.array([item[2] for item in found])[keep],
        np.array([item[3] for item in found], np.float32)[keep],
    )


def _distinct(surface: np.ndarray, best: tuple, options: MatchOptions) -> bool:
    """Ratio test against the best position that is clearly elsewhere."""
    if options.ratio >= 1:
        return True
    rows, columns = np.indices(surface.shape)
    away = np.maximum(np.abs(rows - best[0]), np.abs(columns - best[1])) * options.step
    elsewhere = surface[away > max(6, options.step)]
    elsewhere = elsewhere[np.isfinite(elsewhere)]
    return not elsewhere.size or bool(surface[best] < options.ratio * elsewhere.min())


def _refined(surface: np.ndarray, best: tuple) -> np.ndarray:
    """Minimum of parabolas through the neighbours, x and y in grid steps within [-0.5, 0.5]."""
    shift = np.zeros(2)
    for axis, place in ((1, 0), (0, 1)):
        if 0 < best[axis] < surface.shape[axis] - 1:
            sides = []
            for step in (-1, 1):
                at = list(best)
                at[axis] += step
                sides.append(float(surface[tuple(at)]))
            bend = sides[0] + sides[1] - 2 * float(surface[best])
            if np.isfinite(bend) and bend > 0:
                shift[place] = np.clip((sides[0] - sides[1]) / (2 * bend), -0.5, 0.5)
    return shift


def nearest_pairs(
    first: np.ndarray, second: np.ndarray, ratio: float = 1.0, mutual: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest neighbours between two sets of descriptors (N, D) and (M, D).

    Returns:
        Rows of ``first``, rows of ``second``, Euclidean distances float32, of the pairs that
        pass the ratio test and, with ``mutual``, are best in both directions.
    """
    if not len(first) or not len(second):
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32)
    columns = 4096  # distances held at a time: N x columns
    best = np.full(len(first), np.inf)
    runner_up = np.full(len(first), np.inf)
    partner = np.zeros(len(first), int)
    back = np.zeros(len(second), int)
    squares = np.square(first, dtype=np.float64).sum(axis=1)[:, None]
    for start in range(0, len(second), columns):
        block = second[start : start + columns]
        product = first.astype(np.float64) @ block.T.astype(np.float64)
        distance = squares + np.square(block, dtype=np.float64).sum(axis=1) - 2 * product
        back[start : start + columns] = distance.argmin(axis=0)
        two = np.partition(distance, min(1, distance.shape[1] - 1), axis=1)
        nearest, next_best = two[:, 0], two[:, 1] if distance.shape[1] > 1 else np.inf
        runner_up = np.minimum(np.maximum(best, nearest), np.minimum(runner_up, next_best))
        closer = nearest < best
        partner[closer] = start + distance.argmin(axis=1)[closer]
        best = np.minimum(best, nearest)
    keep = np.ones(len(first), bool)
    if ratio < 1:
        keep &= np.maximum(best, 0) < ratio**2 * np.maximum(runner_up, 0)
    if mutual:
        keep &= back[partner] == np.arange(len(first))
    rows = np.flatnonzero(keep)
    return rows, partner[rows], np.sqrt(np.maximum(best[rows], 0)).astype(np.float32)


def estimate_transform(
    source: np.ndarray,
    target: np.ndarray,
    model: str = "similarity",
    threshold: float = 3.0,
    confidence: float = 0.999,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Robust transformation from ``source`` to ``target`` points (N, 2).

    "translation" takes the shift most matches agree on (all hypotheses are tried), the others
    OpenCV's RANSAC with refinement on the inliers.

    Returns:
        (3, 3) float64, or None where fewer than one match more than the model needs agree
        (such a model would fit by construction); and (N,) bool, the inliers.

    Raises:
        UserError: an unknown model.
    """
    if model not in MODELS:
        raise UserError(f"there is no model {model!r}; choose among {', '.join(MODELS)}")
    none = np.zeros(len(source), bool)
    if len(source) <= MODELS[model]:
        return None, none
    matrix: np.ndarray | None
    if model == "translation":
        matrix = _translation(source, target, threshold)
    else:
        matrix = _ransac(source.astype(float), target.astype(float), model, threshold, confidence)
    if matrix is None or not np.isfinite(matrix).all():
        return None, none
    errors = np.linalg.norm(transform_points(matrix, source) - target, axis=1)
    inliers = errors <= threshold
    if np.count_nonzero(inliers) <= MODELS[model]:
        return None, none
    return matrix, inliers


def _ransac(
    source: np.ndarray, target: np.ndarray, model: str, threshold: float, confidence: float
) -> np.ndarray | None:
    if model == "homography":
        return cv2.findHomography(
            source, target, cv2.RANSAC, threshold, maxIters=5000, confidence=confidence
        )[0]
    fit = cv2.estimateAffine2D if model == "affine" else cv2.estimateAffinePartial2D
    matrix, _ = fit(
        source,
        target,
        method=cv2.RANSAC,
        ransacReprojThreshold=threshold,
        maxIters=5000,
        confidence=confidence,
    )
    return None if matrix is None else np.vstack([matrix, [0.0, 0.0, 1.0]])


def _translation(source: np.ndarray, target: np.ndarray, threshold: float) -> np.ndarray:
    shifts = target - source
    best, most = shifts[:1], -1
    for shift in shifts:
        agreeing = np.linalg.norm(shifts - shift, axis=1) <= threshold
        if np.count_nonzero(agreeing) > most:
            best, most = shifts[agreeing], int(np.count_nonzero(agreeing))
    matrix = np.eye(3)
    matrix[:2, 2] = best.mean(axis=0)
    return matrix


def draw_matches(optical: np.ndarray, sar: np.ndarray, matches: Matches) -> np.ndarray:
    """Both images with inliers in green and outliers in red, (H, W, 3) uint8 RGB."""
    titles = (
        f"optical, {matches.keypoints} keypoints",
        f"SAR, {matches.inlier_count} of {len(matches)} matches agree",
    )
    return draw_point_matches(
        optical, sar, matches.optical, matches.sar, matches.inliers, titles=titles
    )
