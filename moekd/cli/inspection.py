"""`moekd check` and `moekd list`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import ConfigArgument, OverridesArgument


def check(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    meta: Annotated[
        bool,
        typer.Option(
            "--meta", help="Without data and weights: models on PyTorch's meta device, made-up rows, no downloads."
        ),
    ] = False,
) -> None:
    """Dry run: mistakes in CONFIG, shapes, parameters, teacher forwards a step, how good ready teachers are."""
    if meta:
        _check_on_meta(config, overrides)
        return
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


def _check_on_meta(config: str, overrides: list[str] | None) -> None:
    from ..outline import outline
    from ..recipe import Recipe

    report = outline(Recipe.load(config, overrides or ()))
    console = _console()
    models = Table("model", "network", "inputs", "parameters", "embeddings", "taps")
    for row in report.models:
        taps = "\n".join(f"{tap} {shape}" for tap, shape in row["taps"].items())
        widths = "\n".join(f"{modality} {width}" for modality, width in row["embeddings"].items())
        models.add_row(row["name"], row["kind"], ", ".join(row["inputs"]), f"{row['parameters']:,}", widths, taps)
    console.print(models)
    stages = Table("stage", "trains", "trainable", "training state", "losses")
    for row in report.stages:
        name, trains, size = f"{row['phase']}/{row['stage']}", ", ".join(row["trains"]), f"{row['state_mb']:,} MB"
        stages.add_row(name, trains, f"{row['trainable']:,}", size, "\n".join(row["losses"]))
    console.print(stages)
    console.print("no mistake found; data and weights were not looked at")


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
