"""The options of a registered class, read from the signature of its `__init__`."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from torch import nn

from ..errors import ConfigError
from ..registry import Registry, resolved_parameters
from .annotations import is_configurable

REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """One key of a config mapping.

    Attributes:
        annotation: its type, with constraints.
        default: value when the key is absent; `REQUIRED` when it may not be absent.
    """

    annotation: Any
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        """Whether the key has to be given."""
        return self.default is REQUIRED


def options_of(registry: Registry[Any], kind: str) -> dict[str, Option]:
    """Return the options of a registered class: its parameters that are not injected and that YAML can give.

    Raises:
        UnknownNameError: no such kind.
        ConfigError: the class can't be a component: it takes `**kwargs`, hides a type, or requires an object.
    """
    cls = registry.get(kind)
    what = f"{registry.noun} '{kind}' ({cls.__module__}.{cls.__qualname__}) can't be used in a config"
    if _takes_any_keyword(cls):
        raise ConfigError(f"{what}: its __init__ takes **kwargs; name the options one by one")
    try:
        parameters = registry.parameters(kind)
    except NameError as error:
        raise ConfigError(f"{what}: {error}; import the types of its __init__ at run time") from error
    options = {}
    for name, parameter in parameters.items():
        option = Option(parameter.annotation, parameter.default)
        if is_configurable(option.annotation):
            options[name] = option
        elif option.required:
            raise ConfigError(
                f"{what}: '{name}' is required and of a type that YAML can't give; annotate it Injected[...]"
            )
    return options


def supplied(registry: Registry[Any], kind: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a registered class that the engine supplies."""
    options = registry.parameters(kind)
    return {name: p for name, p in parameters_of(registry.get(kind)).items() if name not in options}


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of `cls.__init__` with evaluated annotations.

    Libraries import some types for type checkers only; the names of `typing` and `collections.abc` are found anyway.
    """
    try:
        return resolved_parameters(cls)
    except NameError:
        init = cls.__init__  # type: ignore[misc]
        names = {**vars(typing), **vars(collections.abc), **vars(inspect.getmodule(cls))}
        hints = get_type_hints(init, names, include_extras=True)
        found = list(inspect.signature(init).parameters.values())[1:]
        return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in found if p.kind is not p.VAR_KEYWORD}


def fields_of(section: type) -> dict[str, Option]:
    """Return the keys of a pydantic model or dataclass."""
    hints = get_type_hints(section, include_extras=True)
    if issubclass(section, BaseModel):
        found = {}
        for name, info in section.model_fields.items():
            default = info.get_default(call_default_factory=True, validated_data={})
            found[name] = Option(hints[name], REQUIRED if default is PydanticUndefined else default)
        return found
    assert is_dataclass(section)
    return {item.name: Option(hints[item.name], _dataclass_default(item)) for item in fields(section) if item.init}


def known_kinds(registries: Mapping[str, Registry[Any]], group: str) -> list[str]:
    """Return the kinds of a group, or none if the group does not exist."""
    return registries[group].names() if group in registries else []


def _dataclass_default(item: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    return REQUIRED if item.default_factory is MISSING else item.default_factory()


def _takes_any_keyword(cls: type) -> bool:
    init = cls.__init__  # type: ignore[misc]
    if init in (object.__init__, nn.Module.__init__) or getattr(init, "__module__", None) == "typing":
        return False
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values())
