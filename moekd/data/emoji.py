"""`emoji`: pictures of 1,914 concepts in 7 drawing styles, with names, keywords and sentence vectors; shipped.

An image student learns the subgroup (98) or group (9) of a picture; the sentence vector of the concept's name and
keywords is the privileged modality. Two shifts are measured: concepts and drawing styles unseen in training.
Sources, licences and credits: `benchmarks/data/emoji/LICENSES.md`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .arrays import ArrayField, ArraySplit, UnitScale, to_float
from .byte_texts import ByteTexts, to_integers
from .dataset import DATASETS, Dataset, FieldSpec, Ids, Split
from .fingerprint import file_digest

SIZE = 32
TEXT_DIM = 384
TRAIN_STYLES = ("twemoji", "noto", "fluent-emoji-flat", "emojione")
UNSEEN_STYLES = ("openmoji",)
VAL_FRACTION, TEST_FRACTION = 0.1, 0.2
Captions = Literal["name", "keywords", "name_keywords", "all"]


@DATASETS.register("emoji")
class Emoji(Dataset):
    """Image-text pairs of emoji.

    Splits: `train` (70% of the concepts, training styles), `val` (10% of the concepts, training styles), `test` (20% of
    the concepts, training styles), `test_unseen_style` (training concepts, unseen styles) and `test_unseen_both` (test
    concepts, unseen styles). Concepts are split within each subgroup, so that classes with one or two concepts occur
    only in `train`. Fields: `image` `[3, 32, 32]` on white, `text` `[384]`; with `captions` also `caption` (raw text as
    bytes, int64 `[context]`), `caption_mask` (bool `[context]`) and `concept` (int64 `[1]`: pictures of one concept in
    different styles have the same number).

    Args:
        target: what the label is: 98 subgroups or 9 groups.
        train_styles: drawing styles of train, val and test.
        unseen_styles: drawing styles of the unseen-style splits; may be empty, then these splits do not exist.
        split_seed: seed of the split of the concepts and of `max_train`.
        max_train: keep this many training pictures, drawn at random; None keeps all.
        mean: per-channel mean to subtract from pixels in [0, 1]; None subtracts nothing.
        std: per-channel standard deviation to divide by; None divides by nothing.
        captions: raw text of the concept for models that read text: its name ("red apple"), its keywords, or
            "name. keywords", of which `text` holds the vectors; "all" gives the name, and all three in the field
            `caption_choices`, of which the transform `draw_text` draws one; None leaves the fields out.

    Raises:
        DataError: an unknown style, a style on both sides, or damaged files.
    """

    kind = "emoji"
    licence = "CC BY-SA 4.0"

    def __init__(
        self,
        target: Literal["subgroup", "group"] = "subgroup",
        train_styles: list[str] = list(TRAIN_STYLES),  # noqa: B006
        unseen_styles: list[str] = list(UNSEEN_STYLES),  # noqa: B006
        split_seed: int = 0,
        max_train: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        captions: Captions | None = None,
    ) -> None:
        self.target = target
        self.train_styles, self.unseen_styles = list(train_styles), list(unseen_styles)
        self.split_seed, self.max_train = split_seed, max_train
        self.scale = UnitScale(None if mean is None else tuple(mean), None if std is None else tuple(std))
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != 3:
                raise DataError(f"emoji: {name} needs 3 values, one a colour channel; found {values}")
        both = sorted(set(self.train_styles) & set(self.unseen_styles))
        if both:
            raise DataError(f"emoji: styles {', '.join(both)} are in both train_styles and unseen_styles")
        self.folder = pack_folder()
        self.manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        lines = (self.folder / "emoji.jsonl").read_text(encoding="utf-8").splitlines()
        self.concepts: list[dict[str, Any]] = [json.loads(line) for line in lines]
        names = {concept[f"{target}_id"]: concept[target] for concept in self.concepts}
        self.class_names = [names[label] for label in range(len(names))]
        self.fields = {
            "image": FieldSpec((3, SIZE, SIZE), "float32", "image"),
            "text": FieldSpec((TEXT_DIM,), "float32", "text"),
        }
        self.captions = captions
        self.texts = None if captions is None else ByteTexts([texts_of(c, captions) for c in self.concepts])
        if self.texts is not None:
            self.fields |= self.texts.specs("caption") | {"concept": FieldSpec((1,), "int64", "index")}

    def load_splits(self) -> dict[str, Split]:
        """Load the pictures (34 MB as uint8) and cut the splits."""
        for name, expected in self.manifest["sha256"].items():
            if file_digest(self.folder / name) != expected:
                raise DataError(
                    f"{self.folder / name} is damaged (its sha256 is not the manifest's): install moekd again"
                )
        with np.load(self.folder / "emoji32.npz", allow_pickle=False) as pack:
            images = np.ascontiguousarray(pack["image"].transpose(0, 3, 1, 2))
            style, row = pack["style"].astype(np.int64), pack["row"].astype(np.int64)
            styles = [str(name) for name in pack["styles"]]
        with np.load(self.folder / "text.npz", allow_pickle=False) as pack:
            vectors = pack["vector"]
        part = split_concepts(np.array([c["subgroup_id"] for c in self.concepts]), self.split_seed)
        seen = np.isin(style, self._style_indices(self.train_styles, styles))
        unseen = np.isin(style, self._style_indices(self.unseen_styles, styles))
        chosen = {
            "train": seen & (part[row] == 0),
            "val": seen & (part[row] == 1),
            "test": seen & (part[row] == 2),
            "test_unseen_style": unseen & (part[row] == 0),
            "test_unseen_both": unseen & (part[row] == 2),
        }
        if not self.unseen_styles:
            chosen = {name: mask for name, mask in chosen.items() if not name.startswith("test_unseen")}
        ids = {name: np.flatnonzero(mask) for name, mask in chosen.items()}
        ids["train"] = self._subset(ids["train"])
        return {
            name: self._split(name, index, row[index], [styles[s] for s in style[index]], images, vectors)
            for name, index in ids.items()
        }

    def input_recipe(self, field: str) -> dict[str, Any]:
        """Return the scaling of pictures and the form of captions; `text` is MiniLM vectors of 'name. keywords'."""
        if field == "caption" and self.texts is not None:
            return self.texts.recipe()
        if field != "image":
            return {}
        return {"mean": list(self.scale.mean or ()), "std": list(self.scale.std or ())}

    def identity(self) -> dict[str, Any]:
        """Return options and checksums."""
        return {
            "sha256": self.manifest["sha256"],
            "target": self.target,
            "mean": self.scale.mean,
            "std": self.scale.std,
        } | ({} if self.captions is None else {"captions": self.captions})

    def _split(
        self,
        name: str,
        ids: Ids,
        row: Ids,
        style: list[str],
        images: NDArray[np.uint8],
        vectors: NDArray[np.float16],
    ) -> Split:
        labels = np.array([concept[f"{self.target}_id"] for concept in self.concepts])[row]
        concepts = [self.concepts[r] for r in row]
        table: dict[str, list[Any]] = {
            key: [concept[key] for concept in concepts] for key in ("name", "keywords", "group", "subgroup")
        }
        table |= {"style": style, "concept": row.tolist()}
        arrays = {
            "image": ArrayField(images, self.fields["image"], self.scale, ids),
            "text": ArrayField(vectors, self.fields["text"], to_float, row),
        }
        if self.texts is not None:
            numbers = np.arange(len(self.concepts))[:, None]
            arrays |= self.texts.fields("caption", row)
            arrays["concept"] = ArrayField(numbers, self.fields["concept"], to_integers, row)
        return ArraySplit(name, ids, labels, arrays, table, _Names([c["name"] for c in concepts], style))

    def _subset(self, ids: Ids) -> Ids:
        if self.max_train is None or self.max_train >= len(ids):
            return ids
        if self.max_train < 1:
            raise DataError(f"emoji: max_train must be at least 1, found {self.max_train}")
        return np.sort(np.random.default_rng(self.split_seed).permutation(ids)[: self.max_train])

    def _style_indices(self, names: list[str], styles: list[str]) -> list[int]:
        for name in names:
            if name not in styles:
                hint = did_you_mean(name, styles) or f"; styles: {', '.join(styles)}"
                raise DataError(f"emoji: unknown drawing style {name!r}{hint}")
        return [styles.index(name) for name in names]


class _Names:
    """Human name of a row: "red apple (noto)"; a class so that splits can be sent to worker processes."""

    def __init__(self, names: list[str], styles: list[str]) -> None:
        self.names, self.styles = names, styles

    def __call__(self, row: int) -> str:
        return f"{self.names[row]} ({self.styles[row]})"


def texts_of(concept: dict[str, Any], form: Captions) -> list[str]:
    """Return the texts of a concept."""
    keywords = ", ".join(concept["keywords"])
    texts = {"name": concept["name"], "keywords": keywords, "name_keywords": f"{concept['name']}. {keywords}"}
    return list(texts.values()) if form == "all" else [texts[form]]


def pack_folder() -> Path:
    """Return the folder of the shipped emoji files."""
    return Path(str(files("moekd.benchmarks"))) / "data" / "emoji"


def split_concepts(strata: Ids, seed: int) -> Ids:
    """Split concepts 70/10/20 within each stratum; every stratum keeps at least one training concept.

    Args:
        strata: stratum of each concept `[concepts]`.
        seed: seed of the split.

    Returns:
        0 (train), 1 (val) or 2 (test) for each concept.
    """
    generator = np.random.default_rng(seed)
    part = np.zeros(len(strata), dtype=np.int64)
    for stratum in np.unique(strata):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        test = int(TEST_FRACTION * len(members) + 0.5)
        val = int(VAL_FRACTION * len(members) + 0.5)
        part[members[:test]] = 2
        part[members[test : test + val]] = 1
    return part
