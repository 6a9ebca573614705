"""What embeddings are good for: retrieval, classes by name, neighbours, a linear probe.

Shapes: N rows of a split, D width of an embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError
from .calibration import CalibrationError
from .embedded import Embedded, Fields
from .evaluate import Classes, among
from .probe import LinearProbe, accuracy, knn_votes, linear_probe
from .retrieval import PairScorer, retrieval
from .zero_shot import TEMPLATES, class_vectors, prompts, zero_shot_logits

#: What is measured on embeddings, by the names in results.json: shares of right answers, shares of variance (R2), and a
#: rank correlation (tau-b).
EmbeddingMetric = Literal[
    "retrieval_r1",
    "image_to_text_r1",
    "image_to_text_r5",
    "image_to_text_r10",
    "text_to_image_r1",
    "text_to_image_r5",
    "text_to_image_r10",
    "zero_shot_accuracy",
    "knn_accuracy",
    "linear_probe_accuracy",
    "worst_teacher_r2",
    "mean_teacher_r2",
    "rank_agreement",
]
#: Those that stand beside accuracy and loss, in tables, in `monitor` and in ablations.
HEADLINES = (
    "retrieval_r1",
    "zero_shot_accuracy",
    "knn_accuracy",
    "linear_probe_accuracy",
    "worst_teacher_r2",
    "mean_teacher_r2",
    "rank_agreement",
)


@dataclass(frozen=True)
class EmbeddingSettings:
    """What is measured on embeddings.

    Attributes:
        class_names: what the classes are called in prompts.
        fields: how the data set describes its fields.
        templates: prompts of the zero-shot classifier; None: none is made.
        retrieval: measure retrieval between two modalities.
        same: field of integers; rows with equal values are right answers for each other.
        rank_agreement: negatives of a query on which the order is compared with the teachers'; None: not.
        knn_k: neighbours that vote; None: no such probe.
        linear: fit a linear classifier.
        teachers: fit a linear map from the student's to each teacher's embedding.
        train_rows: training rows that probes are fitted on.
        max_rows: rows of a split whose embeddings are kept.
    """

    class_names: Sequence[str]
    fields: Fields = field(default_factory=dict)
    templates: Sequence[str] | None = TEMPLATES
    retrieval: bool = True
    same: str | None = None
    knn_k: int | None = 10
    linear: bool = True
    teachers: bool = True
    rank_agreement: int | None = None
    train_rows: int = 4000
    max_rows: int = 20_000

    @property
    def probes(self) -> bool:
        """Whether anything is fitted on training rows."""
        return self.knn_k is not None or self.linear


def modality_pair(embedded: Embedded) -> tuple[str, str] | None:
    """Return the two modalities that retrieval goes between, text last; None where no two have the same width."""
    known = sorted(embedded.embeddings, key=lambda name: name == "text")
    pairs = sorted(combinations(known, 2), key=lambda pair: "text" not in pair)
    widths = {name: value.shape[1] for name, value in embedded.embeddings.items()}
    return next((pair for pair in pairs if widths[pair[0]] == widths[pair[1]]), None)


def seen_modality(embedded: Embedded) -> str:
    """Return the modality that classes are read from: the first that is not text."""
    return min(embedded.embeddings, key=lambda name: name == "text")


def candidates(embedded: Embedded, modality: str) -> Tensor:
    """Return the rows whose inputs of a modality are different things: of equal inputs in one group, the first."""
    content = embedded.contents.get(modality, embedded.ids)
    keys = torch.stack([embedded.groups, content], dim=1).numpy()
    _, first = np.unique(keys, axis=0, return_index=True)
    return torch.from_numpy(np.sort(first))


def measure_retrieval(
    embedded: Embedded, device: torch.device | str = "cpu", scorer: PairScorer | None = None
) -> dict[str, Any] | None:
    """Return what `retrieval` does, and `retrieval_r1`, the mean of recall at 1 both ways; None without a pair.

    Rows of one group are right answers for each other. Equal texts of a group (a caption that several pictures share)
    are one candidate, and so are equal pictures. A cross-encoder judges pairs by its `scorer` in place of the cosine.
    """
    pair = modality_pair(embedded)
    if pair is None:
        return None
    rows = [candidates(embedded, modality) for modality in pair]
    first, second = (embedded.embeddings[m][r].to(device) for m, r in zip(pair, rows, strict=True))
    groups = (embedded.groups[rows[0]], embedded.groups[rows[1]])
    found = retrieval(first, second, groups=groups, names=pair, scorer=scorer)
    mean = (found[f"{pair[0]}_to_{pair[1]}_r1"] + found[f"{pair[1]}_to_{pair[0]}_r1"]) / 2
    counts = {f"n_{modality}": len(own) for modality, own in zip(pair, rows, strict=True)}
    return {**found, "retrieval_r1": mean, **counts}


@torch.no_grad()
def text_class_vectors(network: nn.Module, settings: EmbeddingSettings) -> Tensor | None:
    """Return the vectors of the classes `[C, D]` by the network's own text tower, on the CPU; None if it has none.

    A network with a text tower has a method `embed_texts(texts) -> [texts, D]`.
    """
    encode = getattr(network, "embed_texts", None)
    if settings.templates is None or encode is None or not getattr(network, "reads_texts", True):
        return None
    mode = network.training
    network.eval()
    try:
        return class_vectors(encode, prompts(list(settings.class_names), list(settings.templates))).cpu()
    finally:
        network.train(mode)


def measure_zero_shot(
    embedded: Embedded, vectors_CD: Tensor, candidates: Classes | None = None
) -> dict[str, Any] | None:
    """Return how well the nearest class vector names the class: `accuracy`, `top5_accuracy`, `calibration_error`, `n`.

    With `candidates`, only these classes are in question. None where the rows have no classes, or embeddings of another
    width than the vectors.
    """
    modality = seen_modality(embedded)
    images = embedded.embeddings[modality]
    if embedded.labels is None or images.shape[1] != vectors_CD.shape[1] or modality == "text":
        return None
    known = embedded.labels >= 0
    if not bool(known.any()):
        return None
    labels = embedded.labels[known]
    logits = zero_shot_logits(images[known], vectors_CD, embedded.scale or 100.0)
    logits = logits if candidates is None else among(logits, candidates)
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    calibration = CalibrationError()
    calibration.update(logits, labels, torch.ones_like(labels, dtype=torch.bool))
    return {
        "accuracy": accuracy(logits, labels),
        "top5_accuracy": (top == labels[:, None]).any(dim=1).double().mean().item(),
        "calibration_error": calibration.compute(),
        "n": len(labels),
    }


@dataclass(frozen=True)
class Probes:
    """Frozen embeddings of labelled training rows, and the linear classifier that was fitted on them."""

    modality: str
    features: Tensor
    labels: Tensor
    linear: LinearProbe | None


def fit_probes(embedded: Embedded, settings: EmbeddingSettings) -> Probes | None:
    """Fit on the rows that have a label; None without any."""
    if embedded.labels is None or not settings.probes or not embedded.embeddings:
        return None
    known, modality = embedded.labels >= 0, seen_modality(embedded)
    if not bool(known.any()):
        return None
    features, labels = embedded.embeddings[modality][known], embedded.labels[known]
    linear = linear_probe(features, labels, len(settings.class_names), steps=100) if settings.linear else None
    return Probes(modality, features, labels, linear)


def measure_probes(probes: Probes, embedded: Embedded, settings: EmbeddingSettings) -> dict[str, dict[str, Any]]:
    """Return `knn` and `linear_probe`: accuracy of the neighbours' votes and of the linear classifier on a split."""
    if embedded.labels is None or not bool((embedded.labels >= 0).any()):
        return {}
    known = embedded.labels >= 0
    features, labels = embedded.embeddings[probes.modality][known], embedded.labels[known]
    about = {"n": len(labels), "train_rows": len(probes.labels), "modality": probes.modality}
    found: dict[str, dict[str, Any]] = {}
    if settings.knn_k is not None:
        classes = len(settings.class_names)
        votes = knn_votes(probes.features, probes.labels, features, classes, settings.knn_k)
        found["knn"] = {"accuracy": accuracy(votes, labels), "k": settings.knn_k, **about}
    if probes.linear is not None:
        found["linear_probe"] = {"accuracy": accuracy(probes.linear(features), labels), **about}
    return found


def flatten_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one model by the names that `monitor`, tables and ablations know them by."""
    flat: dict[str, float] = {}
    flat |= {key: float(v) for key, v in (found.get("retrieval") or {}).items() if not key.startswith("n_")}
    for part in ("zero_shot", "knn", "linear_probe"):
        if found.get(part):
            flat[f"{part}_accuracy"] = float(found[part]["accuracy"])
    values = [row["r2"] for row in (found.get("teachers") or {}).values() if row["r2"] == row["r2"]]
    if values:
        flat |= {"worst_teacher_r2": min(values), "mean_teacher_r2": sum(values) / len(values)}
    taus = [row["tau"] for row in (found.get("rank_agreement") or {}).values()]
    if taus:
        flat["rank_agreement"] = sum(taus) / len(taus)
    return flat


def check_class_names(settings: EmbeddingSettings, classes: int) -> None:
    """Refuse another number of names than of classes, and templates without a place for the name.

    Raises:
        DataError: what is wrong.
    """
    if settings.templates is None:
        return
    if len(settings.class_names) != classes:
        raise DataError(f"zero_shot.names: expected {classes} names, one a class; found {len(settings.class_names)}")
    prompts(list(settings.class_names), list(settings.templates))
