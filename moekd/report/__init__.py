"""Tables, figures, the HTML pages of runs, comparisons and ablations, and the model card.

Names are imported on first use, so that the command line does not load matplotlib for its help.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ablation import print_ablation, write_ablation_report
    from .ablation_rows import read_ablation_csv
    from .card import model_card
    from .compare import compare_report
    from .page import write_report
    from .table import print_table, results_table

_HOMES = {
    "compare_report": ".compare",
    "model_card": ".card",
    "print_ablation": ".ablation",
    "print_table": ".table",
    "read_ablation_csv": ".ablation_rows",
    "results_table": ".table",
    "write_ablation_report": ".ablation",
    "write_report": ".page",
}
__all__ = [
    "compare_report",
    "model_card",
    "print_ablation",
    "print_table",
    "read_ablation_csv",
    "results_table",
    "write_ablation_report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'moekd.report' has no attribute {name!r}")
