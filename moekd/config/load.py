"""From a path or the name of a shipped config to one raw mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import ConfigError, did_you_mean
from .overrides import apply_overrides
from .spec import shorten
from .yaml_file import read_yaml

SUFFIXES = (".yaml", ".yml")
#: Folder of the shipped ablations, which compare runs and are no runs themselves.
ABLATIONS = "ablations/"
#: Folder of the shipped configs of `accelerate launch`.
LAUNCHES = "accelerate"


def load_config(path_or_name: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Read a config, merge what it extends, and apply overrides. Nothing is validated against the schema yet.

    Args:
        path_or_name: a YAML file, or the name of a shipped config ("quickstart", "cmkd/avmnist_image").
        overrides: as on the command line, `router.selection.k=2`; later ones win.

    Returns:
        The raw mapping and the label of its source for messages.

    Raises:
        ConfigError: no such config, unreadable YAML, a bad `extends`, or bad overrides.
    """
    path, label = _find(path_or_name)
    path = path.resolve()
    folder = _shipped_folder() if path.is_relative_to(_shipped_folder()) else path.parent
    raw = _merged(path, label, folder, [])
    return apply_overrides(raw, overrides), label


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configs of runs by name; files with a leading underscore are parts of others."""
    return {name: path for name, path in _shipped().items() if not name.startswith(ABLATIONS)}


def _shipped() -> dict[str, Path]:
    folder = _shipped_folder()
    found = sorted(folder.rglob("*.yaml"))
    found = [path for path in found if not path.name.startswith("_") and path.parent.name != LAUNCHES]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def shipped_ablations() -> dict[str, Path]:
    """Return the shipped ablations by their short name (`moekd ablate NAME`)."""
    return {name.removeprefix(ABLATIONS): path for name, path in _shipped().items() if name.startswith(ABLATIONS)}


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: mappings are merged, everything else is replaced; null is a value like others.

    A component of another `kind` replaces the component of the base, whose options would not fit it.
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _find(path_or_name: str) -> tuple[Path, str]:
    shipped = _shipped()
    path = Path(path_or_name)
    named = shipped.get(path_or_name)
    if path.suffix.lower() not in SUFFIXES and named is not None:
        return named, path_or_name
    if _exists(path):
        return path, path_or_name
    if path.suffix.lower() in SUFFIXES:
        nearby = [str(other) for other in _yaml_files(path.parent)]
        raise ConfigError(
            f"{shorten(path_or_name, 200)}: no such file{did_you_mean(path_or_name, [*nearby, *shipped])}"
        )
    hint = did_you_mean(path_or_name, shipped) or f"; shipped configs: {', '.join(shipped) or 'none'}"
    raise ConfigError(f"{shorten(repr(path_or_name))} is neither a file nor a shipped config{hint}")


def _merged(path: Path, label: str, folder: Path, chain: list[Path]) -> dict[str, Any]:
    """Read a file and all that it extends."""
    if path in chain:
        names = " -> ".join(item.name for item in [*chain[chain.index(path) :], path])
        raise ConfigError(f"{label}: extends: goes in a circle: {names}")
    raw = read_yaml(path, label)
    if "extends" not in raw:
        return raw
    value = raw.pop("extends")
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{label}: extends: expected a file or the name of a shipped config, found {value!r}")
    base_path, base_folder = _base(path, value, label, folder)
    name = value if base_folder == folder else f"{value} (shipped)"
    return merge(_merged(base_path, f"{label} -> {name}" if label != name else label, base_folder, [*chain, path]), raw)


def _base(path: Path, value: str, label: str, folder: Path) -> tuple[Path, Path]:
    """Return the file that `extends` means and the folder that it may not leave."""
    shipped = _shipped()
    if not value.lower().endswith(SUFFIXES):
        if value in shipped:
            return shipped[value].resolve(), _shipped_folder()
        hint = did_you_mean(value, shipped) or f"; shipped configs: {', '.join(shipped) or 'none'}"
        raise ConfigError(f"{label}: extends: no shipped config {shorten(repr(value))}{hint} (a file ends with .yaml)")
    if "\0" in value:
        raise ConfigError(f"{label}: extends: {shorten(repr(value))} is no file name")
    base = (path.parent / value).resolve()
    if not base.is_relative_to(folder):
        raise ConfigError(f"{label}: extends: {shorten(repr(value))} lies outside the folder of the config, {folder}")
    if not _exists(base):
        hint = did_you_mean(base.name, [other.name for other in _yaml_files(base.parent)])
        raise ConfigError(f"{label}: extends: no file {shorten(repr(value))}{hint}")
    return base, folder


def _shipped_folder() -> Path:
    return Path(str(files("moekd.configs"))).resolve()


def _exists(path: Path) -> bool:
    try:
        return path.is_file() or (path.exists() and not path.is_dir())
    except (OSError, ValueError):
        return False


def _yaml_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    except (OSError, ValueError):
        return []
