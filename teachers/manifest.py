"""The manifest of a run's teachers: which models they are, and what each of them sees.

It is written into the run folder and compared when a run goes on, so that no run is finished with other teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import CheckpointError
from ..model import Batch
from .pool import TeacherPool
from .teacher import Teacher

#: Options of a model that say where it comes from.
ORIGIN = ("model", "pretrained", "revision", "architecture")
#: What a run may change between two starts without having other teachers.
FREE = ("weights",)


def describe_teachers(
    pool: TeacherPool, config: Mapping[str, Any], sample: Batch | None = None
) -> list[dict[str, Any]]:
    """Describe every teacher of a pool in plain values, in pool order.

    Args:
        pool: the teachers, before anything is trained or a checkpoint is loaded.
        config: the resolved config of the run, or its section `teachers`.
        sample: a batch of any size, from which the widths of the embeddings, the number of classes and the scale are
            learned; one forward in eval mode a teacher.

    Returns:
        One dict a teacher: name, kind, model, pretrained, revision and architecture (None where the kind has none),
        weights (a file), inputs, taps, dtype, parameters, fingerprint (sha256 of weights, structure and preparation),
        prepares (what happens to each input: size, mean, std and interpolation of pictures, length and fingerprint of
        the tokens of texts, rate and extractor of sounds), and, with a sample, embeddings (width by modality),
        classes, logit_scale, logit_bias (None where it gives none).
    """
    sections = config.get("teachers", config)
    found = []
    for name in pool.names:
        teacher, section = pool.teacher(name), dict(sections.get(name) or {})
        row: dict[str, Any] = {"name": name, "kind": section.get("kind", type(teacher.network).__name__)}
        row |= {key: section.get(key) for key in ORIGIN}
        row |= {
            "weights": section.get("weights"),
            "inputs": list(teacher.inputs),
            "taps": list(teacher.taps),
            "dtype": str(teacher.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in teacher.network.parameters()),
            "fingerprint": teacher.fingerprint(),
        }
        prepares = getattr(teacher.network, "contract", None)
        row["prepares"] = prepares() if callable(prepares) else {}
        found.append(row if sample is None else row | _said(teacher, sample))
    return found


def differences(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is different between two manifests, one line each; nothing where the teachers are the same.

    The order of the teachers counts, since it is the order of the router's scores. Where the weights lie does not.
    """
    old, new = [row.get("name") for row in before], [row.get("name") for row in now]
    if old != new:
        return [f"teachers: {', '.join(map(str, old)) or 'none'} then, {', '.join(map(str, new)) or 'none'} now"]
    lines = []
    for then, row in zip(before, now, strict=True):
        for key in dict.fromkeys([*then, *row]):
            if key not in FREE and key in then and key in row and then[key] != row[key]:
                lines.append(f"teachers.{row['name']}.{key}: {_short(then[key])} then, {_short(row[key])} now")
    return lines


def check_same(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], run: str) -> None:
    """Refuse to go on with other teachers.

    Args:
        before: manifest of the run.
        now: manifest of the teachers at hand.
        run: the run, for the message.

    Raises:
        CheckpointError: they differ; the message lists in what.
    """
    if lines := differences(before, now):
        shown = "; ".join(lines[:5])
        raise CheckpointError(f"{run} was begun with other teachers: {shown}. Use the same ones, or begin a new run")


@torch.no_grad()
def _said(teacher: Teacher, sample: Batch) -> dict[str, Any]:
    mode = teacher.training
    teacher.eval()
    try:
        signals = teacher(sample, ())
    finally:
        teacher.train(mode)
    heads = {name: signals.heads.get(name) for name in ("logit_scale", "logit_bias")}
    return {
        "embeddings": {modality: value.shape[-1] for modality, value in signals.embeddings.items()},
        "classes": None if signals.logits is None else signals.logits.shape[1],
        **{name: None if value is None else round(float(value.flatten()[0]), 4) for name, value in heads.items()},
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
