"""Two processes give the records and weights of one process at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moekd
from moekd.checkpoint import find_latest, load_checkpoint
from moekd.run_state import load_modules
from moekd.tracking import RunFolder

from .tiny import CROSS_ENTROPY, MLP, ROOT, ROUTED, Finished, recipe_of, same_weights, simple, start, train

WAIT = 150
TEACHERS = {
    "right": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12], "taps": ["fc1"]},
    "left": MLP | {"taps": ["fc1"]},
}
COTRAIN = {
    "name": "cotrain",
    "trains": ["student", "teachers"],
    "epochs": 2,
    "objectives": [CROSS_ENTROPY | {"on": "all"}, "mutual_kd"],
    "clip_norm": 1.0,
}
SPECIALISE = {
    "name": "specialise",
    "trains": ["masks"],
    "epochs": 2,
    "objectives": ["kd_to_student"],
    "monitor": {"metric": "kd_to_student", "mode": "min"},
}
DISTILL = {
    "name": "distill",
    "trains": ["student", "router"],
    "epochs": 2,
    "objectives": [CROSS_ENTROPY, ROUTED],
    "monitor": {"metric": "loss", "mode": "min"},
    "accumulate": 2,
    "ema": 0.9,
}
#: Nothing random but the start; 41 rows and 12 labels, so that slices and labels are shared out unevenly.
RAW = simple(
    student=MLP,
    data={"kind": "tiny", "batch_size": 16, "rows": 41, "labels": 12},
    teachers=TEACHERS,
    masks={"kind": "feature_attention", "hidden_factor": 4, "heads": 1},
    router={"gate": "instance", "selection": "top_k", "balance": ["kl_to_uniform"], "combine": "loss"},
    stages=[COTRAIN, SPECIALISE, DISTILL, DISTILL | {"name": "live", "cache": "off"}],
)


def free_port() -> str:
    """Return a port that is free now; tests may not open sockets, so another process asks."""
    ask = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def in_two(config: dict[str, Any], runs: Path, **environment: str) -> list[tuple[int, str]]:
    """Run a config in two processes; return exit code and messages of each."""
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / "config.json"
    file.write_text(json.dumps(config))
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "LOCAL_WORLD_SIZE": "2"}
    launched |= environment
    processes = [
        start(["train-tiny", file, runs], RANK=str(rank), LOCAL_RANK=str(rank), **launched) for rank in range(2)
    ]
    try:
        messages = [process.communicate(timeout=WAIT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, messages, strict=True)]


def loaded(config: dict[str, Any], runs: Path) -> Finished:
    """Return what two processes left in a run folder."""
    run = RunFolder(runs, "run", resume=True)
    newest, _ = find_latest(run.checkpoints)
    assert newest is not None
    program = recipe_of(config).build()
    load_modules(program, load_checkpoint(newest)[0]["models"])
    return Finished(program, run, None, json.loads(run.results.read_text()))  # type: ignore[arg-type]


def assert_close(a: Any, b: Any, where: str, tolerance: float) -> None:
    """Compare nested values, numbers with a tolerance."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_close(a[key], b[key], f"{where}.{key}", tolerance)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{where}[{index}]", tolerance)
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=tolerance, rel=tolerance), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def both(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Finished]:
    """Return the run of one process and the run of two."""
    folder = Path(tmp_path_factory.mktemp("processes"))
    for code, messages in in_two(RAW, folder / "two"):
        assert code == 0, messages
    return train(RAW, folder / "one"), loaded(RAW, folder / "two")


def test_the_records_are_the_same(both: tuple[Finished, Finished]) -> None:
    one, two = both
    assert len(one.records()) > 20
    assert_close(two.records(), one.records(), "record", 1e-5)


def test_the_weights_are_the_same(both: tuple[Finished, Finished]) -> None:
    """P1: two processes against one at the same global batch."""
    one, two = (finished.weights() for finished in both)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-4, rtol=1e-4, err_msg=name)


def test_the_results_are_the_same(both: tuple[Finished, Finished]) -> None:
    written = [json.loads(finished.run.results.read_text()) for finished in both]
    for key in ("test", "routing", "parameters"):
        assert_close(written[1][key], written[0][key], key, 1e-4)


def test_two_processes_resume_exactly(both: tuple[Finished, Finished], tmp_path: Path) -> None:
    """R8: bit for bit, so with the same rows."""
    import shutil

    raw = both[1].program.config
    shutil.copytree(both[1].run.path, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("0*"))
    for late in checkpoints[len(checkpoints) // 2 :]:
        shutil.rmtree(late)
    for code, messages in in_two(RAW, tmp_path):
        assert code == 0, messages
    two = loaded(RAW, tmp_path)
    assert two.program.config == raw
    assert same_weights(two.weights(), both[1].weights()) == []
    assert two.records() == both[1].records()


def test_another_number_of_processes_is_refused(both: tuple[Finished, Finished]) -> None:
    """R6: unless it is allowed."""
    from moekd.errors import CheckpointError

    with pytest.raises(CheckpointError, match="world_size: 2 in the checkpoint, 1 now"):
        train(RAW, both[1].run.path.parent, resume="auto")


def test_r6_another_number_of_processes_can_be_allowed(both: tuple[Finished, Finished], tmp_path: Path) -> None:
    """R6: with `--override world_size` one process goes on with what two began, and reads every sample it had left."""
    import shutil

    shutil.copytree(both[1].run.path, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("0*"))
    run = train(RAW, tmp_path, resume=checkpoints[len(checkpoints) // 2], allow=["world_size"])
    assert_close(run.records(), both[0].records(), "record", 1e-4)


def test_a_bad_loss_in_one_process_ends_both_with_the_samples(tmp_path: Path) -> None:
    """P1: with one message."""
    raw = simple(
        student={"kind": "tiny_brittle", "inputs": ["left"]},
        data={"kind": "tiny", "batch_size": 40, "magic_ids": [7]},
    )
    ended = in_two(raw, tmp_path)
    for code, messages in ended:
        assert code == 1, messages
        assert "logits of the student is not finite in 1 of 20 rows; sample ids: 7" in messages
        assert "Traceback" not in messages


@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_accelerate_launches_the_command_line(config: str, tmp_path: Path) -> None:
    launcher = f"-m accelerate.commands.launch --config_file configs/accelerate/{config}.yaml --num_processes 2"
    command = [sys.executable, *launcher.split(), "--dynamo_backend", "no", "--main_process_port", free_port()]
    command += ["-m", "moekd", "distill", "quickstart", "--runs", str(tmp_path), "--no-baselines", "data.max_train=64"]
    command += ["data.batch_size=32", "trainer.threads=1", "trainer.trackers=[]", "trainer.device=cpu"]
    command += [f"stages.{stage}.epochs=1" for stage in ("cotrain", "specialise", "distill")]
    command += ["evaluation.splits=[test]", "student.channels=[4,8]", "student.hidden=8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("report:") == 1, ended.stdout
    assert ended.stderr.count("stage 'distill': logits of 4 teachers cached") == 1, ended.stderr
    shared = "weights shared out over 2 processes (FSDP2): student, router"
    assert ended.stderr.count(shared) == (config == "fsdp2"), ended.stderr
    assert (tmp_path / "quickstart" / "report.html").is_file()
    meta = load_checkpoint(find_latest(tmp_path / "quickstart" / "checkpoints")[0])[1]  # type: ignore[arg-type]
    assert meta["world_size"] == 2
    student = moekd.load_student(tmp_path / "quickstart")
    assert student(torch.zeros(2, 3, 32, 32)).shape == (2, 98)
