"""Overrides from the command line: `router.selection.k=2`, `stages.distill.epochs=5`, `stages[2].epochs=5`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from ..errors import ConfigError, did_you_mean
from .spec import join, shorten
from .yaml_file import parse_yaml

FORM = "write it as key.subkey=value, such as router.selection.k=2 or stages.distill.epochs=5"
_STEP = re.compile(r"\.?([A-Za-z0-9_-]+)|\[(\d{1,6})\]")


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a raw config with values replaced.

    Items of a list are named by index (`stages[2]`) or by their `name` (`stages.distill`); null removes an item.
    Mappings on the way that do not exist are made; a component written as a bare name becomes a mapping when an option
    of it is set.

    Raises:
        ConfigError: with one line for each override that can't be read or whose path does not exist.
    """
    result = deepcopy(dict(raw))
    problems: list[str] = []
    for override in overrides:
        try:
            keys, value = parse_override(override)
            _set(result, keys, value, override)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return result


def apply_changes(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a raw config with values replaced; like `apply_overrides`, with the values as they are.

    Args:
        raw: the config.
        changes: new values by path ("router.selection.k"), in order.

    Raises:
        ConfigError: with one line for each path that can't be read or does not exist.
    """
    result = deepcopy(dict(raw))
    problems: list[str] = []
    for path, value in changes.items():
        try:
            keys, _ = parse_override(f"{path}=null")
            _set(result, keys, deepcopy(value), str(path))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return result


def parse_override(override: str) -> tuple[list[str | int], Any]:
    """Return the path and the value of one override.

    Raises:
        ConfigError: it is malformed; the message shows the right form.
    """
    label = f"override {shorten(repr(override))}"
    path, equals, text = override.partition("=")
    keys: list[str | int] = []
    position = 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None or (position == 0) != (path[position] not in ".["):
            break
        keys.append(match[1] if match[1] is not None else int(match[2]))
        position = match.end()
    if not equals or not keys or position != len(path):
        raise ConfigError(f"{label}: {FORM}")
    if not text.strip():
        raise ConfigError(f"{label}: no value after '='; write null for none or '' for empty text")
    return keys, parse_yaml(text, label)


def _set(root: dict[str, Any], keys: list[str | int], value: Any, override: str) -> None:
    label = f"override {shorten(repr(override))}"
    parent: Any = root
    where = ""
    for index, key in enumerate(keys):
        key = _place(parent, key, where, label)
        where = join(where, key)
        if index == len(keys) - 1:
            if value is None and isinstance(parent, list):
                del parent[key]
            else:
                parent[key] = value
            return
        child = parent[key] if isinstance(parent, list) else parent.get(key)
        if child is None or isinstance(child, str):
            child = {} if child is None else {"kind": child}
            parent[key] = child
        elif not isinstance(child, dict | list):
            raise ConfigError(f"{label}: {where} is {shorten(repr(child))}, which has no keys")
        parent = child


def _place(parent: Any, key: str | int, where: str, label: str) -> Any:
    """Return the key or index that a step of a path means in `parent`."""
    if isinstance(parent, dict):
        if isinstance(key, int):
            raise ConfigError(f"{label}: {where or 'the config'} is a mapping, not a list; {FORM}")
        return key
    if isinstance(key, str) and key.isdigit():
        key = int(key)
    if isinstance(key, int):
        if key >= len(parent):
            raise ConfigError(f"{label}: {where} has {len(parent)} items, counted from 0; there is no {where}[{key}]")
        return key
    names = [item.get("name") if isinstance(item, Mapping) else None for item in parent]
    if names.count(key) != 1:
        known = [name for name in names if isinstance(name, str)]
        hint = did_you_mean(key, known) or f"; names: {', '.join(known) or 'none'}"
        count = "no item" if key not in names else "more than one item"
        raise ConfigError(f"{label}: {where} has {count} called '{key}'{hint}")
    return names.index(key)
