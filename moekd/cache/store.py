"""Signals of frozen teachers in a folder, for all runs whose teachers, data and inputs are the same.

Shapes: N samples, R samples of a shard.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..atomic import FolderLock, remove_leftovers
from ..errors import DataError
from .codecs import Codec, Encoded
from .column import Column
from .fill import Wanted, fill, shard_rows
from .memory import SignalCache, cache_in_memory
from .settings import CacheSettings
from .table import MANIFEST, Identity, Table
from .teacher_pass import TeacherPass

logger = logging.getLogger(__name__)

#: Seconds between two attempts to get a lock, and between two messages about it.
_PAUSE, _PATIENCE = 0.2, 30.0


class SignalStore:
    """A folder with one `Table` for each (teacher variant with its weights, signal, data, split, views, codec).

    What is there is read, after a check of its sha256; what is missing or damaged is computed in one pass and kept.
    Processes that want the same wait for the one that computes it. A folder that can't be written is a warning: the run
    goes on with what it has computed.

    Args:
        folder: of the tables.
        dataset_fingerprint: identity of the data.
        settings: codecs, and what a missing signal leads to.
    """

    def __init__(self, folder: Path, dataset_fingerprint: str, settings: CacheSettings | None = None) -> None:
        self.folder, self.data = Path(folder), dataset_fingerprint
        self.settings = settings or CacheSettings()

    def cache(self, teachers: TeacherPass, mapped: bool = False) -> SignalCache:
        """Return what the teachers say about all samples of a split.

        Args:
            teachers: what to run, where it is not there.
            mapped: leave the signals on disk, memory-mapped, rather than in memory.

        Raises:
            DataError: something is missing and `settings.missing` is `raise`; the message names the fields in which
                the nearest table differs. Or the signals should stay on disk and can't be written.
        """
        job = _Job(self, teachers, mapped)
        job.find()
        if job.missing and self.settings.missing == "raise":
            raise DataError(self._refusal(job))
        if job.missing:
            try:
                with self._locked(job):
                    job.find()
                    job.compute()
            except OSError as error:
                if mapped:
                    raise DataError(
                        f"the signals of the teachers can't be kept in {self.folder}: {error}; free some space, or set "
                        "cache.folder"
                    ) from error
                logger.warning("the signals of teachers can't be kept for other runs in %s: %s", self.folder, error)
                return cache_in_memory(teachers, self.settings)
        return job.result()

    def exact(self, teachers: TeacherPass) -> SignalCache | None:
        """Return what the teachers say in full precision and in memory, or None if it is more than `memory_gb`."""
        shapes = [(signal, like) for found in teachers.shapes().values() for signal, like in found.items()]
        rows = len(teachers.split) * teachers.views
        if rows * sum(Codec().bytes_a_row(like) for _, like in shapes) > self.settings.memory_gb * 1e9:
            return None
        return SignalStore(self.folder, self.data, CacheSettings()).cache(teachers)

    def recheck(self, teachers: TeacherPass, rows: int = 32, seed: int = 0) -> dict[tuple[str, str], float]:
        """Run the teachers again on some samples and compare what they say with what is stored.

        Args:
            teachers: what to run.
            rows: how many samples, drawn at random.
            seed: of the draw.

        Returns:
            The largest difference by variant and signal, relative to the largest value; of sparse logits, that of the
            probabilities.

        Raises:
            DataError: something is not stored.
        """
        job = _Job(self, teachers, mapped=True)
        job.find()
        if job.missing:
            raise DataError(self._refusal(job))
        chosen = np.random.default_rng(seed).permutation(len(teachers.split))[:rows]
        cache, found = job.result(), dict.fromkeys(job.tables, 0.0)
        pieces = [range(row, row + 1) for row in sorted(chosen.tolist())]
        for _, known_b, batch in teachers.batches(pieces):
            if not len(known_b):
                continue
            said = teachers.run(batch, teachers.variants)
            rows_b = (known_b[:, None] * teachers.views + torch.arange(teachers.views)).flatten()
            for variant, signal in found:
                column = cache.columns[variant][signal]
                difference = _difference(column(rows_b), said[variant][signal].cpu(), column.codec)
                found[variant, signal] = max(found[variant, signal], difference)
        return found

    def tables(self) -> Iterator[Table]:
        """Yield the tables that can be opened."""
        for manifest in sorted(self.folder.glob(f"*/{MANIFEST}")):
            try:
                yield Table.open(manifest.parent)
            except DataError as error:
                logger.warning("%s", error)

    def identity(self, teachers: TeacherPass, fingerprint: str, signal: str) -> Identity:
        """Return what the rows of a signal of the variant with this fingerprint depend on."""
        return Identity(
            teacher=fingerprint,
            signal=signal,
            data=self.data,
            split=teachers.split_name,
            samples=hashlib.sha256(np.ascontiguousarray(teachers.split.ids).tobytes()).hexdigest(),
            transform=teachers.inputs,
            precision=f"{teachers.device.type}|{teachers.precision}",
            codec=str(self.settings.codec_of(signal)),
        )

    @contextmanager
    def _locked(self, job: _Job) -> Iterator[None]:
        """Hold the locks of all tables that are not complete; wait for other processes that fill them."""
        with ExitStack() as stack:
            for folder in sorted({table.folder for table in job.tables.values() if table.missing}):
                stack.enter_context(_patient_lock(folder))
                remove_leftovers(folder)
            yield

    def _refusal(self, job: _Job) -> str:
        (variant, signal), table = next((key, t) for key, t in job.tables.items() if t.missing)
        what = f"{signal} of teacher '{variant}' on '{job.teachers.split_name}'"
        found = len(table.manifest["shards"])
        if found:
            have = f"{found} of {table.shards} shards of the {what}"
            return f"{self.folder} holds {have}; complete it with 'moekd cache build'"
        nearest = _nearest(self.tables(), table.identity)
        if nearest is None:
            return f"{self.folder} does not hold the {what}; fill it with 'moekd cache build'"
        lines = [f"  {key}: {_short(old)} there, {_short(new)} now" for key, (old, new) in nearest[1].items()]
        return "\n".join(
            [f"{self.folder} does not hold the {what}; the nearest, {nearest[0].folder.name}, differs:", *lines]
        )


class _Job:
    """The tables that one call wants."""

    def __init__(self, store: SignalStore, teachers: TeacherPass, mapped: bool) -> None:
        self.store, self.teachers, self.mapped = store, teachers, mapped
        self.ids_N = torch.from_numpy(teachers.split.ids)
        self.known_N = torch.ones(len(self.ids_N), dtype=torch.bool)
        self.segments: dict[tuple[str, str], dict[int, Encoded]] = {}
        self.tables: dict[tuple[str, str], Table] = {}
        self.reported: set[str] = set()
        for variant, signals in teachers.shapes().items():
            fingerprint = teachers.pool.fingerprint(variant)
            for signal, like in signals.items():
                identity = store.identity(teachers, fingerprint, signal)
                size = shard_rows(like, self.codec(signal), teachers.views)
                about = {"teacher": variant}
                folder = store.folder / identity.folder
                table = Table.new(folder, identity, like, len(self.ids_N), teachers.views, size, about)
                self.tables[variant, signal], self.segments[variant, signal] = table, {}

    def codec(self, signal: str) -> Codec:
        """Return how a signal is stored."""
        return self.store.settings.codec_of(signal)

    @property
    def missing(self) -> bool:
        """True while a shard is not there."""
        return any(set(range(table.shards)) - self.segments[key].keys() for key, table in self.tables.items())

    def find(self) -> None:
        """Read the sound shards that are there and not read yet."""
        for key, table in self.tables.items():
            if (table.folder / MANIFEST).is_file():
                self.tables[key] = self._opened(table)
        for key, table in self.tables.items():
            for index in sorted(set(range(table.shards)) - table.missing - self.segments[key].keys()):
                if reason := table.damage(index):
                    self._report(reason)
                    table.forget(index)
                    continue
                ids_R, encoded = table.read(index, self.mapped)
                self._check(table, index, ids_R)
                self.segments[key][index] = encoded
            if self.segments[key]:
                table.used()

    def compute(self) -> None:
        """Run the teachers for the shards that are not there, and keep them."""
        wanted = [
            Wanted(
                variant,
                signal,
                table.like,
                table.size,
                set(range(table.shards)) - self.segments[variant, signal].keys(),
            )
            for (variant, signal), table in self.tables.items()
        ]
        fill(self.teachers, wanted, self._keep)

    def result(self) -> SignalCache:
        """Return the signals by sample."""
        columns: dict[str, dict[str, Column]] = {name: {} for name in self.teachers.variants}
        for (variant, signal), table in self.tables.items():
            segments = self.segments.pop((variant, signal))
            counts = [min(table.size, len(self.ids_N) - i * table.size) * table.views for i in sorted(segments)]
            parts = [segments[index] for index in sorted(segments)]
            columns[variant][signal] = Column(self.codec(signal), table.like, parts, counts)
        cache = SignalCache(self.ids_N, columns, self.known_N, self.teachers.views)
        return cache if self.mapped else cache.to(self.teachers.device)

    def _keep(self, item: Wanted, index: int, values: Tensor, known_R: Tensor) -> None:
        table = self.tables[item.variant, item.signal]
        rows = slice(index * item.size, index * item.size + len(known_R))
        seed = int(hashlib.sha256(f"{table.identity.folder}/{index}".encode()).hexdigest()[:12], 16)
        encoded = self.codec(item.signal).encode(values, seed)
        self.known_N[rows] &= known_R
        if bool(known_R.all()):
            table.write(index, self.ids_N[rows], encoded)
            if self.mapped:
                _, encoded = table.read(index, True)
        self.segments[item.variant, item.signal][index] = encoded

    def _opened(self, fresh: Table) -> Table:
        """Return the table that is there, or the empty one where it is damaged.

        Raises:
            DataError: the folder holds something else; the message names the differing fields.
        """
        try:
            table = Table.open(fresh.folder)
        except DataError as error:
            self._report(str(error))
            return fresh
        differing = table.differences(fresh.identity)
        if differing:
            lines = [f"  {key}: {_short(old)} there, {_short(new)} now" for key, (old, new) in differing.items()]
            raise DataError("\n".join([f"{fresh.folder} holds the signals of something else:", *lines]))
        expected = {key: fresh.manifest[key] for key in ("row", "samples", "views")}
        found = {key: table.manifest[key] for key in expected}
        if found != expected:
            raise DataError(f"{fresh.folder} holds {found}, this run needs {expected}; delete it to compute it again")
        return table

    def _report(self, reason: str) -> None:
        """Warn once, though damage is found again when the lock is held."""
        if reason not in self.reported:
            logger.warning("%s; it is computed again", reason)
        self.reported.add(reason)

    def _check(self, table: Table, index: int, ids_R: Tensor) -> None:
        expected = self.ids_N[index * table.size : (index + 1) * table.size]
        if not torch.equal(ids_R, expected):
            raise DataError(f"{table.folder}: shard {index} holds other samples than the split; delete it")


@contextmanager
def _patient_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; wait for another process that has it, and say so."""
    lock, said = FolderLock(folder), -_PATIENCE
    while True:
        try:
            lock.acquire()
            break
        except DataError as error:
            if time.monotonic() - said > _PATIENCE:
                said = time.monotonic()
                logger.info("waiting for the signals of a teacher: %s", str(error).partition(";")[0])
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        lock.release()


def _difference(stored: Tensor, fresh: Tensor, codec: Codec) -> float:
    stored, fresh = stored.double(), fresh.double()
    if codec.sparse and fresh.dim() > 1 and fresh.shape[1] > codec.k:
        stored, fresh = ((values / codec.temperature).softmax(dim=1) for values in (stored, fresh))
        return float((stored - fresh).abs().max())
    return float((stored - fresh).abs().max() / fresh.abs().max().clamp_min(1e-12))


def _nearest(tables: Iterator[Table], identity: Identity) -> tuple[Table, dict[str, tuple[str, str]]] | None:
    """Return the table of the same signal that differs in the fewest fields."""
    same = [t for t in tables if t.identity.signal == identity.signal]
    found = [(table, table.differences(identity)) for table in same]
    return min(found, key=lambda pair: len(pair[1])) if found else None


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:16] + "..."
