"""Running the command line in this process, a finished run, and config files of the tiny kinds."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from moekd.cli.main import main

from ..engine.conftest import _one_thread, _tiny_kinds  # noqa: F401
from ..engine.tiny import full


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def run_moekd(*arguments: str | Path) -> Said:
    """Run `moekd ...` as the installed program does."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["moekd", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        patch.setenv("TERM", "dumb")
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture
def moekd() -> Callable[..., Said]:
    """Return a function that runs the command line."""
    return run_moekd


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Return a function that writes a config file."""

    def written(raw: Mapping[str, Any]) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(dict(raw), sort_keys=False))
        return path

    return written


@pytest.fixture(scope="module")
def finished(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Return the folder of a run that `moekd distill` made."""
    folder = Path(tmp_path_factory.mktemp("finished"))
    raw = full(title="Tiny clouds")
    raw["stages"] = [stage | {"epochs": 1} for stage in raw["stages"]]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    said = run_moekd("distill", folder / "tiny.yaml", "--runs", folder / "runs")
    assert said.code == 0, said.err
    assert "student:" in said.out
    return folder / "runs" / "tiny"
