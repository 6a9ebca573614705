"""N3, N4, N7: every registered objective at the ends of half precision, on degenerate batches, and against numbers.

What the models say is replaced: objectives see logits of +-1e4, one row, no labels, or float64, whatever the networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import MoekdError
from moekd.model import Batch
from moekd.networks import NETWORKS
from moekd.objectives import OBJECTIVES
from moekd.signals import PoolSignals, Signals
from moekd.stages.fit_gates import fit, gates_to_fit, trial_batch
from moekd.stages.teacher_plan import plan_teachers
from moekd.stages.training_step import WeightedObjective
from moekd.stages.untouched import remember_buffers
from moekd.step import Models, Step

from .every import EVERY, TowersAndClasses, objective
from .tiny import recipe_of

ROWS, SIZE = 6, 1e4
TEMPERED = [kind for kind in EVERY if "temperature" in inspect.signature(OBJECTIVES.get(kind).__init__).parameters]
#: Their own forward decides what the models say, so that it can't be replaced here.
RUNS_MODELS = {"masked_student", "mgdfr"}


@pytest.fixture(autouse=True, scope="module")
def _towers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "two_towers", TowersAndClasses)
        yield


@dataclass
class World:
    """An objective with the models of its line in `EVERY`, and what these say about some rows."""

    weighted: WeightedObjective
    models: Models
    batch: Batch
    student: Signals
    teachers: PoolSignals

    def step(self, student: Signals, teachers: PoolSignals, batch: Batch | None = None) -> Step:
        """Return a step in which the models say something else."""
        batch = self.batch if batch is None else batch
        step = Step(batch, self.models, None, True, self.teachers.names, True, lambda _: teachers)
        vars(step)["student"] = student
        return step

    def loss(self, student: Signals, teachers: PoolSignals, batch: Batch | None = None) -> Tensor:
        """Return the sum of the losses, that of the router included."""
        step = self.step(student, teachers, batch)
        losses = list(self.weighted.terms(step).values()) + list(step.routed.losses.values() if step.routed else [])
        return torch.stack([loss.double() for loss in losses]).sum()


def world(kind: str, **options: Any) -> World:
    """Build the models of an objective and run them on some rows."""
    raw = objective(kind)
    raw["stages"][0]["objectives"][0] |= options
    program = recipe_of(raw).build()
    phase = program.phases[0]
    settings = phase.stages[0].settings
    models = program.models(phase)
    plan = plan_teachers(models, program.data, settings, program.cache)
    batch = program.data.split("train").__getitems__(list(range(ROWS)))
    for gate in gates_to_fit(models, settings):
        fit(gate, models, iter([trial_batch(batch)]))
    torch.manual_seed(0)
    step = Step(batch, models, variants=plan.variants, features=True)
    teachers = PoolSignals({name: step.signals(name).detach() for name in plan.variants})
    return World(settings.objectives[0], models, batch, step.student.detach(), teachers)


def leaves(signals: Signals) -> Signals:
    """Return the signals as leaves of a graph."""
    return signals.map(lambda value: value.detach().clone().requires_grad_(value.is_floating_point()))


def tensors(signals: Signals) -> list[Tensor]:
    """Return the tensors of signals."""
    found: list[Tensor] = []
    signals.map(lambda value: found.append(value) or value)
    return found


def extreme(signals: Signals, dtype: torch.dtype, seed: int) -> Signals:
    """Return signals whose logits are -1e4, 0 or 1e4."""
    rng = torch.Generator().manual_seed(seed)

    def changed(logits: Tensor) -> Tensor:
        return (torch.randint(-1, 2, logits.shape, generator=rng) * SIZE).to(dtype)

    rest = signals.to(dtype)
    logits = None if signals.logits is None else changed(signals.logits)
    return Signals(logits, rest.features, rest.embeddings, rest.heads)


def assert_finite(
    kind: str,
    made: World,
    student: Signals,
    teachers: PoolSignals,
    batch: Batch | None = None,
    weights: bool = True,
) -> None:
    """Check loss and gradients."""
    loss = made.loss(student, teachers, batch)
    assert bool(loss.isfinite()), f"{kind}: {loss}"
    if loss.requires_grad:
        loss.backward()
    router = made.models.router or nn.Identity()
    everything = tensors(student) + ([*made.weighted.parameters(), *router.parameters()] if weights else [])
    assert all(bool(value.grad.isfinite().all()) for value in everything if value.grad is not None), kind


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", EVERY)
def test_extreme_logits(kind: str, dtype: torch.dtype) -> None:
    """N4: loss and gradient stay finite in half precision at logits of +-1e4."""
    made = world(kind)
    for seed in range(3):
        student = leaves(extreme(made.student, dtype, seed))
        teachers = PoolSignals({n: extreme(s, dtype, 10 + seed) for n, s in made.teachers.items()})
        with torch.autocast("cpu", dtype):
            assert_finite(kind, made, student, teachers)


@pytest.mark.parametrize("temperature", [0.01, 100.0])
@pytest.mark.parametrize("kind", TEMPERED)
def test_extreme_temperatures(kind: str, temperature: float) -> None:
    """N4: also at temperatures of 0.01 and 100.

    A loss of T^2 times 1e4 is more than float16 holds: there the gradients of a gate's own layers overflow, which the
    scaling of the loss notices and skips.
    """
    made = world(kind, temperature=temperature)
    for seed, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32)):
        student = leaves(extreme(made.student, dtype, seed))
        teachers = PoolSignals({n: extreme(s, dtype, 10 + seed) for n, s in made.teachers.items()})
        made.weighted.zero_grad()
        (made.models.router or nn.Identity()).zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert_finite(kind, made, student, teachers, weights=dtype != torch.float16)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("kind", TEMPERED)
def test_no_temperature_is_refused(kind: str, temperature: float) -> None:
    """N4: a temperature that is not above 0 is refused before anything runs."""
    with pytest.raises(MoekdError, match=r"temperature"):
        world(kind, temperature=temperature)


@pytest.mark.parametrize("kind", sorted(set(EVERY) - RUNS_MODELS))
def test_degenerate_batches(kind: str) -> None:
    """N3: one row, rows without any label, rows that are all the same, models that agree exactly."""
    made = world(kind)
    one = {name: value[:1] for name, value in made.batch.items()}
    few = made.student.select(slice(0, 1)), PoolSignals({n: s.select(slice(0, 1)) for n, s in made.teachers.items()})
    assert_finite(kind, made, leaves(few[0]), few[1], one)
    none = made.batch | {"labelled": torch.zeros(ROWS, dtype=torch.bool), "label": torch.full((ROWS,), -1)}
    assert_finite(kind, made, leaves(made.student), made.teachers, none)
    rows = torch.zeros(ROWS, dtype=torch.long)
    same = made.student.select(rows), PoolSignals({n: s.select(rows) for n, s in made.teachers.items()})
    assert_finite(kind, made, leaves(same[0]), same[1])
    if made.student.logits is not None:
        agree = {n: Signals(made.student.logits, s.features, s.embeddings, s.heads) for n, s in made.teachers.items()}
        assert_finite(kind, made, leaves(made.student), PoolSignals(agree))


@pytest.mark.parametrize("kind", ["cross_entropy", "kd", "dkd", "nkd", "dist", "mlld", "mutual_kd", "logit_agreement"])
def test_a_single_class(kind: str) -> None:
    """N3: with one class there is nothing to learn, and nothing breaks."""
    made = world(kind)

    def first(signals: Signals) -> Signals:
        return Signals(signals.require_logits("test")[:, :1], signals.features)

    batch = made.batch | {"label": torch.zeros(ROWS, dtype=torch.long)}
    teachers = PoolSignals({name: first(signals) for name, signals in made.teachers.items()})
    assert_finite(kind, made, leaves(first(made.student)), teachers, batch)


@pytest.mark.parametrize("kind", sorted(set(EVERY) - RUNS_MODELS))
def test_autocast_is_near_full_precision(kind: str) -> None:
    """N7: under bf16 autocast a loss is within 2% of that in float32, for what models say in bf16."""
    made = world(kind)
    student = made.student.to(torch.bfloat16)
    teachers = {name: signals.to(torch.bfloat16) for name, signals in made.teachers.items()}
    put_back = remember_buffers(made.weighted)
    torch.manual_seed(1)
    full = made.loss(student.to(torch.float32), PoolSignals({n: s.to(torch.float32) for n, s in teachers.items()}))
    put_back()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made.loss(student, PoolSignals(teachers))
    assert float(mixed.detach()) == pytest.approx(float(full.detach()), rel=0.02, abs=1e-4), kind


#: Where the gradient is not the derivative of the sum, by design, and what holds it instead.
NO_DERIVATIVE = {
    "balanced": "weights that follow from the losses are constants",
    "c2kd": "each side learns from the other as a constant",
    "dml": "each side learns from the other as a constant",
    "gradient_kd": "compares gradients at float32",
    "hard_pair_kd": "which pairs are hard is drawn by what the student says",
    "matching": "which pairs are hard is drawn by what the student says",
}


@pytest.mark.parametrize("kind", sorted(set(EVERY) - RUNS_MODELS - set(NO_DERIVATIVE)))
def test_gradients_are_derivatives(kind: str) -> None:
    """N7: the gradient with respect to all that the student says equals finite differences in float64."""
    made = world(kind)
    made.weighted.double()
    for part in made.weighted.modules():
        part.train(not isinstance(part, nn.BatchNorm2d))
    if made.models.router is not None:
        made.models.router.double()
    student = made.student.to(torch.float64)
    teachers = PoolSignals({name: signals.to(torch.float64) for name, signals in made.teachers.items()})
    batch = {n: v.double() if torch.is_floating_point(v) else v for n, v in made.batch.items()}
    made.loss(student, teachers, batch)
    fixed = any(isinstance(part, nn.BatchNorm2d) for part in made.weighted.modules())
    put_back = remember_buffers(*([] if fixed else [made.weighted]))
    inputs = tuple(value.clone().requires_grad_() for value in tensors(student))

    def loss(*values: Tensor) -> Tensor:
        put_back()
        torch.manual_seed(1)
        source = iter(values)
        return made.loss(student.map(lambda _: next(source)), teachers, batch)

    if loss(*inputs).requires_grad:
        assert torch.autograd.gradcheck(loss, inputs, fast_mode=True, atol=1e-5, rtol=1e-4)
