"""Run the server: one process, or several behind one socket."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..export import read_student
from ..inference import Predictor
from ..networks.adapter import library
from .settings import Settings

logger = logging.getLogger(__name__)
#: How the processes of a server with several learn what to serve.
VARIABLE = "MOEKD_SERVE"
CARD = "README.md"
#: Seconds in which a process has to show that it lives; loading PyTorch on a busy machine takes longer than 5.
PATIENCE = 60
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    run: Path | str,
    settings: Settings | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    threads: int | None = None,
    label_vectors: Path | None = None,
) -> None:
    """Serve the student of a run until SIGTERM or SIGINT; requests that have begun are answered first.

    Args:
        run: run folder or exported student.
        settings: limits.
        host: address to listen on.
        port: 0 takes a free one.
        workers: processes, each with a student of its own.
        threads: of PyTorch in each process; None leaves the default.
        label_vectors: labels in place of the student's classes; see `Predictor`.

    Raises:
        MissingDependencyError: the extra `serve` is not installed.
        DataError: no student there, or one that takes no pictures.
        ConfigError: the address can't be used, or a number is too small.
    """
    uvicorn = library("uvicorn", "uvicorn", "moekd serve", "serve")
    for module, package in (("fastapi", "fastapi"), ("python_multipart", "python-multipart")):
        library(module, package, "moekd serve", "serve")
    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"serve: expected at least one worker and thread, found {workers} and {threads}")
    limits = Settings() if settings is None else settings
    options: dict[str, Any] = {
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": math.ceil(limits.timeout) + 1,
        "timeout_keep_alive": 15,
    }
    if host not in LOOPBACK:
        logger.warning("%s can be reached by others; the server knows no passwords and no encryption", host)
    title = _title(run)
    with listening(host, port) as listener, _quiet_end():
        place = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if workers == 1:
            app = make_app(run, limits, threads, label_vectors)
            logger.info("%s on %s (Ctrl+C stops)", title, place)
            uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])
            return
        about = {
            "run": str(run),
            "settings": asdict(limits),
            "threads": threads,
            "label_vectors": None if label_vectors is None else str(label_vectors),
        }
        os.environ[VARIABLE] = json.dumps(about)
        logger.info("%s on %s in %d processes (Ctrl+C stops)", title, place, workers)
        app_name = f"{__name__}:{worker_app.__name__}"
        options |= {"workers": workers, "timeout_worker_healthcheck": PATIENCE}
        uvicorn.run(app_name, factory=True, fd=listener.fileno(), **options)


def make_app(
    run: Path | str, settings: Settings, threads: int | None = None, label_vectors: Path | str | None = None
) -> Any:
    """Load a student and return its ASGI application.

    Raises:
        DataError: no student there, or one that takes no pictures.
        ConfigError: no such device.
    """
    from .app import create_app

    if threads is not None:
        torch.set_num_threads(threads)
    folder, _ = read_student(Path(run))
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    return create_app(Predictor(run, settings.device, label_vectors), settings, card)


def worker_app() -> Any:
    """Return the application of one of several processes."""
    about = json.loads(os.environ[VARIABLE])
    return make_app(about["run"], Settings(**about["settings"]), about["threads"], about["label_vectors"])


def _title(run: Path | str) -> str:
    _, document = read_student(Path(run))
    return str(document.get("title") or document["network"]["kind"])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens; it is closed at the end.

    Raises:
        ConfigError: the address can't be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Connections inherit it; without it, head and body of an answer are 40 ms apart.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.set_inheritable(True)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"serve: can't listen on {host}:{port}: {error}; choose another --host or --port") from error
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def _quiet_end() -> Iterator[None]:
    """Let the signals that end the server end this function instead of the process."""

    def nothing(number: int, frame: object) -> None:
        logger.info("stopped")

    before = {number: signal.signal(number, nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
