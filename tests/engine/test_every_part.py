"""R10, R11: every objective and router goes on exactly from its saved state, and says whether batches can be split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.config import Spec, build
from moekd.networks import NETWORKS
from moekd.objectives import OBJECTIVES
from moekd.routers import GATES, SELECTIONS, Router
from moekd.schedules import Progress
from moekd.state_codec import flatten, unflatten

from ..builders import CLASSES, randomise
from ..routers.dense_steps import TEACHERS, step_of
from .every import EVERY, ROUTERS, Session, TowersAndClasses, objective, routed
from .tiny import KINDS


@pytest.fixture(autouse=True, scope="module")
def _towers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "two_towers", TowersAndClasses)
        yield


def test_every_registered_objective_is_here() -> None:
    """R10, R11: a new objective needs a line in `EVERY`."""
    assert set(OBJECTIVES.names()) - {name for _, name, _ in KINDS} <= set(EVERY)


def assert_goes_on(raw: dict[str, Any], folder: Path) -> None:
    """Save after three steps, load into a new program, and compare the next two steps bit for bit."""
    used = Session(raw, folder / "used")
    first, later = used.batches(0), used.batches(1)
    for index, batch in enumerate(first):
        used.train(batch, index)
    fresh = Session(raw, folder / "fresh", used.saved())
    for seed, batch in enumerate(later[:2], 7):
        one, other = used.train(batch, seed), fresh.train(batch, seed)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        assert all(bool(value.isfinite().all()) for value in one.values())


PRESENT = [kind for kind in EVERY if kind in OBJECTIVES.names()]


@pytest.mark.parametrize("kind", PRESENT)
def test_r10_objectives_go_on_from_their_state(kind: str, tmp_path: Path) -> None:
    """R10: queues, banks, running statistics, learned scales and projectors are saved with the stage."""
    assert_goes_on(objective(kind), tmp_path)


@pytest.mark.parametrize("name", [name for name, arm in ROUTERS.items() if arm["gate"]["kind"] != "dense_instance"])
def test_r10_routers_go_on_from_their_state(name: str, tmp_path: Path) -> None:
    """R10: gates, selections, balances, temperatures and alarms are saved with the router."""
    assert_goes_on(routed(name), tmp_path)


def test_r10_a_gate_of_positions_goes_on_from_its_state() -> None:
    """R10: the one gate that needs dense logits."""

    def router(seed: int) -> Router:
        section = dict(ROUTERS["dense_instance"])
        gate = build(Spec("dense_instance"), GATES, num_classes=CLASSES, num_teachers=TEACHERS)
        randomise(gate, seed)
        return Router(gate, build(Spec("top_k", {"k": 1}), SELECTIONS), combine=section["combine"])

    used, fresh = router(1), router(2)
    fresh.load_state_dict(unflatten(*flatten(used.state_dict())))
    one, other = (step_of("pixel", gate).routing for gate in (used, fresh))
    assert torch.equal(one.probs, other.probs)
    assert torch.equal(one.chosen, other.chosen)


def gradients(raw: dict[str, Any], folder: Path, parts: int) -> torch.Tensor:
    """Return the gradient of the mean loss of 32 rows, taken in equal parts."""
    session = Session(raw, folder)
    (batch,) = session.batches()
    rows = len(batch["id"]) // parts
    for part in range(parts):
        piece = {key: value[part * rows : (part + 1) * rows] for key, value in batch.items()}
        (session.loop.module(piece, Progress())["loss"] / parts).backward()
    grads = [p.grad for p in session.loop.parameters if p.grad is not None]
    return torch.cat([grad.flatten() for grad in grads])


#: Options without which a loss draws other random numbers for every batch.
CALM = {"masked_student": {"ratio": 0.0}}


@pytest.mark.parametrize("kind", PRESENT)
def test_r11_four_small_batches_are_one_large_one_unless_said_otherwise(kind: str, tmp_path: Path) -> None:
    """R11: 4 x 8 rows give the gradient of 1 x 32 to 1e-6, for all objectives that do not say they compare rows."""
    raw = objective(kind, {"rows": 32, "batch_size": 32}, **CALM.get(kind, {}))
    whole, parts = gradients(raw, tmp_path / "whole", 1), gradients(raw, tmp_path / "parts", 4)
    (weighted,) = recipe_objectives(raw)
    close = torch.allclose(whole, parts, rtol=1e-5, atol=1e-6)
    assert close is not weighted.compares_rows, (whole - parts).abs().max()


def recipe_objectives(raw: dict[str, Any]) -> list[Any]:
    """Return the objectives of a config's stage."""
    from .tiny import recipe_of

    return [w.objective for w in recipe_of(raw).build().phases[0].stages[0].settings.objectives]


def test_r11_adding_up_gradients_of_losses_that_compare_rows_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R11: contrastive losses say that small batches are not one large batch; others say nothing."""
    for kind, told in (("contrastive", True), ("kd", False)):
        raw = objective(kind)
        raw["stages"][0]["accumulate"] = 2
        Session(raw, tmp_path / kind)
        assert ("compare the rows of a batch, so 2 batches" in caplog.text) is told
        caplog.clear()
