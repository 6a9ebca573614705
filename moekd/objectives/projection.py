"""Heads from a student's embedding to a teacher's width, thrown away at export.

Shapes: B batch, S width of the student, D width of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ..errors import ConfigError, ModelError, did_you_mean

Projection = Literal["none", "linear", "mlp"]
#: Widths of the teachers' embeddings: one number where there is one teacher, else by teacher.
TeacherDim = int | dict[str, int] | None


class Heads(nn.Module):
    """One head for every teacher and modality, or none where `kind` is `none`.

    Args:
        kind: `none` (widths have to agree), `linear`, or `mlp` (two layers with GELU between).
        student_dim: S.
        widths: D by teacher.
        modalities: names of the embeddings that are projected.
        where: name of the objective, for messages.
        hidden: width of the hidden layer of `mlp`; None: as wide as the teacher.

    Raises:
        ConfigError: heads are wanted and a width is missing.
    """

    def __init__(
        self,
        kind: Projection,
        student_dim: int | None,
        widths: dict[str, int],
        modalities: Sequence[str],
        where: str,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if kind != "none" and (student_dim is None or not widths):
            raise ConfigError(
                f"{where}.projection '{kind}' needs student_dim and teacher_dim, the widths to map between"
            )
        self.kind, self.where = kind, where
        self.heads = nn.ModuleDict()
        for teacher, dim in widths.items() if student_dim is not None and kind != "none" else ():
            for modality in modalities:
                self.heads[_key(teacher, modality)] = _head(kind, student_dim or dim, dim, hidden or dim)

    def forward(self, teacher: str, modality: str, values_BS: Tensor) -> Tensor:
        """Return the student's embedding as this teacher's `[B, D]`."""
        if self.kind == "none":
            return values_BS
        projected: Tensor = self.head(teacher, modality)(values_BS.to(next(self.heads.parameters()).dtype))
        return projected

    def head(self, teacher: str, modality: str) -> nn.Module:
        """Return the head of a teacher and modality.

        Raises:
            ModelError: there is none.
        """
        key = _key(teacher, modality)
        if key not in self.heads:
            known = ", ".join(self.heads) or "none"
            hint = did_you_mean(key, self.heads) or f"; heads: {known}"
            raise ModelError(f"{self.where} has no head for teacher '{teacher}' and '{modality}'{hint}")
        return self.heads[key]


def widths_by_teacher(teacher: str | None, teacher_dim: TeacherDim, where: str) -> dict[str, int]:
    """Return the widths by teacher.

    Raises:
        ConfigError: one number for several teachers, or a width that is not positive.
    """
    if teacher_dim is None:
        return {}
    if isinstance(teacher_dim, int):
        if teacher is None:
            raise ConfigError(
                f"{where}.teacher_dim is one number, but the objective takes all teachers; give the width of each, "
                "such as {clip: 512, dino: 384}, or name one 'teacher'"
            )
        teacher_dim = {teacher: teacher_dim}
    if wrong := {name: dim for name, dim in teacher_dim.items() if dim < 1}:
        raise ConfigError(f"{where}.teacher_dim must hold positive widths, found {wrong}")
    return dict(teacher_dim)


def check_widths(student: Tensor, teacher: Tensor, who: str) -> None:
    """Refuse embeddings that can't be compared number by number.

    Raises:
        ModelError: the shapes differ; the message names both.
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f"{who}: the student's embedding {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} differ; "
            "set projection, student_dim and teacher_dim"
        )


def _head(kind: Projection, student_dim: int, dim: int, hidden: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(student_dim, dim)
    return nn.Sequential(nn.Linear(student_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def _key(teacher: str, modality: str) -> str:
    """Return a head's key in a ModuleDict, which allows no dots."""
    return f"{teacher}:{modality}".replace(".", ":")
