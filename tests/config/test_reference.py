"""The generated config reference."""

from __future__ import annotations

import pytest

from moekd.config.reference import arguments, describe, reference_markdown, summary
from moekd.errors import UnknownNameError


def test_describe_gives_names_and_first_lines(kit):
    assert describe("schedules", kit) == [("step_decay", "Steps down.")]
    with pytest.raises(UnknownNameError, match="did you mean 'schedules'"):
        describe("scedules", kit)


def test_arguments_are_read_from_docstrings(kit):
    assert arguments(kit["schedules"].get("step_decay")) == {
        "start": "first value.",
        "every": "epochs between two drops, counted from 0.",
    }


def test_inherited_docstrings_are_not_the_summary(kit):
    class Silent(kit["schedules"].get("step_decay")):
        pass

    assert summary(Silent) == ""


def test_reference_has_every_component_and_section(kit):
    text = reference_markdown(kit)
    for group, registry in kit.items():
        for name in registry.names():
            assert f"### {group}: {name}\n" in text
    assert "| `every` | an integer >= 1 | `30` | epochs between two drops, counted from 0. |" in text
    assert "| `temperature` | a number > 0 or a schedule | `4.0` |  |" in text
    assert "| `kind` | a data set | required |" in text
    assert "| `kind` | a stage | `train` |" in text
    assert "| `combine` | 'select', 'loss' or 'target' | `select` |" in text
    assert "num_classes" not in text


def test_every_key_of_the_schema_has_a_meaning(kit):
    sections = reference_markdown(kit).split("\n## ")[1]
    rows = [line for line in sections.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.rstrip(" |").endswith("`")] == []


def test_reference_of_the_real_rooms_can_be_made():
    text = reference_markdown()
    assert "### objectives: cross_entropy" in text
    assert "### networks: lenet5" in text
