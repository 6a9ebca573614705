"""Class vectors that a model takes over: from a teacher's text tower, or as the class means of embeddings.

Shapes: B batch, C classes, D width of the class vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..evaluation.evaluate import to_device
from ..model import Batch, Model
from ..networks.class_vectors import ClassVectors
from ..registry import Injected
from ..step import Models
from .base import STAGES, StageSettings
from .context import RunData, StageContext
from .train import TrainStage
from .trainable import owner_and_path

logger = logging.getLogger(__name__)


@STAGES.register("class_vectors")
class ClassVectorStage(TrainStage):
    """Set the class vectors of a model, then train as the kind `train` does. They come from one of three places:

    - `teacher`: its class vectors, or with `zero_shot` what its text tower says about the names of the classes, with
      the prompts it has learned. PromptKD (Li et al., CVPR 2024, arXiv 2403.02781) shares them between teacher and
      student, so that the student needs no text tower; names of classes without any picture are enough.
    - `teacher` and `from_split`: the mean of the teacher's embeddings, of texts say, of the rows of each class. So
      texts that belong to a class describe it, where its name alone says little.
    - `from_split`: the same of the student's own embeddings, the prototypes of Snell et al., NeurIPS 2017, arXiv
      1703.05175.

    Means of a model that trains in the stage are computed again at its end. In means a row counts at length 1, and the
    mean keeps its length (inferred from SgVA-CLIP's code, arXiv 2211.16191, where it matters for fused scores). A class
    without a labelled row has the vector 0.

    Args:
        settings: modules, objectives, optimizer, length; see the stage's keys in the config reference.
        teacher: name of the teacher.
        from_split: split whose labelled rows give the class means.
        embedding: which embedding the means are of.
        into: the model whose vectors are set: `student`, or a teacher.
        target: path of the class vectors in its network.
    """

    needs_training = False

    def __init__(
        self,
        settings: Injected[StageSettings],
        teacher: str | None = None,
        from_split: str | None = None,
        embedding: str = "image",
        into: str = "student",
        target: str = "classifier",
    ) -> None:
        super().__init__(settings)
        if teacher is None and from_split is None:
            raise ConfigError(f"stage '{self.name}': give teacher or from_split, where the class vectors come from")
        self.teacher, self.from_split, self.embedding = teacher, from_split, embedding
        self.into, self.target = into, target

    @property
    def splits(self) -> list[str]:
        """Splits that the stage learns from."""
        return [self.settings.split, *([] if self.from_split is None else [self.from_split])]

    @property
    def changes(self) -> list[str]:
        """Models that are others after the stage, in the names of `trains`."""
        return [*self.settings.trains, place_of(self.into)]

    def run(self, context: StageContext, resume: Mapping[str, Any] | None = None) -> None:
        """Set the vectors (unless a resumed run has them already), train, and renew those that moved."""
        if resume is None:
            self.fill(context)
        super().run(context, resume)
        source = place_of(self.teacher or "student")
        trained = {owner_and_path(name)[0] for name in self.settings.trains}
        if self.from_split is not None and trained & {source, source.partition(".")[0]}:
            self.fill(context)

    def check(self, models: Models, data: RunData) -> None:
        """Refuse a model without class vectors, a teacher that gives none, and widths that differ.

        Raises:
            ConfigError: what it is.
        """
        super().check(models, data)
        model, source = model_named(models, self.into), model_named(models, self.teacher or "student")
        if any(getattr(m.network, "stands_in", False) for m in (model, source)):
            return
        place = self.place(model)
        if self.from_split is None:
            width = self.of_teacher(source).shape[1]
        else:
            split = data.split(self.from_split)
            width = embedding_of(source, split.__getitems__([0, min(1, len(split) - 1)]), self.embedding).shape[1]
        if width != place.vectors.shape[1]:
            raise ConfigError(
                f"stage '{self.name}': the class vectors have {width} numbers, '{self.into}' has place for "
                f"{place.vectors.shape[1]}; set its class_vectors.width to {width}"
            )

    def place(self, model: Model) -> ClassVectors:
        """Return the class vectors of a model.

        Raises:
            ConfigError: there are none at `target`.
        """
        parts = dict(model.network.named_modules())
        found = parts.get(self.target)
        if isinstance(found, ClassVectors):
            return found
        known = [name for name, part in parts.items() if isinstance(part, ClassVectors)]
        hint = did_you_mean(self.target, known) or f"; class vectors: {', '.join(known) or 'none, set class_vectors'}"
        raise ConfigError(f"stage '{self.name}'.target: '{self.into}' has no class vectors at '{self.target}'{hint}")

    def of_teacher(self, teacher: Model) -> Tensor:
        """Return the class vectors of the teacher, `[C, D]`.

        Raises:
            ConfigError: it has no classes by name.
        """
        return class_vectors_of(teacher, f"stage '{self.name}': teacher '{self.teacher}'")

    def fill(self, context: StageContext) -> None:
        """Set the class vectors."""
        models, device = context.models, context.device
        for module in (models.student, models.pool):
            module.to(device)
        place, source = self.place(model_named(models, self.into)), model_named(models, self.teacher or "student")
        if self.from_split is None:
            place.adopt(self.of_teacher(source))
        else:
            place.adopt(class_means(source, context.data, self.from_split, self.embedding, device), unit=False)
        split = "" if self.from_split is None else f", means of '{self.embedding}' over split '{self.from_split}'"
        logger.info("stage '%s': class vectors of '%s'%s", self.name, self.teacher or "student", split)


@torch.no_grad()
def class_means(model: Model, data: RunData, split: str, embedding: str, device: torch.device) -> Tensor:
    """Return the mean embedding `[C, D]` of the labelled rows of each class, each row at length 1.

    Every process reads the whole split, so that all have the same means.

    Raises:
        ConfigError: the model has no such embedding, or no row has a label.
    """
    sums: Tensor | None = None
    counts = torch.zeros(data.num_classes, device=device)
    for rows, labels in labelled_embeddings(model, data, split, embedding, device):
        sums = rows.new_zeros(data.num_classes, rows.shape[1]) if sums is None else sums
        sums.index_add_(0, labels, rows)
        counts += torch.bincount(labels, minlength=data.num_classes).to(counts)
    if sums is None or not bool(counts.any()):
        raise ConfigError(f"class means: split '{split}' has no labelled row")
    return sums / counts.clamp_min(1)[:, None]


def class_vectors_of(model: Model, who: str) -> Tensor:
    """Return the class vectors of a model, stored ones or those of the names of its classes, `[C, D]`.

    Raises:
        ConfigError: `who` has no classes by name.
    """
    network: nn.Module = model.network
    own = [part for part in network.modules() if isinstance(part, ClassVectors)]
    give = getattr(network, "class_vectors", None)
    with evaluated(model), torch.no_grad():
        found = own[0].vectors if own else give() if callable(give) else None
    if not isinstance(found, Tensor):
        raise ConfigError(f"{who} names no classes; give it 'zero_shot' or class_vectors")
    return found


@torch.no_grad()
def labelled_embeddings(
    model: Model, data: RunData, split: str, embedding: str, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the embeddings of the labelled rows of a whole split, at length 1, `[N, D]`, with their labels `[N]`."""
    for batch in data.eval_loader(split):
        moved = to_device(batch, device)
        known = moved["labelled"] & (moved["label"] >= 0)
        yield F.normalize(embedding_of(model, moved, embedding)[known].float(), dim=1), moved["label"][known]


def place_of(name: str) -> str:
    """Return what `trains` calls the student or a teacher."""
    return "student" if name == "student" else f"teachers.{name}"


def model_named(models: Models, name: str) -> Model:
    """Return the student or a teacher."""
    return models.student if name == "student" else models.pool.teacher(name)


@torch.no_grad()
def embedding_of(model: Model, batch: Batch, name: str) -> Tensor:
    """Return an embedding of a model in eval mode, `[B, D]`.

    Raises:
        ConfigError: the model has no such embedding.
    """
    with evaluated(model):
        said = model(batch, ()).embeddings
    if name not in said:
        hint = did_you_mean(name, said) or f"; embeddings: {', '.join(said) or 'none'}"
        raise ConfigError(f"class means: the model gives no embedding '{name}'{hint}")
    return said[name]


@contextmanager
def evaluated(model: Model) -> Iterator[None]:
    """Put a model in eval mode, and the modes of its parts back."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
