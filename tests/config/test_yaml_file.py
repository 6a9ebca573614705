"""Strict YAML: what it reads, what it refuses, and in which words."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekd.config.yaml_file import MAX_BYTES, flow_yaml, parse_yaml, read_yaml, to_yaml
from moekd.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e2", 500.0),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("-7", -7),
        (".inf", float("inf")),
        ("true", True),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("2025-01-01", "2025-01-01"),
        ("1:30", "1:30"),
        ("'3'", "3"),
        ("{on: all, off: [no]}", {"on": "all", "off": ["no"]}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(text, "x")
    assert parsed == value
    assert type(parsed) is type(value)


def refusal(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    return caught.value.problems


def test_every_duplicated_key_is_named():
    """F1: a key that occurs twice is no silent choice."""
    assert refusal("a: 1\nb: {c: 1, c: 2}\na: 3\n") == [
        "x.yaml: line 3: key 'a' occurs twice, first on line 1",
        "x.yaml: line 2: key 'c' occurs twice, first on line 2",
    ]


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", "a:\n  b: 1\n\tc: 2\n", "stages:\n\t- name: x\n"])
def test_tab_indentation_is_named_with_its_line(text):
    """F1: tabs are named with their line."""
    line = 1 + next(i for i, row in enumerate(text.splitlines()) if row.startswith("\t"))
    assert refusal(text) == [f"x.yaml: line {line}: a tab at the start of the line; YAML is indented with spaces"]


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {canary}']",
        "!!python/object/new:os.system ['touch {canary}']",
        "!!python/name:os.system",
        "!import_call {{key: os.system, init: {{args: ['touch {canary}']}}}}",
        "!!set {{a, b}}",
        "!!binary aGk=",
        "!!timestamp 2025-01-01",
    ],
)
def test_tags_are_refused_and_nothing_runs(tag, tmp_path):
    """S1: no tag makes an object."""
    canary = tmp_path / "canary"
    problems = refusal(f"a: {tag.format(canary=canary)}\n")
    assert len(problems) == 1
    assert problems[0].startswith("x.yaml: line 1: tag '!")
    assert not canary.exists()


def test_tag_on_a_key_is_refused():
    assert "refused" in refusal("!!python/name:os.system : 1\n")[0]


def test_aliases_are_copies():
    value = parse_yaml("a: &x {k: [1]}\nb: *x\n", "x")
    value["a"]["k"].append(2)
    assert value["b"] == {"k": [1]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [*x]", "a value that contains itself"),
        ("a: &x {b: *x}", "a value that contains itself"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "merge keys"),
        (
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
            "more than",
        ),
        ("a: &x 1\nb: [" + "*x, " * 101 + "]", "more than 100 aliases"),
        ("[" * 5000, "nested too deeply"),
        ("{a: " * 60 + "1" + "}" * 60, "nested too deeply"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("a: [1, 2\nb: 3\n", "line 2"),
        ("a: *unknown\n", "undefined alias"),
        ("? [1, 2]\n: 3\n", "a key must be text"),
        ("a: \x07\n", "special characters are not allowed"),
        ("%TAG ! tag:example.com,2000:\n---\na: 1\nb: !foo 2\n", "is refused"),
    ],
)
def test_refused_texts(text, reason):
    problems = refusal(text)
    assert any(reason in line for line in problems), problems
    assert all(len(line) < 300 for line in problems)


def test_very_long_numbers_stay_text():
    assert isinstance(parse_yaml("a: " + "9" * 5000, "x")["a"], str)


def read(path):
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, path.name)
    (line,) = caught.value.problems
    return line.removeprefix(f"{path.name}: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n- b\n", "expected a mapping of keys (data, student, stages, ...), found a list"),
        (b"just text\n", "expected a mapping of keys (data, student, stages, ...), found only 'just text'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not a text file in UTF-8"),
        (b"PK\x03\x04\x00\x00", "is a binary file"),
        ("a: 1".encode("utf-16"), "is not a text file in UTF-8"),
        (b"a: 1\n" + b"#" * MAX_BYTES, "is larger than 1000 kB"),
    ],
)
def test_unusable_files(tmp_path, content, reason):
    """F1: files that are no YAML mappings."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert read(path).startswith(reason)


def test_folder_pipe_and_missing_file(tmp_path):
    assert read(tmp_path) == "is not a file"
    os.mkfifo(tmp_path / "pipe.yaml")
    assert read(tmp_path / "pipe.yaml") == "is not a file"
    assert read(tmp_path / "none.yaml").startswith("can't be read: No such file")


def test_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "a.yaml").write_bytes("\ufeffa: 1\n".encode())
    assert read_yaml(tmp_path / "a.yaml", "a") == {"a": 1}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8).filter(lambda key: key != "<<"), PLAIN, max_size=5))
def test_what_is_written_is_read_back(value):
    def clean(item):
        if isinstance(item, dict):
            return {key: clean(inner) for key, inner in item.items() if key != "<<"}
        return [clean(inner) for inner in item] if isinstance(item, list) else item

    value = clean(value)
    assert parse_yaml(to_yaml(value), "x") == value
    assert parse_yaml(f"[{flow_yaml(value)}]", "x") == [value]


@pytest.mark.parametrize(
    "text", ["on", "no", "1e-3", "0o17", "1_0", "12:30", "null", "", "2025-01-01", "- a", "#x", "a: b"]
)
def test_text_that_looks_like_something_else_is_quoted(text):
    assert parse_yaml(to_yaml({"a": text}), "x") == {"a": text}
