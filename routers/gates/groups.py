"""One gate for each task or modality.

Shapes: R rows (instances, tokens or pixels), T teacher variants, D width of the input, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ...errors import ConfigError, DataError, did_you_mean
from ...registry import Injected
from ..positions import Granularity, Rows
from .base import EXCLUDED, GATES, Gate, Scores
from .inputs import GateInput, On, Shapes

if TYPE_CHECKING:
    from ...step import Step


def grouped_scores(scores_RGT: Tensor, groups_R: Tensor, admitted_GT: Tensor) -> Tensor:
    """Return the scores of every row's own group, `[R, T]`; teachers that it does not admit have the score `EXCLUDED`.

    Rows with a negative group are in none: all teachers have the score 0 there.
    """
    known_R = groups_R >= 0
    own_R = groups_R.where(known_R, 0)
    scores_RT = scores_RGT.gather(1, own_R[:, None, None].expand(-1, 1, scores_RGT.shape[2]))[:, 0]
    return scores_RT.where(admitted_GT[own_R], EXCLUDED).where(known_R[:, None], 0.0)


def groups_of(step: Step, rows: Rows, field: str, count: int, who: str) -> Tensor:
    """Return the group of every row, `[R]`.

    Raises:
        DataError: no such field, or a number beyond the last group (looked for on the CPU only).
    """
    groups_R = rows.field(step, field, who).long()
    if groups_R.device.type == "cpu" and groups_R.numel() and int(groups_R.max()) >= count:
        raise DataError(f"{who}: field '{field}' holds {int(groups_R.max())}; expected numbers below {count}")
    return groups_R


@GATES.register("task")
class TaskGate(Gate):
    """A linear layer of its own for every task: `scores = W_j x` where the row belongs to task j.

    The tasks share the teachers and each finds its own among them (Chen et al., "Mod-Squad: Designing Mixture of
    Experts As Modular Multi-Task Learners", CVPR 2023, arXiv 2212.08066; its successor for data sets of one task each,
    arXiv 2306.17165). All weights are 0 at the start. The balance loss `mutual_information` makes each task use few
    teachers. A row whose task is negative has equal scores.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        tasks: number of tasks; they are numbered from 0.
        field: batch field with the number of each instance's task (or token's, or pixel's).
        on: what the gate reads; the page on routers says what each is.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: size of the source, found by itself in a config.
        detach_input: cut the gradient from the router's losses into the student.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
        shapes: sizes of fields and taps.
    """

    example: ClassVar[Mapping[str, Any]] = {"gate": {"tasks": 2}, "balance": [{"kind": "mutual_information"}]}
    admitted: Tensor

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        tasks: Annotated[int, Ge(1)],
        field: str = "task",
        on: On = "student_logits",
        source: str | None = None,
        width: int | None = None,
        detach_input: bool = True,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.rows, self.field = Rows(granularity, mask_field), field
        self.input = GateInput(on, num_classes, num_teachers, source, width, detach_input, self.rows, shapes)
        self.needs_teachers = self.input.needs_teachers
        self.layer = nn.Linear(self.input.width, tasks * num_teachers, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.register_buffer("admitted", torch.ones(tasks, num_teachers, dtype=torch.bool), persistent=False)

    def forward(self, step: Step) -> Scores:
        """Return the scores `[R, T]`, with the tasks for balance losses that look at each."""
        groups_R = groups_of(step, self.rows, self.field, len(self.admitted), "the gate 'task'")
        scores_RGT = self.layer(self.input(step)).unflatten(1, self.admitted.shape)
        scores_RT = grouped_scores(scores_RGT, groups_R, self.admitted)
        return Scores(scores_RT, {"groups": groups_R, "admitted": self.admitted})


@GATES.register("modality")
class ModalityGate(Gate):
    """A linear layer of its own for every modality, over the teachers of that modality and those that all share.

        scores_t = (W_m x)_t   for t in own(m) or shared, and no weight at all elsewhere

    Wang et al., "MoIIE: Mixture of Intra- and Inter-Modality Experts for Large Vision Language Models", arXiv
    2508.09779, whose balance loss is `switch` with `per_group`. There, rows are tokens of text and image; here also
    instances, whose modality (which inputs are present, say) decides which teachers are admissible. With no shared
    teachers each modality has its own; a row whose modality is negative has all teachers with equal scores.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        groups: for every modality its own teachers, by name or number; modalities are numbered from 0.
        shared: teachers that every modality has.
        field: batch field with the number of each instance's modality (or token's, or pixel's).
        on: what the gate reads; the page on routers says what each is.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: size of the source, found by itself in a config.
        detach_input: cut the gradient from the router's losses into the student.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
        shapes: sizes of fields and taps.
        experts: names of the teacher variants.
    """

    admitted: Tensor

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        groups: Sequence[Sequence[int | str]],
        shared: Sequence[int | str] = (),
        field: str = "modality",
        on: On = "student_logits",
        source: str | None = None,
        width: int | None = None,
        detach_input: bool = True,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
        shapes: Injected[Shapes | None] = None,
        experts: Injected[Sequence[str] | None] = None,
    ) -> None:
        super().__init__()
        self.rows, self.field = Rows(granularity, mask_field), field
        admitted = admitted_teachers(groups, shared, num_teachers, experts)
        self.register_buffer("admitted", admitted, persistent=False)
        self.admits = int(admitted.sum(dim=1).min())
        self.input = GateInput(on, num_classes, num_teachers, source, width, detach_input, self.rows, shapes)
        self.needs_teachers = self.input.needs_teachers
        self.layer = nn.Linear(self.input.width, admitted.numel(), bias=False)

    @classmethod
    def examples(cls, num_teachers: int) -> dict[str, dict[str, Any]]:
        """Return two modalities with a teacher each; the other teachers are shared."""
        last = num_teachers - 1
        section = super().examples(num_teachers)[""]
        section["gate"] = {"groups": [[0], [last]], "shared": list(range(1, last))}
        section["selection"] = {"kind": "top_k", "k": 1}
        section["balance"] = [{"kind": "switch", "per_group": True, "weight": 1e-3}]
        return {"": section}

    def forward(self, step: Step) -> Scores:
        """Return the scores `[R, T]`, with the modalities for balance losses that look at each."""
        groups_R = groups_of(step, self.rows, self.field, len(self.admitted), "the gate 'modality'")
        scores_RGT = self.layer(self.input(step)).unflatten(1, self.admitted.shape)
        scores_RT = grouped_scores(scores_RGT, groups_R, self.admitted)
        return Scores(scores_RT, {"groups": groups_R, "admitted": self.admitted})


def admitted_teachers(
    groups: Sequence[Sequence[int | str]],
    shared: Sequence[int | str],
    num_teachers: int,
    experts: Sequence[str] | None = None,
) -> Tensor:
    """Tell which teachers each group may use, `[G, T]` of bool.

    Raises:
        ConfigError: unknown teachers, a group without any, or a teacher that no group may use.
    """

    def number(teacher: int | str) -> int:
        if isinstance(teacher, str):
            names = list(experts or ())
            if teacher not in names:
                hint = did_you_mean(teacher, names) or f"; known: {', '.join(names) or 'none'}"
                raise ConfigError(f"router.gate.groups: no teacher '{teacher}'{hint}")
            return names.index(teacher)
        if not 0 <= teacher < num_teachers:
            raise ConfigError(f"router.gate.groups: no teacher {teacher}; there are {num_teachers}, numbered from 0")
        return teacher

    if not groups:
        raise ConfigError("router.gate.groups: expected one list of teachers for every modality, found none")
    admitted = torch.zeros(len(groups), num_teachers, dtype=torch.bool)
    for index, group in enumerate(groups):
        chosen = [number(teacher) for teacher in [*group, *shared]]
        if not chosen:
            raise ConfigError(f"router.gate.groups[{index}]: the modality has no teacher, neither its own nor shared")
        admitted[index, chosen] = True
    idle = (~admitted.any(dim=0)).nonzero()[:, 0].tolist()
    if idle:
        named = [experts[teacher] if experts else teacher for teacher in idle]
        raise ConfigError(f"router.gate.groups: teachers {named} are in no group; share them or leave them out")
    return admitted
