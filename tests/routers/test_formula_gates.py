"""Gates whose weights a formula gives: known values, invariants, rows without labels, no gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError, ModelError
from moekd.model import Model
from moekd.objectives import KD, RoutedKD, kd_kl
from moekd.routers import GATES, Dense, Router, TopK, UniformGate
from moekd.routers.gates import (
    AgreementGate,
    EntropyGate,
    Gate,
    GradientQPGate,
    LabelConfidenceGate,
    LabelGroupGate,
    MismatchGate,
    OracleGate,
    StaticGate,
    entropy_weights,
    label_confidence,
)
from moekd.routers.measures import distance_to_student, teacher_entropy
from moekd.teachers import TeacherPool

from ..builders import (
    CLASSES,
    DenseMaps,
    clones,
    make_batch,
    make_pool,
    make_step,
    make_student,
    make_teacher,
    randomise,
    strangers,
)

READERS = {
    "agreement": AgreementGate,
    "label_confidence": LabelConfidenceGate,
    "entropy": EntropyGate,
    "gradient_qp": GradientQPGate,
    "oracle": OracleGate,
    "oracle_soft": lambda: OracleGate(0.5),
}
LABEL_READERS = ["label_confidence", "oracle", "oracle_soft"]


def route(gate: Gate, pool=None, combine: str = "loss", **options):
    return make_step(pool or strangers(3), Router(gate, Dense(), combine=combine), **options)  # type: ignore[arg-type]


def losses_by_a_loop(step) -> torch.Tensor:
    teachers, labels = step.pool(step.batch), step.batch["label"]
    rows = [[-teachers[n].logits[b].log_softmax(0)[labels[b]] for n in teachers] for b in range(len(labels))]
    return torch.tensor(rows)


def test_known_values_of_label_confidence() -> None:
    weights = label_confidence(torch.tensor([[0.1, 0.5, 2.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.4455, 0.4187, 0.1358]]), atol=5e-5, rtol=0)


def test_known_values_of_entropy() -> None:
    logits = torch.tensor([[[0.7, 0.2, 0.1], [1 / 3] * 3]]).log()
    torch.testing.assert_close(
        entropy_weights(teacher_entropy(logits)), torch.tensor([[0.5781, 0.4219]]), atol=5e-5, rtol=0
    )


def test_label_confidence_equals_a_loop() -> None:
    step = route(LabelConfidenceGate())
    losses = losses_by_a_loop(step)
    for b in range(6):
        total = losses[b].exp().sum()
        expected = [(1 - losses[b, t].exp() / total) / 2 for t in range(3)]
        torch.testing.assert_close(step.routing.weights[b], torch.stack(expected), atol=1e-6, rtol=1e-4)


def test_oracle_takes_the_teacher_with_the_smallest_loss() -> None:
    step = route(OracleGate())
    best = losses_by_a_loop(step).argmin(1)
    torch.testing.assert_close(step.routing.weights, torch.eye(3)[best], atol=1e-12, rtol=0)
    chosen = make_step(strangers(3), Router(OracleGate(), TopK(1))).routing.chosen
    assert torch.equal(chosen[:, 0], best)


def test_oracle_ties_go_to_the_lowest_index() -> None:
    assert route(OracleGate(), clones(3)).routing.weights.argmax(1).tolist() == [0] * 6


def test_soft_oracle_lies_between_hard_and_uniform() -> None:
    losses = losses_by_a_loop(route(OracleGate()))
    torch.testing.assert_close(route(OracleGate(0.7)).routing.weights, (-losses / 0.7).softmax(1), atol=1e-5, rtol=1e-4)
    hard = route(OracleGate()).routing.weights
    torch.testing.assert_close(route(OracleGate(1e-6)).routing.weights, hard, atol=1e-6, rtol=0)
    torch.testing.assert_close(route(OracleGate(1e6)).routing.weights, torch.full((6, 3), 1 / 3), atol=1e-4, rtol=0)


def test_mismatch_is_the_distillation_loss_to_every_teacher() -> None:
    step = make_step(strangers(3))
    expected = [kd_kl(step.student.logits, step.teachers[name].logits, 2.0) for name in step.teachers]
    torch.testing.assert_close(MismatchGate(2.0)(step), torch.stack(expected, 1), rtol=1e-4, atol=1e-5)


def test_mismatch_of_dense_logits() -> None:
    student, teachers = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 4, 3, 5)
    expected = [kd_kl(student, teachers[:, t], 4.0) for t in range(3)]
    torch.testing.assert_close(distance_to_student(student, teachers, 4.0), torch.stack(expected, 1))


def test_agreement_mutes_the_outlier() -> None:
    step = route(AgreementGate(0.2))
    probs = [step.teachers[name].logits.softmax(1) for name in step.teachers]
    mean = torch.stack(probs).mean(0)
    far = []
    for p in probs:
        middle = (p + mean) / 2
        far.append(((p * (p / middle).log()).sum(1) + (mean * (mean / middle).log()).sum(1)) / 2)
    torch.testing.assert_close(step.routing.weights, (-torch.stack(far, 1) / 0.2).softmax(1), rtol=1e-3, atol=1e-5)
    two_and_one = TeacherPool({f"t{i}": make_teacher("vectors", f"t{i}", seed) for i, seed in enumerate((5, 6, 5))})
    weights = route(AgreementGate(), two_and_one).routing.weights
    torch.testing.assert_close(weights[:, 0], weights[:, 2])
    assert weights[:, 1].mean() < weights[:, 0].mean() - 0.02
    torch.testing.assert_close(route(AgreementGate(1e5)).routing.weights, torch.full((6, 3), 1 / 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(2, 6), st.floats(0, 200), st.integers(0, 9999))
def test_formulas_on_random_shapes(rows: int, teachers: int, classes: int, scale: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, teachers, classes, generator=rng) * scale
    labels = torch.randint(0, classes, (rows,), generator=rng)
    losses = -logits.log_softmax(2)[torch.arange(rows), :, labels]
    for weights, badness in (
        (label_confidence(losses), losses),
        (entropy_weights(teacher_entropy(logits)), teacher_entropy(logits)),
    ):
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(rows))
        if teachers > 1:
            assert (weights <= 1 / (teachers - 1) + 1e-6).all()
            worst = badness.argmax(1, keepdim=True)
            torch.testing.assert_close(weights.gather(1, worst)[:, 0], weights.min(1).values)
        order = torch.randperm(teachers, generator=rng)
        torch.testing.assert_close(label_confidence(losses[:, order]), label_confidence(losses)[:, order])


def test_certain_teachers_have_equal_weights() -> None:
    logits = torch.tensor([[[1e4, 0.0], [1e4, 0.0], [0.0, 1e4]]])
    assert torch.equal(teacher_entropy(logits), torch.zeros(1, 3))
    torch.testing.assert_close(entropy_weights(teacher_entropy(logits)), torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("name", READERS)
def test_permuting_teachers_permutes_weights_and_keeps_the_loss(name: str) -> None:
    order = [2, 0, 1]
    one, other = route(READERS[name]()), route(READERS[name](), strangers(3, order))
    torch.testing.assert_close(other.routing.weights, one.routing.weights[:, order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(RoutedKD()(other)["routed_kd"], RoutedKD()(one)["routed_kd"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("combine", ["loss", "target"])
def test_identical_teachers_and_a_single_one_are_plain_kd(name: str, combine: str) -> None:
    for pool in (clones(3), strangers(1)):
        step = route(READERS[name](), pool, combine)
        torch.testing.assert_close(step.routing.weights.sum(1), torch.ones(6))
        plain = KD("t0")(make_step(pool))["kd"]
        torch.testing.assert_close(RoutedKD()(step)["routed_kd"], plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LABEL_READERS)
def test_rows_without_a_label_get_uniform_weights(name: str) -> None:
    labelled = [True, False, True, True, False, False]
    step = route(READERS[name](), batch=make_batch(6, labelled=labelled))
    full = route(READERS[name](), batch=make_batch(6))
    for b in range(6):
        expected = full.routing.weights[b] if labelled[b] else torch.full((3,), 1 / 3)
        torch.testing.assert_close(step.routing.weights[b], expected)
    assert step.routing.weights.sub(1 / 3).abs().max() > 0.01


@pytest.mark.parametrize("name", [*READERS, "mismatch"])
def test_nobody_gets_a_gradient_from_the_weights(name: str) -> None:
    gate = MismatchGate() if name == "mismatch" else READERS[name]()
    assert gate.needs_teachers
    assert not list(gate.parameters())
    pool, student = strangers(3), make_student()
    for teacher in pool.names:
        pool.teacher(teacher).thaw()
    step = make_step(pool, Router(gate, Dense(), combine="loss"), student=student)
    assert not step.routing.logits.requires_grad
    RoutedKD()(step)["routed_kd"].mean().backward()
    assert all(p.grad is None for p in pool.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


@pytest.mark.parametrize("name", LABEL_READERS)
def test_dense_labels_are_refused(name: str) -> None:
    batch = make_batch(6) | {"label": torch.zeros(6, 8, 8, dtype=torch.int64)}
    with pytest.raises(ModelError, match=r"needs one label an instance, found labels \(6, 8, 8\)"):
        _ = route(READERS[name](), batch=batch).routing


@pytest.mark.parametrize("name", ["agreement", "entropy", "gradient_qp"])
def test_gates_without_labels_take_dense_logits(name: str) -> None:
    student = Model(randomise(DenseMaps(), 1), ["image"])
    weights = route(READERS[name](), make_pool("dense", masked=False), student=student).routing.weights
    torch.testing.assert_close(weights, torch.ones(6, 1))


GROUPS = [[0, 1], [2], [3, 1]]


def test_label_group_gives_a_class_to_its_specialists() -> None:
    batch = make_batch(5) | {"label": torch.tensor([0, 1, 2, 3, -1]), "labelled": torch.tensor([True] * 4 + [False])}
    step = route(LabelGroupGate(CLASSES, 3, GROUPS), batch=batch)
    expected = [[1, 0, 0], [0.5, 0, 0.5], [0, 1, 0], [0, 0, 1], [1 / 3] * 3]
    torch.testing.assert_close(step.routing.weights, torch.tensor(expected))
    assert not step.models.router.needs_teachers
    chosen = make_step(strangers(3), Router(LabelGroupGate(CLASSES, 3, GROUPS), TopK(1)), batch=batch).routing.chosen
    assert chosen[:, 0].tolist() == [0, 0, 1, 2, 0]


def test_label_group_runs_every_teacher_on_its_own_rows_only() -> None:
    pool, batch = strangers(3), make_batch(6)
    router = Router(LabelGroupGate(CLASSES, 3, [[0, 1], [2], [3]]), TopK(1))
    few, all_ = make_step(pool, router, batch=batch, variants=[]), make_step(pool, router, batch=batch)
    torch.testing.assert_close(RoutedKD()(few)["routed_kd"], RoutedKD()(all_)["routed_kd"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1, 2, 3], []], r"one list of classes for each of the 3 teacher variants, found 2"),
        ([[0, 1], [2, 3], [4, -1]], r"no classes \[-1, 4\]; they are numbered from 0 to 3"),
        ([[0], [2], []], r"classes \[1, 3\] are in no group"),
    ],
)
def test_wrong_groups_are_refused(groups: list, message: str) -> None:
    with pytest.raises(ConfigError, match=r"router\.gate\.groups: " + message):
        LabelGroupGate(CLASSES, 3, groups)


def test_weights_that_would_be_ignored_are_refused() -> None:
    for gate in (LabelConfidenceGate(), EntropyGate(), OracleGate(), GradientQPGate(), AgreementGate()):
        with pytest.raises(ConfigError, match=r"router\.combine: .* would be ignored; use combine 'loss' or 'target'"):
            Router(gate, Dense())
    assert Router(UniformGate(3), Dense()).combine == "select"


@pytest.mark.parametrize(
    "make",
    [lambda: OracleGate(-1.0), lambda: MismatchGate(0.0), lambda: GradientQPGate(0.0), lambda: AgreementGate(0.0)],
)
def test_impossible_options_are_refused(make) -> None:
    with pytest.raises(ConfigError, match=r"router\.gate"):
        make()


def test_registered() -> None:
    assert {"agreement", "label_confidence", "entropy", "gradient_qp", "oracle", "mismatch", "label_group"} <= set(
        GATES.names()
    )
    assert set(GATES.parameters("label_group")) == {"groups"}


@pytest.mark.parametrize(
    ("classes", "teachers", "groups"),
    [
        (4, 2, [[0, 1], [2, 3]]),
        (5, 3, [[0], [1, 2], [3, 4]]),
        (2, 3, [[0], [0], [1]]),
        (3, 1, [[0, 1, 2]]),
    ],
)
def test_classes_are_split_evenly_by_default(classes: int, teachers: int, groups: list[list[int]]) -> None:
    expected = LabelGroupGate(classes, teachers, groups).table
    assert torch.equal(LabelGroupGate(classes, teachers).table, expected)
    assert set(range(classes)) == {label for group in groups for label in group}


def test_static_gate_learns_the_same_scores_for_all_rows() -> None:
    gate, step = StaticGate(3), make_step(strangers(3))
    assert torch.equal(gate(step), torch.zeros(6, 3))
    with torch.no_grad():
        gate.scores.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(gate(step), torch.tensor([1.0, 2.0, 3.0]).expand(6, 3))
    assert not gate.needs_teachers
