"""Published vision-language methods with several teachers and a router, which the papers do not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.config import load_config, parse_recipe
from moekd.dry_run import dry_run
from moekd.objectives import KD, RoutedObjective
from moekd.program import Program
from moekd.recipe import Recipe
from moekd.step import Step
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

SMALL = [
    "data.max_train=96",
    "data.batch_size=32",
    "data.labels=24",
    "evaluation.splits=[test]",
    "trainer.threads=1",
    "trainer.device=cpu",
]
OTHER = {
    "kind": "two_tower",
    "inputs": ["image", "text"],
    "tower": {"kind": "cnn_encoder", "channels": [4, 8]},
    "text": "vectors",
    "width": 40,
    "class_vectors": {"projector": "none"},
}
ROUTER = {"gate": "uniform", "selection": "dense", "combine": "loss"}


def small(name: str, **changes: Any) -> dict[str, Any]:
    """Return a shipped config on little data, one epoch a stage, without baselines."""
    raw, _ = load_config(name, SMALL)
    for stage in raw["stages"]:
        stage["epochs"] = 1
    raw["baselines"] = {}
    raw.pop("paper")
    return raw | changes


def build(raw: dict[str, Any]) -> Program:
    return Recipe(parse_recipe(raw, "small"), "small").build()


def fit(program: Program, runs: Path) -> dict[str, Any]:
    return Trainer(program, RunFolder(runs, "run"), quiet=True).fit()


def test_prompts_learn_from_two_teachers_in_spaces_of_their_own(tmp_path: Path) -> None:
    program = build(small("methods/promptkd_two_teachers"))
    results = fit(program, tmp_path)
    phase = program.phases[0]
    widths = {name: program.pool.teacher(name).network.classifier.vectors.shape[1] for name in program.pool.names}
    assert widths == {"large": 128, "other": 96}
    batch = program.data.split("train").__getitems__(list(range(6)))
    step = Step(batch, program.models(phase), training=False)
    objective = phase.stages[-1].settings.objectives[0].objective
    assert isinstance(objective, RoutedObjective)
    loss = objective(step)["routed_kd"]
    said = [step.signals(name).logits.softmax(dim=1) for name in ("large", "other")]
    weights = step.routing.applied_weights * torch.stack([p.amax(dim=1) for p in said], dim=1)
    weights = weights / weights.sum(dim=1, keepdim=True)
    target = sum(w[:, None] * p for w, p in zip(weights.T, said, strict=True))
    expected = (target * (target.log() - step.student.logits.log_softmax(dim=1))).sum(dim=1)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)
    assert set(results["routing"]["variants"]) == {"large", "other"}


def test_an_adapter_with_two_outside_teachers_beside_its_own_texts(tmp_path: Path) -> None:
    raw = small("methods/sgva_clip", teachers={"a": OTHER, "b": OTHER | {"width": 24}}, router=ROUTER)
    fill = {"kind": "class_vectors", "from_split": "labelled", "embedding": "text", "epochs": 1}
    learn = [{"kind": "contrastive", "on": "teachers", "scale": "model"}]
    ready = [
        fill | {"name": f"ready_{name}", "teacher": name, "into": name, "trains": [f"teachers.{name}"]} for name in "ab"
    ]
    pretrain, adapt = raw["stages"]
    adapt["objectives"].append({"kind": "routed", "objective": {"kind": "kd", "temperature": 2, "head": "adapted"}})
    raw["stages"] = [pretrain, *(stage | {"objectives": learn} for stage in ready), adapt]
    program = build(raw)
    rows = dry_run(program)
    assert rows[-1]["losses"] == ["prototype_ce", "routed", "self_kd"]
    fit(program, tmp_path)
    step = Step(program.data.split("train").__getitems__([0, 1, 2]), program.models(program.phases[0]), training=False)
    objective = program.phases[0].stages[-1].settings.objectives[-1].objective
    every = [KD(name, temperature=2, head="adapted")(step)["kd"] for name in "ab"]
    torch.testing.assert_close(objective(step)["routed"], torch.stack(every).mean(dim=0))


@pytest.mark.parametrize("combine", ["select", "loss"])
def test_two_teachers_of_other_widths_for_classes_never_seen(combine: str) -> None:
    raw = small("methods/vlm_ood", router=ROUTER | {"combine": combine, "selection": "top_k"})
    raw["teachers"]["other"] = OTHER
    learns = [
        {"kind": "embedding_kd", "distances": {"mse": 1.0}, "unit": True, "reduction": "sum"},
        {"kind": "embedding_contrastive", "temperature": 0.07},
        {"kind": "topk_kd", "keep": "correct", "among": "base"},
    ]
    routed = [{"kind": "routed", "name": f"routed_{i}", "objective": o} for i, o in enumerate(learns)]
    raw["stages"][1]["objectives"] = [{"kind": "cross_entropy", "among": "base"}, *routed]
    program = build(raw)
    rows = dry_run(program)
    assert set(rows[-1]["losses"]) == {"cross_entropy/student", "routed_0", "routed_1", "routed_2"}
    heads = [w.objective.objective.heads.heads for w in program.phases[0].stages[1].settings.objectives[1:3]]
    assert [set(found) for found in heads] == [{"other:image"}, {"other:image"}]
