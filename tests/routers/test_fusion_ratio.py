"""The gate of TGeo-KD: what it reads, what its scores mean, whom its weights reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import DataError, ModelError
from moekd.objectives import KD, FusedKDCE, RoutedKD, cross_entropy, kd_kl
from moekd.routers import Dense, Router
from moekd.routers.class_means import ClassMeans
from moekd.routers.gates import FusionRatioGate
from moekd.routers.trilateral import trilateral_state, trilateral_width

from ..builders import CLASSES, clones, make_batch, make_router, make_step, snapshot, strangers

GEOMETRIES = ["full", "vertices", "edges", "angles", "scalars"]
LABELLED = [True, True, False, True, False, True]


def fitted(pool, label: bool = True, **options) -> FusionRatioGate:
    gate = FusionRatioGate(CLASSES, len(pool.names), label=label, **options)
    gate.fit(pool, [make_batch(40, seed=1), make_batch(20, seed=2)])
    return gate


def router_of(pool, signal: str = "kd", **options) -> Router:
    return Router(fitted(pool, **options), Dense(), combine="loss", signal=signal)  # type: ignore[arg-type]


def points(rows: int, teachers: int, classes: int, seed: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = [(rows, classes), (rows, teachers, classes), (rows, classes), (rows, teachers, classes)]
    return [torch.randn(shape, generator=rng, dtype=torch.float64).softmax(-1) for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 6), st.sampled_from(GEOMETRIES), st.integers(0, 999))
def test_width_finiteness_and_rows_on_their_own(
    rows: int, teachers: int, classes: int, geometry: str, seed: int
) -> None:
    inputs = points(rows, teachers, classes, seed)
    state = trilateral_state(*inputs, geometry)  # type: ignore[arg-type]
    assert state.shape == (rows, trilateral_width(geometry, classes, teachers))  # type: ignore[arg-type]
    assert state.isfinite().all()
    alone = torch.cat([trilateral_state(*(p[b : b + 1] for p in inputs), geometry) for b in range(rows)])  # type: ignore[arg-type]
    torch.testing.assert_close(state, alone)


def test_one_teacher_gives_the_published_state() -> None:
    s, t, g, m = points(3, 1, CLASSES, 0)
    t1, m1 = t[:, 0], m[:, 0]
    blocks = {
        "full": [s, g, t1, m1, (g - s) ** 2, (m1 - s) ** 2, (t1 - s) ** 2, (t1 - g) ** 2, (m1 - g) ** 2],
        "vertices": [s, g, t1, m1],
        "edges": [(g - s) ** 2, (m1 - s) ** 2, (t1 - s) ** 2],
        "angles": [(m1 - s) * (g - s), (t1 - s) * (g - s)],
    }
    for geometry, expected in blocks.items():
        found = trilateral_state(s, t, g, m, geometry)  # type: ignore[arg-type]
        assert found.shape[1] == len(expected) * CLASSES
        torch.testing.assert_close(found, torch.cat(expected, dim=1))


def test_edges_are_zero_where_all_agree() -> None:
    s = torch.full((2, CLASSES), 1 / CLASSES)
    full = trilateral_state(s, s[:, None], s, s[:, None])
    assert full.shape == (2, 9 * CLASSES)
    assert torch.equal(full[:, 4 * CLASSES :], torch.zeros(2, 5 * CLASSES))
    assert not trilateral_state(s, s[:, None], s, s[:, None], "angles").any()
    assert not trilateral_state(s, s[:, None], s, s[:, None], "scalars")[:, :5].any()


def test_class_means_by_a_loop_and_over_all_rows_without_a_class() -> None:
    pool, batches = strangers(2), [make_batch(30, seed=1), make_batch(9, seed=2, labelled=[True] * 4 + [False] * 5)]
    for batch in batches:
        batch["label"] = batch["label"].clamp_max(CLASSES - 2)
    means = ClassMeans(CLASSES, 2)
    assert not means.known
    means.measure(pool, batches)
    rows = [(pool(batch).logits[b].softmax(1), int(batch["label"][b]))
            for batch in batches for b in range(len(batch["label"])) if batch["labelled"][b]]  # fmt: skip
    for c in range(CLASSES):
        chosen = [probs for probs, label in rows if label == c] or [probs for probs, _ in rows]
        torch.testing.assert_close(means.means[:, c], torch.stack(chosen).mean(0))
    torch.testing.assert_close(means(torch.tensor([2, 0]))[0, 1], means.means[1, 2])
    with pytest.raises(DataError, match="no row has a label"):
        ClassMeans(CLASSES, 2).measure(pool, [make_batch(3, labelled=[False] * 3)])


def test_scores_split_between_teachers_and_label() -> None:
    pool = strangers(3)
    step = make_step(pool, router_of(pool), batch=make_batch(6, labelled=LABELLED))
    routing, scores = step.routing, step.models.router.gate(step)
    assert scores.shape == (6, 4)
    shares = scores.softmax(1)
    known = torch.tensor(LABELLED)
    torch.testing.assert_close(routing.label_weights[known], shares[known, 3])
    assert not routing.label_weights[~known].any()
    torch.testing.assert_close(routing.weights[~known], torch.full((2, 3), 1 / 3))
    together = routing.teacher_share[:, None] * routing.weights
    torch.testing.assert_close(together[known], shares[known, :3])
    torch.testing.assert_close(together.sum(1) + routing.label_share, torch.ones(6))


def test_one_teacher_is_the_published_sigmoid() -> None:
    pool = strangers(1)
    step = make_step(pool, router_of(pool))
    scores = step.models.router.gate(step)
    torch.testing.assert_close(step.routing.teacher_share, torch.sigmoid(scores[:, 0] - scores[:, 1]))
    assert torch.equal(step.routing.weights, torch.ones(6, 1))


@pytest.mark.parametrize("label", [True, False])
def test_nothing_but_the_gate_gets_a_gradient_through_the_weights(label: bool) -> None:
    pool = strangers(2)
    for name in pool.names:
        pool.teacher(name).thaw()
    step = make_step(pool, router_of(pool, label=label))
    routing = step.routing
    (routing.weights[:, 0].sum() + (routing.label_weights.sum() if label else 0)).backward()
    gate = step.models.router.gate
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gate.parameters())
    assert all(p.grad is None for p in [*pool.parameters(), *step.models.student.parameters()])


@pytest.mark.parametrize("towards", ["label", "teachers"])
def test_all_for_the_label_is_cross_entropy_and_none_is_distillation(towards: str) -> None:
    pool = strangers(1)
    router = router_of(pool)
    last = router.gate.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 200.0] if towards == "label" else [200.0, 0.0]))
    step = make_step(pool, router)
    losses = FusedKDCE(temperature=1.5)(step)
    total = losses["fused_kd_ce/distillation"] + losses["fused_kd_ce/label"]
    if towards == "label":
        torch.testing.assert_close(total, cross_entropy(step.student.logits, step.batch["label"]))
    else:
        torch.testing.assert_close(total, kd_kl(step.student.logits, pool(step.batch)["t0"].logits, 1.5))


def test_the_fused_loss_by_a_loop() -> None:
    pool = strangers(3)
    step = make_step(pool, router_of(pool), batch=make_batch(6, labelled=LABELLED))
    losses, scores = FusedKDCE(temperature=2.0)(step), step.models.router.gate(step)
    for b in range(6):
        shares = scores[b].softmax(0)
        student = step.student.logits[b : b + 1]
        distances = [kd_kl(student, pool(step.batch)[n].logits[b : b + 1], 2.0)[0] for n in pool.names]
        weights = shares[:3] if LABELLED[b] else torch.full((3,), 1 / 3)
        kd = sum(w * d for w, d in zip(weights, distances, strict=True))
        ce = shares[3] * -student.log_softmax(1)[0, step.batch["label"][b]] if LABELLED[b] else torch.tensor(0.0)
        torch.testing.assert_close(losses["fused_kd_ce/distillation"][b], kd)
        torch.testing.assert_close(losses["fused_kd_ce/label"][b], ce)


def test_another_objective_is_multiplied_by_what_the_label_leaves() -> None:
    pool = clones(3)
    step = make_step(pool, router_of(pool))
    found = RoutedKD()(step)["routed_kd"]
    plain = KD("t0")(make_step(pool))["kd"]
    torch.testing.assert_close(found, step.routing.teacher_share * plain)


def test_without_the_label_one_teacher_is_plain_distillation() -> None:
    pool = strangers(1)
    step = make_step(pool, router_of(pool, label=False))
    assert step.routing.label_weights is None
    torch.testing.assert_close(RoutedKD()(step)["routed_kd"], KD()(make_step(pool))["kd"])


def test_a_bilevel_router_gets_no_gradient_from_an_ordinary_step() -> None:
    pool = strangers(2)
    router = router_of(pool, signal="bilevel")
    step = make_step(pool, router)
    before, optimizer = snapshot(router), torch.optim.Adam(router.parameters(), lr=0.1)
    sum(v.mean() for v in FusedKDCE()(step).values()).backward()
    assert all(p.grad is None for p in router.parameters())
    assert all(p.grad is not None for p in step.models.student.parameters())
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in router.state_dict().items())


def test_state_holds_the_class_means() -> None:
    pool = strangers(2)
    one, other = fitted(pool), FusionRatioGate(CLASSES, 2)
    with pytest.raises(ModelError, match="has not measured the teachers' class means"):
        other(make_step(pool))
    other.load_state_dict(snapshot(one))
    assert other.fitted
    assert torch.equal(other(make_step(pool)), one(make_step(pool)))


def test_refused() -> None:
    pool = strangers(2)
    with pytest.raises(ModelError, match="fused_kd_ce needs a router whose gate weighs the label"):
        FusedKDCE()(make_step(pool, make_router(2)))
    router = router_of(pool)
    router.gate.scores_label = False
    with pytest.raises(ModelError, match=r"gave scores of shape \(6, 3\); expected \[batch, 2 teachers\]"):
        _ = make_step(pool, router).routing
