"""Complete routers for every registered gate and selection: the arms of a comparison of all of them."""

from __future__ import annotations

from typing import Any

from .gates import GATES
from .selections import SELECTIONS


def example_routers(num_teachers: int) -> dict[str, dict[str, Any]]:
    """Return a complete `router` section of a config for every registered gate and selection, by name.

    A section is called after its gate or selection; where one has several (`single` has one a teacher), a number or
    word follows: "single_0", "single_1". Each class says itself in which router it makes sense: `Gate.examples`,
    `Selection.examples`. Selections never choose all teachers where they could choose fewer.

    Args:
        num_teachers: teachers or masked variants that the routers choose among.
    """
    arms: dict[str, dict[str, Any]] = {}
    for part, registry in (("gate", GATES), ("selection", SELECTIONS)):
        for kind in registry.names():
            for suffix, rest in registry.get(kind).examples(num_teachers).items():
                name = kind if kind not in arms else f"{kind}_{part}"
                section = rest | {part: {"kind": kind} | rest.get(part, {})}
                arms[f"{name}_{suffix}" if suffix else name] = _in_order(section, num_teachers)
    return arms


def _in_order(section: dict[str, Any], num_teachers: int) -> dict[str, Any]:
    """Return the section with the gate first, and without choosing all teachers."""
    selection = dict(section["selection"])
    options = SELECTIONS.parameters(selection["kind"])
    if "k" in options:
        selection["k"] = min(selection.get("k", options["k"].default), max(1, num_teachers - 1))
    return {"gate": dict(section["gate"]), "selection": selection} | {
        key: value for key, value in section.items() if key not in ("gate", "selection")
    }
