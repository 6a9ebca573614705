"""Begin a run with the finished stages of another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import check_same, find_latest, load_checkpoint
from .distributed import rank
from .errors import CheckpointError
from .program import Program
from .randomness import restore_gathered
from .run_state import RunState, load_modules
from .tracking import RunFolder

logger = logging.getLogger(__name__)
#: Sections on which every stage depends.
COMMON = ("data", "student", "teachers", "seed")
#: Settings of the trainer, and facts of a checkpoint, on which they depend too.
PRECISION = ("mixed_precision", "deterministic", "device", "threads")
IDENTITY = ("dataset_fingerprint", "teacher_fingerprints", "world_size")


def take_over(program: Program, start: Path, meta: Mapping[str, Any], run: RunFolder | None) -> RunState:
    """Load the models as another run's stages left them; those stages have to be the first ones of this program.

    What follows is, to the bit, what the whole program would have given in one run. Masks and router are taken over
    where the other run had them.

    Args:
        program: the program that goes on.
        start: folder of the other run, which has no baselines and is finished.
        meta: what must agree, as in this run's own checkpoints.
        run: folder that gets the records of those stages; None in all processes but the first.

    Returns:
        The state behind the stages that were taken over.

    Raises:
        CheckpointError: no finished run there, or one with other data, models, seed or stages; all differences are
            named.
    """
    state, theirs = _finished_run(start)
    theirs["config"] = program.resolve(theirs["config"])
    config, position = theirs["config"], theirs["run"]
    stages = config["stages"]
    if len(stages) >= len(program.config["stages"]):
        finished, wanted = ([stage["name"] for stage in c["stages"]] for c in (config, program.config))
        raise CheckpointError(
            f"{start} can't be started from: its stages {finished} have to be the first ones of this config, which has "
            f"{wanted} and needs at least one more"
        )
    _check_same(theirs, meta, len(stages), start)
    names = {"main"} if config.get("router") else set()
    models = dict(state["models"])
    models["routers"] = {name: value for name, value in models["routers"].items() if name in names}
    models["students"] = {"main": models["students"]["main"]}
    if not config.get("masks"):
        models["masks"] = program.pool.masks.state_dict()
    load_modules(program, models)
    restore_gathered(state["random"], rank())
    if run is not None:
        run.metrics.write_bytes(_records(start, theirs["metrics_position"]))
        logger.info("took over %d stages of %s", len(stages), start)
    ours = RunState(stage=len(stages), stages_done=len(stages), trained=list(position["trained"]))
    ours.note_student(program, 0, stages[-1]["name"])
    _check_baselines(program, ours, start)
    return ours


def _finished_run(start: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the meta data of a run's last checkpoint."""
    path, skipped = find_latest(start / "checkpoints")
    damaged = "".join(f"; {bad.name}: {reason}" for bad, reason in skipped)
    if path is None:
        raise CheckpointError(
            f"no checkpoint to start from in {start}; it has to be the folder of a finished run{damaged}"
        )
    state, meta = load_checkpoint(path)
    if meta["config"].get("baselines"):
        raise CheckpointError(
            f"{start} can't be started from: it is a run with baselines; make one without them (--no-baselines)"
        )
    if meta["run"]["phase"] != 1:
        done, stages = meta["run"]["stages_done"], len(meta["config"]["stages"])
        raise CheckpointError(
            f"{start} can't be started from: it is not finished, {done} of {stages} stages are done; "
            f"go on with it first{damaged}"
        )
    return state, meta


def _records(start: Path, position: int) -> bytes:
    """Return the records of the stages that are taken over."""
    metrics = start / "metrics.jsonl"
    records = metrics.read_bytes() if metrics.is_file() else b""
    if len(records) < position:
        raise CheckpointError(
            f"{start} can't be started from: {metrics} has {len(records):,} bytes, its checkpoint expects {position:,}"
        )
    return records[:position]


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], stages: int, start: Path) -> None:
    """Compare everything that the finished stages depend on."""
    sections = [*COMMON, *(name for name in ("masks", "router") if theirs["config"].get(name))]

    def part(meta: Mapping[str, Any]) -> dict[str, Any]:
        config = {name: meta["config"].get(name) for name in sections}
        config["stages"] = meta["config"]["stages"][:stages]
        config["trainer"] = {key: meta["config"]["trainer"].get(key) for key in PRECISION}
        return {"config": config} | {key: meta[key] for key in IDENTITY}

    try:
        check_same(part(theirs), part(ours))
    except CheckpointError as error:
        differences = [line for line in str(error).splitlines() if line.startswith("  ")]
        raise CheckpointError("\n".join([f"{start} can't be started from:", *differences])) from error


def _check_baselines(program: Program, state: RunState, start: Path) -> None:
    """Refuse baselines that start after a stage whose student the other run did not keep."""
    done = [stage.name for stage in program.phases[0].stages[: state.stage]]
    for phase in program.phases[1:]:
        if phase.after in done and phase.after not in state.snapshots:
            raise CheckpointError(
                f"baseline '{phase.name}' starts after stage '{phase.after}', whose student {start} did not keep; "
                f"it can start after '{done[-1]}'"
            )
