"""Parts of an ablation are disjoint, complete, balanced, and no part needs another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.ablation.shard import parse_shard, shard
from moekd.errors import ConfigError

from .work import job


@st.composite
def forests(draw: st.DrawFn) -> list[dict]:
    """Return jobs in any order, each of which may start from an earlier made one, or from one that is not there."""
    size = draw(st.integers(0, 25))
    jobs = []
    for number in range(size):
        start = draw(st.none() | st.integers(0, number - 1 if number else 0) | st.just(-1))
        named = None if start is None or start == number else "absent" if start < 0 else f"job{start}"
        jobs.append(job(f"job{number}", start=named))
    return draw(st.permutations(jobs))


def family(jobs: list[dict], key: str) -> frozenset[str]:
    """Return the names that are connected with `key`, found by walking to and fro until nothing is new."""
    found, edges = {key}, [{entry["key"], entry["start"]} for entry in jobs if entry["start"]]
    while more := {name for edge in edges if edge & found for name in edge} - found:
        found |= more
    return frozenset(found)


@given(forests(), st.integers(1, 6))
def test_parts_are_disjoint_complete_balanced_and_need_nobody(jobs: list[dict], count: int) -> None:
    parts = [shard(jobs, index, count) for index in range(1, count + 1)]
    keys = [[entry["key"] for entry in part] for part in parts]
    assert sorted(key for part in keys for key in part) == sorted(entry["key"] for entry in jobs)
    order = [entry["key"] for entry in jobs]
    groups = {family(jobs, key) for key in order}
    for part in keys:
        assert part == [key for key in order if key in part]
        for group in groups:
            assert not (set(part) & group) or group - {"absent"} <= set(part)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= max((len(group - {"absent"}) for group in groups), default=0)
    assert parts == [shard([dict(entry) for entry in jobs], index, count) for index in range(1, count + 1)]


def test_one_part_is_everything_and_seeds_are_dealt_evenly() -> None:
    jobs = [job(f"{seed}-shared") for seed in range(5)]
    jobs += [job(f"{seed}-{arm}", start=f"{seed}-shared") for seed in range(5) for arm in "abc"]
    assert shard(jobs, 1, 1) == jobs
    seeds = [{entry["key"][0] for entry in shard(jobs, index, 2)} for index in (1, 2)]
    assert seeds == [{"0", "2", "4"}, {"1", "3"}]
    assert [len(shard(jobs, index, 7)) for index in range(1, 8)] == [4, 4, 4, 4, 4, 0, 0]


def test_large_groups_are_dealt_first() -> None:
    jobs = [job("a"), job("b"), job("c"), job("d"), job("e", start="d"), job("f", start="d")]
    assert [[entry["key"] for entry in shard(jobs, index, 2)] for index in (1, 2)] == [list("def"), list("abc")]


@pytest.mark.parametrize(("text", "found"), [("1/1", (1, 1)), ("2/4", (2, 4)), (" 10 / 12 ", (10, 12))])
def test_the_text_of_a_part(text: str, found: tuple[int, int]) -> None:
    assert parse_shard(text) == found


@pytest.mark.parametrize("text", ["", "2", "2/", "/4", "a/b", "-1/4", "1.5/2", "1/2/3", "2 4", "²/4", "1/4x"])
def test_a_text_that_is_no_part(text: str) -> None:
    with pytest.raises(ConfigError, match="PART/PARTS such as 2/4"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/4", "no part 0 of 4; parts count from 1 to 4"),
        ("5/4", "no part 5 of 4"),
        ("1/0", "at least 1 part, found 0"),
    ],
)
def test_a_part_that_is_not_there(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_shard(text)
    with pytest.raises(ConfigError, match=message):
        shard([], *map(int, text.split("/")))
