"""The student sees a part of its picture, the teacher all of it.

Shapes: B batch, C channels, H x W pixels, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ..errors import ConfigError, DataError, did_you_mean
from ..routers.draws import SampleDraws
from ..routers.routing import Mix
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective

if TYPE_CHECKING:
    from ..model import Batch
    from ..step import Step
    from ..teachers import TeacherPool

Fill = Literal["mean", "zero"]


def mask_patches(image_BCHW: Tensor, draws_BP: Tensor, patch: int, ratio: float, fill: Fill = "mean") -> Tensor:
    """Return pictures of which a share of the square patches is blank.

    Of each picture the `round(ratio P)` patches with the smallest draws are blanked, so that all pictures show equally
    many. Patches at the right and lower edge may be cut off.

    Args:
        image_BCHW: pictures, floating-point or integers.
        draws_BP: a number for every patch, row by row: P = ceil(H / patch) ceil(W / patch).
        patch: side of a patch in pixels.
        ratio: share of the patches.
        fill: `mean`: the picture's mean in each channel; `zero`.

    Returns:
        `[B, C, H, W]` of the same type.
    """
    height, width = image_BCHW.shape[2:]
    rows, columns = -(-height // patch), -(-width // patch)
    blank_BP = draws_BP.argsort(dim=1).argsort(dim=1) < round(ratio * rows * columns)
    grid = blank_BP.view(-1, 1, rows, columns).repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    grid = grid[:, :, :height, :width]
    if fill == "zero":
        return image_BCHW.masked_fill(grid, 0)
    mean = image_BCHW.to(torch.promote_types(image_BCHW.dtype, torch.float32)).mean(dim=(2, 3), keepdim=True)
    filling = mean if image_BCHW.is_floating_point() else mean.round()
    return torch.where(grid, filling.to(image_BCHW.dtype), image_BCHW)


@OBJECTIVES.register("masked_student")
class MaskedStudent(PairwiseObjective):
    """Any pairwise objective, for a student that sees a few patches of each picture, in a forward of its own.

    With `embedding_kd` inside it is MFD of CLIP-KD (Yang et al., CVPR 2024, arXiv 2307.12732), there with
    `distances: {mse: 1}, unit: true` and a weight of 2000. The student runs once more in each step that has this
    objective. Blank patches are drawn by sample and step, so that a resumed run and several processes draw the same.

    Args:
        objective: what is compared, such as `embedding_kd`.
        field: batch field with the student's pictures, `[B, C, H, W]`.
        patch: side of a patch in pixels.
        ratio: share of the patches that are blank.
        fill: what a blank patch holds: the picture's `mean` in each channel, or `zero`.
        seed: of the draws.
    """

    name = "masked_student"

    def __init__(
        self,
        objective: PairwiseObjective,
        field: str = "image",
        patch: Annotated[int, Ge(1)] = 16,
        ratio: Annotated[float, Ge(0), Lt(1)] = 0.75,
        fill: Fill = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(objective, PairwiseObjective):
            raise ConfigError(
                f"masked_student.objective must compare a student with one teacher; found {type(objective).__name__}"
            )
        if patch < 1 or not 0 <= ratio < 1:
            raise ConfigError(f"masked_student needs patch >= 1 and 0 <= ratio < 1, found {patch} and {ratio}")
        self.objective, self.field, self.patch, self.ratio, self.fill = objective, field, patch, ratio, fill
        self.draws = SampleDraws(seed)
        self.reads_features, self.reads_embeddings = objective.reads_features, objective.reads_embeddings
        self.reads_logits, self.logits_only = objective.reads_logits, objective.logits_only
        self.compares_rows, self.mixes_targets = objective.compares_rows, objective.mixes_targets
        self.mix, self.temperature = objective.mix, objective.temperature

    def student_of(self, step: Step) -> Signals:
        """Return what the student says of the masked pictures.

        Raises:
            DataError: the batch has no such field, or it holds no pictures.
        """
        if self.field not in step.batch:
            hint = did_you_mean(self.field, step.batch) or f"; fields: {', '.join(step.batch)}"
            raise DataError(f"masked_student.field: the batch has no field '{self.field}'{hint}")
        image = step.batch[self.field]
        if not isinstance(image, Tensor) or image.dim() != 4:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"masked_student.field: '{self.field}' must hold pictures [B, C, H, W], found {found}")
        patches = -(-image.shape[2] // self.patch) * -(-image.shape[3] // self.patch)
        draws_BP = self.draws(step, patches).to(image.device)
        masked = mask_patches(image, draws_BP, self.patch, self.ratio, self.fill)
        return step.models.student({**step.batch, self.field: masked})

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teachers of the objective."""
        return self.objective.variants(pool)

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the objective's loss, `[B]`."""
        return self.objective.pair_with(name, student, teacher, batch)

    def pair_map(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the objective's loss of every position."""
        return self.objective.pair_map(student, teacher, batch)

    def mixed(
        self, student: Signals, teachers: Mapping[str, Signals], weights_BT: Tensor | None, mix: Mix, batch: Batch
    ) -> Tensor:
        """Return the objective's loss to the mixture of the teachers, `[B]`."""
        return self.objective.mixed(student, teachers, weights_BT, mix, batch)
