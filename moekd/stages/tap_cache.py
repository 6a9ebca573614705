"""Keeping the activations at the taps of masks, in memory or on disk.

Shapes: b rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..cache import Needs, SignalCache, cache_in_memory, why_not_cached
from ..cache.teacher_pass import TeacherPass
from ..distributed import world_size
from ..model import Batch
from ..teachers.entry import activations_at
from ..teachers.masked_entry import CHANNELS_LAST, MaskedEntry
from .base import StageSettings
from .context import StageContext


@dataclass(frozen=True)
class TapPass(TeacherPass):
    """Runs plain teachers, and teachers up to the taps of their masks.

    Attributes:
        plain: teachers of which more than that is read.
        entries: masked variants by teacher.
    """

    plain: Sequence[str] = ()
    entries: Mapping[str, Sequence[MaskedEntry]] = field(default_factory=dict)

    def say(self, batch: Batch, variants: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Return what the teachers say, and what is kept of their activations."""
        said: dict[str, dict[str, Tensor]] = {name: {} for name in variants}
        if plain := [name for name in variants if name in self.plain]:
            said |= super().say(batch, plain)
        for name in variants:
            if entries := self.entries.get(name):
                taps = list(dict.fromkeys(tap for entry in entries for tap in entry.taps))
                activations = activations_at(self.pool.teacher(name), taps, batch)
                for entry in entries:
                    said[name] |= {f"features/{key}": value for key, value in entry.kept(activations).items()}
        return said


def keep_taps(
    context: StageContext,
    settings: StageSettings,
    teachers: TeacherPass,
    plain: Sequence[str],
    entries: Mapping[str, Sequence[MaskedEntry]],
) -> tuple[list[SignalCache], list[str]]:
    """Run teachers once up to their taps and keep what fits, the smallest first, in memory or else on disk.

    Whole maps do not go to disk: a layer or two makes them as fast as they are read.

    Args:
        context: data, limits, folders.
        settings: the stage.
        teachers: what the stage reads of its variants.
        plain: teachers of which the stage reads more than their masked variants.
        entries: masked variants by teacher.

    Returns:
        The caches, and what to tell the log.
    """
    random = context.data.split(settings.split).random
    reasons = why_not_cached(teachers.pool, list(entries), transforms=settings.transforms, random_data=random)
    if reasons:
        return [], [f"activations at the taps are not kept: {'; '.join(reasons)}"]
    needs = teachers.needs if plain else Needs(logits=False)
    wanted = list(dict.fromkeys([*plain, *entries]))
    shared = {key: value for key, value in vars(teachers).items() if key not in ("variants", "needs")}
    work = TapPass(**shared, variants=wanted, needs=needs, plain=plain, entries=entries)
    sizes = {name: replace(work, variants=[name]).nbytes(context.cache) for name in wanted}
    groups: dict[str, list[str]] = {"memory": [], "disk": [], "live": []}
    for name in sorted(wanted, key=lambda name: sizes[name]):
        taken = {place: sizes[name] + sum(sizes[other] for other in group) for place, group in groups.items()}
        if taken["memory"] <= context.cache.memory_gb * 1e9:
            groups["memory"].append(name)
        elif context.disk is None or context.cache.why_not_on_disk(taken["disk"]) or _whole_maps(work, name):
            groups["live"].append(name)
        else:
            groups["disk"].append(name)
    caches, said = [], []
    for place, where in (("memory", "in memory"), ("disk", "on disk")):
        if groups[place]:
            part = replace(work, variants=[name for name in wanted if name in groups[place]])
            caches.append(_filled(context, settings, part, mapped=place == "disk"))
            size = f"{caches[-1].nbytes / 1e6:.1f} MB"
            said.append(f"activations of {len(part.variants)} teachers cached {where}, {size}")
    said += [f"'{name}' runs up to its taps ({sizes[name] / 1e9:.2f} GB of activations)" for name in groups["live"]]
    return caches, said


def _whole_maps(work: TapPass, name: str) -> bool:
    """Tell whether maps of a teacher are kept as they are at the taps."""
    shapes = replace(work, variants=[name]).shapes()[name]
    kept = {
        key.removeprefix("features/").removesuffix(CHANNELS_LAST) for key, like in shapes.items() if len(like.shape) > 1
    }
    return any(entry.tap in kept for entry in work.entries.get(name, ()))


def _filled(context: StageContext, settings: StageSettings, work: TapPass, mapped: bool) -> SignalCache:
    context.progress.start(f"{settings.name}: activations at taps", len(work.split))
    store = context.disk if mapped else context.store
    if store is None:
        cache = cache_in_memory(work, context.cache, together=world_size() > 1)
    else:
        cache = store.cache(work, mapped=mapped)
    context.progress.finish()
    return cache
