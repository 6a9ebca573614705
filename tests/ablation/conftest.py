"""The folder of an ablation, and nothing left running after a test."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of the tests that start a Ray cluster."""
    config.addinivalue_line("markers", "ray: starts a Ray cluster on this machine (needs the extra 'ray')")
