"""Which teachers run in a stage, and whether their logits are computed once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ..cache import LogitCache, build_logit_cache, why_not_cached
from ..data import make_loader
from ..errors import ConfigError
from ..routers import Router
from ..step import Models
from .base import StageSettings
from .context import RunData, StageContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherPlan:
    """What a stage needs of its teachers.

    Attributes:
        variants: names to run, each teacher once for all of its own.
        features: record tapped activations.
        cached: the logits are computed once.
        reason: why they are not cached, for the log.
    """

    variants: list[str]
    features: bool
    cached: bool
    reason: str


def plan_teachers(models: Models, data: RunData, settings: StageSettings) -> TeacherPlan:
    """Decide it from the objectives, the router and who trains (call it after `train_only`).

    Raises:
        ConfigError: the stage insists on a cache that would be wrong.
    """
    objectives = [weighted.objective for weighted in settings.objectives]
    pool = models.pool
    router = models.router if any(objective.routable for objective in objectives) else None
    readers = {name for o in objectives if router is None or not o.routable for name in o.variants(pool)}
    if router is not None:
        readers |= set(models.experts)
    wanted = [name for name in [*pool.names, *pool.specialised] if name in readers]
    features = any(objective.reads_features for objective in objectives)
    features = features or (router is not None and router.reads_features)
    if not wanted and settings.cache != "memory":
        return TeacherPlan([], features, False, "")
    train = data.split(settings.split)
    reason = why_not_cached(
        pool,
        wanted,
        reads_features=features,
        transforms=len(settings.transforms),
        random_data=train.random,
        needs_bytes=4 * (len(train) if train.labels is None else train.labels.size) * len(wanted) * data.num_classes,
    )
    if settings.cache == "off":
        reason = "switched off"
    elif settings.cache == "memory" and reason is not None:
        raise ConfigError(f"stage '{settings.name}' asks for cached teachers, but {reason}; use cache: auto")
    if reason is not None and router is not None and _routes_rows_first(models, router, wanted, settings):
        return TeacherPlan([], features, False, f"{reason}; each teacher runs on the rows routed to it")
    return TeacherPlan(wanted, features, reason is None, reason or "")


def build_cache(context: StageContext, settings: StageSettings, plan: TeacherPlan) -> LogitCache | None:
    """Run the planned variants once over the training split, if the plan says so, and tell the log what was decided."""
    if not plan.variants and not plan.reason:
        return None
    if not plan.cached:
        logger.info("stage '%s': teachers run live: %s", settings.name, plan.reason)
        return None
    train = context.data.split(settings.split)
    loader = make_loader(train, context.data.eval_batch_size, shuffle=False, num_workers=context.data.num_workers)
    context.progress.start(f"{settings.name}: teacher logits", len(train))
    fill = build_logit_cache if context.store is None else context.store.cache(settings.split, train.ids)
    cache = fill(context.models.pool, plan.variants, loader, context.device, context.progress.advance)
    context.progress.finish()
    megabytes = cache.nbytes / 1e6
    logger.info("stage '%s': logits of %d teachers cached, %.1f MB", settings.name, len(plan.variants), megabytes)
    return cache


def _routes_rows_first(models: Models, router: Router, wanted: list[str], settings: StageSettings) -> bool:
    """Tell whether every teacher may see only its rows: nobody else reads them and few are chosen without them."""
    k, pool = getattr(router.selection, "k", None), models.pool
    others = {n for w in settings.objectives if not w.objective.routable for n in w.objective.variants(pool)}
    return not router.needs_teachers and router.combine != "target" and not others and k is not None and k < len(wanted)
