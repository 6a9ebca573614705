"""`moekd benchmark`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .arguments import OverridesArgument, QuietOption


def benchmark(
    suite: Annotated[str, typer.Argument(help="Name of the suite: `mst_distill`.")],
    overrides: OverridesArgument = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, default the suite's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; each uses one thread.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Run only cells whose name has this part.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the single runs; finished ones are not run again.")] = Path(
        "runs/benchmark"
    ),
    output: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("results"),
    summary_only: Annotated[bool, typer.Option(help="Only write the tables of what is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Run a benchmark suite over seeds and write its table (CSV and Markdown) with intervals and paired differences."""
    from ..benchmarks import read_results, run_suite, write_summary

    failed = {} if summary_only else run_suite(suite, runs, seeds, jobs, only or (), overrides or (), quiet)
    command = " ".join(["moekd benchmark", suite, *(overrides or ()), *([f"--seeds {seeds}"] if seeds else [])])
    typer.echo(f"table: {write_summary(read_results(suite, runs), output, suite, command)}")
    for name, error in failed.items():
        typer.echo(f"{name} failed:\n{error}", err=True)
    if failed:
        sys.exit(1)
