"""Random numbers without a state, against SplitMix64 in Python integers, and their distribution."""

from __future__ import annotations

import torch

from moekd.transforms.draws import hashes, uniforms

FULL = 2**64 - 1
STEP = 0x9E3779B97F4A7C15


def mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & FULL
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & FULL
    return state ^ (state >> 31)


def test_mixing_is_that_of_splitmix64():
    """First outputs for seed 1234567, as published with the generator (the state starts at the seed)."""
    state, found = 1234567, []
    for _ in range(3):
        state = (state + STEP) & FULL
        found.append(mix(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_hashes_against_python_integers():
    ids, views = torch.tensor([0, 1, 7, 2**40 + 3, -1]), torch.tensor([0, 5, 0, 2**33, 2])
    expected = []
    for sample, view in zip(ids.tolist(), views.tolist(), strict=True):
        state = 42
        for number in (sample, view):
            state = mix(((state + STEP) & FULL) ^ mix((number + STEP) & FULL))
        expected.append(state & (2**63 - 1))
    assert hashes(42, ids, views).tolist() == expected


def test_numbers_are_uniform_and_unrelated():
    ids, views = torch.arange(200).repeat_interleave(50), torch.arange(50).repeat(200)
    drawn = uniforms(0, ids, views, 4)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = torch.histc(drawn, 16, 0, 1)
    assert ((counts - 2500) ** 2 / 2500).sum() < 37.7  # chi square, 15 degrees of freedom, p = 0.001
    assert torch.corrcoef(drawn.T).sub(torch.eye(4)).abs().max() < 0.04
    table = drawn[:, 0].view(200, 50)
    for near, far in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
        assert torch.corrcoef(torch.stack([near.flatten(), far.flatten()]))[0, 1].abs() < 0.04


def test_each_number_depends_on_seed_sample_view_and_place_alone():
    ids, views = torch.tensor([3, 9, 4]), torch.tensor([1, 1, 2])
    whole = uniforms(5, ids, views, 6)
    assert torch.equal(uniforms(5, ids[[2, 0]], views[[2, 0]], 3), whole[[2, 0], :3])
    assert not torch.equal(uniforms(6, ids, views, 6), whole)
    assert uniforms(5, ids, views + 1, 6).ne(whole).all()
    assert whole.unique().numel() == 18
