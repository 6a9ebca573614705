"""What the cross-modal benchmark runs: cells (a data set with a direction), methods in up to three forms, and the
values of the tuning grid that each may take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ..config import load_config, parse_section
from ..config.load import merge
from ..errors import ConfigError, UnknownNameError, did_you_mean
from .cmkd_config import CellConfig, MethodConfig, RecipeConfig, SuiteConfig

Form = Literal["alone", "averaged", "routed", ""]
SHIPPED, SUITE = "moekd.configs", "suites/_cmkd.yaml"
ALONE = "student alone"


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
        if (name != ALONE and wanted and name not in wanted) or why_not(recipe, cell):
            continue
        choices = tuple(Choice(w) for w in weights) if recipe.tuned else (Choice(),)
        found.append(Method(name, "", name, choices))
    for name, method in suite.methods.items():
        if (wanted and name not in wanted) or why_not(method, cell):
            continue
        alone = f"{method.title}, best single teacher"
        grid = tuple(Choice(w, teacher) for teacher in teachers for w in weights)
        found.append(Method(name, "alone", alone, grid))
        for form, words in (("averaged", "averaged"), ("routed", "routed")):
            found.append(Method(name, form, f"{method.title}, {words}", (Choice(),), follows=alone))  # type: ignore[arg-type]
    return found


def why_not(method: MethodConfig | RecipeConfig, cell: CellConfig) -> str:
    """Return why a method has no meaning in a cell; "" where it has one."""
    if isinstance(method, RecipeConfig):
        return "for classes of pixels only" if method.dense and cell.gate is None else ""
    words = str(method.objective)
    if "_map'" in words and cell.maps is None:
        return "compares maps, and the cell's networks have none that show the same places (key 'maps')"
    if "_levels'" in words and cell.levels is None:
        return "compares maps of several depths, and the cell's networks have none of the same places (key 'levels')"
    return ""


def left_out(suite: SuiteConfig, cell: CellConfig, names: Sequence[str] = ()) -> dict[str, str]:
    """Return the methods, of the named ones (default all), that have no meaning in a cell, with the reason."""
    known: dict[str, MethodConfig | RecipeConfig] = {**suite.methods, **suite.recipes}
    wanted = chosen(names, list(known), list(known), "method")
    return {name: reason for name in wanted if (reason := why_not(known[name], cell))}


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
    if reason := why_not(config, cell):
        raise ConfigError(f"{method.title} does not apply to the cell '{cell.title}': {reason}")
    used = [_objective(dict(part), method.form, cell, choice) for part in (config.hint, config.objective) if part]
    changes: dict[str, Any] = {"masks": None, "stages.distill.objectives": ["cross_entropy", used[-1]]}
    if "_levels'" in str(config.objective):
        changes |= _taps_of_levels(cell)
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


def _taps_of_levels(cell: CellConfig) -> dict[str, Any]:
    """Return the taps that maps of several depths are read at, beside those that the cell has."""
    assert cell.levels is not None
    models = {"student": cell.config["student"]} | {f"teachers.{n}": t for n, t in cell.config["teachers"].items()}
    found = {}
    for path, model in models.items():
        levels = cell.levels.student if path == "student" else cell.levels.teachers
        more = levels[path.removeprefix("teachers.")] if isinstance(levels, Mapping) else levels
        found[f"{path}.taps"] = list(dict.fromkeys([*model.get("taps", []), *more]))
    return found


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
        "$student_levels": cell.levels.student if cell.levels else [],
        "$teacher_levels": cell.levels.teachers if cell.levels else [],
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
