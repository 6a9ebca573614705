"""A component as it stands in a config: a registered kind and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Spec:
    """A validated component; an option may hold further specs, alone or in lists and mappings.

    Attributes:
        kind: registered name.
        options: the options that the config gives, with the types that the class asks for; defaults are left out.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return `{kind: ..., **options}` of plain YAML values."""
        return {"kind": self.kind} | {name: plain(value) for name, value in self.options.items()}


class Invalid:
    """Stands for a value that has been reported already, so that the rest of a config can still be checked."""

    def __repr__(self) -> str:
        return "INVALID"


INVALID: Any = Invalid()


def plain(value: Any) -> Any:
    """Return `value` made of plain YAML values: mappings, lists, text, numbers, booleans and null."""
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value) if item.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    return str(value) if isinstance(value, PurePath) else value


def join(where: str, key: str | int) -> str:
    """Return the path of an item: `stages[2]`, `teachers.audio`, `teachers['a b']`."""
    if isinstance(key, int):
        return f"{where}[{key}]"
    if not key or not all(c.isalnum() or c in "_-/" for c in key):
        return f"{where}[{shorten(repr(key))}]"
    return f"{where}.{shorten(key)}" if where else shorten(key)


def problem(where: str, reason: str) -> str:
    """Return one line of a report; an empty path is the whole file."""
    return f"{where}: {reason}" if where else reason


def shorten(text: str, limit: int = 60) -> str:
    """Cut long texts for messages."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
