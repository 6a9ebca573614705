"""Filling a model's cache of labelled pictures, and choosing how much their votes count.

Shapes: B batch, C classes, D width of the embeddings, S entries, A values of alpha, E values of beta.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from ..data.few_labels import FewLabels
from ..distributed import sum_over_processes
from ..errors import ConfigError
from ..evaluation.evaluate import to_device
from ..model import Batch, Model
from ..networks.tip_adapter import TipAdapter, cache_scores
from ..registry import Injected
from ..signals import full_precision
from ..step import Models
from .base import STAGES, StageSettings
from .class_vectors import embedding_of, evaluated, labelled_embeddings, model_named, place_of
from .context import RunData, StageContext
from .fit_head_mix import first_best
from .train import TrainStage

logger = logging.getLogger(__name__)

#: 0, at which no entry counts, then the range of the released code for ImageNet.
ALPHAS = (0.0, *(round(0.1 + 0.145 * i, 3) for i in range(20)))
BETAS = tuple(round(0.1 + 0.345 * i, 3) for i in range(20))
Alpha = Annotated[float, Ge(0)]
Beta = Annotated[float, Gt(0)]


def count_right(
    base: Tensor, affinity: Tensor, values: Tensor, labels: Tensor, alphas: Sequence[float], betas: Sequence[float]
) -> Tensor:
    """Return how many rows are classified right for each pair of settings, int64 `[E, A]`.

    Shape:
        base: logits without votes `[B, C]`; affinity: `[B, S]`; values: `[S, C]`; labels: `[B]`.
    """
    weight = torch.tensor(list(alphas), dtype=base.dtype, device=base.device)[:, None, None]
    counts = []
    for beta in betas:
        logits = base + weight * cache_scores(affinity, values, beta)
        counts.append((logits.argmax(dim=2) == labels).sum(dim=1))
    return torch.stack(counts)


@torch.no_grad()
def fit_tip_adapter(
    model: Model,
    loader: Iterable[Batch],
    device: torch.device,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
    leave_own_out: bool = False,
) -> tuple[float, float]:
    """Set alpha and beta of a model's votes to those that classify most labelled rows of a loader right; return them.

    Among equals the first wins, betas outside, alphas inside, as in the released code. Every process has to call this;
    all get the same.

    Args:
        model: its network has a `tip_adapter`.
        loader: batches of this process; with `leave_own_out` all rows, in every process.
        device: where batches go.
        alphas, betas: values to try.
        leave_own_out: the labelled rows are the entries themselves, in their order, and do not vote for themselves.

    Raises:
        ConfigError: the model has no such votes, or no row has a label.
    """
    votes, modality = votes_of(model, "the model")
    before = float(votes.alpha), float(votes.beta)
    counts = torch.zeros(len(betas), len(alphas), dtype=torch.int64, device=device)
    seen = torch.zeros((), dtype=torch.int64, device=device)
    try:
        votes.mix(0.0, before[1])
        for batch in loader:
            moved = to_device(batch, device)
            known = moved["labelled"] & (moved["label"] >= 0)
            with evaluated(model):
                said = model(moved, ())
            base = full_precision(said.require_logits("the search of alpha and beta"))[known]
            keys = votes.affinity(said.embeddings[modality][known].to(votes.keys))
            affinity = full_precision(keys).to(base)
            if leave_own_out:
                own = torch.arange(len(base), device=device)
                affinity[own, own + int(seen)] = -torch.inf
            counts += count_right(base, affinity, votes.values.to(base), moved["label"][known], alphas, betas)
            seen += known.sum()
    finally:
        votes.mix(*before)
    if not leave_own_out:
        counts, seen = sum_over_processes(counts), sum_over_processes(seen)
    if not int(seen):
        raise ConfigError("alpha and beta can't be chosen: no row of the split has a label")
    found = first_best(counts, alphas, betas)
    votes.mix(*found)
    return found


def votes_of(model: Model, who: str) -> tuple[TipAdapter, str]:
    """Return the votes of a model's network, and the modality they are about.

    Raises:
        ConfigError: it has none.
    """
    votes = getattr(model.network, "tip_adapter", None)
    if not isinstance(votes, TipAdapter):
        raise ConfigError(f"{who} has no labelled pictures that could vote; give it tip_adapter: {{entries: ...}}")
    return votes, str(model.network.seen)


@STAGES.register("tip_adapter")
class TipAdapterStage(TrainStage):
    """Fill the entries of a model's `tip_adapter` with labelled rows, train, and choose alpha and beta by validation.

    Without `trains` it is Tip-Adapter, which needs no training; with `trains: [teachers.NAME.tip_adapter]` and a
    `cross_entropy` on that teacher Tip-Adapter-F, whose keys learn at the first alpha and beta (Zhang et al., ECCV
    2022, arXiv 2207.09519). Differences from the released code: keys are embeddings of the rows as the split gives
    them, not means over ten random crops; the kept epoch is the last or the one that `monitor` chooses, never the best
    one on test data; the values to try are fewer, and 0 is among those of alpha.

    Args:
        settings: modules, objectives, optimizer, length; see the stage's keys in the config reference.
        into: the model: a teacher's name, or `student`.
        from_split: split whose labelled rows become the entries.
        fit_on: split whose labels choose alpha and beta. Where it is `from_split`, no row votes for itself.
        alphas: weights of the votes to try.
        betas: sharpnesses to try.
    """

    needs_training = False

    def __init__(
        self,
        settings: Injected[StageSettings],
        into: str,
        from_split: str = "labelled",
        fit_on: str = "val",
        alphas: Annotated[list[Alpha], MinLen(1)] | None = None,
        betas: Annotated[list[Beta], MinLen(1)] | None = None,
    ) -> None:
        super().__init__(settings)
        self.into, self.from_split, self.fit_on = into, from_split, fit_on
        self.alphas, self.betas = alphas or ALPHAS, betas or BETAS

    @property
    def splits(self) -> list[str]:
        """Splits that the stage learns from."""
        return [self.settings.split, self.from_split, self.fit_on]

    @property
    def changes(self) -> list[str]:
        """Models that are others after the stage, in the names of `trains`."""
        return [*self.settings.trains, place_of(self.into)]

    def run(self, context: StageContext, resume: Mapping[str, Any] | None = None) -> None:
        """Fill the entries (unless a resumed run has them already), train, choose alpha and beta."""
        if resume is None:
            self.fill(context)
        super().run(context, resume)
        self.search(context)

    def check(self, models: Models, data: RunData) -> None:
        """Refuse a model that has no place for votes, or not enough of it.

        Raises:
            ConfigError: what it is.
        """
        super().check(models, data)
        model, split = model_named(models, self.into), data.split(self.from_split)
        data.split(self.fit_on)
        if getattr(model.network, "stands_in", False):
            return
        votes, modality = votes_of(model, f"stage '{self.name}': '{self.into}'")
        if split.labels is None or split.labels.ndim != 1:
            raise ConfigError(f"stage '{self.name}': split '{self.from_split}' has no label a row, so it can't vote")
        known = split.mask if isinstance(split, FewLabels) else np.asarray(split.labels) >= 0
        labelled = int(np.count_nonzero(known))
        if labelled > len(votes.keys):
            raise ConfigError(
                f"stage '{self.name}': split '{self.from_split}' has {labelled} labelled rows, '{self.into}' has place "
                f"for {len(votes.keys)}; set its tip_adapter.entries to {labelled}"
            )
        embedding_of(model, split.__getitems__([0, min(1, len(split) - 1)]), modality)

    def fill(self, context: StageContext) -> None:
        """Make the labelled rows of the split the entries."""
        models, device = context.models, context.device
        for module in (models.student, models.pool):
            module.to(device)
        model = model_named(models, self.into)
        votes, modality = votes_of(model, f"stage '{self.name}': '{self.into}'")
        found = list(labelled_embeddings(model, context.data, self.from_split, modality, device))
        keys, labels = torch.cat([rows for rows, _ in found]), torch.cat([labels for _, labels in found])
        votes.adopt(keys.to(votes.keys.device), labels.to(votes.keys.device))
        logger.info("stage '%s': %d of %d entries of '%s' filled", self.name, len(keys), len(votes.keys), self.into)

    def search(self, context: StageContext) -> None:
        """Choose alpha and beta and write them to the log."""
        own = self.fit_on == self.from_split
        loader = context.data.eval_loader(self.fit_on) if own else context.eval_loader(self.fit_on)
        model = model_named(context.models, self.into)
        alpha, beta = fit_tip_adapter(model, loader, context.device, self.alphas, self.betas, own)
        place = {"type": "tip_adapter", "phase": context.phase, "stage": self.name, "model": self.into}
        context.log(place | {"alpha": alpha, "beta": beta})
        logger.info("stage '%s': alpha %g and beta %g for '%s'", self.name, alpha, beta, self.into)
