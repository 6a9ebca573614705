"""Contrastive representation distillation (Tian et al., "Contrastive Representation Distillation", ICLR 2020, arXiv
1910.10699).

Shapes: B batch, N instances of the training set, K negatives, D features of the embedding.
"""

from __future__ import annotations

import math
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Split
from ..data.few_labels import UNLABELLED, FewLabels
from ..distributed import rank, sum_over_processes, world_size
from ..errors import ConfigError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import TapPair, TeacherTap, no_autocast
from .memory_bank import MemoryBank, NegativeSampler

if TYPE_CHECKING:
    from ..model import Batch

EPS = 1e-7
#: Stands for the logarithm of a normaliser that is not known yet.
UNMEASURED = -1e30


def contrastive_loss(positive_B: Tensor, negative_BK: Tensor, instances: int) -> Tensor:
    """`-log x_0 / (x_0 + K/N) - sum_k log (K/N) / (x_k + K/N)` of every instance (equation 18 of the paper), `[B]`.

    x are likelihoods, exp(similarity / temperature) / Z, of the positive and of the K negatives; given are their
    logarithms, which stay finite at every temperature. -inf leaves a negative out.

    Shape:
        positive_B: `[B]`; negative_BK: `[B, K]`.
    """
    noise = negative_BK.shape[1] / instances
    floor = torch.full((), math.log(noise + EPS), dtype=positive_B.dtype, device=positive_B.device)
    positive = positive_B - torch.logaddexp(positive_B, floor)
    negative_B = (math.log(noise) - torch.logaddexp(negative_BK, floor)).sum(dim=1)
    return -(positive + negative_B)


class ContrastedEmbeddings(nn.Module):
    """Embeddings of student and one teacher with their memory banks.

    Args:
        student_width, teacher_width: flattened sizes of the two activations.
        instances: number of training instances N.
        embed_dim: features D.
        temperature: of the similarities.
        momentum: of the banks.
    """

    log_normaliser: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        instances: int,
        embed_dim: int,
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.student, self.teacher = nn.Linear(student_width, embed_dim), nn.Linear(teacher_width, embed_dim)
        self.student_bank = MemoryBank(instances, embed_dim, momentum)
        self.teacher_bank = MemoryBank(instances, embed_dim, momentum)
        self.register_buffer("log_normaliser", torch.full((2,), UNMEASURED))

    def forward(self, student: Tensor, teacher: Tensor, sampler: NegativeSampler, ids_B: Tensor, count: int) -> Tensor:
        """Return the loss of every instance, `[B]`; in training, move the banks."""
        with no_autocast(student):
            u_BD = F.normalize(self.student(student.flatten(1)), dim=1)
            v_BD = F.normalize(self.teacher(teacher.flatten(1)), dim=1)
            rows_B, known_B = sampler.rows(ids_B)
            negatives_BK, some_B = sampler.draw(rows_B, known_B, count)
            index_BK = torch.cat([rows_B[:, None], negatives_BK], dim=1)
            sides = [(u_BD, v_BD, self.teacher_bank), (v_BD, u_BD, self.student_bank)]
            losses = []
            for side, (mine_BD, other_BD, bank) in enumerate(sides):
                products = bank.products(mine_BD, index_BK)
                fresh_B = (mine_BD * other_BD.detach()).sum(dim=1)
                positive_B = products[:, 0].where(known_B, fresh_B)
                x_BK = torch.cat([positive_B[:, None], products[:, 1:]], dim=1) / self.temperature
                x_BK = x_BK - self._log_normaliser(side, x_BK, len(sampler))
                negative_BK = x_BK[:, 1:].masked_fill(~some_B[:, None], -math.inf)
                losses.append(contrastive_loss(x_BK[:, 0], negative_BK, len(sampler)))
            if self.training:
                self.student_bank.update(rows_B, known_B, u_BD)
                self.teacher_bank.update(rows_B, known_B, v_BD)
        return losses[0] + losses[1]

    @torch.no_grad()
    def _log_normaliser(self, side: int, raw_BK: Tensor, instances: int) -> Tensor:
        """Return log Z. Z: the mean likelihood of the first training batch times N, constant from then on."""
        means = raw_BK.new_zeros(world_size())
        if raw_BK.numel():
            means[rank()] = raw_BK.flatten().logsumexp(dim=0) - math.log(raw_BK.numel())
        estimate = sum_over_processes(means).logsumexp(dim=0) - math.log(world_size()) + math.log(instances)
        known = self.log_normaliser[side] > UNMEASURED
        value = torch.where(known, self.log_normaliser[side].to(estimate.dtype), estimate)
        if self.training and raw_BK.numel():
            self.log_normaliser[side] = value
        return value.clone()


@OBJECTIVES.register("crd")
class ContrastiveDistillation(PairwiseObjective):
    """Student and teacher embeddings of the same instance are alike, those of instances of other classes are not.

    Both embeddings (linear, length 1) are learned, by noise-contrastive estimation against memory banks of all training
    instances, which are part of checkpoints. Every teacher has its own. The published weight is 0.8. Needs `id` in the
    batch; samples that are not in the bank (validation) are compared with the other model's fresh embedding.

    Negatives are drawn with replacement (the released code draws without, as long as there are enough). Where there are
    no labels, all other instances are negatives. Memory: 2 N D floats a teacher, and B min(8 N, K D) in a step.

    Args:
        student_tap: tap of the student.
        teacher_tap: tap of the teacher, or one a teacher by name.
        teacher: the one teacher or variant; without it the mean over all.
        negatives: K; 16384 in the paper, 4096 in MST-Distill's benchmark.
        embed_dim: features D of the embeddings.
        temperature: of the similarities.
        momentum: of the banks.
        shapes: sizes of the taps.
        train_split: the samples of the banks.
    """

    name = "crd"
    reads_features, reads_logits, logits_only, compares_rows = True, False, False, True

    def __init__(
        self,
        student_tap: str,
        teacher_tap: TeacherTap,
        teacher: str | None = None,
        negatives: int = 16384,
        embed_dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        shapes: Injected[Shapes | None] = None,
        train_split: Injected[Split | None] = None,
    ) -> None:
        super().__init__()
        if negatives < 1 or embed_dim < 1:
            raise ValueError(f"negatives and embed_dim must be at least 1, found {negatives} and {embed_dim}")
        if temperature <= 0 or not 0 <= momentum < 1:
            raise ValueError(f"temperature must be positive and momentum in [0, 1), found {temperature} and {momentum}")
        if train_split is None:
            raise ConfigError("crd needs the training split, for the rows of its memory banks: give 'train_split'")
        self.teacher, self.negatives = teacher, negatives
        self.taps = TapPair("crd", student_tap, teacher_tap, teacher, shapes)
        self.sampler = NegativeSampler(train_split.ids, _known_labels(train_split))
        width = prod(self.taps.student_shape())
        self.embeddings = nn.ModuleDict(
            {
                key: ContrastedEmbeddings(width, prod(shape), len(self.sampler), embed_dim, temperature, momentum)
                for key, shape in self.taps.teachers().items()
            }
        )

    def pair_with(self, name: str, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return both directions of the loss, `[B]`."""
        mine, other = self.taps.features(name, student, teacher)
        loss: Tensor = self.embeddings[self.taps.key(name)](mine, other, self.sampler, batch["id"], self.negatives)
        return loss


def _known_labels(split: Split) -> np.ndarray | None:
    """Return one label an instance, without those that are hidden from the student."""
    if not isinstance(split.labels, np.ndarray) or split.labels.ndim > 1:
        return None
    return np.where(split.mask, split.labels, int(UNLABELLED)) if isinstance(split, FewLabels) else split.labels
