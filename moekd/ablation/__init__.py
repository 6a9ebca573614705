"""Ablations: arms x seeds over a base config, with shared stages run once, resumable, in parallel.

Heavy modules are imported on first use, so that a worker process starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plan import Plan, make_plan
    from .rows import read_plan, read_rows
    from .runner import Outcome, ablate
    from .shard import parse_shard
    from .spec import Ablation, Arm, load_ablation

_HOMES = {
    "Ablation": ".spec",
    "Arm": ".spec",
    "Outcome": ".runner",
    "Plan": ".plan",
    "ablate": ".runner",
    "load_ablation": ".spec",
    "make_plan": ".plan",
    "parse_shard": ".shard",
    "read_plan": ".rows",
    "read_rows": ".rows",
}
__all__ = [
    "Ablation",
    "Arm",
    "Outcome",
    "Plan",
    "ablate",
    "load_ablation",
    "make_plan",
    "parse_shard",
    "read_plan",
    "read_rows",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'moekd.ablation' has no attribute {name!r}")
