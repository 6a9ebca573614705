"""Fixtures for all tests: no network, one thread, the place of the large data packs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from pytest_socket import disable_socket


@pytest.fixture(autouse=True)
def _no_network():
    disable_socket(allow_unix_socket=True)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_log_levels():
    """Commands that run within a test set log levels for the rest of their process."""
    loggers = [logging.getLogger(), logging.getLogger("moekd")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


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
