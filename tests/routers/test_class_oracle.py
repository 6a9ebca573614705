"""The class oracle: measured accuracies, a table in the config, state."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError, DataError, ModelError
from moekd.objectives import RoutedKD
from moekd.routers import Dense, Router, TopK
from moekd.routers.gates import GATES, ClassOracleGate

from ..builders import CLASSES, make_batch, make_step, snapshot, strangers

TABLE = [[0.9, 0.1, 0.5, 0.0], [0.2, 0.8, 0.5, 0.0], [0.3, 0.1, 0.4, 0.2]]


def batch_of_classes() -> dict:
    labels = torch.tensor([0, 1, 2, 3, -1])
    return make_batch(5) | {"label": labels, "labelled": labels >= 0}


def test_best_teacher_of_the_class() -> None:
    gate = ClassOracleGate(CLASSES, 3, TABLE)
    step = make_step(strangers(3), Router(gate, Dense(), combine="loss"), batch=batch_of_classes())
    expected = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1 / 3] * 3]
    torch.testing.assert_close(step.routing.weights, torch.tensor(expected))
    assert not step.models.router.needs_teachers
    first = make_step(strangers(3), Router(gate, TopK(1)), batch=batch_of_classes(), variants=[])
    assert first.routing.chosen[:, 0].tolist() == [0, 1, 0, 2, 0]
    assert RoutedKD()(first)["routed_kd"].isfinite().all()


def test_fit_counts_as_a_loop_does() -> None:
    pool, batches = strangers(3), [make_batch(40, seed=seed) for seed in range(3)]
    batches[0]["label"][:5] = -1
    gate = ClassOracleGate(CLASSES, 3)
    gate.fit(pool, batches)
    for t, name in enumerate(pool.names):
        hits: list[list[bool]] = [[] for _ in range(CLASSES)]
        for batch in batches:
            for logits, label in zip(pool(batch)[name].logits, batch["label"].tolist(), strict=True):
                if label >= 0:
                    hits[label].append(logits.argmax().item() == label)
        assert gate.accuracy[t].tolist() == pytest.approx([sum(h) / len(h) for h in hits])


def test_a_class_without_rows_takes_the_overall_accuracy() -> None:
    batch = make_batch(60)
    batch["label"] = batch["label"].clamp_max(CLASSES - 2)
    gate, pool = ClassOracleGate(CLASSES, 3), strangers(3)
    gate.fit(pool, [batch])
    overall = (pool(batch).logits.argmax(2) == batch["label"][:, None]).float().mean(0)
    torch.testing.assert_close(gate.accuracy[:, -1], overall)


def test_permuting_teachers_permutes_weights() -> None:
    order, weights = [2, 0, 1], []
    for pool in (strangers(3), strangers(3, order)):
        gate = ClassOracleGate(CLASSES, 3)
        gate.fit(pool, [make_batch(80, seed=1)])
        weights.append(gate.accuracy)
    torch.testing.assert_close(weights[1], weights[0][order])


def test_state_holds_the_table() -> None:
    fitted, fresh = ClassOracleGate(CLASSES, 3, TABLE), ClassOracleGate(CLASSES, 3)
    with pytest.raises(ModelError, match=r"has no accuracies: give router\.gate\.accuracies, or call fit\(\)"):
        fresh(make_step(strangers(3)))
    Router(fresh, TopK(1)).load_state_dict(snapshot(Router(fitted, TopK(1))))
    assert torch.equal(fresh.accuracy, fitted.accuracy)
    step = make_step(strangers(3))
    assert torch.equal(fresh(step), fitted(step))


def test_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"router\.gate\.accuracies: 3 rows .* of 4 numbers .* found rows of \[4, 4\]"
    ):
        ClassOracleGate(CLASSES, 3, TABLE[:2])
    with pytest.raises(DataError, match="no held-out row has a label"):
        ClassOracleGate(CLASSES, 3).fit(strangers(3), [make_batch(4, labelled=[False] * 4)])


def test_registered() -> None:
    assert GATES.get("class_oracle") is ClassOracleGate
    assert set(GATES.parameters("class_oracle")) == {"accuracies", "fit_on"}
