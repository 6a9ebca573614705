"""moekd: multi-teacher, mixture-of-experts distillation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import distill, load_student
    from .model import Model
    from .recipe import Recipe
    from .signals import Signals
    from .step import Step

_HOMES = {
    "Model": ".model",
    "Recipe": ".recipe",
    "Signals": ".signals",
    "Step": ".step",
    "distill": ".api",
    "load_student": ".api",
}
__all__ = ["Model", "Recipe", "Signals", "Step", "distill", "load_student"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'moekd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
