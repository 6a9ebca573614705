"""Questions about files: which label, which picture for a text, and the embeddings themselves.

Shapes: N pictures, T texts, D width of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..atomic import write_bytes, write_json
from ..errors import ConfigError, DataError
from .files import picture_files, read_input
from .predictor import Predictor, Seen, cosines

Run = Path | str | Predictor
SAFETENSORS, JSON = ".safetensors", ".json"


@dataclass(frozen=True)
class Prediction:
    """What the student says about one input: its path and the most probable labels with their probabilities."""

    path: str
    classes: list[tuple[str, float]]


@dataclass(frozen=True)
class Match:
    """What a text finds: the paths of the pictures that fit best, with their cosines."""

    text: str
    pictures: list[tuple[str, float]]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings as the student gives them, not normalised.

    Attributes:
        paths, texts: what the rows belong to.
        image: `[N, D]`, or None without pictures.
        text: `[T, D]`, or None without texts.
    """

    paths: list[str]
    texts: list[str]
    image: Tensor | None
    text: Tensor | None

    def plain(self) -> dict[str, list[dict[str, object]]]:
        """Return what can be written as JSON."""
        said: dict[str, list[dict[str, object]]] = {}
        if self.image is not None:
            rows = zip(self.paths, self.image.tolist(), strict=True)
            said["images"] = [{"path": path, "embedding": row} for path, row in rows]
        if self.text is not None:
            rows = zip(self.texts, self.text.tolist(), strict=True)
            said["texts"] = [{"text": text, "embedding": row} for text, row in rows]
        return said

    def write(self, file: Path) -> Path:
        """Write a `.json` file, or a `.safetensors` file with the tensors `image` and `text`.

        The metadata of the latter holds what the rows belong to, as JSON lists under the same keys.

        Raises:
            ConfigError: another ending.
        """
        check_output(file)
        if file.suffix == JSON:
            return write_json(file, self.plain())
        both = {"image": (self.image, self.paths), "text": (self.text, self.texts)}
        tensors = {key: tensor.contiguous() for key, (tensor, _) in both.items() if tensor is not None}
        names = {key: json.dumps(names) for key, (tensor, names) in both.items() if tensor is not None}
        return write_bytes(file, safetensors.torch.save(tensors, metadata=names))


def check_output(file: Path) -> None:
    """Refuse a file that embeddings can't be written to.

    Raises:
        ConfigError: another ending than `.safetensors` or `.json`, or a folder that is not there.
    """
    if file.suffix not in (SAFETENSORS, JSON):
        raise ConfigError(f"output: expected a file ending in {SAFETENSORS} or {JSON}, found {file.name!r}")
    if not file.parent.is_dir():
        raise ConfigError(f"output: no folder {file.parent}")


def predict(
    run: Run,
    images: Sequence[Path | str],
    top: int = 5,
    batch_size: int = 64,
    *,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    device: str = "cpu",
) -> list[Prediction]:
    """Classify files with the student of a run.

    Args:
        run: run folder, exported student, or a `Predictor`, which is loaded once for several calls.
        images: pictures, or `.npy` arrays of the field's shape; a folder stands for all those in it.
        top: labels to return.
        batch_size: inputs in a batch.
        labels: what to choose from; default the student's own classes. Any text for a student with a text tower
            (zero-shot classification, arXiv 2103.00020), else a part of its classes.
        templates: prompts in which labels are read; `{}` is the label.
        device: where to run.

    Raises:
        DataError: no student there, a student with several inputs, or a file that can't be read.
        ConfigError: labels or templates that can't be used.
        ModelError: the student does not classify.
    """
    predictor = _ready(run, device)
    _check_counts(top, batch_size)
    chosen = predictor.labels(labels, templates)
    files = picture_files(images)
    if not files:
        return []
    vectors_CD = predictor.vectors(chosen) if chosen is not None and predictor.reads_texts else None
    names = predictor.class_names if chosen is None else list(chosen.names)
    predictions = []
    for paths, seen in _seen(predictor, files, batch_size):
        values, indices = predictor.probabilities(seen, chosen, vectors_CD).topk(min(top, len(names)), dim=1)
        for path, v, i in zip(paths, values.tolist(), indices.tolist(), strict=True):
            predictions.append(Prediction(str(path), [(names[c], p) for c, p in zip(i, v, strict=True)]))
    return predictions


def search(
    run: Run,
    texts: Sequence[str],
    images: Sequence[Path | str],
    top: int = 5,
    batch_size: int = 64,
    *,
    device: str = "cpu",
) -> list[Match]:
    """Find the pictures that fit each text best.

    Args:
        run: see `predict`; the student needs a text tower.
        texts: what to look for.
        images: pictures or folders with pictures.
        top: pictures to return for each text.
        batch_size: inputs in a batch.
        device: where to run.

    Raises:
        DataError: no student, or a file that can't be read.
        ConfigError: no text, or an empty one.
        ModelError: the student has no text tower.
    """
    predictor = _ready(run, device)
    _check_counts(top, batch_size)
    text_TD = predictor.read(clean_texts(texts))
    files = picture_files(images)
    if not files:
        raise DataError("search: expected at least one picture, found none")
    seen = Seen.cat([part for _, part in _seen(predictor, files, batch_size)])
    values, indices = cosines(seen, text_TD).T.topk(min(top, len(files)), dim=1)
    return [
        Match(text, [(str(files[n]), cosine) for n, cosine in zip(i, v, strict=True)])
        for text, v, i in zip(texts, values.tolist(), indices.tolist(), strict=True)
    ]


def embed(
    run: Run,
    images: Sequence[Path | str] = (),
    texts: Sequence[str] = (),
    batch_size: int = 64,
    *,
    device: str = "cpu",
) -> Embeddings:
    """Return the embeddings of pictures and texts.

    Raises:
        DataError: no student, or a file that can't be read.
        ConfigError: neither pictures nor texts, or an empty text.
        ModelError: the student gives no embeddings, or has no text tower.
    """
    predictor = _ready(run, device)
    _check_counts(1, batch_size)
    files = picture_files(images)
    if not files and not texts:
        raise ConfigError("embed: expected pictures or texts, found none")
    text_TD = image_ND = None
    if texts:
        parts = clean_texts(texts)
        text_TD = torch.cat([predictor.read(parts[i : i + batch_size]) for i in range(0, len(parts), batch_size)])
    if files:
        image_ND = predictor.embeddings(Seen.cat([part for _, part in _seen(predictor, files, batch_size)]))
    return Embeddings([str(file) for file in files], list(texts), image_ND, text_TD)


def clean_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts.

    Raises:
        ConfigError: none, or an empty one.
    """
    if not texts or any(not text.strip() for text in texts):
        raise ConfigError(f"text: expected texts that are not empty, found {list(texts)!r:.200}")
    return list(texts)


def _ready(run: Run, device: str) -> Predictor:
    return run if isinstance(run, Predictor) else Predictor(run, device)


def _check_counts(top: int, batch_size: int) -> None:
    for name, count in (("top", top), ("batch_size", batch_size)):
        if count < 1:
            raise ConfigError(f"{name}: expected at least 1, found {count}")


def _seen(predictor: Predictor, files: Sequence[Path], batch_size: int) -> Iterator[tuple[Sequence[Path], Seen]]:
    for start in range(0, len(files), batch_size):
        paths = files[start : start + batch_size]
        yield paths, predictor.see(torch.stack([read_input(path, predictor.field) for path in paths]))
