"""The common look of all figures, and the way from a matplotlib figure to a file and a page.

Figures are drawn narrow (4.6 inches), so that they stay readable at the width of a phone. Colours are those of Okabe
and Ito (Color Universal Design, 2008), which people with any kind of colour blindness can tell apart.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..atomic import write_bytes

BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#8A8A8A",
)
PALETTE = [BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY]
WIDTH = 4.6
DPI = 200
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#777777",
    "axes.labelcolor": "#222222",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        slug: file name without its ending.
        section: part of the page that shows it.
        alt: what the figure says, for those who can't see it.
        caption: what the figure shows.
        png: the file.
        width: natural width in CSS pixels.
    """

    slug: str
    section: str
    alt: str
    caption: str
    png: bytes
    width: int

    @property
    def uri(self) -> str:
        """The figure as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def new_figure(
    height: float, rows: int = 1, ratios: Sequence[float] = (1,), **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure of the common width and `height` inches with `rows` axes below each other."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, height_ratios=list(ratios), **options)
    return figure, list(axes[:, 0])


def finish(figure: Figure, slug: str, section: str, alt: str, caption: str) -> Drawing:
    """Render a figure to PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return Drawing(slug, section, alt, caption, buffer.getvalue(), round(figure.get_figwidth() * 96))


def styled() -> Any:
    """Return the context in which figures have to be drawn and rendered; nothing outside of it changes."""
    return matplotlib.rc_context(rc=STYLE)


def shorten(text: str, limit: int = 24) -> str:
    """Cut a name in the middle so that it fits beside an axis.

    A leading underscore is padded, because legends leave out names that start with one.
    """
    text = " ".join(str(text).split()) or "(no name)"
    if len(text) > limit:
        head = (limit - 3) * 2 // 3
        text = text[:head] + "..." + text[len(text) - (limit - 3 - head) :]
    return " " + text if text.startswith("_") else text


def slug(*parts: str) -> str:
    """Return a file name made of lower-case words."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") or "x" for part in parts)


def save(drawings: Sequence[Drawing], folder: Path) -> None:
    """Write the figures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        write_bytes(folder / f"{drawing.slug}.png", drawing.png)
