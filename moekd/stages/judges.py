"""What the teachers say about a validation split, for a stage that is monitored by the order of hard negatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch

from ..evaluation import Collector, EmbeddingSettings, evaluate_signals
from ..evaluation.rank_agreement import JudgingTeacher
from ..model import Batch
from ..objectives.pair_scores import pair_scorer
from ..signals import Signals
from ..teachers import Teacher, TeacherPool
from .base import StageSettings
from .context import StageContext

#: The metric that needs them.
METRIC = "rank_agreement"


def judging_teachers(
    pool: TeacherPool,
    settings: EmbeddingSettings,
    loader: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    keep: Iterable[int] | None = None,
) -> dict[str, JudgingTeacher]:
    """Return the embeddings of every teacher that gives some, by name; every process has to call this.

    Args:
        pool: the teachers.
        settings: what is measured on embeddings.
        loader: this process's batches, which are read once for each teacher.
        num_classes: C.
        device: where they run.
        keep: ids of the rows that count; None: all.
    """
    found, kept = dict[str, JudgingTeacher](), None if keep is None else list(keep)
    for name in pool.names:
        teacher = pool.teacher(name)
        modes = [(part, part.training) for part in teacher.modules()]
        teacher.eval()
        collector = Collector(teacher.inputs, settings.fields, settings.same, kept)
        try:
            evaluate_signals(partial(_embeddings, teacher), loader, num_classes, device, collector)
        finally:
            for part, mode in modes:
                part.training = mode
        if collector.has_embeddings:
            embedded = collector.result(device)
            embedded.check_finite(f"teacher '{name}'")
            found[name] = JudgingTeacher(embedded, pair_scorer(teacher))
    return found


class ValidationJudges:
    """The judging teachers of a stage, computed once for each split while they do not change.

    Args:
        context: models and data.
        settings: the stage.
    """

    def __init__(self, context: StageContext, settings: StageSettings) -> None:
        self.context = context
        monitor, embeddings = settings.monitor, context.data.embeddings
        self.settings = embeddings if monitor is not None and monitor.metric == METRIC else None
        self.fixed = not any(name.partition(".")[0] == "teachers" for name in settings.trains)
        self.fixed = self.fixed and not context.models.pool.followers
        self.known: dict[str, dict[str, JudgingTeacher]] = {}

    def on(self, split: str) -> Mapping[str, JudgingTeacher] | None:
        """Return them for a split; None for a stage that is not monitored by their order."""
        context, settings = self.context, self.settings
        if settings is None or settings.rank_agreement is None:
            return None
        if not self.fixed or split not in self.known:
            loader, keep = context.eval_loader(split), context.data.kept_ids(split)
            pool, count = context.models.pool, context.data.num_classes
            self.known[split] = judging_teachers(pool, settings, loader, count, context.device, keep)
        return self.known[split]


def _embeddings(teacher: Teacher, batch: Batch) -> Signals:
    said = teacher(batch, ())
    return Signals(embeddings=said.embeddings, heads=said.heads)
