"""The model card of a run's student: Markdown with YAML front matter."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from .card_parts import UNKNOWN, embedding_table, model_index, seeds_table, teachers
from .run import Run, mapping, number, read_run
from .summary import summary
from .table import count, decimal, percent, results_table

PROGRAMS = ("student", "image_encoder", "text_encoder", "audio_encoder")
#: Licences by the names that the Hub has for them; any other is told as "other" with its name.
LICENCES = frozenset(
    [
        "apache-2.0",
        "mit",
        "isc",
        "bsd-2-clause",
        "bsd-3-clause",
        "mpl-2.0",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "unlicense",
        "openrail",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nc-nd-4.0",
    ]
)
_SPECIAL = re.compile(r"([\\`*{}\[\]!|~^$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_LINK = re.compile(r"(?i):(?=//)|@|\bwww(?=\.)")
_LOAD = """\
With moekd (weights are in `model.safetensors`, which can't hold code):

```python
import moekd

student = moekd.load_student("RUN")  # the run's folder; a plain torch.nn.Module in eval mode
```
"""
_PROGRAM = """\
With PyTorch alone:

```python
import torch

{lines}
```

`torch.export.load` can run code that a forged file contains: load only files whose origin you trust.
"""
_LIMITS = """\
The numbers above hold for data like the test splits named there; nothing is known beyond them. {seeds}
The student was trained to imitate its teachers and can repeat their mistakes{terms}.
"""
_FORMATS = """\
For other libraries:

```
moekd export RUN --format onnx           # onnxruntime
moekd export RUN --format torch_export   # plain PyTorch
moekd export RUN --format open_clip      # open_clip, for students that it can express
moekd export RUN --format transformers   # AutoModel.from_pretrained, likewise
```
"""


def model_card(run: Path, *, use: bool = True, seeds: Sequence[Path] = ()) -> str:
    """Return the text of the student's README.md.

    All text from config and results is escaped: it can neither form links nor HTML. Licences are named only where
    results, config or the teachers' own cards name them.

    Args:
        run: the run's folder.
        use: add the section on how to load the student.
        seeds: runs of the same recipe with other seeds; the card then tells means and intervals.

    Raises:
        DataError: `run` or one of `seeds` is not a run folder, is unfinished, or has another recipe or the same seed.
    """
    data = read_run(run)
    runs = [data, *(_same_recipe(data, read_run(other)) for other in seeds)]
    if repeated := [other.path for i, other in enumerate(runs) if _seed(other) in map(_seed, runs[:i])]:
        raise DataError(f"{repeated[0]} has the seed of another run; give runs with different seeds")
    parts = [_front_matter(data), f"# {escape(data.title)}\n", _about(data), _results(data)]
    if len(runs) > 1:
        parts.append("\n".join(seeds_table(runs, escape)) + "\n")
    parts.append(_teachers(data))
    if use:
        parts.append(_use(data))
    parts += [_recipe(data), f"## Limits\n\n{_limits(data, len(runs))}"]
    return "\n".join(part for part in parts if part)


def _same_recipe(first: Run, other: Run) -> Run:
    """Return `other` if it differs from `first` in its seed alone.

    Raises:
        DataError: it does not.
    """
    for run in (first, other):
        if not mapping(run.results.get("test")):
            raise DataError(f"{run.path} has no test results; give finished runs for the intervals")
    own, its = ({k: v for k, v in run.config.items() if k not in ("seed", "name", "title")} for run in (first, other))
    if changed := sorted(key for key in {*own, *its} if own.get(key) != its.get(key)):
        raise DataError(f"{other.path} is no run of the same recipe: {', '.join(changed)} differ")
    return other


def _seed(run: Run) -> Any:
    return run.results.get("seed", run.config.get("seed"))


def escape(text: Any) -> str:
    """Return text as one line that Markdown and HTML show as it is: no markup, no links, no automatic links.

    Bare addresses are broken by an empty comment; character references would not help, since some renderers look for
    addresses after they have resolved them.
    """
    line = _SPECIAL.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
    return _LINK.sub(lambda found: f"{found[0]}<!-- -->", line)


def _front_matter(run: Run) -> str:
    values: dict[str, Any] = {"tags": ["moekd", "knowledge-distillation"], "library_name": "pytorch"}
    if run.dataset:
        values["datasets"] = [run.dataset]
    rows = results_table(run.results, run.teachers)
    if any(not math.isnan(row.headline) for row in rows):
        values["metrics"] = ["accuracy", "f1", *(["mean_iou"] if any(row.dense for row in rows) else [])]
    licence = mapping(run.config.get("student")).get("licence")
    if isinstance(licence, str) and licence:
        name = licence.strip().lower()
        values |= {"license": name} if name in LICENCES else {"license": "other", "license_name": licence}
    if index := model_index(run):
        values["model-index"] = index
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=False)}---\n"


def _about(run: Run) -> str:
    student = {**mapping(run.config.get("student")), **mapping(run.results.get("student"))}
    inputs = student.get("inputs")
    lines = [escape(summary(run, results_table(run.results, run.teachers))), ""]
    facts = [
        ("network", student.get("kind")),
        ("parameters", count(number(student["parameters"])) if "parameters" in student else None),
        ("reads", ", ".join(map(str, inputs)) if isinstance(inputs, list) else inputs),
        ("classes", _classes(run)),
        ("trained on", run.dataset),
        ("licence of the data", run.results.get("dataset_licence")),
        ("licence of the student", mapping(run.config.get("student")).get("licence")),
        ("teachers (not part of the student)", ", ".join(run.teachers)),
        ("seed", run.results.get("seed")),
    ]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {key} | {escape(value)} |" for key, value in facts if value not in (None, "")]
    return "\n".join([*lines, *_fields(run)]) + "\n"


def _fields(run: Run) -> list[str]:
    """How each input has to be prepared, from the student's own config.json if it is there."""
    try:
        document = json.loads((run.path / "student" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    fields = mapping(mapping(document).get("fields"))
    lines = ["", "Inputs, in call order, each with the batch as first axis:", ""] if fields else []
    for name in mapping(document).get("inputs") or fields:
        parts = "; ".join(
            f"{key} {value}" for key, value in mapping(fields.get(name)).items() if value not in (None, "", [])
        )
        lines.append(f"- {escape(name)}: {escape(parts)}")
    return lines


def _classes(run: Run, limit: int = 20) -> str:
    names = run.results.get("class_names")
    if not isinstance(names, list):
        return ""
    shown = ", ".join(str(name) for name in names[:limit])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > limit else "")


def _results(run: Run) -> str:
    rows = results_table(run.results, run.teachers)
    if not rows:
        return "## Results\n\nThe run has no test results yet.\n"
    rows = [row for row in rows if not math.isnan(row.headline)]
    if not rows:
        return "\n".join(["## Results", *embedding_table(run, escape)]) + "\n"
    dense = any(row.dense for row in rows)
    header = ["split", "model", "role", *(["mIoU"] if dense else []), "accuracy", "balanced accuracy", "F1", "loss"]
    header.append("parameters")
    lines = ["## Results", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = [escape(row.split), escape(row.model), row.role, *([percent(row.miou)] if dense else [])]
        cells += [percent(value) for value in (row.accuracy, row.balanced_accuracy, row.weighted_f1)]
        cells += [decimal(row.loss), count(row.parameters)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Loss is cross-entropy in nats."]
    return "\n".join([*lines, *embedding_table(run, escape)]) + "\n"


def _teachers(run: Run) -> str:
    rows = teachers(run)
    if not rows:
        return ""
    head = list(rows[0])
    lines = ["## Teachers", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(escape(value) for value in row.values())} |" for row in rows]
    return "\n".join(lines) + "\n"


def _limits(run: Run, runs: int) -> str:
    seeds = "They come from one run\nwith one seed." if runs == 1 else f"They come from {runs} seeds\nof one recipe."
    unknown = any(row["licence"] == UNKNOWN for row in teachers(run))
    terms = "; terms of the teachers' licences\nmay hold for it, and not all of them are stated here" if unknown else ""
    return _LIMITS.format(seeds=seeds, terms=terms)


def _use(run: Run) -> str:
    found = [name for name in PROGRAMS if (run.path / "student" / f"{name}.pt2").is_file()]
    lines = [f'{name} = torch.export.load("RUN/student/{name}.pt2").module()' for name in found]
    program = [_PROGRAM.format(lines="\n".join(lines))] if found else []
    return "\n".join(["## Use\n", _LOAD, *program, _FORMATS])


def _recipe(run: Run) -> str:
    stages = run.config.get("stages")
    if not isinstance(stages, list) or not stages:
        return ""
    lines = ["## Training", "", "| stage | trains | epochs | objectives |", "|---|---|---|---|"]
    for stage in map(mapping, stages):
        trains, length = stage.get("trains"), stage.get("epochs") or stage.get("steps") or ""
        names = [str(mapping(objective).get("kind", "")) for objective in stage.get("objectives") or []]
        trained = ", ".join(map(str, trains)) if isinstance(trains, list) else trains or ""
        cells = [stage.get("name", ""), trained, length, ", ".join(names)]
        lines.append(f"| {' | '.join(escape(cell) for cell in cells)} |")
    router = mapping(run.config.get("router"))
    if router:
        kinds = [
            f"{key} {mapping(router[key]).get('kind')}" for key in ("gate", "selection") if mapping(router.get(key))
        ]
        lines += ["", f"Router: {escape(', '.join(kinds))}."]
    return "\n".join([*lines, "", "The whole recipe is the run's config.yaml."]) + "\n"
