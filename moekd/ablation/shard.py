"""Which jobs of an ablation one of several machines runs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ConfigError
from .events import Job


def parse_shard(text: str) -> tuple[int, int]:
    """Read "2/4", the second of four parts, as (2, 4).

    Raises:
        ConfigError: not of this form, no parts, or a part that is not there.
    """
    found = re.fullmatch(r"\s*([0-9]+)\s*/\s*([0-9]+)\s*", text)
    if found is None:
        raise ConfigError(f"a shard is PART/PARTS such as 2/4 (the second of four parts), found {text!r}")
    index, count = int(found[1]), int(found[2])
    _check(index, count)
    return index, count


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Return the jobs of one part, in the given order; the parts are disjoint and together all jobs.

    Jobs that are connected through `start` stay together, so that no machine waits for another or does its work again.
    The groups are dealt, largest first, to the part with the fewest jobs: parts differ by no more than the largest
    group. All machines have to call it with the same list: all jobs of the ablation, also those that are finished.

    Args:
        jobs: of the whole ablation.
        index: of the part, from 1.
        count: of parts; there may be more parts than groups, then some are empty.

    Raises:
        ConfigError: a part that is not there.
    """
    _check(index, count)
    sizes = [0] * count
    mine: set[int] = set()
    for group in sorted(_groups(jobs), key=len, reverse=True):
        part = min(range(count), key=sizes.__getitem__)
        sizes[part] += len(group)
        if part == index - 1:
            mine.update(group)
    return [job for place, job in enumerate(jobs) if place in mine]


def _groups(jobs: Sequence[Job]) -> list[list[int]]:
    """Return the places of connected jobs; a start job that is not in the list connects those that name it, too."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        leader.setdefault(key, key)
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for job in jobs:
        if job.get("start") is not None:
            leader[find(job["key"])] = find(job["start"])
    groups: dict[str, list[int]] = {}
    for place, job in enumerate(jobs):
        groups.setdefault(find(job["key"]), []).append(place)
    return list(groups.values())


def _check(index: int, count: int) -> None:
    if count < 1:
        raise ConfigError(f"an ablation is dealt to at least 1 part, found {count}")
    if not 1 <= index <= count:
        raise ConfigError(f"there is no part {index} of {count}; parts count from 1 to {count}")
