"""`moekd ablate`."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .arguments import OverridesArgument, QuietOption, RunsOption

if TYPE_CHECKING:
    from ..ablation import Ablation

#: Exit code after Ctrl-C, and lines of a failure that are shown.
INTERRUPTED, LONGEST = 130, 8

AblationArgument = Annotated[
    str,
    typer.Argument(
        metavar="ABLATION",
        help="Path of an ablation file, or name of a shipped ablation: `routers`.",
        show_default=False,
    ),
]


BaseOption = Annotated[
    str | None, typer.Option(help="Another base config than the file's: a shipped one or a file.", show_default=False)
]
BaselineOption = Annotated[
    str | None, typer.Option(help="Arm that the report compares with, default the file's.", show_default=False)
]
MetricOption = Annotated[
    str | None, typer.Option(help="What the report compares, default the file's metric.", show_default=False)
]
ShardOption = Annotated[
    str | None, typer.Option(metavar="I/N", help="Only the I-th of N parts, for N machines.", show_default=False)
]
BackendOption = Annotated[
    str, typer.Option(metavar="local|ray", help="Where runs go: processes, or Ray (extra `moekd[ray]`).")
]
OutputOption = Annotated[
    Path | None, typer.Option(help="Folder of tables, figures and page, default the ablation's.", show_default=False)
]


def ablate(
    config: AblationArgument,
    overrides: OverridesArgument = None,
    base: BaseOption = None,
    baseline: BaselineOption = None,
    metric: MetricOption = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, default the file's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; each uses one thread.")] = 1,
    shard: ShardOption = None,
    backend: BackendOption = "local",
    runs: RunsOption = Path("runs"),
    output: OutputOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the arms and their expected cost.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only write the report of what is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Compare arms over seeds: gates, selections, balance losses, teachers, stages, or anything else a config has.

    Arms share the stages that they agree in; a finished run is never run again, so the same command goes on where it
    was stopped. Examples: `moekd ablate routers --jobs 2`, `moekd ablate my.yaml --seeds 3 data.labels=400`.
    """
    from ..ablation import load_ablation, parse_shard
    from ..ablation.report import ablation_report
    from ..ablation.runner import check_backend
    from ..ablation.spec import check_metric

    part = parse_shard(shard) if shard else None
    check_backend(backend)
    ablation = load_ablation(config, overrides or (), seeds, base)
    if baseline is not None:
        ablation = replace(ablation, baseline=baseline)
    if metric is not None:
        ablation = replace(ablation, metric=check_metric(metric))
    folder = runs / ablation.name
    try:
        if dry_run:
            from ..ablation.cost import print_plan

            logging.getLogger("moekd").setLevel(logging.WARNING)
            print_plan(ablation, folder, jobs)
            return
        failed = False
        if not report_only:
            options = {"--base": base, "--baseline": baseline, "--metric": metric, "--seeds": seeds}
            given = [word for key, value in options.items() if value is not None for word in (key, str(value))]
            words = ["moekd", "ablate", config, *(overrides or ()), *given]
            failed = _run(ablation, jobs, part, backend, runs, shlex.join(words), quiet)
        for file in ablation_report(folder, output, baseline, metric).values():
            typer.echo(file)
    except KeyboardInterrupt:
        typer.echo("interrupted; continue with the same command", err=True)
        sys.exit(INTERRUPTED)
    if failed:
        sys.exit(1)


def _run(
    ablation: Ablation,
    jobs: int,
    shard: tuple[int, int] | None,
    backend: str,
    runs: Path,
    command: str,
    quiet: bool,
) -> bool:
    """Run what is left and tell what failed; return whether anything did."""
    from ..ablation import ablate as run_ablation

    place: Literal["local", "ray"] = "ray" if backend == "ray" else "local"
    outcome = run_ablation(ablation, jobs=jobs, shard=shard, backend=place, runs=runs, command=command, quiet=quiet)
    if outcome.left:
        typer.echo(f"{outcome.left} runs belong to other shards")
    for key, reason in outcome.failures.items():
        if key in outcome.dependent:
            continue
        lines = reason.strip().splitlines() or ["no reason given"]
        shown = lines if len(lines) <= LONGEST else [lines[0]]
        typer.echo("\n  ".join([f"{outcome.names[key]} failed:", *shown]), err=True)
        typer.echo(f"  log: {outcome.folder / 'logs' / key}.log", err=True)
    if outcome.dependent:
        typer.echo(f"{len(outcome.dependent)} runs could not start, since shared stages failed", err=True)
    if outcome.failures:
        typer.echo("the same command tries failed runs again", err=True)
    return bool(outcome.failures)
