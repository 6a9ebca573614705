"""What the HTML pages are made of: cells, sortable tables, and the templates that are filled with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """One cell of a sortable table.

    Attributes:
        text: what is shown.
        value: the number it is sorted by; None: by its text.
        detail: small print below the text.
        mark: class of the style sheet, such as "up2" for a cell that is coloured as a gain.
    """

    text: str
    value: float | None = None
    detail: str = ""
    mark: str = ""

    @property
    def sort(self) -> str:
        """Value of the attribute that the page's script sorts by."""
        return "" if self.value is None or math.isnan(self.value) else repr(float(self.value))


@dataclass(frozen=True)
class PageTable:
    """A table of the page; `strong` are the indices of emphasised rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: frozenset[int] = frozenset()


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder; every value is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["style"] = (HERE / "report.css").read_text(encoding="utf-8")
    environment.globals["script"] = (HERE / "report.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(**values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for the leaves of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
