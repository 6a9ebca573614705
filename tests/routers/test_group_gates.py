"""Gates of tasks and modalities, balance by group: the sheets' values and invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moekd.errors import ConfigError, DataError, ModelError
from moekd.routers import (
    BiasBalanced,
    Dense,
    ExpertChoice,
    LinearGate,
    NoisyTopK,
    Router,
    Routing,
    Selection,
    TopK,
)
from moekd.routers.balances import SwitchBalance
from moekd.routers.gates import ModalityGate, TaskGate
from moekd.step import Step

from ..builders import CLASSES, make_batch, make_step, randomise, strangers

MODALITIES = torch.tensor([0, 1, 0, 1, 1, 0])


def batch_of(groups: Tensor = MODALITIES, field: str = "modality") -> dict[str, Any]:
    return make_batch(len(groups)) | {field: groups}


def moiie(**options: Any) -> ModalityGate:
    """Return the shipped layout: teacher 0 for modality 0, 1 and 2 shared, 3 for modality 1."""
    gate = ModalityGate(CLASSES, 4, [[0], [3]], [1, 2], **options)
    randomise(gate, 3)
    return gate


def step_of(gate: Any, selection: Selection | None = None, batch: Any = None, **options: Any) -> Step:
    router = Router(gate, selection or TopK(2), combine="loss", **options)
    return make_step(strangers(4), router, batch=batch or batch_of())


def routing_of(probs: Tensor, chosen: Tensor, groups: Tensor, admitted: Tensor, **options: Any) -> Routing:
    details = {"groups": groups, "admitted": admitted}
    return Routing(probs, chosen, probs.log(), probs, details=details, **options)


@pytest.mark.parametrize(
    "selection", [TopK(2), Dense(), Dense(3.0), NoisyTopK(CLASSES, 4, 2), BiasBalanced(4, 2), ExpertChoice(2.0, "topk")]
)
def test_another_modalitys_teacher_has_no_weight_and_gets_no_gradient(selection: Selection) -> None:
    step = step_of(moiie(), selection)
    weights = step.routing.weights
    assert torch.equal(weights[MODALITIES == 0, 3], torch.zeros(3))
    assert torch.equal(weights[MODALITIES == 1, 0], torch.zeros(3))
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    (weights * torch.arange(4.0))[MODALITIES == 0].sum().backward()
    gradient = step.models.router.gate.layer.weight.grad.unflatten(0, (2, 4))
    assert gradient[0, :3].abs().sum() > 0
    assert torch.equal(gradient[1], torch.zeros_like(gradient[1]))
    assert torch.equal(gradient[0, 3], torch.zeros_like(gradient[0, 3]))


def test_scores_are_those_of_the_rows_own_layer() -> None:
    gate = moiie()
    step = step_of(gate)
    scores = gate(step).logits
    for row, modality in enumerate(MODALITIES.tolist()):
        own = gate.layer.weight.unflatten(0, (2, 4))[modality] @ step.student.logits[row].detach()
        admitted = [0, 1, 2] if modality == 0 else [1, 2, 3]
        torch.testing.assert_close(scores[row, admitted], own[admitted])


def test_swapping_the_modalities_swaps_the_layers() -> None:
    gate, swapped = (ModalityGate(CLASSES, 3, [[0, 1], [1, 2]]) for _ in range(2))
    swapped.load_state_dict(gate.state_dict())
    with torch.no_grad():
        swapped.layer.weight.copy_(gate.layer.weight.unflatten(0, (2, 3)).flip(0).flatten(0, 1))
    swapped.admitted = gate.admitted.flip(0)
    other = batch_of(1 - MODALITIES)
    torch.testing.assert_close(
        make_step(strangers(3), Router(swapped, TopK(1)), batch=other).routing.weights,
        make_step(strangers(3), Router(gate, TopK(1)), batch=batch_of()).routing.weights,
    )


def test_only_shared_teachers_and_tied_layers_are_one_gate_for_all() -> None:
    gate, plain = ModalityGate(CLASSES, 4, [[], []], range(4)), LinearGate(CLASSES, 4)
    with torch.no_grad():
        gate.layer.weight.copy_(plain.layer.weight.repeat(2, 1))
        plain.layer.bias.zero_()
    torch.testing.assert_close(step_of(gate).routing.weights, step_of(plain).routing.weights)


def test_without_shared_teachers_each_modality_has_its_own() -> None:
    gate = ModalityGate(CLASSES, 4, [[0, 1], [2, 3]])
    chosen = step_of(gate).routing.chosen
    assert set(chosen[MODALITIES == 0].flatten().tolist()) == {0, 1}
    assert set(chosen[MODALITIES == 1].flatten().tolist()) == {2, 3}


def test_teachers_by_name() -> None:
    names = ["image", "both", "audio"]
    named = ModalityGate(CLASSES, 3, [["image"], ["audio"]], ["both"], experts=names)
    assert torch.equal(named.admitted, ModalityGate(CLASSES, 3, [[0], [2]], [1]).admitted)
    with pytest.raises(ConfigError, match="no teacher 'imgae'; did you mean 'image'"):
        ModalityGate(CLASSES, 3, [["imgae"], ["audio"]], experts=names)


@pytest.mark.parametrize(
    ("groups", "shared", "message"),
    [
        ([], [0], "found none"),
        ([[0], []], [], r"groups\[1\]: the modality has no teacher"),
        ([[0], [1]], [], r"teachers \[2\] are in no group"),
        ([[0], [3]], [1, 2], "no teacher 3; there are 3"),
        ([[0], [-1]], [1, 2], "no teacher -1"),
    ],
)
def test_wrong_groups_are_refused(groups: list, shared: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModalityGate(CLASSES, 3, groups, shared)


def test_more_choices_than_admissible_teachers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.k: 4 teachers chosen, but ModalityGate admits 3"):
        Router(moiie(), TopK(4), combine="loss")


def test_wrong_fields_are_refused() -> None:
    with pytest.raises(DataError, match="reads field 'modality', which the data set does not have"):
        _ = step_of(moiie(), batch=make_batch()).routing
    with pytest.raises(DataError, match="field 'modality' holds 2; expected numbers below 2"):
        _ = step_of(moiie(), batch=batch_of(torch.tensor([0, 1, 2]))).routing


@pytest.mark.parametrize("gate", [moiie(), randomise(TaskGate(CLASSES, 4, 2, field="modality"), 0)])
def test_rows_without_a_group_have_all_teachers_equally(gate: Any) -> None:
    step = step_of(gate, Dense(), batch=batch_of(torch.tensor([0, -1, 1])))
    torch.testing.assert_close(step.routing.weights[1], torch.full((4,), 0.25))


def test_tokens_may_have_modalities_of_their_own() -> None:
    groups = torch.tensor([[0, 1, -1], [1, 1, 0]])
    gate = moiie(granularity="token", on="input_feature", source="words", width=5)
    step = step_of(gate, batch=make_batch(2) | {"modality": groups, "words": torch.randn(2, 3, 5)})
    step.__dict__["student"] = type(step.student)(torch.randn(2, CLASSES, 3))
    scores = gate(step).logits
    assert scores.shape == (6, 4)
    assert (scores < -1e8).nonzero().tolist() == [[0, 3], [1, 0], [3, 0], [4, 0], [5, 3]]


def test_task_gate_starts_equal_and_keeps_tasks_apart() -> None:
    gate = TaskGate(CLASSES, 4, tasks=2)
    step = step_of(gate, Dense(), batch=batch_of(field="task"))
    torch.testing.assert_close(step.routing.weights, torch.full((6, 4), 0.25))
    (step.routing.logits[MODALITIES == 1] * torch.arange(4.0)).sum().backward()
    gradient = gate.layer.weight.grad.unflatten(0, (2, 4))
    assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
    assert gradient[1].abs().sum() > 0


# -- balance by group ------------------------------------------------------------------------------------------------

ADMITTED = torch.tensor([[True, True, True, False], [False, True, True, True]])
PAIRS = torch.tensor([[0, 1], [1, 2], [2, 0]])


def test_balance_by_group_known_values() -> None:
    """One modality of three admissible teachers, k = 2: 2 where all is even, 3 where two have everything."""
    even = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]]).expand(3, -1)
    balance, groups = SwitchBalance(per_group=True), torch.zeros(3, dtype=torch.int64)
    assert balance(routing_of(even, PAIRS, groups, ADMITTED)).item() == pytest.approx(2.0)
    unfair = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(3, -1)
    same = torch.tensor([[0, 1]]).expand(3, -1)
    assert balance(routing_of(unfair, same, groups, ADMITTED)).item() == pytest.approx(3.0)


def test_balances_of_groups_add_up_and_absent_groups_cost_nothing() -> None:
    even = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]] * 3 + [[0.0, 0.5, 0.5, 0.0]] * 3)
    chosen = torch.cat([PAIRS, torch.tensor([[1, 2]] * 3)])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    balance = SwitchBalance(per_group=True)
    assert balance(routing_of(even, chosen, groups, ADMITTED)).item() == pytest.approx(5.0)
    masked = routing_of(even, chosen, groups, ADMITTED, mask=groups == 0)
    assert balance(masked).item() == pytest.approx(2.0)
    assert balance(routing_of(even, chosen, -torch.ones_like(groups), ADMITTED)).item() == 0
    with pytest.raises(ModelError, match="per_group needs the gate 'modality' or 'task'"):
        balance(Routing(even, chosen, even, even))
