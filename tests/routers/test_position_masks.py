"""Routing of tokens and pixels: what does not count changes nothing, and labels train the gate where they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moekd.routers import (
    BiasBalanced,
    Dense,
    Drop,
    ExpertChoice,
    LinearGate,
    NoisyTopK,
    PrototypeGate,
    Router,
    TopK,
    UniformGate,
)
from moekd.routers.balances import Entropy, Importance, KLToUniform, Load, RoutingContrastive, SwitchBalance, ZLoss
from moekd.routers.gates import StaticGate
from moekd.routers.positions import logits_by_row

from ..builders import CLASSES, randomise
from .dense_steps import PIXELS, ROWS, TEACHERS, batch_of, loss_of, maps_of, step_of

COMBINES = ["select", "loss", "target"]


BALANCES = [KLToUniform(), Importance(), Load(), SwitchBalance(), ZLoss(), Entropy(), RoutingContrastive()]


@pytest.mark.parametrize("balance", BALANCES, ids=lambda balance: type(balance).__name__)
def test_void_positions_change_no_loss_of_the_router(balance: nn.Module) -> None:
    gate = randomise(PrototypeGate(CLASSES, TEACHERS, granularity="pixel"), 3, scale=3.0)
    void = batch_of("pixel", void=True)
    mask = (void["label"] >= 0).flatten()
    step = step_of("pixel", Router(gate, NoisyTopK(CLASSES, TEACHERS, 1), [balance], combine="target"), void)
    routing = step.routing
    assert torch.equal(routing.mask, mask)
    kept = type(routing)(
        *(value[mask] for value in (routing.weights, routing.chosen, routing.logits, routing.probs)),
        details={"load": routing.details["load"][mask]}
        | {"input": routing.details["input"][mask], "prototypes": routing.details["prototypes"]},
    )
    expected = balance.weight_at(step.progress) * balance(kept)
    torch.testing.assert_close(routing.losses["balance"], expected)
    torch.testing.assert_close(routing.load, kept.applied_weights.detach().sum(0))
    assert routing.load.sum().item() == pytest.approx(mask.sum().item())


@pytest.mark.parametrize("combine", COMBINES)
def test_void_positions_do_not_take_part_in_distillation(combine: str) -> None:
    void = batch_of("pixel", void=True)
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity="pixel"), 3)
    losses = [loss_of(step_of("pixel", Router(gate, TopK(1), combine=combine, signal="none"), b)) for b in (void, None)]
    assert not torch.equal(*losses)
    step = step_of("pixel", Router(gate, TopK(1), combine=combine, signal="none"), void)
    chosen = step.routing.chosen[:, 0].view(ROWS, *PIXELS)
    maps = maps_of(step).gather(1, chosen[:, None])[:, 0]
    known = void["label"] >= 0
    expected = torch.stack([maps[b][known[b]].mean() for b in range(ROWS)])
    torch.testing.assert_close(loss_of(step), expected, rtol=1e-4, atol=1e-5)


def test_instances_without_labels_count_everywhere_and_wholly_void_ones_nowhere() -> None:
    batch = batch_of("pixel", labelled=[True, False, True])
    batch["label"][1:] = -1
    step = step_of("pixel", Router(UniformGate(TEACHERS, granularity="pixel"), Dense(), signal="none"), batch)
    assert step.routing.mask.view(ROWS, -1).all(dim=1).tolist() == [True, True, False]
    loss = loss_of(step)
    assert loss[2] == 0
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in step.models.student.parameters())


def test_a_field_tells_which_tokens_are_padding() -> None:
    padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    batch = batch_of("token") | {"attention": padding}
    gate = StaticGate(TEACHERS, granularity="token", mask_field="attention")
    step = step_of("token", Router(gate, TopK(1), combine="loss", signal="aux_only"), batch)
    assert step.routing.load.tolist() == [8.0, 0.0, 0.0]
    first = maps_of(step)[:, 0]
    expected = (first * padding).sum(1) / padding.sum(1)
    torch.testing.assert_close(loss_of(step), expected)


def test_masked_rows_leave_loads_and_choices_of_others_alone() -> None:
    logits = torch.randn(6, TEACHERS)
    mask = torch.tensor([True, False, True, True, False, True])
    other = logits.where(mask[:, None], 9.0)
    step = step_of("pixel", batch={"id": torch.arange(6)})
    for make in (lambda: BiasBalanced(TEACHERS, 1, rate=0.1), lambda: ExpertChoice(1.0), lambda: Drop(normalise="all")):
        results = []
        for scores in (logits, other):
            selection = make()
            found = selection(scores, scores.softmax(1), step, mask)
            selection.after_step()
            results.append((found[0][mask], getattr(selection, "bias", mask)))
        torch.testing.assert_close(results[0], results[1])
    kept = ExpertChoice(1.0)(logits[mask], logits[mask].softmax(1), step)[0]
    assert torch.equal(ExpertChoice(1.0)(logits, logits.softmax(1), step, mask)[0][mask], kept)


@pytest.mark.parametrize("signal", ["task", "oracle"])
def test_labels_of_positions_train_the_gate(signal: str) -> None:
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity="pixel"), 3)
    step = step_of("pixel", Router(gate, Dense(), combine="target", signal=signal), batch_of("pixel", void=True))
    loss = step.routing.losses[f"router_{signal}"]
    known = (step.batch["label"] >= 0).flatten()
    says = logits_by_row(step.teachers.logits)[known].log_softmax(2)
    right = says.gather(2, step.batch["label"].flatten()[known][:, None, None].expand(-1, TEACHERS, 1))[..., 0]
    scores = gate(step)[known]
    expected = {
        "task": -(scores.log_softmax(1) + right).logsumexp(1).mean(),
        "oracle": nn.functional.cross_entropy(scores, right.argmax(1)),
    }
    torch.testing.assert_close(loss, expected[signal])
    loss.backward()
    assert gate.layer.weight.grad.abs().sum() > 0
