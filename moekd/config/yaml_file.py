"""Strict YAML: plain values only, and every mistake of a text in one report.

Words and numbers are read as YAML 1.2 reads them: `on`, `off`, `yes` and `no` are text, `1e-3` is a number,
`2025-01-01` is text. Tags, duplicated keys, merge keys, self-references and texts that grow through aliases are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ..errors import ConfigError
from .spec import shorten

MAX_BYTES = 1_000_000
MAX_ALIASES = 100
MAX_VALUES = 100_000
MAX_DEPTH = 50
_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_CORE}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_LINE_BREAKS = re.compile("[\\x85\\u2028\\u2029\\ufeff]")
_INTEGER = re.compile(r"[-+]?(0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21}|[0-9][0-9_]{0,24})\Z")
_RESOLVERS = (
    ("null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    (
        "float",
        re.compile(
            r"([-+]?(([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars that counts aliases and depth."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases, self.depth = 0, 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node within the limits."""
        event = self.peek_event()
        self.aliases += isinstance(event, yaml.AliasEvent)
        self.depth += 1
        if self.aliases > MAX_ALIASES or self.depth > MAX_DEPTH:
            what = f"more than {MAX_ALIASES} aliases" if self.aliases > MAX_ALIASES else "nested too deeply"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Return a whole number; digits after a leading zero are decimal."""
        text = self.construct_scalar(node).replace("_", "").lower()
        sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
        return sign * int(digits, {"0x": 16, "0o": 8}.get(digits[:2], 10))


_Loader.add_constructor(f"{_CORE}int", _Loader.construct_yaml_int)
for _kind, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(f"{_CORE}{_kind}", _pattern, _first)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever YAML 1.1 or this module would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    style = '"' if _LINE_BREAKS.search(text) else None
    return dumper.represent_scalar(f"{_CORE}str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(f"{_CORE}float", _RESOLVERS[3][1], _RESOLVERS[3][2])
_Dumper.add_implicit_resolver(f"{_CORE}int", _INTEGER, _RESOLVERS[2][2])


def read_yaml(path: Path, source: str) -> dict[str, Any]:
    """Read a file that holds one mapping.

    Raises:
        ConfigError: with the lines of all mistakes.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{source}: is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{source}: can't be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{source}: is larger than {MAX_BYTES // 1000} kB, which no config is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: is not a text file in UTF-8") from error
    if "\0" in text:
        raise ConfigError(f"{source}: is a binary file, not YAML text")
    value = parse_yaml(text, source)
    if value is None:
        raise ConfigError(f"{source}: the file is empty; a config needs data, student and stages")
    if not isinstance(value, Mapping):
        kind = "a list" if isinstance(value, list) else f"only {shorten(repr(value))}"
        raise ConfigError(f"{source}: expected a mapping of keys (data, student, stages, ...), found {kind}")
    return dict(value)


def parse_yaml(text: str, source: str) -> Any:
    """Return the plain value of a YAML text.

    Raises:
        ConfigError: with the lines of all mistakes.
    """
    problems: list[str] = []
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _inspect(node, problems)
            value = None if problems else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        problems.append(_reason(error, text))
    except RecursionError:
        problems.append("nested too deeply")
    except (ValueError, OverflowError) as error:
        problems.append(str(error))
    if problems:
        raise ConfigError([f"{source}: {line}" for line in problems])
    return _unshared(value)


def to_yaml(value: Mapping[str, Any]) -> str:
    """Return a mapping of plain values as YAML text that `parse_yaml` reads back as the same values."""
    return yaml.dump(
        dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


def _inspect(root: Node, problems: list[str]) -> None:
    """Report tags, keys and sizes of a node graph."""
    sizes: dict[int, int] = {}
    _size(root, sizes, set(), problems)


def _size(node: Node, sizes: dict[int, int], above: set[int], problems: list[str]) -> int:
    """Return how many values a node has when all aliases are written out, and check it on the first visit."""
    line = node.start_mark.line + 1
    if id(node) in above:
        problems.append(f"line {line}: a value that contains itself")
        return 0
    if id(node) in sizes:
        return sizes[id(node)]
    if node.tag not in _PLAIN_TAGS:
        problems.append(f"line {line}: tag {_tag(node.tag)} is refused; a config holds plain values only")
    children = []
    if isinstance(node, SequenceNode):
        children = node.value
    elif isinstance(node, MappingNode):
        _check_keys(node, problems)
        children = [value for _, value in node.value]
    size = 1
    for child in children:
        size += _size(child, sizes, above | {id(node)}, problems)
        if size > MAX_VALUES:
            problems.append(f"line {line}: more than {MAX_VALUES} values")
            size = 0
            break
    sizes[id(node)] = size
    return size


def _check_keys(node: MappingNode, problems: list[str]) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            problems.append(f"line {line}: a key must be text")
        elif key.tag not in _PLAIN_TAGS:
            problems.append(f"line {line}: tag {_tag(key.tag)} is refused; a config holds plain values only")
        elif key.value == "<<":
            problems.append(f"line {line}: merge keys ('<<') are not supported; use `extends: other.yaml`")
        elif key.value in first:
            problems.append(
                f"line {line}: key {shorten(repr(key.value))} occurs twice, first on line {first[key.value]}"
            )
        first.setdefault(str(key.value), line)


def _tag(tag: str) -> str:
    return shorten(repr(tag.replace(_CORE, "!!")))


def _reason(error: yaml.YAMLError, text: str) -> str:
    tab = next((i for i, line in enumerate(text.splitlines(), 1) if re.match(r" *\t", line) and line.strip()), None)
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return shorten(" ".join(str(error).split()), 200)
    line = error.problem_mark.line + 1
    reason = f"line {line}, column {error.problem_mark.column + 1}: {error.problem}"
    if tab is not None and abs(tab - line) <= 1:
        return f"line {tab}: a tab at the start of the line; YAML is indented with spaces"
    return " ".join((reason + (f" ({error.context})" if error.context else "")).split())


def _unshared(value: Any) -> Any:
    """Copy every value, so that two aliases of one anchor can be changed independently."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def flow_yaml(value: Any) -> str:
    """Return a plain value as YAML on one line."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]
