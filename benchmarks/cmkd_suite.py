"""What the cross-modal benchmark runs: cells (a data set with a direction), methods in up to three forms, and the
values of the tuning grid that each may take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen

from ..config import Section, load_config, parse_section
from ..config.load import merge
from ..errors import ConfigError, UnknownNameError, did_you_mean

Form = Literal["alone", "averaged", "routed", ""]
Metric = Literal["accuracy", "balanced_accuracy", "weighted_f1", "miou"]
Positive = Annotated[int, Ge(1)]
SHIPPED, SUITE = "moekd.configs", "suites/_cmkd.yaml"
ALONE = "student alone"


class Tuning(Section):
    """How the weight of each method's loss, and the teacher of its form `alone`, are chosen.

    Attributes:
        seed: seed of the runs that choose; it should not be one of those that are reported.
        weights: factors of the published weight.
    """

    seed: Annotated[int, Ge(0)]
    weights: Annotated[list[Annotated[float, Gt(0)]], MinLen(1)]


class Epochs(Section):
    """Budget: passes over the training rows.

    Attributes:
        teachers: of each teacher.
        student: of the student, over all stages of a method.
    """

    teachers: Positive
    student: Annotated[int, Ge(3)]


class Taps(Section):
    """Names of taps.

    Attributes:
        student: of the student.
        teachers: of all teachers, or one a teacher.
    """

    student: str
    teachers: str | dict[str, str]


class CellConfig(Section):
    """A data set with a direction.

    Attributes:
        title: name in tables.
        epochs: budget.
        config: data, student, teachers, and whatever else differs from the common config.
        cross: the teacher that does not see the student's modality.
        metric: what decides in this cell; the suite's by default.
        gate: gate of the routed form, in place of the common one.
        taps: where activations are compared.
        maps: the same for objectives on maps; without it they do not apply.
    """

    title: str
    epochs: Epochs
    config: dict[str, Any]
    cross: str = "crossmodal"
    metric: Metric | None = None
    gate: str | None = None
    taps: Taps = Taps(student="fc1", teachers="fc1")
    maps: Taps | None = None


class MethodConfig(Section):
    """An objective between the student and one teacher.

    Attributes:
        title: name in tables.
        objective: kind, options and published weight.
        hint: objective of a stage before.
    """

    title: str
    objective: dict[str, Any]
    hint: dict[str, Any] | None = None


class RecipeConfig(Section):
    """A method that has a form of its own.

    Attributes:
        changes: of the config, by path.
        tuned: whether it has a weight to choose.
        twin: add a teacher with the student's network and inputs.
        masks: give every tap of every teacher a mask.
        dense: only for classes of pixels.
    """

    changes: dict[str, Any]
    tuned: bool = True
    twin: bool = False
    masks: bool = False
    dense: bool = False


class SuiteConfig(Section):
    """The suite's file.

    Attributes:
        title: of the report.
        seeds: number of seeds.
        tuning: the grid.
        metric: what is compared.
        default: cells that run when none are named.
        common: config of all runs.
        data: cells by name.
        methods: objectives by name.
        recipes: other methods by name.
    """

    title: str
    seeds: Positive
    tuning: Tuning
    metric: Metric
    default: list[str]
    common: dict[str, Any]
    data: dict[str, CellConfig]
    methods: dict[str, MethodConfig]
    recipes: dict[str, RecipeConfig]


@dataclass(frozen=True)
class Choice:
    """A value of the grid: the factor of the weight, and the teacher of the form `alone` ("" elsewhere)."""

    weight: float = 1.0
    teacher: str = ""

    @property
    def label(self) -> str:
        """Name of the value in tables."""
        return f"weight {self.weight:g}" + (f", {self.teacher}" if self.teacher else "")


@dataclass(frozen=True)
class Method:
    """A method in one form, for one cell.

    Attributes:
        name: "kd", "MST-Distill"; what `--methods` names.
        form: how it is used over the pool.
        title: name in tables, unique.
        choices: its values of the grid; one value is not tuned.
        follows: title of the method whose choice of the weight it takes.
    """

    name: str
    form: Form
    title: str
    choices: tuple[Choice, ...]
    follows: str | None = None


def load_suite(file: Path | str | None = None) -> SuiteConfig:
    """Read the shipped suite; a file adds cells, methods and recipes to it, or changes what is there.

    Raises:
        ConfigError: every mistake of the file.
    """
    raw, source = load_config(str(files(SHIPPED) / SUITE))
    if file is not None:
        changes, source = load_config(str(file))
        raw = merge(raw, changes)
    return parse_section(SuiteConfig, raw, source)


def chosen(asked: Sequence[str], known: Sequence[str], default: Sequence[str], what: str) -> list[str]:
    """Return the names asked for, or the default ones.

    Raises:
        UnknownNameError: with the nearest names.
    """
    for name in asked:
        if name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
            raise UnknownNameError(f"the benchmark has no {what} '{name}'{hint}")
    return list(dict.fromkeys(asked)) or list(default)


def methods_of(suite: SuiteConfig, cell: CellConfig, names: Sequence[str] = ()) -> list[Method]:
    """Return what runs in a cell: the named methods (default all) in all their forms; the student alone always does."""
    wanted = set(chosen(names, [*suite.methods, *suite.recipes], [], "method"))
    weights = suite.tuning.weights
    teachers = list(cell.config["teachers"])
    found = []
    for name, recipe in suite.recipes.items():
        if (name != ALONE and wanted and name not in wanted) or (recipe.dense and cell.gate is None):
            continue
        choices = tuple(Choice(w) for w in weights) if recipe.tuned else (Choice(),)
        found.append(Method(name, "", name, choices))
    for name, method in suite.methods.items():
        on_maps = "_map" in str(method.objective)
        if (wanted and name not in wanted) or (on_maps and cell.maps is None):
            continue
        alone = f"{method.title}, best single teacher"
        grid = tuple(Choice(w, teacher) for teacher in teachers for w in weights)
        found.append(Method(name, "alone", alone, grid))
        for form, words in (("averaged", "averaged"), ("routed", "routed")):
            found.append(Method(name, form, f"{method.title}, {words}", (Choice(),), follows=alone))  # type: ignore[arg-type]
    return found


def base_of(suite: SuiteConfig, cell: CellConfig) -> dict[str, Any]:
    """Return the config that all runs of a cell change."""
    base = merge(suite.common, cell.config)
    base["stages"] = [dict(stage) for stage in base["stages"]]
    metric = cell.metric or suite.metric
    for stage in base["stages"]:
        if stage["name"] in ("teachers", "cotrain"):
            stage["epochs"] = cell.epochs.teachers
        elif stage["name"] == "specialise":
            stage["epochs"] = max(1, cell.epochs.teachers // 5)
        elif stage["name"] == "distill":
            stage["epochs"] = cell.epochs.student
            stage["monitor"] = {"metric": metric, "mode": "max"}
    if cell.gate is not None:
        base["router"] = {**base["router"], "gate": cell.gate}
    return base


def changes_of(suite: SuiteConfig, cell: CellConfig, method: Method, choice: Choice) -> dict[str, Any]:
    """Return the changes of the cell's base config that make a method with a value of the grid."""
    if method.form == "":
        return _recipe_changes(suite.recipes[method.name], cell, choice)
    config = suite.methods[method.name]
    if cell.maps is None and "_map" in str(config.objective):
        raise ConfigError(f"{method.title} compares maps, and the cell '{cell.title}' names none")
    used = [_objective(dict(part), method.form, cell, choice) for part in (config.hint, config.objective) if part]
    changes: dict[str, Any] = {"masks": None, "stages.distill.objectives": ["cross_entropy", used[-1]]}
    if method.form != "routed":
        changes |= {"router": None, "stages.distill.trains": ["student"]}
    if config.hint:
        before = max(1, cell.epochs.student // 3)
        changes |= {
            "stages.hint.enabled": True,
            "stages.hint.epochs": before,
            "stages.hint.objectives": [used[0]],
            "stages.distill.epochs": cell.epochs.student - before,
        }
        if method.form == "routed":
            changes["stages.hint.trains"] = ["student", "router"]
    return changes


def _objective(part: dict[str, Any], form: Form, cell: CellConfig, choice: Choice) -> dict[str, Any]:
    """Return one objective in a form."""
    weight = float(part.pop("weight", 1.0)) * choice.weight
    part = _filled(part, cell, choice)
    if form == "routed":
        return {"kind": "routed", "objective": part, "weight": weight}
    return part | ({"teacher": choice.teacher} if form == "alone" else {}) | {"weight": weight}


def _recipe_changes(recipe: RecipeConfig, cell: CellConfig, choice: Choice) -> dict[str, Any]:
    changes: dict[str, Any] = {} if recipe.masks else {"masks": None}
    if not recipe.masks and "router" not in recipe.changes:
        changes |= {"router": None, "stages.distill.trains": ["student"]}
    if recipe.twin:
        changes["teachers.twin"] = cell.config["student"]
    return changes | {path: _filled(value, cell, choice) for path, value in recipe.changes.items()}


def _filled(value: Any, cell: CellConfig, choice: Choice) -> Any:
    """Replace the words with a dollar sign."""
    half = round(cell.epochs.student * 4 / 9)
    words: Mapping[str, Any] = {
        "$student": cell.taps.student,
        "$teacher": cell.taps.teachers,
        "$student_map": cell.maps.student if cell.maps else "",
        "$teacher_map": cell.maps.teachers if cell.maps else "",
        "$cross": cell.cross,
        "$cross_tap": cell.taps.teachers if isinstance(cell.taps.teachers, str) else cell.taps.teachers[cell.cross],
        "teachers.$cross": f"teachers.{cell.cross}",
        "$teachers": list(cell.config["teachers"]),
        "$w": choice.weight,
        "$dense": cell.gate is not None,
        "$teacher_epochs": cell.epochs.teachers,
        "$sum": cell.epochs.teachers + cell.epochs.student,
        "$half": half,
        "$rest": cell.epochs.student - half,
    }
    if isinstance(value, Mapping):
        return {key: _filled(part, cell, choice) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, cell, choice) for part in value]
    return words[value] if isinstance(value, str) and value in words else value
