"""Specialists by label.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ConfigError
from ...registry import Injected
from ..measures import labels_of
from .base import GATES, Gate
from .weights import log_weights

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("label_group")
class LabelGroupGate(Gate):
    """Every class has its specialists: the teachers in whose group it is, with equal weights.

        w_bt = [y_b in group_t] / sum_u [y_b in group_u]

    With disjoint groups each row has one teacher, as in the vertical concentration of Gao et al., "Knowledge
    Concentration: Learning 100K Object Classifiers in a Single CNN", arXiv 1711.07607. Rows without a label get uniform
    weights (with `top_k`: the first teacher). No teacher has to run before rows are routed.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        groups: for every teacher variant, in pool order, the numbers of its classes. A class may be in several groups;
            every class must be in one. By default the classes are split evenly over the teachers, in order.
    """

    table: Tensor
    gives_weights = True

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if groups is None:
            groups = even_groups(num_classes, num_teachers)
        self.register_buffer("table", group_weights(groups, num_classes, num_teachers))

    def forward(self, step: Step) -> Tensor:
        """Return the logarithms of the weights, `[B, T]`."""
        classes_B, known_B = labels_of(step, "the gate 'label_group'")
        return log_weights(self.table[classes_B], known_B)


def even_groups(num_classes: int, num_teachers: int) -> list[list[int]]:
    """Split the classes into one run of neighbours a teacher, whose sizes differ by at most one.

    With more teachers than classes, teachers share classes: teacher t has class `t * C // T`.
    """
    if num_teachers > num_classes:
        return [[teacher * num_classes // num_teachers] for teacher in range(num_teachers)]
    starts = [teacher * num_classes // num_teachers for teacher in range(num_teachers + 1)]
    return [list(range(start, end)) for start, end in itertools.pairwise(starts)]


def group_weights(groups: Sequence[Sequence[int]], num_classes: int, num_teachers: int) -> Tensor:
    """Return the weights of the teachers for each class, `[C, T]`.

    Raises:
        ConfigError: not one group a teacher, unknown classes, or classes without a teacher.
    """
    if len(groups) != num_teachers:
        raise ConfigError(
            f"router.gate.groups: one list of classes for each of the {num_teachers} teacher variants, "
            f"found {len(groups)}"
        )
    wrong = sorted({label for group in groups for label in group if not 0 <= label < num_classes})
    if wrong:
        raise ConfigError(f"router.gate.groups: no classes {wrong}; they are numbered from 0 to {num_classes - 1}")
    member = torch.zeros(num_classes, num_teachers)
    for teacher, group in enumerate(groups):
        member[list(group), teacher] = 1.0
    alone = (member.sum(dim=1) == 0).nonzero()[:, 0].tolist()
    if alone:
        raise ConfigError(f"router.gate.groups: classes {alone} are in no group; add them to a teacher's")
    return member / member.sum(dim=1, keepdim=True)
