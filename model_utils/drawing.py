"""Pictures for reports: image panels, colour maps, overlays, matches, curves.

Functions named after a picture return (H, W, 3) uint8 RGB; those taking ``path`` write a file
(PNG, PDF or SVG by its suffix) atomically. Matplotlib is imported only when needed, and never
through ``pyplot``: figures are objects of their own, so drawing is safe in threads and without
a display.
"""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model_utils.errors import UserError
from model_utils.files import PathLike, atomic_path, require_file

INLIER_COLOUR = (40, 220, 80)
OUTLIER_COLOUR = (230, 60, 50)
INVALID_COLOUR = (70, 70, 70)
_TITLE_HEIGHT = 22


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3). uint8 is taken as it is; any other type is
            stretched from its finite minimum and maximum to 0..255 (NaN becomes 0).
    """
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise UserError(f"an image of shape {pixels.shape} cannot be drawn; give (H,W) or (H,W,3)")
    if pixels.dtype != np.uint8:
        values = pixels.astype(np.float64)
        finite = np.isfinite(values)
        low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
        scaled = (values - low) * (255 / (high - low) if high > low else 0)
        pixels = np.where(finite, np.rint(scaled), 0).astype(np.uint8)
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()


def side_by_side(
    images: Sequence[np.ndarray],
    titles: Sequence[str] = (),
    columns: int = 0,
    height: int = 0,
    gap: int = 4,
) -> np.ndarray:
    """Images in a grid on white, each under its title.

    Args:
        images: see :func:`to_rgb`; sizes may differ.
        titles: one per image, or none (characters outside ASCII are shown as "?").
        columns: images per row; 0 = all in one row.
        height: scale every image to this many rows, keeping its shape; 0 = keep sizes.
        gap: white pixels between images.

    Raises:
        UserError: no image, or another number of titles.
    """
    if not len(images):
        raise UserError("there is no image to draw")
    if len(titles) not in (0, len(images)):
        raise UserError(f"{len(titles)} titles for {len(images)} images")
    panels = [_scaled(to_rgb(image), height) for image in images]
    if len(titles):
        panels = [_titled(panel, title) for panel, title in zip(panels, titles, strict=True)]
    columns = columns or len(panels)
    tall = max(panel.shape[0] for panel in panels)
    wide = max(panel.shape[1] for panel in panels) if len(panels) > columns else 0
    rows = []
    for start in range(0, len(panels), columns):
        row = [_padded(panel, tall, wide) for panel in panels[start : start + columns]]
        rows.append(_joined(row, gap, axis=1))
    width = max(row.shape[1] for row in rows)
    return _joined([_padded(row, row.shape[0], width) for row in rows], gap, axis=0)


def _scaled(image: np.ndarray, height: int) -> np.ndarray:
    if not height or height == image.shape[0]:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_NEAREST
    return cv2.resize(image, (width, height), interpolation=method)


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    text = title.encode("ascii", "replace").decode()
    scale = 0.5
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    # A long title shrinks down to a legible size, then widens the panel.
    if wide + 4 > image.shape[1]:
        scale = max(0.36, scale * (image.shape[1] - 4) / wide)
        (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    bar = np.full((_TITLE_HEIGHT, max(image.shape[1], wide + 4), 3), 255, np.uint8)
    cv2.putText(
        bar, text, (2, _TITLE_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1,
        cv2.LINE_AA,
    )  # fmt: skip
    return np.concatenate([bar, _padded(image, image.shape[0], bar.shape[1])])


def _padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    below, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    return np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=255)


def _joined(images: Sequence[np.ndarray], gap: int, axis: int) -> np.ndarray:
    shape = list(images[0].shape)
    shape[axis] = gap
    parts = [images[0]]
    for image in images[1:]:
        parts += [np.full(shape, 255, np.uint8), image]
    return np.concatenate(parts, axis=axis)


def colour_map(
    values: np.ndarray,
    name: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
) -> np.ndarray:
    """Numbers (H, W) as colours (H, W, 3) uint8.

    Args:
        values: any number type; NaN and infinite values become dark grey.
        name: a Matplotlib colour map, e.g. viridis, turbo, coolwarm.
        vmin: value of the first colour; default the smallest finite value.
        vmax: value of the last colour; default the largest finite value.

    Raises:
        UserError: an unknown map or another shape.
    """
    import matplotlib

    if name not in matplotlib.colormaps:
        raise UserError(f"there is no colour map {name!r}; try viridis, turbo, gray or coolwarm")
    if np.ndim(values) != 2:
        raise UserError(f"values of shape {np.shape(values)} cannot be coloured; give (H,W)")
    numbers = np.asarray(values, np.float64)
    finite = np.isfinite(numbers)
    low, high = (numbers[finite].min(), numbers[finite].max()) if finite.any() else (0.0, 1.0)
    low = low if vmin is None else vmin
    high = high if vmax is None else vmax
    share = np.where(finite, numbers - low, 0) / (high - low if high > low else 1.0)
    colours = matplotlib.colormaps[name](np.clip(share, 0, 1), bytes=True)[:, :, :3].copy()
    colours[~finite] = INVALID_COLOUR
    return colours


def overlay(
    image: np.ndarray, mask: np.ndarray, palette: np.ndarray | Sequence[Any], alpha: float = 0.5
) -> np.ndarray:
    """Class colours laid over an image.

    Args:
        image: see :func:`to_rgb`.
        mask: (H, W) integer class of each pixel; values outside the palette stay uncovered.
        palette: (C, 3) RGB 0..255.
        alpha: weight of the colours, 0 = image only, 1 = colours only.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: sizes differ or alpha lies outside [0, 1].
    """
    base = to_rgb(image)
    classes = np.asarray(mask)
    if classes.shape != base.shape[:2]:
        raise UserError(f"mask {classes.shape} and image {base.shape[:2]} differ in size")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}; it must lie in [0, 1]")
    colours = np.asarray(palette, np.float64).reshape(-1, 3)
    known = (classes >= 0) & (classes < len(colours))
    mixed = (1 - alpha) * base[known] + alpha * colours[classes[known].astype(np.int64)]
    base[known] = np.rint(mixed).astype(np.uint8)
    return base


def legend(
    names: Sequence[str],
    colours: np.ndarray | Sequence[Any],
    columns: int = 1,
    values: Sequence[str] = (),
) -> np.ndarray:
    """Squares in the classes' colours beside their names, column by column.

    Args:
        names: of the classes (characters outside ASCII are shown as "?").
        colours: (K, 3) RGB 0..255.
        columns: how many names side by side.
        values: a text behind each name, or none.

    Raises:
        UserError: no names, or another number of colours or values.
    """
    palette = np.asarray(colours, np.uint8).reshape(-1, 3)
    if not names or len(palette) != len(names) or len(values) not in (0, len(names)):
        raise UserError(
            f"{len(names)} names, {len(palette)} colours and {len(values)} values make no legend"
        )
    texts = [
        f"{name} {value}".strip().encode("ascii", "replace").decode()
        for name, value in zip(names, values or [""] * len(names), strict=True)
    ]
    height, font, scale = 22, cv2.FONT_HERSHEY_SIMPLEX, 0.45
    width = max(cv2.getTextSize(text, font, scale, 1)[0][0] for text in texts) + height + 16
    rows = -(-len(texts) // max(1, columns))
    picture = np.full((rows * height + 6, max(1, columns) * width, 3), 255, np.uint8)
    for place, (text, colour) in enumerate(zip(texts, palette, strict=True)):
        top, left = place % rows * height + 5, place // rows * width + 5
        square = (left, top), (left + height - 6, top + height - 6)
        cv2.rectangle(picture, *square, colour.tolist(), cv2.FILLED)
        cv2.rectangle(picture, *square, (90, 90, 90), 1)
        corner = (left + height + 2, top + height - 10)
        cv2.putText(picture, text, corner, font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def draw_matches(
    left: np.ndarray,
    right: np.ndarray,
    left_points: np.ndarray,
    right_points: np.ndarray,
    inliers: np.ndarray | None = None,
    most: int = 150,
    titles: Sequence[str] = (),
) -> np.ndarray:
    """Two images side by side with lines between matching points.

    Inliers are green, outliers red and drawn below; without ``inliers`` every line has its own
    hue.

    Args:
        left: see :func:`to_rgb`.
        right: see :func:`to_rgb`; may differ in size.
        left_points: (N, 2) x, y.
        right_points: (N, 2) x, y.
        inliers: (N,) bool.
        most: draw at most so many, evenly chosen among inliers and outliers alike.
        titles: two titles or none.
    """
    first = np.asarray(left_points, np.float64).reshape(-1, 2)
    second = np.asarray(right_points, np.float64).reshape(-1, 2)
    if first.shape != second.shape:
        raise UserError(f"{len(first)} left and {len(second)} right points cannot be matched")
    top = _TITLE_HEIGHT if len(titles) else 0
    gap = 6
    canvas = side_by_side([left, right], titles, gap=gap)
    panel = side_by_side([left], titles[:1], gap=gap)
    offset = np.array([panel.shape[1] + gap, top])
    chosen = np.unique(np.linspace(0, max(len(first) - 1, 0), most).astype(int))[: len(first)]
    if inliers is not None:
        good = np.asarray(inliers, bool)
        chosen = chosen[np.argsort(good[chosen], kind="stable")]
    scale = 16  # OpenCV draws at fractions of a pixel when given shifted integers
    for index in chosen:
        if inliers is None:
            hue = np.array([[[index * 47 % 180, 220, 240]]], np.uint8)
            colour = tuple(int(c) for c in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
        else:
            colour = INLIER_COLOUR if good[index] else OUTLIER_COLOUR
        start = np.rint((first[index] + (0, top)) * scale).astype(int)
        end = np.rint((second[index] + offset) * scale).astype(int)
        cv2.line(canvas, _point(start), _point(end), colour, 1, cv2.LINE_AA, shift=4)
        for point in (start, end):
            cv2.circle(canvas, _point(point), 3 * scale, colour, 1, cv2.LINE_AA, shift=4)
    return canvas


def _point(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def _figure(width: float = 6.4, height: float = 4.4) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: PathLike) -> Path:
    with atomic_path(path) as temporary:
        try:
            figure.savefig(temporary, dpi=120)
        except ValueError as error:
            raise UserError(f"cannot draw {path}: {error}; use .png, .pdf or .svg") from error
    return Path(path)


def roc_curve_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: PathLike,
    recall: float = 0.95,
    log: bool = False,
) -> Path:
    """Receiver operating characteristics in one figure, with the recall of FPR95 marked.

    Args:
        curves: name to (false-positive rates, true-positive rates), ascending.
        path: the picture.
        recall: where the dashed line lies; 0 = none.
        log: logarithmic false-positive axis, for very good networks.
    """
    figure = _figure(5.6, 4.8)
    axes = figure.add_subplot()
    for name, (false_rate, true_rate) in curves.items():
        axes.plot(false_rate, true_rate, label=name, linewidth=1.6)
    if recall:
        axes.axhline(recall, color="grey", linestyle="--", linewidth=0.8)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(right=1)
    else:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.6)
        axes.set_xlim(0, 1)
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate (recall)", ylim=(0, 1.005))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return _save(figure, path)


def read_rows(path: PathLike) -> list[dict[str, str]]:
    """Rows of a CSV file with a header line.

    Raises:
        UserError: the file is missing or empty.
    """
    require_file(path, "CSV file")
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise UserError(f"{path} holds no rows below its header")
    return rows


def training_curves(
    rows: PathLike | Iterable[Mapping[str, Any]],
    path: PathLike,
    columns: Sequence[str] = (),
    x: str = "epoch",
) -> Path:
    """Figures of a run over its course, one panel each.

    Args:
        rows: a CSV file with a header, or dicts; empty or non-numeric values leave gaps.
        path: the picture.
        columns: what to draw; default every column that holds a number, except ``x``.
        x: the column of the horizontal axis; row numbers where it is missing.

    Raises:
        UserError: nothing to draw, or an unknown column.
    """
    table: list[dict[str, Any]] = (
        [*read_rows(rows)] if isinstance(rows, str | os.PathLike) else [dict(row) for row in rows]
    )
    known = list(dict.fromkeys(key for row in table for key in row))
    for name in columns:
        if name not in known:
            raise UserError(f"there is no column {name!r}; the columns are {', '.join(known)}")
    values = {name: np.array([_number(row.get(name)) for row in table]) for name in known}
    chosen = list(columns) or [n for n in known if n != x and np.isfinite(values[n]).any()]
    if not chosen:
        raise UserError("there are no numbers to draw curves of")
    axis = values.get(x, np.arange(1, len(table) + 1, dtype=float))
    across = min(3, len(chosen))
    down = -(-len(chosen) // across)
    figure = _figure(3.8 * across, 2.7 * down)
    for number, name in enumerate(chosen, 1):
        axes = figure.add_subplot(down, across, number)
        present = np.isfinite(values[name]) & np.isfinite(axis)
        marker = "o" if present.sum() < 40 else ""
        axes.plot(axis[present], values[name][present], marker=marker, markersize=2.5)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(x if x in known else "row", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if np.all(axis[present] == np.rint(axis[present])):
            axes.xaxis.get_major_locator().set_params(integer=True)
    return _save(figure, path)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def histogram(
    groups: Mapping[str, np.ndarray],
    path: PathLike,
    label: str = "value",
    bins: int = 60,
    lines: Mapping[str, float] | None = None,
) -> Path:
    """Distributions of several groups over common bins, as shares of each group.

    Args:
        groups: name to values; values that are not finite are left out.
        path: the picture.
        label: of the horizontal axis.
        bins: number of bins between the smallest and the largest value.
        lines: name to position of vertical lines, e.g. thresholds.

    Raises:
        UserError: no finite value at all.
    """
    finite = {name: np.ravel(v)[np.isfinite(np.ravel(v))] for name, v in groups.items()}
    if not any(value.size for value in finite.values()):
        raise UserError("there are no finite values to draw a histogram of")
    edges = np.histogram_bin_edges(np.concatenate(list(finite.values())), bins)
    figure = _figure()
    axes = figure.add_subplot()
    for name, value in finite.items():
        weights = np.full(value.size, 1 / max(value.size, 1))
        axes.hist(value, edges, weights=weights, alpha=0.55, label=f"{name} ({value.size})")
    for name, position in (lines or {}).items():
        axes.axvline(position, color="black", linestyle="--", linewidth=0.9)
        axes.annotate(name, (position, 0.97), xycoords=("data", "axes fraction"), fontsize=8,
                      rotation=90, va="top", ha="right")  # fmt: skip
    axes.set(xlabel=label, ylabel="share")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, path)
