"""What an ablation file says: a base config, settings, arms, seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, MinLen

from ..config import Section, apply_changes, apply_overrides, load_config, parse_section, shipped_ablations
from ..errors import ConfigError, did_you_mean
from ..evaluation.embedding_metrics import EmbeddingMetric

Changes = dict[Annotated[str, MinLen(1)], Any]
Label = Annotated[str, MinLen(1)]
Seed = Annotated[int, Ge(0)]
Metric = Literal["accuracy", "balanced_accuracy", "weighted_f1", "loss", "miou", EmbeddingMetric]


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
        metric: what is compared; those after `miou` are measured on embeddings.
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
    metric: Metric = "accuracy"


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


def load_ablation(
    path_or_name: str | Path, overrides: Sequence[str] = (), seeds: int | None = None, base: str | None = None
) -> Ablation:
    """Read an ablation file or a shipped ablation.

    Args:
        path_or_name: a YAML file, or the name of a shipped ablation ("ablations/routers", or "routers").
        overrides: "key=value" changes of every arm's config; what a setting or arm itself changes goes first.
        seeds: number of seeds instead of the file's; of a list of seeds the first ones.
        base: another base than the file's: the name of a shipped config, or a file. It becomes part of the name.

    Raises:
        ConfigError: every mistake of the file.
    """
    raw, source = _read(str(path_or_name))
    config = parse_section(AblationConfig, raw, source)
    problems: list[str] = []
    raw_base, base_source = _base(config, source, base, overrides, problems)
    suffix = "" if base is None else f"-{Path(base).stem}"
    grid = _grid(config.grid)
    arms = [Arm(name, changes) for name, changes in config.arms.items()]
    arms += [arm for arm in grid if arm.name not in config.without]
    unknown = [name for name in config.without if name not in {arm.name for arm in grid}]
    problems += _mistakes(config, arms, grid, unknown, source) + _without_effect(config, arms, overrides)
    chosen = _seeds(config.seeds, seeds, source, problems)
    if problems:
        raise ConfigError(problems)
    return Ablation(
        name=Path(source).stem + suffix,
        title=(config.title or Path(source).stem) + ("" if base is None else f", {Path(base).stem}"),
        base=raw_base,
        source=base_source,
        settings=config.settings or {"": {}},
        arms=tuple(arms),
        every=config.every,
        without=tuple(unknown),
        seeds=chosen,
        baseline=config.baseline,
        metric=config.metric,
    )


def _read(path_or_name: str) -> tuple[dict[str, Any], str]:
    """Read a file, or the shipped ablation of that name."""
    if "/" in path_or_name or path_or_name.lower().endswith((".yaml", ".yml")):
        return load_config(path_or_name)
    shipped = list(shipped_ablations())
    if path_or_name not in shipped and not Path(path_or_name).is_file():
        hint = did_you_mean(path_or_name, shipped) or f"; shipped ablations: {', '.join(shipped) or 'none'}"
        raise ConfigError(f"no shipped ablation '{path_or_name}'{hint} (the name of a file ends with .yaml)")
    return load_config(f"ablations/{path_or_name}" if path_or_name in shipped else path_or_name)


def _base(
    config: AblationConfig, source: str, other: str | None, overrides: Sequence[str], problems: list[str]
) -> tuple[dict[str, Any], str]:
    """Return the base config with the common changes and the overrides, and where it came from."""
    is_file = config.base.lower().endswith((".yaml", ".yml"))
    beside = shipped_ablations().get(source.removeprefix("ablations/"), Path(source)).parent / config.base
    chosen = other or (str(beside) if is_file else config.base)
    try:
        raw, base_source = load_config(chosen)
        if "stages" not in raw:
            raise ConfigError(f"'{chosen}' is no config that can be run: it has no stages")
    except ConfigError as error:
        problems += [f"{source}: base: {line}" for line in error.problems]
        return {}, ""
    try:
        raw = apply_changes(raw, config.changes)
    except ConfigError as error:
        problems += [f"{source}: changes: {line}" for line in error.problems]
    try:
        raw = apply_overrides(raw, overrides)
    except ConfigError as error:
        problems += error.problems
    return raw, base_source


def _mistakes(
    config: AblationConfig, arms: Sequence[Arm], grid: Sequence[Arm], unknown: Sequence[str], source: str
) -> list[str]:
    """Return what is wrong with the names of arms, as far as it can be told without building anything."""
    names = [arm.name for arm in arms]
    problems = [
        f"{source}: the arm '{name}' is there twice; a grid whose values look alike takes names: {{name: value}}"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if config.every:
        return problems
    if not arms:
        problems.append(f"{source}: nothing to compare: give arms, grid or every")
    elif config.baseline is not None and config.baseline not in names:
        problems.append(f"{source}: baseline: {no_arm(config.baseline, names)}")
    problems += [f"{source}: without: {no_arm(name, [arm.name for arm in grid])}" for name in unknown]
    return problems


def check_metric(name: str) -> str:
    """Return the name of a metric.

    Raises:
        ConfigError: there is none of this name.
    """
    known = get_args(Metric)
    if name not in known:
        raise ConfigError(f"metric: no metric '{name}'{did_you_mean(name, known) or '; metrics: ' + ', '.join(known)}")
    return name


def no_arm(name: str, known: Sequence[str]) -> str:
    """Say that there is no arm of a name."""
    return f"no arm '{name}'" + (did_you_mean(name, known) or f"; arms: {', '.join(known) or 'none'}")


def _without_effect(config: AblationConfig, arms: Sequence[Arm], overrides: Sequence[str]) -> list[str]:
    """Refuse overrides that no arm would see, since every setting or every arm sets the same value."""
    families: dict[str, list[Mapping[str, Any]]] = {"setting": list(config.settings.values())}
    if not config.every:
        families["arm"] = [arm.changes for arm in arms]
    problems = []
    for override in overrides:
        path = override.partition("=")[0]
        for noun, members in families.items():
            if members and all(any(path == p or path.startswith((f"{p}.", f"{p}[")) for p in m) for m in members):
                problems.append(f"override {override!r} has no effect: every {noun} sets it; change the file")
    return problems


def _seeds(listed: int | list[int], wanted: int | None, source: str, problems: list[str]) -> tuple[int, ...]:
    if wanted is not None and wanted < 1:
        problems.append(f"seeds: {wanted} asked for; an ablation needs at least 1")
        return ()
    if isinstance(listed, int):
        return tuple(range(listed if wanted is None else wanted))
    seeds = tuple(dict.fromkeys(listed))
    if wanted is not None and wanted > len(seeds):
        problems.append(f"{source}: seeds: {wanted} asked for, but the file lists {len(seeds)}; list more there")
    return seeds[:wanted]


def _grid(grid: Mapping[str, Any]) -> list[Arm]:
    """Return an arm for every combination of the values, called "k=1, temperature=4" after the ends of the paths."""
    if not grid:
        return []
    ends = [path.rpartition(".")[2] for path in grid]
    axes = []
    for (path, values), end in zip(grid.items(), ends, strict=True):
        short = end if ends.count(end) == 1 else path
        named = (
            values.items() if isinstance(values, Mapping) else [(f"{short}={_shown(value)}", value) for value in values]
        )
        axes.append([(name, path, value) for name, value in named])
    return [
        Arm(", ".join(name for name, _, _ in cell), {path: value for _, path, value in cell})
        for cell in itertools.product(*axes)
    ]


def _shown(value: Any) -> str:
    """Return a value of a grid as a part of a name."""
    if isinstance(value, Mapping):
        return str(value.get("kind", value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
