"""What an ablation file says: a base config, settings, arms, seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from ..config import Section, apply_changes, apply_overrides, load_config, parse_section
from ..errors import ConfigError, did_you_mean

Changes = dict[Annotated[str, MinLen(1)], Any]
Label = Annotated[str, MinLen(1)]
Seed = Annotated[int, Ge(0)]


class AblationConfig(Section):
    """An ablation file.

    Attributes:
        title: of the report.
        base: a config: the name of a shipped one, or a file beside this one.
        changes: values by path ("trainer.threads") that every arm gets.
        settings: changes by name; arms are compared within each setting. Without it there is one.
        arms: changes by name of the arm.
        grid: values by path; every combination is an arm. A mapping gives the values names.
        every: `routers` adds an arm for each registered gate and selection, with the router that it makes sense in.
        without: arms that `grid` and `every` make and that are left out.
        seeds: number of seeds, or the seeds.
        baseline: arm that the others are compared with.
        metric: what is compared.
    """

    title: str = ""
    base: Annotated[str, MinLen(1)]
    changes: Changes = {}
    settings: dict[Label, Changes] = {}
    arms: dict[Label, Changes] = {}
    grid: dict[Label, list[Any] | dict[Label, Any]] = {}
    every: Literal["routers"] | None = None
    without: list[Label] = []
    seeds: Annotated[int, Ge(1)] | Annotated[list[Seed], MinLen(1)] = 5
    baseline: str | None = None
    metric: Literal["accuracy", "balanced_accuracy", "weighted_f1", "loss"] = "accuracy"


@dataclass(frozen=True)
class Arm:
    """What is compared: changes of the base config.

    Attributes:
        name: unique, shown in tables.
        changes: values by path.
        optional: made for a whole family (`every`): it is left out, with the reason, where it can't apply.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class Ablation:
    """A validated ablation.

    Attributes:
        name: of the file, and of the folder of its runs.
        title: of the report.
        base: raw base config with the common changes.
        source: where the base came from, for messages.
        settings: changes by setting.
        arms: in the order of the report; those of `every` are added when the number of teachers is known.
        every: family of arms that is added.
        without: arms that are left out.
        seeds: seeds.
        baseline: arm that the others are compared with.
        metric: what is compared.
    """

    name: str
    title: str
    base: Mapping[str, Any]
    source: str
    settings: Mapping[str, Mapping[str, Any]]
    arms: tuple[Arm, ...]
    every: str | None
    without: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str | None
    metric: str


def load_ablation(path_or_name: str | Path, overrides: Sequence[str] = (), seeds: int | None = None) -> Ablation:
    """Read an ablation file or a shipped ablation.

    Args:
        path_or_name: a YAML file, or the name of a shipped ablation ("ablations/routers", or "routers").
        overrides: "key=value" changes of every arm's config.
        seeds: number of seeds instead of the file's.

    Raises:
        ConfigError: every mistake of the file.
    """
    raw, source = _read(str(path_or_name))
    config = parse_section(AblationConfig, raw, source)
    base, base_source = _base(config.base, source, overrides)
    arms = [Arm(name, changes) for name, changes in config.arms.items()]
    arms += [arm for arm in _grid(config.grid) if arm.name not in config.without]
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"{source}: the arm '{name}' is there twice" for name in twice]
    if not arms and not config.every:
        problems.append(f"{source}: nothing to compare: give arms, grid or every")
    if config.baseline is not None and config.baseline not in names and not config.every:
        hint = did_you_mean(config.baseline, names) or f"; arms: {', '.join(names)}"
        problems.append(f"{source}: baseline: no arm '{config.baseline}'{hint}")
    if problems:
        raise ConfigError(problems)
    chosen = seeds if seeds is not None else config.seeds
    return Ablation(
        name=Path(source).stem,
        title=config.title or Path(source).stem,
        base=_with_changes(base, config.changes, overrides),
        source=base_source,
        settings=config.settings or {"": {}},
        arms=tuple(arms),
        every=config.every,
        without=tuple(config.without),
        seeds=tuple(range(chosen)) if isinstance(chosen, int) else tuple(dict.fromkeys(chosen)),
        baseline=config.baseline,
        metric=config.metric,
    )


def _read(path_or_name: str) -> tuple[dict[str, Any], str]:
    if "/" not in path_or_name and not path_or_name.endswith((".yaml", ".yml")):
        try:
            return load_config(f"ablations/{path_or_name}")
        except ConfigError:
            return load_config(path_or_name)
    return load_config(path_or_name)


def _base(base: str, source: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    beside = Path(source).parent / base
    found = load_config(str(beside) if base.endswith((".yaml", ".yml")) and beside.is_file() else base)
    if "stages" not in found[0]:
        raise ConfigError(f"{source}: base: '{base}' is no config that can be run: it has no stages")
    return found


def _with_changes(base: Mapping[str, Any], changes: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    return apply_overrides(apply_changes(base, changes), overrides)


def _grid(grid: Mapping[str, Any]) -> list[Arm]:
    """Return an arm for every combination of the values, called "k=1, temperature=4" after the ends of the paths."""
    if not grid:
        return []
    axes = []
    for path, values in grid.items():
        short = path.rpartition(".")[2]
        named = values if isinstance(values, Mapping) else {f"{short}={_shown(value)}": value for value in values}
        axes.append([(name, path, value) for name, value in named.items()])
    return [
        Arm(", ".join(name for name, _, _ in cell), {path: value for _, path, value in cell})
        for cell in itertools.product(*axes)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("kind", value))
    return "none" if value is None else str(value)
