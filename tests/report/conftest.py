"""Lets the tests of this folder import their helpers beside them; a browser for the tests of the pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browser import Browser, find_browser
from example_ablation import ABOUT, damaged_rows

from moekd.report import write_ablation_report


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium, shared by all tests; they are skipped where none is installed."""
    program = find_browser()
    if program is None:
        pytest.skip("no browser: install chromium (Debian: apt-get install chromium), or set MOEKD_BROWSER to one")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def ablation_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a large ablation in which many things went wrong."""
    return write_ablation_report(damaged_rows(), ABOUT, tmp_path_factory.mktemp("ablation") / "new" / "place")
