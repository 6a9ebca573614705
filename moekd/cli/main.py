"""The command line: it parses, calls the library and prints. Errors end in a message and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer

from ..errors import MoekdError
from .ablate import ablate
from .benchmark import benchmark
from .cache import cache
from .convert import convert
from .data import data
from .inspection import check, list_kinds
from .results import evaluate, export, predict, report
from .serve import serve
from .train import distill

app = typer.Typer(
    name="moekd",
    help="Distil many experts into one compact student: teacher pools, masks, instance routers.",
    epilog="A CONFIG is the path of a YAML file or the name of a shipped config: `moekd distill quickstart`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (distill, ablate, check, evaluate, predict, serve, report, export, convert):
    app.command()(command)
app.command("list")(list_kinds)
app.add_typer(benchmark, name="benchmark")
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")

#: Exit codes besides 0: 1 an expected failure, 2 a mistake in the config or on the command line, 130 interrupted.
INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    level = os.environ.get("MOEKD_LOG", "INFO").upper()
    logging.basicConfig(level=level if level in logging.getLevelNamesMapping() else "INFO", format="%(message)s")
    if os.environ.get("RANK", "0") != "0":
        logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    for noisy in ("torch", "accelerate", "datasets", "urllib3", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except SystemExit as end:
        if end.code in (0, None) and os.environ.get("WORLD_SIZE", "1") != "1":
            from ..distributed import end_process

            end_process()
        raise
    except MoekdError as error:
        print(f"{error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; continue with the same command and --resume auto", file=sys.stderr)
        sys.exit(INTERRUPTED)
