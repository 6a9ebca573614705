"""The Accelerate loop: runs the stages of a program, records, saves, resumes, and measures the result."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from .allocator import keep_freed_memory
from .cache import SignalStore
from .distributed import launched_as, other_processes
from .errors import ConfigError, StoppedError
from .interruption import StopRequest
from .measure import measure
from .program import Phase, Program
from .progress import Progressbar
from .randomness import seed_everything
from .run_checkpoints import RunCheckpoints, check_relaxed
from .run_state import RunState
from .stages import StageContext
from .stages.recovery import NonFinitePolicy
from .take_over import take_over
from .teachers.manifest import describe_teachers
from .tracking import RunFolder, Trackers

logger = logging.getLogger(__name__)


class Trainer:
    """Runs a program in a run folder.

    Args:
        program: what to run.
        run: where results go.
        quiet: no progress bars.
        store: folder of teachers' signals that this run shares with others; None takes the config's, and without one
            keeps them for itself.
    """

    def __init__(self, program: Program, run: RunFolder, quiet: bool = False, store: Path | None = None) -> None:
        self.program, self.run_folder = program, run
        self.accelerator = make_accelerator(program)
        self.disk = SignalStore(store or program.cache.place, program.dataset_fingerprint, program.cache)
        self.store = self.disk if store is not None or program.cache.folder is not None else None
        self.is_main = self.accelerator.is_main_process
        self.progress = Progressbar(enabled=self.is_main and not quiet)
        self.trackers = Trackers(self.accelerator, program.loop.trackers, run)
        self.state = RunState()
        self.stop = StopRequest()
        train = program.data.split("train")
        sample = train.__getitems__(list(range(min(2, len(train)))))
        self.teachers = describe_teachers(program.pool, program.config, sample)
        self.checkpoints = RunCheckpoints(program, run, self.accelerator, self.teachers, self.stop)

    def fit(
        self,
        resume: Path | str | None = None,
        allow: Collection[str] = (),
        start: Path | None = None,
        relaxed: Collection[str] = (),
    ) -> dict[str, Any]:
        """Run (or continue) the program; return the results that are also in `results.json`.

        Args:
            resume: None starts anew; "auto" takes the newest valid checkpoint of the run, or starts anew and says so;
                a path takes that checkpoint.
            allow: config keys that may differ from the checkpoint's.
            start: folder of a finished run whose stages are this one's first stages: they are taken over. A checkpoint
                of this run itself goes first.
            relaxed: what a resumed run may do without, of `run_checkpoints.RELAXABLE`.

        Raises:
            CheckpointError: nothing to resume from, it belongs to another run, or no checkpoint can be written.
            StoppedError: a signal ended the run after a step, which is saved.
            PeerError: another process of the run failed or does not answer.
        """
        program = self.program
        check_relaxed(relaxed)
        lock = self.run_folder.lock() if self.is_main else _nothing()
        with other_processes(), lock, self.progress, _settings(program), self.stop:
            seed_everything(program.seed, self.accelerator.process_index)
            if self.is_main:
                self.checkpoints.probe()
            found = self.checkpoints.find(resume) if resume is not None else None
            stage_state: Mapping[str, Any] | None = None
            if found is not None:
                self.state, stage_state = self.checkpoints.restore(found, allow, relaxed)
            elif self.is_main:
                self.start_folder()
            if start is not None and found is None:
                self.state = take_over(
                    self.program, start, self.checkpoints.meta(), self.run_folder if self.is_main else None
                )
            self.trackers.start(program.config)
            for index in range(self.state.phase, len(program.phases)):
                self.run_phase(index, program.phases[index], stage_state)
                stage_state = None
            results = measure(program, self.accelerator, self.run_folder, self.progress, self.store)
            if self.is_main:
                self.run_folder.write_results(results)
            self.trackers.end()
        return results

    def start_folder(self) -> None:
        """Write what is known before the first step."""
        self.run_folder.truncate_to(0)
        self.run_folder.write_config(self.program.config)
        self.run_folder.write_environment()
        self.run_folder.write_teachers(self.teachers)

    def run_phase(self, index: int, phase: Phase, stage_state: Mapping[str, Any] | None) -> None:
        """Run the stages of a phase that are left."""
        if phase.after is not None and stage_state is None and self.state.stage == 0:
            phase.student.load_state_dict(self.state.snapshots[phase.after])
        for position in range(self.state.stage, len(phase.stages)):
            self.state.phase, self.state.stage = index, position
            stage = phase.stages[position]
            self.state.note_trained(stage.changes, self.program.pool)
            stage.run(self.context(phase), stage_state)
            stage_state = None
            self.state.note_student(self.program, index, stage.name)
            self.state.stages_done += 1
            last = position + 1 == len(phase.stages)
            self.state.phase, self.state.stage = (index + 1, 0) if last else (index, position + 1)
            self.save({})
            if stop := self.stop.agreed(0, 1):
                raise StoppedError(stop, f"{phase.name}, the end of stage '{stage.name}'")
        self.state.phase, self.state.stage = index + 1, 0

    def context(self, phase: Phase) -> StageContext:
        """Return what a stage of a phase gets."""
        loop = self.program.loop
        return StageContext(
            accelerator=self.accelerator,
            models=self.program.models(phase),
            data=self.program.data,
            phase=phase.name,
            log=self.log,
            save=self.save,
            progress=self.progress,
            log_every=loop.log_every,
            checkpoint_every=loop.checkpoint_every,
            stops=lambda step: self.stop.agreed(step, loop.log_every),
            store=self.store,
            disk=self.disk,
            cache=self.program.cache,
            overlap=loop.overlap,
            nonfinite=NonFinitePolicy(loop.on_nonfinite, loop.max_nonfinite),
        )

    def log(self, record: dict[str, Any]) -> None:
        """Write a record to the run folder and its scalars to the trackers."""
        if not self.is_main:
            return
        self.run_folder.log(record)
        scalars = {key: record[key] for key in ("losses", "metrics", "shares", "lr", "entropy") if key in record}
        if scalars:
            prefix = f"{record['phase']}/{record['stage']}"
            self.trackers.log({f"{prefix}/{record['type']}": scalars}, step=record["step"])

    def save(self, stage_state: Mapping[str, Any]) -> None:
        """Write a checkpoint; all processes call this."""
        self.checkpoints.save(self.state, stage_state)


def make_accelerator(program: Program) -> Accelerator:
    """Return an Accelerator for the program's device and precision.

    Accelerate keeps device and precision for the whole process and refuses a second choice; each program gets a state
    of its own here, and accelerators made earlier keep theirs.

    Raises:
        ConfigError: the machine can't do what is asked for.
    """
    loop = program.loop
    if loop.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device: 'cuda' is asked for, but there is no usable GPU; use auto or cpu")
    for name in program.pool.names:
        place = program.pool.teacher(name).place
        if place.startswith("cuda") and (torch.device(place).index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"teachers.{name}.device: '{place}' is asked for, but there are {torch.cuda.device_count()} usable "
                "GPUs; use auto, rotated or cpu"
            )
    cpu = loop.device == "cpu" or not torch.cuda.is_available()
    if cpu and loop.mixed_precision == "fp16":
        raise ConfigError("trainer.mixed_precision: 'fp16' can't be used here: it needs a GPU; use bf16 or no")
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    AcceleratorState._shared_state = {}
    if PartialState._shared_state.get("num_processes", 1) == 1:
        PartialState._shared_state = {}
    try:
        with launched_as():
            return Accelerator(
                mixed_precision=loop.mixed_precision,
                cpu=cpu,
                kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=timedelta(minutes=loop.timeout_minutes))],
            )
    except ValueError as error:
        raise ConfigError(f"trainer.mixed_precision: '{loop.mixed_precision}' can't be used here: {error}") from error


@contextmanager
def _settings(program: Program) -> Iterator[None]:
    """Apply the process-wide settings of the loop and put the old ones back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if program.loop.threads is not None:
        torch.set_num_threads(program.loop.threads)
    torch.use_deterministic_algorithms(program.loop.deterministic, warn_only=True)
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
