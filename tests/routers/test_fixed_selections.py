"""Selections that do not read the scores: single, random, hash."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.errors import ConfigError, ModelError
from moekd.objectives import KD, RoutedKD
from moekd.routers import SELECTIONS, Hash, Random, Router, Selection, Single, UniformGate, balanced_table

from ..builders import clones, make_batch, make_step, snapshot, strangers


def route(selection: Selection, teachers: int = 3, combine: str = "select", pool=None, **options):
    router = Router(UniformGate(teachers), selection, combine=combine)  # type: ignore[arg-type]
    return make_step(pool or strangers(teachers), router, **options)


def loss(step) -> torch.Tensor:
    return RoutedKD()(step)["routed_kd"]


def many(rows: int, start: int = 0) -> dict:
    return make_batch(rows) | {"id": torch.arange(start, start + rows)}


@pytest.mark.parametrize("combine", ["select", "loss", "target"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_single_is_kd_from_that_teacher(combine: str, index: int) -> None:
    step = route(Single(index), combine=combine)
    expected = KD(f"t{index}")(make_step(strangers(3)))["kd"]
    torch.testing.assert_close(loss(step), expected, rtol=1e-4, atol=1e-4)
    assert step.routing.weights.tolist() == [[float(t == index) for t in range(3)]] * 6


def test_single_of_nobody_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"router\.selection\.index: no teacher variant 3; the pool has 3.*t0, t1, t2"
    ):
        _ = route(Single(3)).routing


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9999), st.sampled_from(["random", "hash"])
)
def test_rows_sum_to_one_over_k_different_teachers(rows: int, teachers: int, k: int, seed: int, kind: str) -> None:
    k = min(k, teachers)
    selection = Random(k, seed) if kind == "random" else Hash(teachers, k, seed)
    step = make_step(strangers(1), batch=many(rows, seed))
    probs = torch.full((rows, teachers), 1 / teachers)
    weights, chosen = selection(probs.log(), probs, step)
    assert chosen.shape == (rows, k)
    assert all(len(set(row)) == k and set(row) <= set(range(teachers)) for row in chosen.tolist())
    torch.testing.assert_close(weights.sum(1), torch.ones(rows))
    assert ((weights > 0).sum(1) == k).all()
    assert torch.equal(weights.gather(1, chosen), torch.full((rows, k), 1 / k))


@pytest.mark.parametrize("kind", ["random", "hash"])
@pytest.mark.parametrize("combine", ["select", "loss", "target"])
def test_metamorphic(kind: str, combine: str) -> None:
    def made(teachers: int, k: int) -> Selection:
        return Random(k) if kind == "random" else Hash(teachers, k)

    everyone = loss(route(made(3, 3), combine=combine))
    if combine != "target":
        torch.testing.assert_close(everyone, KD()(make_step(strangers(3)))["kd"], rtol=1e-4, atol=1e-4)
    same = loss(route(made(3, 2), combine=combine, pool=clones(3)))
    torch.testing.assert_close(same, KD("t0")(make_step(clones(3)))["kd"], rtol=1e-4, atol=1e-4)
    alone = loss(route(made(1, 1), teachers=1, combine=combine))
    torch.testing.assert_close(alone, KD()(make_step(strangers(1)))["kd"], rtol=1e-4, atol=1e-4)


def test_random_gives_every_subset_the_same_chance() -> None:
    selection, probs = Random(2), torch.full((2000, 4), 0.25)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(5):
        _, chosen = selection(probs.log(), probs, make_step(strangers(1), batch=many(2000)))
        counts.update(tuple(sorted(row)) for row in chosen.tolist())
    assert set(counts) == set(combinations(range(4), 2))
    expected = 10_000 / 6
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 20.5  # chi-square, 5 df, p = 0.001


def test_random_is_unbiased() -> None:
    pool, batch = strangers(3), make_batch(6)
    selection = Random(1)
    total = sum(route(selection, pool=pool, batch=batch).routing.weights for _ in range(900))
    torch.testing.assert_close(total / 900, torch.full((6, 3), 1 / 3), atol=0.06, rtol=0)


def test_random_draws_anew_in_training_and_not_in_validation() -> None:
    selection, batch = Random(1), many(32)

    def chosen(training: bool) -> list:
        return route(selection, batch=batch, training=training).routing.chosen.tolist()

    assert chosen(True) != chosen(True)
    assert chosen(False) == chosen(False)


def test_random_resumes_exactly_and_two_processes_choose_as_one() -> None:
    whole, halves, batch = Random(2, seed=4), [Random(2, seed=4), Random(2, seed=4)], many(8)
    for _ in range(3):
        one = route(whole, batch=batch).routing.chosen
        parts = []
        for index, selection in enumerate(halves):
            rows = {key: value[4 * index : 4 * index + 4] for key, value in batch.items()}
            parts.append(route(selection, batch=rows).routing.chosen)
        assert torch.equal(torch.cat(parts), one)
    resumed = Random(2, seed=4)
    resumed.load_state_dict(snapshot(whole))
    assert torch.equal(route(resumed, batch=batch).routing.chosen, route(whole, batch=batch).routing.chosen)


@pytest.mark.parametrize("teachers", [1, 2, 3, 5])
def test_every_column_of_the_table_is_balanced(teachers: int) -> None:
    table = balanced_table(teachers, 64, 0)
    assert table.shape == (64 * teachers, teachers)
    for block in table.split(teachers):
        assert all(sorted(column) == list(range(teachers)) for column in [*block.T.tolist(), *block.tolist()])


def test_hash_is_a_function_of_the_sample() -> None:
    selection = Hash(3, 2)
    first = route(selection, batch=many(12)).routing.chosen
    assert torch.equal(route(selection, batch=many(12), training=False).routing.chosen, first)
    assert torch.equal(route(selection, batch=many(4, start=8)).routing.chosen, first[8:])
    assert torch.equal(route(selection, batch=many(12, start=192)).routing.chosen, first)
    assert not torch.equal(route(Hash(3, 2, seed=1), batch=many(12)).routing.chosen, first)


def test_hash_uses_all_teachers_equally_often() -> None:
    chosen = route(Hash(3), batch=many(3 * 64)).routing.chosen
    assert torch.bincount(chosen[:, 0]).tolist() == [64, 64, 64]


def test_hash_table_is_in_the_state() -> None:
    saved, loaded = Hash(3, seed=1), Hash(3, seed=2)
    loaded.load_state_dict(snapshot(saved))
    assert torch.equal(loaded.table, saved.table)


def test_hash_by_label_and_unlabelled_rows_by_id() -> None:
    labels = torch.tensor([0, 1, 2, 2, 1, -1])
    batch = many(6, start=50) | {"label": labels, "labelled": labels >= 0}
    by_label, by_id = (
        route(Hash(3, key="label"), batch=batch).routing.chosen,
        route(Hash(3), batch=batch).routing.chosen,
    )
    table = Hash(3).table
    assert torch.equal(by_label[:5, 0], table[labels[:5], 0])
    assert by_label[5] == by_id[5]


def test_hash_by_label_refuses_dense_labels() -> None:
    batch = many(6) | {"label": torch.zeros(6, 8, 8, dtype=torch.int64)}
    with pytest.raises(ModelError, match=r"key 'label' needs one label a row, found labels \(6, 8, 8\) for 6 rows"):
        _ = route(Hash(3, key="label"), batch=batch).routing


def test_numbers_of_teachers_are_checked() -> None:
    for make in (lambda: Hash(2, 3), lambda: route(Random(3), teachers=2).routing):
        with pytest.raises(ConfigError, match=r"router\.selection\.k: 3 teachers chosen of 2; lower k or add teachers"):
            make()
    for make in (lambda: Hash(2, 0), lambda: Random(0)):
        with pytest.raises(ConfigError, match="at least one teacher must be chosen, found 0"):
            make()


def test_constant_weights_refuse_the_signal_kd_and_samples_are_needed() -> None:
    for selection in (Single(0), Random(2), Hash(3, 2)):
        assert Router(UniformGate(3), selection, combine="loss").signal == "aux_only"
        with pytest.raises(ConfigError, match="gives the gate no gradient"):
            Router(UniformGate(3), selection, combine="loss", signal="kd")
    with pytest.raises(ModelError, match="selection 'random' reads the samples' ids"):
        Random(1)(torch.zeros(1, 2), torch.full((1, 2), 0.5))


def test_registered() -> None:
    assert [SELECTIONS.get(name) for name in ("single", "random", "hash")] == [Single, Random, Hash]
    assert set(SELECTIONS.parameters("hash")) == {"k", "seed", "key", "blocks"}
