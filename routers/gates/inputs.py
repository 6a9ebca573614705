"""What learned gates look at.

Shapes: B batch, T teacher variants, C classes, D width of the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError, DataError, ModelError, did_you_mean
from ...signals import full_precision

if TYPE_CHECKING:
    from ...step import Step

On = Literal["student_logits", "student_feature", "teacher_stats", "logits_and_stats", "input_feature"]
STATISTICS = 3


class GateInput(nn.Module):
    """Turns a step into the vectors `[B, D]` that a gate reads.

    - `student_logits`: the student's logits, D = C.
    - `student_feature`: the student's activation at the tap `source`; maps `[B, D, H, W]` are averaged over the pixels.
    - `teacher_stats`: of every teacher its largest probability, entropy in nats and margin between its two best
      classes, D = 3 T; all teachers have to run before rows can be routed.
    - `logits_and_stats`: the student's logits and the teachers' statistics, D = C + 3 T.
    - `input_feature`: the batch field `source`, flattened, so that rows can be routed before any model runs.

    Args:
        on: which of these.
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        source: tap of the student or field of the batch, for `student_feature` and `input_feature`.
        width: D, for `student_feature` and `input_feature`.
        detach: cut the gradient into the student; teachers never get one.

    Raises:
        ConfigError: source or width are missing, or given where they mean nothing.
    """

    def __init__(
        self,
        on: On,
        num_classes: int,
        num_teachers: int,
        source: str | None = None,
        width: int | None = None,
        detach: bool = True,
    ) -> None:
        super().__init__()
        named = on in ("student_feature", "input_feature")
        if named and (not source or width is None or width < 1):
            what = "tap of the student" if on == "student_feature" else "field of the batch"
            raise ConfigError(f"on '{on}' needs 'source', a {what}, and 'width', its size; found {source!r}, {width}")
        if not named and (source is not None or width is not None):
            raise ConfigError(f"on '{on}' reads no 'source' and knows its 'width'; remove them")
        sizes = {
            "student_logits": num_classes,
            "teacher_stats": STATISTICS * num_teachers,
            "logits_and_stats": num_classes + STATISTICS * num_teachers,
        }
        self.on, self.source, self.detach = on, source or "", detach
        self.width = sizes[on] if on in sizes else int(width or 0)

    @property
    def needs_teachers(self) -> bool:
        """True when all teachers must have run."""
        return self.on in ("teacher_stats", "logits_and_stats")

    def forward(self, step: Step) -> Tensor:
        """Return the vectors, `[B, D]`."""
        x_BD = full_precision(self._read(step))
        if x_BD.dim() != 2 or x_BD.shape[1] != self.width:
            raise ModelError(
                f"a gate on '{self.on}' got values {tuple(x_BD.shape)}; expected [batch, {self.width}]"
                + (" (its 'width')" if self.source else "")
            )
        return x_BD.detach() if self.detach else x_BD

    def _read(self, step: Step) -> Tensor:
        if self.on == "student_logits":
            return step.student.require_logits("a gate on 'student_logits'")
        if self.on == "student_feature":
            feature = step.student.feature(self.source, "a gate on 'student_feature'")
            return feature.mean(dim=(2, 3)) if feature.dim() == 4 else feature
        if self.on == "input_feature":
            if self.source not in step.batch:
                hint = did_you_mean(self.source, step.batch) or f"; fields: {', '.join(step.batch)}"
                raise DataError(f"a gate reads field '{self.source}', which the data set does not have{hint}")
            field: Tensor = step.batch[self.source]
            return field.flatten(1)
        statistics = teacher_statistics(step.expert_signals.detach().logits).flatten(1)
        if self.on == "teacher_stats":
            return statistics
        return torch.cat([full_precision(step.student.require_logits("a gate")), statistics], dim=1)


def teacher_statistics(logits_BTC: Tensor) -> Tensor:
    """Return largest probability, entropy (nats) and margin of the two largest probabilities, `[B, T, 3]`.

    Raises:
        ModelError: dense logits.
    """
    if logits_BTC.dim() != 3:
        raise ModelError(
            f"teacher statistics need one prediction an instance; the teachers' logits are {tuple(logits_BTC.shape)}, "
            "expected [batch, teachers, classes]"
        )
    log_probs = full_precision(logits_BTC).log_softmax(dim=2)
    probs = log_probs.exp()
    best = probs.topk(min(2, probs.shape[2]), dim=2).values
    margin = best[..., 0] - best[..., 1] if best.shape[2] == 2 else best[..., 0]
    entropy = -(probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(dim=2)
    return torch.stack([best[..., 0], entropy, margin], dim=2)
