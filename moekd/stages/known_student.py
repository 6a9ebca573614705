"""What a frozen student says, computed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..cache import Needs, SignalCache, cache_in_memory
from ..cache.teacher_pass import TeacherPass
from ..cache.validity import why_not_replayed
from ..distributed import world_size
from ..model import Batch, Model
from ..signals import PoolSignals, Signals
from ..teachers import TeacherPool
from ..transforms import ReplayableTransform
from .base import StageSettings
from .context import StageContext

logger = logging.getLogger(__name__)
_NAME = "student"


class KnownStudent:
    """Gives what a frozen student says by sample id; it runs over the split when it is asked for the first time.

    Several processes share that pass, so all of them have to ask.

    Args:
        teachers: the pass, with the student in place of a pool.
        context: limits.
        stage: name of the stage, for the log.
    """

    def __init__(self, teachers: TeacherPass, context: StageContext, stage: str) -> None:
        self.teachers, self.context, self.stage = teachers, context, stage
        self.cache: SignalCache | None = None
        self.live = False

    def __call__(self, batch: Batch, student: Model) -> Signals:
        """Return what the student says about the samples of a batch of the stage's split."""
        if self.cache is None and not self.live:
            self._fill()
        return student(batch) if self.cache is None else self.cache(batch)[_NAME]

    def _fill(self) -> None:
        rows, shapes = len(self.teachers.split) * self.teachers.views, self.teachers.shapes()[_NAME]
        nbytes = rows * sum(self.context.cache.codec_of(k).bytes_a_row(like) for k, like in shapes.items())
        self.live = nbytes > self.context.cache.memory_gb * 1e9
        if self.live:
            logger.info("stage '%s': the frozen student runs live: %.2f GB of signals", self.stage, nbytes / 1e9)
            return
        self.cache = cache_in_memory(self.teachers, self.context.cache, together=world_size() > 1)
        size = self.cache.nbytes / 1e6
        logger.info("stage '%s': signals of the frozen student cached in memory, %.1f MB", self.stage, size)


def known_student(context: StageContext, settings: StageSettings, trained: bool) -> KnownStudent | None:
    """Return the source of what the student says in a stage, or None where it is no constant of a sample.

    Args:
        context: models, data, limits.
        settings: the stage.
        trained: the stage trains the student.
    """
    student, split = context.models.student, context.data.split(settings.split)
    moves = trained or student.training or any(p.requires_grad for p in student.parameters())
    if moves or settings.cache == "off" or split.random or why_not_replayed(settings.transforms):
        return None
    teachers = TeacherPass(
        pool=_StudentAlone(student),
        variants=[_NAME],
        needs=Needs(logits=True, embeddings=True, features=bool(student.taps)),
        split=split,
        split_name=settings.split,
        batch_size=context.data.eval_batch_size,
        device=context.device,
        precision=context.accelerator.mixed_precision,
        autocast=context.accelerator.autocast,
        num_workers=context.data.num_workers,
        transforms=[t for t in settings.transforms if isinstance(t, ReplayableTransform)],
    )
    return KnownStudent(teachers, context, settings.name)


class _StudentAlone(TeacherPool):
    """A pool in which nobody but the student speaks."""

    def __init__(self, student: Model) -> None:
        super().__init__({})
        self._student = (student,)  # not a part of this module

    def forward(
        self,
        batch: Batch,
        variants: Sequence[str] | None = None,
        rows: Mapping[str, Tensor] | None = None,
        features: bool = False,
    ) -> PoolSignals:
        return PoolSignals({_NAME: self._student[0](batch, None if features else ())})
