"""`mfeat`: 2,000 handwritten digits as six views of very different strength, for many small teachers in seconds.

The data are the Multiple Features set of the UCI repository (Duin, CC BY 4.0, doi 10.24432/C5HC70). They are not part
of the package.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from ..errors import DataError
from .arrays import ArrayField, ArraySplit, Standardise
from .dataset import DATASETS, Dataset, FieldSpec, Ids, Split
from .few_labels import labelled_mask
from .mfeat_prepare import TEST, VIEWS, write_mfeat
from .storage import data_home, load_array, prepare_folder, read_manifest

View = Literal["fac", "fou", "kar", "mor", "pix", "zer"]


@DATASETS.register("mfeat")
class MultipleFeatures(Dataset):
    """Handwritten digits in six views; run `moekd data prepare mfeat --source DIR` first.

    Splits: `train` (1,400), `val` (200), `test` (400), each with equal shares of the classes. Fields, each with mean 0
    and standard deviation 1 per feature over the training rows: `fac` `[216]` profile correlations, `fou` `[76]`
    Fourier coefficients, `kar` `[64]` Karhunen-Loeve coefficients, `mor` `[6]` morphological features, `pix` `[240]`
    averages of 2 x 3 pixels, `zer` `[47]` Zernike moments.

    Args:
        views: the fields to give; None gives all.
        val: number of validation rows, taken from the training rows.
        split_seed: None keeps the test rows of the prepared files and draws the validation rows from seed 0; a number
            draws test and validation rows anew.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/mfeat`, or `data/mfeat`.

    Raises:
        DataError: not prepared, damaged, no view or one view twice, or too many validation rows.
    """

    kind = "mfeat"
    licence = "CC BY 4.0"

    def __init__(
        self,
        views: list[View] | None = None,
        val: Annotated[int, Ge(10)] = 200,
        split_seed: Annotated[int, Ge(0)] | None = None,
        root: str | None = None,
    ) -> None:
        chosen: list[View] = list(get_args(View) if views is None else views)
        if not chosen or len(set(chosen)) < len(chosen) or set(chosen) - set(VIEWS):
            raise DataError(f"mfeat: views must be some of {', '.join(VIEWS)}, each once; found {chosen}")
        self.views, self.val, self.split_seed = chosen, val, split_seed
        self.root = Path(root) if root is not None else data_home() / self.kind
        self.manifest = read_manifest(self.root, self.kind)
        self.class_names = [str(digit) for digit in range(10)]
        self.fields = {view: FieldSpec((VIEWS[view],), "float32", "vector") for view in chosen}

    def load_splits(self) -> dict[str, Split]:
        """Map the files and cut the splits."""
        labels, rows = self._labels, self._rows
        arrays = {
            view: ArrayField(load_array(self.root / f"{view}.npy"), spec, self._scales[view])
            for view, spec in self.fields.items()
        }
        return {
            name: ArraySplit(
                name,
                index,
                labels[index],
                {view: field.at(index) for view, field in arrays.items()},
                {"digit": labels[index].tolist()},
                _Digit(labels[index].tolist(), index.tolist()),
            )
            for name, index in rows.items()
        }

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return mean and standard deviation of each feature."""
        return self._scales[field].recipe()

    def identity(self) -> dict[str, Any]:
        """Return views and checksums; the rows chosen are in the sample ids."""
        return {"views": self.views, "files": {k: v["sha256"] for k, v in self.manifest["files"].items()}}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from UCI's files or a pack; see `mfeat_prepare`."""
        return prepare_folder(cls.kind, source, output or data_home() / cls.kind, write_mfeat)

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        return np.array(load_array(self.root / "label.npy"), dtype=np.int64)

    @cached_property
    def _rows(self) -> dict[str, Ids]:
        """Rows of the files by split."""
        labels, seed = self._labels, self.split_seed
        test = load_array(self.root / "part.npy") == TEST
        if seed is not None:
            test = labelled_mask(labels, int(test.sum()), seed)
        rest = np.flatnonzero(~test)
        if self.val > len(rest) - len(self.class_names):
            raise DataError(f"mfeat: val: {self.val} rows asked for, but test leaves {len(rest)} for train and val")
        val = labelled_mask(labels[rest], self.val, seed or 0)
        return {"train": rest[~val], "val": rest[val], "test": np.flatnonzero(test)}

    @cached_property
    def _scales(self) -> dict[str, Standardise]:
        train = self._rows["train"]
        return {view: Standardise.of(load_array(self.root / f"{view}.npy")[train]) for view in self.views}


class _Digit:
    """Human name of a row; a class so that splits can be sent to worker processes."""

    def __init__(self, digits: list[int], rows: list[int]) -> None:
        self.digits, self.rows = digits, rows

    def __call__(self, row: int) -> str:
        return f"digit {self.digits[row]}, row {self.rows[row]} of the prepared files"
