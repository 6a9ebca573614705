"""Classification by the class means of a few examples within the batch.

Shapes: Q queries, S examples, B rows, C classes, D width of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..registry import Injected
from .base import OBJECTIVES, Loss, LossTerm, Objective
from .embeddings import LogitScale, Scale, ScaleSource, embedding, product, unit

if TYPE_CHECKING:
    from ..step import Step

#: Score of a class without an example.
NOTHING = -1e30


def prototype_scores(
    query_QD: Tensor, support_SD: Tensor, labels_S: Tensor, classes: int, own_QS: Tensor | None = None
) -> Tensor:
    """Return the products of queries with class means, `[Q, C]`; `NOTHING` for classes without an example.

        s_qc = query_q . mean_{s of class c} support_s

    The mean keeps its length. Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv
    1703.05175, with products in place of distances.

    Args:
        query_QD: queries.
        support_SD: examples.
        labels_S: their classes.
        classes: C.
        own_QS: True where an example is the query itself, which it is not compared with.
    """
    products_QS = product(query_QD, support_SD.T)
    classes_SC = F.one_hot(labels_S, classes).to(products_QS)
    counts_QC = classes_SC.sum(dim=0).expand(len(query_QD), -1)
    if own_QS is not None:
        products_QS = products_QS.masked_fill(own_QS, 0.0)
        counts_QC = counts_QC - own_QS.to(classes_SC) @ classes_SC
    means_QC = product(products_QS, classes_SC) / counts_QC.clamp_min(1)
    return means_QC.masked_fill(counts_QC < 0.5, NOTHING)


def prototype_ce(
    query_QD: Tensor,
    query_labels_Q: Tensor,
    support_SD: Tensor,
    labels_S: Tensor,
    classes: int,
    scale: Scale = 1.0,
    own_QS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query over the prototypes, and which queries count (their class has an example).

    L_vs of SgVA-CLIP (arXiv 2211.16191): `-log softmax_c(g a_q . p_c)_y`.

    Returns:
        `[Q]` and bool `[Q]`.
    """
    scores_QC = prototype_scores(query_QD, support_SD, labels_S, classes, own_QS)
    known_Q = scores_QC.detach().gather(1, query_labels_Q[:, None])[:, 0] > NOTHING / 2
    scaled_QC = (scale * scores_QC).masked_fill(scores_QC <= NOTHING / 2, NOTHING)
    losses_Q = F.cross_entropy(scaled_QC, query_labels_Q, reduction="none")
    return losses_Q.where(known_Q, torch.zeros_like(losses_Q)), known_Q


@OBJECTIVES.register("prototype_ce")
class PrototypeCE(Objective):
    """Each labelled row of the batch finds its class among the class means of the others, see `prototype_ce`.

    Batches as large as the few-label split work best, since a row whose class has no other row does not count; or
    episodes (`split: episodes`), in which the classes of the batch alone compete. Class means are those within the
    batch of a process.

    Args:
        embedding: embedding of the student.
        scale: `model` (the student's own), `learned` or a number.
        initial_scale, max_scale: first and largest value of a learned scale.
        shots: the first so many rows of a class in the batch are its examples and the others are queries, as in an
            episode, whose `shots` this has to be; None: every row is a query, and an example for the others (inferred:
            an episode has its examples apart, but few-label batches are too small to give rows away).
        num_classes: C.
    """

    reads_logits, compares_rows = False, True

    def __init__(
        self,
        num_classes: Injected[int],
        embedding: str = "image",
        scale: ScaleSource = "model",
        initial_scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        shots: int | None = None,
    ) -> None:
        super().__init__()
        if shots is not None and shots < 1:
            raise ConfigError(f"prototype_ce.shots must be at least 1, found {shots}")
        self.num_classes, self.embedding, self.shots = num_classes, embedding, shots
        self.scale = LogitScale(scale, initial_scale, max_scale)

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"prototype_ce": [B]}`; rows without a label, and examples, do not count."""
        label, rows_BD = step.batch["label"], unit(embedding(step.student, self.embedding, "prototype_ce"))
        known_B = label >= 0
        if "labelled" in step.batch:
            known_B = known_B & step.batch["labelled"]
        example_B = known_B if self.shots is None else known_B & (_rank(label, known_B) < self.shots)
        own_BB = torch.eye(len(label), dtype=torch.bool, device=label.device)[:, example_B]
        loss_B, counts_B = prototype_ce(
            rows_BD,
            label.clamp_min(0),
            rows_BD[example_B],
            label[example_B],
            self.num_classes,
            self.scale(step.student, "prototype_ce"),
            own_BB,
        )
        queries_B = known_B if self.shots is None else known_B & ~example_B
        return {"prototype_ce": LossTerm(loss_B, counts_B & queries_B)}


def _rank(label: Tensor, known_B: Tensor) -> Tensor:
    """Return how many labelled rows of the same class stand in front of each row."""
    same_BB = (label[:, None] == label) & known_B
    return same_BB.tril(-1).sum(dim=1)
