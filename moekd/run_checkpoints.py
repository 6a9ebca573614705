"""The checkpoints of a run: what they hold, what happens when one can't be written, and how a run goes on from one."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .atomic import probe_writable
from .checkpoint import check_same, clean_leftovers, config_hash, find_latest, load_checkpoint, save_checkpoint
from .distributed import sum_over_processes, whole
from .errors import CheckpointError, ConfigError, DataError, UnsavedError, did_you_mean
from .interruption import StopRequest
from .program import Program
from .randomness import derived_seed, gather_random_states, restore_gathered, seed_everything
from .run_state import RunState, checkpoint_bytes, load_modules, module_states
from .teachers.manifest import differences
from .tracking import RunFolder

logger = logging.getLogger(__name__)

#: What a resumed run can do without, if it is named: the states of the generators, and the records before it.
RELAXABLE = ("random", "metrics")
#: Seconds between two attempts to save while the policy is to wait, and between two messages about it.
RETRY, REMINDER = 15.0, 600.0


class RunCheckpoints:
    """Saves and loads the state of a run; all processes call it, the main one writes.

    Args:
        program: what runs.
        run: its folder.
        accelerator: of the run.
        teachers: descriptions of the teachers, see `describe_teachers`.
        stop: tells whether a signal asks the run to stop, so that waiting for space ends.
    """

    def __init__(
        self,
        program: Program,
        run: RunFolder,
        accelerator: Accelerator,
        teachers: Sequence[Mapping[str, Any]],
        stop: StopRequest,
    ) -> None:
        self.program, self.run, self.accelerator, self.teachers = program, run, accelerator, list(teachers)
        self.stop = stop
        self.fingerprints = {row["name"]: row["fingerprint"] for row in teachers}

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run.checkpoints

    def probe(self) -> None:
        """Prove before the first step that the run's folder can be written and has room for its checkpoints.

        Raises:
            DataError: read-only, a file in the way, or too little space; the message has the estimate.
        """
        present = sum(1 for path in self.folder.glob("[0-9]*")) if self.folder.is_dir() else 0
        more = max(1, self.program.loop.keep + 1 - present)
        probe_writable(self.run.path, more * checkpoint_bytes(self.program))
        clean_leftovers(self.folder)

    # -- saving --------------------------------------------------------------------------------------------------

    def save(self, state: RunState, stage_state: Mapping[str, Any]) -> None:
        """Write a checkpoint; a failure leads to what `trainer.on_failed_save` says, in all processes.

        Raises:
            UnsavedError: it can't be written and the policy is `stop`, or `wait` and a signal ended the waiting;
                earlier checkpoints are untouched.
        """
        randoms = gather_random_states(self.accelerator.device)
        models = whole(module_states(self.program, state))
        told = -REMINDER
        while error := self._agree(self._write(state, models, stage_state, randoms)):
            policy = self.program.loop.on_failed_save
            if policy == "stop" or (policy == "wait" and self.stop.agreed(0, 1)):
                raise error
            if policy == "continue":
                logger.warning("%s; the run goes on without this checkpoint", error)
                break
            if time.monotonic() - told >= REMINDER:
                told = time.monotonic()
                logger.warning("%s; the run waits, and tries again every %.0f seconds", error, RETRY)
            self._pause()

    def _write(
        self,
        state: RunState,
        models: Mapping[str, Any],
        stage_state: Mapping[str, Any],
        randoms: list[dict[str, Any]],
    ) -> UnsavedError | None:
        """Write the checkpoint in the main process; return what prevented it."""
        if not self.accelerator.is_main_process:
            return None
        parts = {
            "models": models,
            "stage": dict(stage_state),
            "random": {"ranks": randoms},
        }
        try:
            meta = self.meta() | {"run": state.to_dict(), "metrics_position": self.run.position()}
            meta["teachers"] = self.teachers
            save_checkpoint(self.folder, f"{state.saves:06d}", parts, meta, keep=self.program.loop.keep)
        except UnsavedError as error:
            return error
        except OSError as error:
            return UnsavedError(f"{self.run.metrics} could not be written to the disk: {error}")
        state.saves += 1
        return None

    def _agree(self, error: UnsavedError | None) -> UnsavedError | None:
        """Let all processes know whether the main one failed."""
        failed = sum_over_processes(torch.tensor(float(error is not None), device=self.accelerator.device))
        if not bool(failed):
            return None
        return error or UnsavedError("the main process could not save a checkpoint; see its message")

    def _pause(self) -> None:
        """Wait before the next attempt, but not after a signal."""
        end = time.monotonic() + RETRY
        while time.monotonic() < end and not self.stop.signal:
            time.sleep(0.1)

    def meta(self) -> dict[str, Any]:
        """Return what must be the same when a run goes on."""
        return {
            "config": self.program.config,
            "config_hash": config_hash(self.program.config),
            "teacher_fingerprints": self.fingerprints,
            "dataset_fingerprint": self.program.dataset_fingerprint,
            "world_size": self.accelerator.num_processes,
        }

    # -- resuming ------------------------------------------------------------------------------------------------

    def find(self, resume: Path | str) -> Path | None:
        """Return the checkpoint to go on from: for "auto" the newest valid one, or None if there is none.

        Raises:
            CheckpointError: `resume` is a path where there is no folder.
        """
        if resume != "auto":
            path = Path(resume)
            if not path.is_dir():
                raise CheckpointError(f"no checkpoint at {path}; --resume auto takes the newest of the run")
            return path
        found, skipped = find_latest(self.folder)
        for bad, reason in skipped if self.accelerator.is_main_process else ():
            logger.warning("skipped the checkpoint %s: %s", bad.name, reason)
        if found is None and self.accelerator.is_main_process:
            logger.warning("no checkpoint to resume from: the run starts from the beginning")
        return found

    def restore(
        self, path: Path, allow: Collection[str] = (), relaxed: Collection[str] = ()
    ) -> tuple[RunState, Mapping[str, Any] | None]:
        """Load a checkpoint into the program, the generators and the run's folder.

        Args:
            path: its folder.
            allow: settings that may differ from the checkpoint's.
            relaxed: of `RELAXABLE`: what may stay unrestored, with a warning.

        Returns:
            Where the run was, and the state of the stage it was saved in, or None between two stages.

        Raises:
            CheckpointError: it belongs to another run, is damaged, or a part of it can't be restored.
        """
        state, meta = load_checkpoint(path)
        self.check(meta, allow)
        try:
            run_state = RunState.from_dict(meta["run"] | {"snapshots": state["models"]["snapshots"]})
            load_modules(self.program, state["models"])
            position, stage = int(meta["metrics_position"]), state["stage"] or None
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"checkpoint {path} does not fit this program: {error}") from error
        self._restore_random(path, state, run_state, relaxed)
        if self.accelerator.is_main_process:
            self._restore_metrics(position, relaxed)
            self.run.write_config(self.program.config)
            logger.info("resumed from %s", path)
        return run_state, stage

    def check(self, meta: Mapping[str, Any], allow: Collection[str] = ()) -> None:
        """Refuse a checkpoint of another run. Settings that are newer than the checkpoint count with their defaults.

        Raises:
            CheckpointError: what differs; where the teachers do, also in what (revision, weights, preparation, ...).
        """
        if isinstance(meta.get("config"), Mapping):
            meta = {**meta, "config": self.program.resolve(meta["config"])}
        try:
            check_same(meta, self.meta(), allow)
        except CheckpointError as error:
            others = differences(meta.get("teachers", self.teachers), self.teachers)
            if not others:
                raise
            raise CheckpointError(
                "\n".join([str(error), "the teachers differ in:", *(f"  {o}" for o in others)])
            ) from error

    def _restore_random(
        self, path: Path, state: Mapping[str, Any], run_state: RunState, relaxed: Collection[str]
    ) -> None:
        try:
            restore_gathered(state["random"], self.accelerator.process_index)
        except (CheckpointError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if "random" not in relaxed:
                raise CheckpointError(
                    f"checkpoint {path}: the random state can't be restored, so the run would not go on as it was: "
                    f"{error}; --resume-relaxed random goes on with new random numbers"
                ) from error
            logger.warning("the random state is not restored (%s): new random numbers from here on", error)
            seed_everything(derived_seed(self.program.seed, f"save {run_state.saves}"), self.accelerator.process_index)

    def _restore_metrics(self, position: int, relaxed: Collection[str]) -> None:
        try:
            self.run.truncate_to(position)
        except DataError as error:
            if "metrics" not in relaxed:
                raise CheckpointError(
                    f"{error}; --resume-relaxed metrics goes on with the records there are"
                ) from error
            logger.warning("the records before the checkpoint are not complete: %s", error)


def check_relaxed(names: Collection[str]) -> None:
    """Refuse names that are not of `RELAXABLE`.

    Raises:
        ConfigError: which.
    """
    for name in names:
        if name not in RELAXABLE:
            known = ", ".join(RELAXABLE)
            raise ConfigError(f"--resume-relaxed: unknown '{name}'{did_you_mean(name, RELAXABLE)}; known: {known}")
