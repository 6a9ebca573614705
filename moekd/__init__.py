"""moekd: multi-teacher, mixture-of-experts distillation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import distill, load_student
    from .inference import Predictor, embed, predict, search
    from .model import Model
    from .recipe import Recipe
    from .signals import Signals
    from .step import Step

_HOMES = {
    "Model": ".model",
    "Predictor": ".inference",
    "Recipe": ".recipe",
    "Signals": ".signals",
    "Step": ".step",
    "distill": ".api",
    "embed": ".inference",
    "load_student": ".api",
    "predict": ".inference",
    "search": ".inference",
}
__all__ = [
    "Model",
    "Predictor",
    "Recipe",
    "Signals",
    "Step",
    "distill",
    "embed",
    "load_student",
    "predict",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'moekd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
