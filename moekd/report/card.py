"""The model card of a run's student: Markdown with YAML front matter."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import yaml

from .run import Run, mapping, number, read_run
from .summary import summary
from .table import count, decimal, percent, results_table

PROGRAM = "student.pt2"
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

student = torch.export.load("RUN/student/student.pt2").module()
```

`torch.export.load` can run code that a forged file contains: load only files whose origin you trust.
"""
_LIMITS = """\
The numbers above hold for data like the test splits named there; nothing is known beyond them. They come from one run
with one seed. The student was trained to imitate its teachers and can repeat their mistakes.
"""


def model_card(run: Path, *, use: bool = True) -> str:
    """Return the text of the student's README.md.

    All text from config and results is escaped: it can neither form links nor HTML. A licence is named only if the
    results name that of the data.

    Args:
        run: the run's folder.
        use: add the section on how to load the student.

    Raises:
        DataError: `run` is not a run folder.
    """
    data = read_run(run)
    parts = [_front_matter(data), f"# {escape(data.title)}\n", _about(data), _results(data)]
    if use:
        parts.append(_use(data))
    parts += [_recipe(data), f"## Limits\n\n{_LIMITS}"]
    return "\n".join(part for part in parts if part)


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
    values["metrics"] = ["accuracy", "f1", *(["mean_iou"] if any(row.dense for row in rows) else [])]
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
    dense = any(row.dense for row in rows)
    header = ["split", "model", "role", *(["mIoU"] if dense else []), "accuracy", "balanced accuracy", "F1", "loss"]
    header.append("parameters")
    lines = ["## Results", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = [escape(row.split), escape(row.model), row.role, *([percent(row.miou)] if dense else [])]
        cells += [percent(value) for value in (row.accuracy, row.balanced_accuracy, row.weighted_f1)]
        cells += [decimal(row.loss), count(row.parameters)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Loss is cross-entropy in nats."]) + "\n"


def _use(run: Run) -> str:
    program = [_PROGRAM] if (run.path / "student" / PROGRAM).is_file() else []
    return "\n".join(["## Use\n", _LOAD, *program])


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
