"""What the command line does, as functions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import export as exporting
from .config import build
from .data import DATASETS
from .distributed import other_processes
from .dry_run import dry_run
from .program import Program
from .recipe import Recipe
from .tracking import RunFolder
from .trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        results: what `results.json` holds.
    """

    path: Path
    results: dict[str, Any]

    @property
    def student(self) -> Path:
        """The exported student."""
        return self.path / "student"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"


def distill(
    config: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    runs: Path | str = "runs",
    resume: str | Path | None = None,
    override: Collection[str] = (),
    resume_relaxed: Collection[str] = (),
    baselines: bool = True,
    quiet: bool = False,
) -> Run:
    """Distil a student as a config says; write checkpoints, metrics, the student and the report into `runs/<name>`.

    Args:
        config: path of a YAML file, name of a shipped config, or a recipe.
        overrides: "key=value" changes of the config.
        name: name of the run, default the config's own.
        runs: folder of all runs.
        resume: "auto" or the path of a checkpoint, to continue a run.
        override: config keys in which the resumed run may differ from its checkpoint.
        resume_relaxed: what a resumed run may do without where it can't be restored: "random", the states of the random
            generators; "metrics", the records before the checkpoint.
        baselines: train the config's baselines too.
        quiet: no progress bars.

    Returns:
        The run's folder and results.

    Raises:
        ConfigError: all mistakes of the config.
        MoekdError: data, models, checkpoints or numbers that can't be used.
    """
    recipe = config if isinstance(config, Recipe) else Recipe.load(config, overrides)
    if not baselines:
        recipe = Recipe(recipe.config.model_copy(update={"baselines": {}}), recipe.source)
    program = recipe.build()
    dry_run(program)
    run = RunFolder(Path(runs), default_name(recipe) if name is None else name, resume=resume is not None)
    trainer = Trainer(program, run, quiet)
    results = trainer.fit(resume, override, relaxed=resume_relaxed)
    if trainer.is_main:
        finish(recipe, program, run)
    with other_processes():
        trainer.accelerator.wait_for_everyone()
    return Run(run.path, results)


def default_name(recipe: Recipe) -> str:
    """Return the run name of a config: its file's name without the ending."""
    return Path(recipe.source).stem.replace("/", "-") or "run"


def finish(recipe: Recipe, program: Program, run: RunFolder) -> None:
    """Export the student with its card and write the report."""
    from .report import model_card, write_report

    export_run(recipe, program, run.student, model_card(run.path, use=False))
    write_report(run.path)


def export_run(recipe: Recipe, program: Program, folder: Path, card: str | None = None) -> None:
    """Write the main student of a program to a folder."""
    dataset = build(recipe.config.data.spec, DATASETS, where="data")
    student, spec = program.phases[0].student.to("cpu").eval(), recipe.config.student.spec
    fields = {name: vars(dataset.fields[name]) | dataset.input_recipe(name) for name in student.inputs}
    config = {
        "title": program.about["title"],
        "network": {"kind": spec.kind, "options": {k: v for k, v in spec.to_dict().items() if k != "kind"}},
        "class_names": program.data.class_names,
        "fields": fields,
    }
    exporting.export_student(student, config, folder, card)


def load_student(run: str | Path) -> nn.Module:
    """Load the student of a run (or an exported student's folder) as a plain `nn.Module` in eval mode.

    Its forward takes the tensors of the fields in `config.json: inputs`, in order, and returns logits `[B, C]`.

    Raises:
        DataError: there is no student.
    """
    return exporting.load_student(Path(run))
