"""What must hold between the parts of a config. Each check passes over values that are invalid themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from ..errors import did_you_mean
from .annotations import split
from .checker import Registries
from .component import nested_specs, value_of
from .options import fields_of, options_of
from .schema import ObjectiveConfig, RecipeConfig, StageConfig
from .section import Section
from .spec import INVALID, Spec, join, problem, shorten

TEACHER_OPTIONS = ("teacher", "teachers")


def cross_check(config: RecipeConfig, registries: Registries, problems: list[str]) -> None:
    """Report what does not fit together in a config."""
    problems.extend(_names(config))
    problems.extend(_masks_and_routers(config, registries))
    for where, stages, router in _stage_lists(config):
        problems.extend(_unique((join(where, i), _get(stage, "name")) for i, stage in enumerate(stages)))
        for index, stage in enumerate(stages):
            if isinstance(stage, StageConfig):
                problems.extend(_stage(config, stage, router, join(where, index)))
    for where, spec, registry in specs_in(config, "", registries):
        for name in TEACHER_OPTIONS:
            if name in spec.options:
                annotation = options_of(registry, spec.kind)[name].annotation
                problems.extend(_teacher_option(config, spec.options[name], annotation, join(where, name)))


def specs_in(section: Section, where: str, registries: Registries) -> Iterator[tuple[str, Spec, Any]]:
    """Yield every component of a config with its path and registry."""
    for name, option in fields_of(type(section)).items():
        value, inline = getattr(section, name, INVALID), name == "spec"
        place = where if inline else join(where, name)
        yield from nested_specs(value, option.annotation, place, registries)
        for path, item in _items(value, place):
            if isinstance(item, Section):
                yield from specs_in(item, path, registries)


def _items(value: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return [(join(where, index), item) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return [(join(where, str(key)), item) for key, item in value.items()]
    return [(where, value)]


def _names(config: RecipeConfig) -> Iterator[str]:
    teachers, baselines = _mapping(config.teachers), _mapping(config.baselines)
    for where, names in (("teachers", teachers), ("baselines", baselines)):
        if "student" in names:
            yield problem(join(where, "student"), "the name 'student' is taken by the student; choose another")
    for name in baselines:
        if name in teachers:
            yield problem(join("baselines", name), "a teacher has this name; results need distinct names")
        after, stages = _get(baselines[name], "after"), [_get(stage, "name") for stage in _list(config.stages)]
        if isinstance(after, str) and INVALID not in stages and after not in stages:
            hint = did_you_mean(after, stages) or f"; stages: {', '.join(stages)}"
            yield problem(f"{join('baselines', name)}.after", f"the recipe has no stage '{after}'{hint}")
    for where, model in [("student", config.student), *((join("teachers", n), m) for n, m in teachers.items())]:
        for tap in _repeated(_list(_get(model, "taps"))):
            yield problem(join(where, "taps"), f"{shorten(repr(tap))} occurs twice")
    beaten = _get(config.paper, "must_beat")
    if isinstance(beaten, str) and config.baselines is not INVALID and beaten not in baselines:
        hint = did_you_mean(beaten, baselines) or f"; baselines: {', '.join(baselines) or 'none'}"
        yield problem("paper.must_beat", f"no baseline {shorten(repr(beaten))}{hint}")


def _masks_and_routers(config: RecipeConfig, registries: Registries) -> Iterator[str]:
    if config.teachers is INVALID:
        return
    taps = [_get(model, "taps") for model in config.teachers.values()]
    if config.masks is not None and not any(taps):
        reason = "no teacher has taps to put masks on" if taps else "masks need teachers; add `teachers`"
        yield problem("masks", reason)
    count = len(taps) if config.masks is None else sum(map(len, taps)) if INVALID not in taps else 0
    routers = [("router", config.router)]
    for name, baseline in _mapping(config.baselines).items():
        routers.append((f"{join('baselines', name)}.router", _get(baseline, "router")))
    for where, router in routers:
        if router is not None and router is not INVALID:
            yield from _router(config, router, count, where, registries)


def _router(config: RecipeConfig, router: Any, count: int, where: str, registries: Registries) -> Iterator[str]:
    if not config.teachers:
        yield problem(where, "a router chooses among teachers; add `teachers`")
        return
    selection = _get(router, "selection")
    if not isinstance(selection, Spec) or "selections" not in registries or count == 0:
        return
    if selection.kind in registries["selections"].names():
        k = value_of(selection, registries["selections"], "k")
        if type(k) is int and k > count:
            yield problem(f"{where}.selection.k", f"{k} teachers chosen of {count}")


def _stage(config: RecipeConfig, stage: StageConfig, router: Any, where: str) -> Iterator[str]:
    there: dict[str, Any] = {"teachers": config.teachers, "masks": config.masks, "router": router}
    trains = _list(stage.trains)
    for index, name in enumerate(trains):
        group, _, member = name.partition(".") if isinstance(name, str) else ("", "", "")
        member = member.partition(".")[0] if group == "teachers" else ""
        if group in there and not there[group] and there[group] is not INVALID:
            yield problem(join(join(where, "trains"), index), f"trains '{name}', but the recipe has no {group}")
        elif member and member not in _mapping(config.teachers):
            yield problem(join(join(where, "trains"), index), _no_teacher(config, member))
    is_train = isinstance(stage.spec, Spec) and stage.spec.kind == "train"
    if is_train and stage.trains == []:
        yield problem(join(where, "trains"), "a stage needs something to train: student, teachers, masks, router, ...")
    given = [name for name in ("epochs", "steps") if getattr(stage, name) is not None]
    if len(given) == 2 or (not given and (trains or is_train)):
        yield problem(where, f"give either epochs or steps, {'not both' if given else 'found neither'}")
    if stage.patience is not None and stage.monitor is None:
        yield problem(join(where, "patience"), "early stopping needs `monitor: {metric: ..., mode: ...}`")
    yield from _weights(stage, join(where, "objectives"), is_train)


def _weights(stage: StageConfig, where: str, is_train: bool) -> Iterator[str]:
    objectives = _list(stage.objectives)
    named = [(join(where, i), o.label) for i, o in enumerate(objectives) if _has_label(o)]
    for line in _unique(named):
        yield f"{line}; give it another `name`"
    if stage.objectives is INVALID or any(_get(o, "weight") is INVALID for o in objectives):
        return
    if not objectives and is_train:
        yield problem(where, "a stage that trains needs at least one objective")
    elif objectives and all(isinstance(o.weight, int | float) and o.weight == 0 for o in objectives):
        yield problem(where, "all weights are 0, so nothing would be learned")


def _teacher_option(config: RecipeConfig, value: Any, annotation: Any, where: str) -> Iterator[str]:
    for path, name in _items(value, where):
        if not isinstance(name, str) or config.teachers is INVALID or name in _choices(annotation):
            continue
        teacher, slash, tap = name.partition("/")
        if teacher not in config.teachers:
            yield problem(path, _no_teacher(config, teacher))
        elif slash:
            taps = _get(config.teachers[teacher], "taps")
            if isinstance(taps, list) and tap not in taps:
                known = [f"{teacher}/{item}" for item in taps if isinstance(item, str)]
                hint = did_you_mean(name, known) or f"; its variants: {', '.join(known) or 'none'}"
                yield problem(path, f"teacher '{teacher}' has no tap {shorten(repr(tap))}{hint}")


def _no_teacher(config: RecipeConfig, name: str) -> str:
    teachers = _mapping(config.teachers)
    if not teachers:
        return f"names teacher {shorten(repr(name))}, but the recipe has no teachers; add `teachers`"
    return f"no teacher {shorten(repr(name))}{did_you_mean(name, teachers) or '; teachers: ' + ', '.join(teachers)}"


def _choices(annotation: Any) -> set[Any]:
    bare = split(annotation)[0]
    if get_origin(bare) is Literal:
        return set(get_args(bare))
    return {choice for part in get_args(bare) for choice in _choices(part)}


def _stage_lists(config: RecipeConfig) -> Iterator[tuple[str, list[Any], Any]]:
    """Yield every list of stages with its path and its router."""
    yield "stages", _list(config.stages), config.router
    for name, baseline in _mapping(config.baselines).items():
        router = _get(baseline, "router") or config.router
        yield f"{join('baselines', name)}.stages", _list(_get(baseline, "stages")), router


def _unique(named: Iterable[tuple[str, Any]]) -> Iterator[str]:
    first: dict[str, str] = {}
    for where, name in named:
        if isinstance(name, str) and first.setdefault(name, where) != where:
            yield problem(where, f"'{name}' is the name of {first[name]} already")


def _repeated(values: list[Any]) -> list[str]:
    texts = [value for value in values if isinstance(value, str)]
    return sorted({text for text in texts if texts.count(text) > 1})


def _has_label(objective: Any) -> bool:
    return isinstance(objective, ObjectiveConfig) and isinstance(objective.spec, Spec) and objective.name is not INVALID


def _get(section: Any, name: str) -> Any:
    return getattr(section, name, INVALID)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
