"""D3: a loader process that dies, hangs or fails ends in a message, and leaves no process behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from moekd.data import make_loader, with_policy
from moekd.data.dataset import Split
from moekd.errors import DataError

from .conftest import make_split


class Troubled(Split):
    """A split of which one row ends its reader in some way."""

    def __init__(self, rows: int, row: int, trouble: str) -> None:
        self.split, self.row, self.trouble = make_split(rows), row, trouble
        super().__init__("train", self.split.ids, self.split.labels, self.split.fields)

    def read(self, rows):
        if self.row in rows:
            if self.trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.trouble == "exits":
                os._exit(3)
            if self.trouble == "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if self.trouble == "raises":
                raise RuntimeError("a bug")
            time.sleep(600)
        return self.split.read(rows)


def children() -> list[int]:
    """Return the processes of this one, zombies too."""
    return [child.pid for child in multiprocessing.active_children()]


def failure(trouble: str, timeout: float = 60) -> str:
    """Read with two workers; return the message."""
    before = children()
    with pytest.raises(DataError) as caught:
        list(make_loader(Troubled(40, 23, trouble), 4, shuffle=False, num_workers=2, timeout=timeout))
    assert children() == before
    return str(caught.value)


@pytest.mark.parametrize("trouble", ["hangs", "deaf"])
def test_a_hanging_worker(trouble: str) -> None:
    """D3: the time-out names the worker and the samples, and ends the worker, by force if it does not listen."""
    message = failure(trouble, timeout=2)
    assert message.startswith(
        "worker 1 of 2 gave nothing for 2 s; it was to read the batch with the sample ids 20, 21,"
    )
    assert "data.worker_timeout" in message


@pytest.mark.parametrize(
    ("trouble", "reason"), [("dies", "was ended by signal 9"), ("exits", "ended with exit code 3")]
)
def test_a_worker_that_dies(trouble: str, reason: str) -> None:
    """D3: a killed worker (as by the system when memory is short) is named."""
    message = failure(trouble)
    assert message.startswith(f"worker 1 of 2 {reason}; expected next was the batch with the sample ids ")
    assert "data.num_workers=0" in message


def test_errors_of_workers_come_without_their_traceback() -> None:
    """D1, D3: what a worker says about a bad sample is what would be said without workers."""
    split = make_split(40)
    split.arrays["x"].array[23] = float("nan")
    messages = []
    for workers in (0, 2):
        with pytest.raises(DataError) as caught:
            list(make_loader(with_policy(split), 4, shuffle=False, num_workers=workers))
        messages.append(str(caught.value))
    assert (
        messages[0]
        == messages[1]
        == ("bad sample 23 in split 'train' (sample_23.bin): field 'x' holds NaN or infinite values")
    )


def test_a_loader_that_is_left_early_leaves_nothing() -> None:
    """D3: leaving an epoch in the middle ends the workers."""
    before = children()
    for _ in make_loader(make_split(40), 4, shuffle=False, num_workers=2):
        break
    assert children() == before


def test_bugs_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        list(make_loader(Troubled(40, 23, "raises"), 4, shuffle=False, num_workers=1))
