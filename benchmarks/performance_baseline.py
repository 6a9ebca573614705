"""The published loop in a process of its own.

The released code leaves memory to the C library as it is; `moekd distill` changes that for its process (see
`moekd.allocator`), which would make the published loop faster as well. So each has its own process, and takes turns.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import IO

import torch
from accelerate import Accelerator

from ..errors import MoekdError
from .performance_engine import av_mnist, plain_rows
from .performance_published import Image, PlainLoop, published_teachers
from .performance_timing import Clock, Round, Spent


class BaselineProcess:
    """Runs epochs of the published loop at the shapes of AV-MNIST when it is told to, on a CPU.

    Use it as a context; the process ends with it.

    Args:
        precision: "no", "bf16" or "fp16".
        batch: rows of the only batch of an epoch.
    """

    def __init__(self, precision: str, batch: int) -> None:
        command = [sys.executable, "-m", __name__, precision, str(batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> BaselineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(BrokenPipeError):
            self._pipe(self.process.stdin).close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def epochs(self, stage: str) -> Round:
        """Return what runs an epoch of a stage and says how long it took there."""

        def run() -> Spent:
            said = ""
            with suppress(BrokenPipeError):
                print(stage, file=self._pipe(self.process.stdin), flush=True)
                said = self._pipe(self.process.stdout).readline()
            if not said:
                raise MoekdError(f"the process of the published loop ended with exit code {self.process.wait()}")
            steps, seconds = said.split()
            return Spent(int(steps), float(seconds))

        return run

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def published_loop(accelerator: Accelerator, alone: bool = False) -> PlainLoop:
    """Return the published loop with the published networks for an image student of AV-MNIST, or the student alone."""
    teachers = [] if alone else published_teachers()
    return PlainLoop(Image(), ["image"], teachers, 10, accelerator.device, autocast=accelerator.autocast)


def _serve(precision: str, batch: int) -> None:
    """Run a stage for each line of the standard input, and answer with its steps and seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    loop, rows, clock = published_loop(accelerator), plain_rows(av_mnist(batch, 1)), Clock(accelerator.device)
    for line in sys.stdin:
        start = clock.now()
        steps = loop.epoch(line.strip(), rows, batch)
        print(steps, clock.now() - start, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
