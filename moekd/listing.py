"""What configs can name."""

from __future__ import annotations

from typing import Any

from .config import describe, load_config, load_rooms, shipped_ablations, shipped_configs
from .errors import UnknownNameError, did_you_mean

#: Words that people use for groups of components.
ALIASES = {"routers": "gates", "teachers": "networks", "students": "networks", "models": "networks"}


def listing(what: str = "") -> list[tuple[str, str]]:
    """Return (name, summary) rows of a group of components, of the shipped configs, or of the published methods.

    Without a group, the groups themselves.

    Raises:
        UnknownNameError: no such group.
    """
    groups = sorted(load_rooms())
    if not what:
        rows = [(group, ", ".join(name for name, _ in describe(group))) for group in groups]
        shipped = [("configs", ", ".join(shipped_configs())), ("ablations", ", ".join(shipped_ablations()))]
        return [*shipped, ("methods", ", ".join(n for n, _ in methods())), *rows]
    if what == "configs":
        return [(name, str(_read(name).get("title", ""))) for name in shipped_configs()]
    if what == "ablations":
        return [(name, str(_read(f"ablations/{name}").get("title", ""))) for name in shipped_ablations()]
    if what == "methods":
        return methods()
    group = ALIASES.get(what, what)
    if group not in groups:
        known = ["configs", "ablations", "methods", *groups, *ALIASES]
        raise UnknownNameError(f"nothing to list under '{what}'{did_you_mean(what, known)}; known: {', '.join(known)}")
    return describe(group)


def methods() -> list[tuple[str, str]]:
    """Return the shipped configs that stand for a publication, with its title, arXiv id and year."""
    rows = []
    for name in shipped_configs():
        paper = _read(name).get("paper")
        if paper:
            rows.append((name, f"{paper['title']} (arXiv {paper.get('arxiv', '-')}, {paper.get('year', '-')})"))
    return rows


def _read(name: str) -> dict[str, Any]:
    return load_config(name)[0]
