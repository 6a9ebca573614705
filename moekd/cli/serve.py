"""`moekd serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import RunArgument


def serve(
    run: RunArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    label_vectors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labels with vectors of a text encoder, for students without a text tower."),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Inputs that go through the student at a time.")] = 32,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="Longest time that an input waits for others while the student is idle.")
    ] = 5.0,
    max_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Largest request.")] = "10MB",
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest width * height of a picture.")] = 50_000_000,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests at a time; further ones get 503.")] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a student of its own.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch in each process.")] = None,
    device: Annotated[str, typer.Option(help="Where to run: `cpu`, `cuda`, `mps`.")] = "cpu",
) -> None:
    """Answer questions about pictures over HTTP, with a page to try the student of RUN. Needs `moekd[serve]`."""
    from ..serve import Settings, parse_bytes
    from ..serve.server import serve as run_serve

    settings = Settings(
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_bytes=parse_bytes(max_bytes),
        max_pixels=max_pixels,
        max_queue=max_queue,
        timeout=timeout,
        device=device,
    )
    run_serve(run, settings, host, port, workers, threads, label_vectors)
