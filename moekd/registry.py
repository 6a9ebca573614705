"""Registries: one per extension point, filled by decorators and by the entry points of other packages.

A registered class is a config component: `{kind: name, **options}` where the options are the parameters of its
`__init__`. A parameter annotated `Injected[...]` is supplied by the engine when the recipe is built (the number of
classes, say) and is never a config key. A parameter annotated with the base class of a registry is itself a component.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

from .errors import ConfigError, UnknownNameError, did_you_mean

T = TypeVar("T")
C = TypeVar("C", bound=type)

INJECTED = "moekd:injected"
Injected = Annotated[T, INJECTED]
REGISTRIES: dict[str, Registry[Any]] = {}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Registry(Generic[T]):
    """Named classes of one kind.

    Args:
        noun: singular, for messages ("objective").
        group: plural; the key in `REGISTRIES` and, as `moekd.<group>`, the entry-point group of other packages.
        base: class or protocol of the members; a parameter annotated with it is a nested component.
    """

    def __init__(self, noun: str, group: str, base: type | None = None) -> None:
        if group in REGISTRIES:
            raise ValueError(f"registry '{group}' exists already")
        self.noun, self.group, self.base = noun, group, base
        self._members: dict[str, type[T]] = {}
        self._plugins_loaded = False
        REGISTRIES[group] = self

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator that adds a member under a snake_case name; a second use of a name is an error."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{self.noun} name {name!r} is not snake_case")

        def add(cls: C) -> C:
            known = self._members.get(name)
            if known is not None and known is not cls:
                raise ValueError(f"{self.noun} '{name}' is registered already, by {known.__module__}.{known.__name__}")
            self._members[name] = cls
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """Return the class called `name`.

        Raises:
            UnknownNameError: with the closest known names.
        """
        members = self._loaded()
        if name not in members:
            hint = did_you_mean(str(name), members) or "; known: " + ", ".join(sorted(members))
            raise UnknownNameError(f"unknown {self.noun} {name!r}{hint}")
        return members[name]

    def names(self) -> list[str]:
        """Return all known names, sorted."""
        return sorted(self._loaded())

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the config options of a member: the parameters of its `__init__` that are not injected."""
        return {
            key: value
            for key, value in resolved_parameters(self.get(name)).items()
            if not is_injected(value.annotation)
        }

    def _loaded(self) -> dict[str, type[T]]:
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for entry in entry_points(group=f"moekd.{self.group}"):
                try:
                    self.register(entry.name)(entry.load())
                except Exception as error:
                    self._plugins_loaded = False
                    raise ConfigError(
                        f"plug-in {entry.value!r} for {self.noun} '{entry.name}' failed: {error}"
                    ) from error
        return self._members


def resolved_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of `cls.__init__` (without `self`) with evaluated annotations."""
    hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {
        p.name: p.replace(annotation=hints.get(p.name, Any))
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def is_injected(annotation: Any) -> bool:
    """Tell whether a parameter annotation is `Injected[...]`."""
    return INJECTED in getattr(annotation, "__metadata__", ())


def registry_of(annotation: Any) -> Registry[Any] | None:
    """Return the registry whose base class is `annotation`, if there is one."""
    return next((r for r in REGISTRIES.values() if r.base is not None and r.base is annotation), None)
