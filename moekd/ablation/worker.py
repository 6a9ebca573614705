"""A process of its own that runs jobs of an ablation one after another, as its parent hands them over.

A job comes as one line of JSON on standard input. The answer goes as one line of JSON to a descriptor of its own, since
libraries print to standard output and standard error; both of them go to the job's log file. The process lives on
between jobs, which saves the seconds of loading libraries and data again.

When the parent is gone, standard input ends: the worker then sends SIGTERM to itself, on which a training run saves a
checkpoint and stops.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Literal, TextIO

from ..errors import MoekdError, StoppedError
from .events import GRACE, LONGEST_TEXT, Job, Run


@dataclass(frozen=True)
class Answer:
    """How a job ended.

    Attributes:
        state: done, failed, or stopped by a signal.
        text: why it failed or where it stopped.
        usable: False after an error that nobody foresaw, which may have left the process in any state: another process
            should run the next job.
    """

    state: Literal["done", "failed", "stopped"]
    text: str = ""
    usable: bool = True


def perform(run: Run, job: Job, folder: Path, log: Path) -> Answer:
    """Run one job in this process with everything that it prints in `log`."""
    with _output_into(log):
        _print_anything()
        try:
            run(job, folder)
        except (StoppedError, KeyboardInterrupt) as error:
            return Answer("stopped", _text(error), usable=False)
        except MoekdError as error:
            print(_text(error), file=sys.stderr)
            return Answer("failed", _text(error))
        except BaseException as error:
            trace = _encodable(traceback.format_exc())
            print(trace, file=sys.stderr)
            summary = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
            return Answer("failed", f"{_encodable(summary)}\n{trace[-LONGEST_TEXT:]}", usable=False)
        finally:
            gc.collect()
    return Answer("done")


def serve(run: Run, answers: int, grace: float = GRACE) -> None:
    """Run the jobs that come on standard input until it ends.

    Args:
        run: what a job does.
        answers: descriptor that the answers are written to.
        grace: seconds between SIGTERM and the end, if the parent is gone while a job is running.
    """
    faulthandler.enable()
    parent = _Parent(_take_standard_input(), grace)
    with os.fdopen(answers, "w", encoding="ascii") as channel, suppress(BrokenPipeError):
        _send(channel, {"ready": os.getpid()})
        for order in parent.orders():
            _send(channel, {"begun": order["job"]["key"]})
            answer = perform(run, order["job"], Path(order["folder"]), Path(order["log"]))
            parent.busy.clear()
            _send(channel, asdict(answer))


class _Parent:
    """Reads what the parent sends in a thread of its own, so that its end is noticed in the middle of a job."""

    def __init__(self, stream: BinaryIO, grace: float) -> None:
        self.busy = threading.Event()
        self._gone = threading.Event()
        self._inbox: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        threading.Thread(target=self._read, args=(stream, grace), daemon=True).start()

    def orders(self) -> Iterator[dict[str, Any]]:
        while (order := self._inbox.get()) is not None:
            self.busy.set()
            # Set before the question, asked by the other thread in the other order: one of the two sees the end.
            if self._gone.is_set():
                return
            yield order

    def _read(self, stream: BinaryIO, grace: float) -> None:
        for line in stream:
            self._inbox.put(json.loads(line))
        self._gone.set()
        self._inbox.put(None)
        if self.busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace)
            leader = os.getpgrp() == os.getpid()
            os.kill(0 if leader else os.getpid(), signal.SIGKILL)


def _take_standard_input() -> BinaryIO:
    """Return standard input and leave an empty one, so that no library reads the parent's orders."""
    orders = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return os.fdopen(orders, "rb")


def _send(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


@contextmanager
def _output_into(log: Path) -> Iterator[None]:
    """Send standard output and standard error, also those of libraries in C, to the end of a file."""
    before = [os.dup(1), os.dup(2)]
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        for number, old in enumerate(before, 1):
            os.dup2(old, number)
            os.close(old)


def _print_anything() -> None:
    """Let print take any text, whatever the system's encoding is."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _text(error: BaseException) -> str:
    return _encodable(str(error) or type(error).__name__)[-LONGEST_TEXT:]


def _encodable(text: str) -> str:
    """Return the text without halves of characters, which no file could take."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def main() -> None:
    """Serve the trainer: `python -m moekd.ablation.worker DESCRIPTOR`, started by the dispatcher only."""
    from .run import run_job

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    serve(run_job, int(sys.argv[1]))


if __name__ == "__main__":
    main()
