"""Whatever is wrong with a config or a command: a message that says so, the right exit code, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from moekd.tracking import RunFolder

from ..engine.tiny import MLP, ROOT, full, simple, start

CONFIG, EXPECTED = 2, 1


def five_mistakes() -> dict[str, Any]:
    """Return a config with five mistakes."""
    raw = full()
    raw["student"]["knid"] = "small_cnn"
    raw["stages"][0]["objectives"][1] = {"kind": "mutual_kd", "temperatur": 4.0}
    raw["stages"][1]["optimizer"] = {"kind": "adamm"}
    raw["router"]["selection"] = {"kind": "top_k", "k": 9}
    raw["stages"][2]["epochs"] = "many"
    return raw


FIVE = [
    "student.knid: unknown",
    "stages[0].objectives[1].temperatur: unknown option of 'mutual_kd'; did you mean 'temperature'?",
    "stages[1].optimizer.kind: unknown optimizer 'adamm'; did you mean 'adam",
    "router.selection.k: 9 teachers chosen of 3",
    "stages[2].epochs: ",
]


def assert_five(lines: list[str]) -> None:
    """Check that there is exactly one line for each of the five mistakes."""
    assert len(lines) == 5, lines
    for part in FIVE:
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert all("tiny.yaml: " in line for line in lines)


@pytest.mark.parametrize("command", ["distill", "check"])
def test_five_mistakes_are_five_lines(moekd, write, command: str, tmp_path: Path) -> None:
    """F1: five mistakes of a config are five lines and exit code 2."""
    options = ["--runs", tmp_path / "runs"] if command == "distill" else []
    said = moekd(command, write(five_mistakes()), *options)
    assert (said.code, said.out) == (CONFIG, "")
    assert_five(said.err.splitlines())
    assert not (tmp_path / "runs").exists()


def test_five_mistakes_in_a_real_process(write) -> None:
    """F1: also in a process of its own."""
    process = start(["check", write(five_mistakes())])
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (CONFIG, "")
    assert_five(err.splitlines())


def test_the_module_is_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moekd", "distill", "quickstrat", "--runs", str(tmp_path / "runs")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == CONFIG
    assert ended.stderr == "'quickstrat' is neither a file nor a shipped config; did you mean 'quickstart'?\n"


OTHER = {"kind": "tiny_other_classes", "inputs": ["right"]}
RIGHT = MLP | {"inputs": ["right"], "in_features": 10}
#: Changes of a config that only the data or the networks can tell to be wrong, and parts of the message.
BUILT = {
    "unknown tap": (
        {"teachers": {"right": RIGHT | {"taps": ["fc12"]}}},
        ["teachers.right.taps: tap 'fc12' is no module of Mlp; did you mean 'fc2' or 'fc1'"],
    ),
    "other classes": (
        {"teachers": {"right": OTHER}},
        ["teachers.right: gives 5 classes, the data set has 4; they must be the same"],
    ),
    "missing field": (
        {"student": MLP | {"inputs": ["lft"]}},
        ["student: ", "field 'lft', which the data set does not have; did you mean 'left'"],
    ),
    "wrong field": (
        {"student": MLP | {"inputs": ["right"]}},
        ["student: Mlp input: expected shape [B, 8], found [2, 10]"],
    ),
    "empty split": ({"data": {"kind": "tiny", "empty": "val"}}, ["split 'val' is empty"]),
    "unknown split": ({"evaluation": {"splits": ["tset"]}}, ["no split 'tset'; did you mean 'test'"]),
    "no weights": (
        {"student": MLP | {"weights": "missing.safetensors"}},
        ["student.weights: no file missing.safetensors"],
    ),
    "a cpu with fp16": ({"trainer": {"mixed_precision": "fp16", "device": "cpu"}}, ["trainer.mixed_precision: 'fp16'"]),
}
#: The same for the only stage.
STAGES = {
    "unknown metric": (
        {"monitor": {"metric": "acuracy", "mode": "max"}},
        ["stages.learn: monitor.metric: 'acuracy' is not measured in this stage; did you mean 'accuracy'"],
    ),
    "unknown monitored split": (
        {"monitor": {"metric": "loss", "mode": "min", "split": "vla"}},
        ["stages.learn: ", "no split 'vla'; did you mean 'val'"],
    ),
    "no teachers": (
        {"trains": ["student"], "objectives": [{"kind": "kd", "teacher": "right"}]},
        ["stages[0].objectives[0].teacher: names teacher 'right', but the recipe has no teachers"],
    ),
    "no router": (
        {"objectives": ["routed_kd"]},
        ["stages.learn: an objective needs a router, but the recipe has none; add a 'router' section"],
    ),
    "nothing learns": (
        {"trains": ["objectives"]},
        ["stages.learn: nothing to train: 'trains' names no module with parameters"],
    ),
    "a transform of no field": (
        {"transforms": [{"kind": "random_shift", "fields": ["picture"]}]},
        ["stages.learn: random_shift needs images [B, C, H, W] in field 'picture', found no such field"],
    ),
    "options that exclude each other": (
        {"optimizer": {"kind": "sgd", "lr": 0.1, "nesterov": True}},
        ["stages.learn", "Nesterov momentum requires a momentum"],
    ),
}


@pytest.mark.parametrize("name", [*BUILT, *STAGES])
def test_mistakes_are_found_before_the_first_step(moekd, write, name: str, tmp_path: Path) -> None:
    """F2, F3, F5, F6: what only data and networks can tell is told by `check`, and before any step of `distill`."""
    raw = simple(**BUILT[name][0]) if name in BUILT else simple(STAGES[name][0])
    parts = {**BUILT, **STAGES}[name][1]
    for command in ("check", "distill"):
        said = moekd(command, write(raw), *(["--runs", tmp_path / "runs"] if command == "distill" else []))
        assert said.code in (CONFIG, EXPECTED), said
        assert all(part in said.err for part in parts), said.err
        assert "Traceback" not in said.err
    assert not list(tmp_path.rglob("metrics.jsonl"))
    raw = simple({"epochs": 1})
    assert moekd("distill", write(raw), "--runs", tmp_path / "runs", "-q").code == 0, "the name is not taken"


def test_mistakes_of_several_stages_are_told_at_once(moekd, write) -> None:
    """F1: mistakes of several stages come together."""
    raw = full()
    raw["stages"][1]["monitor"] = {"metric": "accuracy", "mode": "max"}
    raw["stages"][2]["monitor"] = {"metric": "kd", "mode": "min"}
    said = moekd("check", write(raw))
    assert said.code == CONFIG
    lines = said.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["stages.specialise", "stages.distill"]


def test_mistakes_of_several_models_are_told_at_once(moekd, write) -> None:
    """F2, F3: the split, the student and each teacher have their own line."""
    teachers = {"a": RIGHT | {"taps": ["fc9"]}, "b": RIGHT | {"weights": "missing.safetensors"}, "c": RIGHT}
    raw = simple(student=MLP | {"taps": ["fc7"]}, teachers=teachers, evaluation={"splits": ["tset"]})
    said = moekd("check", write(raw))
    assert said.code == CONFIG
    starts = ["the data set has no split 'tset'", "teachers.a.taps: ", "teachers.b.weights: ", "student.taps: "]
    lines = said.err.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


def test_other_classes_of_several_teachers_are_told_at_once(moekd, write) -> None:
    """F3: every teacher with another number of classes is named."""
    said = moekd("check", write(simple(teachers={"a": OTHER, "b": OTHER})))
    assert said.code == CONFIG
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["teachers.a", "teachers.b"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00\x01binary\x00", "UTF-8"),
        (b"student:\n\tkind: mlp\n", "tab"),
        (b"- a\n- b\n", "mapping"),
        (b"seed: 1\nseed: 2\n", "seed"),
        (b"student: !!python/object/apply:os.system ['touch canary']\n", "tag"),
    ],
)
def test_unreadable_files(moekd, tmp_path: Path, content: bytes, part: str, monkeypatch) -> None:
    """F1, S1: empty, binary, tabs, a list, a key twice, a tag that would run code."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    said = moekd("check", file)
    assert said.code == CONFIG
    assert "broken.yaml" in said.err
    assert part in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "canary").exists()


def test_files_that_are_none(moekd, tmp_path: Path, write) -> None:
    write(simple())
    for path, part in ((tmp_path, "folder"), (tmp_path / "tinny.yaml", "did you mean")):
        said = moekd("check", path)
        assert said.code == CONFIG
        assert part in said.err or "neither a file" in said.err, said.err


@pytest.mark.parametrize("override", ["no_equals_sign", "trainer.thread=1", "stages.lern.epochs=1", "seed=many", "=1"])
def test_bad_overrides(moekd, write, override: str) -> None:
    said = moekd("check", write(simple()), override)
    assert said.code == CONFIG
    assert len(said.err.splitlines()) == 1, said.err
    assert override.split("=")[0].split(".")[-1] in said.err


@pytest.mark.parametrize("name", ["../escaped", "a/b", "", ".hidden", "nul", "x" * 300, "a\nb"])
def test_bad_run_names(moekd, write, name: str, tmp_path: Path) -> None:
    """S6: run names that would leave the folder."""
    said = moekd("distill", write(simple()), "--runs", tmp_path / "runs", "--name", name)
    assert said.code == CONFIG, said
    assert "run name" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_run_name_that_is_taken(moekd, write, finished: Path) -> None:
    said = moekd("distill", write(simple()), "--runs", finished.parent, "--name", "tiny")
    assert said.code == CONFIG
    assert f"run 'tiny' exists already in {finished.parent}: continue it with --resume" in said.err


def test_a_run_that_is_in_use(moekd, write, tmp_path: Path) -> None:
    with RunFolder(tmp_path, "busy").lock():
        said = moekd("distill", write(simple()), "--runs", tmp_path, "--name", "busy", "--resume", "auto")
    assert said.code == EXPECTED
    assert "is in use by process" in said.err


def test_resuming_what_is_not_there(moekd, write, tmp_path: Path) -> None:
    said = moekd("distill", write(simple()), "--runs", tmp_path, "--name", "new", "--resume", tmp_path / "nowhere")
    assert said.code == EXPECTED
    assert "no checkpoint at" in said.err
    assert "--resume auto takes the newest of the run" in said.err


def test_resuming_with_another_config(moekd, write, finished: Path) -> None:
    raw = yaml.safe_load((finished.parent.parent / "tiny.yaml").read_text())
    raw["stages"][0]["clip_norm"] = 1.0
    arguments = ["distill", write(raw), "--runs", finished.parent, "--name", "tiny", "--resume", "auto"]
    said = moekd(*arguments)
    assert said.code == EXPECTED
    assert "stages[0].clip_norm: 5.0 in the checkpoint, 1.0 now" in said.err
    assert "allow a difference by its name with --override" in said.err
    assert moekd(*arguments, "--override", "stages[0].clip_norm").code == 0


def test_typing_errors_of_the_command_line(moekd) -> None:
    for arguments in (["destill", "quickstart"], ["distill"], ["distill", "quickstart", "--nmae", "x"]):
        said = moekd(*arguments)
        assert said.code == CONFIG
        assert "Traceback" not in said.err
