"""A generated data set in Cityscapes' on-disk format, for tests and a first run without downloads.

Every picture is a street seen by a pinhole camera above a lane: ground, two rows of facades and
the end of the street are intersected with each pixel's ray; vehicles, people, poles and trees
are drawn from far to near. Light, colours, haze and noise differ from picture to picture. As in
the real set, the ego vehicle's hood and a frame are labelled but not trained on, and the masks
of the test split are dummies. Polygons (JSON) and instance masks are not written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import write_image
from model_utils.generating import expose, number_pictures, smooth_noise

from .classes import GTAV

# Numbers of Cityscapes' labels; GTAV's table holds all of them by number.
_ID = {name: number for number, name in enumerate(GTAV.names)}
_CITIES = {
    "train": ("aachen", "bochum", "zurich"),
    "val": ("frankfurt", "munster"),
    "test": ("berlin",),
}

# Pictures are drawn at twice their size and averaged, which smooths their outlines.
_OVERSAMPLING = 2
_END_OF_STREET = 90.0  # metres
_CAMERA_HEIGHT = 1.35

Colour = tuple[float, float, float]
Shade = Sequence[float] | np.ndarray
Point = tuple[float, float, float]


@dataclass(frozen=True)
class _Camera:
    """A pinhole camera: pixel = centre + focal * (X, height - Y) / Z, in metres."""

    focal: float
    centre: tuple[float, float]

    def project(self, points: Sequence[Point]) -> np.ndarray:
        """(n, 2) pixel positions of points (X to the right, Y up from the ground, Z ahead)."""
        x, y, z = np.array(points, np.float64).T
        z = np.maximum(z, 0.5)
        columns = self.centre[0] + self.focal * x / z
        return np.stack([columns, self.centre[1] + self.focal * (_CAMERA_HEIGHT - y) / z], 1)


class _Canvas:
    """A picture and its label numbers, drawn into together."""

    def __init__(self, image: np.ndarray, ids: np.ndarray, camera: _Camera, haze: Colour) -> None:
        self.image, self.ids, self.camera, self._haze = image, ids, camera, haze

    def shade(self, colour: Shade, depth: float, factor: float = 1.0) -> Colour:
        """A colour in haze."""
        clear = float(np.exp(-max(depth, 0.0) / 160))
        red, green, blue = (
            clear * factor * part + (1 - clear) * grey
            for part, grey in zip(colour, self._haze, strict=True)
        )
        return red, green, blue

    def polygon(
        self, label: str | None, points: Sequence[Point], colour: Shade, factor: float = 1
    ) -> None:
        """Fill a flat polygon; without a label only the picture changes."""
        depth = min(point[2] for point in points)
        self._fill(label, self.camera.project(points), self.shade(colour, depth, factor))

    def ellipse(
        self, label: str | None, centre: Point, radii: tuple[float, float], colour: Shade
    ) -> None:
        """Fill an upright ellipse that faces the camera; radii in metres."""
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        middle = self.camera.project([centre])[0]
        scale = self.camera.focal / max(centre[2], 0.5)
        outline = middle + scale * np.stack(
            [radii[0] * np.cos(angles), radii[1] * np.sin(angles)], 1
        )
        self._fill(label, outline, self.shade(colour, centre[2]))

    def upright(
        self,
        label: str | None,
        place: tuple[float, float],
        columns: tuple[float, float],
        rows: tuple[float, float],
        colour: Shade,
    ) -> None:
        """Fill a rectangle that faces the camera, around ``place`` (X, Z), in metres."""
        x, z = place
        corners = [(x + columns[a], rows[b], z) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
        self.polygon(label, corners, colour)

    def darken(self, points: Sequence[Point], factor: float) -> None:
        """A shadow on the ground."""
        area = np.zeros(self.ids.shape, np.uint8)
        cv2.fillPoly(area, [_fixed(self.camera.project(points))], 1, shift=4)
        self.image[area > 0] *= factor

    def _fill(self, label: str | None, outline: np.ndarray, colour: Colour) -> None:
        cv2.fillPoly(self.image, [_fixed(outline)], colour, shift=4)
        if label is not None:
            cv2.fillPoly(self.ids, [_fixed(outline)], _ID[label], shift=4)


def _fixed(outline: np.ndarray) -> np.ndarray:
    # OpenCV takes sixteenths of pixels as whole numbers.
    return np.rint(np.clip(outline, -1e6, 1e6) * 16).astype(np.int32)


# ---------------------------------------------------------------------------------------------
# what does not move


@dataclass(frozen=True)
class _Street:
    """Half widths in metres, from the camera's lane: (left, right)."""

    road: tuple[float, float]
    kerb: tuple[float, float]
    facade: tuple[float, float]
    green: tuple[bool, bool]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Street":
        left, right = float(rng.uniform(4.0, 6.5)), float(rng.uniform(2.4, 4.5))
        pavement = rng.uniform(1.8, 3.5, 2)
        strip = rng.uniform(1.5, 5.0, 2) * (rng.random(2) < 0.5)
        kerb = (left + float(pavement[0]), right + float(pavement[1]))
        facade = (kerb[0] + float(strip[0]), kerb[1] + float(strip[1]))
        return cls((left, right), kerb, facade, (bool(strip[0] > 0), bool(strip[1] > 0)))


class _Facades:
    """One side of the street: buildings, trees, walls and fences one after another."""

    def __init__(self, rng: np.random.Generator) -> None:
        lengths = rng.uniform(5, 17, 32)
        self.bounds = np.cumsum(lengths)
        self.kinds = rng.choice(
            ["building", "vegetation", "wall", "fence"], len(lengths), p=[0.62, 0.2, 0.09, 0.09]
        )
        tall = {"building": (6, 18), "vegetation": (3.5, 9), "wall": (1.6, 2.6), "fence": (1.3, 2)}
        self.heights = np.array([rng.uniform(*tall[kind]) for kind in self.kinds])
        warm = rng.uniform(85, 205, len(lengths))[:, None]
        tints = {
            "building": np.array([1.0, 0.93, 0.84]),
            "vegetation": np.array([0.42, 0.62, 0.3]),
            "wall": np.array([0.86, 0.84, 0.9]),
            "fence": np.array([0.62, 0.5, 0.42]),
        }
        self.colours = warm * np.array([tints[kind] for kind in self.kinds])
        self.colours += rng.normal(0, 9, self.colours.shape)
        self.windows = rng.uniform(1.9, 3.4, (len(lengths), 2))
        self.panes = rng.uniform(35, 95, len(lengths))

    def look_up(
        self, depth: np.ndarray, height: np.ndarray, ragged: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label numbers (sky above the roofs) and colours where rays meet the facades."""
        place = np.minimum(np.searchsorted(self.bounds, depth), len(self.bounds) - 1)
        kinds = self.kinds[place]
        leaves = kinds == "vegetation"
        roofs = self.heights[place] + np.where(leaves, ragged, 0)
        ids = np.array([_ID[kind] for kind in self.kinds], np.uint8)[place]
        ids[height > roofs] = _ID["sky"]
        colours = self.colours[place]
        across, up = self.windows[place].T
        inside = (
            (kinds == "building")
            & ((depth / across) % 1 < 0.45)
            & ((height / up) % 1 > 0.35)
            & ((height / up) % 1 < 0.82)
            & (height > 0.9)
            & (height < roofs - 0.5)
        )
        colours[inside] = self.panes[place][inside, None] * np.array([0.9, 1.0, 1.12])
        colours[(kinds == "fence") & (depth % 0.6 < 0.2)] *= 0.6
        colours[(kinds == "wall") & (height % 0.5 < 0.07)] *= 0.8
        return ids, colours


def _background(
    rng: np.random.Generator, shape: tuple[int, int], camera: _Camera, street: _Street
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture (H, W, 3) float32, label numbers (H, W) uint8 and depth (H, W) in metres."""
    rows, columns = shape
    u = np.arange(columns, dtype=np.float64)[None] + 0.5 - camera.centre[0]
    v = np.arange(rows, dtype=np.float64)[:, None] + 0.5 - camera.centre[1]
    with np.errstate(divide="ignore"):
        ground = np.where(v > 0, camera.focal * _CAMERA_HEIGHT / v, np.inf)
        sides = camera.focal * np.where(u < 0, street.facade[0], street.facade[1]) / np.abs(u)
    depth = np.minimum(np.minimum(ground, sides), _END_OF_STREET)
    ids = np.full(shape, _ID["sky"], np.uint8)
    image = np.empty((*shape, 3), np.float64)
    image[:] = _sky(rng, shape)
    # Per column, so that no leaves float above a tree.
    ragged = np.repeat(1.2 * smooth_noise(rng, (2, columns), 14)[:1], rows, axis=0)
    height = _CAMERA_HEIGHT - v * depth / camera.focal
    hit = (sides <= ground) & (sides < _END_OF_STREET)
    for where in (hit & (u < 0), hit & (u >= 0)):
        facades = _Facades(rng)
        ids[where], colours = facades.look_up(depth[where], height[where], ragged[where])
        solid = ids[where] != _ID["sky"]
        image[where] = np.where(solid[:, None], colours * rng.uniform(0.65, 1.1), image[where])
    end = (ground > _END_OF_STREET) & (sides >= _END_OF_STREET)
    end &= height < rng.uniform(4, 14) + ragged
    kind = str(rng.choice(["vegetation", "building"]))
    ids[end] = _ID[kind]
    image[end] = (70, 98, 52) if kind == "vegetation" else (132, 122, 112)
    _paint_ground(
        rng, image, ids, (ground <= sides) & (ground <= _END_OF_STREET), u, depth, street, camera
    )
    grain = {"vegetation": 26, "terrain": 14, "road": 5, "sidewalk": 6, "building": 4}
    fine = smooth_noise(rng, shape, 3.0) + 0.6 * rng.standard_normal(shape)
    for name, strength in grain.items():
        chosen = ids == _ID[name]
        image[chosen] += strength * fine[chosen][:, None]
    return image.astype(np.float32), ids, depth


def _sky(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Blue to overcast, brighter towards the horizon, with clouds."""
    overcast = rng.uniform(0, 1)
    top = np.array([96, 146, 208]) * (1 - overcast) + np.array([186, 192, 198]) * overcast
    fade = np.linspace(0, 1, shape[0])[:, None, None] ** 0.7
    clouds = np.clip(smooth_noise(rng, shape, shape[0] / 5), 0, 2)[..., None] * rng.uniform(0, 26)
    return top * (1 - fade) + np.array([232, 236, 240]) * fade + clouds


def _paint_ground(
    rng: np.random.Generator,
    image: np.ndarray,
    ids: np.ndarray,
    where: np.ndarray,
    u: np.ndarray,
    depth: np.ndarray,
    street: _Street,
    camera: _Camera,
) -> None:
    x = (u * depth / camera.focal)[where]
    z = depth[where]
    outside = np.where(x < 0, street.road[0], street.road[1])
    kerb = np.where(x < 0, street.kerb[0], street.kerb[1])
    colours = np.empty((len(x), 3))
    colours[:] = rng.uniform(70, 118) * np.array([1.0, 1.0, 1.03])
    labels = np.full(len(x), _ID["road"], np.uint8)
    # A dashed line to the left of the lane, solid lines along the kerbs.
    dashed = (np.abs(x + street.road[1] - 0.4) < 0.08) & ((z + rng.uniform(0, 6)) % 6 < 3)
    solid = (np.abs(np.abs(x) - outside + 0.35) < 0.06) & (rng.random() < 0.6)
    colours[dashed | solid] = rng.uniform(185, 228)
    paved = np.abs(x) > outside
    labels[paved] = _ID["sidewalk"]
    colours[paved] = rng.uniform(128, 178) * np.array([1.0, 0.97, 0.95])
    joints = paved & (((z % 1.2) < 0.1) | ((np.abs(x) % 1.2) < 0.06))
    colours[joints] *= 0.86
    colours[paved & (np.abs(x) < outside + 0.18)] = rng.uniform(170, 205)
    planted = np.abs(x) > kerb
    labels[planted] = _ID["terrain"]
    colours[planted] = np.array([112, 128, 66]) * rng.uniform(0.75, 1.15)
    ids[where], image[where] = labels, colours


# ---------------------------------------------------------------------------------------------
# what stands in the street


def _box(
    canvas: _Canvas, label: str, x: tuple[float, float], y: tuple[float, float],
    z: tuple[float, float], colour: Shade,
) -> None:  # fmt: skip
    """A cuboid: the side that faces the camera, then its back."""
    side = x[1] if x[1] < 0 else x[0]
    if side * (x[0] + x[1]) > 0 and abs(side) > 0.05:
        canvas.polygon(
            label,
            [(side, y[0], z[0]), (side, y[0], z[1]), (side, y[1], z[1]), (side, y[1], z[0])],
            colour,
            0.72,
        )
    canvas.polygon(
        label,
        [(x[0], y[0], z[0]), (x[1], y[0], z[0]), (x[1], y[1], z[0]), (x[0], y[1], z[0])],
        colour,
    )


def _vehicle(canvas: _Canvas, rng: np.random.Generator, x: float, z: float, label: str) -> None:
    """A car, truck or bus seen from behind or from the front."""
    width, length, body, roof = {
        "car": (1.8, 4.3, 0.92, 1.48), "truck": (2.4, 8.0, 3.2, 3.2), "bus": (2.5, 11.0, 3.0, 3.0),
    }[label]  # fmt: skip
    colour = rng.uniform(30, 225) * np.array([1, 1, 1]) + rng.uniform(-28, 28, 3)
    if label == "bus":
        colour = np.array([(206, 168, 40), (190, 44, 40), (228, 226, 220)][int(rng.integers(3))])
    left, right = x - width / 2, x + width / 2
    canvas.darken([(left - 0.2, 0, z), (right + 0.2, 0, z), (right, 0, z + length),
                   (left, 0, z + length)], 0.45)  # fmt: skip
    for wheel in (left + 0.12, right - 0.32):
        canvas.upright(label, (wheel, z), (0, 0.2), (0, 0.4), (24, 24, 26))
    _box(canvas, label, (left, right), (0.24, body), (z, z + length), colour)
    side = right if x < 0 else left
    if abs(x) > width / 2 + 0.05:
        for place in (z + 0.8, z + length - 0.9):
            _wheel(canvas, label, side, place)
    glass = (46, 54, 62)
    if label == "car":
        _box(canvas, label, (left + 0.12, right - 0.12), (body, roof), (z + 0.5, z + 3.2), colour)
        canvas.upright(None, (x, z + 0.5), (-0.7, 0.7), (body + 0.04, roof - 0.1), glass)
        if abs(x) > width / 2:
            inner = side + (0.12 if x > 0 else -0.12)
            canvas.polygon(None, [(inner, body + 0.06, z + 0.8), (inner, body + 0.06, z + 2.9),
                                  (inner, roof - 0.1, z + 2.8), (inner, roof - 0.1, z + 0.9)],
                           glass)  # fmt: skip
    elif label == "bus":
        canvas.upright(None, (x, z), (-1.05, 1.05), (1.4, 2.7), glass)
        if abs(x) > width / 2:
            for part in np.arange(z + 0.6, z + length - 1.4, 1.6):
                pane = [(1.4, part), (1.4, part + 1.3), (2.4, part + 1.3), (2.4, part)]
                canvas.polygon(None, [(side, y, place) for y, place in pane], glass)
    lamp = (226, 40, 36) if rng.random() < 0.6 else (246, 244, 222)
    for place in (left + 0.08, right - 0.3):
        canvas.upright(None, (place, z), (0, 0.22), (0.62, 0.8), lamp)
    canvas.upright(None, (x, z), (-0.26, 0.26), (0.42, 0.54), (232, 232, 228))


def _wheel(canvas: _Canvas, label: str, x: float, z: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    rim = [(x, 0.33 + 0.33 * np.sin(a), z + 0.33 * np.cos(a)) for a in angles]
    canvas.polygon(label, rim, (22, 22, 24))


def _person(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    size = rng.uniform(0.88, 1.08)
    trousers, coat = rng.uniform(20, 95, 3), rng.uniform(25, 235, 3)
    step = rng.uniform(0.02, 0.2)
    canvas.darken(
        [(x - 0.3, 0, z), (x + 0.3, 0, z), (x + 0.3, 0, z + 0.6), (x - 0.3, 0, z + 0.6)], 0.6
    )
    for foot in (-step, step):
        canvas.polygon(
            "person",
            [(x + foot - 0.09, 0, z), (x + foot + 0.09, 0, z),
             (x + 0.15, 0.85 * size, z), (x - 0.15, 0.85 * size, z)],
            trousers,
        )  # fmt: skip
    canvas.upright("person", (x, z), (-0.26, 0.26), (0.75 * size, 1.45 * size), coat)
    canvas.ellipse("person", (x, 1.58 * size, z), (0.12, 0.15), (196, 152, 126))


def _cyclist(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    frame = rng.uniform(30, 200, 3)
    for wheel in (-0.52, 0.52):
        canvas.ellipse("bicycle", (x + wheel, 0.35, z), (0.35, 0.35), (28, 28, 30))
        canvas.ellipse(None, (x + wheel, 0.35, z), (0.26, 0.26), (118, 116, 114))
    canvas.polygon("bicycle", [(x - 0.5, 0.32, z), (x, 0.26, z), (x + 0.46, 0.85, z),
                               (x - 0.2, 0.82, z)], frame)  # fmt: skip
    if rng.random() < 0.75:
        coat = rng.uniform(25, 235, 3)
        canvas.polygon("rider", [(x - 0.22, 0.85, z), (x + 0.02, 0.3, z), (x + 0.16, 0.34, z),
                                 (x, 0.95, z)], (44, 46, 62))  # fmt: skip
        canvas.polygon("rider", [(x - 0.28, 0.85, z), (x + 0.05, 0.88, z), (x + 0.34, 1.4, z),
                                 (x - 0.02, 1.45, z)], coat)  # fmt: skip
        canvas.ellipse("rider", (x + 0.22, 1.6, z), (0.13, 0.15), (190, 146, 122))


def _pole(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    grey = rng.uniform(80, 165)
    carries = rng.choice(["traffic light", "traffic sign", "lamp"], p=[0.35, 0.4, 0.25])
    tall = {"traffic light": 3.6, "traffic sign": 2.7, "lamp": 6.5}[str(carries)]
    canvas.upright("pole", (x, z), (-0.08, 0.08), (0, tall), (grey, grey, grey * 1.04))
    if carries == "traffic light":
        canvas.upright(
            "traffic light", (x, z), (-0.24, 0.24), (tall - 0.9, tall + 0.2), (26, 28, 26)
        )
        lit = int(rng.integers(3))
        for lamp, colour in enumerate([(70, 220, 120), (240, 190, 60), (240, 60, 50)]):
            glow = colour if lamp == lit else (52, 52, 50)
            canvas.ellipse(None, (x, tall - 0.7 + 0.36 * lamp, z), (0.13, 0.13), glow)
    elif carries == "traffic sign":
        colour = [(204, 30, 34), (34, 74, 176), (236, 196, 30)][int(rng.integers(3))]
        canvas.ellipse("traffic sign", (x, tall - 0.1, z), (0.42, 0.42), colour)
        canvas.ellipse(None, (x, tall - 0.1, z), (0.24, 0.24), (238, 238, 236))
    else:
        canvas.upright(
            "pole", (x, z), (-0.08, 0.9 if x < 0 else 0.08), (tall - 0.14, tall), (grey,) * 3
        )


def _tree(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    canvas.upright("vegetation", (x, z), (-0.16, 0.16), (0, 2.6), (84, 66, 50))
    green = np.array([72, 108, 46]) * rng.uniform(0.7, 1.3)
    for _ in range(26):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1.25)
        place = (x + radius * np.cos(angle), 3.6 + radius * np.sin(angle), z)
        size = float(rng.uniform(0.35, 0.75))
        canvas.ellipse("vegetation", place, (size, size), green * rng.uniform(0.7, 1.3))


def _furnish(canvas: _Canvas, rng: np.random.Generator, street: _Street) -> None:
    """Everything that stands or moves, from far to near."""
    things: list[tuple[float, Callable[[], None]]] = []

    def add(z: float, draw: Callable[..., None], x: float, *kind: str) -> None:
        things.append((z, partial(draw, canvas, rng, x, z, *kind)))

    for side, sign in ((0, -1), (1, 1)):
        road, kerb = street.road[side], street.kerb[side]
        z = rng.uniform(5.5, 12)
        while z < 60:  # parked
            if rng.random() < 0.6:
                add(z, _vehicle, sign * (road - 1.15), _vehicle_kind(rng, z, True))
            z += rng.uniform(6, 11)
        for z in rng.uniform(6, 36, int(rng.integers(1, 6))):
            add(z, _person, sign * rng.uniform(road + 0.5, kerb - 0.3))
        for z in np.arange(rng.uniform(7, 16), 60, rng.uniform(9, 16)):
            add(z, _pole, sign * (road + 0.3))
        for z in rng.uniform(10, 60, int(rng.integers(0, 5))):
            add(z, _tree, sign * (kerb + 0.4))
    if rng.random() < 0.75:
        z = rng.uniform(9, 36)
        add(z, _vehicle, 0.4 - street.road[0] / 2, _vehicle_kind(rng, z))
    if rng.random() < 0.45:
        z = rng.uniform(12, 40)
        add(z, _vehicle, rng.uniform(-0.3, 0.3), _vehicle_kind(rng, z))
    for z in rng.uniform(7, 20, int(rng.integers(0, 3))):
        add(z, _cyclist, rng.uniform(2.6 - street.road[0], street.road[1]))
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()


def _vehicle_kind(rng: np.random.Generator, z: float, parked: bool = False) -> str:
    # Tall vehicles right ahead would fill the picture.
    chances = [0.9, 0.06, 0.04] if parked else [0.5, 0.25, 0.25]
    kind = str(rng.choice(["car", "truck", "bus"], p=chances))
    return kind if z > 14 else "car"


# ---------------------------------------------------------------------------------------------
# pictures and files


def make_scene(
    seed: int, number: int, height: int = 128, width: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """One street: (height, width, 3) RGB uint8 and (height, width) uint8 label numbers."""
    rng = np.random.default_rng([seed, number])
    rows, columns = height * _OVERSAMPLING, width * _OVERSAMPLING
    camera = _Camera(
        columns * rng.uniform(0.55, 0.7),
        (columns * rng.uniform(0.42, 0.58), rows * rng.uniform(0.4, 0.5)),
    )
    street = _Street.draw(rng)
    image, ids, depth = _background(rng, (rows, columns), camera, street)
    red, green, blue = rng.uniform(190, 225, 3).tolist()
    haze = (red, green, blue)
    clear = np.exp(-depth / 160)[..., None].astype(np.float32)
    solid = (ids != _ID["sky"])[..., None]
    image = np.where(solid, image * clear + np.array(haze, np.float32) * (1 - clear), image)
    canvas = _Canvas(np.ascontiguousarray(image, np.float32), ids, camera, haze)
    _furnish(canvas, rng, street)
    _hood(canvas, rng)
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA)
    return expose(image, rng), _framed(canvas.ids[::_OVERSAMPLING, ::_OVERSAMPLING])


def _hood(canvas: _Canvas, rng: np.random.Generator) -> None:
    rows, columns = canvas.ids.shape
    middle = (columns // 2, int(rows * rng.uniform(1.24, 1.3)))
    axes = (int(columns * 0.56), int(rows * 0.34))
    shine = rng.uniform(30, 90)
    cv2.ellipse(canvas.image, middle, axes, 0, 0, 360, (shine, shine, shine * 1.1), -1)
    cv2.ellipse(canvas.ids, middle, axes, 0, 0, 360, _ID["ego vehicle"], -1)


def _framed(ids: np.ndarray) -> np.ndarray:
    """The frame that Cityscapes leaves out, at least one pixel wide."""
    width = max(1, ids.shape[0] // 200)
    framed = np.full_like(ids, _ID["out of roi"])
    framed[width:-width, width:-width] = ids[width:-width, width:-width]
    return framed


def generate(
    folder: str | Path,
    seed: int = 0,
    train: int = 24,
    val: int = 8,
    test: int = 4,
    height: int = 128,
    width: int = 256,
) -> int:
    """Write a small Cityscapes: ``leftImg8bit/<split>/<city>`` and ``gtFine/<split>/<city>``.

    Args:
        folder: where the two folders go.
        seed: decides everything.
        train: pictures of the training split.
        val: likewise.
        test: likewise; their masks are dummies, as in the real set.
        height: rows of a picture.
        width: columns of a picture.

    Returns:
        The number of pictures written.

    Raises:
        UserError: a number out of range, or the folder cannot be written.
    """
    pictures = number_pictures(train, val, test)
    if height < 32 or width < 32:
        raise UserError(f"pictures of {height}x{width} pixels show no street; use 32 at least")
    for split, place, number in pictures:
        image, ids = make_scene(seed, number, height, width)
        city = _CITIES[split][place % len(_CITIES[split])]
        name = f"{city}_{place // len(_CITIES[split]):06d}_000019"
        if split == "test":
            known = (_ID["ego vehicle"], _ID["out of roi"])
            ids = np.where(np.isin(ids, known), ids, _ID["unlabeled"]).astype(np.uint8)
        images, masks = (Path(folder) / kind / split / city for kind in ("leftImg8bit", "gtFine"))
        write_image(images / f"{name}_leftImg8bit.png", image)
        write_image(masks / f"{name}_gtFine_labelIds.png", ids)
        write_image(masks / f"{name}_gtFine_color.png", GTAV.colourise(ids))
    return len(pictures)
