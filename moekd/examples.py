"""Writes what the report shows of the student's first test split: `examples.json`, with pictures inside."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .atomic import write_json
from .data import Split
from .evaluation import Embedded
from .evaluation.embedding_metrics import seen_modality
from .evaluation.examples import confusions, embedding_map, found_for
from .evaluation.zero_shot import zero_shot_logits

logger = logging.getLogger(__name__)
EXAMPLES = "examples.json"
QUERIES, ANSWERS, CONFUSIONS, PICTURES, SIDE = 6, 5, 6, 4, 128
Fields = Mapping[str, Mapping[str, Any]]


def write_examples(
    folder: Path,
    split: Split,
    name: str,
    embedded: Embedded,
    inputs: Sequence[str],
    fields: Fields,
    class_names: Sequence[str],
    vectors: Tensor | None = None,
) -> Path | None:
    """Write the map of the embeddings, examples of retrieval and the most frequent confusions.

    Args:
        folder: of the run.
        split: where the rows come from.
        name: of the split.
        embedded: what the student says about its rows.
        inputs: fields that the student reads.
        fields: how the data set describes its fields.
        class_names: names of the classes.
        vectors: class vectors `[C, D]`, with which a student without a classifier predicts.

    Returns:
        The file; None where there is nothing to show.
    """
    rows = split.rows_of(embedded.ids.numpy())
    album = Album(split, rows, inputs, fields)
    shown: dict[str, Any] = {"split": name, "rows": len(embedded)}
    if embedded.embeddings:
        groups = _groups(split, rows, embedded, class_names)
        shown["map"] = embedding_map(embedded, groups) if groups else None
        shown["retrieval"] = _retrieval(embedded, album)
    predicted = embedded.predicted
    if predicted is None and vectors is not None and embedded.embeddings:
        images = embedded.embeddings[seen_modality(embedded)]
        predicted = zero_shot_logits(images, vectors).argmax(dim=1) if images.shape[1] == vectors.shape[1] else None
    if predicted is not None and embedded.labels is not None and album.field is not None:
        shown["confusions"] = _confusions(embedded.labels, predicted, album, class_names)
    shown = {key: value for key, value in shown.items() if value}
    if set(shown) <= {"split", "rows"}:
        (folder / EXAMPLES).unlink(missing_ok=True)
        return None
    shown["pictures"] = album.pictures
    return write_json(folder / EXAMPLES, shown)


class Album:
    """Reads rows of a split as pictures and words; each picture is kept once.

    Args:
        split: the split.
        rows: its rows by position in the embeddings.
        inputs: fields that the student reads; its first field of pictures is shown, else the data set's.
        fields: how the data set describes its fields.
    """

    def __init__(self, split: Split, rows: Any, inputs: Sequence[str], fields: Fields) -> None:
        self.split, self.rows, self.fields = split, rows, fields
        ordered = [*(name for name in inputs if name in fields), *(name for name in fields if name not in inputs)]
        self.field = next((name for name in ordered if _is_picture(fields[name])), None)
        self.text = next((name for name in ordered if _is_bytes(fields[name])), None)
        self.pictures: dict[str, str] = {}

    def name(self, position: int) -> str:
        """Return what a row is called."""
        return self.split.describe(int(self.split.ids[self.rows[position]]))

    def words(self, position: int) -> str:
        """Return the text of a row, or what it is called."""
        if self.text is None:
            return self.name(position)
        batch = self._read(position)
        ids = batch[self.text][0].tolist() if len(batch["id"]) else []
        text = bytes(i - 1 for i in ids if i > 0).decode("utf-8", errors="ignore")
        return text if len(text) <= 200 else text[:197] + "..."

    def picture(self, position: int) -> str | None:
        """Keep the picture of a row and return its key; None where there are no pictures."""
        if self.field is None:
            return None
        key = str(int(self.split.ids[self.rows[position]]))
        if key not in self.pictures:
            batch = self._read(position)
            if not len(batch["id"]):
                return None
            self.pictures[key] = png_of(batch[self.field][0], self.fields[self.field])
        return key

    def _read(self, position: int) -> Mapping[str, Any]:
        return self.split.__getitems__([int(self.rows[position])])


def png_of(pixels_CHW: Tensor, field: Mapping[str, Any], side: int = SIDE) -> str:
    """Return a picture as base64 of a PNG with about `side` pixels a side; mean and std of the field are undone."""
    from PIL import Image

    pixels = pixels_CHW.detach().float().cpu()
    mean, std = (torch.tensor(list(field.get(key) or default)) for key, default in (("mean", [0.0]), ("std", [1.0])))
    pixels = (pixels * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).nan_to_num().clamp(0, 1)
    array = (pixels.expand(3, -1, -1).permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    image = Image.fromarray(array)
    height, width = array.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = image.resize(size, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.quantize(128).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _retrieval(embedded: Embedded, album: Album) -> dict[str, Any] | None:
    found = found_for(embedded, QUERIES, ANSWERS)
    if found is None:
        return None
    first, second = found["modalities"]
    shown: dict[str, Any] = {"modalities": [first, second]}
    for source, target in ((first, second), (second, first)):
        shown[f"{source}_to_{target}"] = [
            {
                **_side(album, query["row"], source),
                "rank": query["rank"],
                "found": [
                    {**_side(album, answer["row"], target), "right": answer["right"], "score": answer["score"]}
                    for answer in query["found"]
                ],
            }
            for query in found[f"{source}_to_{target}"]
        ]
    return shown


def _side(album: Album, position: int, modality: str) -> dict[str, Any]:
    if modality == "text":
        return {"text": album.words(position)}
    return {"text": album.name(position), "picture": album.picture(position)}


def _confusions(labels: Tensor, predicted: Tensor, album: Album, class_names: Sequence[str]) -> list[dict[str, Any]]:
    def told(positions: Iterable[int]) -> list[dict[str, Any]]:
        return [{"text": album.name(p), "picture": album.picture(p)} for p in positions]

    return [
        {
            **pair,
            "label": class_names[pair["label"]],
            "predicted": class_names[pair["predicted"]],
            "rows": told(pair["rows"]),
            "like": told(pair["like"]),
        }
        for pair in confusions(labels, predicted, CONFUSIONS, PICTURES)
    ]


def _groups(split: Split, rows: Any, embedded: Embedded, class_names: Sequence[str]) -> list[str]:
    """Return the name of each row's group: the data set's own column `group`, else its class; empty without both."""
    column = split.table.get("group")
    if column is not None:
        return [str(column[row]) for row in rows]
    if embedded.labels is None:
        return []
    return [class_names[label] if label >= 0 else "no label" for label in embedded.labels.tolist()]


def _is_picture(field: Mapping[str, Any]) -> bool:
    shape = tuple(field.get("shape") or ())
    floats = str(field.get("dtype")).startswith("float")
    return field.get("modality") == "image" and len(shape) == 3 and shape[0] in (1, 3) and floats


def _is_bytes(field: Mapping[str, Any]) -> bool:
    tokenizer = field.get("tokenizer")
    return field.get("modality") == "text" and isinstance(tokenizer, Mapping) and bool(tokenizer.get("bytes"))
