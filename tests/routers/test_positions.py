"""Routing of tokens and pixels: known relations to routing of instances, masks, per-position oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moekd.errors import ConfigError, DataError, ModelError
from moekd.objectives import KD, RoutedObjective, kd_kl
from moekd.objectives.base import PairwiseObjective
from moekd.objectives.kd import kd_map
from moekd.routers import (
    BiasBalanced,
    CosineGate,
    Dense,
    Drop,
    ExpertChoice,
    Hash,
    LinearGate,
    MLPGate,
    NoisyTopK,
    PrototypeGate,
    Random,
    Router,
    Shapes,
    TopK,
    UniformGate,
)
from moekd.routers.gates import AgreementGate, EntropyGate, LabelConfidenceGate, OracleGate, StaticGate
from moekd.routers.positions import Rows, by_position, logits_by_row, mean_over_positions, values_by_row
from moekd.signals import PoolSignals
from moekd.step import Models, Step
from moekd.teachers import TeacherPool

from ..builders import CLASSES, WIDTH, make_batch, make_student, randomise, strangers
from .dense_steps import KINDS, ROWS, TEACHERS, loss_of, maps_of, step_of

COMBINES = ["select", "loss", "target"]


def test_rows_come_in_the_order_of_the_positions() -> None:
    values = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    rows = values_by_row(values)
    assert rows.shape == (8, 3)
    assert torch.equal(rows[1 * 4 + 1 * 2 + 0], values[1, :, 1, 0])
    assert torch.equal(by_position(rows, (2, 2)), values)
    logits = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(logits_by_row(logits)[1 * 5 + 2], logits[1, :, :, 2])
    assert torch.equal(logits_by_row(logits[..., 0]), logits[..., 0])


def test_mean_over_positions_that_count() -> None:
    losses = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]], [[5.0, 5.0], [5.0, 5.0]]])
    mask = torch.tensor([True, True, True, False, False, False, False, False])
    assert mean_over_positions(losses, mask).tolist() == [2.0, 0.0]
    assert mean_over_positions(losses[1:], None).tolist() == [5.0]


def test_the_map_of_the_loss_has_the_loss_as_its_mean() -> None:
    first, second = torch.randn(2, CLASSES, 4, 3), torch.randn(2, CLASSES, 4, 3)
    found = kd_map(first, second, 2.0)
    assert found.shape == (2, 4, 3)
    torch.testing.assert_close(found.mean(dim=(1, 2)), kd_kl(first, second, 2.0))
    torch.testing.assert_close(found[1, 2, 1], kd_kl(first[1:, :, 2, 1], second[1:, :, 2, 1], 2.0)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", ["select", "loss"])
def test_uniform_is_the_mean_over_teachers(kind: str, combine: str) -> None:
    step = step_of(kind, Router(UniformGate(TEACHERS, granularity=kind), Dense(), combine=combine, signal="none"))
    torch.testing.assert_close(loss_of(step), KD()(step)["kd"])
    assert step.routing.positions == KINDS[kind][2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("k", [1, 2, None])
def test_weights_that_are_the_same_everywhere_are_those_of_instances(kind: str, combine: str, k: int | None) -> None:
    losses = []
    for granularity in ("instance", kind):
        gate = StaticGate(TEACHERS, granularity=granularity)
        with torch.no_grad():
            gate.scores.copy_(torch.tensor([0.3, -1.0, 0.9]))
        router = Router(gate, Dense() if k is None else TopK(k), combine=combine, signal="none")
        losses.append(loss_of(step_of(kind, router)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_takes_the_best_teacher_of_every_position(kind: str) -> None:
    step = step_of(kind, Router(OracleGate(granularity=kind), TopK(1), combine="loss", signal="none"))
    logits, labels = step.teachers.logits, step.batch["label"]
    best = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat_interleave(TEACHERS, dim=0), reduction="none"
    ).unflatten(0, (ROWS, TEACHERS))
    chosen = best.argmin(dim=1)
    assert len(chosen.unique()) == TEACHERS
    assert torch.equal(step.routing.chosen[:, 0].view(chosen.shape), chosen)
    expected = maps_of(step).gather(1, chosen[:, None])[:, 0].flatten(1).mean(dim=1)
    torch.testing.assert_close(loss_of(step), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", ["loss", "target"])
def test_a_learned_gate_equals_a_loop_over_positions(kind: str, combine: str) -> None:
    torch.manual_seed(0)
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity=kind), 3)
    step = step_of(kind, Router(gate, TopK(2), combine=combine))
    loss = loss_of(step)
    student, teachers = step.student.require_logits("test").detach(), step.teachers.logits
    flat_BCN, flat_BTCN = student.flatten(2), teachers.flatten(3)
    for b in range(ROWS):
        terms = []
        for n in range(flat_BCN.shape[2]):
            x_C = flat_BCN[b, :, n]
            scores = gate.layer(x_C)
            best = scores.topk(2).indices
            weights = scores.softmax(0)[best] / scores.softmax(0)[best].sum()
            says = flat_BTCN[b, best, :, n]
            if combine == "loss":
                terms.append((weights * kd_kl(x_C.expand(2, -1), says)).sum())
            else:
                mixed = 4.0 * (weights[:, None] * (says / 4.0).softmax(1)).sum(0).log()
                terms.append(kd_kl(x_C[None], mixed[None])[0])
        torch.testing.assert_close(loss[b], torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    loss.sum().backward()
    assert gate.layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gate", [EntropyGate, AgreementGate, LabelConfidenceGate, OracleGate])
def test_formula_gates_are_those_of_the_positions_taken_as_instances(gate: type) -> None:
    step = step_of("pixel")
    found = gate(granularity="pixel")(step)
    pool = TeacherPool({})

    class Flat(Step):
        expert_signals = type(
            "Said", (), {"detach": lambda self: self, "logits": logits_by_row(step.teachers.logits)}
        )()

    flat = Flat({"label": step.batch["label"].flatten(), "id": torch.arange(192)}, Models(None, pool))  # type: ignore[arg-type]
    torch.testing.assert_close(found, gate()(flat))
    assert found.shape == (192, TEACHERS)


@pytest.mark.parametrize(
    "on", ["teacher_stats", "teacher_logits", "agreement", "logits_and_stats", "stats_and_agreement"]
)
def test_learned_gates_read_the_teachers_at_every_position(on: str) -> None:
    step = step_of("token")
    x = MLPGate(CLASSES, TEACHERS, on=on, granularity="token").input(step)
    assert x.shape[0] == ROWS * 5
    turned = {key: value.flip(1) if key == "words" else value for key, value in step.batch.items()}
    other = MLPGate(CLASSES, TEACHERS, on=on, granularity="token").input(step_of("token", batch=turned))
    torch.testing.assert_close(other.view(ROWS, 5, -1).flip(1), x.view(ROWS, 5, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "field", "width"), [("pixel", "image", 1), ("token", "words", 8)])
@pytest.mark.parametrize("gate", [LinearGate, CosineGate, PrototypeGate])
def test_features_and_inputs_of_every_position(kind: str, field: str, width: int, gate: type) -> None:
    step, tap = step_of(kind), KINDS[kind][3]
    feature = step.student.features[tap]
    shapes = Shapes({field: tuple(step.batch[field].shape[1:])}, {tap: tuple(feature.shape[1:])})
    reads = gate(CLASSES, TEACHERS, on="student_feature", source=tap, granularity=kind, shapes=shapes).input
    assert reads.width == WIDTH
    torch.testing.assert_close(reads(step), values_by_row(feature) if kind == "pixel" else feature.flatten(0, 1))
    reads = gate(CLASSES, TEACHERS, on="input_feature", source=field, granularity=kind, shapes=shapes).input
    assert reads.width == width
    assert reads(step).shape == (ROWS * len(step.batch["label"][0].flatten()), width)


def selections(teachers: int) -> dict[str, Any]:
    return {
        "random": Random(2),
        "hash": Hash(teachers, 2),
        "noisy": NoisyTopK(CLASSES, teachers, 2),
        "bias": BiasBalanced(teachers, 1, rate=0.1),
        "choice": ExpertChoice(1.0, normalise="topk"),
        "drop": Drop(0.5, normalise="all"),
    }


@pytest.mark.parametrize("name", selections(TEACHERS))
def test_positions_are_drawn_on_their_own(name: str) -> None:
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity="pixel"), 3)
    step = step_of("pixel", Router(gate, selections(TEACHERS)[name], combine="loss", signal="aux_only"))
    weights = step.routing.weights
    assert weights.shape == (192, TEACHERS)
    first = weights.view(ROWS, 64, TEACHERS)[0]
    assert (first != first[:1]).any() == (name != "hash")


@pytest.mark.parametrize("name", ["random", "hash", "noisy", "drop"])
def test_the_first_position_draws_what_the_instance_draws(name: str) -> None:
    logits = torch.randn(ROWS, TEACHERS)
    instance, dense = selections(TEACHERS)[name], selections(TEACHERS)[name]
    alone = instance(logits, logits.softmax(1), step_of("pixel"))
    many = logits.repeat_interleave(64, 0)
    together = dense(many, many.softmax(1), step_of("pixel"))
    assert torch.equal(together[1].view(ROWS, 64, -1)[:, 0], alone[1])


def test_a_gate_finds_the_specialist_of_every_pixel() -> None:
    """The first teacher is right where the image is positive, the second elsewhere; the image tells the gate."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(16, 1, 8, 8, generator=rng)
    label = torch.randint(0, CLASSES, (16, 8, 8), generator=rng)
    right = nn.functional.one_hot(label, CLASSES).movedim(-1, 1) * 4.0
    wrong = nn.functional.one_hot((label + 1) % CLASSES, CLASSES).movedim(-1, 1) * 4.0
    said = torch.stack([right.where(image > 0, wrong), wrong.where(image > 0, right)], dim=1)
    gate = LinearGate(CLASSES, 2, "input_feature", "image", 1, granularity="pixel")
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(60):
        step = step_of(
            "pixel", Router(gate, Dense(), combine="target", signal="task"), {"image": image, "label": label}
        )
        step.__dict__["teachers"] = step.__dict__["expert_signals"] = PoolSignals.from_logits(["t0", "t1"], said)
        step.models.router.experts = ["t0", "t1"]
        optimizer.zero_grad()
        step.routing.losses["router_task"].backward()
        optimizer.step()
    chosen = gate(step).argmax(1).view(16, 8, 8)
    assert ((chosen == 0) == (image[:, 0] > 0)).double().mean() > 0.95


def test_every_teacher_has_to_run() -> None:
    assert Router(UniformGate(TEACHERS, granularity="pixel"), Random(1), signal="none").needs_teachers
    assert not Router(UniformGate(TEACHERS), Random(1), signal="none").needs_teachers


def test_refused() -> None:
    with pytest.raises(ModelError, match=r"'pixel' needs student logits \[batch, classes, height, width\], found"):
        Rows("pixel").grid(step_of("token"), "the gate 'x'")
    flat = Step(make_batch(), Models(make_student(), strangers(2), Router(StaticGate(2, "token"), Dense())))
    with pytest.raises(ModelError, match=r"found \(6, 4\); use granularity 'instance'"):
        _ = flat.routing
    with pytest.raises(DataError, match=r"reads field 'maks', which the data set does not have"):
        Rows("pixel", "maks").grid(step_of("pixel"), "the gate 'x'")
    with pytest.raises(DataError, match=r"field 'image' \(3, 1, 8, 8\); expected \[batch, 8, 8\]"):
        Rows("pixel", "image").grid(step_of("pixel"), "the gate 'x'")
    with pytest.raises(ModelError, match=r"needs labels \[batch, 8, 8\], found labels \(3,\)"):
        OracleGate(granularity="pixel")(step_of("pixel", batch=make_batch(ROWS)))
    with pytest.raises(
        ConfigError, match=r"'pixel' reads a field of the batch \[D, height, width\], but 'left' is \[8\]"
    ):
        LinearGate(CLASSES, 2, "input_feature", "left", granularity="pixel", shapes=Shapes({"left": (8,)}))

    class Whole(PairwiseObjective):
        pass

    step = step_of("pixel", Router(UniformGate(TEACHERS, granularity="pixel"), Dense(), signal="none"))
    with pytest.raises(ModelError, match="Whole has one loss an instance"):
        RoutedObjective(Whole())(step)
