"""Stops training when a loss is no longer a number, and says which loss, which model and which samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..model import Batch
from ..schedules import Progress
from ..step import Step
from .training_step import TrainingStep


class FiniteGuard:
    """Watches the loss.

    On the CPU every step is checked before the optimizer moves. On a GPU a check would make the host wait, so the
    first bad step is kept on the device (step, ids) and read by `flush`, every few steps and before anything is saved.
    """

    def __init__(self) -> None:
        self._bad_step: Tensor | None = None
        self._bad_ids: Tensor | None = None

    def check(
        self, module: TrainingStep, loss: Tensor, batch: Batch, progress: Progress, where: str, step: int
    ) -> None:
        """Check the loss of one step.

        Raises:
            NonFiniteError: naming stage, step, loss terms, models and sample ids.
        """
        if loss.device.type == "cpu":
            if not torch.isfinite(loss):
                raise NonFiniteError(explain(module, batch, progress, where, step))
            return
        ids = batch["id"]
        if self._bad_step is None or self._bad_ids is None or self._bad_ids.shape != ids.shape:
            self.flush(where)
            self._bad_step = torch.full((), -1, device=loss.device)
            self._bad_ids = torch.zeros_like(ids)
        first = ~torch.isfinite(loss.detach()) & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self._bad_ids = torch.where(first, ids, self._bad_ids)

    def flush(self, where: str) -> None:
        """Read what a GPU recorded.

        Raises:
            NonFiniteError: a step since the last flush was bad; the last checkpoint is from before it.
        """
        if self._bad_step is None or self._bad_ids is None:
            return
        bad = int(self._bad_step)
        if bad >= 0:
            ids = self._bad_ids.tolist()
            raise NonFiniteError(f"{where}, step {bad}: the loss is not finite; sample ids: {_some(ids)}")
        self._bad_step = None


@torch.no_grad()
def explain(module: TrainingStep, batch: Batch, progress: Progress, where: str, step: int) -> str:
    """Evaluate a bad step again, part by part, and return what is not finite."""
    lines = [f"{where}, step {step}: the loss is not finite"]
    for field, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            lines += _rows(f"input field '{field}'", value, batch)
    view = Step(batch, module.models, progress, True, module.variants, module.features, module.cache)
    for name in ["student", *module.variants]:
        logits = view.signals(name).logits
        if logits is not None:
            lines += _rows(
                "logits of the student" if name == "student" else f"logits of teacher '{name}'", logits, batch
            )
    terms: dict[str, Any] = {}
    for weighted in module.objectives:
        terms |= weighted.terms(view)  # type: ignore[operator]
    bad = [f"{name}={value.item()}" for name, value in terms.items() if not torch.isfinite(value)]
    fine = [f"{name}={value.item():.4g}" for name, value in terms.items() if torch.isfinite(value)]
    lines.append(f"loss terms that are not finite: {', '.join(bad) or 'none'}; finite: {', '.join(fine) or 'none'}")
    if len(lines) == 2:
        lines.append(f"sample ids of the batch: {_some(batch['id'].tolist())}")
    lines.append("lower the learning rate, set clip_norm, or remove the samples; the last checkpoint is untouched")
    return "\n  ".join(lines)


def _rows(what: str, value: Tensor, batch: Batch) -> list[str]:
    bad = ~torch.isfinite(value.flatten(1)).all(dim=1)
    if not bool(bad.any()):
        return []
    return [
        f"{what} is not finite in {int(bad.sum())} of {len(bad)} rows; sample ids: {_some(batch['id'][bad].tolist())}"
    ]


def _some(ids: list[int], limit: int = 10) -> str:
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(str(i) for i in ids[:limit]) + more
