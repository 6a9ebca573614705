"""Parts of the model card: teachers, embeddings, several seeds, and results as the Hub reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.statistics import mean_interval
from .measures import EMBEDDING, capital, known_measures, measure_label
from .run import Run, mapping, number
from .table import count, decimal, percent, span

TOLD = ("accuracy", "balanced_accuracy", "weighted_f1", "miou", *EMBEDDING)
HUB_PREFIX = "hf-hub:"
UNKNOWN = "not stated"


def teachers(run: Run) -> list[dict[str, str]]:
    """Return one row a teacher: name, model, revision or weights, licence, what it reads, its size."""
    rows, sizes = [], mapping(run.results.get("parameters"))
    for name, teacher in mapping(run.config.get("teachers")).items():
        options, size = mapping(teacher), number(sizes.get(name))
        model = options.get("model")
        if isinstance(model, Mapping):
            model = model.get("model_type") or "own architecture"
        inputs = options.get("inputs")
        rows.append(
            {
                "teacher": str(name),
                "kind": str(options.get("kind", "")),
                "model": _place(model),
                "revision or weights": _revision(options),
                "licence": licence_of(options) or UNKNOWN,
                "reads": ", ".join(map(str, inputs)) if isinstance(inputs, list) else "",
                "parameters": "-" if math.isnan(size) else count(size),
            }
        )
    return rows


def licence_of(model: Mapping[str, Any]) -> str | None:
    """Return the licence of a model's weights: what the config says, else the card beside them on this machine."""
    if model.get("licence"):
        return str(model["licence"])
    name = model.get("model")
    if not isinstance(name, str):
        return None
    folder = Path(name).expanduser()
    card = folder / "README.md" if folder.is_dir() else _cached(name, model.get("revision"))
    if card is None or not card.is_file():
        return None
    try:
        head = card.read_text(encoding="utf-8").split("---\n", 2)
        values = yaml.safe_load(head[1]) if len(head) == 3 and not head[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    found = mapping(values).get("license")
    return str(found) if isinstance(found, str) else None


def embedding_table(run: Run, escape: Any) -> list[str]:
    """Return what was measured on embeddings, as a Markdown table; empty where nothing was."""
    rows = [
        (str(split), str(model), mapping(metrics))
        for split, models in mapping(run.results.get("test")).items()
        for model, metrics in mapping(models).items()
    ]
    names = known_measures(row for _, _, row in rows)
    if not names:
        return []
    lines = ["", "From embeddings, in per cent (R2 as it is):", ""]
    lines += [
        f"| split | model | {' | '.join(measure_label(name) for name in names)} |",
        f"|{'---|' * (2 + len(names))}",
    ]
    for split, model, metrics in rows:
        values = [_form(name)(number(metrics.get(name))) for name in names]
        if any(value != "-" for value in values):
            lines.append(f"| {escape(split)} | {escape(model)} | {' | '.join(values)} |")
    return lines


def seeds_table(runs: Sequence[Run], escape: Any) -> list[str]:
    """Return mean and 95% interval of the student's scores over runs that differ in their seed."""
    lines = [
        f"## Over {len(runs)} seeds",
        "",
        f"The same recipe with the seeds {', '.join(escape(run.results.get('seed')) for run in runs)}. Intervals are "
        "Student-t, 95%.",
        "",
        "| split | measure | mean | interval | n |",
        "|---|---|---|---|---|",
    ]
    for split in mapping(runs[0].results.get("test")):
        students = [mapping(mapping(mapping(run.results.get("test")).get(split)).get("student")) for run in runs]
        for name in TOLD:
            values = [number(student.get(name)) for student in students]
            values = [value for value in values if not math.isnan(value)]
            if len(values) > 1:
                mean, low, high, _ = mean_interval(values)
                form = _form(name)
                cells = [
                    escape(split),
                    capital(measure_label(name)),
                    form(mean),
                    span(low, high, form),
                    str(len(values)),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def model_index(run: Run) -> list[dict[str, Any]]:
    """Return the student's scores in the form of the front matter's `model-index`."""
    results = []
    for split, models in mapping(run.results.get("test")).items():
        student = mapping(mapping(models).get("student"))
        metrics = [
            {"type": name, "name": capital(measure_label(name)), "value": round(number(student[name]), 4)}
            for name in TOLD
            if name in student and math.isfinite(number(student[name]))
        ]
        if metrics:
            task = "image-segmentation" if "miou" in student else "image-classification"
            inputs = mapping(run.config.get("student")).get("inputs")
            if not any(name.endswith("accuracy") or name == "miou" for name in student) or _reads_no_picture(inputs):
                task = "feature-extraction"
            dataset = {"name": run.dataset or "unknown", "type": run.dataset or "unknown", "split": str(split)}
            results.append({"task": {"type": task}, "dataset": dataset, "metrics": metrics})
    return [{"name": run.name, "results": results}] if results else []


def _reads_no_picture(inputs: Any) -> bool:
    return isinstance(inputs, Iterable) and not any("image" in str(name) or "video" in str(name) for name in inputs)


def _form(name: str) -> Any:
    return decimal if name.endswith("_r2") else percent


def _place(model: Any) -> str:
    """Return a model's name; of a path only its last part, which says nothing about the machine."""
    text = str(model or "")
    return Path(text).name if text.startswith(("/", "~", ".")) else text


def _revision(options: Mapping[str, Any]) -> str:
    parts = [options.get("revision"), options.get("pretrained"), options.get("weights")]
    told = [_place(part) for part in parts if part not in (None, False, True, "")]
    return ", ".join(told) or ("of its name" if options.get("pretrained") is True else "-")


def _cached(name: str, revision: Any) -> Path | None:
    """Return the card of a repository on the Hub, if this machine has it; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repo = name.removeprefix(HUB_PREFIX).partition("@")[0]
    if "/" not in repo:
        return None
    try:
        found = try_to_load_from_cache(repo, "README.md", revision=str(revision) if revision else None)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
