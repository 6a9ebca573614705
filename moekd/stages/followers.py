"""Teachers that follow the student through a stage."""

from __future__ import annotations

from ..step import Models
from ..teachers import MomentumTeacher
from .base import StageSettings


class Followers:
    """The teachers of a stage whose weights follow the student's: those that somebody reads, while the student trains.

    Their weights are saved with the other models. Processes need not exchange them, since all have the same student.

    Args:
        models: student, pool, router.
        settings: the stage.
        trains_student: whether the stage trains the student.
        restart: whether the stage begins, so that each becomes a copy of the student.
    """

    def __init__(self, models: Models, settings: StageSettings, trains_student: bool, restart: bool) -> None:
        self.student = models.student
        objectives = [weighted.objective for weighted in settings.objectives]
        read = {name.partition("/")[0] for objective in objectives for name in objective.variants(models.pool)}
        if models.router is not None and any(objective.routable for objective in objectives):
            read |= {name.partition("/")[0] for name in models.experts}
        found = [models.pool.teacher(name) for name in models.pool.followers if trains_student and name in read]
        self.teachers = [teacher for teacher in found if isinstance(teacher, MomentumTeacher)]
        for teacher in self.teachers if restart else ():
            teacher.restart(self.student)

    def follow(self) -> None:
        """Move each one step towards the student; called after every optimizer step."""
        for teacher in self.teachers:
            teacher.follow(self.student)
