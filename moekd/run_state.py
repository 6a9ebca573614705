"""Where a run is, and the weights that its checkpoints hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from .program import Program
from .stages.loop_state import StateDict, copy_weights
from .teachers import TeacherPool

#: Bytes of a checkpoint besides its weights, about.
_SMALL = 1 << 16


@dataclass
class RunState:
    """Position in the program.

    Attributes:
        phase, stage: the running (or next) stage.
        stages_done: stages that are finished.
        saves: checkpoints written.
        trained: teachers that a stage has trained so far; only their weights go into checkpoints.
        snapshots: the main student after the stages that a baseline starts from.
    """

    phase: int = 0
    stage: int = 0
    stages_done: int = 0
    saves: int = 0
    trained: list[str] = field(default_factory=list)
    snapshots: dict[str, StateDict] = field(default_factory=dict)

    def note_trained(self, trains: Iterable[str], pool: TeacherPool) -> None:
        """Remember which teachers a stage trains."""
        for name in trains:
            if name == "teachers" or name.partition(".")[0] == "student":
                changes = pool.trainable if name == "teachers" else pool.followers
                self.trained += [teacher for teacher in changes if teacher not in self.trained]
            elif name.startswith("teachers.") and name.split(".")[1] not in self.trained:
                self.trained.append(name.split(".")[1])

    def note_student(self, program: Program, phase: int, stage: str) -> None:
        """Keep the main student's weights after a stage that a baseline starts from."""
        if phase == 0 and any(later.after == stage for later in program.phases):
            self.snapshots[stage] = copy_weights({"student": program.phases[0].student})["student"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (not the snapshots)."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "snapshots"}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> RunState:
        """Rebuild the state."""
        return cls(**state)


def module_states(program: Program, state: RunState) -> dict[str, Any]:
    """Return the weights of all students and routers so far, of the masks, and of the teachers that were trained."""
    begun = program.phases[: state.phase + 1]
    return {
        "students": {phase.name: phase.student.state_dict() for phase in begun},
        "routers": {phase.name: phase.router.state_dict() for phase in begun if phase.router is not None},
        "masks": program.pool.masks.state_dict(),
        "teachers": {name: program.pool.teacher(name).state_dict() for name in state.trained},
        "snapshots": state.snapshots,
    }


def checkpoint_bytes(program: Program) -> int:
    """Return about how large a checkpoint gets: weights, two moments of the optimizer, the best weights."""
    state = RunState()
    for stage in (stage for phase in program.phases for stage in phase.stages):
        state.note_trained(stage.changes, program.pool)
    modules: list[nn.Module] = [program.pool.masks, *(program.pool.teacher(name) for name in state.trained)]
    modules += [part for phase in program.phases for part in (phase.student, phase.router) if part is not None]
    weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    return 4 * weights + _SMALL


def load_modules(program: Program, states: Mapping[str, Any]) -> None:
    """Load what `module_states` returned."""
    for phase in program.phases:
        if phase.name in states["students"]:
            phase.student.load_state_dict(states["students"][phase.name])
        if phase.router is not None and phase.name in states["routers"]:
            phase.router.load_state_dict(states["routers"][phase.name])
    program.pool.masks.load_state_dict(states["masks"])
    for name, weights in states["teachers"].items():
        program.pool.teacher(name).load_state_dict(weights)
