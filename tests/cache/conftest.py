"""Small data sets and networks that the runs of these tests name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moekd.networks import NETWORKS

from ..engine.conftest import _tiny_kinds  # noqa: F401
from .runs import Towers


@pytest.fixture(autouse=True, scope="package")
def _towers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "cached_towers", Towers)
        yield
