"""The collapse alarm: what counts, when it speaks, when it is silent."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.routers import InstanceGate, Router, TopK, UniformGate
from moekd.routers.alarm import CollapseAlarm

from ..builders import CLASSES, make_step, snapshot, strangers

NAMES = ["a", "b", "c"]


def steps(alarm: CollapseAlarm, *rows: list[float]) -> int:
    for row in rows:
        alarm.add(torch.tensor(row))
        alarm.after_step()
    alarm.count()
    return int(alarm.streak)


def test_counts_steps_in_a_row_for_the_same_teacher() -> None:
    """N6: steps in a row count."""
    alarm = CollapseAlarm(share=0.9)
    assert steps(alarm, [91.0, 9.0, 0.0], [100.0, 0.0, 0.0]) == 2
    assert steps(alarm, [0.0, 100.0, 0.0]) == 1
    assert steps(alarm, [90.0, 10.0, 0.0]) == 0
    assert steps(alarm, [0.0, 0.0, 0.0]) == 0


def test_batches_of_one_step_are_counted_together() -> None:
    alarm = CollapseAlarm(share=0.9)
    alarm.add(torch.tensor([10.0, 0.0]))
    alarm.add(torch.tensor([0.0, 10.0]))
    alarm.after_step()
    alarm.after_step()
    alarm.count()
    assert int(alarm.streak) == 0


def test_counts_move_with_the_router() -> None:
    alarm = CollapseAlarm()
    alarm.add(torch.ones(3))
    assert all(buffer.is_meta for buffer in alarm.to("meta").buffers())
    assert {name for name, _ in alarm.named_buffers()} == {"rows", "streak", "teacher"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, None]), max_size=80), st.lists(st.booleans(), min_size=80, max_size=80))
def test_counting_now_and_then_is_counting_every_step(winners: list[int | None], pauses: list[bool]) -> None:
    alarm, streak, teacher = CollapseAlarm(share=0.9), 0, None
    for winner, pause in zip(winners, pauses, strict=False):
        streak = 0 if winner is None else streak + 1 if winner == teacher else 1
        teacher = winner
        alarm.add(torch.ones(3) if winner is None else 100.0 * torch.eye(3)[winner])
        alarm.after_step()
        if pause:
            alarm.count()
    alarm.count()
    assert int(alarm.streak) == streak


def test_one_teacher_is_no_collapse() -> None:
    assert steps(CollapseAlarm(), [5.0], [5.0]) == 0


def test_speaks_once_a_collapse(caplog: pytest.LogCaptureFixture) -> None:
    """N6: the alarm names the teacher that takes nearly all rows."""
    alarm = CollapseAlarm(steps=2)
    with caplog.at_level(logging.WARNING):
        steps(alarm, [0.0, 6.0, 0.0])
        assert not alarm.warn(NAMES)
        steps(alarm, [0.0, 6.0, 0.0])
        assert alarm.warn(NAMES)
        assert alarm.warn(NAMES)
        assert len(caplog.records) == 1
        assert "teacher 'b' took more than 95 % of the rows in each of the last 2 steps" in caplog.text
        steps(alarm, [2.0, 2.0, 2.0])
        assert not alarm.warn(NAMES)
        steps(alarm, [6.0, 0.0, 0.0], [6.0, 0.0, 0.0])
        assert alarm.warn(NAMES)
        assert len(caplog.records) == 2


def collapsed_router() -> Router:
    gate = InstanceGate(CLASSES, 3)
    with torch.no_grad():
        gate.fc2.bias.copy_(torch.tensor([0.0, 0.0, 1e4]))
    return Router(gate, TopK(1))


def test_the_router_counts_in_training_only() -> None:
    router = collapsed_router()
    router.alarm.steps = 3
    pool = strangers(3)
    for training in (True, False, True, True):
        _ = make_step(pool, router, training=training).routing
        router.after_step()
    assert router.warn_of_collapse(pool.names)
    assert int(router.alarm.streak) == 3
    router.eval()
    _ = make_step(pool, router).routing
    router.after_step()
    router.alarm.count()
    assert int(router.alarm.streak) == 3


def test_a_gate_that_learns_nothing_cannot_collapse() -> None:
    router = Router(UniformGate(3), TopK(1))
    _ = make_step(strangers(3), router).routing
    router.after_step()
    router.alarm.count()
    assert int(router.alarm.streak) == 0


def test_counts_are_no_part_of_checkpoints() -> None:
    assert not [key for key in snapshot(collapsed_router()) if "alarm" in key]
