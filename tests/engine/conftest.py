"""The tiny kinds are known within the tests of the engine, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .tiny import KINDS, Finished, full, train


@pytest.fixture(autouse=True, scope="module")
def _tiny_kinds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, cls in KINDS:
            patch.setitem(registry._members, name, cls)
        yield


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return the full run from its start to its end."""
    return train(full(), Path(tmp_path_factory.mktemp("undisturbed")))
