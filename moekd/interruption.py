"""SIGINT and SIGTERM let a run finish its step and save; a second one ends it at once."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

from .distributed import sum_over_processes, world_size

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds within which a second signal is the first one again: launchers pass on what the terminal sent to all.
ECHO = 1.0


class StopRequest:
    """Notes the first signal while it is open; the second one finds the handlers from before.

    Outside of the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal, self._since = 0, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self, step: int, every: int) -> int:
        """Return the signal that asks to stop now, or 0.

        Args:
            step: optimizer step.
            every: of several processes, steps between two exchanges of what each of them heard.
        """
        if world_size() == 1:
            return self.signal
        if step % every:
            return 0
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        heard = torch.zeros(max(SIGNALS) + 1, device=device)
        heard[self.signal] = 1
        heard[0] = 0
        return int(sum_over_processes(heard).argmax())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
            logger.warning("signal %d: the run stops after this step and saves; a second one stops it at once", number)
        elif time.monotonic() - self._since > ECHO:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
