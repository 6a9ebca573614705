"""Distillation from the features of a teacher of another modality that matter to both modalities (Xue et al., "The
Modality Focusing Hypothesis: Towards Understanding Crossmodal Knowledge Distillation", ICLR 2023, arXiv 2206.06487,
algorithm 1).

Shapes: B batch, C classes, D features or channels of a tap, R permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..data import Split
from ..errors import ConfigError, ModelError, did_you_mean
from ..model import Batch, Model, tapped
from ..registry import Injected
from ..routers import Shapes
from ..signals import full_precision
from .base import OBJECTIVES, Loss, Objective
from .kd import kd_kl

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool

Form = Literal["original", "benchmark"]
#: Most numbers of an activation that one forward of the salience holds.
CHUNK = 2**22


def permute_channels(x: Tensor, channels: Sequence[int], order_B: Tensor) -> Tensor:
    """Give each row the values of another row in some channels: `y[:, j] = x[order, j]`.

    Shape:
        x: `[B, D, ...]`; order_B: a permutation of the rows; result: as `x`.
    """
    index = torch.as_tensor(list(channels), dtype=torch.long, device=x.device)
    return x.index_copy(1, index, x[order_B.to(x.device)].index_select(1, index))


def freeze_channels(x: Tensor, channels: Tensor) -> Tensor:
    """Replace some channels by their mean over the batch, so that they tell nothing of a row.

    Shape:
        x: `[B, D, ...]`; channels: indices; result: as `x`. Maps keep their positions in the mean.
    """
    if not len(channels) or not len(x):
        return x
    mean = x.index_select(1, channels).mean(dim=0, keepdim=True)
    return x.index_copy(1, channels, mean.expand(x.shape[0], *mean.shape[1:]))


def least_decisive(salience_D: Tensor, ratio: float) -> Tensor:
    """Return the share `ratio` of the channels whose salience is lowest, rounded down, as indices."""
    return salience_D.argsort(stable=True)[: int(ratio * len(salience_D))]


@torch.no_grad()
def permutation_distances(
    teacher: Model, tap: str, batch: Batch, goal: Tensor, orders_DB: Tensor, shared: bool
) -> Tensor:
    """Mean squared distance of the teacher's logits to `goal` when one channel of a tap is permuted, for each channel.

    Args:
        teacher: in eval mode.
        tap: module whose output is permuted.
        batch: fields `[B, ...]`.
        goal: the other model's logits `[B, C]` or `[B, C, ...]`.
        orders_DB: a permutation of the rows for each channel.
        shared: compute what lies below the tap once, and let the rows behind it be as many as are needed.

    Returns:
        `[D]`.
    """
    rows, found = goal.shape[0], []
    size = _numbers(teacher, tap, batch)
    step = max(1, CHUNK // max(1, size))
    for start in range(0, len(orders_DB), step):
        channels = range(start, min(start + step, len(orders_DB)))

        def edit(name: str, x: Tensor, channels: range = channels) -> Tensor:
            parts = [x] * len(channels) if shared else x.split(rows)
            return torch.cat([permute_channels(p, [j], orders_DB[j]) for p, j in zip(parts, channels, strict=True)])

        given = batch if shared else {field: torch.cat([batch[field]] * len(channels)) for field in teacher.inputs}
        with tapped(teacher.network, [tap], edit):
            logits = full_precision(teacher(given, ()).require_logits("mgdfr"))
        distances = (logits.unflatten(0, (len(channels), rows)) - full_precision(goal)).square().flatten(1).mean(dim=1)
        found.append(distances)
    return torch.cat(found)


def _numbers(teacher: Model, tap: str, batch: Batch) -> int:
    """Return how many numbers the tap gives for the batch."""
    sizes: list[int] = []
    with tapped(teacher.network, [tap], lambda name, x: sizes.append(x.numel())):
        teacher(batch, ())
    return sizes[0]


def takes_more_rows(teacher: Model, tap: str, batch: Batch, channels: int) -> bool:
    """Tell whether the part behind a tap may get more rows than the part below it: both ways give the same."""
    few = {field: batch[field][:3] for field in teacher.inputs}
    orders = torch.arange(len(few[teacher.inputs[0]])).roll(1).repeat(min(2, channels), 1)
    with torch.no_grad():
        goal = teacher(few, ()).require_logits("mgdfr")
    try:
        apart = permutation_distances(teacher, tap, few, goal, orders, shared=False)
        together = permutation_distances(teacher, tap, few, goal, orders, shared=True)
    except (RuntimeError, ModelError):
        return False
    return torch.allclose(together, apart, rtol=1e-4, atol=1e-6)


@OBJECTIVES.register("logit_agreement")
class LogitAgreement(Objective):
    """Mean squared difference of the logits of two models that learn together; both get gradients (step 1 of MGDFR).

    Args:
        models: names of the two; `student` or teachers.
    """

    def __init__(self, models: tuple[str, str]) -> None:
        super().__init__()
        self.models = models

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"logit_agreement": [B]}`."""
        a, b = (full_precision(step.signals(name).require_logits("logit_agreement")) for name in self.models)
        if a.shape != b.shape:
            raise ModelError(f"logit_agreement: logits {tuple(a.shape)} and {tuple(b.shape)} differ")
        return {"logit_agreement": (a - b).square().flatten(1).mean(dim=1)}

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return those of the two that are teachers."""
        return [name for name in self.models if name != "student"]


@OBJECTIVES.register("mgdfr")
class DecisiveFeatures(Objective):
    """Distillation from a teacher that keeps only the features that are decisive for both modalities.

    Before its first loss the channels of a tap are ranked on training rows: a channel whose permutation over the rows
    moves the teacher's logits far from those of the `partner`, a model of the student's modality that learned together
    with the teacher, is decisive for both. The share `ratio` of the channels that rank lowest is replaced by the mean
    over the batch, and the student learns from the logits of what is left. The ranking is part of checkpoints.

    The published recipe: a stage that trains teacher and partner with `cross_entropy` and `logit_agreement`, then a
    stage in which a fresh student learns from this objective.

    Args:
        teacher: name of the teacher.
        tap: tap of the teacher: a vector `[D]`, or maps `[D, H, W]`, whose channels are ranked.
        partner: name of the other model of the joint training, a teacher with the student's inputs, or `student`.
        ratio: share of the channels that is taken away.
        form: `original`: the ranking is that of one batch, and the loss is KL at temperature 1, divided by the number
            of classes; `benchmark` (MST-Distill's): the ranking adds up over batches, and the loss is `kd_kl` at
            temperature 4.
        permutations: R, draws a channel.
        rows: rows of a batch of the ranking.
        batches: batches of the ranking in the form `benchmark`; None: all training rows.
        seed: of the permutations.
        temperature: another one than the form's.
        shapes: sizes of the taps.
        train_split: the rows.
    """

    #: Channels are replaced by their mean over the batch.
    compares_rows = True
    salience: Tensor
    ranked: Tensor

    def __init__(
        self,
        teacher: str,
        tap: str,
        partner: str = "student",
        ratio: float = 0.75,
        form: Form = "original",
        permutations: int = 10,
        rows: int = 512,
        batches: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        shapes: Injected[Shapes | None] = None,
        train_split: Injected[Split | None] = None,
    ) -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must lie in [0, 1), found {ratio}")
        if permutations < 1 or rows < 2 or (batches is not None and batches < 1):
            raise ValueError(f"permutations, rows or batches too small: {permutations}, {rows}, {batches}")
        if train_split is None:
            raise ConfigError("mgdfr ranks channels on training rows: give 'train_split'")
        if temperature is not None and temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.teacher, self.tap, self.partner, self.ratio, self.form = teacher, tap, partner, ratio, form
        self.permutations, self.rows, self.batches, self.seed = permutations, rows, batches, seed
        self.temperature = temperature or (1.0 if form == "original" else 4.0)
        self.train_split = train_split
        self.register_buffer("salience", torch.zeros(_width(shapes, teacher, tap)))
        self.register_buffer("ranked", torch.zeros((), dtype=torch.bool))

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"mgdfr": [B]}`."""
        if not self.ranked:
            self.rank(step.pool.teacher(self.teacher), self._partner(step))
        removed = least_decisive(self.salience, self.ratio)
        teacher = step.pool.teacher(self.teacher)
        with torch.no_grad(), tapped(teacher.network, [self.tap], lambda tap, x: freeze_channels(x, removed)):
            goal = teacher(step.batch, ()).require_logits("mgdfr").detach()
        student = step.student.require_logits("mgdfr")
        loss = kd_kl(student, goal, self.temperature)
        return {"mgdfr": loss / student.shape[1] if self.form == "original" else loss}

    def rank(self, teacher: Model, partner: Model) -> None:
        """Measure the salience of every channel, scaled to [0, 1], on training rows in a fixed random order."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.train_split), generator=generator)
        parts = [part for part in order.split(self.rows) if len(part) > 1]
        parts = parts[-1:] if self.form == "original" else parts[: self.batches]
        total, modes = torch.zeros_like(self.salience), [(m, m.training) for m in (teacher, partner)]
        shared: bool | None = None
        for model, _ in modes:
            model.eval()
        try:
            for part in parts:
                batch = self._batch(part)
                with torch.no_grad():
                    goal = partner(batch, ()).require_logits("mgdfr")
                if shared is None:
                    shared = takes_more_rows(teacher, self.tap, batch, len(total))
                for _ in range(self.permutations):
                    orders = torch.stack([torch.randperm(len(part), generator=generator) for _ in range(len(total))])
                    total += permutation_distances(teacher, self.tap, batch, goal, orders, shared).to(total)
        finally:
            for model, mode in modes:
                model.train(mode)
        spread = total.max() - total.min()
        self.salience.copy_((total - total.min()) / torch.where(spread > 0, spread, 1.0))
        self.ranked.fill_(True)

    def _batch(self, rows: Tensor) -> Batch:
        batch = self.train_split.__getitems__(rows.tolist())
        return {key: value.to(self.salience.device) for key, value in batch.items() if isinstance(value, Tensor)}

    def _partner(self, step: Step) -> Model:
        return step.models.student if self.partner == "student" else step.pool.teacher(self.partner)


def _width(shapes: Shapes | None, teacher: str, tap: str) -> int:
    """Return the number of channels of a teacher's tap."""
    if shapes is None:
        raise ConfigError("mgdfr: the number of channels depends on the tap: give 'shapes'")
    for what, name, known in (
        ("teacher", teacher, shapes.teachers),
        (f"tap of the teacher '{teacher}'", tap, shapes.teachers.get(teacher, {})),
    ):
        if name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(known) or 'none'}"
            raise ConfigError(f"mgdfr: '{name}' is no {what}{hint}")
    return shapes.teachers[teacher][tap][0]
