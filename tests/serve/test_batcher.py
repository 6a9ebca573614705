"""Batches across requests: their sizes, their order, failures, askers who leave, and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from moekd.serve.batcher import Batcher, ClosedError


class Doubler:
    """Doubles numbers and remembers the batches; waits for `gate` first."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        self.begun.set()
        assert self.gate.wait(20)
        if -1 in batch:
            raise ValueError("a bad input")
        return [2 * value for value in batch]


def run(
    work: Callable[[Batcher[int, int], Doubler], Awaitable[None]], max_batch: int = 4, max_wait: float = 0.05
) -> Doubler:
    """Run a coroutine with a batcher that doubles."""
    double = Doubler()

    async def whole() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(double, executor, max_batch, max_wait)
            batcher.start()
            await work(batcher, double)
            double.gate.set()
            await batcher.close()

    asyncio.run(whole())
    return double


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop work until something holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def test_inputs_that_come_together_go_together() -> None:
    async def work(batcher: Batcher[int, int], double: Doubler) -> None:
        answers = await asyncio.gather(*(batcher.submit([value]) for value in range(4)))
        assert answers == [[0], [2], [4], [6]]

    assert run(work, max_wait=5.0).batches == [[0, 1, 2, 3]], "a full batch does not wait"


def test_a_batch_that_is_not_full_starts_after_the_wait() -> None:
    async def work(batcher: Batcher[int, int], double: Doubler) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        assert await batcher.submit([7]) == [14]
        assert loop.time() - start >= 0.045

    assert run(work).batches == [[7]]


def test_a_request_may_be_larger_than_a_batch_and_keeps_its_order() -> None:
    async def work(batcher: Batcher[int, int], double: Doubler) -> None:
        assert await batcher.submit(range(10)) == [2 * value for value in range(10)]
        assert await batcher.submit([]) == []

    assert [len(batch) for batch in run(work).batches] == [4, 4, 2]


def test_what_comes_while_a_batch_runs_goes_together_next() -> None:
    async def work(batcher: Batcher[int, int], double: Doubler) -> None:
        double.gate.clear()
        first = asyncio.create_task(batcher.submit([0]))
        await until(double.begun.is_set)
        rest = [asyncio.create_task(batcher.submit([value])) for value in (1, 2, 3)]
        await asyncio.sleep(0.01)
        double.gate.set()
        assert [await task for task in (first, *rest)] == [[0], [2], [4], [6]]

    assert run(work, max_wait=0.0).batches == [[0], [1, 2, 3]]


def test_a_failure_reaches_those_who_were_in_the_batch_and_nobody_else() -> None:
    async def work(batcher: Batcher[int, int], double: Doubler) -> None:
        with pytest.raises(ValueError, match="a bad input"):
            await batcher.submit([5, -1])
        assert await batcher.submit([5]) == [10]

    run(work)


def test_too_few_answers_are_an_error() -> None:
    async def work() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher: Batcher[int, int] = Batcher(lambda batch: batch[1:], executor, 4, 0.0)
            batcher.start()
            with pytest.raises(ValueError, match="zip"):
                await batcher.submit([1, 2])
            await batcher.close()

    asyncio.run(work())


def test_inputs_of_askers_who_left_are_not_run() -> None:
    async def work(batcher: Batcher[int, int], double: Doubler) -> None:
        double.gate.clear()
        first = asyncio.create_task(batcher.submit([0]))
        await until(double.begun.is_set)
        gone, stays = asyncio.create_task(batcher.submit([1])), asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        double.gate.set()
        assert (await first, await stays) == ([0], [4])

    assert run(work, max_wait=0.0).batches == [[0], [2]]


def test_closing_finishes_what_is_there_and_takes_no_more() -> None:
    async def work(batcher: Batcher[int, int], double: Doubler) -> None:
        double.gate.clear()
        tasks = [asyncio.create_task(batcher.submit([value])) for value in range(6)]
        await until(double.begun.is_set)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        with pytest.raises(ClosedError):
            await batcher.submit([9])
        double.gate.set()
        assert [await task for task in tasks] == [[2 * value] for value in range(6)]
        await closing

    assert [len(batch) for batch in run(work, max_wait=9.0).batches] == [4, 2]


def test_nothing_can_be_asked_before_the_start() -> None:
    async def work() -> None:
        with ThreadPoolExecutor(1) as executor, pytest.raises(ClosedError):
            await Batcher(Doubler(), executor, 4, 0.0).submit([1])

    asyncio.run(work())
