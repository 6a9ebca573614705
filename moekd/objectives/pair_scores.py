"""What teachers say about chosen pairs of images and texts, by whatever way they judge pairs.

Shapes: B rows of this process, N rows of all processes, K candidates of a row, D width of an embedding, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..signals import Signals, full_precision
from .embedding_pair import TeacherScale, TwoEmbeddings, teacher_scale
from .embeddings import Scale, everywhere, unit

if TYPE_CHECKING:
    from ..teachers import Teacher

#: Maps features of P images and of P texts to P match logits: `match` of a cross-encoder's network.
PairScorer = Callable[[Tensor, Tensor], Tensor]


class Judge(NamedTuple):
    """A teacher's features of a batch and how it scores pairs of them.

    Attributes:
        own: its (image, text) features of this process's rows.
        all: those of all processes.
        scorer: its match function; None for a dual encoder, which scores pairs by scaled cosines.
        scale: of the cosines of a dual encoder.
    """

    own: TwoEmbeddings
    all: TwoEmbeddings
    scorer: PairScorer | None
    scale: Scale = 1.0

    def scores(self, direction: int, index_BK: Tensor) -> Tensor:
        """Return its score of each row with each of the row's candidates, `[B, K]`, without gradient.

        Args:
            direction: 0 for an image and its candidate texts, 1 for a text and its candidate images.
            index_BK: rows of all processes.
        """
        own_BD, other_ND = self.own[direction], self.all[1 - direction]
        said_BK = scores_of_pairs(own_BD, other_ND, index_BK, self.scorer, turned=direction == 1)
        return said_BK if self.scorer is not None else self.scale * said_BK


@torch.no_grad()
def scores_of_pairs(
    own_BD: Tensor, other_ND: Tensor, index_BK: Tensor, scorer: PairScorer | None, turned: bool = False
) -> Tensor:
    """Return the score of each row with each of its candidates, `[B, K]`, without gradient.

    Args:
        own_BD: features of the rows.
        other_ND: features of all candidates.
        index_BK: the candidates of each row.
        scorer: match function of a cross-encoder; None: by cosine.
        turned: the rows are texts, which the match function takes second.
    """
    if scorer is None:
        return (unit(own_BD)[:, None] * unit(other_ND)[index_BK]).sum(dim=2)
    rows, count = index_BK.shape
    mine_PD = own_BD.repeat_interleave(count, dim=0)
    other_PD = other_ND[index_BK.flatten()]
    pairs = (other_PD, mine_PD) if turned else (mine_PD, other_PD)
    return full_precision(scorer(*pairs)).reshape(rows, count)


def pair_scorer(teacher: Teacher) -> PairScorer | None:
    """Return how a cross-encoder scores pairs of features, wherever its weights are; None for other teachers."""
    match_of: PairScorer | None = getattr(teacher.network, "match", None)
    if match_of is None:
        return None

    def match(image_PD: Tensor, text_PD: Tensor) -> Tensor:
        place = teacher.device or image_PD.device
        image_PD, text_PD, back = image_PD.to(place, teacher.dtype), text_PD.to(place, teacher.dtype), image_PD.device
        return match_of(image_PD, text_PD).to(back)

    return match


def judge_of(
    name: str,
    teacher: Signals,
    features: TwoEmbeddings,
    scorers: Mapping[str, PairScorer] | None,
    scale: TeacherScale,
    who: str,
) -> Judge:
    """Return how a teacher judges the pairs of a batch.

    Args:
        name: the teacher or variant.
        teacher: what it says about the batch.
        features: its (image, text) embeddings.
        scorers: match functions of the teachers that have one, by name.
        scale: of cosines, see `teacher_scale`; not read for teachers with a match function.
        who: the objective, for messages.
    """
    gathered = everywhere(features[0].detach())[0], everywhere(features[1].detach())[0]
    scorer = (scorers or {}).get(name.partition("/")[0])
    factor = 1.0 if scorer is not None else teacher_scale(scale, name, teacher, who)
    return Judge(features, gathered, scorer, factor)
