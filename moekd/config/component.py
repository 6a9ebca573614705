"""Components: `{kind: name, **options}` checked against the registered class, and built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ..errors import ConfigError
from ..registry import REGISTRIES, Registry
from .annotations import Slot, slots_in
from .checker import Checker, Registries
from .options import Option, options_of, supplied
from .spec import INVALID, Spec, join, plain, problem

T = TypeVar("T")
Visit = Callable[[Spec, Registry[Any], str], Any]


def validate_component(registry: Registry[T], value: Any, where: str, problems: list[str]) -> Spec | None:
    """Check one component.

    Args:
        registry: registry of the component's kind.
        value: `{kind: name, **options}`, or just the name.
        where: path of the component in the config, for messages.
        problems: list that takes one line a mistake.

    Returns:
        The component, or None if there was any mistake.
    """
    before = len(problems)
    spec = Checker({**REGISTRIES, registry.group: registry}, problems).component(Slot(registry), value, where)
    return spec if len(problems) == before else None


def build(spec: Spec, registry: Registry[T], *, where: str = "", **context: Any) -> T:
    """Make the object that a component describes, nested components first.

    Args:
        spec: the component.
        registry: its registry.
        where: its path in the config, for messages.
        context: what the engine supplies; each class gets those entries that its injected parameters name.

    Raises:
        ConfigError: the class refuses its options, or the engine does not supply what it needs.
    """
    cls = registry.get(spec.kind)
    options = options_of(registry, spec.kind)
    arguments = {}
    for name, value in spec.options.items():
        annotation = options[name].annotation if name in options else Any
        arguments[name] = replace_specs(
            value, annotation, join(where, name), lambda s, r, path: build(s, r, where=path, **context)
        )
    for name, parameter in supplied(registry, spec.kind).items():
        if name in context:
            arguments[name] = context[name]
        elif parameter.default is parameter.empty:
            reason = f"{registry.noun} '{spec.kind}' needs '{name}', which is not supplied in this place"
            raise ConfigError(problem(where, reason))
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(
            [problem(where, f"{registry.noun} '{spec.kind}': {line}") for line in error.problems]
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(problem(where, f"{registry.noun} '{spec.kind}': {error}")) from error


def resolved(spec: Spec, registry: Registry[Any]) -> Spec:
    """Return the component with the defaults of all options filled in, nested components included."""
    complete: dict[str, Any] = {}
    for name, option in options_of(registry, spec.kind).items():
        value = spec.options.get(name, option.default)
        value = replace_specs(value, option.annotation, name, lambda nested, r, _: resolved(nested, r))
        if name in spec.options or _is_plain(plain(value)):
            complete[name] = value
    return Spec(spec.kind, complete)


def nested_specs(
    value: Any, annotation: Any, where: str, registries: Registries = REGISTRIES
) -> Iterator[tuple[str, Spec, Registry[Any]]]:
    """Yield every component in a value, outer before inner, with its path and registry."""
    inner: list[tuple[str, Spec, Registry[Any]]] = []
    replace_specs(
        value, annotation, where, lambda spec, registry, path: inner.append((path, spec, registry)), registries
    )
    for path, spec, registry in inner:
        yield path, spec, registry
        for name, item in spec.options.items():
            annotation = options_of(registry, spec.kind)[name].annotation
            yield from nested_specs(item, annotation, join(path, name), registries)


def value_of(spec: Spec, registry: Registry[Any], name: str) -> Any:
    """Return an option of a component or its default; `INVALID` if the class has no such option."""
    option: Option | None = options_of(registry, spec.kind).get(name)
    return INVALID if option is None else spec.options.get(name, option.default)


def replace_specs(value: Any, annotation: Any, where: str, visit: Visit, registries: Registries = REGISTRIES) -> Any:
    """Return `value` with every spec in it replaced by what `visit(spec, registry, path)` returns."""
    if isinstance(value, Spec):
        slots = slots_in(annotation, registries)
        slot = next((slot for slot in slots if value.kind in slot.registry.names()), None)
        return value if slot is None else visit(value, slot.registry, where)
    if isinstance(value, list | tuple):
        items = [replace_specs(item, annotation, join(where, i), visit, registries) for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {
            key: replace_specs(item, annotation, join(where, str(key)), visit, registries)
            for key, item in value.items()
        }
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)
