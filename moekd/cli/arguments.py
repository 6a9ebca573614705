"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="Path of a YAML file, or name of a shipped config (`moekd list configs`)."),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes of the config: `router.selection.k=2 stages.distill.epochs=5`."
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run (`runs/quickstart`).")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
