"""Checks plain YAML values against type annotations and reports every mistake, not just the first."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..errors import ConfigError, did_you_mean
from ..registry import Registry
from .annotations import (
    LISTS,
    MAPPINGS,
    Component,
    Inline,
    Slot,
    describe,
    inline_of,
    is_section,
    members,
    slot_of,
    split,
    yaml_word,
)
from .options import Option, fields_of, options_of
from .spec import INVALID, Spec, join, problem, shorten

Registries = Mapping[str, Registry[Any]]
_NOT_TEXT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?([eE][-+]?[0-9]+)?|true|false|null")


class Checker:
    """Turns plain values into typed ones; what is wrong becomes a line in `problems` and an `INVALID` in the result.

    Args:
        registries: registries by group.
        problems: list that takes the lines.
    """

    def __init__(self, registries: Registries, problems: list[str]) -> None:
        self.registries, self.problems = registries, problems

    def value(self, annotation: Any, value: Any, where: str) -> Any:
        """Return `value` as the annotation asks for it, or report why not."""
        bare, metadata = split(annotation)
        marker = next((item for item in metadata if isinstance(item, Component | Inline)), None)
        slot = slot_of(annotation, self.registries)
        if marker is not None and slot is None:
            return self._report(where, f"nothing of the kind '{marker.group}' is registered")
        if slot is not None:
            return self.component(slot, value, where)
        if get_origin(bare) in (Union, types.UnionType):
            return self._union(annotation, value, where)
        if is_section(bare):
            return self.section(bare, value, where)
        origin, args = get_origin(bare) or bare, get_args(bare)
        if origin in LISTS or origin is tuple:
            return self._constrained(self._items(annotation, origin, args, value, where), metadata, annotation, where)
        if origin in MAPPINGS:
            return self._constrained(self._entries(annotation, args, value, where), metadata, annotation, where)
        return self._leaf(annotation, value, where)

    def component(self, slot: Slot, value: Any, where: str) -> Any:
        """Return the `Spec` of a component: `{kind: name, **options}` or a bare name."""
        registry = slot.registry
        if isinstance(value, Spec):
            value = value.to_dict()
        mapping = {"kind": value} if isinstance(value, str) else value
        if not isinstance(mapping, Mapping):
            return self._report(where, f"expected {describe_slot(slot)} ({{kind: ...}}), found {found(value)}")
        kind = self._kind(slot, mapping, where)
        if kind is INVALID:
            return INVALID
        try:
            options = options_of(registry, kind)
        except ConfigError as error:
            return self._report(where, str(error))
        given = {key: item for key, item in mapping.items() if key != "kind"}
        return Spec(kind, self.options(options, given, where, f"option of '{kind}'"))

    def options(self, known: Mapping[str, Option], given: Mapping[Any, Any], where: str, noun: str) -> dict[str, Any]:
        """Check the keys of a mapping: unknown ones, missing ones, and the values."""
        result = {}
        for key, item in given.items():
            if key in known:
                result[key] = self.value(known[key].annotation, item, join(where, key))
            else:
                self._unknown_key(key, list(known), where, noun)
        for key, option in known.items():
            if option.required and key not in given:
                wanted = describe(option.annotation, self.registries)
                result[key] = self._report(join(where, key), f"missing; expected {wanted}")
        return result

    def section(self, cls: type, value: Any, where: str) -> Any:
        """Return a pydantic model or dataclass; a model with mistakes comes back with `INVALID` in their places."""
        known = fields_of(cls)
        inline = inline_of(cls)
        if isinstance(value, str) and inline is not None:
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return self._report(where, f"expected a mapping, found {found(value)}")
        before = len(self.problems)
        if inline is None:
            values = self.options(known, value, where, "key")
        else:
            values = self._mixed(known, *inline, value, where)
        if len(self.problems) == before:
            return self._construct(cls, values, where)
        return cls.model_construct(**values) if issubclass(cls, BaseModel) else INVALID

    def _mixed(
        self, known: Mapping[str, Option], inline: str, marker: Inline, value: Mapping[Any, Any], where: str
    ) -> dict[str, Any]:
        """Split a mapping into the section's own keys and those of its component, and check both."""
        own = {key: option for key, option in known.items() if key != inline}
        rest = {key: item for key, item in value.items() if key not in own}
        if marker.default is not None:
            rest.setdefault("kind", marker.default)
        values = self.options(own, {key: item for key, item in value.items() if key in own}, where, "key")
        slot = slot_of(known[inline].annotation, self.registries)
        if slot is None:
            return values | {inline: self._report(where, f"nothing of the kind '{marker.group}' is registered")}
        kind = self._kind(slot, rest, where)
        if kind is INVALID:
            return values | {inline: INVALID}
        try:
            options = {k: o for k, o in options_of(slot.registry, kind).items() if k not in own}
        except ConfigError as error:
            return values | {inline: self._report(where, str(error))}
        given = {key: item for key, item in rest.items() if key != "kind"}
        for key in [key for key in given if key not in options]:
            self._unknown_key(key, [*options, *own], where, f"option of '{kind}'")
            del given[key]
        return values | {inline: Spec(kind, self.options(options, given, where, f"option of '{kind}'"))}

    def _kind(self, slot: Slot, mapping: Mapping[Any, Any], where: str) -> Any:
        kind, path = mapping.get("kind"), join(where, "kind")
        if "kind" not in mapping:
            return self._report(path, f"missing; known {slot.registry.group}: {', '.join(slot.names())}")
        if not isinstance(kind, str):
            return self._report(path, f"expected the name of {describe_slot(slot)}, found {found(kind)}")
        if any(sign in kind for sign in "./\\:"):
            return self._report(
                path,
                f"{found(kind)} is refused: only registered names are allowed here, no import paths and no file paths",
            )
        try:
            slot.registry.get(kind)
        except ConfigError as error:
            return self._report(path if isinstance(mapping, Mapping) else where, shorten(str(error), 400))
        if not slot.admits(kind):
            return self._report(
                path, f"'{kind}' does not fit here; fitting {slot.registry.group}: {', '.join(slot.names())}"
            )
        return kind

    def _union(self, annotation: Any, value: Any, where: str) -> Any:
        parts = members(annotation)
        for part in sorted(parts, key=lambda part: self._rank(part, value)):
            trial = Checker(self.registries, [])
            result = trial.value(part, value, where)
            if not trial.problems:
                return result
        fitting = [part for part in parts if self._fits(part, value)]
        if len(fitting) == 1 and split(fitting[0])[0] not in (int, float, str, bool):
            return self.value(fitting[0], value, where)
        return self._expected(annotation, value, where)

    def _rank(self, annotation: Any, value: Any) -> int:
        slot = slot_of(annotation, self.registries)
        if slot is not None:
            return 0 if isinstance(value, str) and value in slot.registry.names() else 2
        bare = split(annotation)[0]
        return 1 if (get_origin(bare) or bare) is type(value) else 2

    def _fits(self, annotation: Any, value: Any) -> bool:
        """Tell whether a value has the outer form of a type, so that its mistakes are worth telling in detail."""
        bare = split(annotation)[0]
        origin = get_origin(bare) or bare
        if slot_of(annotation, self.registries) is not None:
            return isinstance(value, Mapping | str)
        if origin in MAPPINGS or is_section(origin):
            return isinstance(value, Mapping)
        if origin in LISTS or origin is tuple:
            return isinstance(value, list | tuple)
        if origin is Literal:
            return type(value) in {type(choice) for choice in get_args(bare)}
        if origin is float:
            return type(value) in (int, float)
        return origin is type(value)

    def _items(self, annotation: Any, origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple):
            return self._expected(annotation, value, where, "; write it as a list: [...]")
        kinds: Sequence[Any] = [args[0] if args else Any] * len(value)
        if origin is tuple and args and args[-1] is not Ellipsis:
            kinds = args
            if len(kinds) != len(value):
                return self._expected(annotation, value, where, f" with {len(value)} items")
        items = [
            self.value(kind, item, join(where, i)) for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        ]
        return tuple(items) if origin is tuple else items

    def _entries(self, annotation: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
        if not isinstance(value, Mapping):
            return self._expected(annotation, value, where)
        key_type, item_type = args or (Any, Any)
        result = {}
        for key, item in value.items():
            trial = Checker(self.registries, [])
            typed = trial.value(key_type, key, where)
            if trial.problems or not isinstance(typed, str | int | float):
                self._report(where, f"key {found(key)}: expected {describe(key_type, self.registries)}")
                continue
            result[typed] = self.value(item_type, item, join(where, str(key)))
        return result

    def _constrained(self, value: Any, metadata: tuple[Any, ...], annotation: Any, where: str) -> Any:
        if value is INVALID or not metadata:
            return value
        try:
            TypeAdapter(Annotated[Any, *metadata]).validate_python(value)
        except (ValidationError, TypeError):
            return self._expected(annotation, value, where, f" of {len(value)}")
        return value

    def _leaf(self, annotation: Any, value: Any, where: str) -> Any:
        bare = split(annotation)[0]
        if get_origin(bare) is Literal:
            if any(type(choice) is type(value) and choice == value for choice in get_args(bare)):
                return value
            texts = [choice for choice in get_args(bare) if isinstance(choice, str)]
            return self._expected(
                annotation, value, where, did_you_mean(value, texts) if isinstance(value, str) else ""
            )
        if bare is Path:
            if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
                return Path(value)
            return self._expected(annotation, value, where)
        strict = None if is_typeddict(bare) else ConfigDict(strict=True, allow_inf_nan=False)
        try:
            return TypeAdapter(annotation, config=strict).validate_python(value, strict=True)
        except ValidationError as error:
            nested = [item for item in error.errors() if item["loc"]]
            for item in nested:
                path = where
                for key in item["loc"]:
                    path = join(path, key)
                self._report(path, item["msg"])
            return INVALID if nested else self._expected(annotation, value, where)

    def _construct(self, cls: type, values: dict[str, Any], where: str) -> Any:
        try:
            return cls.model_validate(values) if issubclass(cls, BaseModel) else cls(**values)
        except ValidationError as error:
            for item in error.errors():
                self._report(".".join([where, *map(str, item["loc"])]).strip("."), item["msg"])
        except (ValueError, TypeError) as error:
            self._report(where, str(error))
        return INVALID

    def _unknown_key(self, key: Any, known: list[str], where: str, noun: str) -> None:
        if not isinstance(key, str):
            self._report(where, f"key {found(key)} is not text; known: {', '.join(known)}")
            return
        hint = did_you_mean(key, known) or (f"; known: {', '.join(known)}" if known else "; it takes none")
        self._report(join(where, key), f"unknown {noun}{hint}")

    def _expected(self, annotation: Any, value: Any, where: str, hint: str = "") -> Any:
        return self._report(where, f"expected {describe(annotation, self.registries)}, found {found(value)}{hint}")

    def _report(self, where: str, reason: str) -> Any:
        self.problems.append(problem(where, reason))
        return INVALID


def describe_slot(slot: Slot) -> str:
    """Return "a gate" or "an objective"."""
    return f"{'an' if slot.registry.noun[:1] in 'aeiou' else 'a'} {slot.registry.noun}"


def found(value: Any) -> str:
    """Return a value for a message, short, with its kind where that matters."""
    if isinstance(value, Mapping | Spec):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return f"{shorten(repr(value))} (text{'; remove the quotes' if _NOT_TEXT.fullmatch(value) else ''})"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large integer"
    if value is None or isinstance(value, bool | int | float):
        return shorten(yaml_word(value))
    return f"an object of type {type(value).__name__}"
