"""What is routed: whole instances, tokens or pixels.

A router makes one decision a row. By default a row is an instance. With the granularity `token` or `pixel` it is a
position of the student's dense logits `[B, C, N]` or `[B, C, H, W]`; rows are then all positions of the first
instance, of the second, ..., so that R = B * N or B * H * W. Everything of a router is `[R, T]` in every case, and
`Routing.positions` tells the shape behind the batch axis: `()`, `(N,)` or `(H, W)`.

Shapes: B batch, R rows, T teacher variants, C classes, N tokens, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, ModelError, did_you_mean
from ..signals import full_precision

if TYPE_CHECKING:
    from ..step import Step

Granularity = Literal["instance", "token", "pixel"]
AXES: dict[str, int] = {"instance": 0, "token": 1, "pixel": 2}


class Grid(NamedTuple):
    """The rows of a step.

    Attributes:
        positions: shape behind the batch axis; () for instances.
        mask: rows that count `[R]`; None: all.
    """

    positions: tuple[int, ...] = ()
    mask: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Reads the rows of one granularity from a step.

    Attributes:
        granularity: what is routed.
        mask_field: batch field of bool (or 0 and 1), `[B]` or `[B, ...positions]`: what counts; None: everything.
    """

    granularity: Granularity = "instance"
    mask_field: str | None = None

    def grid(self, step: Step, who: str) -> Grid:
        """Return the shape of the positions and which rows count.

        A position of a labelled instance whose dense label is negative (void) does not count, nor does one that
        `mask_field` leaves out.

        Raises:
            ModelError: the student's logits do not have the granularity's axes.
            DataError: there is no such field, or it has another shape.
        """
        if self.granularity == "instance":
            return Grid((), None if self.mask_field is None else self.field(step, self.mask_field, who).bool())
        logits = step.student.require_logits(who)
        positions = tuple(logits.shape[2:])
        if len(positions) != AXES[self.granularity]:
            wanted = "[batch, classes, tokens]" if self.granularity == "token" else "[batch, classes, height, width]"
            raise ModelError(
                f"{who} with granularity '{self.granularity}' needs student logits {wanted}, found "
                f"{tuple(logits.shape)}; use granularity 'instance'"
            )
        mask = None
        label = step.batch.get("label")
        if isinstance(label, Tensor) and label.shape[1:] == positions:
            labelled = step.batch.get("labelled")
            mask = (label >= 0).flatten(1)
            mask = (mask if labelled is None else mask | ~labelled[:, None]).flatten()
        if self.mask_field is not None:
            chosen = self.field(step, self.mask_field, who).bool()
            mask = chosen if mask is None else mask & chosen
        return Grid(positions, mask)

    def field(self, step: Step, name: str, who: str) -> Tensor:
        """Return a batch field `[B]` or `[B, ...positions]` as one value a row, `[R]`.

        Raises:
            DataError: there is no such field, or it has another shape.
        """
        if name not in step.batch:
            hint = did_you_mean(name, step.batch) or f"; fields: {', '.join(step.batch)}"
            raise DataError(f"{who} reads field '{name}', which the data set does not have{hint}")
        field: Tensor = step.batch[name]
        positions = self.positions(step, who)
        if field.dim() == 1:
            return field.repeat_interleave(count(positions))
        if tuple(field.shape[1:]) != positions:
            wanted = ", ".join(map(str, ("batch", *positions)))
            raise DataError(f"{who} reads field '{name}' {tuple(field.shape)}; expected [{wanted}]")
        return field.flatten()

    def positions(self, step: Step, who: str) -> tuple[int, ...]:
        """Return the shape of the positions."""
        return () if self.granularity == "instance" else tuple(step.student.require_logits(who).shape[2:])

    def teacher_logits(self, step: Step) -> Tensor:
        """Return what all experts say: `[R, T, C]`, or what `measures.teacher_logits` gives for instances."""
        logits = full_precision(step.expert_signals.detach().logits)
        return logits if self.granularity == "instance" else logits_by_row(logits)

    def labels(self, step: Step, who: str, hidden: bool = False) -> tuple[Tensor, Tensor]:
        """Return (classes `[R]`, which rows have a label `[R]`); the class of a row without a label is 0.

        Args:
            step: the step.
            who: reads the labels, for messages.
            hidden: also read the labels that few-label data hide from training.

        Raises:
            ModelError: there is not one label a row.
        """
        hidden = hidden and "hidden_label" in step.batch
        labels: Tensor = step.batch["hidden_label" if hidden else "label"]
        positions = self.positions(step, who)
        if tuple(labels.shape[1:]) != positions:
            wanted = "one label an instance" if not positions else f"labels [batch, {', '.join(map(str, positions))}]"
            raise ModelError(f"{who} needs {wanted}, found labels {tuple(labels.shape)}; use a gate without labels")
        known = labels >= 0
        if "labelled" in step.batch and not hidden:
            known = known & step.batch["labelled"].view(-1, *[1] * len(positions))
        return labels.where(known, 0).flatten(), known.flatten()


def count(positions: tuple[int, ...]) -> int:
    """Return the number of rows of an instance."""
    return int(torch.Size(positions).numel())


def logits_by_row(logits: Tensor) -> Tensor:
    """Return dense logits `[B, T, C, ...positions]` as `[R, T, C]`; flat ones `[B, T, C]` as they are."""
    return logits.movedim((1, 2), (-2, -1)).flatten(0, -3) if logits.dim() > 3 else logits


def values_by_row(values: Tensor) -> Tensor:
    """Return maps `[B, C, ...positions]` as `[R, C]`."""
    return values.movedim(1, -1).flatten(0, -2)


def by_position(rows_RX: Tensor, positions: tuple[int, ...]) -> Tensor:
    """Return rows `[R, X]` as `[B, X, ...positions]`."""
    return rows_RX.view(-1, *positions, rows_RX.shape[1]).movedim(-1, 1)


def mean_over_positions(losses: Tensor, mask_R: Tensor | None) -> Tensor:
    """Mean over the positions that count, `[B, ...positions] -> [B]`; 0 for an instance without any."""
    flat = losses.flatten(1)
    if mask_R is None:
        return flat.mean(dim=1)
    mask = mask_R.view(flat.shape)
    return flat.where(mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
