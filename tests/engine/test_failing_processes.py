"""A process that fails, hangs, or is told twice to stop."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from moekd.checkpoint import find_latest, load_checkpoint
from moekd.interruption import ECHO

from .test_distributed import free_port
from .tiny import simple, start

WAIT = 150


@pytest.mark.parametrize(("how", "minutes"), [("raise", 5.0), ("stop", 0.1)])
def test_p1_a_process_that_fails_or_hangs_ends_the_others_with_a_message(
    how: str, minutes: float, tmp_path: Path
) -> None:
    """P1: no process waits for one that is gone, or that does not answer within `trainer.timeout_minutes`."""
    raw = simple({"objectives": ["cross_entropy", {"kind": "tiny_fatal", "how": how}]})
    raw["trainer"] |= {"timeout_minutes": minutes}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "LOCAL_WORLD_SIZE": "2"}
    processes = [
        start(["train-tiny", tmp_path / "config.json", tmp_path], RANK=str(rank), LOCAL_RANK=str(rank), **launched)
        for rank in range(2)
    ]
    try:
        messages = processes[0].communicate(timeout=WAIT)[1]
        if how == "raise":
            other = processes[1].communicate(timeout=WAIT)[1]
            assert processes[1].returncode == 1
            assert "the last process can't go on" in other
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=WAIT)
    assert processes[0].returncode == 1, messages
    assert "process 0 of 2 stops: another one failed, or did not answer within trainer.timeout_minutes" in messages
    assert "Traceback" not in messages
    newest, skipped = find_latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert skipped == []


def test_r5_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    """R5: in the middle of a step that does not end; the checkpoint from before is intact."""
    raw = simple({"objectives": ["cross_entropy", {"kind": "tiny_fatal", "how": "sleep"}]})
    (tmp_path / "config.json").write_text(json.dumps(raw))
    process, folder = start(["train-tiny", tmp_path / "config.json", tmp_path]), tmp_path / "run" / "checkpoints"
    try:
        end = time.monotonic() + WAIT
        while not (folder / "000001").exists() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(ECHO + 0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate(timeout=WAIT)
    newest, skipped = find_latest(folder)
    assert newest is not None
    assert load_checkpoint(newest)[1]["run"]["stages_done"] == 0
    assert skipped == []
