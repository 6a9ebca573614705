"""`ravdess`: emotions of 24 actors from what their face and their voice do, as features.

The clips are the speech part of RAVDESS (Livingstone and Russo, "The Ryerson Audio-Visual Database of Emotional Speech
and Song", PLoS ONE 13(5), 2018; CC BY-NC-SA 4.0, not for commercial use). They are not part of the package.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from ..errors import DataError
from .arrays import ArrayField, ArraySplit, Standardise
from .dataset import DATASETS, Dataset, FieldSpec, Ids, Split
from .storage import data_home, load_array, prepare_folder, read_manifest, read_npz

PACK = "ravdess.npz"
FIELDS = {"face": ("visual", 35), "audio": ("audio", 259)}
COLUMNS = ("emotion", "actor", "intensity", "statement", "repetition")
SHARE = 0.2


@DATASETS.register("ravdess")
class Ravdess(Dataset):
    """Emotional speech of 24 actors; run `moekd data prepare ravdess --source DIR` first.

    Splits by actor, so that nobody is in two of them: `train` (14 actors, 840 clips), `val` (5, 300), `test` (5, 300),
    with as many men (odd numbers) as women (even), or one more. Fields, with mean 0 and standard deviation 1 per
    feature over the training rows: `face` `[35]`, intensity (17) and presence (18) of facial action units, averaged
    over the frames; `audio` `[259]`, averaged features based on MFCC. `split.table` holds actor, emotion, intensity,
    statement and repetition of each row. Classes: 8 emotions; "neutral" has half as many clips as each other one.

    Args:
        split_seed: seed of the draw of the actors.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/ravdess`, or `data/ravdess`.

    Raises:
        DataError: not prepared or damaged.
    """

    kind = "ravdess"
    licence = "CC BY-NC-SA 4.0"

    def __init__(self, split_seed: Annotated[int, Ge(0)] = 0, root: str | None = None) -> None:
        self.split_seed = split_seed
        self.root = Path(root) if root is not None else data_home() / self.kind
        self.manifest = read_manifest(self.root, self.kind)
        self.class_names = list(self.manifest["emotions"])
        self.fields = {
            "face": FieldSpec((FIELDS["face"][1],), "float32", "face"),
            "audio": FieldSpec((FIELDS["audio"][1],), "float32", "audio"),
        }

    def load_splits(self) -> dict[str, Split]:
        """Map the files and cut the splits."""
        return {name: self._split(name, rows) for name, rows in self._rows.items()}

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return mean and standard deviation of each feature."""
        return self._scales[field].recipe()

    def identity(self) -> dict[str, Any]:
        """Return checksums; the rows chosen are in the sample ids."""
        return {"files": {name: facts["sha256"] for name, facts in self.manifest["files"].items()}}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from a pack `ravdess.npz`: `visual` `[N, 35]`, `audio` `[N, 259]` and the columns of each clip."""
        return prepare_folder(cls.kind, source, output or data_home() / cls.kind, write_ravdess)

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.int64]]:
        return {name: np.array(load_array(self.root / f"{name}.npy"), dtype=np.int64) for name in COLUMNS}

    @cached_property
    def _rows(self) -> dict[str, Ids]:
        actor = self._columns["actor"]
        parts = split_actors(actor, self.split_seed)
        return {name: np.flatnonzero(np.isin(actor, actors)) for name, actors in parts.items()}

    @cached_property
    def _scales(self) -> dict[str, Standardise]:
        train = self._rows["train"]
        return {name: Standardise.of(load_array(self.root / f"{name}.npy")[train]) for name in FIELDS}

    def _split(self, name: str, rows: Ids) -> Split:
        table: dict[str, list[Any]] = {key: column[rows].tolist() for key, column in self._columns.items()}
        table["emotion"] = [self.class_names[label] for label in table["emotion"]]
        arrays = {
            field: ArrayField(load_array(self.root / f"{field}.npy"), spec, self._scales[field], rows)
            for field, spec in self.fields.items()
        }
        return ArraySplit(name, rows, self._columns["emotion"][rows], arrays, table, _Clip(table))


class _Clip:
    """Human name of a clip; a class so that splits can be sent to worker processes."""

    def __init__(self, table: dict[str, list[Any]]) -> None:
        self.table = table

    def __call__(self, row: int) -> str:
        emotion, actor, intensity, statement, repetition = (self.table[key][row] for key in COLUMNS)
        return f"actor {actor}, {emotion}, intensity {intensity}, statement {statement}, repetition {repetition}"


def split_actors(actor: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Return the actors of `train`, `val` and `test` (60/20/20), drawn in turn from odd and even numbers.

    Raises:
        DataError: fewer than 3 actors.
    """
    actors = np.unique(actor)
    if len(actors) < 3:
        raise DataError(f"ravdess: {len(actors)} actors, at least 3 are needed for train, val and test")
    drawn = np.random.default_rng(seed).permutation(actors)
    place = np.empty(len(drawn))
    for parity in (0, 1):
        same = drawn % 2 == parity
        place[same] = 2 * np.arange(same.sum()) + (1 - parity)
    order = drawn[np.argsort(place, kind="stable")]
    count = max(1, round(SHARE * len(order)))
    return {"train": order[2 * count :], "val": order[count : 2 * count], "test": order[:count]}


def write_ravdess(source: Path, folder: Path) -> dict[str, Any]:
    """Write one array a field and a column; returns the facts for the manifest.

    Raises:
        DataError: no pack, or one that is not as it should be.
    """
    packs = sorted(source.rglob(PACK))
    if not packs:
        raise DataError(f"{source} has no known layout of ravdess: {PACK} not found")
    pack = read_npz(packs[0], [*(key for key, _ in FIELDS.values()), *COLUMNS, "emotions"])
    rows, emotions = len(pack["emotion"]), [str(name) for name in pack["emotions"]]
    for name, (key, width) in FIELDS.items():
        if pack[key].shape != (rows, width):
            raise DataError(f"{packs[0]}: {key} has shape {pack[key].shape}, expected {(rows, width)}")
        if not np.isfinite(pack[key]).all():
            raise DataError(f"{packs[0]}: {key} holds NaN or infinite values")
        np.save(folder / f"{name}.npy", pack[key].astype(np.float32), allow_pickle=False)
    for name in COLUMNS:
        if pack[name].shape != (rows,):
            raise DataError(f"{packs[0]}: {name} has shape {pack[name].shape}, expected {(rows,)}")
        np.save(folder / f"{name}.npy", pack[name], allow_pickle=False)
    if rows and not 0 <= int(pack["emotion"].min()) <= int(pack["emotion"].max()) < len(emotions):
        raise DataError(f"{packs[0]}: emotion lies outside 0 to {len(emotions) - 1}, the names in 'emotions'")
    return {"layout": "pack", "emotions": emotions}
