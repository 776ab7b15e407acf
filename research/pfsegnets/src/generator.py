"""A generated data set in iSAID's raw format, for tests and a first run without downloads.

Every picture is a small town seen from above, turned by any angle: roads with vehicles divide it
into blocks of sports grounds, tanks, an airfield, car parks, houses with pools, fields and woods;
a river crosses it under bridges, or a sea with a harbour borders it. All 15 classes of iSAID
occur; houses and trees carry no class, as there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import write_image
from model_utils.generating import expose, number_pictures, smooth_noise

from .classes import ISAID

_ID = {name: number for number, name in enumerate(ISAID.names)}

# Pictures are drawn at twice their size and averaged, which smooths their outlines.
_OVERSAMPLING = 2
# Vertices are given to OpenCV in 1/8 pixels.
_SHIFT = 3
_LIGHT = np.array([5.0, 4.0])  # shadows fall this way, pixels for each storey

Colour = Sequence[float] | np.ndarray
Points = np.ndarray


class _Canvas:
    """A picture with the class and the instance of every pixel, drawn into together.

    Coordinates are pixels of the final picture, (x, y), before the town is turned about the
    picture's middle.
    """

    def __init__(self, height: int, width: int, angle: float) -> None:
        rows, columns = height * _OVERSAMPLING, width * _OVERSAMPLING
        self.image = np.zeros((rows, columns, 3), np.float32)
        self.labels = np.zeros((rows, columns), np.uint8)
        self.instances = np.zeros((rows, columns), np.uint16)
        self.count = 0
        self._label, self._instance = 0, 0
        cosine, sine = np.cos(angle) * _OVERSAMPLING, np.sin(angle) * _OVERSAMPLING
        self._turn = np.array([[cosine, -sine], [sine, cosine]])
        self._middle = np.array([columns, rows]) / 2

    def begin(self, name: str | None) -> None:
        """What is drawn from now on belongs to one new object of a class, or to none."""
        self._label = self._instance = 0
        if name is not None:
            self.count += 1
            self._label, self._instance = _ID[name], self.count

    def shape(self, points: Points, colour: Colour) -> None:
        """A filled polygon, (n, 2)."""
        vertices = self._vertices(points)
        red, green, blue = (float(value) for value in colour)
        for plane, value in (
            (self.image, (red, green, blue)),
            (self.labels, self._label),
            (self.instances, self._instance),
        ):
            cv2.fillPoly(plane, [vertices], value, lineType=cv2.LINE_8, shift=_SHIFT)

    def line(self, points: Points, width: float, colour: Colour) -> None:
        """An open line of a width in pixels."""
        for start, end in zip(points[:-1], points[1:], strict=True):
            along = end - start
            across = np.array([-along[1], along[0]]) * (width / 2 / max(1e-6, np.hypot(*along)))
            self.shape(
                np.array([start + across, end + across, end - across, start - across]), colour
            )

    def darken(self, points: Points, height: float) -> None:
        """The shadow of a polygon, on the ground; classes stay."""
        vertices = self._vertices(points) + np.rint(_LIGHT * height * 2**_SHIFT).astype(np.int32)
        left, top = np.maximum(0, vertices.min(axis=0) // 2**_SHIFT)
        right, bottom = vertices.max(axis=0) // 2**_SHIFT + 2
        part = self.image[top:bottom, left:right]
        if part.size:
            mask = np.zeros(part.shape[:2], np.uint8)
            offset = np.array([left, top], np.int32) * 2**_SHIFT
            cv2.fillPoly(mask, [vertices - offset], 1, lineType=cv2.LINE_8, shift=_SHIFT)
            part[mask > 0] *= 0.55

    def _vertices(self, points: Points) -> np.ndarray:
        pixels = np.asarray(points) @ self._turn.T + self._middle
        return np.rint(pixels * 2**_SHIFT).astype(np.int32)


# ---------------------------------------------------------------------------------------------
# shapes


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def _ellipse(x: float, y: float, rx: float, ry: float, count: int = 28) -> Points:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _moved(points: Points, x: float, y: float, angle: float) -> Points:
    """Points given about the origin, turned and moved to (x, y)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(points) @ turn.T + (x, y)


def _stadium(x: float, y: float, length: float, radius: float) -> Points:
    angles = np.linspace(-np.pi / 2, np.pi / 2, 14)
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius
    return np.concatenate([arc + (length, 0), -arc - (length, 0)]) + (x, y)


# ---------------------------------------------------------------------------------------------
# objects


def _vehicle(
    canvas: _Canvas, rng: np.random.Generator, x: float, y: float, angle: float, large: bool
) -> None:
    """A car, or a lorry with its cab; ``angle`` is where its bonnet points."""
    half, wide = (rng.uniform(14, 18), 4.2) if large else (rng.uniform(6.5, 8), 3.6)
    body = _moved(_rectangle(-half, -wide, half, wide), x, y, angle)
    canvas.darken(body, 1.2 if large else 0.7)
    canvas.begin("large vehicle" if large else "small vehicle")
    if large:
        canvas.shape(body, rng.uniform(170, 240) * np.array([1, 0.99, 0.96]))
        colour = rng.uniform(40, 220, 3)
        canvas.shape(_moved(_rectangle(half - 7, -wide, half, wide), x, y, angle), colour)
        glass = _moved(_rectangle(half - 2, -wide + 1, half - 0.5, wide - 1), x, y, angle)
    else:
        grey = rng.uniform(30, 235)
        colour = np.full(3, grey) if rng.random() < 0.6 else rng.uniform(20, 230, 3)
        canvas.shape(body, colour)
        canvas.shape(_moved(_rectangle(-half + 3, -2.6, 2, 2.6), x, y, angle), colour * 0.8 + 20)
        glass = _moved(_rectangle(1.5, -2.8, 3.4, 2.8), x, y, angle)
    canvas.shape(glass, (36, 42, 52))
    canvas.begin(None)


def _ship(canvas: _Canvas, rng: np.random.Generator, x: float, y: float, angle: float) -> None:
    half = rng.uniform(13, 34)
    wide = half * rng.uniform(0.22, 0.3)
    hull = np.array(
        [(-1, -0.8), (0.45, -1), (0.8, -0.55), (1, 0), (0.8, 0.55), (0.45, 1), (-1, 0.8)]
    )
    hull = hull * (half, wide)
    canvas.darken(_moved(hull, x, y, angle), 0.8)
    canvas.begin("ship")
    canvas.shape(_moved(hull, x, y, angle), rng.uniform(190, 245) * np.array([1, 1, 1.0]))
    deck = [(150, 74, 58), (188, 178, 158), (96, 110, 128)][int(rng.integers(3))]
    canvas.shape(_moved(hull * 0.72, x, y, angle), deck)
    cabin = _rectangle(-0.7 * half, -0.5 * wide, -0.25 * half, 0.5 * wide)
    canvas.shape(_moved(cabin, x, y, angle), (236, 236, 232))
    for hatch in np.arange(-0.1, 0.5, 0.25) * half if half > 24 else ():
        box = _rectangle(hatch, -0.4 * wide, hatch + 0.16 * half, 0.4 * wide)
        canvas.shape(_moved(box, x, y, angle), rng.uniform(60, 210, 3))
    canvas.begin(None)


def _plane(canvas: _Canvas, rng: np.random.Generator, x: float, y: float, angle: float) -> None:
    size = rng.uniform(22, 34)
    white = rng.uniform(205, 250) * np.array([1, 1, 1.01])
    fuselage = np.array(
        [(1, 0), (0.9, 0.07), (-0.75, 0.08), (-1, 0.02), (-1, -0.02), (-0.75, -0.08), (0.9, -0.07)]
    )
    wings = np.array([(0.25, 0), (-0.28, 0.95), (-0.42, 0.95), (-0.12, 0), (-0.42, -0.95),
                      (-0.28, -0.95)])  # fmt: skip
    tail = np.array([(-0.7, 0), (-0.92, 0.36), (-1.02, 0.36), (-0.95, 0), (-1.02, -0.36),
                     (-0.92, -0.36)])  # fmt: skip
    for part in (fuselage, wings, tail):
        canvas.darken(_moved(part * size, x, y, angle), 1.6)
    canvas.begin("plane")
    for part, shade in ((wings, 0.9), (tail, 0.92), (fuselage, 1.0)):
        canvas.shape(_moved(part * size, x, y, angle), white * shade)
    for side in (-0.4, 0.4):
        engine = _ellipse(0.1 * size, side * size, 0.12 * size, 0.05 * size, 10)
        canvas.shape(_moved(engine, x, y, angle), (120, 124, 130))
    fin = rng.uniform(30, 220, 3)
    canvas.shape(_moved(_rectangle(-0.98, -0.03, -0.66, 0.03) * size, x, y, angle), fin)
    canvas.begin(None)


def _helicopter(canvas: _Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    canvas.shape(_ellipse(x, y, 22, 22), (124, 124, 122))
    canvas.shape(_ellipse(x, y, 19, 19), (150, 150, 148))
    angle = rng.uniform(0, 2 * np.pi)
    colour = np.array([(60, 84, 52), (190, 44, 40), (40, 62, 120)][int(rng.integers(3))])
    body, boom = _ellipse(2, 0, 10, 5.2, 16), _rectangle(-20, -1.4, -4, 1.4)
    for part in (body, boom):
        canvas.darken(_moved(part, x, y, angle), 1.0)
    canvas.begin("helicopter")
    for part in (boom, body, _rectangle(-21, -5, -18.5, 5)):
        canvas.shape(_moved(part, x, y, angle), colour)
    canvas.shape(_moved(_ellipse(8, 0, 3, 3.4, 10), x, y, angle), (40, 48, 60))
    for blade in rng.uniform(0, np.pi / 2) + np.array([0, np.pi / 2]):
        canvas.shape(_moved(_rectangle(-17, -1, 17, 1), x, y, float(blade)), (32, 32, 34))
    canvas.begin(None)


def _house(canvas: _Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    half, wide = rng.uniform(13, 20), rng.uniform(9, 13)
    angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.06)
    roof = np.array([(168, 84, 62), (120, 112, 108), (140, 100, 74), (176, 168, 160)])
    colour = roof[int(rng.integers(4))] * rng.uniform(0.85, 1.1)
    canvas.darken(_moved(_rectangle(-half, -wide, half, wide), x, y, angle), 2)
    canvas.shape(_moved(_rectangle(-half, -wide, half, 0), x, y, angle), colour)
    canvas.shape(_moved(_rectangle(-half, 0, half, wide), x, y, angle), colour * 0.76)


def _tree(canvas: _Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    radius = rng.uniform(4, 8)
    green = np.array([52, 84, 40]) * rng.uniform(0.7, 1.25)
    canvas.darken(_ellipse(x, y, radius, radius, 12), 1.2)
    for _ in range(5):
        place = rng.normal(0, radius * 0.35, 2) + (x, y)
        size = radius * rng.uniform(0.5, 0.8)
        canvas.shape(
            _ellipse(float(place[0]), float(place[1]), size, size, 9), green * rng.uniform(0.8, 1.3)
        )


# ---------------------------------------------------------------------------------------------
# blocks: everything in the rectangle (x0, y0, x1, y1)

Box = tuple[float, float, float, float]


def _grid(box: Box, step_x: float, step_y: float) -> list[tuple[float, float]]:
    """Middles of cells of at least the given size that fill a box."""
    x0, y0, x1, y1 = box
    columns, rows = max(1, int((x1 - x0) / step_x)), max(1, int((y1 - y0) / step_y))
    return [
        (x0 + (i + 0.5) * (x1 - x0) / columns, y0 + (j + 0.5) * (y1 - y0) / rows)
        for j in range(rows)
        for i in range(columns)
    ]


def _lines_of_court(canvas: _Canvas, x: float, y: float, half: float, wide: float) -> None:
    white = (235, 236, 232)
    frame = _rectangle(x - half, y - wide, x + half, y + wide)
    canvas.line(np.concatenate([frame, frame[:1]]), 1.2, white)
    canvas.line(np.array([(x, y - wide), (x, y + wide)]), 1.2, white)


def _courts(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    """Rows of tennis courts, then of basketball courts."""
    x0, y0, x1, y1 = box
    canvas.shape(_rectangle(*box), np.array([92, 118, 92]) * rng.uniform(0.9, 1.1))
    middle = y0 + (y1 - y0) * rng.uniform(0.42, 0.58)
    ground = [(44, 96, 150), (46, 122, 86)][int(rng.integers(2))]
    for x, y in _grid((x0, y0, x1, middle), 60, 36):
        canvas.begin("tennis court")
        canvas.shape(_rectangle(x - 25, y - 14, x + 25, y + 14), ground)
        _lines_of_court(canvas, x, y, 20, 10)
        canvas.line(np.array([(x - 20, y), (x + 20, y)]), 1.0, (235, 236, 232))
    floor = [(196, 112, 66), (170, 120, 140)][int(rng.integers(2))]
    for x, y in _grid((x0, middle, x1, y1), 64, 42):
        canvas.begin("basketball court")
        canvas.shape(_rectangle(x - 26, y - 16, x + 26, y + 16), floor)
        _lines_of_court(canvas, x, y, 24, 14)
        for end in (-1, 1):
            key = _rectangle(x + end * 24, y - 5, x + end * 14, y + 5)
            canvas.shape(key, np.array(floor) * 0.65)
        canvas.shape(_ellipse(x, y, 5, 5, 14), np.array(floor) * 0.65)
    canvas.begin(None)


def _stadium_block(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    """A running track around a field, which is sometimes marked for soccer."""
    x0, y0, x1, y1 = box
    canvas.shape(_rectangle(*box), np.array([104, 128, 80]) * rng.uniform(0.9, 1.1))
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    radius = min((y1 - y0) * 0.4, (x1 - x0) * 0.27)
    length = max(6.0, (x1 - x0) * 0.45 - radius)
    canvas.begin("ground track field")
    canvas.shape(_stadium(x, y, length, radius), np.array([176, 84, 66]) * rng.uniform(0.9, 1.1))
    for lane in (0.93, 0.86):
        ring = _stadium(x, y, length, radius * lane)
        canvas.line(np.concatenate([ring, ring[:1]]), 0.8, (224, 208, 200))
    canvas.shape(_stadium(x, y, length, radius * 0.74), (96, 140, 74))
    _soccer(canvas, rng, x, y, length * 0.98, radius * 0.6)
    canvas.begin(None)


def _soccer(
    canvas: _Canvas, rng: np.random.Generator, x: float, y: float, half: float, wide: float
) -> None:
    green = np.array([74, 140, 62]) * rng.uniform(0.9, 1.1)
    canvas.begin("soccer ball field")
    edges = np.linspace(x - half, x + half, 9)
    for number, (left, right) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        stripe = _rectangle(left, y - wide, right, y + wide)
        canvas.shape(stripe, green * (1.12 if number % 2 else 0.94))
    _lines_of_court(canvas, x, y, half - 1, wide - 1)
    ring = _ellipse(x, y, wide * 0.3, wide * 0.3)
    canvas.line(np.concatenate([ring, ring[:1]]), 1.0, (235, 236, 232))
    for end in (-1, 1):
        goal = [(end * 1.0, -0.5), (end * 0.78, -0.5), (end * 0.78, 0.5), (end * 1.0, 0.5)]
        canvas.line(np.array(goal) * (half - 1, wide) + (x, y), 1.0, (235, 236, 232))


def _ball_games(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    """A baseball diamond beside a soccer field."""
    x0, y0, x1, y1 = box
    canvas.shape(_rectangle(*box), np.array([98, 122, 74]) * rng.uniform(0.9, 1.1))
    side = min(y1 - y0 - 12, (x1 - x0) * 0.5)
    corner = np.array([x0 + 6, y0 + (y1 - y0 - side) / 2])
    angles = np.linspace(0, np.pi / 2, 16)
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    canvas.begin("baseball diamond")
    for part, colour in ((1.0, (92, 150, 72)), (0.62, (186, 138, 94))):
        canvas.shape(np.concatenate([[corner], corner + fan * side * part]), colour)
    base = side * 0.4
    square = corner + np.array([(0.06, 0.06), (1, 0.06), (1, 1), (0.06, 1)]) * base
    canvas.shape(square, (96, 154, 76))
    mound = _ellipse(0, 0, base * 0.13, base * 0.13, 12) + corner + base * 0.53
    canvas.shape(mound, (186, 138, 94))
    left, half = x0 + side + 12, (x1 - x0 - side - 18) / 2
    _soccer(canvas, rng, left + half, (y0 + y1) / 2, half, min(half * 0.8, (y1 - y0) * 0.42))
    canvas.begin(None)


def _tanks(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    canvas.shape(_rectangle(*box), np.array([156, 146, 130]) * rng.uniform(0.9, 1.08))
    radius = rng.uniform(13, 20)
    for x, y in _grid(box, 2.5 * radius, 2.5 * radius):
        if rng.random() < 0.12:
            continue
        size = radius * rng.uniform(0.75, 1)
        canvas.darken(_ellipse(x, y, size, size), 2.6)
        canvas.begin("storage tank")
        shade = rng.uniform(195, 240)
        canvas.shape(_ellipse(x, y, size, size), (shade * 0.82,) * 3)
        canvas.shape(_ellipse(x, y, size * 0.88, size * 0.88), (shade, shade, shade * 0.98))
        canvas.line(np.array([(x, y), (x + size * 0.85, y)]), 1.4, (130, 130, 128))
        canvas.shape(_ellipse(x, y, 2.2, 2.2, 10), (130, 130, 128))
        canvas.begin(None)


def _airfield(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    x0, y0, x1, y1 = box
    canvas.shape(_rectangle(*box), np.array([158, 158, 154]) * rng.uniform(0.92, 1.06))
    for x in np.arange(x0 + 24, x1, 24):
        canvas.line(np.array([(x, y0), (x, y1)]), 0.8, (140, 140, 136))
    canvas.line(np.array([(x0, y0 + 8), (x1, y0 + 8)]), 1.6, (214, 184, 60))
    pad = x1 - 30
    for _, y in _grid((x1 - 60, y0 + 12, x1, y1), 60, 62):
        _helicopter(canvas, rng, pad, y)
    direction = rng.choice([-1, 1]) * np.pi / 2
    for x, y in _grid((x0, y0 + 12, x1 - 58, y1), 74, 78):
        _plane(canvas, rng, x, y, direction + rng.normal(0, 0.15))


def _car_park(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    canvas.shape(_rectangle(*box), np.array([104, 104, 106]) * rng.uniform(0.85, 1.2))
    x0, y0, x1, y1 = box
    lorries = y0 + (y1 - y0) * 0.35
    for x, y in _grid((x0 + 4, y0 + 3, x1 - 4, lorries), 13, 44):
        canvas.line(np.array([(x - 6.5, y - 18), (x - 6.5, y + 18)]), 0.8, (214, 214, 210))
        if rng.random() < 0.65:
            _vehicle(canvas, rng, x, y, np.pi / 2, True)
    for x, y in _grid((x0 + 4, lorries + 4, x1 - 4, y1 - 3), 11, 26):
        canvas.line(np.array([(x - 5.5, y - 9), (x - 5.5, y + 9)]), 0.8, (214, 214, 210))
        if rng.random() < 0.72:
            _vehicle(canvas, rng, x, y, rng.choice([-1, 1]) * np.pi / 2, False)


def _houses(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    """Gardens, of which every second has a pool."""
    canvas.shape(_rectangle(*box), np.array([106, 128, 82]) * rng.uniform(0.88, 1.1))
    for x, y in _grid(box, 48, 66):
        _house(canvas, rng, x + rng.uniform(-3, 3), y - 15)
        if rng.random() < 0.8:
            rx, ry = rng.uniform(7, 12), rng.uniform(5, 8)
            pool = _ellipse(x, y + 16, rx, ry)
            if rng.random() < 0.5:
                pool = _rectangle(x - rx, y + 16 - ry, x + rx, y + 16 + ry)
            centre = pool.mean(axis=0)
            canvas.shape(centre + (pool - centre) * 1.3, (206, 200, 188))
            canvas.begin("swimming pool")
            canvas.shape(pool, np.array([64, 186, 216]) * rng.uniform(0.9, 1.1))
            canvas.shape(centre + (pool - centre) * 0.6, np.array([48, 168, 206]))
            canvas.begin(None)
        for place in rng.uniform(-22, 22, (int(rng.integers(1, 4)), 2)):
            if abs(place[1] - 16) > 14 and abs(place[1] + 15) > 14:
                _tree(canvas, rng, x + place[0], y + place[1])


def _fields(canvas: _Canvas, rng: np.random.Generator, box: Box) -> None:
    """Furrowed fields and a wood: no class."""
    x0, y0, x1, y1 = box
    tones = np.array([(150, 146, 88), (110, 134, 72), (142, 114, 82), (172, 160, 112)])
    edge = x0 + (x1 - x0) * rng.uniform(0.35, 0.65)
    for left, right in ((x0, edge), (edge, x1)):
        tone = tones[int(rng.integers(4))] * rng.uniform(0.9, 1.1)
        canvas.shape(_rectangle(left, y0, right, y1), tone)
        for x in np.arange(left + 3, right, 6):
            canvas.line(np.array([(x, y0), (x, y1)]), 1.6, tone * 0.92)
    for _ in range(int((x1 - x0) * (y1 - y0) / 400 * rng.uniform(0, 0.6))):
        _tree(canvas, rng, rng.uniform(x0, edge), rng.uniform(y0, y1))


_BLOCKS: tuple[Callable[[_Canvas, np.random.Generator, Box], None], ...] = (
    _courts, _stadium_block, _ball_games, _tanks, _airfield, _car_park, _houses, _fields,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------
# roads and water

_ROAD = 15.0  # half width in pixels


def _road(canvas: _Canvas, points: Points) -> None:
    canvas.line(points, 2 * _ROAD + 6, (150, 146, 138))
    canvas.line(points, 2 * _ROAD, (92, 92, 96))
    start, end = points[0], points[-1]
    length = float(np.hypot(*(end - start)))
    for place in np.arange(0, length - 6, 14):
        dash = start + (end - start) / length * np.array([[place], [place + 6]])
        canvas.line(dash, 1.0, (216, 214, 206))


def _traffic(canvas: _Canvas, rng: np.random.Generator, points: Points) -> None:
    start, end = points[0], points[-1]
    length = float(np.hypot(*(end - start)))
    along = (end - start) / length
    across = np.array([-along[1], along[0]])
    for lane in (-1, 1):
        place = rng.uniform(0, 50)
        while place < length:
            x, y = start + along * place + across * lane * 7.5
            direction = np.arctan2(along[1], along[0]) + (np.pi if lane < 0 else 0)
            large = rng.random() < 0.2
            _vehicle(canvas, rng, x, y, float(direction), large)
            place += rng.uniform(45, 150)


def _roundabout(canvas: _Canvas, rng: np.random.Generator, x: float, y: float) -> None:
    radius = rng.uniform(30, 36)
    canvas.begin("roundabout")
    canvas.shape(_ellipse(x, y, radius, radius), (88, 88, 92))
    canvas.shape(_ellipse(x, y, radius * 0.58, radius * 0.58), (178, 174, 164))
    canvas.shape(_ellipse(x, y, radius * 0.5, radius * 0.5), (88, 136, 70))
    canvas.shape(_ellipse(x, y, 4, 4, 10), (196, 180, 120))
    canvas.begin(None)


def _bridge(canvas: _Canvas, x0: float, x1: float, y: float) -> None:
    deck = _rectangle(x0 - 8, y - _ROAD - 4, x1 + 8, y + _ROAD + 4)
    canvas.darken(deck, 2.2)
    canvas.begin("bridge")
    canvas.shape(deck, (188, 184, 174))
    canvas.shape(_rectangle(x0 - 8, y - _ROAD + 2, x1 + 8, y + _ROAD - 2), (112, 112, 114))
    for x in np.arange(x0 - 4, x1 + 4, 14):
        canvas.line(np.array([(x, y), (x + 6, y)]), 1.0, (222, 220, 210))
    canvas.begin(None)


def _harbour(canvas: _Canvas, rng: np.random.Generator, shore: float, reach: float) -> None:
    """A quay along the shore with piers, ships at them and at sea."""
    quay = np.array([172, 164, 150]) * rng.uniform(0.92, 1.08)
    canvas.begin("harbor")
    canvas.shape(_rectangle(shore, -reach, shore + 14, reach), quay)
    piers = np.arange(-reach + rng.uniform(20, 90), reach, rng.uniform(76, 96))
    lengths = rng.uniform(60, 120, len(piers))
    for y, length in zip(piers, lengths, strict=True):
        pier = _rectangle(shore + 14, y - 6, shore + 14 + length, y + 6)
        canvas.shape(pier, quay * rng.uniform(0.9, 1.05))
        canvas.line(np.array([(shore + 14, y), (shore + 14 + length, y)]), 1.2, quay * 0.8)
    canvas.begin(None)
    for y, length in zip(piers, lengths, strict=True):
        for side in (-17, 17):
            for x in np.arange(shore + 42, shore + 4 + length, 66):
                if rng.random() < 0.75:
                    _ship(canvas, rng, x, y + side, rng.choice([0, np.pi]) + rng.normal(0, 0.03))
    for x, y in _grid((shore + 145, -reach, shore + 145 + reach, reach), 100, 90):
        if rng.random() < 0.7:
            east, south = rng.uniform(-18, 18, 2)
            _ship(canvas, rng, x + east, y + south, rng.uniform(0, 2 * np.pi))


def _water(canvas: _Canvas, rng: np.random.Generator, points: Points) -> None:
    deep = np.array([38, 74, 96]) * rng.uniform(0.8, 1.15) + (0, rng.uniform(-6, 8), 0)
    canvas.shape(points, deep)


def _cuts(rng: np.random.Generator, reach: float) -> list[float]:
    """Where the roads run, from -reach to beyond reach."""
    cuts = [-reach + rng.uniform(-60, 0)]
    while cuts[-1] < reach:
        cuts.append(cuts[-1] + rng.uniform(170, 235))
    return cuts


# ---------------------------------------------------------------------------------------------
# pictures and files


def _town(canvas: _Canvas, rng: np.random.Generator, reach: float, number: int) -> None:
    """Blocks between roads, with a river or beside the sea by turns."""
    columns, rows = _cuts(rng, reach), _cuts(rng, reach)
    coast = number % 2 == 0
    wet = len(columns) // 2  # the column after which there is water
    shore = columns[wet] + _ROAD + 8
    limit = wet + 1 if coast else len(columns)
    end = shore if coast else reach * 2
    for y in rows:
        _road(canvas, np.array([(-2 * reach, y), (end, y)]))
    for place, x in enumerate(columns[:limit]):
        if coast or place != wet:
            _road(canvas, np.array([(x, -2 * reach), (x, 2 * reach)]))
    deck: list[int] = []
    for place in range(limit - 1):
        left, right = columns[place : place + 2]
        if not coast:  # a river is wider than a road
            left += 24 * (place == wet)
            right -= 24 * (place + 1 == wet)
        for top, bottom in zip(rows[:-1], rows[1:], strict=True):
            # Every kind of block once before any comes again.
            deck = deck or rng.permutation(len(_BLOCKS)).tolist()
            margin = _ROAD + 6
            box = (left + margin, top + margin, right - margin, bottom - margin)
            _BLOCKS[deck.pop()](canvas, rng, box)
    if coast:
        sea = _rectangle(shore, -2 * reach, 3 * reach, 2 * reach)
        _water(canvas, rng, sea)
        _harbour(canvas, rng, shore, reach)
    else:
        _river(canvas, rng, columns[wet], rows, reach)
    for y in rows:
        _traffic(canvas, rng, np.array([(-reach, y), (min(end - 20, reach), y)]))
    for place, x in enumerate(columns[:limit]):
        if coast or place != wet:
            _traffic(canvas, rng, np.array([(x, -reach), (x, reach)]))
            for y in rows:
                if rng.random() < 0.3:
                    _roundabout(canvas, rng, x, y)


def _river(
    canvas: _Canvas, rng: np.random.Generator, x: float, rows: Sequence[float], reach: float
) -> None:
    along = np.linspace(-2 * reach, 2 * reach, 60)
    bend = x + 7 * np.sin(along / rng.uniform(50, 90) + rng.uniform(0, 6))
    half = rng.uniform(22, 30)
    for wide, water in ((half + 7, False), (half, True)):
        left, right = np.stack([bend - wide, along], 1), np.stack([bend + wide, along], 1)
        points = np.concatenate([left, right[::-1]])
        if water:
            _water(canvas, rng, points)
        else:
            canvas.shape(points, (140, 132, 104))
    for top, bottom in zip(rows[:-1], rows[1:], strict=True):
        if rng.random() < 0.5:
            y = rng.uniform(top + 60, bottom - 60)
            _ship(canvas, rng, x, y, rng.choice([-1, 1]) * np.pi / 2)
    for y in rows:
        _bridge(canvas, x - half, x + half, y)


def make_scene(
    seed: int, number: int, height: int = 600, width: int = 600
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One town.

    Args:
        seed: decides everything, with ``number``.
        number: of the picture; even ones lie at the sea, odd ones at a river.
        height: rows.
        width: columns.

    Returns:
        (height, width, 3) RGB uint8, (height, width) uint8 classes, (height, width) uint16
        objects: 0 or a number of its own for each.
    """
    rng = np.random.default_rng([seed, number])
    canvas = _Canvas(height, width, rng.uniform(0, 2 * np.pi))
    canvas.image[:] = np.array([118, 120, 88]) * rng.uniform(0.85, 1.15)
    _town(canvas, rng, float(np.hypot(height, width)) / 2 + 20, number)
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA)
    # Surfaces are never of one colour: coarse and fine unevenness.
    rough = 1 + 0.035 * smooth_noise(rng, (height, width), 22)
    rough += 0.03 * smooth_noise(rng, (height, width), 3)
    image = expose(image * rough[..., None], rng)
    thin = (slice(None, None, _OVERSAMPLING), slice(None, None, _OVERSAMPLING))
    return image, canvas.labels[thin].copy(), canvas.instances[thin].copy()


def instance_colours(objects: np.ndarray) -> np.ndarray:
    """A colour for each object: (H, W) numbers to (H, W, 3) uint8, black where there is none."""
    # An odd factor permutes 24-bit numbers, so no two objects share a colour.
    numbers = (objects.astype(np.uint32) * np.uint32(0x9E3779)) & np.uint32(0xFFFFFF)
    return np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], axis=2).astype(np.uint8)


def generate(
    folder: str | Path,
    seed: int = 0,
    train: int = 10,
    val: int = 4,
    test: int = 2,
    smallest: int = 400,
    largest: int = 900,
) -> int:
    """Write a small iSAID in its raw format.

    ``<split>/images/P0000.png`` has beside it ``P0000_instance_color_RGB.png`` with the classes'
    colours and ``P0000_instance_id_RGB.png`` with a colour for each object; the test split has
    images only. ``prepare_isaid.py`` cuts them into patches.

    Args:
        folder: where the splits go.
        seed: decides everything.
        train: pictures of the training split.
        val: likewise.
        test: likewise.
        smallest: shortest side of a picture in pixels.
        largest: longest side.

    Returns:
        The number of pictures written.

    Raises:
        UserError: a number out of range, or the folder cannot be written.
    """
    pictures = number_pictures(train, val, test)
    if not 32 <= smallest <= largest:
        raise UserError(
            f"sides of {smallest} to {largest} pixels; they need at least 32, in rising order"
        )
    for split, _, number in pictures:
        sides = np.random.default_rng([seed, number, 1]).integers(smallest, largest + 1, 2)
        image, labels, objects = make_scene(seed, number, int(sides[0]), int(sides[1]))
        place = Path(folder) / split / "images"
        write_image(place / f"P{number:04d}.png", image)
        if split != "test":
            colours = ISAID.colourise(labels)
            write_image(place / f"P{number:04d}_instance_color_RGB.png", colours)
            colours = instance_colours(objects)
            write_image(place / f"P{number:04d}_instance_id_RGB.png", colours)
    return len(pictures)
