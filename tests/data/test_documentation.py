"""The examples of docs/data.md and examples/data run, and the numbers they state are true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from moekd.data.emoji import Emoji

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block, capsys):
    exec(compile(block, "docs/data.md", "exec"), {"__name__": "documentation"})
    assert capsys.readouterr().out


def test_the_example_runs(capsys):
    runpy.run_path(str(ROOT / "examples/data/own_files.py"), run_name="__main__")
    assert "{'train': 36, 'val': 12, 'test': 12} ['bar', 'square']" in capsys.readouterr().out


def test_stated_split_sizes_are_true():
    for name, split in Emoji().splits.items():
        assert f"| `{name}` | {len(split):,} |" in PAGE
