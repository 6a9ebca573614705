"""`moekd check` and `moekd list`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import ConfigArgument, OverridesArgument


def check(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Dry run: mistakes in CONFIG, shapes, parameters, teacher forwards a step, how good ready teachers are."""
    from ..check import check as run_check
    from ..recipe import Recipe

    report = run_check(Recipe.load(config, overrides or ()))
    console = Console()
    console.print("data: " + ", ".join(f"{name} {rows:,}" for name, rows in report.data.items()))
    models = Table("model", "network", "inputs", "parameters", "taps", "validation accuracy")
    for row in report.models:
        taps = ", ".join(f"{tap} {shape}" for tap, shape in row.get("taps", {}).items())
        accuracy = "trained in this run" if row.get("trained") else _percent(row.get("accuracy"))
        inputs = ", ".join(row.get("inputs", []))
        models.add_row(row["name"], row["kind"], inputs, f"{row['parameters']:,}", taps, accuracy)
    console.print(models)
    stages = Table("stage", "trains", "trainable", "steps", "teacher forwards a step", "teachers", "training state")
    for row in report.stages:
        stages.add_row(
            f"{row['phase']}/{row['stage']}",
            ", ".join(row["trains"]),
            f"{row['trainable']:,}",
            f"{row['steps']:,}",
            str(row["teacher_forwards"]),
            row["teachers"],
            f"{row['state_mb']} MB",
        )
    console.print(stages)
    console.print("no mistake found")


def list_kinds(
    what: Annotated[
        str, typer.Argument(help="configs, methods, networks, objectives, gates, masks, datasets, ...")
    ] = "",
) -> None:
    """List what a config can name: components with their first line, shipped configs, published methods."""
    from ..listing import listing

    rows = listing(what)
    table = Table("name", "what it is")
    for name, summary in rows:
        table.add_row(name, summary)
    Console().print(table)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
