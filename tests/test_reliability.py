"""Every case of docs/reliability.md is held by a test that names it, or stands under "Not promised" with a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
PROMISED, _, REFUSED = PAGE.partition("\n## Not promised\n")
COUNTS = {"R": 11, "C": 8, "N": 7, "F": 6, "D": 4, "K": 6, "S": 9, "P": 5}
CASES = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
LABELS = re.compile(r"(?:[A-Z]\d+(?:, | to | and )?)+(?=:)")
ROW = re.compile(r"^\| ([RCNFDKSP]\d+) \| (.+) \| (.+) \|$", re.MULTILINE)


def labels_of(docstring: str) -> set[str]:
    """Return the cases that a docstring begins with: "N1: ...", "R1, R8: ...", "S4 to S9: ..."."""
    found = LABELS.match(docstring)
    if found is None:
        return set()
    cases = set(re.findall(r"[A-Z]\d+", found.group()))
    for letter, first, last in re.findall(r"([A-Z])(\d+) to [A-Z](\d+)", found.group()):
        cases |= {f"{letter}{number}" for number in range(int(first), int(last) + 1)}
    return cases


def named_cases(source: str) -> set[str]:
    """Return the cases that the docstrings of a module's tests begin with; the module's own counts too."""
    tree = ast.parse(source)
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {case for node in [tree, *tests] for case in labels_of(ast.get_docstring(node) or "")}


HELD = {
    path.relative_to(ROOT).as_posix(): named_cases(path.read_text(encoding="utf-8"))
    for path in (ROOT / "tests").rglob("test_*.py")
}


def test_labels_are_read() -> None:
    assert labels_of("N1: a loss") == {"N1"}
    assert labels_of("R1, R8: both") == {"R1", "R8"}
    assert labels_of("S4 to S6: files") == {"S4", "S5", "S6"}
    assert labels_of("What N1 says: nothing") == set()


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_held_by_a_test_or_not_promised(case: str) -> None:
    held = [path for path, cases in HELD.items() if case in cases]
    refused = re.search(rf"^- {case}\b.*: \S|^- {case}: \S", REFUSED, re.MULTILINE)
    assert held or refused, f"{case} is named by no test, and not under 'Not promised'"


@pytest.mark.parametrize("case", CASES)
def test_every_case_stands_on_the_page(case: str) -> None:
    rows = {label: tests for label, _, tests in ROW.findall(PROMISED)}
    if case not in rows:
        assert re.search(rf"^- {case}: \S", REFUSED, re.MULTILINE), f"{case} is not on the page"
        return
    files = re.findall(r"`(tests/[\w/]+\.py)`", rows[case])
    assert files, f"{case} names no test"
    missing = [file for file in files if case not in HELD.get(file, set())]
    assert missing == [], f"these files do not name {case} in a docstring"


def test_the_page_names_no_other_case() -> None:
    assert [label for label, _, _ in ROW.findall(PROMISED) if label not in CASES] == []
