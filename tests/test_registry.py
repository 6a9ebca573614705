"""Registries: names, plug-ins, and the options that a class has in a config."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Annotated, get_args

import pytest
from annotated_types import Ge

from moekd import registry as module
from moekd.errors import ConfigError, UnknownNameError
from moekd.registry import REGISTRIES, Injected, Registry, is_injected, registry_of


class Sauce:
    """Base class of the test registry."""


@pytest.fixture
def sauces() -> Iterator[Registry[Sauce]]:
    yield Registry("sauce", "sauces", base=Sauce)
    del REGISTRIES["sauces"]


def test_register_and_get(sauces: Registry[Sauce]) -> None:
    @sauces.register("pesto_rosso")
    class Pesto(Sauce):
        """Red."""

    assert sauces.get("pesto_rosso") is Pesto
    assert sauces.names() == ["pesto_rosso"]
    assert sauces.register("pesto_rosso")(Pesto) is Pesto


def test_second_use_of_a_name_is_an_error(sauces: Registry[Sauce]) -> None:
    sauces.register("pesto")(Sauce)
    with pytest.raises(ValueError, match=r"sauce 'pesto' is registered already, by .*Sauce"):
        sauces.register("pesto")(type("Other", (Sauce,), {}))


@pytest.mark.parametrize("name", ["Pesto", "pesto-rosso", "os.system", "../pesto", "", "1st", "pesto\n"])
def test_names_are_snake_case(sauces: Registry[Sauce], name: str) -> None:
    with pytest.raises(ValueError, match="is not snake_case"):
        sauces.register(name)


def test_unknown_name_lists_the_nearest_or_all(sauces: Registry[Sauce]) -> None:
    for name in ("pesto", "ragu"):
        sauces.register(name)(type(name, (Sauce,), {}))
    with pytest.raises(UnknownNameError, match="unknown sauce 'peste'; did you mean 'pesto'"):
        sauces.get("peste")
    with pytest.raises(UnknownNameError, match="unknown sauce 'xyzzy'; known: pesto, ragu"):
        sauces.get("xyzzy")
    assert UnknownNameError.exit_code == 2


def test_a_group_exists_once(sauces: Registry[Sauce]) -> None:
    with pytest.raises(ValueError, match="registry 'sauces' exists already"):
        Registry("sauce", "sauces")


def test_options_are_the_parameters_that_are_not_injected(sauces: Registry[Sauce]) -> None:
    @sauces.register("ragu")
    class Ragu(Sauce):
        """Slow."""

        def __init__(
            self, hours: Annotated[int, Ge(1)], eaters: Injected[int], *more: int, salt: float = 1.0, **rest: int
        ):
            pass

    options = sauces.parameters("ragu")
    assert list(options) == ["hours", "salt"]
    assert get_args(options["hours"].annotation)[0] is int
    assert options["salt"].default == 1.0
    assert is_injected(Injected[int])
    assert not is_injected(int)


def test_a_class_without_init_has_no_options(sauces: Registry[Sauce]) -> None:
    sauces.register("water")(type("Water", (Sauce,), {}))
    assert sauces.parameters("water") == {}


def test_registry_of_a_base_class(sauces: Registry[Sauce]) -> None:
    assert registry_of(Sauce) is sauces
    assert registry_of(int) is None


class Plugged(Sauce):
    """A member from another package."""


def test_plug_ins_are_found(sauces: Registry[Sauce], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("plugged", f"{__name__}:Plugged", "moekd.sauces")
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == "moekd.sauces" else [])
    assert sauces.get("plugged") is Plugged
    assert sauces.names() == ["plugged"]


def test_a_broken_plug_in_is_named_every_time(sauces: Registry[Sauce], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("broken", "no_such_package_at_all:Thing", "moekd.sauces")
    monkeypatch.setattr(module, "entry_points", lambda group: [entry])
    for _ in range(2):
        with pytest.raises(ConfigError, match="plug-in 'no_such_package_at_all:Thing' for sauce 'broken' failed"):
            sauces.get("pesto")
