"""What `examples.json` shows: the map of the embeddings, what the student finds, what it takes for what."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .figures import PALETTE, Drawing, finish, new_figure, shorten
from .run import Run, mapping, number, numbers
from .table import count, percent

FILE = "examples.json"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHERS = "#BDBDBD"
COLORS = [*PALETTE[:6], "#6A51A3", "#8C6D31", "#222222"]


@dataclass(frozen=True)
class Tile:
    """A picture or text of an example.

    Attributes:
        text: what it is.
        uri: the picture as a data URI; empty for a text.
        state: "right", "wrong", or empty.
        place: its place in a list of answers, from 1; 0: none.
    """

    text: str
    uri: str = ""
    state: str = ""
    place: int = 0

    @property
    def alt(self) -> str:
        """Description of the picture, for those who can't see it."""
        words = [f"answer {self.place}" if self.place else "picture", self.state, f"shows {self.text}"]
        return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class Query:
    """What was asked, the rank of the best right answer, and the first answers."""

    asked: Tile
    rank: int
    found: list[Tile]


@dataclass(frozen=True)
class Confusion:
    """A class and what it was taken for: pictures of both, and a sentence."""

    label: str
    predicted: str
    words: str
    rows: list[Tile]
    like: list[Tile]


@dataclass(frozen=True)
class Examples:
    """Everything that is shown, or nothing; `map` is the raw map, see `draw_map`."""

    split: str = ""
    directions: tuple[tuple[str, list[Query]], ...] = ()
    confusions: tuple[Confusion, ...] = ()
    map: Mapping[str, Any] | None = None


def read_examples(run: Run) -> Examples:
    """Read the file of a run; one that is damaged becomes a note, one that is missing is nothing."""
    path = Path(run.path) / FILE
    if not path.is_file():
        return Examples()
    try:
        raw = mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        run.notes.append(f"{FILE} is damaged: {str(error).splitlines()[0]}.")
        return Examples()
    pictures = {str(key): uri for key, value in mapping(raw.get("pictures")).items() if (uri := _uri(value))}
    retrieval = mapping(raw.get("retrieval"))
    directions = []
    for key in sorted((str(name) for name in retrieval if "_to_" in str(name)), key=lambda n: not n.startswith("text")):
        queries = [_query(mapping(item), pictures) for item in _items(retrieval[key])]
        directions.append((str(key).replace("_", " "), queries))
    confused = tuple(_confusion(mapping(item), pictures) for item in _items(raw.get("confusions")))
    return Examples(str(raw.get("split") or ""), tuple(directions), confused, mapping(raw.get("map")) or None)


def draw_map(examples: Examples) -> list[Drawing]:
    """Return the map of the embeddings, coloured by group; empty where there is none."""
    if examples.map is None:
        return []
    points = [numbers(point) for point in _items(examples.map.get("points"))]
    groups = [int(number(value)) if number(value) >= 0 else -1 for value in _items(examples.map.get("group"))]
    names = [str(name) for name in _items(examples.map.get("groups"))][: len(COLORS)]
    usable = len(points) == len(groups) > 2 and all(len(p) == 2 and all(map(math.isfinite, p)) for p in points)
    if not usable:
        return []
    table, place = np.array(points, dtype=np.float64), np.array(groups)
    figure, (axis,) = new_figure(3.9 + 0.2 * math.ceil((len(names) + 1) / 2))
    rest = (place < 0) | (place >= len(names))
    axis.scatter(
        table[rest, 0], table[rest, 1], s=7, color=OTHERS, lw=0, label="others" if rest.any() else None, zorder=1
    )
    markers = "osD^vP*Xh"
    for index, name in enumerate(names):
        chosen = table[place == index]
        axis.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=10,
            color=COLORS[index],
            marker=markers[index],
            lw=0,
            alpha=0.75,
            label=shorten(name),
            zorder=2,
        )
    variance = [*numbers(examples.map.get("variance")), math.nan, math.nan]
    axis.set_xlabel(f"first component, {percent(variance[0], 0)} of the variance")
    axis.set_ylabel(f"second component, {percent(variance[1], 0)}")
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, markerscale=2, columnspacing=1.0, handletextpad=0.2)
    modality = str(examples.map.get("modality") or "image")
    shown = "group" if len(names) < 2 else f"{len(names)} groups"
    alt = (
        f"Map of {count(len(points))} {modality} embeddings of {examples.split} on their first two principal "
        f"components, coloured by {shown}: {', '.join(names)}."
    )
    caption = f"{modality} embeddings of {examples.split}, at length 1, on their first two principal components"
    total = number(examples.map.get("all_groups"))
    caption += f"; the {len(names)} largest of {count(total)} groups in colour" if total > len(names) else ""
    return [finish(figure, "embedding-map", "embeddings", alt, caption)]


def _query(item: Mapping[str, Any], pictures: Mapping[str, str]) -> Query:
    rank = number(item.get("rank"))
    answers = [mapping(answer) for answer in _items(item.get("found"))]
    found = [_tile(a, pictures, "right" if a.get("right") is True else "wrong", i + 1) for i, a in enumerate(answers)]
    return Query(_tile(item, pictures), 0 if math.isnan(rank) else int(rank), found)


def _confusion(item: Mapping[str, Any], pictures: Mapping[str, str]) -> Confusion:
    wrong, of = number(item.get("count")), number(item.get("of"))
    rows = [_tile(mapping(row), pictures, "wrong") for row in _items(item.get("rows"))]
    like = [_tile(mapping(row), pictures) for row in _items(item.get("like"))]
    return Confusion(str(item.get("label")), str(item.get("predicted")), f"{count(wrong)} of {count(of)}", rows, like)


def _tile(item: Mapping[str, Any], pictures: Mapping[str, str], state: str = "", place: int = 0) -> Tile:
    return Tile(str(item.get("text") or "no name"), pictures.get(str(item.get("picture")), ""), state, place)


def _uri(value: Any) -> str:
    """Return a PNG as a data URI; empty for anything else."""
    try:
        data = base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return f"data:image/png;base64,{value}" if data.startswith(SIGNATURE) else ""


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
