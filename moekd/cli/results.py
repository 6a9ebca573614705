"""`moekd evaluate`, `predict`, `report` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import OverridesArgument, RunArgument


def evaluate(
    run: RunArgument,
    overrides: OverridesArgument = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to test on, default those of the config.")] = None,
) -> None:
    """Measure the student of RUN again, also on other splits or changed data (`data.preset=easy`)."""
    from ..evaluate_run import evaluate_run

    results = evaluate_run(run, overrides or (), split or ())
    table = Table("split", "accuracy", "balanced accuracy", "weighted F1", "loss", "samples")
    for name, m in results.items():
        numbers = [f"{100 * m[key]:.2f}" for key in ("accuracy", "balanced_accuracy", "weighted_f1")]
        table.add_row(name, *numbers, f"{m['loss']:.4f}", str(m["n"]))
    Console().print(table)


def predict(
    run: RunArgument,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Pictures, or .npy arrays of the field's shape.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each input.")] = 5,
) -> None:
    """Classify files with the student of RUN (or an exported student's folder)."""
    from ..predict import predict as run_predict

    for prediction in run_predict(run, inputs, top):
        typer.echo(prediction.path)
        for name, probability in prediction.classes:
            typer.echo(f"  {100 * probability:5.1f} %  {name}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run, or several to compare.")],
    output: Annotated[Path, typer.Option(help="Page that compares several runs.")] = Path("comparison.html"),
) -> None:
    """Write the report page of a run again, or one page that compares several."""
    from ..report import compare_report, write_report

    page = write_report(runs[0]) if len(runs) == 1 else compare_report(runs, output)
    typer.echo(f"report: {page}")


def export(
    run: RunArgument,
    format: Annotated[str, typer.Option("--format", help="`safetensors` or `torch_export`.")] = "safetensors",
    output: Annotated[Path | None, typer.Option(help="Where to write, default inside of the run.")] = None,
) -> None:
    """Write the student of RUN for use elsewhere."""
    from ..export import export as run_export

    typer.echo(f"exported: {run_export(run, format, output)}")
