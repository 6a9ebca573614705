"""The report of an ablation: a table in the terminal, CSV, Markdown, figures and one HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..atomic import write_text
from .ablation_blocks import Ablation, Block, arrange
from .ablation_figures import interval_plot
from .ablation_routing import shares_over_training, use_by_class
from .ablation_rows import Row, ordered, read_ablation_csv, rows_to_csv
from .ablation_scatter import gain_against_agreement
from .ablation_tables import excluded_table, matrix, other_measures, result_table, routing_table, without_empty
from .ablation_text import markdown, print_tables, reading
from .figures import Drawing, save, styled
from .html import flatten, render
from .table import span


def write_ablation_report(rows: Sequence[Row], about: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write `<name>.csv`, `<name>.md`, `figures/*.png` and `report.html`; return the first two and the page by kind.

    Args:
        rows: one for every setting, split, arm and seed. Keys: `setting`, `split`, `arm`, `title`, `seed`, `status`
            (done, failed, missing or inapplicable) with its `reason`; the student's `accuracy`, `balanced_accuracy`,
            `weighted_f1` (shares) and `loss` (nats); `seconds_per_step`, `teacher_forwards_per_step`, `seconds`,
            `steps`, `peak_memory_mb`; `routing` as in results.json, or None; `history`: [{epoch, shares, entropy}];
            `class_names`; `teachers`: {name: accuracy}. What is absent is left out of the report.
        about: `name`, `title`, `baseline` (an arm), `settings`, `arms`, `seeds`, `command`, `metric`, `environment`,
            `date`.
        folder: where the files go; it is made.

    Returns:
        The paths of the files by their kind: csv, md, html.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ablation = arrange(rows, about)
    lines = ordered(rows, ablation.about.settings, about.get("arms") or ())
    name = re.sub(r"[^\w.-]+", "-", ablation.about.name).strip(".-") or "ablation"
    with styled():
        settings = [_setting(ablation, ablation.of(block.setting)) for block in ablation.main]
    save(_distinct([drawing for setting in settings for drawing in setting["drawings"]]), folder / "figures")
    return {
        "csv": write_text(folder / f"{name}.csv", rows_to_csv(lines, ablation.about.metric.key)),
        "md": write_text(folder / f"{name}.md", markdown(ablation)),
        "html": write_text(folder / "report.html", _page(ablation, settings)),
    }


def print_ablation(rows: Sequence[Row], about: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of an ablation to the terminal; see `write_ablation_report`."""
    print_tables(arrange(rows, about), console or Console())


def summary(ablation: Ablation) -> list[str]:
    """Say for each setting which arm is best and how sure that is, one sentence a setting."""
    metric, sentences = ablation.about.metric, []
    for block in ablation.main:
        best = next((arm for arm in block.arms if arm is not block.oracle and not arm.name.startswith("oracle")), None)
        if best is None:
            continue
        words = f"{block.setting}: best on {block.split} is {best.title} with {metric.value(best.mean)}"
        if best is block.baseline:
            words += ", the baseline itself"
        elif best.difference is not None:
            interval = span(best.difference.low, best.difference.high, metric.bound)
            words += f", {metric.difference(best.difference.mean)} {metric.unit} against the baseline"
            words += f" (95% interval {interval})" if interval != "-" else ""
        tested = [arm.difference for arm in block.arms if arm.difference and arm.difference.p is not None]
        better = sum(found.beyond_chance and metric.gain(found.mean) > 0 for found in tested)
        worse = sum(found.beyond_chance and metric.gain(found.mean) < 0 for found in tested)
        if tested:
            words += f". Of {len(tested)} arms, {better} are better and {worse} worse than the baseline beyond chance."
        else:
            words += ". Too few shared seeds to test any difference."
        sentences.append(words)
    return sentences or ["No run has finished, so there is nothing to compare."]


def _setting(ablation: Ablation, blocks: Sequence[Block]) -> dict[str, Any]:
    """Return what the page shows of one setting."""
    main, metric = blocks[0], ablation.about.metric
    splits = [
        {
            "name": block.split,
            "table": result_table(block, ablation),
            "measures": without_empty(other_measures(block)),
            "intervals": interval_plot(block, metric),
        }
        for block in blocks
    ]
    gain = gain_against_agreement(main, metric)
    figures = [*shares_over_training(main), *use_by_class(main)]
    intervals: list[Any] = [split["intervals"] for split in splits]
    drawings: list[Drawing] = [*intervals, *gain, *figures]
    return {
        "name": main.setting,
        "splits": splits,
        "routing": without_empty(routing_table(main)),
        "gain": gain,
        "figures": figures,
        "drawings": drawings,
    }


def _distinct(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Number the figures whose file names are alike."""
    slugs = [drawing.slug for drawing in drawings]
    earlier = [slugs[:index].count(name) for index, name in enumerate(slugs)]
    return [
        replace(drawing, slug=f"{drawing.slug}-{n + 1}") if n else drawing
        for drawing, n in zip(drawings, earlier, strict=True)
    ]


def _page(ablation: Ablation, settings: Sequence[Mapping[str, Any]]) -> str:
    about = ablation.about
    excluded = excluded_table(ablation)
    settings = [{"id": f"setting-{index}", **setting} for index, setting in enumerate(settings, 1)]
    matrices = [matrix(ablation, split) for split in ablation.splits] if len(settings) > 1 else []
    contents = [("overview", "All settings")] if matrices else []
    contents += [(setting["id"], setting["name"]) for setting in settings]
    contents += [("excluded", "Not in the comparison")] if excluded else []
    contents += [("reading", "How to read this page"), ("environment", "Environment")]
    return render(
        "ablation.html.jinja",
        title=about.title,
        facts=_facts(ablation),
        summary=summary(ablation),
        command=about.command,
        notes=ablation.notes,
        contents=contents,
        matrices=matrices,
        settings=settings,
        excluded=excluded,
        reading=reading(ablation),
        environment=list(flatten(about.environment)),
    )


def _facts(ablation: Ablation) -> list[tuple[str, str]]:
    about = ablation.about
    arms = {arm.name for block in ablation.blocks for arm in block.arms}
    facts = [("ablation", about.name), ("baseline", about.baseline), ("measure", about.metric.label)]
    facts += [("arms", str(len(arms))), ("settings", str(len(about.settings)))]
    facts += [("seeds", ", ".join(map(str, about.seeds))), ("date", about.date)]
    return [(label, value) for label, value in facts if value]


__all__ = ["print_ablation", "read_ablation_csv", "summary", "write_ablation_report"]
