"""What distillation losses read: checked logits, targets, and activations at the taps of two models.

Shapes: B batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError, ModelError, did_you_mean
from ..routers import Shapes
from ..signals import Signals, full_precision

if TYPE_CHECKING:
    from ..model import Batch

TeacherTap = str | dict[str, str]


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Return a context in which products of matrices keep the precision of their factors."""
    return torch.autocast(tensor.device.type, enabled=False)


def scores_of(signals: Signals, head: str | None, who: str) -> Tensor:
    """Return the scores of the classes `[B, C]` that a head gives; those of the classifier without a `head`.

    Raises:
        ModelError: the model has no such head, or no classifier.
    """
    if head is None:
        return signals.require_logits(who)
    if head not in signals.heads:
        hint = did_you_mean(head, signals.heads) or f"; heads: {', '.join(signals.heads) or 'none'}"
        raise ModelError(f"{who} needs the head '{head}', which the model does not have{hint}")
    return signals.heads[head]


def base_of(among: str, base_classes: Sequence[int] | None, who: str) -> list[int] | None:
    """Return the classes of a softmax; None: all.

    Raises:
        ConfigError: the base classes are asked for, and the data set has no novel ones.
    """
    if among == "all":
        return None
    if base_classes is None:
        raise ConfigError(f"{who}.among 'base': the data have no novel classes; set data.novel, or among: all")
    return list(base_classes)


def only(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Return logits `[B, C]` in which the other classes have no probability and get no gradient."""
    out = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    out[list(classes)] = False
    return logits.masked_fill(out.view(-1, *[1] * (logits.dim() - 2)), -1e4)


def is_one_of(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Tell which labels are among some classes."""
    return torch.isin(labels, torch.tensor(list(classes), device=labels.device))


def logits_of(student: Signals, teacher: Signals, who: str, dense: bool = True) -> tuple[Tensor, Tensor]:
    """Return both models' logits in at least float32.

    Raises:
        ModelError: the shapes differ, or dense logits where the loss has no meaning for them.
    """
    student_logits, teacher_logits = student.require_logits(who), teacher.require_logits(who)
    if student_logits.shape != teacher_logits.shape:
        raise ModelError(
            f"{who}: student logits {tuple(student_logits.shape)} and teacher's {tuple(teacher_logits.shape)} differ; "
            "teacher and student must share the class set"
        )
    if not dense and student_logits.dim() != 2:
        raise ModelError(f"{who} takes one decision an instance, logits [B, C]; found {tuple(student_logits.shape)}")
    return full_precision(student_logits), full_precision(teacher_logits)


def targets_of(batch: Batch, teacher_logits: Tensor) -> Tensor:
    """Return the label where there is one; instances (and pixels) without one take the class that the teacher prefers.

    Shape:
        teacher_logits: `[B, C]` or `[B, C, ...]`; result: `[B]` or `[B, ...]`, int64.
    """
    preferred, label = teacher_logits.argmax(dim=1), batch["label"]
    if label.shape != preferred.shape:
        raise ModelError(f"labels {tuple(label.shape)} do not fit logits {tuple(teacher_logits.shape)}")
    known = (label >= 0) & (label < teacher_logits.shape[1])
    if "labelled" in batch:
        known = known & batch["labelled"].reshape(-1, *[1] * (label.dim() - 1))
    return label.where(known, preferred)


def tap_shape(shapes: Shapes | None, tap: str, where: str) -> tuple[int, ...]:
    """Return the shape of the student's activation at a tap, without the batch axis.

    Raises:
        ConfigError: the student has no such tap, or nothing is known of its taps.
    """
    if shapes is None:
        raise ConfigError(f"{where}: the sizes of weights depend on the taps: give 'shapes'")
    return _shape(shapes.taps, tap, where, "student")


class TapPair:
    """A tap of the student and the tap that each teacher is compared at.

    Args:
        who: the objective, for messages.
        student_tap: tap of the student.
        teacher_tap: tap of the teacher, or one for each teacher or variant by name.
        teacher: the one teacher or variant that is read; None: all.
        shapes: sizes of all taps; None where the objective has no parameters and nothing is known.

    Raises:
        ConfigError: a tap that the model does not have.
    """

    def __init__(
        self,
        who: str,
        student_tap: str,
        teacher_tap: TeacherTap,
        teacher: str | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        self.who, self.student_tap, self.teacher_tap, self.shapes = who, student_tap, teacher_tap, shapes
        self.teacher = teacher
        if shapes is not None:
            self.teachers()
            self.student_shape()

    def features(self, name: str, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """Return the two activations, in at least float32."""
        mine = student.feature(self.student_tap, f"{self.who}.student_tap")
        other = teacher.feature(self.tap_of(name), f"{self.who}.teacher_tap")
        return full_precision(mine), full_precision(other)

    def tap_of(self, name: str) -> str:
        """Return the tap of a teacher or variant.

        Raises:
            ModelError: none is given for it.
        """
        if isinstance(self.teacher_tap, str):
            return self.teacher_tap
        tap = self.teacher_tap.get(name, self.teacher_tap.get(name.partition("/")[0]))
        if tap is None:
            raise ModelError(
                f"{self.who}.teacher_tap names no tap for '{name}'; it has {', '.join(self.teacher_tap) or 'none'}"
            )
        return tap

    def student_shape(self) -> tuple[int, ...]:
        """Return the shape of the student's activation, without the batch axis."""
        return tap_shape(self.shapes, self.student_tap, f"{self.who}.student_tap")

    def teachers(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of the activation, without the batch axis, by `key` for all teachers that can be read."""
        if self.shapes is None:
            raise ConfigError(f"{self.who}.teacher_tap: the sizes of weights depend on the taps: give 'shapes'")
        known, found = self.shapes.teachers, {}
        if self.teacher is not None:
            names = [self.teacher]
        elif isinstance(self.teacher_tap, str):
            names = [name for name, taps in known.items() if self.teacher_tap in taps]
        else:
            names = list(self.teacher_tap)
        for name in names:
            plain = name.partition("/")[0]
            if plain not in known:
                hint = did_you_mean(plain, known) or f"; teachers: {', '.join(known) or 'none'}"
                raise ConfigError(f"{self.who}.teacher_tap: no teacher '{plain}'{hint}")
            where = f"{self.who}.teacher_tap"
            found[self.key(name)] = _shape(known[plain], self.tap_of(name), where, f"teacher '{plain}'")
        if not found:
            raise ConfigError(f"{self.who}.teacher_tap: no teacher has a tap '{self.teacher_tap}'")
        return found

    def key(self, name: str) -> str:
        """Return a name for what belongs to the teacher's tap, which can name a submodule."""
        return f"{name.partition('/')[0]}:{self.tap_of(name).replace('.', ':')}"


def _shape(shapes: Mapping[str, tuple[int, ...]], tap: str, where: str, model: str) -> tuple[int, ...]:
    if tap not in shapes:
        hint = did_you_mean(tap, shapes) or f"; its taps: {', '.join(shapes) or 'none'}"
        raise ConfigError(f"{where}: '{tap}' is no tap of the {model}; name it under its 'taps'{hint}")
    return tuple(shapes[tap])
