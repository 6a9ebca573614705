"""Choosing how the heads of a student are mixed, by validation.

Shapes: B batch, C classes, A values of alpha, T temperatures.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor

from ..distributed import sum_over_processes
from ..errors import ConfigError
from ..evaluation.evaluate import to_device
from ..model import Batch, Model
from ..networks.multi_head import MultiHead
from ..registry import Injected
from ..signals import full_precision
from ..step import Models
from .base import STAGES, StageSettings
from .class_vectors import class_vectors_of
from .context import RunData, StageContext
from .train import TrainLoop, TrainStage

logger = logging.getLogger(__name__)

ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))
TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
Alpha = Annotated[float, Ge(0), Le(1)]


def count_right(
    first: Tensor, others: Sequence[Tensor], labels: Tensor, alphas: Sequence[float], temperatures: Sequence[float]
) -> Tensor:
    """Return how many rows each mixture of the heads classifies right, int64 `[T, A]`.

    Shape:
        first, others: scores `[B, C]`; labels: `[B]`.
    """
    one = F.softmax(full_precision(first), dim=1)
    weight = torch.tensor(list(alphas), dtype=one.dtype, device=one.device)[:, None, None]
    counts = []
    for temperature in temperatures:
        rest = torch.stack([F.softmax(full_precision(other) / temperature, dim=1) for other in others]).mean(dim=0)
        mixed = weight * one + (1 - weight) * rest
        counts.append((mixed.argmax(dim=2) == labels).sum(dim=1))
    return torch.stack(counts)


def first_best(counts: Tensor, alphas: Sequence[float], temperatures: Sequence[float]) -> tuple[float, float]:
    """Return alpha and temperature of the largest count; among equals the first, temperatures outside, alphas inside
    (the order of DHO's search, arXiv 2505.07675).
    """
    flat = counts.flatten().tolist()
    place = flat.index(max(flat))
    return alphas[place % len(alphas)], temperatures[place // len(alphas)]


@torch.no_grad()
def fit_head_mix(
    model: Model,
    loader: Iterable[Batch],
    device: torch.device,
    alphas: Sequence[float] = ALPHAS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[float, float]:
    """Set the mixture of a model's heads to the one that classifies most rows of a loader right; return it.

    Every process has to call this; all get the same mixture.

    Raises:
        ConfigError: the model is no `multi_head`, or no row has a label.
    """
    network = heads_of(model)
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    counts = torch.zeros(len(temperatures), len(alphas), dtype=torch.int64, device=device)
    rows = torch.zeros((), dtype=torch.int64, device=device)
    for batch in loader:
        moved = to_device(batch, device)
        known = moved["label"] >= 0
        known = known & moved["labelled"] if "labelled" in moved else known
        first, others = network.split(model(moved, ()).heads)
        chosen = [other[known] for other in others]
        counts += count_right(first[known], chosen, moved["label"][known], alphas, temperatures)
        rows += known.sum()
    for part, mode in modes:
        part.training = mode
    if not int(sum_over_processes(rows)):
        raise ConfigError("the heads can't be mixed by validation: no row of the split has a label")
    found = first_best(sum_over_processes(counts), alphas, temperatures)
    network.mix(*found)
    return found


def heads_of(model: Model) -> MultiHead:
    """Return the network with several heads.

    Raises:
        ConfigError: the model is another.
    """
    if not isinstance(model.network, MultiHead):
        raise ConfigError(f"the student is a {type(model.network).__name__}, which has no heads to mix: use multi_head")
    return model.network


@STAGES.register("fit_head_mix")
class FitHeadMixStage(TrainStage):
    """Train as the kind `train` does, and choose the mixture of the student's heads before every validation.

    The best epoch is kept with its own mixture. The grid is that of DHO (arXiv 2505.07675), the measure accuracy.

    Args:
        settings: modules, objectives, optimizer, length; see the stage's keys in the config reference.
        fit_on: split whose labels choose; others measure the result.
        alphas: weights of the first head.
        temperatures: of the other heads.
        start_from: teacher whose class vectors the heads start from when the stage begins, with biases 0; None: they
            go on as they are. For students with features in the teacher's space, see `MultiHead.start`.
        start_heads: the heads that do; None: all.
    """

    def __init__(
        self,
        settings: Injected[StageSettings],
        fit_on: str = "val",
        alphas: Annotated[list[Alpha], MinLen(1)] | None = None,
        temperatures: Annotated[list[Annotated[float, Gt(0)]], MinLen(1)] | None = None,
        start_from: str | None = None,
        start_heads: Annotated[list[str], MinLen(1)] | None = None,
    ) -> None:
        super().__init__(settings)
        if start_heads is not None and start_from is None:
            raise ConfigError(f"stage '{self.name}': start_heads {start_heads} needs start_from, the teacher")
        self.start_from, self.start_heads = start_from, start_heads
        self.fit_on, self.alphas, self.temperatures = fit_on, alphas or ALPHAS, temperatures or TEMPERATURES

    @property
    def splits(self) -> list[str]:
        """Splits that the stage learns from."""
        return [self.settings.split, self.fit_on]

    def run(self, context: StageContext, resume: Mapping[str, Any] | None = None) -> None:
        """Start the heads (unless a resumed run has them already) and train."""
        if resume is None and self.start_from is not None:
            heads = heads_of(context.models.student)
            heads.start(self.first_vectors(context.models), self.start_heads)
            logger.info("stage '%s': heads start from the class vectors of '%s'", self.name, self.start_from)
        super().run(context, resume)

    def first_vectors(self, models: Models) -> Tensor:
        """Return the class vectors that heads start from, `[C, D]`."""
        return class_vectors_of(
            models.pool.teacher(str(self.start_from)), f"stage '{self.name}': teacher '{self.start_from}'"
        )

    def make_loop(self, context: StageContext, resume: Mapping[str, Any] | None) -> TrainLoop:
        """Return the loop that runs the stage."""
        return FitHeadMixLoop(self, context, resume)

    def check(self, models: Models, data: RunData) -> None:
        """Refuse a student without several heads, heads that can't start so, and a split that does not exist.

        Raises:
            ConfigError: what it is.
        """
        super().check(models, data)
        data.split(self.fit_on)
        if getattr(models.student.network, "stands_in", False):
            return
        heads = heads_of(models.student)
        if self.start_from is None or getattr(models.pool.teacher(self.start_from).network, "stands_in", False):
            return
        vectors = self.first_vectors(models)
        try:
            heads.check_start(vectors, self.start_heads)
        except ConfigError as error:
            raise ConfigError(f"stage '{self.name}': start_from '{self.start_from}': {error}") from error


class FitHeadMixLoop(TrainLoop):
    """One run of such a stage."""

    def __init__(self, stage: FitHeadMixStage, context: StageContext, resume: Mapping[str, Any] | None) -> None:
        super().__init__(stage.settings, context, resume)
        self.stage = stage

    def validate(self) -> dict[str, Any]:
        """Choose the mixture, then measure with it."""
        stage, loader = self.stage, self.context.eval_loader(self.stage.fit_on)
        alpha, temperature = fit_head_mix(
            self.averaged(), loader, self.context.device, stage.alphas, stage.temperatures
        )
        heads_of(self.context.models.student).mix(alpha, temperature)
        metrics = super().validate()
        self.context.log(self.entry("head_mix") | {"alpha": alpha, "temperature": temperature})
        return metrics
