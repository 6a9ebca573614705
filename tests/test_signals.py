"""Signals and the signals of a pool."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ModelError
from moekd.signals import PoolSignals, Signals, full_precision


def full(rows: int = 3, offset: float = 0.0) -> Signals:
    values = torch.arange(rows, dtype=torch.float32)[:, None] + offset
    return Signals(values.repeat(1, 2), {"tap": values}, {"image": values * 2}, {"box": values * 3})


def test_map_reaches_every_tensor_and_leaves_the_original() -> None:
    before = full()
    after = before.map(lambda x: x + 1)
    assert torch.equal(after.logits, before.logits + 1)
    assert torch.equal(after.features["tap"], before.features["tap"] + 1)
    assert torch.equal(after.embeddings["image"], before.embeddings["image"] + 1)
    assert torch.equal(after.heads["box"], before.heads["box"] + 1)
    assert torch.equal(before.logits, full().logits)
    assert Signals().map(lambda x: x + 1) == Signals()


def test_detach_and_to() -> None:
    graph = full().map(lambda x: x.clone().requires_grad_() * 2)
    assert graph.logits.requires_grad
    cut = graph.detach()
    assert not any(t.requires_grad for t in (cut.logits, *cut.features.values(), *cut.heads.values()))
    assert graph.to(torch.float64).embeddings["image"].dtype == torch.float64


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(0, 2)])
def test_select(rows: torch.Tensor | slice) -> None:
    part = full().select(rows)
    assert torch.equal(part.logits, full().logits[rows])
    assert torch.equal(part.heads["box"], full().heads["box"][rows])


def test_cat_undoes_select() -> None:
    whole = Signals.cat([full().select(slice(0, 1)), full().select(slice(1, 3))])
    assert torch.equal(whole.logits, full().logits)
    assert torch.equal(whole.features["tap"], full().features["tap"])
    bare = Signals(features={"tap": torch.zeros(1, 2)})
    assert Signals.cat([bare, bare]).logits is None


def test_who_needs_what_is_named() -> None:
    with pytest.raises(ModelError, match="kd needs logits, but the model gives none"):
        Signals().require_logits("kd")
    with pytest.raises(ModelError, match="match needs tap 'tpa', which the model does not have; did you mean 'tap'"):
        full().feature("tpa", "match")
    with pytest.raises(ModelError, match="match needs tap 'x', which the model does not have; taps: none"):
        Signals().feature("x", "match")


def test_pool_signals_keep_the_order_and_stack() -> None:
    pool = PoolSignals({"b": full(offset=1), "a": full(offset=2)})
    assert pool.names == list(pool) == ["b", "a"]
    assert pool.logits.shape == (3, 2, 2)
    assert torch.equal(pool.logits[:, 1], full(offset=2).logits)
    assert pool.logits is pool.logits
    assert ("a" in pool, "c" in pool, len(pool)) == (True, False, 2)
    assert torch.equal(pool.select(torch.tensor([1])).logits, pool.logits[1:2])


def test_pool_signals_from_stacked_logits() -> None:
    logits = torch.randn(4, 2, 3)
    pool = PoolSignals.from_logits(["x", "y"], logits)
    assert pool.logits is logits
    assert torch.equal(pool["y"].logits, logits[:, 1])


def test_pool_signals_detach() -> None:
    pool = PoolSignals.from_logits(["x"], torch.randn(4, 1, 3, requires_grad=True) * 2)
    cut = pool.detach()
    assert not cut.logits.requires_grad
    assert not cut["x"].logits.requires_grad
    fresh = PoolSignals({"x": Signals(torch.randn(4, 3, requires_grad=True) * 2)})
    assert not fresh.detach().logits.requires_grad


def test_missing_variants_and_logits_are_named() -> None:
    with pytest.raises(ModelError, match="no teacher variant 'c'; variants: a, b"):
        _ = PoolSignals({"a": full(), "b": full()})["c"]
    with pytest.raises(ModelError, match="teacher 'b' needs logits"):
        _ = PoolSignals({"a": full(), "b": Signals()}).logits


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_full_precision(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert full_precision(torch.ones(2, dtype=dtype)).dtype == expected
