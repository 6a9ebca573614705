"""Which teachers run in a stage, and whether what they say is computed once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from ..cache import (
    CacheSettings,
    Needs,
    SignalCache,
    SignalStore,
    TeacherPass,
    cache_in_memory,
    why_not_cached,
)
from ..distributed import world_size
from ..errors import ConfigError
from ..objectives import Objective
from ..objectives.inputs import TapPair
from ..objectives.routed import mixes_logits
from ..routers import Router
from ..routers.gates import Gate
from ..step import Models, TeacherSource
from ..transforms import ReplayableTransform
from .base import StageSettings
from .context import RunData, StageContext
from .fit_gates import gates_to_fit
from .mask_source import mask_source

logger = logging.getLogger(__name__)

Place = Literal["memory", "disk"]


@dataclass(frozen=True)
class TeacherPlan:
    """What a stage needs of its teachers.

    Attributes:
        variants: names to run, each teacher once for all of its own.
        features: record tapped activations.
        place: where their signals are kept; None: they run in every step.
        reasons: why they are not kept, for the log.
        needs: what is read of them.
        nbytes: about how much is kept.
    """

    variants: list[str]
    features: bool
    place: Place | None = None
    reasons: Sequence[str] = ()
    needs: Needs = field(default_factory=Needs)
    nbytes: int = 0

    @property
    def cached(self) -> bool:
        """True when the signals are computed once."""
        return self.place is not None

    @property
    def reason(self) -> str:
        """Why they are not, in one line."""
        return "; ".join(self.reasons)


def plan_teachers(
    models: Models, data: RunData, settings: StageSettings, cache: CacheSettings | None = None
) -> TeacherPlan:
    """Decide it from the objectives, the router and who trains (call it after `train_only`).

    Args:
        models: student, pool, router.
        data: the splits.
        settings: the stage.
        cache: codecs and limits.

    Raises:
        ConfigError: the stage insists on a cache that would be wrong or does not fit.
    """
    cache = cache or CacheSettings()
    objectives = [weighted.objective for weighted in settings.objectives]
    router = models.router if any(objective.routable for objective in objectives) else None
    wanted, needs = _readers(models, objectives, router), _needs(models, settings, objectives, router)
    insists = settings.cache in ("memory", "disk")
    if not wanted and not insists:
        return TeacherPlan([], needs.features)
    train = data.split(settings.split)
    reasons = why_not_cached(models.pool, wanted, transforms=settings.transforms, random_data=train.random)
    place: Place | None = None
    nbytes = 0
    if settings.cache == "off":
        reasons = ["switched off"]
    elif not reasons:
        nbytes = teacher_pass(models, data, settings, wanted, needs, _device(models)).nbytes(cache)
        place, reasons = _place(nbytes, settings, cache)
    if insists and reasons:
        raise ConfigError(
            f"stage '{settings.name}' asks for cached teachers, but {'; '.join(reasons)}; use cache: auto"
        )
    if reasons and router is not None and _routes_rows_first(models, router, wanted, settings):
        return TeacherPlan([], needs.features, None, [*reasons, "each teacher runs on the rows routed to it"], needs)
    return TeacherPlan(wanted, needs.features, place, reasons, needs, nbytes)


def build_cache(context: StageContext, settings: StageSettings, plan: TeacherPlan) -> TeacherSource | None:
    """Run the planned variants once over the training split, if the plan says so, and tell the log what was decided.

    Returns:
        Where a training step gets the teachers' signals from; None: from the pool, which runs them.
    """
    if not plan.variants and not plan.reasons:
        return None
    if plan.place is None:
        masked = mask_source(context, settings, prepared_pass(context, settings, plan), plan.features)
        if masked is not None:
            return masked
        logger.info("stage '%s': teachers run live: %s", settings.name, plan.reason)
        return None
    teachers = prepared_pass(context, settings, plan)
    context.progress.start(f"{settings.name}: teachers' signals", len(teachers.split))
    store = context.disk if plan.place == "disk" else context.store
    if store is None:
        cache = cache_in_memory(teachers, context.cache, together=world_size() > 1)
    else:
        cache = store.cache(teachers, mapped=plan.place == "disk")
    context.progress.finish()
    logger.info("stage '%s': %s", settings.name, _said(teachers, cache, context, plan, store))
    return cache


def prepared_pass(context: StageContext, settings: StageSettings, plan: TeacherPlan) -> TeacherPass:
    """Return what has to be run for a stage, in the precision of its training and with its progress bar."""
    plain = teacher_pass(context.models, context.data, settings, plan.variants, plan.needs, context.device)
    accelerator = context.accelerator
    return replace(
        plain, precision=accelerator.mixed_precision, autocast=accelerator.autocast, on_rows=context.progress.advance
    )


def teacher_pass(
    models: Models, data: RunData, settings: StageSettings, variants: Sequence[str], needs: Needs, device: torch.device
) -> TeacherPass:
    """Return what has to be run to know what the teachers say about the data of a stage, in full precision."""
    return TeacherPass(
        pool=models.pool,
        variants=variants,
        needs=needs,
        split=data.split(settings.split),
        split_name=settings.split,
        batch_size=data.eval_batch_size,
        device=device,
        num_workers=data.num_workers,
        transforms=[t for t in settings.transforms if isinstance(t, ReplayableTransform)],
    )


def _readers(models: Models, objectives: Sequence[Objective], router: Router | None) -> list[str]:
    """Return the variants that somebody reads, in pool order."""
    pool = models.pool
    readers = {name for o in objectives if router is None or not o.routable for name in o.variants(pool)}
    if router is not None:
        readers |= set(models.experts)
    return [name for name in [*pool.names, *pool.specialised] if name in readers]


def _needs(models: Models, settings: StageSettings, objectives: Sequence[Objective], router: Router | None) -> Needs:
    """Return which signals somebody reads."""
    readers = [o for o in objectives if o.variants(models.pool) or (router is not None and o.routable)]
    gates = [module for module in router.modules() if isinstance(module, Gate)] if router is not None else []
    fits = bool(gates_to_fit(models, settings))
    routes = router is not None and (router.needs_teachers or fits)
    targets = router is not None and router.combine == "target" and any(o.reads_logits for o in readers)
    return Needs(
        logits=routes or targets or any(objective.reads_logits for objective in readers),
        embeddings=any(reader.reads_embeddings for reader in [*readers, *gates]),
        features=any(reader.reads_features for reader in [*readers, *gates]),
        taps=_taps([reader for reader in [*readers, *gates] if reader.reads_features]),
    )


def _taps(readers: Sequence[nn.Module]) -> frozenset[str] | None:
    """Return the teachers' taps that objectives and gates read; None where one does not say."""
    found: set[str] = set()
    for reader in readers:
        pair = getattr(getattr(reader, "objective", reader), "taps", None)
        if not isinstance(pair, TapPair):
            return None
        found |= {pair.teacher_tap} if isinstance(pair.teacher_tap, str) else set(pair.teacher_tap.values())
    return frozenset(found)


def _device(models: Models) -> torch.device:
    """Return where the teachers are now."""
    return next((parameter.device for parameter in models.pool.parameters()), torch.device("cpu"))


def _place(nbytes: int, settings: StageSettings, cache: CacheSettings) -> tuple[Place | None, list[str]]:
    """Return where so many bytes go, or why nowhere."""
    found = f"the signals take {nbytes / 1e9:.2f} GB"
    if nbytes <= cache.memory_gb * 1e9 and settings.cache != "disk":
        return "memory", []
    if settings.cache == "memory":
        return None, [f"{found}, more than cache.memory_gb: {cache.memory_gb:g}"]
    reason = cache.why_not_on_disk(nbytes)
    return ("disk", []) if reason is None else (None, [f"{found}, {reason}"])


def _said(
    teachers: TeacherPass, cache: SignalCache, context: StageContext, plan: TeacherPlan, store: SignalStore | None
) -> str:
    """Return the line for the log about a cache."""
    where = "in memory" if store is None else f"in memory and in {store.folder}"
    if plan.place == "disk" and store is not None:
        where = f"on disk in {store.folder}"
    codecs = {str(context.cache.codec_of(key)) for key in ("logits", "others")} if plan.needs.logits else set()
    words = ", ".join(sorted(codecs or {context.cache.codec}))
    views = f", {teachers.views} views a sample" if teachers.views > 1 else ""
    size = f"{cache.nbytes / 1e6:.1f} MB ({words})"
    who = f"; each of {world_size()} processes ran them on its share" if store is None and world_size() > 1 else ""
    return f"{plan.needs} of {len(plan.variants)} teachers cached {where}, {size}{views}{who}"


def _routes_rows_first(models: Models, router: Router, wanted: list[str], settings: StageSettings) -> bool:
    """Tell whether every teacher may see only its rows: nobody else reads them and few are chosen without them.

    Losses that compare rows need all of them. Targets are mixed from the chosen teachers' logits alone where nothing
    else of them is mixed.
    """
    k, pool = router.selection.k, models.pool
    routed = [getattr(w.objective, "objective", w.objective) for w in settings.objectives if w.objective.routable]
    if any(getattr(objective, "compares_rows", False) for objective in routed):
        return False
    if router.combine == "target" and not all(mixes_logits(objective) for objective in routed):
        return False
    others = {n for w in settings.objectives if not w.objective.routable for n in w.objective.variants(pool)}
    return not router.needs_teachers and not others and k is not None and k < len(wanted)
