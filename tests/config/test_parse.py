"""Whole recipes: every mistake in one report, and what must hold between the parts."""

from __future__ import annotations

from typing import Any

import pytest

from moekd.config import RecipeConfig, Spec, parse_recipe, parse_yaml, recipe_dict, to_yaml
from moekd.errors import ConfigError


def mistakes(raw: Any, kit) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(raw, "my.yaml", kit)
    assert caught.value.exit_code == 2
    assert all(line.startswith("my.yaml: ") for line in caught.value.problems)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [line.removeprefix("my.yaml: ") for line in caught.value.problems]


def at(raw: Any, path: str) -> tuple[Any, Any]:
    """Return the parent and the key of a path such as 'stages.0.objectives.1.weight'."""
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in parents:
        raw = raw.setdefault(step, {}) if isinstance(raw, dict) else raw[step]
    return raw, last


def test_valid_recipe_is_typed_and_has_defaults(raw, kit):
    config = parse_recipe(raw, "my.yaml", kit)
    assert isinstance(config, RecipeConfig)
    assert config.data.spec == Spec("toy", {"preset": "hard"})
    assert (config.data.batch_size, config.data.labels, config.seed) == (8, None, 0)
    assert config.teachers["both"].taps == ["fusion", "fc1"]
    assert config.router.balance == [Spec("kl_to_uniform")]
    assert config.stages[0].optimizer == Spec("adam", {"lr": 1e-3})
    assert config.stages[2].objectives[1].weight == Spec("step_decay", {"every": 10})
    assert [o.label for o in config.stages[2].objectives] == ["cross_entropy", "kd"]
    assert config.evaluation.splits == ["test"]
    assert config.trainer.trackers == ["tensorboard"]


def test_stage_kinds_have_options_of_their_own(raw, kit):
    raw["stages"].append({"name": "look", "kind": "search", "trials": 3})
    assert parse_recipe(raw, "x", kit).stages[3].spec == Spec("search", {"trials": 3})
    raw["stages"][3] = {"name": "look", "kind": "search", "trails": 3, "epohs": 3}
    assert mistakes(raw, kit) == [
        "stages[3].trails: unknown option of 'search'; did you mean 'trials' or 'trains' or 'transforms'?",
        "stages[3].epohs: unknown option of 'search'; did you mean 'epochs' or 'steps'?",
        "stages[3].trials: missing; expected an integer >= 1",
    ]


def test_five_mistakes_give_five_lines(raw, kit):
    """F1: all at once."""
    raw["stages"][2]["objectives"][1]["temperatur"] = 3.0
    raw["data"]["batch_size"] = "128"
    del raw["student"]["inputs"]
    raw["router"]["selection"]["k"] = 5
    raw["teachers"]["audio"]["kind"] = "mpl"
    assert mistakes(raw, kit) == [
        "data.batch_size: expected an integer >= 1, found '128' (text; remove the quotes)",
        "student.inputs: missing; expected a list (each item: text) of length >= 1",
        "teachers.audio.kind: unknown network 'mpl'; did you mean 'mlp'?",
        "stages[2].objectives[1].temperatur: unknown option of 'kd'; did you mean 'temperature'?",
        "router.selection.k: 5 teachers chosen of 4",
    ]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("trianer", {}, "trianer: unknown key; did you mean 'trainer'"),
        ("seed", -1, "seed: expected an integer >= 0 and < 4294967296, found -1"),
        ("seed", True, "seed: expected an integer >= 0 and < 4294967296, found true"),
        ("title", 5, "title: expected text, found 5"),
        (
            "paper",
            {"title": "x", "arxiv": 2507.07015},
            "paper.arxiv: expected an arXiv id in quotes or null, found 2507.07015",
        ),
        ("paper", {"title": "x", "must_beat": "kd"}, "paper.must_beat: no baseline 'kd'; baselines: none"),
        ("data", None, "data: expected a mapping, found null"),
        ("data.kind", "toi", "data.kind: unknown data set 'toi'; did you mean 'toy'?"),
        ("data.labels", 0, "data.labels: expected an integer >= 1, a number > 0 and <= 1 or null, found 0"),
        ("data.labels", 1.5, "data.labels: expected an integer >= 1, a number > 0 and <= 1 or null, found 1.5"),
        ("data.labels", True, "data.labels: expected an integer >= 1, a number > 0 and <= 1 or null, found true"),
        ("data.batchsize", 3, "data.batchsize: unknown option of 'toy'; did you mean 'batch_size'?"),
        ("data.on_bad_sample", "skipp", "data.on_bad_sample: expected 'raise', 'skip' or 'substitute', found 'skipp'"),
        (
            "student.inputs",
            "image",
            "student.inputs: expected a list (each item: text) of length >= 1, found 'image' (text)",
        ),
        ("student.inputs", [], "student.inputs: expected a list (each item: text) of length >= 1, found a list of 0"),
        ("student.weights", "a.pt", "student.weights: expected the path of a .safetensors file or null, found 'a.pt'"),
        (
            "student.dtype",
            "float8",
            "student.dtype: expected 'float32', 'bfloat16' or 'float16', found 'float8' (text)",
        ),
        ("student.taps", ["a", "a"], "student.taps: 'a' occurs twice"),
        ("teachers", [], "teachers: expected a mapping (each value: a network), found a list"),
        ("teachers.a/b", {"kind": "mlp", "inputs": ["x"]}, "teachers: key 'a/b' (text): expected a name of at most 64"),
        ("teachers.student", {"kind": "mlp", "inputs": ["x"]}, "teachers.student: the name 'student' is taken"),
        ("masks", {"heads": 3}, "masks.kind: missing; known kit_masks: attention"),
        ("masks.heads", 0, "masks.heads: expected an integer >= 1, found 0"),
        ("router", {}, "router.gate: missing; expected a gate"),
        ("router.gate", "os.system", "router.gate.kind: 'os.system' (text) is refused"),
        ("router.combine", "mix", "router.combine: expected 'select', 'loss' or 'target', found 'mix' (text)"),
        ("router.selection.k", 5, "router.selection.k: 5 teachers chosen of 4"),
        ("stages", [], "stages: expected a list (each item: a stage) of length >= 1, found a list of 0"),
        ("stages", {"a": {}}, "stages: expected a list (each item: a stage) of length >= 1, found a mapping"),
        ("stages.0", "train", "stages[0].name: missing; expected a name in snake_case, at most 64 characters"),
        ("stages.0.name", "Co-train", "stages[0].name: expected a name in snake_case"),
        ("stages.0.name", "distill", "stages[2]: 'distill' is the name of stages[0] already"),
        ("stages.0.name", "x\n", "stages[0].name: expected a name in snake_case"),
        (
            "stages.0.trains",
            ["pupil"],
            "stages[0].trains[0]: expected student, teachers, teachers.NAME, masks, router, objectives, or a part",
        ),
        ("stages.0.trains", ["teachers.aduio"], "stages[0].trains[0]: no teacher 'aduio'; did you mean 'audio'?"),
        ("stages.0.trains", [], "stages[0].trains: a stage needs something to train"),
        ("stages.0.objectives", [], "stages[0].objectives: a stage that trains needs at least one objective"),
        (
            "stages.0.objectives",
            ["kd", "kd"],
            "stages[0].objectives[1]: 'kd' is the name of stages[0].objectives[0] already",
        ),
        ("stages.1.objectives.0", {"kind": "kd", "weight": 0}, "stages[1].objectives: all weights are 0"),
        (
            "stages.1.objectives.0",
            {"kind": "kd", "weight": "big"},
            "stages[1].objectives[0].weight.kind: unknown schedule 'big'",
        ),
        (
            "stages.1.objectives.0",
            {"kind": "kd", "teacher": "video"},
            "stages[1].objectives[0].teacher: no teacher 'video'",
        ),
        (
            "stages.1.objectives.0",
            {"kind": "kd", "teacher": "audio/conv"},
            "stages[1].objectives[0].teacher: teacher 'audio' has no tap 'conv'; did you mean 'audio/conv3'",
        ),
        (
            "stages.1.objectives.0",
            {"kind": "several", "teachers": ["audio", "vidoe"]},
            "stages[1].objectives[0].teachers[1]: no teacher 'vidoe'",
        ),
        (
            "stages.1.objectives.0",
            {"kind": "routed", "objective": {"kind": "kd", "teacher": "vidoe"}},
            "stages[1].objectives[0].objective.teacher: no teacher 'vidoe'",
        ),
        ("stages.0.steps", 5, "stages[0]: give either epochs or steps, not both"),
        ("stages.0.epochs", None, "stages[0]: give either epochs or steps, found neither"),
        ("stages.0.epochs", 0, "stages[0].epochs: expected an integer >= 1 or null, found 0"),
        ("stages.0.patience", 3, "stages[0].patience: early stopping needs `monitor: {metric: ..., mode: ...}`"),
        (
            "stages.0.monitor",
            {"metric": "loss", "mode": "low"},
            "stages[0].monitor.mode: expected 'min' or 'max', found 'low'",
        ),
        ("stages.0.ema", 1, "stages[0].ema: expected a number > 0 and < 1 or null, found 1"),
        ("stages.0.optimizer", {"kind": "sgdd"}, "stages[0].optimizer.kind: unknown optimizer 'sgdd'"),
        (
            "stages.0.optimizer",
            {"kind": "sgd", "nesterow": True},
            "stages[0].optimizer.nesterow: unknown option of 'sgd'",
        ),
        ("stages.0.scheduler", "step_lr", "stages[0].scheduler.step_size: missing; expected an integer"),
        (
            "stages.0.transforms",
            [{"kind": "mixup", "alpha": 0}],
            "stages[0].transforms[0].alpha: expected a number > 0, found 0",
        ),
        (
            "baselines.audio",
            {"stages": []},
            "baselines.audio.stages: expected a list (each item: a stage) of length >= 1",
        ),
        (
            "evaluation.splits",
            [],
            "evaluation.splits: expected a list (each item: text) of length >= 1, found a list of 0",
        ),
        ("trainer.mixed_precision", False, "trainer.mixed_precision: expected 'no', 'bf16' or 'fp16', found false"),
        (
            "trainer.trackers",
            ["wndb"],
            "trainer.trackers[0]: expected 'mlflow', 'tensorboard', 'trackio' or 'wandb', found 'wndb'",
        ),
        ("trainer.device", "cuda:1", "trainer.device: expected 'auto', 'cpu' or 'cuda', found 'cuda:1'"),
    ],
)
def test_mistake_is_named_with_its_path(raw, kit, path, value, line):
    """F1, F6: each mistake is one line with path and suggestion."""
    parent, key = at(raw, path)
    parent[key] = value
    found = mistakes(raw, kit)
    assert any(problem.startswith(line) for problem in found), found


@pytest.mark.parametrize("key", ["data", "student", "stages"])
def test_missing_section(raw, kit, key):
    del raw[key]
    assert mistakes(raw, kit)[0].startswith(f"{key}: missing; expected a")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_not_a_mapping(kit, value):
    assert mistakes(value, kit)[0].startswith("expected a mapping of keys")


def test_everything_about_teachers_is_reported_when_there_are_none(raw, kit):
    del raw["teachers"]
    assert mistakes(raw, kit) == [
        "masks: masks need teachers; add `teachers`",
        "router: a router chooses among teachers; add `teachers`",
        "stages[0].trains[1]: trains 'teachers', but the recipe has no teachers",
        "stages[0].objectives[1].teacher: names teacher 'both', but the recipe has no teachers; add `teachers`",
        "stages[2].objectives[1].teacher: names teacher 'both', but the recipe has no teachers; add `teachers`",
    ]


def test_stage_that_trains_what_is_not_there(raw, kit):
    del raw["masks"], raw["router"]
    assert mistakes(raw, kit) == [
        "stages[1].trains[0]: trains 'masks', but the recipe has no masks",
        "stages[2].trains[1]: trains 'router', but the recipe has no router",
    ]


def test_masks_need_taps(raw, kit):
    for teacher in raw["teachers"].values():
        del teacher["taps"]
    del raw["stages"][2]["objectives"][1]
    assert mistakes(raw, kit) == ["masks: no teacher has taps to put masks on"]


def test_without_masks_the_router_chooses_among_teachers(raw, kit):
    del raw["masks"], raw["stages"][1]
    raw["router"]["selection"]["k"] = 2
    assert parse_recipe(raw, "x", kit).router.selection.options["k"] == 2
    raw["router"]["selection"]["k"] = 3
    assert mistakes(raw, kit) == ["router.selection.k: 3 teachers chosen of 2"]


def test_baselines_are_checked_like_stages(raw, kit):
    stage = {"name": "alone", "trains": ["student"], "epochs": 1, "objectives": [{"kind": "kd", "teacher": "video"}]}
    raw["baselines"] = {"audio": {"stages": [stage, stage]}}
    assert mistakes(raw, kit) == [
        "baselines.audio: a teacher has this name; results need distinct names",
        "baselines.audio.stages[1]: 'alone' is the name of baselines.audio.stages[0] already",
        "baselines.audio.stages[0].objectives[0].teacher: no teacher 'video'; teachers: both, audio",
        "baselines.audio.stages[1].objectives[0].teacher: no teacher 'video'; teachers: both, audio",
    ]


def test_baselines_may_have_a_router_of_their_own(raw, kit):
    stage = {"name": "a", "trains": ["student", "router"], "epochs": 1, "objectives": ["kd"]}
    router = {"gate": "instance", "selection": {"kind": "top_k", "k": 3}}
    raw["baselines"] = {"routed": {"stages": [stage], "router": router}}
    raw["stages"] = raw["stages"][:1]
    del raw["masks"], raw["router"]
    assert mistakes(raw, kit) == ["baselines.routed.router.selection.k: 3 teachers chosen of 2"]
    router["selection"]["k"] = 2
    assert parse_recipe(raw, "x", kit).baselines["routed"].router.selection == Spec("top_k", {"k": 2})
    del raw["baselines"]["routed"]["router"]
    assert mistakes(raw, kit) == ["baselines.routed.stages[0].trains[1]: trains 'router', but the recipe has no router"]


def test_words_that_mean_all_teachers_are_no_names(raw, kit):
    raw["stages"][1]["objectives"] = [{"kind": "several", "teachers": "all"}]
    assert parse_recipe(raw, "x", kit).stages[1].objectives[0].spec.options == {"teachers": "all"}


def test_missing_registry_is_reported(raw, kit):
    known = {group: registry for group, registry in kit.items() if group not in ("gates", "datasets")}
    assert mistakes(raw, known) == [
        "data: nothing of the kind 'datasets' is registered",
        "router.gate: nothing of the kind 'gates' is registered",
    ]


def test_objects_instead_of_plain_values_are_mistakes(raw, kit):
    raw["data"]["batch_size"] = object()
    assert mistakes(raw, kit) == ["data.batch_size: expected an integer >= 1, found an object of type object"]


def test_self_containing_value_is_a_mistake(raw, kit):
    loop: dict[str, Any] = {"kind": "routed"}
    loop["objective"] = loop
    raw["stages"][0]["objectives"] = [loop]
    assert mistakes(raw, kit)


@pytest.mark.parametrize("resolve", [True, False])
def test_written_config_parses_to_the_same(raw, kit, resolve):
    raw["baselines"] = {"kd_1": {"title": "KD: one", "stages": raw["stages"][:1]}}
    raw["stages"][0] |= {
        "monitor": {"metric": "loss", "mode": "min"},
        "scheduler": {"kind": "cosine_annealing_lr", "T_max": 3},
        "transforms": ["mixup"],
    }
    config = parse_recipe(raw, "x", kit)
    written = recipe_dict(config, resolve, kit)
    again = parse_recipe(parse_yaml(to_yaml(written), "y"), "y", kit)
    assert recipe_dict(again, resolve, kit) == written
    if resolve:
        assert written["router"]["selection"] == {"kind": "top_k", "k": 1}
        assert written["stages"][0]["optimizer"]["betas"] == [0.9, 0.999]
        assert again == parse_recipe(written, "x", kit)
    else:
        assert again == config
