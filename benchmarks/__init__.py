"""Benchmark suites, the small data shipped with them, and committed result tables."""
