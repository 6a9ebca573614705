"""A loader whose worker processes can't end a run without a word: time-outs, deaths and errors become messages."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterator
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
        before = set(multiprocessing.active_children())
        batches = super().__iter__()
        workers = [child for child in multiprocessing.active_children() if child not in before]
        done, finished = 0, False
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    finished = True
                    return
                except RuntimeError as error:
                    raise self._explain(error, done) from error
                done += 1
                yield _unpacked(batch)
        finally:
            del batches
            if not finished:
                _end(workers)

    def _explain(self, error: RuntimeError, done: int) -> MoekdError:
        """Say which worker failed, and with what."""
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
        reason = str(error).splitlines()[0]
        return DataError(
            f"a worker process died: {reason}; expected next was {batch}, of worker {worker} of {self.num_workers}. "
            "A worker that is killed often had too little memory: use fewer of them, or data.num_workers=0"
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


def _unpacked(batch: Any) -> Batch:
    if isinstance(batch, MoekdError):
        raise batch
    found: Batch = batch
    return found


def _as_read(batch: Any) -> Any:
    return batch


def _end(workers: list[Any], patience: float = 5.0) -> None:
    """End processes, by force those that do not listen, and take their exit codes, so that no zombie is left."""
    for worker in workers:
        worker.terminate()
    until = time.monotonic() + patience
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
        if worker.is_alive():
            logger.warning("the data worker with pid %d did not end when asked to; it is killed", worker.pid)
            worker.kill()
            worker.join(patience)
