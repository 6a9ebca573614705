"""`moekd benchmark`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .arguments import OverridesArgument, QuietOption

CMKD = "cmkd"
#: Exit code after Ctrl-C.
INTERRUPTED = 130


def benchmark(
    suite: Annotated[str, typer.Argument(help="Name of the suite: `cmkd` or `mst_distill`.")],
    overrides: OverridesArgument = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, default the suite's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; each uses one thread.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="mst_distill: run only cells whose name has this part.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="cmkd: a data set with a direction, such as `mfeat_fou`; default several.")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option(help="cmkd: a method, such as `kd`; default all.")] = None,
    tuning: Annotated[
        bool, typer.Option("--tuning/--no-tuning", help="cmkd: choose weights and teachers by validation first.")
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option(help="cmkd: CSV file with published numbers (cell, method, value).", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="cmkd: another suite file, which may extend ours.", show_default=False)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the single runs; finished ones are not run again.")] = Path(
        "runs/benchmark"
    ),
    output: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("results"),
    summary_only: Annotated[bool, typer.Option(help="Only write the tables of what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="cmkd: only check all runs and count them.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Run a benchmark suite over seeds and write its table (CSV and Markdown) with intervals and paired differences.

    A finished run is never run again, so the same command goes on where it was stopped.
    Example: `moekd benchmark cmkd --data mfeat_fou --data mfeat_kar --seeds 5 --jobs 2`.
    """
    if suite == CMKD:
        options = {"--data": data, "--methods": methods, "--seeds": [seeds] if seeds else None}
        given = [word for key, values in options.items() for value in values or () for word in (key, str(value))]
        given += ["--no-tuning"] * (not tuning) + (["--file", str(file)] if file else [])
        command = shlex.join(["moekd", "benchmark", suite, *(overrides or ()), *given])
        from ..benchmarks import Request, load_suite

        request = Request(load_suite(file), data or (), methods or (), seeds, overrides or (), tuning)
        _cmkd(request, runs / CMKD, output, jobs, command, against, summary_only, dry_run, quiet)
        return
    from ..benchmarks import read_results, run_suite, write_summary

    failed = {} if summary_only else run_suite(suite, runs, seeds, jobs, only or (), overrides or (), quiet)
    command = " ".join(["moekd benchmark", suite, *(overrides or ()), *([f"--seeds {seeds}"] if seeds else [])])
    typer.echo(f"table: {write_summary(read_results(suite, runs), output, suite, command)}")
    _tell(failed)


def _cmkd(
    request: object,
    runs: Path,
    output: Path,
    jobs: int,
    command: str,
    against: Path | None,
    summary_only: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    from ..benchmarks import Request, count_runs, read_cmkd, read_published, run_cmkd, write_cmkd

    assert isinstance(request, Request)
    published = read_published(against, request) if against else []
    if dry_run:
        for row in count_runs(request, runs):
            typer.echo(", ".join(f"{key} {value}" for key, value in row.items()))
        return
    failures: dict[str, str] = {}
    if not summary_only:
        try:
            failures = run_cmkd(request, runs, jobs, command, quiet).failures
        except KeyboardInterrupt:
            typer.echo("interrupted; continue with the same command", err=True)
            sys.exit(INTERRUPTED)
    for written in write_cmkd(read_cmkd(request, runs), request, output, command, published).values():
        typer.echo(written)
    _tell(failures)


def _tell(failed: dict[str, str]) -> None:
    """Print why runs failed and end with an exit code."""
    for name, error in failed.items():
        typer.echo(f"{name} failed:\n{error}", err=True)
    if failed:
        sys.exit(1)
