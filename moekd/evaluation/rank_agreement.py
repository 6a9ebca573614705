"""How far a student orders the hard negatives of a query as a teacher does.

Shapes: N images, M texts, Q queries and C candidates of one direction, K negatives of a query.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..objectives.hard_negatives import hard_negatives
from ..objectives.kendall import kendall_tau_b
from ..objectives.pair_scores import scores_of_pairs
from .embedded import Embedded, in_common
from .embedding_metrics import candidates, modality_pair
from .retrieval import PairScorer

#: Numbers that are compared at a time, about.
_NUMBERS = 1 << 22


class JudgingTeacher(NamedTuple):
    """A teacher's embeddings of a split, and its match function if it has one."""

    embedded: Embedded
    scorer: PairScorer | None


@torch.no_grad()
def rank_agreement(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    groups: tuple[Tensor, Tensor],
    k: int = 16,
    scorer: PairScorer | None = None,
) -> tuple[Tensor, Tensor]:
    """Return Kendall's tau-b between student and teacher on the negatives of every query, from images to texts `[N]`
    and from texts to images `[M]`; NaN for queries with fewer than two negatives.

    The negatives of a query are the K candidates nearest to it by the student's cosine that are no right answers: those
    whose order a cross-encoder has to teach (Chen et al., CVPR 2024, arXiv 2407.07479). The teacher scores these K
    alone. Tau is 1 for the same order, -1 for the reversed one, about 0 for an unrelated one, and 0 where one of the
    two gives all of them the same score.

    Args:
        student: its embeddings of images `[N, D]` and texts `[M, D]`, not normalised.
        teacher: those of the teacher, of another width as a rule.
        groups: integers `[N]` and `[M]`; an image and a text of the same number are right answers for each other.
        k: K; a query with fewer negatives has them all compared.
        scorer: match function of a cross-encoder; None: the teacher judges by cosine.

    Raises:
        DataError: K below 2, or numbers of rows that differ.
    """
    rows = [tuple(len(part) for part in parts) for parts in (student, teacher, groups)]
    if k < 2 or len(set(rows)) > 1:
        raise DataError(
            f"rank agreement needs k of at least 2 and equally many rows of student, teacher and groups; found k {k} "
            f"and {rows[0]}, {rows[1]} and {rows[2]}"
        )
    unit = [F.normalize(part.float(), dim=1, eps=1e-6) for part in student]
    taus = []
    for direction in (0, 1):
        other = 1 - direction
        width = max(unit[0].shape[1], *(part.shape[1] for part in teacher))
        size = max(1, _NUMBERS // max(len(groups[other]), k * k, k * width))
        parts = zip(*(side[direction].split(size) for side in (unit, teacher, groups)), strict=True)
        found = [groups[0].new_zeros(0, dtype=torch.float32)]
        for query_QD, judged_QD, group_Q in parts:
            scores_QC = query_QD @ unit[other].T
            index_QK, valid_QK = hard_negatives(scores_QC, group_Q[:, None] == groups[other], k)
            said_QK = scores_of_pairs(judged_QD, teacher[other], index_QK, scorer, turned=direction == 1)
            found.append(_taus(scores_QC.gather(1, index_QK), said_QK, valid_QK))
        taus.append(torch.cat(found))
    return taus[0], taus[1]


def _taus(student_QK: Tensor, teacher_QK: Tensor, valid_QK: Tensor) -> Tensor:
    """Return tau-b over the candidates that there are, which stand first; NaN with fewer than two."""
    taus_Q = student_QK.new_full((len(student_QK),), torch.nan)
    counts_Q = valid_QK.sum(dim=1)
    for count in counts_Q.unique().tolist():
        if count > 1:
            here = counts_Q == count
            taus_Q[here] = kendall_tau_b(student_QK[here, :count], teacher_QK[here, :count]).to(taus_Q)
    return taus_Q


def measure_rank_agreement(
    student: Embedded, teacher: Embedded, k: int, device: torch.device | str = "cpu", scorer: PairScorer | None = None
) -> dict[str, Any] | None:
    """Return the means of `rank_agreement`: each way, of both as `tau`, `k` and the queries `n`.

    Rows of one group are right answers for each other, equal inputs of a group one candidate, as for retrieval. None
    where the student has no two modalities to compare, or the teacher does not judge such pairs, or no query has two
    negatives.
    """
    pair = modality_pair(student)
    if pair is None or any(modality not in teacher.embeddings for modality in pair):
        return None
    widths = {teacher.embeddings[modality].shape[1] for modality in pair}
    if scorer is None and len(widths) > 1:
        return None
    own, his = in_common(student, teacher)
    places = torch.full((len(student),), -1).index_copy(0, own, his)
    rows = [kept[places[kept] >= 0] for kept in (candidates(student, modality) for modality in pair)]
    sides = [
        tuple(
            side.embeddings[m][r if side is student else places[r]].to(device) for m, r in zip(pair, rows, strict=True)
        )
        for side in (student, teacher)
    ]
    groups = (student.groups[rows[0]].to(device), student.groups[rows[1]].to(device))
    taus = rank_agreement((sides[0][0], sides[0][1]), (sides[1][0], sides[1][1]), groups, k, scorer)
    known = [tau[~tau.isnan()].double() for tau in taus]
    if not all(len(tau) for tau in known):
        return None
    forth, back = (float(tau.mean()) for tau in known)
    first, second = pair
    ways = {f"{first}_to_{second}": forth, f"{second}_to_{first}": back}
    return {"tau": (forth + back) / 2, **ways, "k": k, "n": sum(map(len, known))}
