"""What type annotations mean in a config: components, sections, values, and how to say so in words."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, is_typeddict

import torch
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..registry import REGISTRIES, Registry

LISTS = (list, Sequence, Collection, Iterable)
MAPPINGS = (dict, Mapping)


@dataclass(frozen=True)
class Component:
    """Marks a `Spec` field of a section: a component of the registry `group`."""

    group: str


@dataclass(frozen=True)
class Inline:
    """Marks the `Spec` field that takes `kind` and all keys which the section itself does not have.

    Attributes:
        group: group of the registry.
        default: kind when the config names none.
    """

    group: str
    default: str | None = None


@dataclass(frozen=True)
class Means:
    """Says in words what a value is, instead of words made from its type."""

    text: str


@dataclass(frozen=True)
class Slot:
    """Where a component is expected: its registry and the base class that its members must have here."""

    registry: Registry[Any]
    bound: type | None = None

    def names(self) -> list[str]:
        """Return the kinds that fit."""
        return [name for name in self.registry.names() if self.admits(name)]

    def admits(self, name: str) -> bool:
        """Tell whether the registered class `name` has the base class."""
        return self.bound is None or issubclass(self.registry.get(name), self.bound)


def split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the bare annotation and its `Annotated` metadata."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    bare, inner = split(annotation.__origin__)
    metadata: list[Any] = list(inner)
    for item in annotation.__metadata__:
        metadata.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return bare, tuple(metadata)


def slot_of(annotation: Any, registries: Mapping[str, Registry[Any]]) -> Slot | None:
    """Return the slot that an annotation is: a marked `Spec`, the base class of a registry, or a subclass of that."""
    bare, metadata = split(annotation)
    for item in metadata:
        if isinstance(item, Component | Inline) and item.group in registries:
            return Slot(registries[item.group])
    if not isinstance(bare, type) or isinstance(bare, types.GenericAlias):
        return None
    known = [registry for registry in {**REGISTRIES, **registries}.values() if registry.base is not None]
    exact = next((registry for registry in known if registry.base is bare), None)
    if exact is not None:
        return Slot(exact)
    return next((Slot(registry, bare) for registry in known if _is_subclass(bare, registry.base)), None)


def slots_in(annotation: Any, registries: Mapping[str, Registry[Any]]) -> list[Slot]:
    """Return every slot that occurs anywhere in an annotation."""
    slot = slot_of(annotation, registries)
    if slot is not None:
        return [slot]
    return [found for part in get_args(split(annotation)[0]) for found in slots_in(part, registries)]


def members(annotation: Any) -> list[Any]:
    """Return the members of a union (one for other annotations) that a config can give."""
    bare, metadata = split(annotation)
    if isinstance(bare, TypeVar):
        return members(bare.__bound__ or Any)
    if get_origin(bare) not in (Union, types.UnionType):
        return [annotation] if is_configurable(annotation) else []
    parts = [member for part in get_args(bare) for member in members(part)]
    if any(isinstance(item, Component | Inline | Means) for item in metadata) or not metadata:
        return parts
    return [part if part is type(None) else Annotated[part, *metadata] for part in parts]


def is_configurable(annotation: Any) -> bool:
    """Tell whether a config can give a value of this type; YAML has no callables, tensors and foreign objects."""
    bare, metadata = split(annotation)
    if any(isinstance(item, Component | Inline) for item in metadata) or slot_of(bare, {}) is not None:
        return True
    if bare in (Any, object, None, type(None), str, int, float, bool, Path) or get_origin(bare) is Literal:
        return True
    if get_origin(bare) in (Union, types.UnionType) or isinstance(bare, TypeVar):
        return bool(members(annotation))
    origin = get_origin(bare) or bare
    if origin in (*LISTS, *MAPPINGS, tuple):
        return all(part is Ellipsis or is_configurable(part) for part in get_args(bare))
    if not isinstance(origin, type) or origin is Callable or issubclass(origin, torch.Tensor):
        return False
    return is_section(origin) or is_typeddict(origin)


def is_section(annotation: Any) -> bool:
    """Tell whether an annotation is a pydantic model or a dataclass: a mapping with fixed keys."""
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation))


def describe(annotation: Any, registries: Mapping[str, Registry[Any]] | None = None) -> str:
    """Return an annotation in words, with its limits: "an integer >= 1 or null"."""
    bare, metadata = split(annotation)
    said = next((item.text for item in metadata if isinstance(item, Means)), None)
    if said is not None:
        return said
    parts = members(annotation)
    if len(parts) != 1 or get_origin(bare) in (Union, types.UnionType):
        words = [word for part in parts for word in (_choices(part) or [describe(part, registries)])]
        return one_of(dict.fromkeys(words)) or "nothing that a config can give"
    limits = " and ".join(filter(None, map(_limit, metadata)))
    return f"{_bare_words(bare, metadata, registries or {})} {limits}".rstrip()


def one_of(words: Iterable[str]) -> str:
    """Join words to "a, b or c"."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} or {last}" if first else last


def _bare_words(bare: Any, metadata: tuple[Any, ...], registries: Mapping[str, Registry[Any]]) -> str:
    inline = inline_of(bare)
    group = next((item.group for item in [*metadata, *(inline or ())] if isinstance(item, Component | Inline)), None)
    slot = slot_of(bare, registries)
    if group is not None or slot is not None:
        registry = slot.registry if slot else registries.get(str(group), REGISTRIES.get(str(group)))
        return _with_article(registry.noun if registry else f"member of '{group}'")
    origin, args = get_origin(bare) or bare, get_args(bare)
    if origin is Literal:
        return one_of(_choices(bare))
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)} ({', '.join(describe(part, registries) for part in args)})"
    if origin in LISTS or origin is tuple:
        return f"a list (each item: {describe(args[0], registries)})" if args and args[0] is not Any else "a list"
    if origin in MAPPINGS:
        return (
            f"a mapping (each value: {describe(args[1], registries)})" if args and args[1] is not Any else "a mapping"
        )
    if is_section(origin) or is_typeddict(origin):
        return "a mapping"
    words: dict[Any, str] = {
        int: "an integer",
        float: "a number",
        str: "text",
        bool: "true or false",
        Path: "a path",
        Any: "any value",
    }
    return {**words, type(None): "null", None: "null", object: "any value"}.get(
        bare, getattr(bare, "__name__", str(bare))
    )


def _choices(annotation: Any) -> list[str]:
    """Return the choices of a `Literal` or a bool."""
    bare = split(annotation)[0]
    if bare is bool:
        return ["true", "false"]
    choices = get_args(bare) if get_origin(bare) is Literal else ()
    return [repr(choice) if isinstance(choice, str) else yaml_word(choice) for choice in choices]


def inline_of(section: Any) -> tuple[str, Inline] | None:
    """Return the name and mark of a section's `Inline` field, if it has one."""
    fields = getattr(section, "model_fields", {}).items()
    return next(((name, item) for name, info in fields for item in info.metadata if isinstance(item, Inline)), None)


def _limit(item: Any) -> str:
    for kind, sign in ((Ge, ">="), (Gt, ">"), (Le, "<="), (Lt, "<")):
        if isinstance(item, kind):
            return f"{sign} {getattr(item, kind.__name__.lower())}"
    if isinstance(item, MultipleOf):
        return f"divisible by {item.multiple_of}"
    if isinstance(item, MinLen):
        return f"of length >= {item.min_length}"
    if isinstance(item, MaxLen):
        return f"of length <= {item.max_length}"
    if hasattr(item, "__iter__") and not isinstance(item, str):
        return " and ".join(filter(None, map(_limit, item)))
    return ""


def yaml_word(value: Any) -> str:
    """Return null, true, false or the number as YAML writes it."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _is_subclass(cls: type, base: Any) -> bool:
    try:
        return issubclass(cls, base)
    except TypeError:
        return False
