"""A student that is ready for questions: what it sees in pictures, what it reads in texts, how the two compare.

Shapes: B inputs, C labels, T texts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, DataError, ModelError, did_you_mean
from ..evaluation.zero_shot import TEMPLATES, class_vectors
from ..export import load_student, read_student
from . import towers
from .label_vectors import read_label_vectors
from .labels import Labels, clean_labels, clean_templates

#: Factor of cosines for a student without a scale of its own; that of CLIP (arXiv 2103.00020, section 2.5).
SCALE = 100.0


@dataclass(frozen=True)
class Seen:
    """What a student says about inputs: logits `[B, C]` of its own classes and embeddings `[B, D]`, if it has them."""

    logits: Tensor | None
    embeddings: Tensor | None

    def row(self, index: int) -> Seen:
        """Return one row, with its axis."""
        rows = slice(index, index + 1)
        logits, embeddings = self.logits, self.embeddings
        return Seen(None if logits is None else logits[rows], None if embeddings is None else embeddings[rows])

    @staticmethod
    def cat(parts: Sequence[Seen]) -> Seen:
        """Join rows that one student has seen."""
        logits = [part.logits for part in parts if part.logits is not None]
        embeddings = [part.embeddings for part in parts if part.embeddings is not None]
        return Seen(torch.cat(logits) if logits else None, torch.cat(embeddings) if embeddings else None)


class Predictor:
    """An exported student with one input that is no text, and perhaps a text tower.

    Messages never name the student's folder, so that a server may pass them on.

    Args:
        run: run folder or exported student.
        device: "cpu", "cuda", "cuda:1", "mps".
        label_vectors: file with labels and their vectors, made by the text encoder whose space the student learned;
            they replace the student's own classes. See `read_label_vectors`.

    Attributes:
        title: of the run.
        class_names: the student's own classes.
        name: its input field that is no text; `field` says what it takes.

    Raises:
        DataError: no student there, or a student of several inputs.
        CheckpointError: damaged files.
        ConfigError: a device that is not here.
    """

    def __init__(self, run: Path | str, device: str = "cpu", label_vectors: Path | str | None = None) -> None:
        _, self.document = read_student(Path(run))
        self.device = known_device(device)
        self.network = load_student(Path(run)).to(self.device)
        self.title = str(self.document.get("title") or f"{self.document['network']['kind']} student")
        self.class_names: list[str] = list(self.document["class_names"])
        self.inputs: list[str] = list(self.document["inputs"])
        fields = self.document["fields"]
        seen = [name for name in self.inputs if fields[name]["modality"] != "text"]
        self.alone = len(self.inputs) == 1
        if not self.alone and not (len(seen) == 1 and towers.has_towers(self.network)):
            raise DataError(
                f"the student reads {', '.join(self.inputs)}; files can be given to students of one input only, or to "
                "those with a tower for pictures and one for texts"
            )
        self.name = seen[0] if seen else self.inputs[0]
        self.field: dict[str, Any] = fields[self.name]
        self._see = towers.seer(self.network, self.name, self.field["modality"], self.alone)
        self._read = towers.text_reader(self.network)
        scale, self._bias = towers.scale_and_bias(self.network)
        self._scale = SCALE if scale is None else scale
        self._given: Tensor | None = None
        if label_vectors is not None:
            self.class_names, self._given = self._mapped(*read_label_vectors(label_vectors))

    @property
    def reads_texts(self) -> bool:
        """Whether the student has a text tower, so that any label can be asked for."""
        return self._read is not None

    @property
    def classifies(self) -> bool:
        """Whether the student gives logits of its own classes, without reading their names for each question."""
        return self._blank.logits is not None

    @property
    def embeds(self) -> bool:
        """Whether the student gives embeddings of its inputs."""
        return self._blank.embeddings is not None

    @cached_property
    def _blank(self) -> Seen:
        """What the student says about an empty input; only what there is counts."""
        dtype = getattr(torch, self.field.get("dtype", "float32"))
        return self.see(torch.zeros(1, *self.field["shape"], dtype=dtype))

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompts for labels: those that the student was made with, or those for pictures in general."""
        return towers.own_templates(self.network) or tuple(TEMPLATES)

    def see(self, batch: Tensor) -> Seen:
        """Return what the student says about prepared inputs `[B, ...]`, on the CPU."""
        with torch.inference_mode():
            said = self._see(batch.to(self.device))
        embeddings = said.embeddings.get(self.field["modality"])
        seen = Seen(
            None if said.logits is None else said.logits.float().cpu(),
            None if embeddings is None else embeddings.float().cpu(),
        )
        return seen if self._given is None else Seen(self._logits(seen, self._given), seen.embeddings)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings `[T, D]` of texts, on the CPU.

        Raises:
            ModelError: the student has no text tower.
        """
        if self._read is None:
            raise ModelError("the student has no text tower, so it can't read texts")
        with torch.inference_mode():
            return self._read(texts).float().cpu()

    def embeddings(self, seen: Seen) -> Tensor:
        """Return the embeddings `[B, D]` of inputs.

        Raises:
            ModelError: the student gives none.
        """
        if seen.embeddings is None:
            raise ModelError("the student gives logits alone, no embeddings")
        return seen.embeddings

    def labels(self, names: Sequence[str] | None = None, templates: Sequence[str] | None = None) -> Labels | None:
        """Return checked labels; None stands for the student's own classes, which its classifier knows.

        Raises:
            ConfigError: no label, a label that a student without a text tower does not know, or a wrong template.
        """
        if not self.reads_texts:
            if templates is not None:
                raise ConfigError("templates: the student has no text tower that could read them")
            return None if names is None else Labels(self._known(clean_labels(names)))
        if names is None and templates is None and self.classifies:
            return None
        names = clean_labels(self.class_names if names is None else names)
        return Labels(names, self.templates if templates is None else clean_templates(templates))

    def vectors(self, labels: Labels) -> Tensor:
        """Return one vector a label, `[C, D]`, each of length 1: the mean over its prompts."""
        return class_vectors(self.read, labels.prompts)

    def probabilities(self, seen: Seen, labels: Labels | None = None, vectors_CD: Tensor | None = None) -> Tensor:
        """Return probabilities `[B, C]` of labels: a softmax over them.

        Args:
            seen: what the student says about the inputs.
            labels: from `labels`; None: the student's own classes.
            vectors_CD: from `vectors`, for a student that reads texts.

        Raises:
            ModelError: the student gives no logits.
        """
        if vectors_CD is not None:
            return self._logits(seen, vectors_CD).softmax(dim=1)
        if seen.logits is None:
            raise ModelError(
                "the student gives no logits: it has neither a classifier nor a text tower; ask for embeddings, or "
                "give vectors of labels that its text encoder made"
            )
        if labels is None:
            return seen.logits.softmax(dim=1)
        columns = [self.class_names.index(name) for name in labels.names]
        return seen.logits[:, columns].softmax(dim=1)

    def _logits(self, seen: Seen, vectors_CD: Tensor) -> Tensor:
        return self._scale * cosines(seen, vectors_CD) + (self._bias or 0.0)

    def _mapped(self, names: list[str], vectors_CD: Tensor) -> tuple[list[str], Tensor]:
        """Bring label vectors into the student's space, and make sure that they can be compared with what it sees."""
        with torch.inference_mode():
            mapped_CD = towers.map_vectors(self.network, vectors_CD.to(self.device)).float().cpu()
        cosines(self._blank, mapped_CD)
        del self._blank  # it was looked at without labels
        return names, mapped_CD

    def _known(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in self.class_names:
                known = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
                hint = did_you_mean(name, self.class_names) or f"; it knows {known}"
                raise ConfigError(
                    f"labels: the student has no text tower, so it can be asked for its {len(self.class_names)} own "
                    f"classes only, found {name!r:.100}{hint}"
                )
        return names


def cosines(seen: Seen, vectors_ND: Tensor) -> Tensor:
    """Return the cosines `[B, N]` of inputs with vectors.

    Raises:
        ModelError: the student gives no embeddings, or of another width.
    """
    if seen.embeddings is None:
        raise ModelError("the student gives logits alone, no embeddings that could be compared with texts")
    if seen.embeddings.shape[1] != vectors_ND.shape[1]:
        raise ModelError(
            f"the student's inputs have embeddings of width {seen.embeddings.shape[1]}, its texts of width "
            f"{vectors_ND.shape[1]}; they can't be compared"
        )
    return F.normalize(seen.embeddings, dim=1) @ F.normalize(vectors_ND, dim=1).T


def known_device(name: str) -> torch.device:
    """Return a device.

    Raises:
        ConfigError: no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: {name!r} is not here: {str(error).splitlines()[0]}") from error
    return device
