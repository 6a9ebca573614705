"""Benchmark suites, the small data shipped with them, and committed result tables."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cmkd import Request, count_runs, run_cmkd
    from .cmkd_report import write_cmkd
    from .cmkd_results import read_cmkd, read_published
    from .cmkd_suite import load_suite
    from .methods import methods_suite, read_methods, write_methods
    from .performance import run_performance
    from .reliability import run_reliability
    from .suite import MST_DISTILL, Suite, read_results, run_suite
    from .summary import summarise, write_summary

_HOMES = {
    "MST_DISTILL": ".suite",
    "Request": ".cmkd",
    "Suite": ".suite",
    "count_runs": ".cmkd",
    "load_suite": ".cmkd_suite",
    "methods_suite": ".methods",
    "read_cmkd": ".cmkd_results",
    "read_methods": ".methods",
    "read_published": ".cmkd_results",
    "read_results": ".suite",
    "run_cmkd": ".cmkd",
    "run_performance": ".performance",
    "run_reliability": ".reliability",
    "run_suite": ".suite",
    "summarise": ".summary",
    "write_cmkd": ".cmkd_report",
    "write_methods": ".methods",
    "write_summary": ".summary",
}
__all__ = [
    "MST_DISTILL",
    "Request",
    "Suite",
    "count_runs",
    "load_suite",
    "methods_suite",
    "read_cmkd",
    "read_methods",
    "read_published",
    "read_results",
    "run_cmkd",
    "run_performance",
    "run_reliability",
    "run_suite",
    "summarise",
    "write_cmkd",
    "write_methods",
    "write_summary",
]


def __getattr__(name: str) -> Any:
    """Import a module when something of it is used; the commands start faster that way."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'moekd.benchmarks' has no attribute {name!r}")
