"""A generated data set in SEN1-2's on-disk format, for tests and a first run without downloads.

Every scene is a procedural landscape: fields (Voronoi cells), forests, a river, lakes, roads
and settlements. One map of classes is rendered twice, as Sentinel-2 would show it (colour per
class, texture, illumination) and as Sentinel-1 would (backscatter per class, bright double
bounce at walls, gamma-distributed speckle), so that the two share structure but not grey values:
water is dark in both, forest dark in the optical and bright in the SAR image, bare soil the
reverse, crops have a colour and a backscatter of their own, and some parcels show in one of
the two images only.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import write_image

IMAGE_SIZE = 256
STRIDE = 128  # neighbouring SEN1-2 patches overlap by half
SEASONS = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")

# Equivalent number of looks; below the 4.4 of Sentinel-1 IW GRD, or matching would be too easy.
LOOKS = 3.0

WATER, GRASS, FOREST, SOIL, ROAD, BUILDING, CROP = range(7)
CROPS = 6  # kinds of crop, each with a colour and a backscatter of its own

# Reflectance (R, G, B) of 255 and relative backscatter amplitude of each class.
_COLOURS = np.array(
    [
        (22, 42, 58), (92, 108, 62), (30, 52, 34), (156, 128, 98), (150, 146, 140),
        (188, 176, 168), (0, 0, 0),
    ],
    np.float32,
)  # fmt: skip
_BACKSCATTER = np.array([18, 56, 84, 46, 30, 104, 0], np.float32)
_CROP_COLOURS = np.array(
    [(74, 112, 54), (168, 156, 96), (120, 96, 70), (98, 132, 70), (140, 134, 76), (62, 88, 50)],
    np.float32,
)
_CROP_BACKSCATTER = np.array([74, 44, 60, 40, 68, 52], np.float32)


@dataclass(frozen=True)
class Landscape:
    """What lies where in a scene of H x W pixels of 10 m.

    Attributes:
        classes: (H, W) uint8, one of WATER ... CROP.
        crops: (H, W) uint8, kind of crop of the field a pixel lies in.
        height: (H, W) float32, terrain height in [0, 1].
        walls: (H, W) float32 in [0, 1], where walls or forest edges face the radar.
        rows: (H, W) float32 in [-1, 1], direction-dependent texture of the fields.
    """

    classes: np.ndarray
    crops: np.ndarray
    height: np.ndarray
    walls: np.ndarray
    rows: np.ndarray


def smooth_noise(rng: np.random.Generator, size: int, scale: float, octaves: int = 4) -> np.ndarray:
    """(size, size) float32 fractal noise in [0, 1]; ``scale`` is its coarsest wavelength, px."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = max(2, int(np.ceil(size * 2**octave / scale)) + 2)
        coarse = rng.standard_normal((cells, cells), dtype=np.float32)
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = np.percentile(total, (0.5, 99.5))
    return np.clip((total - low) / (high - low), 0, 1).astype(np.float32)


def make_landscape(rng: np.random.Generator, size: int) -> Landscape:
    """A random landscape of ``size`` x ``size`` pixels."""
    height = 0.88 * smooth_noise(rng, size, 0.7 * size) + 0.12 * smooth_noise(rng, size, 40)
    cells, angles = _fields(rng, size)
    count = len(angles)
    kinds = rng.integers(CROPS, size=count).astype(np.uint8)
    classes = np.full((size, size), CROP, np.uint8)
    special = rng.random(count)
    classes[(special < 0.10)[cells]] = GRASS
    classes[(special > 0.90)[cells]] = SOIL
    cover = smooth_noise(rng, size, 90, 5)
    forest = (cover > rng.uniform(0.58, 0.72)) | (special > 0.96)[cells]
    classes[forest] = FOREST
    _hedges(rng, classes, cells)
    water = (height < rng.uniform(0.08, 0.15)).astype(np.uint8)
    _river(rng, water)
    classes[water > 0] = WATER
    buildings = _settlements(rng, classes, water)
    return Landscape(
        classes=classes,
        crops=kinds[cells],
        height=height,
        walls=_walls(classes, buildings),
        rows=_furrows(angles[cells], size),
    )


def _fields(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi cells (size, size) int32, stretched along a common direction; angle per cell."""
    count = max(12, int(size * size / rng.uniform(1200, 2600)))
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = np.array([1.0, rng.uniform(1.5, 2.4)])[:, None]
    seeds = (turn @ (rng.random((2, count)) * size)) * stretch
    y, x = np.mgrid[:size, :size]
    points = (turn @ np.stack([x.ravel(), y.ravel()]).astype(np.float64)) * stretch
    from scipy.spatial import cKDTree

    nearest = cKDTree(seeds.T).query(points.T)[1].reshape(size, size).astype(np.int32)
    angles = angle + rng.choice([0, np.pi / 2], count) + rng.normal(0, 0.1, count)
    return nearest, angles.astype(np.float32)


def _hedges(rng: np.random.Generator, classes: np.ndarray, cells: np.ndarray) -> None:
    """Lines of trees along some field borders."""
    border = np.zeros_like(classes)
    border[:, 1:] |= (cells[:, 1:] != cells[:, :-1]).astype(np.uint8)
    border[1:] |= (cells[1:] != cells[:-1]).astype(np.uint8)
    chosen = (rng.random(cells.max() + 1) < 0.3)[cells]
    classes[(border > 0) & chosen] = FOREST


def _river(rng: np.random.Generator, water: np.ndarray) -> None:
    """Draw one meandering river across the scene."""
    size = len(water)
    steps = np.linspace(-0.1, 1.1, 80)
    waves = sum(
        rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * k * steps * 1.2 + rng.uniform(0, 7))
        for k in range(1, 6)
    )
    across = 0.5 + rng.uniform(-0.2, 0.2) + 0.12 * waves
    points = np.stack([steps, across], axis=1) * size
    if rng.random() < 0.5:
        points = points[:, ::-1]
    points = np.rint(points * 16).astype(np.int32)[:, None]
    thickness = int(rng.integers(3, 11))
    cv2.polylines(water, [points], False, 1, thickness, cv2.LINE_8, shift=4)


def _settlements(rng: np.random.Generator, classes: np.ndarray, water: np.ndarray) -> np.ndarray:
    """Draw country roads and settlements into ``classes``; returns the buildings (H, W) uint8."""
    size = len(classes)
    centres = rng.uniform(0.08, 0.92, (max(2, size * size // 60000), 2)) * size
    roads = np.zeros_like(classes)
    joined: set[frozenset[int]] = set()
    for index, centre in enumerate(centres):
        for other in np.argsort(((centres - centre) ** 2).sum(axis=1))[1:3]:
            if frozenset((index, int(other))) not in joined:
                joined.add(frozenset((index, int(other))))
                _road(rng, roads, centre, centres[other], 2)
        if index % 2 == 0:
            edge = np.array([rng.uniform(0, size), rng.choice([-20, size + 20])])
            _road(rng, roads, centre, edge if index % 4 else edge[::-1], int(rng.integers(2, 5)))
    classes[roads > 0] = ROAD
    buildings = np.zeros_like(classes)
    for centre in centres:
        _settlement(rng, classes, buildings, water, centre)
    return buildings


def _road(
    rng: np.random.Generator, roads: np.ndarray, start: np.ndarray, end: np.ndarray, width: int
) -> None:
    along = np.linspace(0, 1, 24)[:, None]
    normal = np.array([end[1] - start[1], start[0] - end[0]])
    bend = rng.uniform(-0.12, 0.12) * np.sin(np.pi * along)
    bend = bend + rng.uniform(-0.05, 0.05) * np.sin(2 * np.pi * along)
    points = start + along * (end - start) + bend * normal
    points = np.rint(points * 16).astype(np.int32)[:, None]
    cv2.polylines(roads, [points], False, 1, width, cv2.LINE_8, shift=4)


def _settlement(
    rng: np.random.Generator,
    classes: np.ndarray,
    buildings: np.ndarray,
    water: np.ndarray,
    centre: np.ndarray,
) -> None:
    """A grid of streets and houses, turned at random; some with industrial halls."""
    angle = rng.uniform(0, np.pi / 2)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    extent = rng.uniform(24, 62, 2)
    industrial = rng.random() < 0.35
    block = rng.uniform(14, 22) if industrial else rng.uniform(9, 13)
    outline = _box(centre, axes, extent)
    town = np.zeros_like(classes)
    cv2.fillConvexPoly(town, outline, 1, cv2.LINE_8, shift=4)
    classes[(town > 0) & (water == 0) & (classes != ROAD)] = GRASS if not industrial else SOIL
    streets = np.zeros_like(classes)
    for axis in range(2):
        for offset in np.arange(-extent[axis], extent[axis] + 1, block * (1 + axis)):
            middle = centre + axes[axis] * offset
            reach = axes[1 - axis] * extent[1 - axis]
            ends = np.rint(np.stack([middle - reach, middle + reach]) * 16).astype(np.int32)
            cv2.polylines(streets, [ends[:, None]], False, 1, 1, cv2.LINE_8, shift=4)
    for u in np.arange(-extent[0] + block / 2, extent[0], block):
        for v in np.arange(-extent[1] + block / 2, extent[1], block if industrial else block / 2):
            if rng.random() < 0.72:
                place = centre + axes[0] * u + axes[1] * v + rng.normal(0, 0.4, 2)
                half = block * (rng.uniform(0.2, 0.4, 2) if industrial else np.array([0.25, 0.13]))
                half = np.maximum(half, 1.0) * rng.uniform(0.8, 1.2, 2)
                cv2.fillConvexPoly(buildings, _box(place, axes, half), 1, cv2.LINE_8, shift=4)
    inside = (town > 0) & (water == 0)
    buildings[water > 0] = 0
    classes[inside & (streets > 0)] = ROAD
    classes[(buildings > 0) & inside] = BUILDING


def _box(centre: np.ndarray, axes: np.ndarray, half: np.ndarray) -> np.ndarray:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    return np.rint((centre + corners @ axes) * 16).astype(np.int32)[:, None]


def _walls(classes: np.ndarray, buildings: np.ndarray) -> np.ndarray:
    """Edges facing a radar that looks from the left: left sides of buildings and forests."""
    walls = np.zeros(classes.shape, np.float32)
    houses = buildings > 0
    walls[:, 1:] = (houses[:, 1:] & ~houses[:, :-1]) * 1.0
    forest = classes == FOREST
    walls[:, 1:] += (forest[:, 1:] & ~forest[:, :-1]) * 0.25
    return walls


def _furrows(angles: np.ndarray, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return np.sin((x * np.cos(angles) + y * np.sin(angles)) * np.float32(2 * np.pi / 5.3))


def render_optical(land: Landscape, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB as a Sentinel-2 composite of 10 m would look."""
    size = len(land.classes)
    colours = _COLOURS[land.classes]
    crops = land.classes == CROP
    season = rng.normal(0, 8, (CROPS, 3)).astype(np.float32)
    colours[crops] = (_CROP_COLOURS + season)[land.crops[crops]]
    texture = rng.standard_normal((size, size), dtype=np.float32)
    strength = np.array([1.0, 4, 7, 5, 4, 16, 2.5], np.float32)[land.classes]
    texture = cv2.GaussianBlur(texture, (0, 0), 0.7) * 1.6 * strength
    texture += land.rows * np.where(crops, 3.0, 0).astype(np.float32)
    patches = (smooth_noise(rng, size, 60, 3) - 0.5) * 22
    patches += _seen_by_one(rng, size, 13)
    light = _illumination(land.height, azimuth=np.deg2rad(135), strength=26)
    # Forests throw shadows to the north-west side of the sun.
    forest = (land.classes == FOREST).astype(np.float32)
    shadow = np.roll(forest, (-1, -1), (0, 1)) * (1 - forest) * 14
    image = colours + (texture + patches + light - shadow)[..., None]
    image = 0.65 * image + 0.35 * image.mean(axis=2, keepdims=True)  # haze
    image = cv2.GaussianBlur(image, (0, 0), 0.6)  # the sensor's point spread
    gain, offset = rng.uniform(0.9, 1.15), rng.uniform(-4, 8)
    return np.clip(np.rint(image * gain + offset), 0, 255).astype(np.uint8)


def render_sar(land: Landscape, rng: np.random.Generator, looks: float = LOOKS) -> np.ndarray:
    """(H, W) uint8 as a Sentinel-1 VV amplitude image of 10 m would look."""
    size = len(land.classes)
    amplitude = _BACKSCATTER[land.classes]
    crops = land.classes == CROP
    season = rng.normal(0, 6, CROPS).astype(np.float32)
    amplitude[crops] = np.maximum(_CROP_BACKSCATTER + season, 12)[land.crops[crops]]
    amplitude *= 1 + 0.35 * (smooth_noise(rng, size, 70, 3) - 0.5)
    amplitude *= np.exp(_seen_by_one(rng, size, 0.2))
    relief = _illumination(land.height, azimuth=np.pi, strength=1.0)
    amplitude *= np.clip(1 + 0.5 * relief, 0.4, 2.0)
    # Double bounce between ground and wall: strong and different from house to house.
    bounce = rng.gamma(1.5, 130, (size, size)).astype(np.float32)
    amplitude = amplitude + land.walls * bounce
    # Shadow behind buildings, on the side away from the radar.
    houses = (land.classes == BUILDING).astype(np.float32)
    amplitude *= 1 - 0.5 * np.roll(houses, 1, 1) * (1 - houses)
    # Speckle multiplies the intensity; a slight blur correlates neighbours as in GRD products.
    speckle = rng.gamma(looks, 1 / looks, (size, size)).astype(np.float32)
    intensity = cv2.GaussianBlur(amplitude, (0, 0), 0.6) ** 2 * speckle
    image = np.sqrt(cv2.GaussianBlur(intensity, (0, 0), 0.45))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _seen_by_one(rng: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """Parcels that only one sensor tells apart (colour of a crop, moisture of a soil)."""
    cells, angles = _fields(rng, size)
    return rng.normal(0, strength, len(angles)).astype(np.float32)[cells]


def _illumination(height: np.ndarray, azimuth: float, strength: float) -> np.ndarray:
    """Slope towards a direction, scaled so that its standard deviation is ``strength`` / 2."""
    smooth = cv2.GaussianBlur(height, (0, 0), 2)
    slope = np.cos(azimuth) * np.gradient(smooth, axis=1) + np.sin(azimuth) * np.gradient(
        smooth, axis=0
    )
    return (slope / (2 * slope.std() + 1e-9) * strength).astype(np.float32)


def make_scene(seed: int, scene: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One registered pair: (size, size, 3) uint8 optical and (size, size) uint8 SAR."""
    rng = np.random.default_rng([seed, scene])
    land = make_landscape(rng, size)
    return render_optical(land, rng), render_sar(land, rng)


def generate(
    folder: str | Path, scenes: int = 6, across: int = 3, down: int = 3, seed: int = 0
) -> int:
    """Write scenes in SEN1-2's format: ``ROIs*/s1_<scene>/ROIs*_s1_<scene>_p<k>.png`` and s2.

    Args:
        folder: where the ``ROIs*`` folders go.
        scenes: number of scenes, spread over the four seasons.
        across: patches per row of a scene; neighbours overlap by half.
        down: rows of patches.
        seed: decides everything.

    Returns:
        The number of image pairs written.

    Raises:
        UserError: a number that is not positive, or the folder cannot be written.
    """
    if min(scenes, across, down) < 1:
        raise UserError(f"scenes {scenes}, across {across} and down {down} must all be at least 1")
    size = IMAGE_SIZE + STRIDE * (max(across, down) - 1)
    for scene in range(scenes):
        optical, sar = make_scene(seed, scene, size)
        season = SEASONS[scene % len(SEASONS)]
        for number in range(across * down):
            top, left = STRIDE * (number // across), STRIDE * (number % across)
            window = np.s_[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
            for sensor, image in (("s1", sar), ("s2", optical)):
                name = f"{season}_{sensor}_{scene}_p{number}.png"
                write_image(Path(folder) / season / f"{sensor}_{scene}" / name, image[window])
    return scenes * across * down
