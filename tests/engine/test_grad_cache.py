"""Gradient caching: small forwards, losses on the whole batch, the gradients of the plain step.

Shapes: B batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.model import Model
from moekd.objectives import Contrastive, ContrastiveKD, InteractiveContrastive, Objective, RoutedObjective
from moekd.routers import Dense, InstanceGate, Router, TopK
from moekd.schedules import Progress
from moekd.signals import Signals
from moekd.stages.grad_cache import in_chunks, refuse_batch_norm
from moekd.stages.training_step import TrainingStep, WeightedObjective
from moekd.step import Models
from moekd.teachers import Teacher, TeacherPool

from ..builders import Maps, make_batch, make_pool, make_student, randomise
from ..objectives.towers import TwoTowers, make_towers, tower_pool, towers
from .test_distributed import in_two, loaded
from .tiny import MLP, recipe_of, simple, train

ROWS = 11


class Classifying(TwoTowers):
    """Two towers and class logits, for gates that read them; dropout in the image's tower."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.classes, self.dropout = nn.Linear(6, 3), nn.Dropout(dropout)
        self.seen: list[int] = []

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        self.seen.append(len(left_BD))
        said = super().forward(self.dropout(left_BD), right_BD)
        logits = self.classes(self.dropout(said.embeddings["image"]))
        return Signals(logits, embeddings=said.embeddings, heads=said.heads)


def student(dropout: float = 0.0) -> Model:
    return Model(randomise(Classifying(dropout), 1), ["left", "right"], ["image"]).double()


def teachers() -> TeacherPool:
    double = torch.float64
    return TeacherPool(
        {n: Teacher(towers(9 + i), ["left", "right"], (), double, n) for i, n in enumerate(("t0", "t1"))}
    )


def batch() -> dict[str, Any]:
    return {k: v.double() if v.is_floating_point() else v for k, v in make_batch(ROWS).items()}


def step_of(micro: int | None, *objectives: Objective, dropout: float = 0.0, router: Any = None) -> TrainingStep:
    torch.manual_seed(0)
    models = Models(student(dropout), teachers(), router)
    weighted = [WeightedObjective(objective.double(), None, 1.0) for objective in objectives]
    return TrainingStep(models, weighted, variants=models.pool.names, features=True, micro_batch=micro)


def gradients(step: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(5)
    loss = step(batch(), Progress())["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in step.named_parameters() if p.grad is not None}


def heads() -> InteractiveContrastive:
    torch.manual_seed(3)
    return InteractiveContrastive()


@pytest.mark.parametrize("micro", [1, 3, 4, 11, 50])
def test_loss_and_gradients_are_those_of_the_plain_step(micro: int) -> None:
    plain, cached = (
        step_of(n, Contrastive(), ContrastiveKD(form="kl", student_scale="model"), heads()) for n in (None, micro)
    )
    (loss, expected), (found_loss, found) = gradients(plain), gradients(cached)
    torch.testing.assert_close(found_loss, loss, atol=1e-12, rtol=1e-12)
    assert found.keys() == expected.keys()
    assert any("objectives" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=1e-8)


class Deep(nn.Module):
    """Many layers before a small embedding."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(10) for layer in (nn.Linear(64, 64), nn.Tanh())]
        self.body, self.text = nn.Sequential(nn.Linear(8, 64), *layers, nn.Linear(64, 4)), nn.Linear(10, 4)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        return Signals(embeddings={"image": self.body(left_BD), "text": self.text(right_BD)})


def test_activations_are_forgotten_between_the_forwards() -> None:
    """Numbers that wait for the backward pass: those of ten layers, or none but the losses' own."""
    kept = []
    for micro in (None, 8):
        models = Models(Model(Deep(), ["left", "right"]), TeacherPool({}))
        step, numbers = TrainingStep(models, [WeightedObjective(Contrastive())], micro_batch=micro), [0]

        def pack(value: Tensor, numbers: list[int] = numbers) -> Tensor:
            numbers[0] += value.numel() * (not isinstance(value, nn.Parameter))
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            step(make_batch(32), Progress())
        kept.append(numbers[0])
    assert kept[1] < kept[0] / 3


def test_every_forward_is_small_and_the_student_runs_twice() -> None:
    """P5: under gradient caching."""
    cached = step_of(4, Contrastive())
    gradients(cached)
    network = cached.student.network
    assert isinstance(network, Classifying)
    assert sorted(network.seen) == [3, 3, 4, 4, 4, 4]
    with torch.no_grad():
        network.seen.clear()
        cached(batch(), Progress())
        assert network.seen == [4, 4, 3]
        network.seen.clear()
        cached(batch(), Progress(), training=False)
    assert network.seen == [11]


@pytest.mark.parametrize("hard", [False, True])
def test_routed_objectives_and_the_router_get_their_gradients(hard: bool) -> None:
    results = []
    for micro in (None, 3):
        gate = randomise(InstanceGate(3, 2), 4).double()
        combine, selection = ("select", TopK(1)) if hard else ("loss", Dense())
        router = Router(gate, selection, combine=combine, signal="aux_only" if hard else "kd").double()
        step = step_of(micro, RoutedObjective(ContrastiveKD()), router=router)
        if hard:
            step.variants = []
        results.append(gradients(step))
    (loss, expected), (found_loss, found) = results
    torch.testing.assert_close(found_loss, loss)
    assert any("router" in name for name in found) != hard
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=1e-8)


def test_dropout_draws_the_same_numbers_in_both_forwards() -> None:
    """The reference keeps the graph of every chunk."""
    cached = step_of(4, Contrastive(), dropout=0.5)
    loss, found = gradients(cached)
    reference = step_of(None, Contrastive(), dropout=0.5)
    torch.manual_seed(5)
    whole = batch()
    parts = [reference.student({k: v[i : i + 4] for k, v in whole.items()}) for i in (0, 4, 8)]
    said = Signals.cat(parts)

    class Said(Model):
        def forward(self, batch: Any, taps: Any = None) -> Signals:
            return said

    models = Models(Said(nn.Identity(), []), TeacherPool({}))
    expected_loss = TrainingStep(models, list(reference.objectives))(whole, Progress())["loss"]
    expected_loss.backward()
    torch.testing.assert_close(loss, expected_loss.detach())
    for name, parameter in reference.student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[f"student.{name}"], parameter.grad, atol=1e-10, rtol=1e-8)


def test_taps_of_the_student_are_whole() -> None:
    models = Models(student(), TeacherPool({}))
    for taps in (None, (), ("text",)):
        plain, small = models.student(batch(), taps), in_chunks(models, 4).student(batch(), taps)
        assert plain.features.keys() == small.features.keys()
        for tap, value in plain.features.items():
            torch.testing.assert_close(small.features[tap], value)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_teachers_run_in_chunks_with_their_rows_in_order(rows: int) -> None:
    pool = make_pool("fusion", "vectors")
    small, whole = in_chunks(Models(make_student(), pool), 3).pool, make_batch(rows)
    torch.testing.assert_close(small(whole).logits, pool(whole).logits)
    assert small.names == pool.names
    assert small.experts == pool.experts
    asked = {name: torch.randperm(rows)[: max(rows - i, 0)] for i, name in enumerate(pool.experts)}
    plain, found = pool(whole, rows=asked), small(whole, rows=asked)
    assert list(found) == list(plain)
    for name in plain:
        torch.testing.assert_close(found[name].logits, plain[name].logits)


def test_teachers_that_train_run_whole() -> None:
    pool = tower_pool(6)
    pool.teacher("t0").thaw()
    small = in_chunks(Models(make_towers(), pool), 3).pool
    small(make_batch(7))["t0"].embeddings["image"].sum().backward()
    assert pool.forwards == 1
    assert all(p.grad is not None for p in pool.teacher("t0").network.image.parameters())


def test_autocast_is_the_same_in_both_forwards() -> None:
    step = TrainingStep(Models(make_towers(), TeacherPool({})), [WeightedObjective(Contrastive())], micro_batch=4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = step(make_batch(ROWS), Progress())["loss"]
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.student.network.image.parameters())


def test_batch_norm_is_refused_by_name() -> None:
    network = Maps()
    with pytest.raises(ConfigError, match=r"stages\.a\.micro_batch.*norm1.*layer or group normalisation"):
        refuse_batch_norm(network, "stages.a.")
    refuse_batch_norm(network.eval())


def test_stages_take_it(tmp_path: Path) -> None:
    raw = simple({"micro_batch": 5, "epochs": 1})
    plain = train(simple({"epochs": 1}), tmp_path / "plain").weights()
    cached = train(raw, tmp_path / "cached").weights()
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, atol=1e-5, rtol=1e-5)


def test_a_stage_refuses_batch_norm(tmp_path: Path) -> None:
    student = {"kind": "small_cnn", "inputs": ["image"], "in_channels": 1, "channels": [4], "hidden": 8}
    with pytest.raises(ConfigError, match=r"stages\.learn\.micro_batch: the student has batch normalisation"):
        train(simple({"micro_batch": 5}, student=student), tmp_path)
    with pytest.raises(ConfigError, match=r"stages\.learn: micro_batch: the student has batch normalisation"):
        dry_run(recipe_of(simple({"micro_batch": 5}, student=student)).build())


def test_a_stage_that_differentiates_through_a_step_refuses_it() -> None:
    stage = {"kind": "bilevel", "trains": ["student", "router"], "objectives": ["routed_kd"], "micro_batch": 4}
    raw = simple(
        stage,
        teachers={"right": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12]}, "left": MLP},
        router={"gate": "instance", "selection": "dense", "combine": "loss", "signal": "bilevel"},
    )
    program = recipe_of(raw).build()
    phase = program.phases[0]
    with pytest.raises(ConfigError, match="differentiates through a whole step: leave micro_batch out"):
        phase.stages[0].check(program.models(phase), program.data)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """With weights of the losses that follow from gradients of all processes."""
    kd = {"kind": "kd", "teacher": "left"}
    objective = {"kind": "balanced", "by": "gradnorm", "objectives": ["cross_entropy", kd]}
    stage = {"objectives": [objective], "micro_batch": 3, "epochs": 1, "accumulate": 2}
    raw = simple(stage, teachers={"left": MLP})
    for code, messages in in_two(raw, tmp_path / "two"):
        assert code == 0, messages
    two, one = loaded(raw, tmp_path / "two"), train(raw, tmp_path / "one")
    weights = two.weights()
    for name, value in one.weights().items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-5)
    found = [finished.records("train")[-1]["losses"]["balanced/gradnorm"] for finished in (one, two)]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
