"""Heads from a student's embedding to a teacher's width, thrown away at export.

Shapes: B batch, S width of the student, D width of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from ..errors import ConfigError, ModelError, did_you_mean
from ..routers import Shapes
from ..signals import Signals
from .embedding_pair import check_rows
from .embeddings import embedding
from .ladder import Ladder, LadderTaps, ladder_taps, mlp

Projection = Literal["auto", "none", "linear", "mlp", "ladder"]
#: Those that read nothing but embeddings.
PlainProjection = Literal["auto", "none", "linear", "mlp"]
#: Widths of (student, teacher) by teacher and modality.
Widths = Mapping[tuple[str, str], tuple[int, int]]


class Heads(nn.Module):
    """Heads by teacher and modality; masked variants of a teacher share its head.

    Args:
        kind: `auto`: a linear head where the widths differ, and none where they agree; `none`: widths have to agree;
            `linear`, `mlp` (two layers with GELU between) and `ladder` (see `Ladder`): a head for every teacher.
        shapes: widths of all embeddings, and sizes of the student's taps; None: nothing is known, so that there can
            be no heads.
        teacher: the one teacher or variant that is read; None: all.
        modalities: names of the embeddings that are projected.
        where: name of the objective, for messages.
        hidden: width of the hidden layers of `mlp` and `ladder`; None: as wide as the teacher.
        taps: taps of the student that `ladder` reads.
        always: whether `auto` makes heads where widths agree too.

    Raises:
        ConfigError: a model does not give an embedding, widths differ and there shall be no heads, or the shapes are
            missing.
    """

    def __init__(
        self,
        kind: Projection,
        shapes: Shapes | None,
        teacher: str | None,
        modalities: Sequence[str],
        where: str,
        hidden: int | None = None,
        taps: LadderTaps | None = None,
        always: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.where = kind, where
        self.widths = embedding_widths(shapes, teacher, modalities, where)
        if not self.widths and kind not in ("auto", "none"):
            raise ConfigError(f"{where}.projection '{kind}': the widths to map between are not known: give 'shapes'")
        if kind == "none":
            _refuse_differences(self.widths, where)
        if taps is not None and kind != "ladder":
            raise ConfigError(f"{where}.taps: only projection 'ladder' reads them")
        rungs = ladder_taps(taps, shapes, modalities, where) if kind == "ladder" else {}
        self.heads = nn.ModuleDict()
        for (name, modality), (mine, theirs) in self.widths.items():
            if kind == "none" or (kind == "auto" and mine == theirs and not always):
                continue
            if kind == "ladder":
                head: nn.Module = Ladder(modality, mine, rungs[modality], theirs, hidden or theirs)
            else:
                head = mlp(mine, hidden or theirs, theirs) if kind == "mlp" else nn.Linear(mine, theirs)
            self.heads[head_key(name, modality)] = head

    def forward(self, teacher: str, modality: str, student: Signals) -> Tensor:
        """Return the student's embedding as this teacher's `[B, D]`."""
        values_BS = embedding(student, modality, f"{self.where} (student)")
        if self.kind in ("auto", "none") and head_key(teacher, modality) not in self.heads:
            return values_BS
        head = self.head(teacher, modality)
        given = student if isinstance(head, Ladder) else values_BS.to(next(head.parameters()).dtype)
        projected: Tensor = head(given)
        return projected

    def match(self, name: str, modality: str, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """Return the student's embedding behind its head and the teacher's, `[B, D]` each.

        Raises:
            ModelError: one is missing, or their shapes differ; the message names the teacher, the modality and both.
        """
        mine = self(name, modality, student)
        theirs = embedding(teacher, modality, f"{self.where} (teacher)")
        check_rows(mine, theirs, self.where)
        if mine.shape != theirs.shape:
            raise ModelError(
                f"{self.where}: the embedding '{modality}' has {mine.shape[1]} numbers in the student and "
                f"{theirs.shape[1]} in teacher '{name}'; give the objective 'shapes', so that it makes heads"
            )
        return mine, theirs

    def head(self, teacher: str, modality: str) -> nn.Module:
        """Return the head of a teacher and modality.

        Raises:
            ModelError: there is none.
        """
        key = head_key(teacher, modality)
        if key not in self.heads:
            known = ", ".join(self.heads) or "none"
            hint = did_you_mean(key, self.heads) or f"; heads: {known}"
            raise ModelError(f"{self.where} has no head for teacher '{teacher}' and '{modality}'{hint}")
        return self.heads[key]


def embedding_widths(shapes: Shapes | None, teacher: str | None, modalities: Sequence[str], where: str) -> Widths:
    """Return the widths of (student, teacher) by teacher and modality; nothing where they are not known.

    Args:
        shapes: the widths by model.
        teacher: the one teacher or variant that is read; None: all those that give one of the embeddings.
        modalities: names of the embeddings.
        where: name of the objective, for messages.

    Raises:
        ConfigError: there is no such teacher, or a model does not give an embedding.
    """
    if shapes is None or not shapes.embeddings:
        return {}
    known = {name: widths for name, widths in shapes.embeddings.items() if name != "student"}
    names = list(known) if teacher is None else [teacher.partition("/")[0]]
    if names and names[0] not in known:
        hint = did_you_mean(names[0], known) or f"; teachers: {', '.join(known) or 'none'}"
        raise ConfigError(f"{where}.teacher: no teacher '{names[0]}'{hint}")
    mine = shapes.embeddings.get("student", {})
    problems = [_missing(where, "the student", modality, mine) for modality in modalities if modality not in mine]
    problems += [
        _missing(where, f"teacher '{names[0]}'", modality, known[names[0]])
        for modality in modalities
        if teacher is not None and modality not in known[names[0]]
    ]
    if problems:
        raise ConfigError(problems)
    return {(n, m): (mine[m], known[n][m]) for n in names for m in modalities if m in known[n]}


def check_widths(student: Tensor, teacher: Tensor, who: str) -> None:
    """Refuse embeddings that can't be compared number by number.

    Raises:
        ModelError: the shapes differ; the message names both.
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f"{who}: the student's embedding {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} differ; "
            "bring them to one width first"
        )


def head_key(teacher: str, modality: str) -> str:
    """Return a key of a ModuleDict, which allows no dots; a variant has that of its teacher."""
    return f"{teacher.partition('/')[0]}:{modality}".replace(".", ":")


def _refuse_differences(widths: Widths, where: str) -> None:
    problems = [
        f"{where}.projection 'none': the embedding '{modality}' has {mine} numbers in the student and {theirs} in "
        f"teacher '{name}'; use projection 'auto'"
        for (name, modality), (mine, theirs) in widths.items()
        if mine != theirs
    ]
    if problems:
        raise ConfigError(problems)


def _missing(where: str, who: str, modality: str, found: Mapping[str, int]) -> str:
    return f"{where}: {who} gives no embedding '{modality}'; it gives {', '.join(found) or 'none'}"
