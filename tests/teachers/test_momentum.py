"""Teachers that follow the student: the moving average itself, and who may train them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from moekd.cache import why_not_cached
from moekd.errors import ConfigError, ModelError
from moekd.model import Model
from moekd.objectives.base import models_named
from moekd.stages.trainable import train_only, trained_modules
from moekd.step import Models
from moekd.teachers import MomentumTeacher, Teacher, TeacherPool

from ..builders import Maps, Vectors, make_batch, randomise


def follower(student: Model, momentum: float = 0.9, **options) -> MomentumTeacher:
    network = copy.deepcopy(student.network)
    return MomentumTeacher(network, student.inputs, name="momentum", momentum=momentum, **options)


def student_of(seed: int = 0) -> Model:
    return Model(randomise(Vectors(), seed), ["left"])


def test_a_student_that_stands_still_is_approached_by_powers() -> None:
    student, start = student_of(0), student_of(1)
    teacher = follower(start, 0.9)
    for step in range(1, 13):
        teacher.follow(student)
        for mine, old, new in zip(teacher.parameters(), start.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(mine, old + (1 - 0.9**step) * (new - old), atol=1e-6, rtol=1e-5)


def test_the_first_step_from_a_copy_changes_nothing() -> None:
    student = student_of()
    teacher = follower(student_of(3))
    teacher.restart(student)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.follow(student)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_after_each_step_is_the_same_as_before_each_forward() -> None:
    """The released code of ALBEF averages at the start of a forward; every forward then has the same teacher."""
    student = student_of()
    ours, theirs = follower(student, 0.8), [p.clone() for p in student.parameters()]
    for _ in range(5):
        theirs = [0.8 * m + 0.2 * p.detach() for m, p in zip(theirs, student.parameters(), strict=True)]
        for mine, other in zip(ours.parameters(), theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.follow(student)


@pytest.mark.parametrize("policy", ["copy", "keep"])
def test_statistics_are_copied_or_stay(policy) -> None:
    student = Model(randomise(Maps(), 0), ["image"])
    teacher = follower(student, buffers=policy)
    before = {name: value.clone() for name, value in teacher.named_buffers()}
    student.train()
    student(make_batch(5))
    teacher.follow(student)
    student_buffers = dict(student.named_buffers())
    for name, value in teacher.named_buffers():
        assert torch.equal(value, student_buffers[name] if policy == "copy" else before[name])
    assert not torch.equal(student_buffers["network.norm1.running_mean"], before["network.norm1.running_mean"])


def test_half_precision_follows_a_float_student() -> None:
    student = student_of()
    teacher = follower(student_of(1), 0.5, dtype=torch.bfloat16)
    teacher.follow(student)
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}


def test_no_stage_can_train_it() -> None:
    student = student_of()
    pool = TeacherPool({"momentum": follower(student), "other": Teacher(Vectors(), ["left"], name="other")})
    models = Models(student, pool)
    assert list(trained_modules(models, ["student", "teachers"])) == ["student", "teachers.other"]
    assert models_named("teachers", pool) == ["other"]
    assert models_named("all", pool) == ["student", "other"]
    train_only(models, ["student", "teachers"], nn.ModuleList())
    assert not any(p.requires_grad for p in pool.teacher("momentum").parameters())
    assert not pool.teacher("momentum").training
    with pytest.raises(ModelError, match="follows the student"):
        train_only(models, ["teachers.momentum"], nn.ModuleList())
    alone = Models(student, TeacherPool({"momentum": follower(student)}))
    with pytest.raises(ConfigError, match="nothing that this recipe can train"):
        trained_modules(alone, ["teachers"])


def test_its_signals_are_never_kept() -> None:
    student = student_of()
    pool = TeacherPool({"momentum": follower(student), "other": Teacher(Vectors(), ["left"], name="other")})
    assert why_not_cached(pool, ["momentum", "other"]) == ["teachers follow the student (momentum)"]
    assert why_not_cached(pool, ["other"]) == []


def test_it_must_be_built_as_the_student() -> None:
    wide = Model(Vectors(classes=7), ["left"])
    with pytest.raises(ModelError, match=r"these weights differ: network\.out\.weight, network\.out\.bias"):
        follower(student_of()).restart(wide)
    with pytest.raises(ModelError, match="these weights differ"):
        follower(student_of()).restart(Model(Maps(), ["image"]))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0])
def test_momentum_has_limits(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        follower(student_of(), momentum)
