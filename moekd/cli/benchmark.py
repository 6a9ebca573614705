"""`moekd benchmark`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .arguments import OverridesArgument, QuietOption

benchmark = typer.Typer(
    help="Run a benchmark suite over seeds and write its table, with intervals and paired differences. A finished run "
    "is never run again, so the same command goes on where it was stopped.",
    no_args_is_help=True,
)

SeedsOption = Annotated[int | None, typer.Option(min=1, help="Number of seeds, default the suite's.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Runs at a time; each uses one thread.")]
RunsOption = Annotated[Path, typer.Option(help="Folder of the single runs; finished ones are not run again.")]
OutputOption = Annotated[Path, typer.Option(help="Folder of the tables.")]
SummaryOption = Annotated[bool, typer.Option("--summary-only", help="Only write the tables of what is there.")]

RUNS, RESULTS = Path("runs/benchmark"), Path("results")
#: Exit code after Ctrl-C.
INTERRUPTED = 130


@benchmark.command("mst_distill")
def mst_distill(
    overrides: OverridesArgument = None,
    seeds: SeedsOption = None,
    jobs: JobsOption = 1,
    only: Annotated[list[str] | None, typer.Option(help="Run only cells whose name has this part.")] = None,
    runs: RunsOption = RUNS,
    output: OutputOption = RESULTS,
    summary_only: SummaryOption = False,
    quiet: QuietOption = False,
) -> None:
    """MST-Distill, its parts and its parity options on emoji and AV-MNIST, with all labels and with few."""
    from ..benchmarks import MST_DISTILL, read_results, run_suite, write_summary

    failed = {} if summary_only else run_suite(MST_DISTILL, runs, seeds, jobs, only or (), overrides or (), quiet)
    command = _command("mst_distill", overrides, seeds=[seeds] if seeds else ())
    typer.echo(f"table: {write_summary(read_results(MST_DISTILL, runs), output, 'mst_distill', command)}")
    _tell(failed)


@benchmark.command("methods")
def methods(
    overrides: OverridesArgument = None,
    only: Annotated[list[str] | None, typer.Option(help="A method, such as `promptkd`; default all.")] = None,
    seeds: SeedsOption = None,
    jobs: JobsOption = 1,
    runs: RunsOption = RUNS,
    output: OutputOption = RESULTS,
    summary_only: SummaryOption = False,
    quiet: QuietOption = False,
) -> None:
    """Published methods against the baseline that each claims to beat, and against the student alone.

    Example: `moekd benchmark methods --only promptkd --seeds 5 --jobs 2`.
    """
    from ..benchmarks import methods_suite, read_methods, run_suite, write_methods

    suite = methods_suite(only or ())
    failed = {} if summary_only else run_suite(suite, runs / "methods", seeds, jobs, (), overrides or (), quiet)
    command = _command("methods", overrides, only=only or (), seeds=[seeds] if seeds else ())
    typer.echo(f"table: {write_methods(read_methods(suite, runs / 'methods'), output, command)}")
    _tell(failed)


@benchmark.command("cmkd")
def cmkd(
    overrides: OverridesArgument = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A data set with a direction, such as `mfeat_fou`; default several.")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option(help="A method, such as `kd`; default all.")] = None,
    seeds: SeedsOption = None,
    jobs: JobsOption = 1,
    tuning: Annotated[
        bool, typer.Option("--tuning/--no-tuning", help="Choose weights and teachers by validation first.")
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option(help="CSV file with published numbers (cell, method, value).", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Another suite file, which may extend ours.", show_default=False)
    ] = None,
    runs: RunsOption = RUNS,
    output: OutputOption = RESULTS,
    summary_only: SummaryOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check all runs and count them.")] = False,
    quiet: QuietOption = False,
) -> None:
    """The cross-modal benchmark: distillers on data sets with a direction, all tuned alike.

    Example: `moekd benchmark cmkd --data mfeat_fou --data mfeat_kar --seeds 5 --jobs 2`.
    """
    from ..benchmarks import Request, count_runs, load_suite, read_cmkd, read_published, run_cmkd, write_cmkd

    request = Request(load_suite(file), data or (), methods or (), seeds, overrides or (), tuning)
    folder, published = runs / "cmkd", read_published(against, request) if against else []
    command = _command("cmkd", overrides, data=data or (), methods=methods or (), seeds=[seeds] if seeds else ())
    command += " --no-tuning" * (not tuning) + (f" --file {shlex.quote(str(file))}" if file else "")
    for what, cells in request.left_out().items():
        typer.echo(f"left out in {', '.join(cells)}: {what}", err=True)
    if dry_run:
        for row in count_runs(request, folder):
            typer.echo(", ".join(f"{key} {value}" for key, value in row.items()))
        return
    failures: dict[str, str] = {}
    if not summary_only:
        try:
            failures = run_cmkd(request, folder, jobs, command, quiet).failures
        except KeyboardInterrupt:
            typer.echo("interrupted; continue with the same command", err=True)
            sys.exit(INTERRUPTED)
    for written in write_cmkd(read_cmkd(request, folder), request, output, command, published).values():
        typer.echo(written)
    _tell(failures)


@benchmark.command("performance")
def performance(
    part: Annotated[
        list[str] | None, typer.Option(help="overhead, routing, stages, masks, cache or memory; default all.")
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu` (one thread, processor time) or `cuda`.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Of forwards: `no`, `bf16` or `fp16`.")] = "no",
    rounds: Annotated[int | None, typer.Option(min=2, help="Rounds of each arm; default by part.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds of small sizes, to try the command.")] = False,
    output: OutputOption = RESULTS,
) -> None:
    """What distillation costs: a step over one of the student alone, the stages of MST-Distill, caches, memory.

    Example: `moekd benchmark performance --part overhead`.
    """
    from ..benchmarks import run_performance

    typer.echo(f"table: {run_performance(part or (), device, precision, rounds, quick, output)}")


@benchmark.command("reliability")
def reliability(
    part: Annotated[list[str] | None, typer.Option(help="kills, saves, damage or cost; default all.")] = None,
    kills: Annotated[int, typer.Option(min=1, help="Kills of runs, and of saves.")] = 20,
    damages: Annotated[int, typer.Option(min=1, help="Damaged files.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the measurement of cost.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments and places.")] = 0,
    output: OutputOption = RESULTS,
) -> None:
    """Runs that are killed again and again, damaged files, and what the checks cost.

    Example: `moekd benchmark reliability --part damage --damages 1000`.
    """
    from ..benchmarks import run_reliability

    typer.echo(f"table: {run_reliability(part or (), kills, damages, rounds, seed, output)}")


def _command(suite: str, overrides: list[str] | None, **options: object) -> str:
    """Return the call, as it stands above the table that it made."""
    words = ["moekd", "benchmark", suite, *(overrides or ())]
    for name, values in options.items():
        assert isinstance(values, list | tuple)
        words += [word for value in values for word in (f"--{name}", str(value))]
    return shlex.join(words)


def _tell(failed: dict[str, str]) -> None:
    """Print why runs failed and end with an exit code."""
    for name, error in failed.items():
        typer.echo(f"{name} failed:\n{error}", err=True)
    if failed:
        sys.exit(1)
