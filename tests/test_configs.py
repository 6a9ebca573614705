"""Every shipped config parses, passes the dry run, and trains end to end on little data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import moekd
from moekd.ablation import load_ablation, make_plan
from moekd.check import check
from moekd.config import load_config, parse_recipe, recipe_dict, shipped_configs
from moekd.outline import outline
from moekd.recipe import Recipe
from moekd.routers.gates import GATES, Gate

SHIPPED = shipped_configs()
#: What makes a data set small, and the marker of the tests that need files which are not shipped.
SMALL = {
    "emoji": ["data.max_train=48", "data.batch_size=24", "evaluation.splits=[test]"],
    "avmnist": ["data.train=16", "data.val=8", "data.test=8", "data.batch_size=8"],
    "mfeat": ["data.batch_size=256"],
    "camvid": ["data.stride=6", "data.batch_size=64"],
}
#: Metrics that are shares, of which every model has one.
SHARES = {"accuracy", "retrieval_r1", "zero_shot_accuracy", "knn_accuracy", "linear_probe_accuracy"}
#: Folder of the data pack by kind.
PACKS = {"avmnist": "avmnist", "mfeat": "mfeat_6views", "camvid": "camvid"}


def stage_overrides(raw: Mapping[str, Any]) -> list[str]:
    """Return the overrides that give every stage one epoch."""
    short = [f"stages.{stage['name']}.epochs=1" for stage in raw["stages"]]
    for name, baseline in raw.get("baselines", {}).items():
        short += [f"baselines.{name}.stages.{stage['name']}.epochs=1" for stage in baseline["stages"]]
    return short


def configs() -> list[Any]:
    """Return the names of the configs that can run here; those that need the data packs are marked."""
    kinds = {name: load_config(name)[0]["data"]["kind"] for name in SHIPPED}
    return [
        pytest.param(name, marks=[pytest.mark.data] if kind in PACKS else [])
        for name, kind in kinds.items()
        if kind in SMALL
    ]


def large() -> list[str]:
    """Return the names of the configs whose data and teachers are not here."""
    return [name for name in SHIPPED if load_config(name)[0]["data"]["kind"] not in SMALL]


@pytest.fixture(scope="module")
def avmnist(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the prepared avmnist data."""
    from moekd.data import prepare

    source = request.getfixturevalue("data_root") / "avmnist"
    return prepare("avmnist", source, Path(tmp_path_factory.mktemp("prepared")) / "avmnist", progress=False)


@pytest.fixture(scope="module")
def mfeat(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the prepared mfeat data."""
    from moekd.data import prepare

    source = request.getfixturevalue("data_root") / "mfeat_6views"
    return prepare("mfeat", source, Path(tmp_path_factory.mktemp("prepared")) / "mfeat", progress=False)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the prepared camvid data."""
    from moekd.data import prepare

    source = request.getfixturevalue("data_root") / "camvid"
    return prepare("camvid", source, Path(tmp_path_factory.mktemp("prepared")) / "camvid", progress=False)


def made_up(field: Mapping[str, Any]) -> torch.Tensor:
    """Return two samples of an exported student's input."""
    return torch.zeros(2, *field["shape"], dtype=getattr(torch, field.get("dtype", "float32")))


def small(name: str, request: pytest.FixtureRequest) -> Recipe:
    """Return a shipped config on little data, with small masks and one epoch a stage."""
    raw, _ = load_config(name)
    overrides = [*SMALL[raw["data"]["kind"]], *stage_overrides(raw), "trainer.threads=1", "trainer.device=cpu"]
    if "masks" in raw:
        overrides += [f"masks.hidden_factor={4 if raw['data']['kind'] == 'camvid' else 64}", "masks.heads=1"]
    if raw["data"]["kind"] in PACKS:
        overrides.append(f"data.root={request.getfixturevalue(raw['data']['kind'])}")
    if "labels" in raw["data"]:
        overrides.append("data.labels=12")
    return Recipe.load(name, overrides)


def test_there_are_configs() -> None:
    assert {"quickstart", "cmkd/avmnist_image", "cmkd/avmnist_audio"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_parses_to_itself(name: str) -> None:
    """F4: every shipped config is valid."""
    raw, source = load_config(name)
    config = parse_recipe(raw, source)
    resolved = recipe_dict(config)
    assert recipe_dict(parse_recipe(resolved, "resolved")) == resolved
    assert config.title or name.startswith("suites/")
    assert SHIPPED[name].read_text().startswith("#"), "the first line says what the config is for"


@pytest.mark.parametrize("name", configs())
def test_it_passes_the_dry_run(name: str, request: pytest.FixtureRequest) -> None:
    """F4: and takes one step of every stage."""
    report = check(small(name, request), rows=32)
    config, _ = load_config(name)
    switched_off = sum(not stage.get("enabled", True) for stage in config["stages"])
    assert len(report.stages) == len(stage_overrides(config)) - switched_off
    assert all(row["losses"] and row["trainable"] for row in report.stages)
    assert report.models[0]["name"] == "student"


@pytest.mark.parametrize("name", large())
def test_it_is_right_without_data_and_weights(name: str) -> None:
    found = outline(Recipe.load(name))
    teachers = [row for row in found.models if row["name"] != "student"]
    assert len(teachers) > 1
    assert all(row["parameters"] > 10_000_000 for row in teachers)
    assert all(stage["losses"] for stage in found.stages)


def test_the_large_configs_are_there() -> None:
    names = {"two_clips", "mixed_teachers", "agglomeration", "zero_shot_classifier"}
    assert set(large()) >= {f"vision_language/{name}" for name in names}
    assert {name for name in SHIPPED if "tiny" in name} >= {f"vision_language/tiny_{name}" for name in names}


@pytest.mark.parametrize("name", configs())
def test_it_trains_end_to_end(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    recipe = small(name, request)
    with_baselines = not name.startswith("suites/")  # their many arms are tried by the dry run
    run = moekd.distill(recipe, runs=tmp_path, name="run", quiet=True, baselines=with_baselines)
    assert {path.name for path in run.path.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "results.json",
        "checkpoints",
        "student",
        "figures",
        "report.html",
    }
    results = json.loads((run.path / "results.json").read_text())
    models = {"student", *(recipe.config.baselines if with_baselines else ())}
    assert models <= set(results["test"]["test"])
    measured = results["test"]["test"]
    assert all(0 <= value <= 1 for metrics in measured.values() for key, value in metrics.items() if key in SHARES)
    assert all(SHARES & metrics.keys() for metrics in measured.values())
    assert (results["routing"] is None) == (recipe.config.router is None)
    document = json.loads((run.student / "config.json").read_text())
    said = moekd.load_student(run.path)(*[made_up(document["fields"][field]) for field in document["inputs"]])
    if isinstance(said, Mapping):
        assert (said["embeddings"]["image"] if "embeddings" in said else said["logits"]).shape[0] == 2
    else:
        assert said.shape[:2] == (2, len(results["class_names"]))


@pytest.mark.parametrize(
    "name", ["topk", "balance", "signals", "teachers", "masks", "stages", "regimes_emoji", "vision_language"]
)
def test_every_arm_of_the_shipped_ablations_passes_the_dry_run(name: str) -> None:
    small = ["data.max_train=48", "data.batch_size=24", "data.labels=12"]
    ablation = load_ablation(name, small, seeds=1)
    plan = make_plan(ablation)
    arms = [job["arm"] for job in plan.jobs if job["arm"] is not None]
    assert len(arms) == len(ablation.settings) * len(ablation.arms)
    assert ablation.baseline in arms
    assert plan.inapplicable == {}


@pytest.mark.data
@pytest.mark.parametrize("name", ["regimes_avmnist", "regimes_mfeat", "masks_avmnist"])
def test_ablations_on_the_data_packs(name: str, request: pytest.FixtureRequest) -> None:
    kind = name.partition("_")[2]
    root = f"data.root={request.getfixturevalue(kind)}"
    plan = make_plan(
        load_ablation(name, [*SMALL[kind], root, "data.labels=12"] if kind == "avmnist" else [root], seeds=1)
    )
    assert plan.inapplicable == {}


def test_a_new_gate_is_an_arm_of_the_ablation_of_all_routers() -> None:
    """One class and one registry line are enough."""

    @GATES.register("first_teacher_only")
    class FirstTeacherOnly(Gate):
        """The first teacher, always."""

        gives_weights = True

        def forward(self, step: Any) -> torch.Tensor:
            """Return the logarithms of the weights."""
            scores = torch.full((len(step.batch["id"]), len(step.experts)), -1e9)
            scores[:, 0] = 0
            return scores

    try:
        plan = make_plan(
            load_ablation("routers", ["data.max_train=48", "data.batch_size=24", "data.labels=12"], seeds=1)
        )
    finally:
        del GATES._members["first_teacher_only"]
    arms = {job["arm"] for job in plan.jobs}
    assert {"first_teacher_only", "uniform", "oracle", "hash", "instance", "student alone"} <= arms
    assert {arm for _, arm in plan.inapplicable} == {"dense_instance", "modality", "task"}
