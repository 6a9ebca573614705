"""What learned gates look at.

Shapes: B batch, R rows (= B, or one a token or pixel), T teacher variants, C classes, D width of the input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError, DataError, ModelError, did_you_mean
from ...signals import full_precision
from ..positions import Granularity, Rows, values_by_row
from .statistics import STATISTICS, centred_logits, pairwise_divergences, teacher_statistics

if TYPE_CHECKING:
    from ...step import Step

On = Literal[
    "student_logits",
    "student_feature",
    "student_embedding",
    "input_feature",
    "teacher_stats",
    "teacher_logits",
    "agreement",
    "logits_and_stats",
    "stats_and_agreement",
]
NAMED = ("student_feature", "student_embedding", "input_feature")
STATS = ("teacher_stats", "logits_and_stats", "stats_and_agreement")
AGREEMENT = ("agreement", "stats_and_agreement")
LOGITS = ("student_logits", "logits_and_stats")


@dataclass(frozen=True)
class Shapes:
    """Sizes that gates and objectives find by themselves.

    Attributes:
        fields: shape of every batch field, without the batch axis.
        taps: shape of the activation at every tap of the student, without the batch axis.
        teachers: the same for every plain teacher, by its name.
        embeddings: width of every embedding by modality, of "student" and of every plain teacher by its name. A variant
            "teacher/tap" has the widths of its teacher.
    """

    fields: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    taps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    teachers: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    embeddings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class GateInput(nn.Module):
    """Turns a step into the vectors `[R, D]` that a gate reads, one a row.

    - `student_logits`: the student's logits, D = C.
    - `student_feature`: the student's activation at the tap `source`. For instances, maps `[B, D, H, W]` are averaged
      over the pixels and sequences `[B, N, D]` over the tokens.
    - `student_embedding`: the student's embedding `source` ("image"), at length 1; for instances.
    - `input_feature`: the batch field `source`, for instances flattened, so that rows can be routed before any model
      runs.
    - `teacher_stats`: of every teacher its largest probability, entropy in nats and margin between its two best
      classes, D = 3 T; all teachers have to run before rows can be routed, here and with all that follow.
    - `teacher_logits`: every teacher's logits minus their mean, D = T C.
    - `agreement`: the Jensen-Shannon divergence of every pair of teachers in nats, D = T (T - 1) / 2.
    - `logits_and_stats`, `stats_and_agreement`: both.

    Args:
        on: which of these.
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: D of these three, where `shapes` does not tell it.
        detach: cut the gradient into the student; teachers never get one.
        rows: what is routed.
        shapes: sizes of fields and taps.

    Raises:
        ConfigError: source or width are missing, wrong, or given where they mean nothing.
    """

    def __init__(
        self,
        on: On,
        num_classes: int,
        num_teachers: int,
        source: str | None = None,
        width: int | None = None,
        detach: bool = True,
        rows: Rows | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        super().__init__()
        self.rows = rows or Rows()
        self.on, self.source, self.detach = on, source or "", detach
        if on in NAMED:
            self.width = _named_width(on, source, width, self.rows.granularity, shapes)
            return
        if source is not None or width is not None:
            raise ConfigError(f"on '{on}' reads no 'source' and knows its 'width'; remove them")
        if on == "agreement" and num_teachers < 2:
            raise ConfigError("on 'agreement' compares teachers, but there is one only; use 'teacher_stats'")
        pairs = num_teachers * (num_teachers - 1) // 2
        self.width = (
            num_classes * (on in LOGITS)
            + STATISTICS * num_teachers * (on in STATS)
            + num_teachers * num_classes * (on == "teacher_logits")
            + pairs * (on in AGREEMENT)
        )

    @property
    def needs_teachers(self) -> bool:
        """True when all teachers must have run."""
        return self.on not in ("student_logits", *NAMED)

    def forward(self, step: Step) -> Tensor:
        """Return the vectors, `[R, D]`."""
        x_RD = full_precision(self._named(step) if self.on in NAMED else torch.cat(self._parts(step), dim=1))
        if x_RD.dim() != 2 or x_RD.shape[1] != self.width:
            raise ModelError(
                f"a gate on '{self.on}' got values {tuple(x_RD.shape)}; expected [batch, {self.width}]"
                + (" (its 'width')" if self.source else "")
            )
        return x_RD.detach() if self.detach else x_RD

    def _parts(self, step: Step) -> list[Tensor]:
        dense = self.rows.granularity != "instance"
        parts: list[Tensor] = []
        if self.on in LOGITS:
            logits = step.student.require_logits(f"a gate on '{self.on}'")
            parts.append(full_precision(values_by_row(logits) if dense else logits))
        if self.needs_teachers:
            teachers_RTC = self.rows.teacher_logits(step)
            if self.on in STATS:
                parts.append(teacher_statistics(teachers_RTC).flatten(1))
            if self.on in AGREEMENT:
                parts.append(pairwise_divergences(teachers_RTC))
            if self.on == "teacher_logits":
                parts.append(centred_logits(teachers_RTC).flatten(1))
        return parts

    def _named(self, step: Step) -> Tensor:
        if self.on == "student_feature":
            values = step.student.feature(self.source, "a gate on 'student_feature'")
        elif self.on == "student_embedding":
            if self.source not in step.student.embeddings:
                known = ", ".join(step.student.embeddings) or "none"
                raise ModelError(f"a gate reads the embedding '{self.source}' of the student, which gives: {known}")
            return F.normalize(full_precision(step.student.embeddings[self.source]), dim=1, eps=1e-6)
        elif self.source in step.batch:
            values = step.batch[self.source]
        else:
            hint = did_you_mean(self.source, step.batch) or f"; fields: {', '.join(step.batch)}"
            raise DataError(f"a gate reads field '{self.source}', which the data set does not have{hint}")
        if self.rows.granularity == "pixel":
            return values_by_row(values)
        if self.rows.granularity == "token":
            return values.flatten(0, 1) if values.dim() == 3 else values
        if self.on == "input_feature":
            return values.flatten(1) if values.dim() > 1 else values[:, None]
        return values.mean(dim=(2, 3)) if values.dim() == 4 else values.mean(dim=1) if values.dim() == 3 else values


def _named_width(on: On, source: str | None, width: int | None, granularity: Granularity, shapes: Shapes | None) -> int:
    """Return the size of a tap or field, found or given."""
    what = {"student_feature": "tap of the student", "student_embedding": "embedding of the student"}.get(on)
    what = what or "field of the batch"
    if on == "student_embedding" and granularity != "instance":
        raise ConfigError(f"granularity '{granularity}': an embedding is one for the whole instance")
    known = {} if shapes is None else _known(on, shapes)
    if not source or (shapes is None and (width is None or width < 1)):
        raise ConfigError(f"on '{on}' needs 'source', a {what}, and 'width', its size; found {source!r}, {width}")
    if shapes is None:
        return int(width or 0)
    if source not in known:
        hint = did_you_mean(source, known) or f"; there are: {', '.join(known) or 'none'}"
        raise ConfigError(f"source '{source}' is no {what}{hint}")
    shape = known[source]
    if (granularity == "token" and len(shape) != 2) or (granularity == "pixel" and len(shape) != 3):
        wanted = "[tokens, D]" if granularity == "token" else "[D, height, width]"
        raise ConfigError(f"granularity '{granularity}' reads a {what} {wanted}, but '{source}' is {list(shape)}")
    if on == "input_feature" and granularity == "instance":
        found = math.prod(shape)
    else:
        found = shape[1] if len(shape) == 2 else shape[0]
    if width not in (None, found):
        raise ConfigError(f"width {width}: '{source}' has the size {found}; leave 'width' out")
    return found


def _known(on: On, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:
    """Return the sizes of what a gate can name."""
    if on == "student_embedding":
        return {name: (width,) for name, width in shapes.embeddings.get("student", {}).items()}
    return shapes.taps if on == "student_feature" else shapes.fields
