"""`moekd distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import ConfigArgument, OverridesArgument, QuietOption, RunsOption


def distill(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    name: Annotated[str | None, typer.Option(help="Name of the run, default the config's name.")] = None,
    runs: RunsOption = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|PATH", help="Continue the run from its newest valid checkpoint, or from PATH."),
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="Config key in which the resumed run may differ from its checkpoint.")
    ] = None,
    resume_relaxed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="random|metrics",
            help="What the resumed run may do without if it can't be restored: random states, records so far.",
        ),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Train the config's baselines too.")] = True,
    quiet: QuietOption = False,
) -> None:
    """Distil a student as CONFIG says; prints a table and where student and report lie.

    Examples: `moekd distill quickstart`, `moekd distill my.yaml seed=3 data.labels=400 --name few-labels`,
    `accelerate launch -m moekd distill my.yaml`.
    """
    from ..api import distill as run_distill
    from ..distributed import rank
    from ..report import print_table

    run = run_distill(
        config,
        overrides or (),
        name=name,
        runs=runs,
        resume=resume,
        override=override or (),
        resume_relaxed=resume_relaxed or (),
        baselines=baselines,
        quiet=quiet,
    )
    if rank() == 0:
        print_table(run.results)
        typer.echo(f"\nstudent: {run.student}\nreport:  {run.report}")
