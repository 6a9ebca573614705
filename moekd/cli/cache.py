"""`moekd cache`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import ConfigArgument, OverridesArgument, QuietOption

cache = typer.Typer(help="Keep what frozen teachers say, for all runs that need it.", no_args_is_help=True)

FolderOption = Annotated[Path | None, typer.Option("--folder", help="Folder of the signals, default the config's.")]
TargetArgument = Annotated[
    str, typer.Argument(metavar="FOLDER|CONFIG", help="A folder of stored signals, or a config whose folder it is.")
]


@cache.command("build")
def build(
    config: ConfigArgument, overrides: OverridesArgument = None, folder: FolderOption = None, quiet: QuietOption = False
) -> None:
    """Run the teachers of CONFIG once over its data, and keep what its stages read of them.

    A fill that was interrupted goes on where it was. Runs find the signals by themselves when they name the same
    folder (`cache.folder=FOLDER`), also on another machine.
    """
    from ..caching import build_caches
    from ..recipe import Recipe

    table = Table("stage", "kept", "MB", "seconds")
    for row in build_caches(Recipe.load(config, overrides or ()), folder, quiet):
        kept = row.signals or f"nothing: {row.reason}"
        table.add_row(row.stage, kept, f"{row.nbytes / 1e6:.1f}" if row.signals else "", f"{row.seconds:.1f}")
    _console().print(table)


@cache.command("info")
def info(target: TargetArgument, overrides: OverridesArgument = None) -> None:
    """List what is stored: signal, teacher, data, codec, size, and when it was used last."""
    from ..caching import inspect_folder

    table = Table("folder", "signal", "teacher", "split", "samples", "row", "codec", "MB", "state", "used")
    for found in inspect_folder(_folder(target, overrides)):
        if found.table is None:
            table.add_row(found.folder.name, *[""] * 7, "damaged", "")
            continue
        stored, about = found.table.identity, found.table.manifest
        views = f" x {found.table.views}" if found.table.views > 1 else ""
        missing = len(found.table.missing)
        days = (time.time() - found.table.last_used) / 86400
        table.add_row(
            found.folder.name,
            stored.signal,
            str(about["about"].get("teacher", "")),
            stored.split,
            f"{about['samples']:,}{views}",
            f"{list(found.table.like.shape)} {about['row']['dtype']}",
            stored.codec,
            f"{found.table.nbytes / 1e6:.1f}",
            "complete" if not missing else f"{missing} of {found.table.shards} shards missing",
            f"{days:.1f} days ago",
        )
    _console().print(table)


@cache.command("verify")
def verify(
    target: TargetArgument,
    overrides: OverridesArgument = None,
    rows: Annotated[int, typer.Option(min=0, help="CONFIG: samples on which the teachers run again.")] = 32,
) -> None:
    """Check the sha256 of every shard; with a CONFIG also run its teachers again on some samples and compare."""
    from ..caching import inspect_folder, recheck_caches
    from ..errors import DataError
    from ..recipe import Recipe

    folder = _folder(target, overrides)
    conditions = inspect_folder(folder, checksums=True)
    problems = [problem for condition in conditions for problem in condition.problems]
    if problems:
        raise DataError(
            "\n".join([*problems, "a run computes these shards again; 'moekd cache prune --damaged' clears up"])
        )
    typer.echo(f"{folder}: {len(conditions)} tables, all checksums right")
    if rows and not Path(target).is_dir():
        for what, difference in recheck_caches(Recipe.load(target, overrides or ()), folder, rows).items():
            typer.echo(f"{what}: differs from {rows} fresh samples by at most {difference:.1e}")


@cache.command("prune")
def prune(
    target: TargetArgument,
    overrides: OverridesArgument = None,
    days: Annotated[float | None, typer.Option(min=0, help="Delete what was not used for so many days.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Delete what is damaged or not complete.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Delete everything.")] = False,
) -> None:
    """Delete stored signals; what a process fills now is left alone."""
    from ..caching import prune as run_prune
    from ..errors import ConfigError

    if days is None and not damaged and not everything:
        raise ConfigError("nothing to delete: say which with --days N, --damaged or --all")
    for folder in run_prune(_folder(target, overrides), days, damaged, everything):
        typer.echo(f"deleted {folder}")


def _folder(target: str, overrides: list[str] | None) -> Path:
    """Return the folder that a command is about."""
    from ..cache import CacheSettings
    from ..recipe import Recipe

    if Path(target).is_dir():
        return Path(target)
    return CacheSettings(**vars(Recipe.load(target, overrides or ()).config.cache)).place


def _console() -> Console:
    """Return a console that is wide enough for the tables when the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=220)
