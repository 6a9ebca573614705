"""Stops training when a loss or gradient is no longer a number, and says which loss, model, parameter and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..distributed import rank, sum_over_processes, whole, world_size
from ..errors import NonFiniteError
from ..model import Batch
from ..schedules import Progress
from ..signals import Signals
from ..step import Step
from .training_step import TrainingStep

ADVICE = "lower the learning rate, set clip_norm, or remove the samples; the last checkpoint is untouched"


class FiniteGuard:
    """Watches losses and gradients.

    On the CPU every step is checked before the optimizer moves. On a GPU a check would make the host wait, so the
    first bad step is kept on the device (step, ids) and read by `flush`, every few steps and before anything is saved.

    Args:
        deferred: keep the first bad step on the device, as on a GPU; None decides by the device.
    """

    def __init__(self, deferred: bool | None = None) -> None:
        self.deferred = deferred
        self._bad_step: Tensor | None = None
        self._bad_ids: Tensor | None = None
        self._watched: tuple[Mapping[str, nn.Module] | None, list[tuple[str, nn.Parameter]]] = (None, [])

    def check(
        self, module: TrainingStep, loss: Tensor, batch: Batch, progress: Progress, where: str, step: int
    ) -> None:
        """Check the loss of one batch. On CPUs all processes hear of it, so that none waits for the others.

        Raises:
            NonFiniteError: naming stage, step, loss terms, models and sample ids.
        """
        if self._waits(loss):
            self._note(~torch.isfinite(loss.detach()), batch["id"], where, step)
        elif not math.isfinite(sum_over_processes(0 * loss.detach()).item()):  # 0, or NaN in all processes
            raise NonFiniteError(explain(module, batch, progress, where, step))

    def check_gradients(self, modules: Mapping[str, nn.Module], batch: Batch, where: str, step: int) -> None:
        """Check the gradients before a step.

        Raises:
            NonFiniteError: naming stage, step, parameters and the sample ids of the last batch.
        """
        if self._watched[0] is not modules:  # walking through modules costs more than the check
            parameters = [(f"{n}: {key}", p) for n, m in modules.items() for key, p in m.named_parameters()]
            self._watched = (modules, parameters)
        gradients = [gradient for _, parameter in self._watched[1] if (gradient := parameter.grad) is not None]
        if not gradients:
            return
        size = _size(gradients)
        if self._waits(size):
            self._note(~torch.isfinite(size), batch["id"], where, step)
        elif not math.isfinite(size.item()):
            named = {name: parameter.grad for name, parameter in self._watched[1] if parameter.grad is not None}
            names = [name for name, gradient in named.items() if not bool(torch.isfinite(gradient).all())]
            lines = [
                f"{where}, step {step}: the loss is finite, but its gradient is not",
                f"{len(names)} of {len(named)} parameters: {_some(names)}",
                f"sample ids of the batch: {_some(batch['id'].tolist())}",
            ]
            raise NonFiniteError("\n  ".join([*lines, ADVICE]))

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
            raise NonFiniteError(f"{where}, step {bad}: loss or gradient is not finite; sample ids: {_some(ids)}")
        self._bad_step = None

    def _waits(self, value: Tensor) -> bool:
        return value.device.type != "cpu" if self.deferred is None else self.deferred

    def _note(self, bad: Tensor, ids: Tensor, where: str, step: int) -> None:
        """Remember the first bad step on the device."""
        if self._bad_step is None or self._bad_ids is None or self._bad_ids.shape != ids.shape:
            self.flush(where)
            self._bad_step = torch.full((), -1, device=bad.device)
            self._bad_ids = torch.zeros_like(ids)
        first = bad & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self._bad_ids = torch.where(first, ids, self._bad_ids)


@torch.no_grad()
def explain(module: TrainingStep, batch: Batch, progress: Progress, where: str, step: int) -> str:
    """Evaluate a bad step again, part by part, and return what is not finite; every process has to call this."""
    lines = []
    for field, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            lines += _rows(f"input field '{field}'", value, batch)
    view = Step(batch, module.models, progress, True, module.variants, module.features, module.cache)
    for name in ["student", *module.variants]:
        lines += _said(view.signals(name), "the student" if name == "student" else f"teacher '{name}'", batch)
    terms: dict[str, Any] = {}
    for weighted in module.objectives:
        terms |= weighted.terms(view)  # type: ignore[operator]
    terms |= view.routed.losses if view.routed is not None else {}
    bad = [f"{name}={value.item()}" for name, value in terms.items() if not torch.isfinite(value)]
    fine = [f"{name}={value.item():.4g}" for name, value in terms.items() if torch.isfinite(value)]
    if bad:
        lines.append(f"loss terms that are not finite: {', '.join(bad)}; finite: {', '.join(fine) or 'none'}")
    if len(lines) == 1 or not bad:
        lines.append(f"sample ids of the batch: {_some(batch['id'].tolist())}")
    return "\n  ".join([f"{where}, step {step}: the loss is not finite", *_of_all_processes(lines, bool(bad)), ADVICE])


def _of_all_processes(lines: list[str], mine: bool) -> list[str]:
    """Return the lines of the processes whose own loss is bad (of this one if it is none's)."""
    if world_size() == 1:
        return lines
    found: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(found, [f"process {rank()}: {line}" for line in lines] if mine else [])
    return [line for part in found for line in part] or lines


def _size(gradients: list[Tensor]) -> Tensor:
    """Return a number that is finite as long as all gradients are: their norm, or where that is slower their sum."""
    if all(type(gradient) is Tensor and gradient.is_cpu for gradient in gradients):
        dtype = torch.promote_types(gradients[0].dtype, torch.float32)
        return torch.stack([gradient.sum(dtype=dtype) for gradient in gradients]).sum()
    return whole(nn.utils.get_total_norm(gradients))


def _said(signals: Signals, who: str, batch: Batch) -> list[str]:
    """Return a line for each thing that a model says which is not finite."""
    values = {} if signals.logits is None else {"logits": signals.logits}
    for group, found in (("embedding", signals.embeddings), ("head", signals.heads), ("tap", signals.features)):
        values |= {f"{group} '{name}'": value for name, value in found.items() if value.is_floating_point()}
    return [line for what, value in values.items() for line in _rows(f"{what} of {who}", value, batch)]


def _rows(what: str, value: Tensor, batch: Batch) -> list[str]:
    bad = ~torch.isfinite(value.reshape(len(value), -1)).all(dim=1)
    if not bool(bad.any()):
        return []
    return [
        f"{what} is not finite in {int(bad.sum())} of {len(bad)} rows; sample ids: {_some(batch['id'][bad].tolist())}"
    ]


def _some(values: list[Any], limit: int = 10) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(str(value) for value in values[:limit]) + more
