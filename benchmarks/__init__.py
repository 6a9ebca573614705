"""Benchmark suites, the small data shipped with them, and committed result tables."""

from .suite import SUITES, Suite, read_results, run_suite
from .summary import summarise, write_summary

__all__ = ["SUITES", "Suite", "read_results", "run_suite", "summarise", "write_summary"]
