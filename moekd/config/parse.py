"""A raw mapping to a validated config and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import ConfigError
from .annotations import Inline, split
from .checker import Checker, Registries, found
from .checks import cross_check
from .component import replace_specs, resolved
from .options import fields_of
from .rooms import load_rooms
from .schema import RecipeConfig
from .section import Section
from .spec import plain


def parse_recipe(raw: Mapping[str, Any], source: str, registries: Registries | None = None) -> RecipeConfig:
    """Check a whole config.

    Args:
        raw: what the YAML file holds, after `extends` and overrides.
        source: name of the file, for messages.
        registries: registries by group; by default those of all rooms.

    Raises:
        ConfigError: with every mistake of the file, one line each: "source: path: reason".
    """
    known = load_rooms() if registries is None else registries
    problems: list[str] = []
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{source}: expected a mapping of keys (data, student, stages, ...), found {found(raw)}")
    try:
        config = Checker(known, problems).section(RecipeConfig, _with_followers(raw), "")
        if isinstance(config, RecipeConfig):
            cross_check(config, known, problems)
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    if problems:
        raise ConfigError([f"{source}: {line}" for line in dict.fromkeys(problems)])
    return config


S = TypeVar("S", bound=Section)


def parse_section(cls: type[S], raw: Any, source: str) -> S:
    """Check a mapping against the fields of any section.

    Raises:
        ConfigError: with every mistake, one line each: "source: path: reason".
    """
    problems: list[str] = []
    section = Checker({}, problems).section(cls, raw, "")
    if problems or not isinstance(section, cls):
        raise ConfigError([f"{source}: {line}" for line in dict.fromkeys(problems)])
    return section


def recipe_dict(config: RecipeConfig, resolve: bool = True, registries: Registries | None = None) -> dict[str, Any]:
    """Return the plain mapping that parses to `config`.

    Args:
        config: a config.
        resolve: write out the default of every option of every component.
        registries: as for `parse_recipe`.
    """
    known = load_rooms() if registries is None else registries
    return _mapping_of(config, resolve, known)


def _with_followers(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config with the student's keys in every teacher that follows the student and names no `kind`."""
    student, teachers = raw.get("student"), raw.get("teachers")
    if not isinstance(student, Mapping) or not isinstance(teachers, Mapping):
        return raw

    def filled(section: Any) -> Any:
        follows = isinstance(section, Mapping) and section.get("follows") is not None and "kind" not in section
        return {**student, **section} if follows else section

    return {**raw, "teachers": {name: filled(section) for name, section in teachers.items()}}


def _mapping_of(section: Section, resolve: bool, registries: Registries) -> dict[str, Any]:
    result: dict[str, Any] = {}
    known = fields_of(type(section))
    for name, option in known.items():
        value = getattr(section, name)
        if resolve:
            value = replace_specs(value, option.annotation, name, lambda spec, r, _: resolved(spec, r), registries)
        if any(isinstance(item, Inline) for item in split(option.annotation)[1]):
            result |= {key: item for key, item in plain(value).items() if key not in known}
        elif value is not None or option.default is not None:
            result[name] = plain(_without_sections(value, resolve, registries))
    return result


def _without_sections(value: Any, resolve: bool, registries: Registries) -> Any:
    if isinstance(value, Section):
        return _mapping_of(value, resolve, registries)
    if isinstance(value, list):
        return [_without_sections(item, resolve, registries) for item in value]
    if isinstance(value, Mapping):
        return {key: _without_sections(item, resolve, registries) for key, item in value.items()}
    return value
