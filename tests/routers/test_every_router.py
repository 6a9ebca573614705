"""Every registered gate with every registered selection, on random shapes and sizes of logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekd.config import Spec, build
from moekd.errors import ConfigError
from moekd.routers import GATES, SELECTIONS, Gate, Router, Routing, Selection, example_routers
from moekd.signals import PoolSignals, Signals
from moekd.state_codec import flatten, unflatten
from moekd.step import Models, Step
from moekd.teachers import TeacherPool

CLASSES = 3
#: Gates to which the config says which teacher is which.
BY_PLACE = {"label_group", "sample_reweight"}


class Said(Step):
    """A step of models that said random things."""

    def __init__(self, rows: int, teachers: int, scale: float, seed: int, training: bool = True) -> None:
        rng = torch.Generator().manual_seed(seed)
        label = torch.randint(-1, CLASSES, (rows,), generator=rng)
        batch = {"id": torch.arange(rows) + 17, "label": label, "labelled": label >= 0}
        batch |= {"task": torch.arange(rows) % 2, "modality": torch.arange(rows) % 2}
        names = [f"t{i}" for i in range(teachers)]
        super().__init__(batch, Models(None, TeacherPool({})), training=training)  # type: ignore[arg-type]
        self.names = names
        feature = torch.randn(rows, 4, generator=rng) * scale
        logits = torch.randn(rows, CLASSES, generator=rng) * scale
        self.__dict__["student"] = Signals(logits.requires_grad_(), {"tap": feature})
        said = PoolSignals.from_logits(names, torch.randn(rows, teachers, CLASSES, generator=rng) * scale)
        self.__dict__["expert_signals"] = self.__dict__["teachers"] = said

    @property
    def experts(self) -> list[str]:
        return self.names


def section_of(part: str, kind: str, teachers: int) -> dict[str, Any]:
    """Return the options of a gate or selection in its example."""
    registry = {"gate": GATES, "selection": SELECTIONS}[part]
    options = next(iter(registry.get(kind).examples(teachers).values())).get(part, {})
    return {"kind": kind} | options


def make(part: str, kind: str, teachers: int) -> Any:
    registry = {"gate": GATES, "selection": SELECTIONS}[part]
    options = dict(section_of(part, kind, teachers))
    if part == "selection" and "k" in registry.parameters(kind):
        options["k"] = max(1, min(options.get("k", registry.parameters(kind)["k"].default), teachers - 1))
    options.pop("kind")
    context = {"num_classes": CLASSES, "num_teachers": teachers, "experts": [f"t{i}" for i in range(teachers)]}
    made = build(Spec(kind, options), registry, **context)
    if isinstance(made, Gate) and not made.fitted:
        batch = {"label": torch.arange(CLASSES).repeat(4)}
        said = PoolSignals.from_logits(context["experts"], torch.randn(4 * CLASSES, teachers, CLASSES))
        made.fit(lambda _: said, [batch])
    return made


def route(gate: Gate, selection: Selection, step: Step) -> Routing:
    """Route a step, with the weights multiplying losses, which all selections allow."""
    return Router(gate, selection, combine="loss", signal="policy" if gate.trains_itself else "none")(step)


#: All but those that need dense logits or the activations of real models; these have tests of their own.
GATE_KINDS = [kind for kind in GATES.names() if kind != "dense_instance" and not GATES.get(kind).reads_features]
FORMULAS = [kind for kind in GATE_KINDS if GATES.get(kind).gives_weights and kind not in BY_PLACE]
ARMS = {name: arm for name, arm in example_routers(4).items() if arm["gate"]["kind"] in GATE_KINDS}


@pytest.mark.parametrize("selection_kind", SELECTIONS.names())
@pytest.mark.parametrize("gate_kind", GATE_KINDS)
@settings(max_examples=6, deadline=None)
@given(
    rows=st.integers(1, 9),
    teachers=st.integers(2, 5),
    scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]),
    seed=st.integers(0, 9999),
)
def test_weights_are_finite_and_add_up(
    gate_kind: str, selection_kind: str, rows: int, teachers: int, scale: float, seed: int
) -> None:
    """N3, N4, N6: weights of every gate and selection are finite and add up to 1, at extreme scores too."""
    torch.manual_seed(seed)
    gate, selection = make("gate", gate_kind, teachers), make("selection", selection_kind, teachers)
    if gate.admits is not None and (selection.k or 0) > gate.admits:
        with pytest.raises(ConfigError, match="admits"):
            Router(gate, selection, combine="loss", signal="none")
        return
    routing = route(gate, selection, Said(rows, teachers, scale, seed))
    weights = routing.weights
    assert weights.shape == (rows, teachers)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    if selection.sums_to_one:
        torch.testing.assert_close(weights.sum(1), torch.ones(rows))
    torch.testing.assert_close(routing.probs.sum(1), torch.ones(rows))
    assert routing.stats["entropy"].isfinite()
    if selection.k is not None:
        assert routing.chosen.shape == (rows, selection.k)
        assert all(len(set(row)) == selection.k for row in routing.chosen.tolist())
        outside = torch.ones_like(weights, dtype=torch.bool).scatter(1, routing.chosen, False)
        assert torch.equal(weights[outside], torch.zeros(int(outside.sum())))
    if weights.requires_grad:
        (weights * torch.randn_like(weights)).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in gate.parameters())


@pytest.mark.parametrize("selection_kind", SELECTIONS.names())
@pytest.mark.parametrize("gate_kind", ["mlp", "entropy", "mismatch"])
def test_evaluation_is_deterministic_and_changes_nothing(gate_kind: str, selection_kind: str) -> None:
    gate, selection = make("gate", gate_kind, 4), make("selection", selection_kind, 4)
    route(gate, selection, Said(8, 4, 1.0, 0))
    before = {key: value.clone() for key, value in selection.state_dict().items()}
    first, second = (route(gate, selection, Said(8, 4, 1.0, 1, training=False)) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert all(torch.equal(value, before[key]) for key, value in selection.state_dict().items())


@pytest.mark.parametrize(
    "name", [name for name, arm in example_routers(4).items() if arm["gate"]["kind"] in GATE_KINDS]
)
def test_state_comes_back_exactly(name: str) -> None:
    arm = ARMS[name]

    def router() -> Router:
        selection = dict(arm["selection"])
        gate = make("gate", arm["gate"]["kind"], 4)
        chosen = build(Spec(selection.pop("kind"), selection), SELECTIONS, num_classes=CLASSES, num_teachers=4)
        return Router(
            gate, chosen, combine=arm["combine"], signal="none" if arm["signal"] == "bilevel" else arm["signal"]
        )

    used, fresh = router(), router()
    for seed in range(3):
        used(Said(8, 4, 1.0, seed))
        used.after_step()
    fresh.load_state_dict(unflatten(*flatten(used.state_dict())))
    for seed in (3, 4):
        one, other = used(Said(8, 4, 1.0, seed)), fresh(Said(8, 4, 1.0, seed))
        assert torch.equal(one.weights, other.weights)
        used.after_step()
        fresh.after_step()


@pytest.mark.parametrize("gate_kind", [kind for kind in FORMULAS if make("gate", kind, 4).fit_on is None])
def test_permuting_teachers_permutes_the_weights_of_formulas(gate_kind: str) -> None:
    order = [2, 0, 3, 1]
    step, turned = Said(8, 4, 1.0, 0), Said(8, 4, 1.0, 0)
    turned.__dict__["expert_signals"] = PoolSignals.from_logits(step.names, step.expert_signals.logits[:, order])
    selection = make("selection", "dense", 4)
    gate = make("gate", gate_kind, 4)
    one, other = route(gate, selection, step), route(gate, selection, turned)
    torch.testing.assert_close(other.weights, one.weights[:, order], rtol=1e-4, atol=1e-5)


def ties(scores: Tensor, kind: str) -> Tensor:
    step = Said(len(scores), scores.shape[1], 1.0, 0)
    found: Tensor = make("selection", kind, scores.shape[1])(scores, scores.softmax(1), step)[1]
    return found


@pytest.mark.parametrize("kind", ["top_k", "bias_balanced"])
def test_ties_go_to_the_lowest_index(kind: str) -> None:
    assert ties(torch.zeros(3, 4), kind).tolist() == [[0, 1]] * 3
    assert ties(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), kind).tolist() == [[1, 3]]
