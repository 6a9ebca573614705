"""Makes training on CPUs cheaper: freed memory is kept for the next step instead of going back to the kernel.

A training step frees and allocates the same large tensors over and over. By default glibc maps each of them anew, and
the kernel fills every page with zeros first: a third of the time of a small network.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SIZES = (1 << 30, 32 << 20)
#: Fields of `struct mallinfo2` of malloc.h; `fordblks` are the free bytes of the heap.
_MALLINFO = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
#: Bytes of freed memory that a process may keep while it evaluates, where sizes differ from those of a training step.
MOST_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for reuse; the peak is the same, the process returns less in between.

    Settings in the environment (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`) or another
    allocator win.

    Returns:
        True if it was set; False where it can't be (other systems, other C libraries) or is up to the user.
    """
    chosen = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in chosen):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _SIZES)
    trimmed = mallopt(_M_TRIM_THRESHOLD, _SIZES[0]) == 1
    logger.debug("freed memory is kept for reuse: %s", mapped and trimmed)
    return bool(mapped and trimmed)


def give_back_memory(most_kept: int = MOST_KEPT) -> bool:
    """Give freed memory back to the kernel if the process keeps more than that.

    Memory that is kept serves steps that allocate the same sizes again. Large tensors of other sizes do not fit into
    the gaps, and a process that evaluates a few hundred rows at a time could grow with every batch.

    Returns:
        True if memory was given back.
    """
    libc = _libc()
    if libc is None or libc.mallinfo2().fordblks <= most_kept:
        return False
    return bool(libc.malloc_trim(0))


def sparing(batches: Iterable[T], most_kept: int = MOST_KEPT) -> Iterator[T]:
    """Yield batches that are evaluated, and give memory back between them."""
    for batch in batches:
        yield batch
        give_back_memory(most_kept)


@cache
def _libc() -> ctypes.CDLL | None:
    """Return glibc from 2.33 on, which tells how much freed memory it keeps."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype, libc.malloc_trim.argtypes = _MallInfo, [ctypes.c_size_t]
    except (OSError, AttributeError, TypeError):
        return None
    return libc


class _MallInfo(ctypes.Structure):
    """What glibc says about its heap."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)
