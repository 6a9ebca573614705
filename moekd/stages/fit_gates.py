"""Letting gates measure the teachers before they route."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..evaluation.evaluate import to_device
from ..model import Batch
from ..routers.gates import Gate
from ..signals import PoolSignals
from ..step import Models, TeacherSource
from .base import StageSettings
from .context import StageContext

logger = logging.getLogger(__name__)


def gates_to_fit(models: Models, settings: StageSettings) -> list[Gate]:
    """Return the gates of the router that need it, if the router takes part in a stage."""
    if models.router is None or not any(weighted.objective.routable for weighted in settings.objectives):
        return []
    return [gate for gate in models.router.modules() if isinstance(gate, Gate) and gate.fit_on is not None]


def fit_gates(context: StageContext, settings: StageSettings, cache: TeacherSource | None) -> None:
    """Let every gate that needs it measure the teachers on its split; every process has to call this.

    Args:
        context: models and data.
        settings: the stage; `cache` holds the teachers' signals on its split.
        cache: signals of frozen teachers by sample id, or None.
    """
    for gate in gates_to_fit(context.models, settings):
        assert gate.fit_on is not None
        known = cache if gate.fit_on == settings.split and not settings.transforms else None
        batches = (to_device(batch, context.device) for batch in context.eval_loader(gate.fit_on))
        fit(gate, context.models, batches, known)
        logger.info("stage '%s': %s measured the teachers on '%s'", settings.name, type(gate).__name__, gate.fit_on)


@torch.no_grad()
def fit(gate: Gate, models: Models, batches: Iterator[Batch], known: TeacherSource | None = None) -> None:
    """Fit a gate on batches, with the teachers in eval mode.

    Raises:
        ConfigError: the gate reads labels that the batches do not have.
    """
    modes = [(module, module.training) for module in models.pool.modules()]
    models.pool.eval()
    try:
        gate.fit(_teachers(models, known), batches)
    except KeyError as error:
        if error.args != ("label",):
            raise
        raise ConfigError(
            f"gate '{type(gate).__name__}' measures the teachers by labels, but split '{gate.fit_on}' has none: set "
            "fit_on to a split with labels, or take another gate"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode


def trial_batch(batch: Batch) -> dict[str, Any]:
    """Return a batch whose rows all have a label, to try with a few rows whether a gate can be fitted at all."""
    if "label" not in batch:
        return dict(batch)
    label = batch["label"]
    known = torch.ones(len(label), dtype=torch.bool, device=label.device)
    return {**batch, "label": label.clamp_min(0) if isinstance(label, Tensor) else label, "labelled": known}


def _teachers(models: Models, known: TeacherSource | None) -> Callable[[Batch], PoolSignals]:
    names = models.experts

    def signals(batch: Batch) -> PoolSignals:
        if known is None:
            return models.pool(batch, names)
        found = known(batch)
        return found if found.names == names else PoolSignals({name: found[name] for name in names})

    return signals
