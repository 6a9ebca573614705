"""`moekd convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Pickled weights: a `.pt`, `.pth`, `.bin` file.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new `.safetensors` file.")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a pickle, which can run code: only from a source you trust.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="Where the weights are in a nested file, such as `state_dict`.")
    ] = None,
) -> None:
    """Turn pickled weights of a teacher into safetensors, which no config can do by itself."""
    from ..networks.pickled import convert_weights

    count = convert_weights(source, target, allow_pickle=allow_pickle, key=key)
    typer.echo(f"converted: {target} ({count} tensors)")
