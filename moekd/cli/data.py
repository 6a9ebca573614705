"""`moekd data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(help="Prepare data sets.", no_args_is_help=True)


@data.callback()
def _data() -> None:
    """Prepare data sets."""


@data.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="Data set, such as `avmnist` (`moekd list datasets`).")],
    source: Annotated[Path, typer.Option(help="Folder with the files as their owners distribute them.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write, default where the data set looks for it.")
    ] = None,
) -> None:
    """Turn a data set's original files into the form that training reads (memory-mapped arrays, checksums)."""
    from ..data import prepare as run_prepare

    typer.echo(f"prepared: {run_prepare(name, source, output)}")
