"""Batches across requests: inputs that arrive close together go through the student together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class ClosedError(Exception):
    """The batcher takes no further inputs."""


class Batcher(Generic[Input, Output]):
    """Collects inputs and runs a function on lists of them.

    A batch starts as soon as it is full, or when its first input has waited for `max_wait` seconds. While a batch runs,
    inputs collect for the next one, so that under load nobody waits for the sake of the batch. An input whose asker has
    gone is left out.

    Args:
        run: inputs -> outputs, in order; it runs in `executor`.
        executor: of one thread, if the function is not safe in several.
        max_batch: inputs in a batch.
        max_wait: seconds.
    """

    def __init__(
        self,
        run: Callable[[list[Input]], Sequence[Output]],
        executor: Executor,
        max_batch: int,
        max_wait: float,
    ) -> None:
        self.run, self.executor, self.max_batch, self.max_wait = run, executor, max_batch, max_wait
        self.batches, self.inputs = 0, 0
        self._waiting: deque[tuple[Input, asyncio.Future[Output], float]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, on the event loop that runs now."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def submit(self, inputs: Sequence[Input]) -> list[Output]:
        """Return the outputs of the inputs, which may go through the function in several batches.

        Raises:
            ClosedError: `close` was called before.
        """
        if self._closing or self._task is None:
            raise ClosedError
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Output]] = [loop.create_future() for _ in inputs]
        self._waiting.extend((value, future, loop.time()) for value, future in zip(inputs, futures, strict=True))
        self._changed.set()
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()

    async def close(self) -> None:
        """Finish what was submitted, and end."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await self._task

    async def _work(self) -> None:
        while True:
            await self._fill()
            batch = self._take()
            if batch:
                await self._answer(batch)
            elif self._closing:
                return

    async def _fill(self) -> None:
        """Wait until a batch is full, or old enough, or the end has come."""
        loop = asyncio.get_running_loop()
        while not self._closing and len(self._waiting) < self.max_batch:
            left = self._waiting[0][2] + self.max_wait - loop.time() if self._waiting else None
            if left is not None and left <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[tuple[Input, asyncio.Future[Output]]]:
        batch: list[tuple[Input, asyncio.Future[Output]]] = []
        while self._waiting and len(batch) < self.max_batch:
            value, future, _ = self._waiting.popleft()
            if not future.done():
                batch.append((value, future))
        return batch

    async def _answer(self, batch: list[tuple[Input, asyncio.Future[Output]]]) -> None:
        loop = asyncio.get_running_loop()
        self.batches, self.inputs = self.batches + 1, self.inputs + len(batch)
        try:
            outputs = await loop.run_in_executor(self.executor, self.run, [value for value, _ in batch])
            answers = list(zip(batch, outputs, strict=True))
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), output in answers:
            if not future.done():
                future.set_result(output)
