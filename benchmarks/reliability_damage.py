"""Single bytes of checkpoints, stored signals and students are flipped, or files cut off: is it noticed?"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from ..cache.table import Table
from ..checkpoint import find_latest, load_checkpoint
from ..errors import MoekdError
from ..export import load_student, read_student

Read = Callable[[Path], Any]
#: The worst: nothing tells that the numbers are others.
SILENT = "other numbers, and nothing said"


def damaged_files(run: Path, tables: Path, student: Path, work: Path, trials: int, seed: int) -> list[dict[str, Any]]:
    """Damage copies of files at random, one byte or one cut at a time, and load them.

    A damage is detected when loading raises one of moekd's own errors, and harmless when everything that loading gives
    is what it was (a word in the model card, a blank in a JSON file). Anything else has failed: another error, or other
    numbers.

    Args:
        run: folder of a finished run.
        tables: folder with its stored signals.
        student: its exported student.
        work: an empty folder.
        trials: in all.
        seed: of the choice.

    Returns:
        A row a kind of file.
    """
    newest, _ = find_latest(run / "checkpoints")
    table = next(path.parent for path in sorted(tables.glob("*/manifest.json")))
    assert newest is not None
    kinds: dict[str, tuple[Path, Read]] = {
        "checkpoint": (newest, load_checkpoint),
        "stored signals": (table, _signals),
        "student": (student, _student),
    }
    rng, rows = random.Random(seed), list[dict[str, Any]]()
    for index, (kind, (source, read)) in enumerate(kinds.items()):
        copy, count = work / str(index), trials * (index + 1) // len(kinds) - trials * index // len(kinds)
        shutil.copytree(source, copy)
        rows.append({"case": kind} | _try(copy, read, count, rng))
    return rows


def _try(folder: Path, read: Read, trials: int, rng: random.Random) -> dict[str, Any]:
    expected, wrong = deepcopy(read(folder)), list[str]()  # what is read may be mapped from the file itself
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    found = {"trials": trials, "detected": 0, "harmless": 0}
    for _ in range(trials):
        file = rng.choice(files)
        whole = file.read_bytes()
        place = rng.randrange(len(whole))
        cut = rng.random() < 0.25
        file.write_bytes(whole[:place] if cut else _flipped(whole, place, rng.randrange(1, 256)))
        where = f"{file.name}, byte {place}, {'cut' if cut else 'flipped'}"
        try:
            if _same(read(folder), expected):
                found["harmless"] += 1
            else:
                wrong.append(f"{where}: {SILENT}")
        except MoekdError:
            found["detected"] += 1
        except Exception as error:
            wrong.append(f"{where}: {error!r:.120}")
        file.write_bytes(whole)
    wrong.sort(key=lambda line: SILENT not in line)
    return found | {"failed": len(wrong), "said": "; ".join(wrong[:3])}


def _flipped(content: bytes, place: int, mask: int) -> bytes:
    return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def _signals(folder: Path) -> Any:
    """Return all rows of a table, as the store reads them: sound shards only."""
    table = Table.open(folder)
    for index in range(table.shards):
        if reason := table.damage(index):
            raise MoekdError(reason)
    read = [table.read(index) for index in range(table.shards)]
    return table.manifest, [[ids, encoded.rows, encoded.shared] for ids, encoded in read]


def _student(folder: Path) -> Any:
    return read_student(folder)[1], load_student(folder).state_dict()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or (one != one and other != other)
