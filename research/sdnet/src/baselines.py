"""Hand-crafted distances between an optical and a SAR patch, to compare SDNet with.

Every function takes (N, 64, 64) optical and SAR patches of any number type and returns (N,)
float distances, smaller = more alike; none of them learns anything.

* ``correlation``, ``gradient_correlation``: normalised cross-correlation of grey values and of
  gradient magnitudes, the usual first choices within one modality;
* ``mutual_information``: of the joint grey-value histogram (Viola and Wells 1997), the usual
  choice across modalities;
* ``orientation_channels``: dense channels of oriented gradients with opposite directions taken
  as one, in the manner of CFOG (Ye, Bruzzone, Shan, Bovolo, Zhu, TGRS 2019) and of HOPC (Ye,
  Shan, Bruzzone, Shen, TGRS 2017);
* ``orientation_moments``: our own variant, the strongest descriptor here. The gradient field
  enters by its even circular harmonics ``|g|^p exp(2ikθ)`` (k = 1 is the structure tensor of
  Bigün and Granlund 1987): these too ignore the sign of an edge, but speckle, which has no
  preferred direction, averages to zero in them, whereas it fills all channels of a histogram;
* ``orientation_moments_search``: the same, at the best of the shifts up to 2 pixels.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from model_utils.errors import UserError
from model_utils.files import write_json
from model_utils.metrics.ranking import ranking_metrics

from .config import SDNetConfig
from .patches import PATCH_SIZE, PatchArchive, find_archive, open_patches

log = logging.getLogger("zoo")

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
_TINY = 1e-12


def _standardised(values: np.ndarray) -> np.ndarray:
    """Rows (N, D) with zero mean and unit length; constant rows become zero."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), _TINY)


def correlation(optical: np.ndarray, sar: np.ndarray) -> np.ndarray:
    """1 - |normalised cross-correlation| of grey values.

    The absolute value, since bright in one modality is often dark in the other.
    """
    return 1 - np.abs((_standardised(optical) * _standardised(sar)).sum(axis=1))


def gradient_correlation(optical: np.ndarray, sar: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    """1 - normalised cross-correlation of gradient magnitudes after smoothing by ``sigma`` px."""
    first, second = (
        _standardised(np.hypot(*_gradients(patches.astype(np.float32), sigma)))
        for patches in (optical, sar)
    )
    return 1 - (first * second).sum(axis=1)


def mutual_information(
    optical: np.ndarray, sar: np.ndarray, bins: int = 8, sigma: float = 1.0
) -> np.ndarray:
    """Minus the mutual information (nats) of smoothed grey values.

    Grey values are put into ``bins`` classes of equal size per patch, so that neither the
    exposure nor a few bright scatterers decide; light smoothing (``sigma`` px) comes first.
    """
    smooth = _gaussian(sigma, PATCH_SIZE)
    first, second = (
        _equal_classes(smooth @ patches.astype(np.float32) @ smooth.T, bins)
        for patches in (optical, sar)
    )
    count, pixels = first.shape
    cells = first * bins + second + np.arange(count)[:, None] * bins * bins
    joint = np.bincount(cells.ravel(), minlength=count * bins * bins).reshape(count, bins, bins)
    share = joint / pixels
    independent = share.sum(axis=2, keepdims=True) * share.sum(axis=1, keepdims=True)
    terms = np.where(share > 0, share * np.log(share / np.maximum(independent, _TINY) + _TINY), 0)
    return -terms.sum(axis=(1, 2))


def _equal_classes(patches: np.ndarray, bins: int) -> np.ndarray:
    """(N, H, W) values as (N, H*W) class numbers; equal values share a class."""
    flat = patches.reshape(len(patches), -1)
    ordered = np.sort(flat, axis=1)
    edges = ordered[:, (np.arange(1, bins) * flat.shape[1]) // bins]
    return (flat[:, :, None] >= edges[:, None]).sum(axis=2)


def _gaussian(sigma: float, size: int, step: int = 1) -> np.ndarray:
    """(size // step, size) matrix that smooths a line (mirrored ends) and samples every step.

    Products with such matrices filter a whole batch of small patches at the speed of BLAS.
    """
    if sigma <= 0:
        return np.eye(size, dtype=np.float32)[step // 2 :: step]
    radius = int(np.ceil(4 * sigma))
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    centres = np.arange(step // 2, size, step)
    positions = centres[:, None] + offsets
    period = 2 * size - 2
    positions = np.abs(positions) % period
    positions = np.minimum(positions, period - positions)
    matrix = np.zeros((len(centres), size), np.float64)
    np.add.at(matrix, (np.arange(len(centres))[:, None], positions), weights[None])
    return matrix.astype(np.float32)


def _gradients(patches: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Central differences along x and y of (N, H, W) patches smoothed by ``sigma`` pixels."""
    smooth = _gaussian(sigma, patches.shape[-1])
    slope = np.zeros_like(smooth)
    slope[1:-1] = (smooth[2:] - smooth[:-2]) / 2
    return smooth @ patches @ slope.T, slope @ patches @ smooth.T


@dataclass(frozen=True)
class OrientationChannels:
    """Channels of oriented gradients after CFOG; a callable (N, 1, 64, 64) -> (N, D).

    Attributes:
        bins: directions in [0, 180) degrees.
        sigma: smoothing before differentiation, pixels.
        cell: smoothing of the channels, pixels.
        step: sampling of the channels, pixels.
    """

    bins: int = 8
    sigma: float = 0.8
    cell: float = 2.0
    step: int = 4

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Descriptors of unit length, float32; their Euclidean distances lie in [0, 2]."""
        across, down = _gradients(_single(patches), self.sigma)
        pool = _gaussian(self.cell, PATCH_SIZE, self.step)
        angles = np.pi * np.arange(self.bins) / self.bins
        channels = np.stack(
            [pool @ np.abs(across * np.cos(a) + down * np.sin(a)) @ pool.T for a in angles], 1
        )
        # Soft assignment to neighbouring directions, 0 and 180 degrees being neighbours.
        channels = np.roll(channels, 1, 1) + 2 * channels + np.roll(channels, -1, 1)
        channels /= np.linalg.norm(channels, axis=1, keepdims=True) + _TINY
        return _standardised(channels).astype(np.float32)


@dataclass(frozen=True)
class OrientationMoments:
    """Pooled even harmonics of the gradient direction; a callable (N, 1, 64, 64) -> (N, D).

    Tuned on the validation and training tiles of Sentinel-1/2 pairs, never on test data; the
    optimum is flat.

    Attributes:
        harmonics: k = 1 ... harmonics of ``exp(2ikθ)``.
        power: exponent of the gradient magnitude.
        sigma: smoothing before differentiation, pixels.
        cell: smoothing of the pooled moments, pixels.
        step: sampling, pixels.
        energy: weight of the channel of gradient energy against the directional ones.
        centring: share of each directional channel's mean over the patch that is removed.
    """

    harmonics: int = 2
    power: float = 0.8
    sigma: float = 0.9
    cell: float = 4.5
    step: int = 4
    energy: float = 0.4
    centring: float = 0.5

    @cached_property
    def _pool(self) -> np.ndarray:
        return _gaussian(self.cell, PATCH_SIZE)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Descriptors of unit length, float32; their Euclidean distances lie in [0, 2]."""
        return self._assembled(self._fields(patches, self._pool[self.step // 2 :: self.step]))

    def searched(self, optical: np.ndarray, sar: np.ndarray, reach: int = 2) -> np.ndarray:
        """Smallest distance of each pair over shifts of the SAR patch, (N,) float32.

        Tolerates registration errors of up to ``reach`` pixels in x and in y, at
        (2 reach + 1)^2 times the cost of a comparison.
        """
        fields = [self._fields(patches, self._pool) for patches in (optical, sar)]

        def at(field: np.ndarray, x: int, y: int) -> np.ndarray:
            rows = slice(reach + y, PATCH_SIZE - reach + y, self.step)
            columns = slice(reach + x, PATCH_SIZE - reach + x, self.step)
            return self._assembled(field[:, :, rows, columns])

        fixed = at(fields[0], 0, 0)
        shifts = range(-reach, reach + 1)
        distances = [
            np.linalg.norm(fixed - at(fields[1], x, y), axis=1) for y in shifts for x in shifts
        ]
        return np.min(distances, axis=0)

    def _fields(self, patches: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Pooled gradient energy and moments, (N, 1 + 2 harmonics, rows, rows) float32."""
        across, down = _gradients(_single(patches), self.sigma)
        gradient = across + 1j * down
        magnitude = np.abs(gradient)
        unit = gradient / np.maximum(magnitude, _TINY)
        weight = magnitude**self.power
        channels, doubled = [weight], unit * unit
        turned = doubled
        for _ in range(self.harmonics):
            channels += [weight * turned.real, weight * turned.imag]
            turned = turned * doubled
        return np.stack([pool @ c.astype(np.float32) @ pool.T for c in channels], axis=1)

    def _assembled(self, fields: np.ndarray) -> np.ndarray:
        directional = fields[:, 1:]
        mean = directional.mean(axis=(2, 3), keepdims=True)
        directional = (directional - self.centring * mean).reshape(len(fields), -1)
        energy = self.energy * _standardised(fields[:, 0])
        both = np.concatenate([_unit_rows(directional), energy], axis=1)
        return _unit_rows(both).astype(np.float32)


def _unit_rows(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), _TINY)


def _single(patches: np.ndarray) -> np.ndarray:
    """(N, 1, 64, 64) or (N, 64, 64) as (N, 64, 64) float32."""
    values = patches[:, 0] if patches.ndim == 4 else patches
    if values.shape[1:] != (PATCH_SIZE, PATCH_SIZE):
        raise UserError(f"patches of shape {patches.shape}; expected (N,1,64,64)")
    return values.astype(np.float32)


def descriptor_distance(
    describe: Callable[[np.ndarray], np.ndarray], optical: np.ndarray, sar: np.ndarray
) -> np.ndarray:
    """Euclidean distance of the descriptors of each pair."""
    return np.linalg.norm(describe(optical) - describe(sar), axis=1)


BASELINES: dict[str, Distance] = {
    "correlation": correlation,
    "gradient_correlation": gradient_correlation,
    "mutual_information": mutual_information,
    "orientation_channels": partial(descriptor_distance, OrientationChannels()),
    "orientation_moments": partial(descriptor_distance, OrientationMoments()),
    "orientation_moments_search": OrientationMoments().searched,
}


def baseline_distances(archive: PatchArchive, distance: Distance, batch: int = 128) -> np.ndarray:
    """Distances of all rows of an archive, (N,) float64, a batch at a time."""
    return np.concatenate(
        [
            distance(*archive.pairs(start, min(start + batch, len(archive))))
            for start in range(0, len(archive), batch)
        ]
    )


def compare(archive: PatchArchive, names: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Figures of :func:`ranking_metrics` and ``pairs_per_second`` of every baseline by name.

    Raises:
        UserError: an unknown name, or an archive without non-matching rows.
    """
    table = {}
    for name in names or BASELINES:
        if name not in BASELINES:
            raise UserError(f"there is no baseline {name!r}; choose among {', '.join(BASELINES)}")
        start = time.perf_counter()
        distances = baseline_distances(archive, BASELINES[name])
        seconds = time.perf_counter() - start
        table[name] = ranking_metrics(distances, archive.labels)
        table[name]["pairs_per_second"] = len(archive) / seconds
    return table


def table_lines(table: dict[str, dict[str, float]]) -> list[str]:
    """The comparison as text, best FPR95 first."""
    lines = [f"{'method':<27} {'FPR95':>7} {'Acc':>7} {'best Acc':>9} {'AUC':>7} {'pairs/s':>9}"]
    for name, row in sorted(table.items(), key=lambda item: item[1]["fpr95"]):
        lines.append(
            f"{name:<27} {row['fpr95']:7.4f} {row['acc']:7.4f} {row['acc_best']:9.4f} "
            f"{row['auc']:7.4f} {row.get('pairs_per_second', float('nan')):9.0f}"
        )
    return lines


def report(task: object, config: SDNetConfig, output: Path) -> None:
    """compare_baselines.py: measure every baseline on a split, print and write the table."""
    archive = open_patches(find_archive(config.data.root, config.evaluate.split))
    table = compare(archive, config.baselines)
    for line in table_lines(table):
        log.info(line)
    write_json(output / "metrics.json", {"archive": archive.path, "methods": table})
    log.info("figures in %s", output / "metrics.json")
