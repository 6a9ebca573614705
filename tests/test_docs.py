"""What the documentation shows works: Python blocks run, whole configs parse, links and commands exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"(?P<marker><!-- runnable -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
CALL_TESTS = """
for _name, _value in list(globals().items()):
    if _name.startswith("test_"):
        _value()
"""


def blocks(page: Path, language: str) -> list[tuple[int, str, bool]]:
    """Return (line of the first code line, code, marked runnable) of the fenced blocks of a page."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start("body")), found["body"], bool(found["marker"]))
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


def runnable_script(page: Path) -> str:
    """Return the runnable blocks of a page as one script whose line numbers are those of the page."""
    lines: list[str] = []
    for start, code, runnable in blocks(page, "python"):
        if runnable:
            lines += [""] * (start - len(lines)) + code.splitlines()
    return "\n".join(lines) + CALL_TESTS if lines else ""


def whole_configs() -> list[tuple[str, str]]:
    """Return (place, text) for every YAML block that is a whole config."""
    found = []
    for page in PAGES:
        for line, code, _ in blocks(page, "yaml"):
            loaded = yaml.safe_load(code)
            if isinstance(loaded, dict) and ("extends" in loaded or {"data", "student", "stages"} <= set(loaded)):
                found.append((f"{page.relative_to(ROOT)}:{line}", code))
    return found


def test_the_docs_hold_code_that_runs_and_configs_that_parse() -> None:
    assert sum(bool(runnable_script(page)) for page in PAGES) >= 3
    assert len(whole_configs()) >= 2


def run_script(path: Path, folder: Path) -> None:
    """Run a Python file in an empty folder and demand success."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable_script(page)], ids=lambda page: page.name)
def test_python_in_the_docs_runs(page: Path, tmp_path: Path) -> None:
    """F4: examples of the docs run."""
    script = tmp_path / f"{page.stem}.py"
    script.write_text(runnable_script(page))
    run_script(script, tmp_path)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    run_script(example, tmp_path)


@pytest.mark.parametrize(("place", "text"), whole_configs(), ids=[place for place, _ in whole_configs()])
def test_configs_in_the_docs_parse(place: str, text: str, tmp_path: Path) -> None:
    """F4: configs of the docs are valid."""
    from moekd.config import load_config, parse_recipe

    path = tmp_path / "config.yaml"
    path.write_text(text)
    parse_recipe(*load_config(str(path), []))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_yaml_block_is_yaml(page: Path) -> None:
    for line, code, _ in blocks(page, "yaml"):
        assert yaml.safe_load(code) is not None, f"{page.name}:{line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_command_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=[^\n]*`|\s*#|$)", page.read_text(), re.M)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`((?:tests|moekd|routers|teachers|benchmarks|configs|examples|docs)/[\w./-]+\.\w+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_command_has_its_section_and_the_other_way_round() -> None:
    import typer

    from moekd.cli.main import app

    commands = {
        f"{name} {child}" if hasattr(command, "commands") else name
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
        for child in getattr(command, "commands", {"": None})
    }
    page = (ROOT / "docs/commands.md").read_text()
    assert set(re.findall(r"^## ([a-z][a-z_ ]+)$", page, re.M)) == commands
    assert set(re.findall(r"<!-- options: ([a-z_ ]+) -->", page)) == commands


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    mkdocs = shutil.which("mkdocs", path=str(Path(sys.executable).parent)) or shutil.which("mkdocs")
    assert mkdocs, "mkdocs is missing: pip install 'moekd[docs]'"
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    remote = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(?:https?:)?//|<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?(?:https?:)?//"
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= 15
    assert [page.name for page in pages if remote.search(page.read_text())] == []
