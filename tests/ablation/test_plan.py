"""Which runs an ablation needs, and which stages they share."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moekd.ablation import Plan, make_plan
from moekd.ablation.plan import _all_arms, config_digest
from moekd.errors import ConfigError
from moekd.registry import Injected
from moekd.routers.gates import GATES
from moekd.routers.gates.base import Gate
from moekd.step import Step

from ..engine.conftest import _one_thread, _tiny_kinds  # noqa: F401
from ..engine.tiny import ROOT, full
from .small import BASE, QUICK, ROUTED_ONLY, make_ablation, write_ablation

SLOW = {"stages.distill.optimizer": {"kind": "adam", "lr": 1e-4}}
#: Every one of them starts with the co-training; most with the masks; two differ in the last stage only.
FAMILY: dict[str, dict[str, Any]] = {
    "plain": {},
    "slow": SLOW,
    "no balance": {"router.balance": []},
    "other masks": {"masks.hidden_factor": 2},
    "other student": {"student.hidden": 6},
}


def warmed(**changes: Any) -> dict[str, Any]:
    """Return the base config with a stage that trains the router alone before the last one."""
    recipe = full(baselines={}, **changes)
    recipe["router"] |= {"combine": "loss", "selection": "dense"}
    warm = {"name": "warm", "trains": ["router"], "epochs": 1, "objectives": ["routed_kd"]}
    recipe["stages"] = [stage | {"epochs": 1} for stage in recipe["stages"]]
    recipe["stages"].insert(2, warm)
    return recipe


def tree(plan: Plan, seed: int = 0) -> dict[str, str | None]:
    """Return from which shared stages every run starts, by its title."""
    titles = {job["key"]: job["title"] for job in plan.jobs} | {None: None}
    return {job["title"]: titles[job["start"]] for job in plan.jobs if job["seed"] == seed}


def stages(job: Mapping[str, Any]) -> list[str]:
    """Return the names of a job's stages."""
    return [stage["name"] for stage in job["config"]["stages"]]


@pytest.fixture(scope="module")
def family(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Plan:  # noqa: F811
    """Return the plan of the family."""
    return make_plan(make_ablation(Path(tmp_path_factory.mktemp("family")), FAMILY, warmed()))


def test_shared_stages_form_a_tree(family: Plan) -> None:
    plan = family
    assert tree(plan) == {
        "cotrain of 4 arms": None,
        "cotrain, specialise of 3 arms": "cotrain of 4 arms",
        "cotrain, specialise, warm of 2 arms": "cotrain, specialise of 3 arms",
        "plain": "cotrain, specialise, warm of 2 arms",
        "slow": "cotrain, specialise, warm of 2 arms",
        "no balance": "cotrain, specialise of 3 arms",
        "other masks": "cotrain of 4 arms",
        "other student": None,
    }
    by_key = {job["key"]: job for job in plan.jobs}
    for place, job in enumerate(plan.jobs):
        if job["start"] is not None:
            start = by_key[job["start"]]
            assert plan.jobs.index(start) < place
            assert stages(job)[: len(stages(start))] == stages(start)
            assert len(stages(job)) > len(stages(start))


def test_shared_stages_hold_what_they_make_use_of(family: Plan) -> None:
    shared = {len(stages(job)): job["config"] for job in family.jobs if job["arm"] is None}
    assert [("masks" in shared[n], "router" in shared[n]) for n in (1, 2, 3)] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def test_routers_differ_from_the_stage_on_that_routes(tmp_path: Path) -> None:
    arms = {"select": {}, "mixed": {"router.combine": "target"}, "uniform": {"router.gate": "uniform"}}
    plan = make_plan(make_ablation(tmp_path, arms, BASE))
    assert set(tree(plan).values()) == {None, "cotrain, specialise of 3 arms"}
    assert len(plan.jobs) == 4


def test_nothing_is_shared_with_oneself(tmp_path: Path) -> None:
    plan = make_plan(make_ablation(tmp_path, {"one": {}}, BASE, seeds=2))
    assert [(job["arm"], job["start"], job["seed"]) for job in plan.jobs] == [("one", None, 0), ("one", None, 1)]
    apart = {"a": {"student.hidden": 4}, "b": {"student.hidden": 6}, "c": {"data.rows": 30}}
    assert {job["start"] for job in make_plan(make_ablation(tmp_path, apart, BASE)).jobs} == {None}


def test_seeds_do_not_mix_and_come_one_after_another(tmp_path: Path) -> None:
    plan = make_plan(make_ablation(tmp_path, {"plain": {}, "slow": SLOW}, BASE, seeds=[5, 3]))
    assert [job["seed"] for job in plan.jobs] == [5, 5, 5, 3, 3, 3]
    seeds = {job["key"]: job["seed"] for job in plan.jobs}
    assert all(job["config"]["seed"] == job["seed"] for job in plan.jobs)
    assert all(seeds[job["start"]] == job["seed"] for job in plan.jobs if job["start"])
    assert len(seeds) == 6


def test_settings_share_what_they_agree_in(tmp_path: Path) -> None:
    settings = {"long": {}, "slow": SLOW, "few": {"data.labels": 20}}
    plan = make_plan(make_ablation(tmp_path, {"one": {}, "mixed": {"router.combine": "target"}}, settings=settings))
    shared = [job for job in plan.jobs if job["arm"] is None]
    assert sorted(job["title"] for job in shared) == ["cotrain, specialise of 2 arms", "cotrain, specialise of 4 arms"]
    starts = {(job["setting"], job["arm"]): job["start"] for job in plan.jobs if job["arm"]}
    assert starts["long", "one"] == starts["slow", "mixed"] != starts["few", "one"] == starts["few", "mixed"]


def test_baselines_of_the_base_are_left_out(tmp_path: Path) -> None:
    recipe = full(paper={"title": "A paper", "must_beat": "alone"})
    plan = make_plan(make_ablation(tmp_path, {"one": {}}, recipe))
    assert not plan.jobs[0]["config"].get("baselines")
    assert plan.jobs[0]["config"]["paper"] == {"title": "A paper"}


KEYS = """
import json, sys
from tests.engine import tiny
tiny.register()
from moekd.ablation import load_ablation, make_plan
print(json.dumps([[job["key"], job["start"]] for job in make_plan(load_ablation(sys.argv[1])).jobs]))
"""


def test_keys_are_the_same_in_every_process(tmp_path: Path) -> None:
    path = write_ablation(tmp_path, {"plain": {}, "slow": SLOW}, BASE)
    done = subprocess.run(
        [sys.executable, "-c", KEYS, str(path)],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "123", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ours = make_plan(make_ablation(tmp_path, {"plain": {}, "slow": SLOW}, BASE)).jobs
    assert json.loads(done.stdout) == [[job["key"], job["start"]] for job in ours]


def test_keys_follow_the_config_and_not_its_titles(tmp_path: Path) -> None:
    def key(**changes: Any) -> str:
        return str(make_plan(make_ablation(tmp_path, {"one": {}}, {**QUICK, **changes})).jobs[0]["key"])

    same = key()
    assert key(title="Another title", paper={"title": "A paper"}) == same
    stage = {**QUICK["stages"][0], "optimizer": {"kind": "adam", "lr": 0.5}}
    changed = {
        key(stages=[stage]),
        key(data={**QUICK["data"], "rows": 39}),
        key(trainer={**QUICK["trainer"], "log_every": 3}),
    }
    assert len(changed) == 3
    assert same not in changed
    assert same.startswith("one-")


def test_the_order_of_keys_in_a_config_does_not_matter() -> None:
    assert config_digest({"a": 1, "b": {"c": 2, "d": 3}}) == config_digest({"b": {"d": 3, "c": 2}, "a": 1})


def test_names_that_make_the_same_folder(tmp_path: Path) -> None:
    arms: dict[str, Any] = {"k = 1": {}, "K=1": {}, "!": {}, "?": {}, "x" * 90: {}, "x" * 91: {}}
    plan = make_plan(make_ablation(tmp_path, arms, QUICK))
    keys = [job["key"] for job in plan.jobs if job["arm"]]
    assert len(set(keys)) == 6
    assert [job["arm"] for job in plan.jobs] == list(arms)
    assert keys == [job["key"] for job in make_plan(make_ablation(tmp_path, arms, QUICK)).jobs]
    assert all(len(key) <= 100 for key in keys)


def test_mistakes_of_all_arms_at_once_grouped_by_message(tmp_path: Path) -> None:
    arms = {
        "good": {},
        "typo": {"router.selction.k": 2},
        "typo again": {"router.selction.k": 3},
        "field": {"student.inputs": ["imoge"]},
        "stage": {"stages.distil.epochs": 2},
        "circle": {"teachers.right.taps": ["fc7"]},
    }
    with pytest.raises(ConfigError) as caught:
        make_plan(make_ablation(tmp_path, arms, BASE))
    found = caught.value.problems
    assert len(found) == 4
    assert found[0].startswith("arms 'typo', 'typo again': ")
    assert "did you mean 'selection'" in found[0]
    assert found[1].startswith("arm 'field': ")
    assert found[2].startswith("arm 'stage': ")
    assert "did you mean 'distill'" in found[2]
    assert found[3].startswith("arm 'circle': ")
    assert "fc7" in found[3]


def test_a_mistake_of_the_base_is_told_once(tmp_path: Path) -> None:
    recipe = {**QUICK, "student": {**QUICK["student"], "hiden": 3}}
    with pytest.raises(ConfigError) as caught:
        make_plan(
            make_ablation(tmp_path, {"a": {}, "b": {"trainer.log_every": 1}}, recipe, settings={"s": {}, "t": {}})
        )
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("every arm: ")


class Coin(Gate):
    """A gate of a package that the ablation has never heard of: all teachers are the same to it."""

    def __init__(self, num_teachers: Injected[int], sides: int = 2) -> None:
        super().__init__()
        if sides != num_teachers:
            raise ConfigError(f"a coin of {sides} sides can't choose among {num_teachers} teachers")

    @classmethod
    def examples(cls, num_teachers: int) -> Mapping[str, Mapping[str, Any]]:
        """Return a coin that fits, and one that does not."""
        fair: dict[str, Any] = {"gate": {"sides": num_teachers}, "selection": {"kind": "dense"}, "combine": "target"}
        return {"fair": fair, "thick": fair | {"gate": {"sides": 99}}}

    def forward(self, step: Step) -> Tensor:
        """Return `[B, T]`."""
        return torch.zeros(len(step.batch["id"]), len(step.experts))


def test_every_router_is_an_arm_also_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GATES._members, "coin", Coin)
    keys: dict[str, Any] = {"every": "routers", "without": ["uniform", "random"], "baseline": "coin_fair"}
    plan = make_plan(make_ablation(tmp_path, {"mine": {}}, ROUTED_ONLY, **keys))
    names = [arm.name for arm in plan.arms]
    assert names[0] == "mine"
    assert {"coin_fair", "coin_thick", "instance", "top_k", "single_0", "single_1"} <= set(names)
    assert not {"uniform", "random", "single_2"} & set(names)
    assert len(names) == len(set(names)) > 15
    jobs = {job["arm"]: job for job in plan.jobs}
    assert jobs["coin_fair"]["config"]["router"]["gate"] == {"kind": "coin", "sides": 2}
    assert "coin_thick" not in jobs
    assert "a coin of 99 sides can't choose among 2 teachers" in plan.inapplicable["", "coin_thick"]
    assert set(names) == {arm for _, arm in plan.inapplicable} | set(jobs)
    assert all(reason.strip() for reason in plan.inapplicable.values())


def test_mistakes_in_the_names_of_a_family(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(make_ablation(tmp_path, {}, ROUTED_ONLY, every="routers", without=["unifrm"], baseline="instence"))
    assert caught.value.problems == [
        "small: without: no arm 'unifrm'; did you mean 'uniform'?",
        "small: baseline: no arm 'instence'; did you mean 'instance' or 'dense_instance' or 'mismatch'?",
    ]


def test_a_family_of_which_nothing_can_run_is_a_mistake(tmp_path: Path) -> None:
    stage = {**ROUTED_ONLY["stages"][0], "trains": ["router"], "objectives": ["cross_entropy"]}
    with pytest.raises(ConfigError) as caught:
        make_plan(make_ablation(tmp_path, {}, {**ROUTED_ONLY, "stages": [stage]}, every="routers"))
    assert len(caught.value.problems) < 6
    assert re.search(r"^arms 'agreement', .* and \d+ more: stages.distill: nothing to train", str(caught.value))


def test_a_family_chooses_among_the_experts_of_the_base(tmp_path: Path) -> None:
    recipe = {**BASE, "router": {**BASE["router"], "experts": ["right", "both", "right/fc1"]}}
    family = _all_arms(make_ablation(tmp_path, {}, recipe, every="routers"))
    assert {tuple(arm.changes["router"]["experts"]) for arm in family} == {("right", "both", "right/fc1")}
    assert {"single_2"} == {arm.name for arm in family} & {"single_2", "single_3"}
