"""Corrupted fields: noise, missing and swapped values in single fields of single rows.

What happens to a row is a function of (seed, field, sample id) alone. It is the same in every epoch, batch, order and
process, so signals of teachers can be kept, and a run can ask what a router makes of rows whose teachers are wrong.

Shapes: N rows of a split, B rows of a batch, K corrupted rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, did_you_mean
from .dataset import Batch, FieldSpec, Ids, Split, WrappedSplit, bad_sample
from .fingerprint import digest
from .policies import read_finite

CorruptionKind = Literal["noise", "missing", "swapped"]
KINDS: tuple[CorruptionKind, ...] = ("noise", "missing", "swapped")
FLAG = "corrupted_{}"

_STATISTICS_ROWS, _STATISTICS_CHUNK = 1000, 100
_GOLDEN = 0x9E3779B97F4A7C15
_INTACT = -1


@dataclass(frozen=True)
class Corruption:
    """What happens to one field of a share of the rows.

    Attributes:
        field: the field.
        kind: "noise" adds `severity * std * N(0, 1)` to each value, std over the values of the field in up to 1,000
            training rows; "missing" makes all values 0; "swapped" takes the field of another corrupted row of the same
            split, so that the modality looks right and says something else (rows of the same class included).
        fraction: share of the rows, in [0, 1]. The rows of a smaller fraction are among those of a larger one. Two
            corruptions of one field meet different rows, so their fractions add up to at most 1; different fields are
            drawn independently.
        severity: standard deviations of the noise; without meaning for the other kinds.
        splits: names of the splits; None is all.
    """

    field: str
    kind: CorruptionKind
    fraction: float
    severity: float = 1.0
    splits: tuple[str, ...] | None = None

    def touches(self, split: str) -> bool:
        """Return whether the rows of a split are corrupted."""
        return self.splits is None or split in self.splits


def with_corruptions(
    splits: Mapping[str, Split], corruptions: Sequence[Corruption], fields: Mapping[str, FieldSpec], seed: int
) -> dict[str, Split]:
    """Return the splits with corrupted fields; labels, ids and all other fields stay as they are.

    Every batch gets a bool field `corrupted_<field>` `[B]` for each field that occurs in `corruptions`. Without
    corruptions the splits are returned as they are. Put few labels and policies for bad samples outside or inside,
    as you like.

    Args:
        splits: all splits; "train" gives the standard deviations for noise.
        corruptions: what happens to which field; of several for one field, each gets its own rows.
        fields: the fields of the data set.
        seed: seed of the choice of rows, of the noise and of the swaps.

    Raises:
        DataError: naming every unknown field, split or kind, every value out of range, and noise on integers.
    """
    problems = find_problems(corruptions, fields, splits)
    if problems:
        raise DataError("; ".join(problems))
    if not corruptions:
        return dict(splits)
    noisy = {item.field for item in corruptions if item.kind == "noise"}
    std = {field: standard_deviation(splits["train"], field) for field in sorted(noisy)}
    return {name: CorruptedFields(split, corruptions, std, seed) for name, split in splits.items()}


def fingerprint_of(corruptions: Sequence[Corruption], seed: int) -> str:
    """Return a sha256 (hex) of what `with_corruptions` does, beside the fingerprint of the data set."""
    return digest({"corruptions": [asdict(item) for item in corruptions], "seed": seed})


def find_problems(
    corruptions: Sequence[Corruption], fields: Mapping[str, FieldSpec], splits: Mapping[str, Split]
) -> list[str]:
    """Return everything that is wrong with the corruptions, one line each."""
    problems: list[str] = []
    for number, item in enumerate(corruptions):
        where = f"corruptions[{number}]"
        if item.field not in fields:
            hint = did_you_mean(item.field, fields) or f"; fields: {', '.join(fields)}"
            problems.append(f"{where}.field: the data set has no field '{item.field}'{hint}")
        elif item.kind == "noise" and not fields[item.field].dtype.startswith(("float", "bfloat")):
            dtype = fields[item.field].dtype
            problems.append(f"{where}.kind: noise needs numbers, but '{item.field}' is {dtype}; use missing or swapped")
        if item.kind not in KINDS:
            problems.append(f"{where}.kind: {item.kind!r} is none of {', '.join(KINDS)}")
        if not 0 <= item.fraction <= 1:
            problems.append(f"{where}.fraction: expected a number in [0, 1], found {item.fraction}")
        if not (math.isfinite(item.severity) and item.severity >= 0):
            problems.append(f"{where}.severity: expected a finite number of at least 0, found {item.severity}")
        for name in item.splits or ():
            if name not in splits:
                hint = did_you_mean(name, splits) or f"; splits: {', '.join(splits)}"
                problems.append(f"{where}.splits: the data set has no split '{name}'{hint}")
    for field in dict.fromkeys(item.field for item in corruptions):
        for name in splits:
            total = math.fsum(item.fraction for item in corruptions if item.field == field and item.touches(name))
            if total > 1 + 1e-9:
                problems.append(
                    f"corruptions of '{field}' take {total:g} of the rows of '{name}' in all, at most 1 fits"
                )
    if any(item.kind == "noise" for item in corruptions) and "train" not in splits:
        problems.append(f"noise is scaled by the training rows, but there is no split 'train' in {', '.join(splits)}")
    return problems


class CorruptedFields(WrappedSplit):
    """A split in which some rows have corrupted fields; see `with_corruptions`.

    Args:
        split: the split.
        corruptions: checked corruptions, also those for other splits (their fields get flags that are all False).
        std: standard deviation of each field with noise.
        seed: seed.

    Attributes:
        chosen: for each corrupted field, the index in `corruptions` for each row `[N]`, -1 for intact rows.
    """

    def __init__(self, split: Split, corruptions: Sequence[Corruption], std: Mapping[str, float], seed: int) -> None:
        super().__init__(split)
        self.corruptions, self.std, self.seed = tuple(corruptions), dict(std), seed
        self.chosen: dict[str, NDArray[np.int16]] = {}
        self.donors: dict[int, Ids] = {}
        for field in dict.fromkeys(item.field for item in corruptions):
            self.chosen[field] = self._choose(field)
        for number, item in enumerate(self.corruptions):
            rows = np.flatnonzero(self.chosen[item.field] == number)
            if item.kind == "swapped" and len(rows):
                self.donors[number] = self._donors(item.field, rows)

    def read(self, rows: Sequence[int]) -> tuple[Batch, dict[int, str]]:
        """Read rows and corrupt their fields."""
        batch, bad = self.split.read(rows)
        places = self.rows_of(batch["id"].numpy())
        for field, chosen in self.chosen.items():
            found = chosen[places]
            batch[FLAG.format(field)] = torch.from_numpy(found != _INTACT)
            for number in np.unique(found[found != _INTACT]).tolist():
                positions = np.flatnonzero(found == number)
                self._corrupt(batch, torch.from_numpy(positions), places[positions], number)
        return batch, bad

    def _choose(self, field: str) -> NDArray[np.int16]:
        chosen = np.full(len(self), _INTACT, dtype=np.int16)
        draws, start = uniform_of(self.ids, self._key("rows", field)), 0.0
        for number, item in enumerate(self.corruptions):
            if item.field == field and item.touches(self.name):
                stop = start + item.fraction
                chosen[(draws >= start) & (draws < stop)] = number
                start = stop
        return chosen

    def _donors(self, field: str, rows: Ids) -> Ids:
        """Return the row that each row takes from `[N]`: a cycle through the corrupted rows in a drawn order.

        A lone corrupted row takes from the next row of the split.
        """
        if len(self) < 2:
            raise DataError(f"split '{self.name}' has one row, so there is no other '{field}' to swap in")
        donors = (np.arange(len(self)) + 1) % len(self)
        if len(rows) > 1:
            order = rows[np.lexsort([self.ids[rows], uniform_of(self.ids[rows], self._key("swap", field))])]
            donors[order] = np.roll(order, -1)
        return donors

    def _corrupt(self, batch: Batch, at: Tensor, rows: Ids, number: int) -> None:
        """Corrupt the positions `at` `[K]` of a batch, which hold the rows `rows` `[K]`."""
        item = self.corruptions[number]
        if item.kind == "swapped":
            self._swap(batch, at, rows, number)
            return
        values: Tensor = batch[item.field].clone()
        if item.kind == "missing":
            values[at] = 0
        else:
            noise = normal_of(self.ids[rows], self._key("noise", item.field), tuple(values.shape[1:]))
            values[at] += (noise * (item.severity * self.std[item.field])).to(values.dtype)
        batch[item.field] = values

    def _swap(self, batch: Batch, at: Tensor, rows: Ids, number: int) -> None:
        """Swap in the values of other rows, and their mask with them; donors that can't be read are passed over."""
        field, donors = self.corruptions[number].field, self.donors[number]
        names = [name for name in (field, f"{field}_mask") if name in batch]
        batch.update({name: batch[name].clone() for name in names})
        wanted, waiting = donors[rows], np.arange(len(rows))
        while len(waiting):
            alone = np.flatnonzero(wanted[waiting] == rows[waiting])
            if len(alone):
                row = int(rows[waiting[alone[0]]])
                raise bad_sample(self, row, f"no other row can be read to swap in its '{field}'")
            other, bad = read_finite(self.split, wanted[waiting].tolist())
            read = np.array([place not in bad for place in range(len(waiting))])
            if read.sum() != len(other["id"]):  # a policy skipped rows
                read &= np.isin(self.ids[wanted[waiting]], other["id"].numpy())
            for name in names:
                batch[name][at[waiting[read]]] = other[name]
            waiting = waiting[~read]
            wanted[waiting] = donors[wanted[waiting]]

    def _key(self, use: str, field: str) -> int:
        return int(digest([self.seed, use, field])[:16], 16)


def standard_deviation(split: Split, field: str) -> float:
    """Return the standard deviation of all values of a field, over up to 1,000 rows spread evenly over a split.

    Raises:
        DataError: none of the rows can be read.
    """
    rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), _STATISTICS_ROWS)).astype(np.int64)).tolist()
    count, mean, squares = 0, 0.0, 0.0
    for start in range(0, len(rows), _STATISTICS_CHUNK):
        batch, _ = read_finite(split, rows[start : start + _STATISTICS_CHUNK])
        values: Tensor = batch[field].to(torch.float64)
        if values.numel():
            part, gap = values.numel(), float(values.mean()) - mean
            squares += float(((values - values.mean()) ** 2).sum()) + gap**2 * count * part / (count + part)
            mean, count = mean + gap * part / (count + part), count + part
    if not count:
        raise DataError(f"split '{split.name}': no row of '{field}' can be read, so noise has no scale")
    return math.sqrt(squares / count)


def uniform_of(ids: Ids, key: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1) `[N]`, a function of (key, sample id) alone.

    SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), with the id as
    the number of the draw.
    """
    golden, shifts = np.uint64(_GOLDEN), [np.uint64(bits) for bits in (30, 27, 31, 11)]
    mixed = np.uint64(key) + (ids.astype(np.uint64) + np.uint64(1)) * golden
    mixed = (mixed ^ (mixed >> shifts[0])) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> shifts[1])) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> shifts[2]
    draws: NDArray[np.float64] = (mixed >> shifts[3]).astype(np.float64) / 2.0**53
    return draws


def normal_of(ids: Ids, key: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers `[K, *shape]`, float32; each row is a function of (key, sample id) alone."""
    rows = np.empty((len(ids), math.prod(shape)), dtype=np.float32)
    for row, sample in zip(rows, ids.astype(np.uint64), strict=True):
        bits = np.random.Philox(key=np.array([key, sample], dtype=np.uint64))
        np.random.Generator(bits).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(rows).view(-1, *shape)
