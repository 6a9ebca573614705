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
    console = _console()
    console.print("data: " + ", ".join(f"{name} {rows:,}" for name, rows in report.data.items()))
    models = Table("model", "network", "inputs", "parameters", "taps", "accuracy on validation data")
    for row in report.models:
        taps = "\n".join(f"{tap} {shape}" for tap, shape in row.get("taps", {}).items())
        accuracy = "trained in this run" if row.get("trained") else _percent(row.get("accuracy"))
        inputs = ", ".join(row.get("inputs", []))
        models.add_row(row["name"], row["kind"], inputs, f"{row['parameters']:,}", taps, accuracy)
    console.print(models)
    stages = Table("stage", "trains", "trainable", "steps", "teacher forwards a step", "training state")
    for row in report.stages:
        forwards = "cached" if row["teachers"] == "cached" else str(row["teacher_forwards"])
        name, trains = f"{row['phase']}/{row['stage']}", ", ".join(row["trains"])
        stages.add_row(name, trains, f"{row['trainable']:,}", f"{row['steps']:,}", forwards, f"{row['state_mb']} MB")
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
    _console().print(table)


def _console() -> Console:
    """Return a console that is wide enough for the tables when the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
