"""Class vectors that a student takes over: from a teacher's text tower, or as the class means of its own embeddings.

Shapes: B batch, C classes, D width of the class vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..evaluation.evaluate import to_device
from ..model import Model
from ..networks.class_vectors import ClassVectors
from ..registry import Injected
from ..step import Models
from .base import STAGES, StageSettings
from .context import RunData, StageContext
from .train import TrainStage

logger = logging.getLogger(__name__)


@STAGES.register("class_vectors")
class ClassVectorStage(TrainStage):
    """Set the class vectors of the student, then train as the kind `train` does.

    From a teacher with `zero_shot`: what its text tower says about the names of the classes, with the prompts it has
    learned. PromptKD (Li et al., CVPR 2024, arXiv 2403.02781) shares them between teacher and student, so that the
    student needs no text tower; names of classes without any picture are enough.

    From a split: the mean of the student's embeddings of the labelled rows of each class (prototypes: Snell et al.,
    NeurIPS 2017, arXiv 1703.05175). These move with the student, so they are computed again at the end of the stage.
    Rows count by their embedding at length 1, and the mean keeps its length, as in SgVA-CLIP (arXiv 2211.16191). A
    class without a row has the vector 0.

    Args:
        settings: modules, objectives, optimizer, length; see the stage's keys in the config reference.
        teacher: name of the teacher whose class vectors are taken over.
        from_split: split whose labelled rows give the class means; either this or `teacher`.
        embedding: embedding of the student that the means are of.
        target: path of the class vectors in the student's network.
    """

    def __init__(
        self,
        settings: Injected[StageSettings],
        teacher: str | None = None,
        from_split: str | None = None,
        embedding: str = "image",
        target: str = "classifier",
    ) -> None:
        super().__init__(settings)
        if (teacher is None) == (from_split is None):
            raise ConfigError(f"stage '{self.name}': give either teacher or from_split, where class vectors come from")
        self.teacher, self.from_split, self.embedding, self.target = teacher, from_split, embedding, target

    @property
    def splits(self) -> list[str]:
        """Splits that the stage learns from."""
        return [self.settings.split, *([] if self.from_split is None else [self.from_split])]

    def run(self, context: StageContext, resume: Mapping[str, Any] | None = None) -> None:
        """Set the vectors (unless a resumed run has them already), train, and renew those that moved."""
        if resume is None:
            self.fill(context)
        super().run(context, resume)
        if self.from_split is not None:
            self.fill(context)

    def check(self, models: Models, data: RunData) -> None:
        """Refuse a student without class vectors, a teacher that gives none, and widths that differ.

        Raises:
            ConfigError: what it is.
        """
        super().check(models, data)
        if getattr(models.student.network, "stands_in", False):
            return
        vectors = self.place(models.student)
        if self.from_split is not None:
            data.split(self.from_split)
            return
        found = self.of_teacher(models)
        if found.shape != vectors.vectors.shape:
            raise ConfigError(
                f"stage '{self.name}': teacher '{self.teacher}' gives class vectors {list(found.shape)}, the student "
                f"has place for {list(vectors.vectors.shape)}; set its class_vectors.width to {found.shape[1]}"
            )

    def place(self, student: Model) -> ClassVectors:
        """Return the class vectors of the student.

        Raises:
            ConfigError: there are none at `target`.
        """
        parts = dict(student.network.named_modules())
        found = parts.get(self.target)
        if isinstance(found, ClassVectors):
            return found
        known = [name for name, part in parts.items() if isinstance(part, ClassVectors)]
        hint = did_you_mean(self.target, known) or f"; class vectors: {', '.join(known) or 'none, set class_vectors'}"
        raise ConfigError(f"stage '{self.name}'.target: the student has no class vectors at '{self.target}'{hint}")

    def of_teacher(self, models: Models) -> Tensor:
        """Return the class vectors of the teacher, `[C, D]`.

        Raises:
            ConfigError: it has no classes by name.
        """
        network: nn.Module = models.pool.teacher(str(self.teacher)).network
        modes = [(part, part.training) for part in network.modules()]
        give = getattr(network, "class_vectors", None)
        try:
            network.eval()
            with torch.no_grad():
                found = give() if callable(give) else None
        finally:
            for part, mode in modes:
                part.training = mode
        if not isinstance(found, Tensor):
            raise ConfigError(f"stage '{self.name}': teacher '{self.teacher}' names no classes; give it 'zero_shot'")
        return found

    def fill(self, context: StageContext) -> None:
        """Set the student's class vectors."""
        models, device = context.models, context.device
        for module in (models.student, models.pool):
            module.to(device)
        place = self.place(models.student)
        if self.from_split is None:
            place.adopt(self.of_teacher(models))
            logger.info("stage '%s': class vectors of teacher '%s'", self.name, self.teacher)
            return
        means = class_means(models.student, context.data, self.from_split, self.embedding, device)
        place.adopt(means, unit=False)
        logger.info("stage '%s': class vectors are the means of split '%s'", self.name, self.from_split)


@torch.no_grad()
def class_means(student: Model, data: RunData, split: str, embedding: str, device: torch.device) -> Tensor:
    """Return the mean embedding `[C, D]` of the labelled rows of each class, each row at length 1.

    Every process reads the whole split, so that all have the same means.

    Raises:
        ConfigError: the student has no such embedding, or no row has a label.
    """
    modes = [(part, part.training) for part in student.modules()]
    sums: Tensor | None = None
    counts = torch.zeros(data.num_classes, device=device)
    try:
        student.eval()
        for batch in data.eval_loader(split):
            moved = to_device(batch, device)
            said = student(moved, ()).embeddings
            if embedding not in said:
                hint = did_you_mean(embedding, said) or f"; embeddings: {', '.join(said) or 'none'}"
                raise ConfigError(f"class means: the student gives no embedding '{embedding}'{hint}")
            known = moved["labelled"] & (moved["label"] >= 0)
            rows, labels = F.normalize(said[embedding][known].float(), dim=1), moved["label"][known]
            sums = rows.new_zeros(data.num_classes, rows.shape[1]) if sums is None else sums
            sums.index_add_(0, labels, rows)
            counts += torch.bincount(labels, minlength=data.num_classes).to(counts)
    finally:
        for part, mode in modes:
            part.training = mode
    if sums is None or not bool(counts.any()):
        raise ConfigError(f"class means: split '{split}' has no labelled row")
    return sums / counts.clamp_min(1)[:, None]
