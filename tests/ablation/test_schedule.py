"""Jobs become ready, fail and are chosen as their dependencies and the workers' memories want it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.ablation.schedule import Schedule
from moekd.errors import ConfigError

from .test_shard import forests
from .work import job


def drain(schedule: Schedule, last: dict | None = None) -> list[str]:
    """Return the keys in the order in which one worker that never fails runs them."""
    order = []
    while (found := schedule.best({0: last})) is not None:
        last = dict(schedule.take(found[1]))
        schedule.finish(found[1])
        order.append(found[1])
    assert schedule.over
    return order


@given(forests(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_every_job_runs_once_after_its_start_or_is_lost_with_it(jobs: list[dict], slots: int, random) -> None:
    schedule = Schedule(jobs)
    known = {entry["key"]: entry["start"] for entry in jobs}
    idle: dict[int, dict | None] = dict.fromkeys(range(slots))
    busy: dict[int, str] = {}
    finished, failed, began = set(), set(), []
    while not schedule.over:
        found = schedule.best(idle)
        if found is not None and (not busy or random.random() < 0.7):
            slot, key = found
            start = known[key]
            assert start is None or start not in known or start in finished
            del idle[slot]
            busy[slot] = key
            began.append(key)
            schedule.take(key)
        else:
            slot = random.choice(sorted(busy))
            key = busy.pop(slot)
            idle[slot] = next(entry for entry in jobs if entry["key"] == key)
            if random.random() < 0.2:
                failed.add(key)
                lost = schedule.fail(key, "why")
                for needs in lost:
                    assert schedule.failures[needs] == f"needs {known[needs]}, which failed"
                failed.update(lost)
            else:
                schedule.finish(key)
                finished.add(key)
    assert len(began) == len(set(began))
    assert set(schedule.finished) == finished
    assert set(schedule.failures) == failed
    assert finished | failed == set(known)
    assert not finished & failed
    for key in finished:
        assert known[key] not in failed


def test_one_worker_does_a_seed_after_the_other_shared_work_first() -> None:
    jobs = [
        job(f"{seed}-{name}", start=f"{seed}-{start}" if start else None, seed=seed)
        for seed in (0, 1)
        for name, start in (("alone", None), ("few", None), ("x", "few"), ("many", None), ("y", "many"), ("z", "many"))
    ]
    names = ["many", "y", "z", "few", "x", "alone"]
    assert drain(Schedule(jobs)) == [f"{seed}-{name}" for seed in (0, 1) for name in names]


def test_the_longest_chain_of_needs_counts_too() -> None:
    jobs = [job("a"), job("b", start="a"), job("c"), job("d", start="c"), job("e", start="d"), job("f")]
    assert drain(Schedule(jobs), last=None)[:1] == ["c"]
    chain = [job("j0")] + [job(f"j{n}", start=f"j{n - 1}") for n in range(1, 3000)]
    assert drain(Schedule(chain)) == [entry["key"] for entry in chain]


def test_jobs_go_where_their_relatives_were() -> None:
    jobs = [job("new", seed=2), job("sibling", start="s1", seed=1), job("same", seed=0)]
    lasts = {0: job("old", seed=0), 1: job("brother", start="s1", seed=1)}
    schedule = Schedule(jobs)
    assert schedule.best(lasts) == (1, "sibling")
    schedule.take("sibling")
    assert schedule.best(lasts) == (0, "same")
    schedule.take("same")
    assert schedule.best({5: None, 0: lasts[0]}) == (0, "new")
    assert schedule.best({}) is None


def test_a_start_that_is_not_in_the_list_is_finished() -> None:
    assert drain(Schedule([job("a", start="long ago")])) == ["a"]
    assert Schedule([]).over


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([job("a"), job("a")], "two jobs have the key 'a'"),
        ([job("a", start="b"), job("b", start="a"), job("c")], "in a circle: a, b$"),
        ([job("a", start="a")], "in a circle: a$"),
        ([job("../a")], "key of a job '../a' can't be used"),
        ([job("")], "it is empty"),
    ],
)
def test_lists_that_make_no_sense(jobs: list[dict], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(jobs)
