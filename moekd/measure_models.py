"""Measures models on splits: by their logits, and by their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .cache import SignalCache
from .errors import ModelError
from .evaluation import Collector, Embedded, evaluate_signals
from .evaluation.embedding_metrics import flatten_metrics
from .evaluation.evaluate import to_device
from .measure_embeddings import EmbeddingMeasure, Place
from .model import Batch, Model
from .signals import Signals
from .stages import RunData


class Abilities(NamedTuple):
    """What a model gives: logits for the classes of the data set, embeddings."""

    classifies: bool
    embeds: bool


class Measurement:
    """Measures students and teachers, split by split; every process has to make the same calls.

    Models that neither classify nor embed (teachers that have features alone) are left out.

    Args:
        data: splits, and what is measured on embeddings.
        place: device and processes.
        students: models by name.
        teachers: frozen models by name.
        split: split of which two rows tell what models give.

    Attributes:
        says: what each model gives.
        shown: what the first student said about the last split.

    Raises:
        ModelError: a student that gives neither logits nor embeddings.
    """

    def __init__(
        self,
        data: RunData,
        place: Place,
        students: Mapping[str, Model],
        teachers: Mapping[str, Model],
        split: str,
    ) -> None:
        self.data, self.place, self.students = data, place, dict(students)
        self.says = {name: abilities(model, data, split) for name, model in {**students, **teachers}.items()}
        off = data.embeddings is None
        if mute := [n for n in students if not self.says[n].classifies and (off or not self.says[n].embeds)]:
            why = "evaluation.embeddings is off, and it gives no logits" if off else "it gives no logits, no embeddings"
            raise ModelError(f"'{mute[0]}' can't be measured: {why}")
        self.teachers = {name: model for name, model in teachers.items() if any(self.says[name])}
        self.shown: Embedded | None = None
        self.embeddings: EmbeddingMeasure | None = None
        if data.embeddings is None or not any(said.embeds for said in self.says.values()):
            return
        embedders = {name: model for name, model in self.models.items() if self.says[name].embeds}
        frozen = {name: model for name, model in embedders.items() if name in self.teachers}
        self.embeddings = EmbeddingMeasure(data, place, data.embeddings, frozen)
        for name, model in embedders.items():
            self.embeddings.prepare(name, model)

    @property
    def models(self) -> dict[str, Model]:
        """Students, then teachers."""
        return {**self.students, **self.teachers}

    def embeds(self, name: str) -> bool:
        """Whether a model is measured by its embeddings."""
        return self.embeddings is not None and self.says[name].embeds

    @property
    def classifiers(self) -> list[str]:
        """Teachers whose logits are all that is measured, so that stored ones will do."""
        return [name for name in self.teachers if self.says[name].classifies and not self.embeds(name)]

    def split(
        self, name: str, known: SignalCache | None = None
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Return the metrics of every model on a split, and the parts that concern embeddings.

        Args:
            name: of the split.
            known: logits of the teachers in `classifiers`.
        """
        found: dict[str, dict[str, Any]] = {}
        parts: dict[str, dict[str, Any]] = {}
        seen: dict[str, Embedded] = {}
        for model in [*self.teachers, *self.students]:
            stored = known if model in self.classifiers else None
            metrics, embedded = self._evaluate(model, name, stored)
            if self.embeddings is not None and self.embeds(model) and embedded is not None:
                parts[model] = self.embeddings.measure(model, embedded, name, seen)
                metrics = {"n": len(embedded), **metrics} | flatten_metrics(parts[model])
                if model in self.teachers:
                    seen[model] = embedded
            if model == next(iter(self.students), None):
                self.shown = embedded
            found[model] = metrics
        order = [*self.students, *self.teachers]
        return {m: found[m] for m in order}, {m: parts[m] for m in order if m in parts}

    def _evaluate(self, name: str, split: str, known: SignalCache | None) -> tuple[dict[str, Any], Embedded | None]:
        model, device = self.models[name].to(self.place.device).eval(), self.place.device
        classifies, keeps = self.says[name].classifies, self.embeds(name) or name in self.students

        def forward(batch: Batch) -> Signals:
            said = known(batch)[name] if known else model(batch, ())
            return said if classifies else Signals(embeddings=said.embeddings, heads=said.heads)

        settings = self.data.embeddings
        fields, same = (None, None) if settings is None else (settings.fields, settings.same)
        keep = self.data.kept_ids(split) if keeps else ()
        collector = Collector(model.inputs, fields, same if self.embeds(name) else None, keep)
        loader = self.data.eval_loader(split, self.place.rank, self.place.world)
        classes, void = self.data.num_classes, self.data.void_class
        candidates = self.data.split(split).candidates
        metrics = evaluate_signals(forward, loader, classes, device, collector, void, candidates)
        return metrics, collector.result(device) if keeps else None


@torch.no_grad()
def abilities(model: Model, data: RunData, split: str) -> Abilities:
    """Return what a model gives, by two rows of a split."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    chosen = data.split(split)
    batch = to_device(chosen.__getitems__([0, min(1, len(chosen) - 1)]), device)
    mode = model.training
    said = model.eval()(batch, ())
    model.train(mode)
    return Abilities(said.logits is not None and said.logits.shape[1] == data.num_classes, bool(said.embeddings))
