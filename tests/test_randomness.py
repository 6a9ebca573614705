"""Seeds derived by name, and generator states that come back exactly."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from moekd.errors import CheckpointError
from moekd.randomness import derived_seed, random_state, restore_random_state, seed_everything, seeded
from moekd.state_codec import flatten, unflatten


def draw() -> list[float]:
    """Draw from every global generator."""
    return [
        *(random.random() for _ in range(3)),
        random.gauss(0, 1),
        *np.random.rand(3).tolist(),
        float(np.random.randn()),
        *torch.rand(3).tolist(),
        *torch.randn(17).tolist(),
    ]


def test_derived_seeds_depend_on_seed_and_name() -> None:
    seeds = {derived_seed(seed, name) for seed in range(50) for name in ("student", "teachers.text", "router/main")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "student") == derived_seed(0, "student")


def test_seeded_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with seeded(7, "student"):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(7, "student"):
        assert torch.equal(torch.rand(2), inside)
    with seeded(7, "teacher"):
        assert not torch.equal(torch.rand(2), inside)


def test_seed_everything_differs_between_seeds_and_processes() -> None:
    draws = []
    for seed, rank in ((0, 0), (0, 0), (0, 1), (1, 0)):
        seed_everything(seed, rank)
        draws.append(draw())
    assert draws[0] == draws[1]
    assert len({tuple(d) for d in draws}) == 3


def test_states_come_back_exactly() -> None:
    """R10: all global generators."""
    seed_everything(3)
    random.gauss(0, 1)
    np.random.randn()
    state = random_state()
    expected = draw()
    seed_everything(9)
    restore_random_state(state)
    assert draw() == expected


def test_states_survive_a_checkpoint() -> None:
    """R10: all global generators, through files."""
    seed_everything(3)
    random.gauss(0, 1)
    stored = unflatten(*flatten(random_state()))
    expected = draw()
    seed_everything(9)
    restore_random_state(stored)
    assert draw() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_states_of_missing_gpus_are_refused() -> None:
    state = random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)]}
    with pytest.raises(CheckpointError, match="holds 1 GPU generators, here are 0"):
        restore_random_state(state)
