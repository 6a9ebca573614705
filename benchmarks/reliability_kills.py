"""A run that is killed again and again, and saves that are killed in the middle.

The processes are forked from this one, which has imported everything and trained nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..atomic import TEMPORARY
from ..checkpoint import clean_leftovers, find_latest, load_checkpoint, save_checkpoint
from ..errors import DataError
from ..recipe import Recipe
from ..tracking import RunFolder, read_jsonl
from ..trainer import Trainer

#: The quickstart on 512 rows: three stages, about 190 steps, a checkpoint every third of them.
SMALL = (
    "data.max_train=512",
    "data.batch_size=32",
    "student.channels=[4,8]",
    "student.hidden=8",
    "stages.cotrain.epochs=4",
    "stages.specialise.epochs=2",
    "stages.distill.epochs=6",
    "evaluation.splits=[test]",
    "trainer.log_every=1",
    "trainer.checkpoint_every=3",
    "trainer.threads=1",
    "trainer.trackers=[]",
    "trainer.device=cpu",
)
NAME = "run"
_TIMES = ("seconds", "train_seconds", "peak_memory_mb")
#: Records by which a killed run gets ahead at most, seconds until a start is killed, and until a run counts as hung.
_AHEAD, _START, _HUNG = 14, 4.0, 600.0


def small_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of the small run, without baselines."""
    recipe = Recipe.load("quickstart", [*SMALL, *overrides])
    return Recipe(recipe.config.model_copy(update={"baselines": {}}), recipe.source)


def go_on(runs: Path, overrides: Sequence[str]) -> None:
    """Run the small run from its newest checkpoint, or from its start, to its end."""
    torch.set_num_threads(1)
    Trainer(small_recipe(overrides).build(), RunFolder(runs, NAME, resume=True), quiet=True).fit("auto")


@dataclass
class Child:
    """A forked process that runs the small run.

    Attributes:
        pid: its number.
        messages: file with what it says.
        code: its exit code, minus the signal that ended it, or None while it runs.
    """

    pid: int
    messages: Path
    code: int | None = None

    @classmethod
    def start(cls, runs: Path, overrides: Sequence[str]) -> Child:
        """Fork a process that goes on with the run."""
        runs.mkdir(parents=True, exist_ok=True)
        messages = runs / "messages.txt"
        pid = os.fork()
        if pid:
            return cls(pid, messages)
        code = 0
        try:
            descriptor = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            go_on(runs, overrides)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        os._exit(code)

    def running(self) -> bool:
        """Tell whether it runs."""
        return self._wait(os.WNOHANG)

    def end(self) -> int:
        """Wait until it has ended; return its code."""
        self._wait(0)
        assert self.code is not None
        return self.code

    def kill(self) -> int:
        """Send it `kill -9`, if it still runs; return its code."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def _wait(self, options: int) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, options)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None


def undisturbed(runs: Path, overrides: Sequence[str] = ()) -> Path:
    """Run the small run to its end, undisturbed; return its folder.

    Raises:
        DataError: it failed.
    """
    child = Child.start(runs, overrides)
    if child.end():
        raise DataError(f"the run failed:\n{child.messages.read_text()}")
    return runs / NAME


def killed_runs(expected: Path, runs: Path, kills: int, seed: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Kill a run at random moments, let it go on, and compare its end with that of the undisturbed one, bit for bit.

    One of ten kills hits the start of the process. A run that ends before its time leaves fewer kills.
    """
    rng, metrics, done = random.Random(seed), runs / NAME / "metrics.jsonl", 0
    while done < kills:
        goal = _lines(metrics) + rng.randint(1, _AHEAD)
        limit = rng.random() * _START if rng.random() < 0.1 else _HUNG
        child = Child.start(runs, overrides)
        end = time.monotonic() + limit
        while child.running() and _lines(metrics) < goal and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        code = child.kill()
        if code > 0:
            raise DataError(f"a resumed run failed after {done} kills:\n{child.messages.read_text()}")
        if code == 0:
            break
        done += 1
    finished = undisturbed(runs, overrides)
    wrong = differences(expected, finished)
    return {"trials": done, "detected": done if not wrong else 0, "failed": len(wrong), "said": "; ".join(wrong[:3])}


def differences(expected: Path, found: Path) -> list[str]:
    """Return in what two runs differ: tensors of the last checkpoint, records without their times, leftovers."""
    states = []
    for run in (expected, found):
        newest, skipped = find_latest(run / "checkpoints")
        if newest is None or skipped:
            return [f"{run} has no readable newest checkpoint: {skipped}"]
        states.append(dict(_tensors(load_checkpoint(newest)[0]["models"])))
    wrong = sorted({*states[0]} ^ {*states[1]})
    wrong += [key for key in states[0] if key in states[1] and not torch.equal(states[0][key], states[1][key])]
    records = [
        [
            {key: value for key, value in record.items() if key not in _TIMES}
            for record in read_jsonl(run / "metrics.jsonl")
        ]
        for run in (expected, found)
    ]
    wrong += ["metrics.jsonl"] * (records[0] != records[1])
    return wrong + [path.name for path in (found / "checkpoints").iterdir() if TEMPORARY.fullmatch(path.name)]


def killed_saves(expected: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill processes in the middle of a save; whatever the moment, the newest checkpoint has to be whole.

    Returns:
        Also how often the checkpoint that was being written had been committed (`harmless`).
    """
    newest, _ = find_latest(expected / "checkpoints")
    assert newest is not None
    state, meta = load_checkpoint(newest)
    rng, committed, wrong = random.Random(seed), 0, list[str]()

    def save(number: int) -> None:
        marked = state | {"mark": {"number": torch.full((100_000,), number)}}
        save_checkpoint(folder, f"{number:06d}", marked, meta | {"number": number}, keep=2)

    started = time.monotonic()
    save(0)
    seconds, last = time.monotonic() - started, 0
    for number in range(1, kills + 1):
        ready, written = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(written, b"x")
            save(number)
            os._exit(0)
        os.read(ready, 1)
        os.close(ready)
        os.close(written)
        time.sleep(rng.random() * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found, skipped = find_latest(folder)
        if found is None or skipped:
            wrong.append(f"kill {number}: no readable newest checkpoint ({skipped})")
            continue
        kept, about = load_checkpoint(found)
        if about["number"] not in (last, number) or bool((kept["mark"]["number"] != about["number"]).any()):
            wrong.append(f"kill {number}: {found.name} holds something else")
        committed, last = committed + (about["number"] == number), about["number"]
        clean_leftovers(folder)
    return {
        "trials": kills,
        "detected": kills - committed - len(wrong),
        "harmless": committed,
        "failed": len(wrong),
        "said": "; ".join(wrong[:3]),
    }


def _lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}.{index}")
    else:
        yield f"{path}={json.dumps(value, default=str)}", torch.zeros(0)
