"""Several views of a sample: what is replayed from the cache is what the teachers say about the augmented batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from moekd.cache import Table, cache_in_memory, why_not_cached
from moekd.errors import DataError
from moekd.model import Batch
from moekd.schedules import Progress
from moekd.transforms import TRANSFORMS, RandomShift, ReplayableTransform
from moekd.transforms.draws import uniforms

from ..engine.tiny import simple, train
from .builders import all_rows, distance, live, pass_of, pool_of, tables, through
from .runs import TOWERS, farthest


class Noise(ReplayableTransform):
    """Adds noise to fields, drawn from (seed, sample id, view).

    Args:
        fields: the fields.
        views: see `ReplayableTransform`.
        seed: of the draws.
    """

    def __init__(self, fields: list[str] = ["x"], views: int | None = 3, seed: int = 5) -> None:  # noqa: B006
        super().__init__(views, seed)
        self.fields = fields

    def replay(self, batch: Batch, views: Tensor) -> Batch:
        """Return the noisy batch."""
        noisy = {f: batch[f] + uniforms(self.seed, batch["id"], views, batch[f].shape[1]) for f in self.fields}
        return {**batch, **noisy}

    def identity(self) -> dict[str, Any]:
        """Return the options."""
        return {"kind": "noise", "fields": self.fields, "seed": self.seed}


@pytest.fixture(autouse=True, scope="module")
def _noise() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRANSFORMS._members, "noise", Noise)
        yield


@pytest.mark.parametrize("place", ["memory", "store", "mapped"])
def test_replayed_is_live(tmp_path: Path, place: str) -> None:
    teachers = pass_of(transforms=[Noise()])
    cache = cache_in_memory(teachers) if place == "memory" else through(tmp_path, teachers, mapped=place == "mapped")
    batch, seen = all_rows(teachers), set()
    for epoch in range(6):
        shown = Noise()(batch, Progress(epoch, 0.0))
        seen |= set(shown["view"].tolist())
        assert distance(cache(shown), live(teachers, shown)) < 1e-6
        assert distance(cache(shown), live(teachers, batch)) > 1e-3
    assert seen == {0, 1, 2}
    with pytest.raises(DataError, match="holds 3 views of a sample, but the batch has no field 'view'"):
        cache(batch)


def test_views_are_part_of_the_identity(tmp_path: Path) -> None:
    teachers = pass_of(variants=["b"], transforms=[Noise()])
    through(tmp_path, teachers)
    first = len(tables(tmp_path))
    for other in (Noise(views=2), Noise(seed=6)):
        with pytest.raises(DataError, match="differs:\n  transform: "):
            through(tmp_path, replace(teachers, transforms=[other]), missing="raise")
    through(tmp_path, replace(teachers, transforms=[Noise(views=2)]))
    assert len(tables(tmp_path)) == 2 * first
    assert {Table.open(folder).views for folder in tables(tmp_path)} == {2, 3}


def test_which_transforms_are_replayed() -> None:
    pool = pool_of()

    def reasons(*transforms: Any) -> list[str]:
        return why_not_cached(pool, ["a"], transforms=transforms)

    assert reasons() == reasons(Noise()) == reasons(Noise(), Noise(["y"])) == []
    assert "RandomShift can't be replayed" in reasons(Noise(), RandomShift(["x"]))[0]
    assert "Noise shows something new in every epoch; set its 'views'" in reasons(Noise(views=None))[0]
    assert "give all of them the same 'views' and 'seed'" in reasons(Noise(), Noise(seed=6))[0]


def test_a_run_with_replayed_views_is_the_live_one(tmp_path: Path) -> None:
    def recipe(place: str) -> dict[str, Any]:
        noise = {"kind": "noise", "fields": ["left", "right"]}
        objectives = ["cross_entropy", "contrastive_kd", {"kind": "kd", "teacher": "wide"}]
        stage = {"objectives": objectives, "transforms": [noise], "cache": place, "epochs": 3}
        teachers = {"narrow": TOWERS | {"dim": 4}, "wide": TOWERS | {"dim": 9}}
        return simple(stage, student=TOWERS, teachers=teachers)

    live_run, cached = train(recipe("off"), tmp_path / "live"), train(recipe("memory"), tmp_path / "cached")
    assert cached.records("stage_end")[0]["teacher_forwards"] == 0
    assert farthest(live_run, cached) < 1e-6
