"""Routing: the weights as the loss sees them, and the rows of each teacher."""

from __future__ import annotations

import torch

from moekd.routers import Routing


def routing(combine: str, signal: str, chosen: torch.Tensor | None) -> Routing:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], requires_grad=True)
    probs = logits.softmax(1)
    return Routing(probs, chosen, logits, probs, combine=combine, signal=signal)  # type: ignore[arg-type]


def test_select_counts_every_chosen_teacher_the_same() -> None:
    applied = routing("select", "aux_only", torch.tensor([[0, 1], [1, 2]])).applied_weights
    assert torch.equal(applied, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]))
    assert not applied.requires_grad


def test_only_the_signal_kd_keeps_the_graph() -> None:
    for combine in ("loss", "target"):
        assert routing(combine, "kd", None).applied_weights.requires_grad
        for signal in ("aux_only", "task", "none"):
            decided = routing(combine, signal, None)
            assert not decided.applied_weights.requires_grad
            assert torch.equal(decided.applied_weights, decided.weights.detach())


def test_rows_by_name() -> None:
    rows = routing("select", "aux_only", torch.tensor([[0, 2], [2, 0], [2, 1]])).rows(["a", "b", "c", "d"])
    assert {name: r.tolist() for name, r in rows.items()} == {"a": [0, 1], "b": [2], "c": [0, 1, 2], "d": []}
