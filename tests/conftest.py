"""Fixtures for all tests: no network, one thread, the place of the large data packs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from pytest_socket import disable_socket


@pytest.fixture(autouse=True)
def _no_network():
    disable_socket(allow_unix_socket=True)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the large data packs; tests that need it are skipped without `MOEKD_DATA`."""
    root = os.environ.get("MOEKD_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("large data packs not at hand: set MOEKD_DATA to their folder")
    return Path(root)
