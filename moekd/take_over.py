"""Begin a run with the finished stages of another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import check_same, find_latest, load_checkpoint
from .errors import CheckpointError
from .program import Program
from .randomness import restore_random_state
from .run_state import RunState, load_modules
from .tracking import RunFolder

logger = logging.getLogger(__name__)
#: Sections on which every stage depends.
COMMON = ("data", "student", "teachers", "seed")


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
    path, _ = find_latest(start / "checkpoints")
    if path is None:
        raise CheckpointError(f"no checkpoint to start from in {start}; it has to be the folder of a finished run")
    state, theirs = load_checkpoint(path)
    config, position = theirs["config"], theirs["run"]
    stages = config["stages"]
    if config.get("baselines") or position["phase"] != 1 or len(stages) >= len(program.config["stages"]):
        raise CheckpointError(
            f"{start} can't be started from: expected a finished run without baselines whose stages are the first ones "
            f"of this config; it has the stages {[stage['name'] for stage in stages]}"
        )
    _check_same(theirs, meta, len(stages))
    names = {"main"} if config.get("router") else set()
    models = dict(state["models"])
    models["routers"] = {name: value for name, value in models["routers"].items() if name in names}
    models["students"] = {"main": models["students"]["main"]}
    if not config.get("masks"):
        models["masks"] = program.pool.masks.state_dict()
    load_modules(program, models)
    restore_random_state(state["random"]["main"])
    if run is not None:
        records = (start / "metrics.jsonl").read_bytes()[: theirs["metrics_position"]]
        run.metrics.write_bytes(records)
        logger.info("took over %d stages of %s", len(stages), start)
    ours = RunState(stage=len(stages), stages_done=len(stages), trained=list(position["trained"]))
    ours.note_student(program, 0, stages[-1]["name"])
    _check_baselines(program, ours, start)
    return ours


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], stages: int) -> None:
    """Compare everything that the finished stages depend on."""
    sections = [*COMMON, *(name for name in ("masks", "router") if theirs["config"].get(name))]

    def part(meta: Mapping[str, Any]) -> dict[str, Any]:
        config = {name: meta["config"].get(name) for name in sections}
        config["stages"] = meta["config"]["stages"][:stages]
        precision = {key: meta["config"]["trainer"].get(key) for key in ("mixed_precision", "deterministic", "device")}
        return {
            "config": config | {"trainer": precision},
            "dataset_fingerprint": meta["dataset_fingerprint"],
            "teacher_fingerprints": meta["teacher_fingerprints"],
            "world_size": meta["world_size"],
        }

    check_same(part(theirs), part(ours))


def _check_baselines(program: Program, state: RunState, start: Path) -> None:
    """Refuse baselines that start after a stage whose student the other run did not keep."""
    done = [stage.name for stage in program.phases[0].stages[: state.stage]]
    for phase in program.phases[1:]:
        if phase.after in done and phase.after not in state.snapshots:
            raise CheckpointError(
                f"baseline '{phase.name}' starts after stage '{phase.after}', whose student {start} did not keep; "
                f"it can start after '{done[-1]}'"
            )
