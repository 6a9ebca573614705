"""What the embeddings of all models of a run are good for, split by split; each is computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from .data import Split
from .data.subset import Rows
from .errors import DataError, MoekdError
from .evaluation import Collector, Embedded, evaluate_signals, linear_map_r2
from .evaluation.embedded import in_common
from .evaluation.embedding_metrics import (
    EmbeddingSettings,
    Probes,
    fit_probes,
    measure_probes,
    measure_retrieval,
    measure_zero_shot,
    text_class_vectors,
)
from .evaluation.rank_agreement import measure_rank_agreement
from .evaluation.retrieval import PairScorer
from .model import Model
from .signals import Signals
from .stages import RunData

Value = TypeVar("Value")


class Place(NamedTuple):
    """Where to measure: device, index of this process, number of processes."""

    device: torch.device
    rank: int = 0
    world: int = 1


class EmbeddingMeasure:
    """Measures the models of a run by their embeddings.

    Args:
        data: splits.
        place: device and processes.
        settings: what is measured.
        teachers: frozen models that give embeddings, by name.
    """

    def __init__(self, data: RunData, place: Place, settings: EmbeddingSettings, teachers: Mapping[str, Model]) -> None:
        self.data, self.place, self.settings, self.teachers = data, place, settings, dict(teachers)
        self.labelled, self.fit = self._training_rows()
        self.probes: dict[str, Probes | None] = {}
        self.vectors: dict[str, Tensor | None] = {}
        self.fitted: dict[str, Embedded] = {}
        self.scorers: dict[str, PairScorer] = {}

    def prepare(self, name: str, model: Model) -> None:
        """Embed training rows with a model, fit its probes and name its classes; every process has to call this."""
        settings = self.settings
        if settings.probes or (settings.teachers and self.teachers):
            embedded = self._embed(name, model, self.fit)
            self.fitted[name] = embedded
            labelled = embedded if self.labelled is None else self._embed(name, model, self.labelled)
            self.probes[name] = self.on_main(lambda: fit_probes(labelled, settings))
        self.vectors[name] = text_class_vectors(model.network, settings)
        match = getattr(model.network, "match", None)
        if match is not None:
            self.scorers[name] = match

    def measure(self, name: str, embedded: Embedded, split: str, teachers: Mapping[str, Embedded]) -> dict[str, Any]:
        """Return the metrics of one model on one split; every process has to call this.

        Args:
            name: of the model, which was prepared.
            embedded: its embeddings of the split.
            split: its name.
            teachers: the teachers' embeddings of the same split.
        """
        embedded.check_finite(f"'{name}' on split '{split}'")
        return self.on_main(lambda: self._measure(name, embedded, split, teachers))

    def _measure(self, name: str, embedded: Embedded, split: str, teachers: Mapping[str, Embedded]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.settings.retrieval:
            found["retrieval"] = measure_retrieval(embedded, self.place.device, self.scorers.get(name))
        vectors, probes = self.vectors.get(name), self.probes.get(name)
        if vectors is not None:
            found["zero_shot"] = measure_zero_shot(embedded, vectors, self.data.split(split).candidates)
        if probes is not None:
            found |= measure_probes(probes, embedded, self.settings)
        if self.settings.teachers and name not in self.teachers:
            found["teachers"] = self._teachers(name, embedded, teachers)
        if self.settings.rank_agreement is not None and name not in self.teachers:
            found["rank_agreement"] = self._rank_agreement(embedded, teachers, self.settings.rank_agreement)
        return {part: values for part, values in found.items() if values}

    def _teachers(self, name: str, embedded: Embedded, teachers: Mapping[str, Embedded]) -> dict[str, Any]:
        """Return how well a linear map predicts each teacher's embedding from the student's, `{teacher: {"r2"}}`.

        A teacher of two modalities has a row for each, "teacher/text".
        """
        found = {}
        for teacher, target in teachers.items():
            shared = [modality for modality in target.embeddings if modality in embedded.embeddings]
            for modality in shared:
                label = teacher if len(shared) == 1 else f"{teacher}/{modality}"
                own, his = self.fitted[name], self.fitted[teacher]
                fit = _matched(own, his, modality)
                test = _matched(embedded, target, modality)
                found[label] = {"r2": linear_map_r2(*fit, *test), "modality": modality, "width": fit[1].shape[1]}
        return found

    def _rank_agreement(self, embedded: Embedded, teachers: Mapping[str, Embedded], k: int) -> dict[str, Any]:
        """Return what `measure_rank_agreement` does for every teacher that judges pairs."""
        device = self.place.device
        found = {
            teacher: measure_rank_agreement(embedded, target, k, device, self.scorers.get(teacher))
            for teacher, target in teachers.items()
        }
        return {teacher: values for teacher, values in found.items() if values}

    def _embed(self, name: str, model: Model, split: Split) -> Embedded:
        model.to(self.place.device).eval()
        collector = Collector(model.inputs, self.settings.fields, self.settings.same)
        place, classes = self.place, self.data.num_classes
        loader = self.data.eval_loader(split, place.rank, place.world)
        evaluate_signals(lambda b: _without_logits(model, b), loader, classes, place.device, collector)
        embedded = collector.result(place.device)
        embedded.check_finite(f"'{name}' on the training split")
        return embedded

    def _training_rows(self) -> tuple[Split | None, Split]:
        """Return the labelled training rows to fit probes on (None: the others have labels), and training rows."""
        splits, most = self.data.splits, self.settings.train_rows
        train, labelled = splits["train"], splits.get("labelled", splits["train"])
        alike = labelled is train or len(labelled) == len(train)
        return None if alike else evenly(labelled, most), evenly(train, most)

    def on_main(self, compute: Callable[[], Value]) -> Value:
        """Return what the main process computes, in every process; its error is raised everywhere."""
        if self.place.world == 1:
            return compute()
        box: list[Any] = [None]
        if self.place.rank == 0:
            try:
                box = [compute()]
            except MoekdError as error:
                box = [DataError(str(error))]
        broadcast_object_list(box)
        if isinstance(box[0], DataError):
            raise box[0]
        value: Value = box[0]
        return value


def evenly(split: Split, most: int) -> Split:
    """Return at most so many rows of a split, evenly spaced."""
    if len(split) <= most:
        return split
    return Rows(split, np.linspace(0, len(split) - 1, most).astype(np.int64), f"{split.name}, {most} rows")


def _matched(student: Embedded, teacher: Embedded, modality: str) -> tuple[Tensor, Tensor]:
    """Return the embeddings of the rows that both have; they are the same where no row was bad for one of them."""
    left, right = in_common(student, teacher)
    return student.embeddings[modality][left], teacher.embeddings[modality][right]


def _without_logits(model: Model, batch: Mapping[str, Any]) -> Signals:
    said = model(batch, ())
    return Signals(embeddings=said.embeddings, heads=said.heads)
