"""Teachers that run one batch ahead give the numbers of teachers that run in the step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.errors import ConfigError
from moekd.signals import PoolSignals
from moekd.stages.ahead import Stream, TeachersAhead, why_not_ahead
from moekd.teachers import TeacherPool

from ..builders import make_batch, make_pool
from .test_distributed import ROUTED, TEACHERS
from .tiny import CROSS_ENTROPY, FULL, MLP, recipe_of, same_weights, simple, train

KD = {"kind": "kd", "name": "mean_kd"}


def live(objectives: list[Any], **changes: Any) -> dict[str, Any]:
    """Return a recipe with live teachers and a student with dropout, in uneven batches."""
    stage = {"trains": ["student", "router"], "objectives": objectives, "cache": "off", "accumulate": 2}
    raw: dict[str, Any] = simple(
        stage,
        student=MLP | {"dropout": 0.3},
        data={"kind": "tiny", "batch_size": 16, "rows": 41},
        teachers=TEACHERS,
        router={"gate": "instance", "selection": "top_k", "combine": "loss"},
    )
    return raw | changes


class Noted(Stream):
    """A stream that says what it was asked for, and gives the signals when it is waited for, not before."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.waiting: list[tuple[PoolSignals, PoolSignals]] = []

    def start(self, work: Any, batch: Any) -> PoolSignals:
        self.said.append(f"start {int(batch['id'][0])}")
        signals: PoolSignals = work()
        return signals

    def wait(self, signals: PoolSignals) -> None:
        self.said.append(f"wait for {len(signals.logits)} rows")


@pytest.mark.parametrize("objectives", [[CROSS_ENTROPY, KD], [CROSS_ENTROPY, ROUTED, KD]], ids=["mean", "routed"])
def test_ahead_is_in_the_step(objectives: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        runs = [
            train(live(objectives, trainer=FULL["trainer"] | {"overlap": overlap}), tmp_path / str(overlap))
            for overlap in (False, True)
        ]
    assert "stage 'learn': teachers run one batch ahead" in caplog.text
    assert same_weights(runs[0].weights(), runs[1].weights()) == []
    assert runs[0].records() == runs[1].records(), "the same losses, and as many forwards of teachers"


def test_the_next_batch_is_started_before_this_one_is_used() -> None:
    pool, stream = make_pool("vectors"), Noted()
    ahead = TeachersAhead(pool, ["vectors"], False, torch.device("cpu"), stream=stream)
    given = []
    for batch in ahead.batches([make_batch(4, seed) for seed in (1, 2, 3)]):
        stream.said.append(f"step {int(batch['id'][0])}")
        assert torch.equal(ahead(batch).logits, pool(batch, ["vectors"]).logits)
        given.append(batch)
    waits = "wait for 4 rows"
    assert stream.said == [
        "start 100",
        "start 200",
        waits,
        "step 100",
        "start 300",
        waits,
        "step 200",
        waits,
        "step 300",
    ]
    other = make_batch(5, 9)
    assert torch.equal(ahead(other).logits, pool(other, ["vectors"]).logits), "any other batch runs live"


def test_an_empty_batch_runs_no_teacher() -> None:
    pool = make_pool("vectors")
    empty = {key: value[:0] for key, value in make_batch().items()}
    ahead = TeachersAhead(pool, ["vectors"], False, torch.device("cpu"))
    assert [len(batch["id"]) for batch in ahead.batches([make_batch(3), empty, make_batch(2)])] == [3, 0, 2]
    assert pool.forwards == 2


def test_what_changes_in_a_step_is_not_computed_ahead() -> None:
    def reason(pool: TeacherPool, names: list[str], **options: Any) -> str:
        return str(why_not_ahead(pool, names, **options))

    pool = make_pool("vectors")
    assert why_not_ahead(pool, ["vectors"]) is None
    assert "whole batches" in reason(pool, [])
    assert "micro_batch" in reason(pool, ["vectors"], micro_batch=4)
    pool.mask("vectors/fc1").train()
    assert "train mode" in reason(pool, ["vectors/fc1"])
    pool.teacher("vectors").thaw()
    assert "change from step to step" in reason(pool, ["vectors"])


def test_stages_that_can_t_say_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = live([CROSS_ENTROPY, ROUTED], trainer=FULL["trainer"] | {"overlap": True})
    with caplog.at_level(logging.INFO):
        train(raw, tmp_path)
    assert "teachers don't run one batch ahead: no teacher runs on whole batches" in caplog.text


def test_places_come_from_the_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = TEACHERS["right"]
    teachers = {"right": right | {"device": "rotated"}, "twin": right, "left": TEACHERS["left"] | {"pad_rows": True}}
    placed = live([CROSS_ENTROPY, KD], teachers=teachers)
    pool = recipe_of(placed).build().pool
    assert {name: (pool.teacher(name).place, pool.teacher(name).pads) for name in pool.names} == {
        "right": ("rotated", False),
        "twin": ("auto", False),
        "left": ("auto", True),
    }
    plain = live(
        [CROSS_ENTROPY, KD], teachers={name: {**row} for name, row in zip(teachers, [right, right, MLP], strict=True)}
    )
    runs = [train(raw, tmp_path / str(index)) for index, raw in enumerate((placed, plain))]
    assert same_weights(runs[0].weights(), runs[1].weights()) == []
    with pytest.raises(ConfigError, match=r"teachers\.right\.device: 'cuda:63' is asked for, but there are"):
        train(live([KD], teachers={"right": right | {"device": "cuda:63"}}), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"teachers\.right\.device: .*auto, rotated, cpu, cuda or the name of a GPU"):
        recipe_of(live([KD], teachers={"right": right | {"device": "gpu1"}}))
