"""Teachers that are the same run once a batch, each with its own masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moekd.teachers import TeacherPool

from ..builders import TAPS, clones, make_batch, make_mask, make_pool, make_teacher, strangers


def twins(kind: str = "fusion", **options: Any) -> TeacherPool:
    """Return three teachers, of which the first and the last are the same, with masks of their own at the same taps."""
    seeds = {"first": 5, "other": 6, "second": 5}
    pool = TeacherPool({name: make_teacher(kind, name, seed) for name, seed in seeds.items()}, **options)
    for index, name in enumerate(seeds):
        for place, tap in enumerate(TAPS[kind]):
            pool.specialise(name, tap, make_mask(kind == "maps", seed=50 + 10 * index + place))
    return pool.requires_grad_(False)


def forwards(pool: TeacherPool, *arguments: Any, **options: Any) -> tuple[Any, int]:
    """Return what the pool gives and how many forwards that took."""
    before = pool.forwards
    return pool(*arguments, **options), pool.forwards - before


@pytest.mark.parametrize("sharing", ["auto", "prefix", "replicate"])
@pytest.mark.parametrize("kind", ["fusion", "maps"])
def test_masks_of_two_owners_on_one_forward(kind: str, sharing: str) -> None:
    pool, batch = twins(kind, sharing=sharing), make_batch(7)
    names = [*pool.names, *pool.specialised]
    alone, before = forwards(pool, batch, names, features=True)
    assert pool.merge_equal() == {"second": "first"}
    merged, after = forwards(pool, batch, names, features=True)
    assert (before, after) == (3, 2)
    assert merged.names == names
    for name in names:
        torch.testing.assert_close(merged[name].logits, alone[name].logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(merged["first/" + TAPS[kind][0]].logits, merged["second/" + TAPS[kind][0]].logits)


def test_a_network_that_takes_no_appended_rows() -> None:
    pool, batch = twins("late"), make_batch(5)
    alone = pool(batch)
    pool.merge_equal()
    merged, count = forwards(pool, batch)
    assert count == 2
    for name in alone:
        torch.testing.assert_close(merged[name].logits, alone[name].logits, rtol=1e-5, atol=1e-6)


def test_rows_of_both_owners_are_one_sub_batch() -> None:
    pool, batch = twins(), make_batch(9)
    full = pool(batch)
    pool.merge_equal()
    rows = {"first/join": torch.tensor([7, 2]), "second/join": torch.tensor([2, 4, 8]), "other/join": torch.tensor([0])}
    part, count = forwards(pool, batch, list(rows), rows)
    assert count == 2
    for name, mine in rows.items():
        torch.testing.assert_close(part[name].logits, full[name].logits[mine], rtol=1e-5, atol=1e-6)


def test_stacked_masks_keep_their_own_forward() -> None:
    pool, batch = twins(mask_stacking="cumulative"), make_batch()
    alone = pool(batch)
    pool.merge_equal()
    merged, count = forwards(pool, batch)
    assert count == 3
    assert all(torch.equal(merged[name].logits, alone[name].logits) for name in alone)
    assert forwards(pool, batch, pool.names)[1] == 2, "the plain teachers are shared all the same"


def test_copies_are_one_forward_and_strangers_are_not() -> None:
    pool = clones(4)
    pool.merge_equal()
    assert forwards(pool, make_batch())[1] == 1
    pool = strangers(3)
    assert pool.merge_equal() == {}
    assert forwards(pool, make_batch())[1] == 3


def test_a_teacher_that_trains_runs_itself() -> None:
    pool = clones(2)
    pool.merge_equal()
    pool.teacher("t1").thaw()
    signals, count = forwards(pool, make_batch())
    assert count == 2
    assert signals["t1"].logits.requires_grad
    assert pool.merge_equal() == {}


@pytest.mark.parametrize("change", ["weight", "inputs", "taps", "dtype", "structure"])
def test_one_difference_is_enough(change: str) -> None:
    first, second = make_teacher("vectors", "a", 5), make_teacher("vectors", "b", 5)
    assert second.same_as(first)
    if change == "weight":
        second.network.out.bias.data[0] += 1e-6
    elif change == "inputs":
        second.inputs = ("other",)
    elif change == "taps":
        second.taps = ("fc1",)
    elif change == "dtype":
        second.dtype = torch.bfloat16
    else:
        second.network.fc2 = torch.nn.Sequential(second.network.fc2)
    assert not second.same_as(first)
    assert make_pool("vectors", "maps").merge_equal() == {}
