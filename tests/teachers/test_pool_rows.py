"""Teachers that see only the rows of their variants say the same as on the whole batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ..builders import make_batch, make_pool

POOLS = {sharing: make_pool("fusion", "vectors", sharing=sharing) for sharing in ("auto", "prefix", "replicate")}


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(POOLS)),
    st.lists(st.lists(st.integers(0, 6), max_size=7, unique=True), min_size=4, max_size=4),
)
def test_rows_equal_the_full_run(sharing: str, chosen: list[list[int]]) -> None:
    pool, batch = POOLS[sharing], make_batch(7)
    rows = {name: torch.tensor(r, dtype=torch.int64) for name, r in zip(pool.experts, chosen, strict=True)}
    full, part = pool(batch), pool(batch, rows=rows)
    assert part.names == [name for name in pool.experts if len(rows[name])]
    for name, signals in part.items():
        torch.testing.assert_close(signals.logits, full[name].logits[rows[name]], rtol=1e-5, atol=1e-6)


def test_each_teacher_sees_only_the_union_of_its_rows() -> None:
    pool, seen = make_pool("fusion", "vectors", sharing="prefix"), []
    for name in pool.names:
        pool.teacher(name).network.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, args[0])))
    batch = make_batch(6)
    rows = {"fusion/join": torch.tensor([4, 1]), "fusion/head.first": torch.tensor([1]), "vectors/fc1": torch.arange(0)}
    before = pool.forwards
    pool(batch, rows=rows)
    assert pool.forwards - before == 1
    assert [name for name, _ in seen] == ["fusion"]
    assert torch.equal(seen[0][1], batch["left"][[1, 4]])


def test_variants_that_nobody_asked_for_do_not_run() -> None:
    pool = make_pool("fusion", "vectors")
    signals = pool(make_batch(), ["vectors/fc2"], rows={name: torch.tensor([0]) for name in pool.experts})
    assert signals.names == ["vectors/fc2"]
    assert pool.forwards == 1


def test_cumulative_masks_on_rows() -> None:
    pool, batch = make_pool("vectors", mask_stacking="cumulative"), make_batch()
    full, rows = pool(batch), torch.tensor([5, 0])
    part = pool(batch, rows={"vectors/fc2": rows})
    torch.testing.assert_close(part["vectors/fc2"].logits, full["vectors/fc2"].logits[rows])


@pytest.mark.parametrize("features", [False, True])
def test_features_on_rows(features: bool) -> None:
    pool, batch = make_pool("vectors"), make_batch()
    pool.teacher("vectors").taps = ("fc1",)
    signals = pool(batch, rows={"vectors/fc1": torch.tensor([3, 2])}, features=features)["vectors/fc1"]
    if not features:
        assert signals.features == {}
    else:
        full = pool(batch, features=True)["vectors/fc1"].features["fc1"]
        torch.testing.assert_close(signals.features["fc1"], full[[3, 2]])
