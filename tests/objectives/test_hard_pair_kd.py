"""Hard-pair distillation: weights, limits of the losses, mining by a teacher, a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.errors import ConfigError
from moekd.objectives import HardPairKD, RoutedObjective, difficulty_weights, reduce, softmax_contrastive
from moekd.objectives.equal_rows import HIDDEN
from moekd.routers import GATES, Dense, Router
from moekd.schedules import Linear, Progress
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import make_batch
from .pairs import all_scores, matcher_pool, matcher_step, scorers_of
from .towers import make_towers, pair_of, towers


def loss_of(objective: HardPairKD, step) -> torch.Tensor:
    return objective(step)["hard_pair_kd"]


def test_weights_have_mean_one_and_no_gradient() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(7, 4) * 2, (torch.randn(7, 4) * 2).requires_grad_()
    for weights in difficulty_weights(teacher, student, 0.5, 1.5, 0.6):
        assert float(weights.mean()) == pytest.approx(1.0)
        assert (weights >= 0).all()
        assert not weights.requires_grad


def test_weights_by_hand() -> None:
    """Rows: teacher sure and student wrong; teacher sure and student right; teacher unsure."""
    sure, flat = [50.0, 0.0], [1.0, 1.0]
    teacher = torch.tensor([sure, sure, flat])
    student = torch.tensor([[0.0, 50.0], [50.0, 0.0], [0.0, 0.0]])
    kd, contrast = difficulty_weights(teacher, student)
    torch.testing.assert_close(kd, torch.tensor([3.0, 0.0, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(contrast, torch.tensor([2.0, 0.0, 1.0]), atol=1e-5, rtol=0)
    capped = difficulty_weights(teacher, student, cap=0.5)[1]
    torch.testing.assert_close(capped, torch.tensor([1.5, 0.0, 1.5]), atol=1e-5, rtol=0)
    assert difficulty_weights(teacher, student, gamma=0.0)[1].tolist() == [1.0, 1.0, 1.0]


def test_where_nothing_is_worth_learning_all_rows_count() -> None:
    teacher = student = torch.tensor([[200.0, 0.0], [200.0, 0.0]])
    for weights in difficulty_weights(teacher, student):
        assert weights.tolist() == [1.0, 1.0]
    assert difficulty_weights(torch.zeros(2, 3), torch.randn(2, 3))[0].tolist() == [1.0, 1.0], "a uniform teacher"


def test_hidden_candidates_do_not_change_the_entropy() -> None:
    teacher, student = torch.randn(3, 3), torch.randn(3, 3)
    hidden = torch.full((3, 2), HIDDEN)
    plain = difficulty_weights(teacher, student)
    more = difficulty_weights(torch.cat([teacher, hidden], 1), torch.cat([student, hidden], 1))
    for a, b in zip(plain, more, strict=True):
        torch.testing.assert_close(a, b)


def test_all_negatives_and_equal_weights_are_the_whole_contrast() -> None:
    pool = matcher_pool(1)
    step = matcher_step(pool)
    objective = HardPairKD(k=5, distil=0.0, weighting="equal", student_scale=9.0, scorers=scorers_of(pool))
    torch.testing.assert_close(loss_of(objective, step), softmax_contrastive(*pair_of(step.student), 9.0))


@pytest.mark.parametrize("miner", ["teacher", "student"])
def test_equals_a_loop(miner) -> None:
    """Static weights, one teacher, T = 2; the teacher mines among all rows."""
    pool, k, t = matcher_pool(1), 2, 2.0
    step = matcher_step(pool)
    network = pool.teacher("m0").network
    said = all_scores(network, *pair_of(step.signals("m0")))
    unit = torch.nn.functional.normalize
    image, text = (unit(part) for part in pair_of(step.student))
    own = 7.0 * (image @ text.T).detach()
    expected = np.zeros(6)
    for student, teacher in ((own, said), (own.T, said.T)):
        for row in range(6):
            ranks = teacher if miner == "teacher" else student
            wrong = sorted((j for j in range(6) if j != row), key=lambda j: -float(ranks[row, j]))[:k]
            s, q = student[row, [row, *wrong]], teacher[row, [row, *wrong]]
            p = (q / t).softmax(0)
            kl = (p * (p.log() - (s / t).log_softmax(0))).sum()
            expected[row] += float(-s.log_softmax(0)[0] + t**2 * kl) / 2
    objective = HardPairKD(
        k=k, miner=miner, prefilter=None, temperature=t, weighting="equal", student_scale=7.0, scorers=scorers_of(pool)
    )
    np.testing.assert_allclose(loss_of(objective, step).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_student_that_scores_as_the_teacher_has_nothing_to_learn() -> None:
    """A dual encoder that teaches itself."""
    pool = TeacherPool({"same": Teacher(towers(1), ["left", "right"], name="same")})
    student = make_towers(1)
    step = Step(make_batch(6), Models(student, pool))
    objective = HardPairKD(k=3, contrast=0.0, student_scale="model")
    loss = loss_of(objective, step)
    torch.testing.assert_close(loss, torch.zeros(6), atol=1e-5, rtol=0)


def test_the_cap_rises_over_the_stage() -> None:
    pool = matcher_pool(1)
    options = {"k": 3, "distil": 0.0, "student_scale": 9.0, "scorers": scorers_of(pool)}
    for fraction, cap in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        step = matcher_step(pool, progress=Progress(0, fraction))
        fixed = loss_of(HardPairKD(cap=cap, **options), matcher_step(pool))
        torch.testing.assert_close(loss_of(HardPairKD(**options), step), fixed)
        torch.testing.assert_close(loss_of(HardPairKD(cap=Linear(0.5, 1.0), **options), step), fixed)


@pytest.mark.parametrize("combine", ["target", "loss", "select"])
def test_two_teachers_and_a_router(combine) -> None:
    pool = matcher_pool(2)
    router = Router(GATES.get("static")(num_teachers=2), Dense(), combine=combine)
    objective = HardPairKD(k=3, miner="student", prefilter=None, scorers=scorers_of(pool))
    routed = RoutedObjective(objective)(matcher_step(pool, router=router))["routed"]
    assert routed.isfinite().all()
    if combine == "target":
        torch.testing.assert_close(routed, loss_of(objective, matcher_step(pool)))


def test_known_positives_are_never_negatives() -> None:
    """All rows show the same thing: there is nothing to contrast with and nothing to distil."""
    pool = matcher_pool(1)
    student = make_towers()
    step = matcher_step(pool, student)
    step.batch = dict(step.batch) | {"kind": torch.zeros(6, dtype=torch.int64)}
    loss = loss_of(HardPairKD(k=3, same="kind", scorers=scorers_of(pool)), step)
    torch.testing.assert_close(loss, torch.zeros(6))
    reduce(loss).backward()
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def test_a_margin_leaves_likely_answers_out() -> None:
    """Below every difference of two cosines, nothing is left to compare with."""
    pool = matcher_pool(1)
    objective = HardPairKD(k=3, margin=-2.0, scorers=scorers_of(pool))
    torch.testing.assert_close(loss_of(objective, matcher_step(pool)), torch.zeros(6))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(rows: int) -> None:
    pool = matcher_pool(1)
    loss = reduce(loss_of(HardPairKD(k=4, scorers=scorers_of(pool)), matcher_step(pool, rows=rows)))
    loss.backward()
    assert torch.isfinite(loss)


def test_mistakes() -> None:
    for options in ({"temperature": 0.0}, {"gamma": -1.0}, {"contrast": 0.0, "distil": 0.0}, {"k": 0}):
        with pytest.raises(ConfigError, match="hard_pair_kd"):
            HardPairKD(**options)
