"""From an ablation to the runs that it needs: stages that several arms share are run once.

An arm's first stages depend on the data, the models, the seed and those stages alone, not on what comes after them. So
arms that agree in them form a tree; every inner node with several arms behind it becomes a job of its own, and its arms
start from where it ended. The numbers are those of runs from the beginning, to the bit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import RecipeConfig, apply_changes, parse_recipe, recipe_dict
from ..dry_run import dry_run
from ..errors import ConfigError, MoekdError
from ..program import Program
from ..recipe import Recipe
from ..routers import example_routers
from .run import COSMETIC, build_program
from .spec import Ablation, Arm, no_arm

Config = dict[str, Any]


@dataclass(frozen=True)
class Needs:
    """Of which parts of a config the first stages of an arm make use, by number of stages."""

    masks: Sequence[bool]
    router: Sequence[bool]


@dataclass(frozen=True)
class Plan:
    """All runs of an ablation.

    Attributes:
        jobs: in an order in which each comes after the one that it starts from; a seed is complete before the next.
        arms: the arms, in the order of the report.
        inapplicable: (setting, arm) of arms of a family that can't work there, with the reason.
        steps: rows of the dry run of each (setting, arm).
    """

    jobs: list[dict[str, Any]]
    arms: list[Arm]
    inapplicable: dict[tuple[str, str], str]
    steps: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)


def make_plan(ablation: Ablation) -> Plan:
    """Check every arm of every setting with one seed, and list the runs.

    Raises:
        ConfigError: every mistake of every arm.
    """
    problems: dict[str, list[str]] = {}
    inapplicable: dict[tuple[str, str], str] = {}
    needs: dict[tuple[str, str], Needs] = {}
    steps: dict[tuple[str, str], list[dict[str, Any]]] = {}
    arms = _all_arms(ablation)
    for setting in ablation.settings:
        for arm in arms:
            try:
                program = build_program(_parsed(ablation, setting, arm, ablation.seeds[0]), ablation.source)
                steps[setting, arm.name] = dry_run(program)
                needs[setting, arm.name] = _needs(program)
            except MoekdError as error:
                if arm.optional:
                    inapplicable[setting, arm.name] = str(error)
                else:
                    for line in error.problems if isinstance(error, ConfigError) else [str(error)]:
                        problems.setdefault(line, []).append(f"{setting}, {arm.name}" if setting else arm.name)
    if not needs and not problems:
        for (setting, name), reason in inapplicable.items():
            problems.setdefault(reason, []).append(f"{setting}, {name}" if setting else name)
    if problems:
        count = len(ablation.settings) * len(arms)
        raise ConfigError([f"{_cells(names, count)}: {line}" for line, names in problems.items()])
    jobs: list[dict[str, Any]] = []
    for seed in ablation.seeds:
        cells = [(s, arm) for s in ablation.settings for arm in arms if (s, arm.name) in needs]
        configs = {
            (s, arm.name): recipe_dict(_parsed(ablation, s, arm, seed)) | {"title": arm.name} for s, arm in cells
        }
        jobs += _with_shared(configs, needs, seed)
    return Plan(jobs, arms, inapplicable, steps)


def _cells(names: Sequence[str], cells: int) -> str:
    """Name the arms that have a problem."""
    if len(names) == cells > 1:
        return "every arm"
    shown = ", ".join(repr(name) for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"arm{'s' if len(names) > 1 else ''} {shown}"


def _parsed(ablation: Ablation, setting: str, arm: Arm, seed: int) -> RecipeConfig:
    """Return the config of one run; its baselines are left out, since arms take their place."""
    raw = apply_changes(ablation.base, {**ablation.settings[setting], **arm.changes})
    raw |= {"seed": seed, "title": arm.name}
    raw.pop("baselines", None)
    if isinstance(raw.get("paper"), Mapping):
        raw["paper"] = {key: value for key, value in raw["paper"].items() if key != "must_beat"}
    return Recipe(parse_recipe(raw, ablation.source), ablation.source).config


def _all_arms(ablation: Ablation) -> list[Arm]:
    """Return the arms of the file and those of `every`."""
    if ablation.every != "routers":
        if ablation.baseline is not None and ablation.baseline not in _names(ablation.arms):
            raise ConfigError(f"{ablation.name}: baseline: {no_arm(ablation.baseline, _names(ablation.arms))}")
        return list(ablation.arms)
    family = _family(ablation)
    taken = {arm.name for arm in ablation.arms} | set(ablation.without)
    arms = [*ablation.arms, *(arm for arm in family if arm.name not in taken)]
    known = _names(family)
    problems = [f"without: {no_arm(name, known)}" for name in ablation.without if name not in known]
    if ablation.baseline is not None and ablation.baseline not in _names(arms):
        problems.append(f"baseline: {no_arm(ablation.baseline, _names(arms))}")
    if problems:
        raise ConfigError([f"{ablation.name}: {line}" for line in problems])
    return arms


def _names(arms: Sequence[Arm]) -> list[str]:
    return [arm.name for arm in arms]


def _family(ablation: Ablation) -> list[Arm]:
    """Return an arm for every gate and selection: for as many teachers as the base config has experts."""
    setting = next(iter(ablation.settings))
    program = build_program(_parsed(ablation, setting, Arm("base"), ablation.seeds[0]), ablation.source)
    main = program.phases[0]
    chosen = main.router.experts if main.router is not None else None
    routers = example_routers(len(program.models(main).experts))
    return [
        Arm(name, {"router": section if chosen is None else section | {"experts": list(chosen)}}, optional=True)
        for name, section in routers.items()
    ]


def _needs(program: Program) -> Needs:
    """Tell from which stage on the main phase makes use of masks and of the router."""
    phase, pool = program.phases[0], program.pool
    masks, router, masked, routed = [], [], False, False
    for stage in phase.stages:
        settings = stage.settings
        objectives = [weighted.objective for weighted in settings.objectives]
        routes = any(objective.routable for objective in objectives)
        read = {name for objective in objectives for name in objective.variants(pool)}
        read |= set(program.models(phase).experts) if routes else set()
        masked = masked or "masks" in settings.trains or bool(read & set(pool.specialised))
        routed = routed or "router" in settings.trains or routes
        masks.append(masked)
        router.append(routed)
    return Needs(masks, router)


def first_stages(config: Mapping[str, Any], count: int, needs: Needs) -> Config:
    """Return the config of a run of the first `count` stages, without what they make no use of."""
    shared = {key: value for key, value in config.items() if key not in (*COSMETIC, "baselines")}
    shared["stages"] = config["stages"][:count]
    if not needs.masks[count - 1]:
        shared.pop("masks", None)
    if not needs.router[count - 1]:
        shared.pop("router", None)
    return shared


def _with_shared(
    configs: Mapping[tuple[str, str], Config], needs: Mapping[tuple[str, str], Needs], seed: int
) -> list[dict[str, Any]]:
    """Return the jobs of one seed: shared stages as they are needed, then the arms."""
    prefixes: dict[tuple[str, str], list[tuple[str, Config]]] = {}
    users: dict[str, set[tuple[str, str]]] = {}
    for cell, config in configs.items():
        counts = range(1, len(config["stages"]))
        prefixes[cell] = [(config_digest(c), c) for c in (first_stages(config, n, needs[cell]) for n in counts)]
        for digest, _ in prefixes[cell]:
            users.setdefault(digest, set()).add(cell)
    jobs: dict[str, dict[str, Any]] = {}

    def start_of(cell: tuple[str, str], count: int, fewer_than: int) -> str | None:
        """Return the job that the stages behind the first `count` ones start from, and make it if need be."""
        for n in range(count, 0, -1):
            digest, config = prefixes[cell][n - 1]
            if len(users[digest]) <= fewer_than:
                continue
            key = f"shared-{digest[:10]}-seed{seed}"
            if key not in jobs:
                start = start_of(cell, n - 1, len(users[digest]))
                names = ", ".join(stage["name"] for stage in config["stages"])
                title = f"{names} of {len(users[digest])} arms"
                shared = config | {"title": title}
                jobs[key] = _job(key, shared, start, cell[0], None, title, seed)
            return key
        return None

    for (setting, arm), config in configs.items():
        start = start_of((setting, arm), len(config["stages"]) - 1, 1)
        label = "-".join(_slug(part) for part in (setting, arm) if part)
        key = _free(f"{label[:60]}-{config_digest(config)[:8]}-seed{seed}", jobs)
        jobs[key] = _job(key, config, start, setting, arm, arm, seed)
    return list(jobs.values())


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a sha256 of what a config's numbers depend on; titles do not count."""
    relevant = {key: value for key, value in config.items() if key not in COSMETIC}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()


def _job(
    key: str, config: Config, start: str | None, setting: str, arm: str | None, title: str, seed: int
) -> dict[str, Any]:
    place = {"setting": setting, "arm": arm, "title": title, "seed": seed}
    return {"key": key, "config": config, "start": start} | place


def _free(key: str, taken: Mapping[str, Any]) -> str:
    """Return a key that is not taken: arms of one config may have names that differ in signs only."""
    numbered = (f"{key}-{number}" if number > 1 else key for number in itertools.count(1))
    return next(name for name in numbered if name not in taken)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "arm"
