"""Names of points overlap neither each other nor the points, and what finds no room is reported."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from moekd.report.figures import new_figure, styled
from moekd.report.labels import place_labels


def boxes(points, names):
    with styled():
        figure, (axis,) = new_figure(4)
        axis.plot(*zip(*points, strict=True), "o", ms=5)
        axis.margins(0.15)
        left = place_labels(figure, axis, points, names)
        figure.draw_without_rendering()
        texts = [child for child in axis.get_children() if isinstance(child, Annotation)]
        found = {text.get_text(): Text.get_window_extent(text) for text in texts}
        return found, left, axis.get_window_extent(), [axis.transData.transform(point) for point in points]


@pytest.mark.parametrize("seed", range(3))
def test_no_overlaps(seed):
    points = np.random.default_rng(seed).normal(size=(20, 2)).tolist()
    found, left, frame, centers = boxes(points, [f"arm number {i}" for i in range(20)])
    assert len(found) + len(left) == 20
    assert len(left) <= 3
    drawn = list(found.values())
    for index, box in enumerate(drawn):
        assert not any(box.overlaps(other) for other in drawn[index + 1 :])
        assert box.x0 >= frame.x0
        assert box.x1 <= frame.x1
        assert not any(box.contains(*center) for center in centers)


def test_names_without_room_are_returned():
    points = [(0.0, 0.0)] * 80
    found, left, *_ = boxes([*points, (1.0, 1.0)], [f"a name that is rather long {i}" for i in range(81)])
    assert left
    assert len(found) + len(left) == 81


def test_one_point():
    found, left, *_ = boxes([(0.3, 0.3)], ["only"])
    assert list(found) == ["only"]
    assert left == []
