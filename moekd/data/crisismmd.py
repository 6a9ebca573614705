"""`crisismmd`: tweets about disasters, a picture and a text each, in 8 humanitarian categories.

CrisisMMD v2.0: Alam, Ofli and Imran, "CrisisMMD: Multimodal Twitter Datasets from Natural Disasters", ICWSM 2018, for
research (CC BY-NC-SA 4.0). Nothing of it is part of the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt
from numpy.typing import NDArray

from .arrays import ArrayField, ArraySplit, UnitScale, to_float
from .byte_texts import to_integers
from .crisismmd_prepare import CATEGORIES, SIZE, write_crisismmd
from .dataset import DATASETS, Dataset, FieldSpec, Split
from .published_splits import GROUPS, rows_of_group
from .storage import data_home, load_array, read_manifest
from .tokenizers import BytesTokenizer

#: Mean and standard deviation of ImageNet, with which the published features were made.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@DATASETS.register("crisismmd")
class CrisisMMD(Dataset):
    """Pictures and texts of tweets; run `moekd data prepare crisismmd --source DIR` first.

    Splits: `train`, `val`, `test`, 60/20/20 by a published permutation. Fields, as they were prepared: from features,
    `image` `[2048]` (ResNet-50, pooled) and `text` `[768]` (BERTweet, pooled), not normalised, as published; from the
    original files, `image` `[3, 224, 224]` with ImageNet's mean and standard deviation, and the normalised text as
    bytes, `text` int64 `[context]` with `text_mask`, for models that read pictures and texts themselves.

    Args:
        group: which of the 20 published splits.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/crisismmd`, or `data/crisismmd`.

    Raises:
        DataError: not prepared or damaged.
    """

    kind = "crisismmd"

    def __init__(self, group: Annotated[int, Ge(0), Lt(GROUPS)] = 0, root: str | None = None) -> None:
        self.group = group
        self.root = Path(root) if root is not None else data_home() / self.kind
        self.manifest = read_manifest(self.root, self.kind)
        self.class_names = list(CATEGORIES)
        self.features = self.manifest["layout"] == "features"
        if self.features:
            self.fields = {
                name: FieldSpec((int(self.manifest["widths"][name]),), "float32", name) for name in ("image", "text")
            }
        else:
            self.tokenizer = BytesTokenizer(int(self.manifest["context"]), lower=False)
            self.fields = {
                "image": FieldSpec((3, SIZE, SIZE), "float32", "image"),
                "text": FieldSpec((self.manifest["context"],), "int64", "text"),
                "text_mask": FieldSpec((self.manifest["context"],), "bool", "text"),
            }

    def load_splits(self) -> dict[str, Split]:
        """Map the files and cut the splits."""
        labels = np.array(load_array(self.root / "label.npy"), dtype=np.int64)
        arrays = self._arrays()
        names = self.manifest["names"]
        splits: dict[str, Split] = {}
        for name, rows in rows_of_group(len(labels), self.group).items():
            tweets = [str(names[row]) for row in rows]
            fields = {key: field.at(rows) for key, field in arrays.items()}
            splits[name] = ArraySplit(name, rows, labels[rows], fields, {"tweet": tweets}, tweets.__getitem__)
        return splits

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return the normalisation of pictures and the tokenizer of texts."""
        if self.features:
            return {}
        return {"mean": list(MEAN), "std": list(STD)} if field == "image" else {"tokenizer": self.tokenizer.recipe()}

    def identity(self) -> dict[str, Any]:
        """Return checksums; the rows chosen are in the sample ids."""
        return {"files": {name: facts["sha256"] for name, facts in self.manifest["files"].items()}}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from features or the original files; see `crisismmd_prepare`."""
        return write_crisismmd(source, output or data_home() / cls.kind, progress)

    def _arrays(self) -> dict[str, ArrayField]:
        image, text = (load_array(self.root / f"{name}.npy") for name in ("image", "text"))
        if self.features:
            return {name: ArrayField(a, self.fields[name], to_float) for name, a in (("image", image), ("text", text))}
        return {
            "image": ArrayField(image, self.fields["image"], UnitScale(MEAN, STD)),
            "text": ArrayField(text, self.fields["text"], _ids),
            "text_mask": ArrayField(text, self.fields["text_mask"], _mask),
        }


def _ids(values: NDArray[Any]) -> Any:
    return to_integers(values.clip(min=0))


def _mask(values: NDArray[Any]) -> Any:
    return to_integers(values).ge(0)
