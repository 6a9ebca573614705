"""A loader whose worker processes can't end a run without a word: time-outs, deaths and errors become messages."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import DataError, MoekdError
from .dataset import Batch, Split

logger = logging.getLogger(__name__)

_LISTED = 8


class WatchedLoader(DataLoader[Batch]):
    """A data loader over batches of rows. What goes wrong in a worker process is an error here, with its number.

    An error of moekd in a worker arrives as it is. A worker that dies, or gives nothing for `timeout` seconds, is named
    together with the samples it was to read. In both cases the other workers are ended, if need be by force, so that
    no process stays behind.

    Raises:
        DataError: a worker died or hangs.
        RuntimeError: other code failed in a worker; its traceback is part of the text.
    """

    def __init__(self, split: Split, plan: Any, num_workers: int, timeout: float, **options: Any) -> None:
        super().__init__(
            _Reporting(split) if num_workers else split,
            batch_sampler=plan,
            collate_fn=_as_read,
            num_workers=num_workers,
            timeout=timeout if num_workers else 0,
            **options,
        )
        self.split, self.plan = split, plan

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not self.num_workers:
            yield from super().__iter__()
            return
        batches: Any = super().__iter__()
        workers: list[Any] = list(batches._workers)
        done, finished = 0, False
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    finished = True
                    return
                except (RuntimeError, OSError, EOFError) as error:  # the last two: a pipe to a dead process
                    raise self._explain(error, done, workers) from error
                done += 1
                yield _unpacked(batch)
        finally:
            if not finished:
                _end(batches, workers)

    def _explain(self, error: Exception, done: int, workers: list[Any]) -> Exception:
        """Say which worker failed, and with what; an error of other code stays what it is."""
        worker = done % self.num_workers
        rows: list[int] = next((rows for index, rows in enumerate(self.plan) if index == done), [])
        ids = ", ".join(map(str, self.split.ids[rows[:_LISTED]].tolist()))
        more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
        batch = f"the batch with the sample ids {ids}{more} of split '{self.split.name}'"
        if "timed out" in str(error):
            return DataError(
                f"worker {worker} of {self.num_workers} gave nothing for {self.timeout:g} s; it was to read {batch}. "
                "Look at the storage, raise data.worker_timeout, or read without workers (data.num_workers=0)"
            )
        _await_dead(workers)
        dead = [f"worker {i} of {len(workers)} {_end_of(w.exitcode)}" for i, w in enumerate(workers) if w.exitcode]
        if not dead:
            return error
        return DataError(
            f"{', '.join(dead)}; expected next was {batch}, of worker {worker}. A worker that is killed often had too "
            "little memory: use fewer of them, or data.num_workers=0"
        )


class _Reporting(Dataset[Batch]):
    """Gives errors of moekd as values, which other processes can send; their text would hold a traceback else."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, rows: list[int]) -> Batch | MoekdError:
        try:
            return self.split.__getitems__(rows)
        except MoekdError as error:
            return DataError(str(error))


def _await_dead(workers: list[Any], patience: float = 5.0) -> None:
    """Wait until a process that is about to end has its exit code."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with contextlib.suppress(RuntimeError):  # torch raises here for workers that died
            ready = connection.wait([worker.sentinel for worker in workers], timeout=patience / 5)
            for worker in workers:
                if worker.sentinel in ready:
                    worker.join(patience)
            return


def _end_of(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _unpacked(batch: Any) -> Batch:
    if isinstance(batch, MoekdError):
        raise batch
    found: Batch = batch
    return found


def _as_read(batch: Any) -> Any:
    return batch


def _end(batches: Any, workers: list[Any], patience: float = 5.0) -> None:
    """End processes, by force those that do not listen, and take their exit codes, so that no zombie is left."""
    with contextlib.suppress(RuntimeError, OSError, EOFError):  # torch raises here for workers that died
        batches._shutdown_workers()
    for worker in workers:
        worker.terminate()
    until = time.monotonic() + patience
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
        if worker.is_alive():
            logger.warning("the data worker with pid %d did not end when asked to; it is killed", worker.pid)
            worker.kill()
            worker.join(patience)
