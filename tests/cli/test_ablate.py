"""`moekd ablate` as a command: exit codes, messages, files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moekd.ablation.spec import AblationConfig
from moekd.config.options import fields_of

from ..ablation.small import QUICK, ROUTED_ONLY, HereBackend, here, write_ablation  # noqa: F401
from ..engine.tiny import ROOT
from .conftest import Said

ARMS: dict[str, Any] = {"plain": {}, "wide": {"student.hidden": [20]}}
BROKEN = {"stages.learn.optimizer": {"kind": "sgd", "lr": 1e30}, "stages.learn.steps": 6}
Moekd = Callable[..., Said]


def test_a_whole_ablation(moekd: Moekd, tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path = write_ablation(tmp_path, ARMS, QUICK, seeds=3, baseline="plain", title="Widths")
    said = moekd("ablate", path, "--runs", tmp_path / "runs", "--seeds", 2, "trainer.log_every=1")
    assert said.code == 0, said.err
    assert "Widths: Accuracy in percent" in said.out
    assert "n < 3" in said.out
    folder = tmp_path / "runs" / "small"
    assert said.out.split()[-3:] == [str(folder / name) for name in ("small.csv", "small.md", "report.html")]
    assert "small: 4 runs to do, 0 finished before" in said.err
    text = (folder / "small.md").read_text()
    assert f"`moekd ablate {path} trainer.log_every=1 --seeds 2`" in text
    assert not re.search(r"\| 0\.\d{3} \|", text)
    again = moekd("ablate", path, "--runs", tmp_path / "runs", "--seeds", 2, "trainer.log_every=1", "-q")
    assert (again.code, again.err) == (0, "")
    assert len(here) == 1
    other = moekd(
        *("ablate", path, "--runs", tmp_path / "runs", "--report-only", "--output", tmp_path / "out"),
        *("--baseline", "wide", "--metric", "balanced_accuracy"),
    )
    assert other.code == 0
    assert "baseline arm 'wide'" in other.out
    assert "Balanced accuracy in percent" in other.out
    assert "--metric balanced_accuracy`" in (tmp_path / "out" / "small.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(here) == 1


def test_a_failed_arm(moekd: Moekd, tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path = write_ablation(tmp_path, {"plain": {}, "broken": BROKEN}, QUICK, baseline="plain")
    said = moekd("ablate", path, "--runs", tmp_path)
    assert said.code == 1
    assert "broken, seed 0 failed:\n" in said.err
    assert "the loss is not finite" in said.err
    assert "Traceback" not in said.err
    assert "the same command tries failed runs again" in said.err
    log = re.search(r"  log: (.*)", said.err)
    assert log is not None
    assert Path(log[1]).is_file()
    assert (tmp_path / "small" / "report.html").is_file()


def test_a_dry_run_writes_nothing(moekd: Moekd, tmp_path: Path, here: list[HereBackend]) -> None:  # noqa: F811
    path = write_ablation(tmp_path, ARMS, QUICK)
    said = moekd("ablate", path, "--runs", tmp_path / "runs", "--dry-run", "--jobs", 2)
    assert said.code == 0, said.err
    assert "2 runs (0 finished in" in said.out
    assert "with --jobs 2" in said.out
    assert not (tmp_path / "runs").exists()
    assert here == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "3/2"], "no part 3 of 2"),
        (["--shard", "half"], "a shard is PART/PARTS"),
        (["--backend", "locl"], "unknown backend 'locl'; did you mean 'local'?"),
        (["--baseline", "plian"], "no arm 'plian'; did you mean 'plain'"),
        (["--metric", "acuracy"], "no metric 'acuracy'; did you mean 'accuracy'"),
        (["--seeds", "0"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["student.hiden=[3]"], "did you mean 'hidden'"),
        (["--base", "bose.yaml"], "bose.yaml"),
    ],
)
def test_mistakes(
    moekd: Moekd,
    tmp_path: Path,
    here: list[HereBackend],  # noqa: F811
    arguments: list[str],
    said: str,
) -> None:
    path = write_ablation(tmp_path, ARMS, QUICK)
    found = moekd("ablate", path, "--runs", tmp_path / "runs", *arguments)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err
    assert not (tmp_path / "runs").exists()
    assert here == []


def test_a_report_of_nothing(moekd: Moekd, tmp_path: Path) -> None:
    found = moekd("ablate", write_ablation(tmp_path, ARMS, QUICK), "--runs", tmp_path / "runs", "--report-only")
    assert found.code == 1
    assert "is no folder of an ablation" in found.err
    unknown = moekd("ablate", "rooters")
    assert unknown.code == 2
    assert "did you mean 'routers'" in unknown.err


def test_ctrl_c_before_anything_runs(moekd: Moekd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moekd.ablation.runner.make_plan", interrupted)
    found = moekd("ablate", write_ablation(tmp_path, ARMS, QUICK), "--runs", tmp_path)
    assert found.code == 130
    assert found.err == "interrupted; continue with the same command\n"


def test_the_page_about_ablations_names_every_key() -> None:
    page = (ROOT / "docs" / "ablations.md").read_text()
    keys = page[page.index("## Keys") : page.index("A *path*")]
    assert set(re.findall(r"^\| `(\w+)` \|", keys, re.M)) == set(fields_of(AblationConfig))
    for name, option in fields_of(AblationConfig).items():
        line = next(line for line in keys.splitlines() if line.startswith(f"| `{name}`"))
        if isinstance(option.default, int | str) and option.default != "":
            assert line.endswith((f"| {option.default} |", f"| `{option.default}` |"))
        assert ("required" in line) == option.required


def test_the_example_of_the_page_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moekd.ablation import load_ablation, make_plan

    page = (ROOT / "docs" / "ablations.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == 3
    (tmp_path / "teachers.yaml").write_text(blocks[0])
    plan = make_plan(load_ablation(tmp_path / "teachers.yaml"))
    assert len(plan.jobs) == 3 + 3 * 4
    for key, block in zip(("settings", "grid"), blocks[1:], strict=True):
        (tmp_path / f"{key}.yaml").write_text(f"base: quickstart\nseeds: 1\narms: {{one: {{}}}}\n{block}")
        arms = load_ablation(tmp_path / f"{key}.yaml")
        assert len(arms.settings) * len(arms.arms) == {"settings": 2, "grid": 7}[key]
        if key == "grid":
            assert arms.arms[1].name == "k=1, temperature=1.0"
