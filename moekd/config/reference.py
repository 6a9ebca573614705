"""The config reference, generated from the schema and the registries."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..errors import UnknownNameError, did_you_mean
from .annotations import describe as words
from .annotations import inline_of
from .checker import Registries
from .options import REQUIRED, Option, fields_of, options_of
from .rooms import load_rooms
from .schema import (
    BaselineConfig,
    DataConfig,
    EpisodesConfig,
    EvaluationConfig,
    FollowConfig,
    MasksConfig,
    ModelConfig,
    MonitorConfig,
    ObjectiveConfig,
    PaperConfig,
    ProbeConfig,
    RecipeConfig,
    RetrievalConfig,
    RouterConfig,
    StageConfig,
    TeacherConfig,
    TrainerConfig,
    ZeroShotConfig,
)
from .section import Section
from .spec import plain
from .yaml_file import flow_yaml

SECTIONS = {
    "The whole file": RecipeConfig,
    "paper": PaperConfig,
    "data": DataConfig,
    "data.episodes": EpisodesConfig,
    "student": ModelConfig,
    "teachers.NAME": TeacherConfig,
    "teachers.NAME.follows": FollowConfig,
    "masks": MasksConfig,
    "router, baselines.NAME.router": RouterConfig,
    "stages[]": StageConfig,
    "stages[].objectives[]": ObjectiveConfig,
    "stages[].monitor": MonitorConfig,
    "baselines.NAME": BaselineConfig,
    "evaluation": EvaluationConfig,
    "evaluation.zero_shot": ZeroShotConfig,
    "evaluation.retrieval": RetrievalConfig,
    "evaluation.probe": ProbeConfig,
    "trainer": TrainerConfig,
}
_ENTRY = re.compile(r"(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)")


def describe(group: str, registries: Registries | None = None) -> list[tuple[str, str]]:
    """Return the name and the first docstring line of every member of a registry.

    Raises:
        UnknownNameError: no such group.
    """
    known = load_rooms() if registries is None else registries
    if group not in known:
        hint = did_you_mean(group, known) or f"; known: {', '.join(sorted(known))}"
        raise UnknownNameError(f"unknown group '{group}'{hint}")
    return [(name, summary(known[group].get(name))) for name in known[group].names()]


def reference_markdown(registries: Registries | None = None) -> str:
    """Return the whole reference as Markdown."""
    known = load_rooms() if registries is None else registries
    parts = [
        "# Config reference",
        "A component is `{kind: name, ...options}` or just its name. Unknown keys are errors.",
        "## Sections",
    ]
    for title, section in SECTIONS.items():
        fields = fields_of(section)
        inline = inline_of(section)
        own = {name: option for name, option in fields.items() if inline is None or name != inline[0]}
        if inline is not None:
            own = {"kind": replace(fields[inline[0]], default=inline[1].default or REQUIRED)} | own
        parts += [f"### {title}", summary(section)]
        parts += [_table(own, {"kind": "registered name; its options are further keys"} | arguments(section), known)]
    for group, registry in sorted(known.items()):
        if not registry.names():
            continue
        parts += [f"## {group.replace('_', ' ').capitalize()}"]
        for name in registry.names():
            parts += [f"### {group}: {name}", summary(registry.get(name))]
            parts += [_table(options_of(registry, name), arguments(registry.get(name)), known)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring on one line; PyTorch's classes are named only."""
    if cls.__module__.startswith("torch."):
        return f"`{cls.__module__}.{cls.__qualname__}`; PyTorch documents the options."
    return " ".join(_own_doc(cls).split("\n\n")[0].split())


def arguments(cls: type) -> dict[str, str]:
    """Return the descriptions in the `Args:` or `Attributes:` section of a class's or its `__init__`'s docstring."""
    found: dict[str, str] = {}
    if cls.__module__.startswith("torch."):
        return found
    init = vars(cls).get("__init__")
    sections = [base for base in cls.__mro__[1:] if issubclass(base, Section)]  # their keys are this one's too
    for text in (_own_doc(cls), inspect.getdoc(init) or "", *map(_own_doc, sections)):
        for name, meaning in _entries(text):
            found.setdefault(name, meaning)
    return found


def _entries(text: str) -> Iterator[tuple[str, str]]:
    lines = iter(inspect.cleandoc(text).splitlines())
    if not any(line.strip() in ("Args:", "Attributes:") for line in lines):
        return
    entry: list[str] = []
    indent = 0
    for line in lines:
        if line.strip() and not line.startswith(" "):
            break
        depth = len(line) - len(line.lstrip())
        indent = indent or depth
        if depth == indent and _ENTRY.match(line.strip()) and line.strip():
            yield from _entry(entry)
            entry = []
        entry.append(line.strip())
    yield from _entry(entry)


def _entry(lines: list[str]) -> Iterator[tuple[str, str]]:
    match = _ENTRY.match(" ".join(filter(None, lines)))
    if match is not None:
        yield match[1].lstrip("*"), match[2]


def _table(options: Mapping[str, Option], meanings: Mapping[str, str], registries: Registries) -> str:
    if not options:
        return "No options."
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        default = "required" if option.default is REQUIRED else f"`{_default(option.default)}`"
        cells = (f"`{name}`", words(option.annotation, registries), default, meanings.get(name, ""))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _default(value: object) -> str:
    return flow_yaml(plain(value))


def _own_doc(cls: type) -> str:
    """Return the docstring that the class itself has, not one that it inherits."""
    return inspect.cleandoc(vars(cls).get("__doc__") or "")
