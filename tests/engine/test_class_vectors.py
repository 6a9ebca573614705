"""Stages that hand class vectors to the student, and stages that train parts of models: PromptKD on little data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.program import Program
from moekd.recipe import Recipe
from moekd.stages import ClassVectorStage
from moekd.stages.class_vectors import class_means
from moekd.stages.trainable import parameters_of, train_only
from moekd.step import Step
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from .tiny import PowerCutError, cut_after, same_weights, weights_of

SMALL = [
    "data.max_train=96",
    "data.batch_size=32",
    "data.labels=24",
    "stages.pretrain.epochs=1",
    "stages.tune_teacher.epochs=1",
    "stages.distill.epochs=1",
    "evaluation.splits=[test]",
    "trainer.threads=1",
    "trainer.device=cpu",
]
#: A teacher that reads the names of the classes, with learned tokens in front of them.
BY_NAME = [
    "teachers.large.inputs=[image, caption]",
    "teachers.large.text={tokenizer: bytes, context: 32, width: 16, layers: 1, heads: 2}",
    "teachers.large.class_vectors=null",
    "teachers.large.zero_shot={templates: ['{}.'], in_training: false, context: 2}",
    "stages.tune_teacher.enabled=false",
]
PROMPTS = "student.model.image.prompts"


def build(*overrides: str, name: str = "methods/promptkd") -> Program:
    recipe = Recipe.load(name, [*SMALL, *overrides])
    return Recipe(recipe.config.model_copy(update={"baselines": {}})).build()


def fit(program: Program, runs: Path, name: str = "run", **options: Any) -> dict[str, Tensor]:
    run = RunFolder(runs, name, resume=options.get("resume") is not None)
    Trainer(program, run, quiet=True).fit(**options)
    return weights_of(program)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, dict[str, Tensor]]:
    """Return PromptKD on little data, run from its start to its end."""
    program = build()
    return program, fit(program, Path(tmp_path_factory.mktemp("runs")))


def test_student_and_teacher_share_the_class_vectors(trained: tuple[Program, dict[str, Tensor]]) -> None:
    program, _ = trained
    stage = program.phases[0].stages[-1]
    assert isinstance(stage, ClassVectorStage)
    student, teacher = program.phases[0].student, program.pool.teacher("large")
    torch.testing.assert_close(stage.place(student).vectors, torch.nn.functional.normalize(stage.of_teacher(teacher)))
    batch = program.data.split("test").__getitems__(list(range(8)))
    said, network = student(batch), student.network
    rows = network.classifier.projector(said.embeddings["image"])
    scale = said.heads["logit_scale"][0]
    expected = scale * torch.nn.functional.normalize(rows) @ stage.place(student).vectors.T
    torch.testing.assert_close(said.logits, expected)


def test_the_classes_of_the_teacher_are_what_it_says_about_their_texts(
    trained: tuple[Program, dict[str, Tensor]],
) -> None:
    program, _ = trained
    stage, teacher = program.phases[0].stages[1], program.pool.teacher("large")
    assert isinstance(stage, ClassVectorStage)
    means = class_means(teacher, program.data, "train_all", "text", torch.device("cpu"))
    torch.testing.assert_close(stage.place(teacher).vectors, means)
    assert (means.norm(dim=1) > 0).sum() == len(set(program.data.split("train_all").labels.tolist()))


def test_a_teacher_may_read_the_names(tmp_path: Path) -> None:
    program = build(*BY_NAME)
    fit(program, tmp_path)
    stage, network = program.phases[0].stages[-1], program.pool.teacher("large").network
    assert isinstance(stage, ClassVectorStage)
    torch.testing.assert_close(stage.place(program.phases[0].student).vectors, network.class_vectors())


def test_gradients_reach_prompts_and_projector_only(trained: tuple[Program, dict[str, Tensor]]) -> None:
    program, _ = trained
    settings, models = program.phases[0].stages[-1].settings, program.models(program.phases[0])
    modules = train_only(models, settings.trains, torch.nn.ModuleList(settings.objectives))
    batch = program.data.split("train").__getitems__(list(range(8)))
    losses = settings.objectives[0].terms(Step(batch, models))
    sum(losses.values()).backward()
    student = models.student
    changed = {name for name, p in student.named_parameters() if p.grad is not None}
    wanted = {name for name, p in student.named_parameters() if ".prompts." in name or ".projector." in name}
    assert changed == wanted
    assert {id(p) for p in parameters_of(modules.values())} == {
        id(p) for name, p in student.named_parameters() if name in wanted
    }
    assert all(p.grad is None for p in models.pool.parameters())
    training = {name for name, part in student.named_modules() if part.training and name}
    assert all(".prompts" in name or name.startswith("network.classifier") for name in training)
    assert "network.classifier.projector.1" in training


def test_no_label_is_read(trained: tuple[Program, dict[str, Tensor]]) -> None:
    program, _ = trained
    settings, models = program.phases[0].stages[-1].settings, program.models(program.phases[0])
    models.student.eval()
    batch = program.data.split("train").__getitems__(list(range(12)))
    other = batch | {"label": batch["label"].flip(0), "labelled": ~batch["labelled"], "hidden_label": batch["id"]}
    losses = [settings.objectives[0].terms(Step(b, models))["kd"] for b in (batch, other)]
    assert torch.equal(*losses)


def test_the_frozen_parts_stay_bit_for_bit(tmp_path: Path) -> None:
    program = build("stages.pretrain.epochs=1")
    before: dict[str, Tensor] = {}
    run = program.phases[0].stages[-1].run

    def remember(*args: Any, **kwargs: Any) -> None:
        before.update(weights_of(program))
        run(*args, **kwargs)

    program.phases[0].stages[-1].run = remember  # type: ignore[method-assign]
    after = fit(program, tmp_path)
    moved = same_weights(before, after)
    assert moved
    assert all(".prompts." in name or ".classifier." in name for name in moved)


def test_a_cut_run_goes_on_with_its_class_vectors(
    trained: tuple[Program, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = trained
    with monkeypatch.context() as patch:
        cut_after(patch, 6)
        with pytest.raises(PowerCutError):
            fit(build("trainer.checkpoint_every=1"), tmp_path)
    resumed = fit(build("trainer.checkpoint_every=1"), tmp_path, resume="auto")
    assert same_weights(whole, resumed) == []


def test_class_means_are_prototypes(trained: tuple[Program, dict[str, Tensor]]) -> None:
    program, _ = trained
    student = program.phases[0].student
    means = class_means(student, program.data, "labelled", "image", torch.device("cpu"))
    split = program.data.split("labelled")
    batch = split.__getitems__(list(range(len(split))))
    with torch.no_grad():
        rows = torch.nn.functional.normalize(student.eval()(batch).embeddings["image"])
    for label in range(program.data.num_classes):
        own = rows[batch["label"] == label]
        expected = own.mean(dim=0) if len(own) else torch.zeros(rows.shape[1])
        torch.testing.assert_close(means[label], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="gives no embedding 'imgae'; did you mean 'image'"):
        class_means(student, program.data, "labelled", "imgae", torch.device("cpu"))


def test_mistakes_are_told_before_anything_trains() -> None:
    with pytest.raises(ConfigError, match=r"set its class_vectors\.width to 128"):
        dry_run(build("student.class_vectors.width=100"))
    with pytest.raises(ConfigError, match="give teacher or from_split"):
        build("stages.distill.teacher=null")
    with pytest.raises(ConfigError, match="no class vectors at 'classifer'; did you mean 'classifier'"):
        dry_run(build("stages.distill.target=classifer"))
    with pytest.raises(ConfigError, match=r"'student\.model\.image\.promts' is no module or parameter of TwoTower"):
        dry_run(build("stages.distill.trains=[student.model.image.promts]"))
    with pytest.raises(ConfigError, match="teacher 'large' names no classes"):
        dry_run(build("teachers.large.class_vectors=null", "stages.tune_teacher.enabled=false"))


def test_a_part_and_the_whole_are_the_whole() -> None:
    program = build()
    models = program.models(program.phases[0])
    part = "model.logit_scale"
    train_only(models, ["student", PROMPTS, f"teachers.large.{part}"], torch.nn.ModuleList())
    assert all(p.requires_grad for p in models.student.parameters())
    teacher = models.pool.teacher("large")
    assert {n for n, p in teacher.named_parameters() if p.requires_grad} == {f"network.{part}"}
    train_only(models, ["teachers", f"teachers.large.{part}"], torch.nn.ModuleList())
    assert all(p.requires_grad for p in teacher.parameters())
