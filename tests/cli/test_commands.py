"""Each command does what it says, on a finished run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import moekd as package
from moekd.cli.main import app
from moekd.config import load_rooms

from ..engine.tiny import full

COMMANDS = [
    "distill",
    "benchmark cmkd",
    "benchmark methods",
    "benchmark mst_distill",
    "check",
    "evaluate",
    "predict",
    "serve",
    "report",
    "export",
    "convert",
    "list",
    "data",
    "data prepare",
    "cache build",
    "cache info",
    "cache verify",
    "cache prune",
]


def plain(text: str) -> str:
    """Return text without colours and frames, in single lines."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─┃]", " ", text))


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(command.split()[0] in shown.output for command in COMMANDS)
    assert "moekd distill quickstart" in plain(shown.output)
    assert CliRunner().invoke(app, []).exit_code in (0, 2)
    assert "Usage" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    text = plain(shown.output)
    assert f"Usage: root {command}" in text or f"Usage: moekd {command}" in text
    assert len(text) > 200
    known: Any = get_command(app)
    for part in command.split():
        known = known.commands[part]
    assert known.help
    for parameter in known.params:
        assert parameter.help, f"{command}: {parameter.name} has no description"


def test_list_names_the_groups(moekd) -> None:
    said = moekd("list")
    assert said.code == 0
    assert all(group in said.out for group in [*load_rooms(), "configs", "methods"])


@pytest.mark.parametrize("group", [*sorted(load_rooms()), "configs", "methods", "routers", "teachers", "students"])
def test_list_of_every_group(moekd, group: str) -> None:
    said = moekd("list", group)
    assert said.code == 0
    rows = [line for line in said.out.splitlines() if line.startswith("│")]
    assert rows
    if group not in ("configs", "optimizers", "schedulers"):
        names = [line for line in rows if line.split("│")[1].strip()]
        assert all(line.split("│")[2].strip() for line in names), "every name has a summary"


def test_list_of_nothing(moekd) -> None:
    said = moekd("list", "objektives")
    assert said.code == 2
    assert "nothing to list under 'objektives'; did you mean 'objectives'" in said.err


def test_check_tells_shapes_and_costs(moekd, write) -> None:
    said = moekd("check", write(full()))
    assert said.code == 0
    text = plain(said.out)
    assert "data: train 40, val 18, test 22" in text
    assert "teachers.both Fusion image, right 340 concat_identity [12] trained in this run" in text
    assert "mask both/fc1 FeatureAttentionMask" in text
    assert "main/distill student, router 187 6 cached" in text
    assert "alone/alone student 120 3 0" in text
    assert text.endswith("no mistake found ")


def test_distill_prints_a_table_and_places(moekd, write, tmp_path: Path) -> None:
    said = moekd("distill", write(full()), "--runs", tmp_path / "runs", "--no-baselines", "--quiet", "seed=5")
    assert (said.code, said.err) == (0, "")
    folder = tmp_path / "runs" / "tiny"
    assert f"student: {folder / 'student'}" in said.out
    assert f"report:  {folder / 'report.html'}" in said.out
    assert "student" in said.out
    assert "alone" not in said.out
    assert "seed: 5" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "results.json").read_text())["seed"] == 5


def test_evaluate_measures_again(moekd, finished: Path) -> None:
    said = moekd("evaluate", finished)
    assert said.code == 0
    known = json.loads((finished / "results.json").read_text())["test"]["test"]["student"]
    assert f"{100 * known['accuracy']:.2f}" in said.out
    assert f"{known['loss']:.4f}" in said.out
    assert "val" in moekd("evaluate", finished, "--split", "val", "--split", "train").out
    other = moekd("evaluate", finished, "data.seed=1")
    assert other.code == 0
    assert f"{known['loss']:.4f}" not in other.out


def test_evaluate_refuses_what_it_can_not_measure(moekd, finished: Path, tmp_path: Path) -> None:
    said = moekd("evaluate", tmp_path)
    assert (said.code, said.out) == (1, "")
    assert "is no run: config.yaml is missing" in said.err
    assert "no split 'vla'; did you mean 'val'" in moekd("evaluate", finished, "--split", "vla").err
    assert moekd("evaluate", finished, "data.sead=1").code == 2


def test_predict_reads_pictures_and_arrays(moekd, finished: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", rng.normal(size=(1, 8, 8)).astype(np.float32))
    said = moekd("predict", finished, tmp_path / "a.png", tmp_path / "b.npy", "--top", "2")
    assert said.code == 0
    lines = said.out.splitlines()
    assert len(lines) == 6
    assert lines[0] == str(tmp_path / "a.png")
    assert re.fullmatch(r"\s+\d+\.\d %  cloud \d", lines[1])
    assert moekd("predict", finished / "student", tmp_path / "b.npy").out.count("cloud") == 4


def test_predict_refuses_other_files(moekd, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "wide.npy", np.zeros((1, 8, 9), np.float32))
    (tmp_path / "empty").mkdir()
    for name, part in (
        ("text.png", "is no readable picture"),
        ("wide.npy", "holds an array of shape (1, 8, 9); the student takes (1, 8, 8)"),
        ("missing.png", "no file"),
        ("empty", "no picture in the folder"),
    ):
        said = moekd("predict", finished, tmp_path / name)
        assert said.code == 1
        assert part in said.err, said.err
        assert "Traceback" not in said.err


def test_export_and_load(moekd, finished: Path, tmp_path: Path) -> None:
    said = moekd("export", finished, "--output", tmp_path / "small")
    assert said.out.strip() == f"exported: {tmp_path / 'small'}"
    weights = safetensors.torch.load_file(tmp_path / "small" / "model.safetensors")
    original = package.load_student(finished).state_dict()
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[key], original[key]) for key in weights)
    assert moekd("export", finished, "--format", "torch_export", "--output", tmp_path / "s.pt2").code == 0
    image = torch.randn(3, 1, 8, 8)
    program = torch.export.load(tmp_path / "s.pt2").module()
    torch.testing.assert_close(program(image), package.load_student(finished)(image))


def test_export_refuses(moekd, finished: Path, tmp_path: Path) -> None:
    assert "did you mean 'safetensors'" in moekd("export", finished, "--format", "safetensor").err
    (tmp_path / "there").mkdir()
    assert "exists already" in moekd("export", finished, "--output", tmp_path / "there").err
    assert "no student in" in moekd("export", tmp_path).err


def test_report_of_one_and_of_several(moekd, finished: Path, tmp_path: Path) -> None:
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert moekd("report", finished).out.strip() == f"report: {finished / 'report.html'}"
    assert "Tiny clouds" in (finished / "report.html").read_text()
    assert len(before) == pytest.approx(len((finished / "report.html").read_text()), rel=0.01)
    said = moekd("report", finished, finished, "--output", tmp_path / "both.html")
    assert said.code == 0, said.err
    assert (tmp_path / "both.html").is_file()
    assert moekd("report", tmp_path).code == 1


def test_data_prepare_needs_a_known_set(moekd, tmp_path: Path) -> None:
    assert moekd("data", "prepare", "avmnits", "--source", tmp_path).code == 2
    said = moekd("data", "prepare", "emoji", "--source", tmp_path)
    assert said.code == 1
    assert "needs no preparation" in said.err
