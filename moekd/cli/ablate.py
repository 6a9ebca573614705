"""`moekd ablate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .arguments import OverridesArgument, QuietOption, RunsOption

AblationArgument = Annotated[
    str, typer.Argument(help="Path of an ablation file, or name of a shipped ablation: `routers`.", show_default=False)
]


def ablate(
    config: AblationArgument,
    overrides: OverridesArgument = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, default the file's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; each uses one thread.")] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N parts, for N machines.", show_default=False)
    ] = None,
    backend: Annotated[
        str, typer.Option(metavar="local|ray", help="Where runs go: processes, or Ray (extra `moekd[ray]`).")
    ] = "local",
    runs: RunsOption = Path("runs"),
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of tables, figures and page, default the ablation's.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the arms and what they are expected to cost.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only write the report of what is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Compare arms over seeds: gates, selections, balance losses, teachers, stages, or anything else a config has.

    Arms share the stages that they agree in; a finished run is never run again, so the same command goes on where it
    was stopped. Examples: `moekd ablate routers --jobs 2`, `moekd ablate my.yaml --seeds 3 data.labels=400`.
    """
    from ..ablation import ablate as run_ablation
    from ..ablation import load_ablation, parse_shard
    from ..ablation.report import ablation_report

    part = parse_shard(shard) if shard else None
    ablation = load_ablation(config, overrides or (), seeds)
    if dry_run:
        from ..ablation.cost import print_plan

        print_plan(ablation, jobs)
        return
    failures = {}
    if not report_only:
        command = shlex.join(
            ["moekd", "ablate", config, *(overrides or ()), *(["--seeds", str(seeds)] if seeds else [])]
        )
        place = "ray" if backend == "ray" else "local"
        known: dict[str, Literal["local", "ray"]] = {"local": "local", "ray": "ray"}
        if backend not in known:
            raise typer.BadParameter(f"'{backend}' is neither 'local' nor 'ray'")
        outcome = run_ablation(
            ablation, jobs=jobs, shard=part, backend=known[place], runs=runs, command=command, quiet=quiet
        )
        failures = dict(outcome.failures)
        if outcome.left:
            typer.echo(f"{outcome.left} runs belong to other shards")
    files = ablation_report(runs / ablation.name, output)
    for file in files.values():
        typer.echo(file)
    for key, reason in failures.items():
        typer.echo(f"{key} failed: {reason}", err=True)
    if failures:
        sys.exit(1)
