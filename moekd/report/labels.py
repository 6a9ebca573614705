"""Names beside the points of a scatter plot, placed so that they overlap neither each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

PAD = 1.5
DISTANCES = (5, 7, 10, 13, 17, 24, 32, 42, 54, 68)
ANGLES = (0, 180, 45, 135, -45, -135, 90, -90, 20, 160, -20, -160, 68, 112, -68, -112)


def place_labels(
    figure: Figure, axis: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], size: float = 7.0
) -> list[str]:
    """Write each name near its point, with a thin line where it stands apart; return the names that found no room.

    Tries places at growing distances around each point, crowded points last. The limits of the axes must be final.
    """
    figure.draw_without_rendering()
    frame = axis.get_window_extent()
    centers = [tuple(axis.transData.transform(point)) for point in points]
    taken = [_around(x, y, 4.0) for x, y in centers]
    unit = figure.dpi / 72
    left = []
    for index in sorted(range(len(points)), key=lambda i: _crowd(i, centers)):
        text = axis.annotate(names[index], points[index], fontsize=size, color="#222222", annotation_clip=False)
        extent = text.get_window_extent()
        text.remove()
        x, y = centers[index]
        for dx, dy in _offsets():
            box = _box(x + dx * unit, y + dy * unit, extent.width, extent.height, dx)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                _write(axis, points[index], names[index], (dx, dy), size)
                break
        else:
            left.append(names[index])
    return left


def _write(axis: Axes, point: tuple[float, float], name: str, offset: tuple[float, float], size: float) -> None:
    apart = math.hypot(*offset) > 11
    line = {"arrowstyle": "-", "color": "#9A9A9A", "lw": 0.6, "shrinkA": 0, "shrinkB": 3} if apart else None
    text = axis.annotate(
        name,
        point,
        offset,
        textcoords="offset points",
        fontsize=size,
        color="#222222",
        ha=_side(offset[0]),
        va="center",
        arrowprops=line,
    )
    text.set_in_layout(False)


def _offsets() -> Iterator[tuple[float, float]]:
    for distance in DISTANCES:
        for angle in ANGLES:
            radians = math.radians(angle)
            yield distance * math.cos(radians), distance * math.sin(radians)


def _side(dx: float) -> str:
    return "center" if abs(dx) < 1 else "left" if dx > 0 else "right"


def _box(x: float, y: float, width: float, height: float, dx: float) -> Bbox:
    left = {"center": x - width / 2, "left": x, "right": x - width}[_side(dx)]
    return Bbox.from_bounds(left - PAD, y - height / 2 - PAD, width + 2 * PAD, height + 2 * PAD)


def _around(x: float, y: float, radius: float) -> Bbox:
    return Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)


def _crowd(index: int, centers: Sequence[tuple[float, float]]) -> float:
    """Return how close the neighbours are: large for crowded points."""
    x, y = centers[index]
    return sum(1 / (1 + math.hypot(x - u, y - v)) for i, (u, v) in enumerate(centers) if i != index)
