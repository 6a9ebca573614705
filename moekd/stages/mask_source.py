"""Training masks without running what lies below them: teachers are entered at their taps.

Shapes: B batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..cache import Needs, SignalCache, cache_in_memory, why_not_cached
from ..cache.teacher_pass import TeacherPass
from ..distributed import world_size
from ..evaluation.evaluate import to_device
from ..model import Batch
from ..signals import PoolSignals, Signals
from ..step import TeacherSource
from ..teachers import TeacherPool
from ..teachers.entry import activations_at, enter
from ..teachers.later_tap import LaterTap, later_tap
from ..teachers.masks import ChannelMask
from .base import StageSettings
from .context import StageContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskSource:
    """Gives the signals of masked variants while only their masks train.

    A teacher's layers below its first tap run without gradients or, where `cache` holds its tapped activations, not at
    all; the layers above a tap run once for each variant, with gradients for the mask alone. A mask of channels is
    multiplied behind the ReLU and the pooling that follow its tap, with the same result.

    Attributes:
        pool: teachers and masks.
        variants: names, in the order asked for: plain teachers and variants.
        entered: the taps of each teacher that is entered there.
        features: record the teachers' taps.
        cache: signals of plain teachers by sample id: activations at the taps of masks, and what else is read of them.
    """

    pool: TeacherPool
    variants: Sequence[str]
    entered: Mapping[str, Sequence[str]]
    features: bool
    cache: SignalCache | None = None

    def __call__(self, batch: Batch) -> PoolSignals:
        """Return the signals of the batch's samples."""
        kept = set() if self.cache is None else set(self.cache.names)
        known: Mapping[str, Signals] = {} if self.cache is None else self.cache(batch)
        taps = {name: dict(known[name].features) for name in self.entered if name in kept}
        for name in self.entered:
            if name not in kept:
                later = [place.path for key, place in self.later.items() if self.pool.variant(key).teacher == name]
                wanted = list(dict.fromkeys([*self.entered[name], *later]))
                taps[name] = activations_at(self.pool.teacher(name), wanted, batch)
                self.pool.forwards += 1
        found: dict[str, Signals] = {}
        for name in self.variants:
            variant = self.pool.variant(name)
            if variant.tap is not None and variant.teacher in taps:
                found[name] = self._enter(name, taps[variant.teacher], batch)
            elif name in kept:
                found[name] = known[name]
        others = [name for name in self.variants if name not in found]
        live = self.pool(batch, others, features=self.features) if others else {}
        return PoolSignals({name: found[name] if name in found else live[name] for name in self.variants})

    @cached_property
    def later(self) -> dict[str, LaterTap]:
        """Where a mask is multiplied instead of at its tap, by variant; nowhere if tapped activations are read."""
        found = {}
        for name in () if self.features else self.variants:
            variant = self.pool.variant(name)
            if variant.tap is None or variant.teacher not in self.entered:
                continue
            mask, place = self.pool.mask(name), later_tap(self.pool.teacher(variant.teacher).network, variant.tap)
            if place is not None and isinstance(mask, ChannelMask) and type(mask).adapt is ChannelMask.adapt:
                found[name] = place
        return found

    def _enter(self, name: str, activations: Mapping[str, Tensor], batch: Batch) -> Signals:
        variant, mask, place = self.pool.variant(name), self.pool.mask(name), self.later.get(name)
        assert variant.tap is not None
        teacher, record, here = self.pool.teacher(variant.teacher), None if self.features else (), variant.tap
        if place is None:
            return enter(teacher, here, mask.adapt(activations[here]), batch, record)
        known = activations.get(place.path)
        later = place.activation(activations[here]) if known is None else known
        assert isinstance(mask, ChannelMask)
        return enter(teacher, place.path, mask.adapt_later(activations[here], later), batch, record)


def mask_source(
    context: StageContext, settings: StageSettings, teachers: TeacherPass, features: bool
) -> TeacherSource | None:
    """Return the source of the variants of a stage that trains masks and no teacher, and tell the log what was decided.

    Whether a teacher can be entered is tried on a few samples: logits (and what else is read) have to be those of the
    whole forward. Activations are kept in memory where they fit, those that take least first.

    Args:
        context: models, data, limits.
        settings: the stage.
        teachers: what the stage reads of its variants.
        features: record the teachers' taps.

    Returns:
        None where the stage is not of this kind, or no teacher can be entered.
    """
    pool, variants = teachers.pool, list(teachers.variants)
    masked = [pool.variant(name) for name in variants if pool.variant(name).tap is not None]
    owners = list(dict.fromkeys(variant.teacher for variant in masked))
    plain = [name for name in variants if pool.variant(name).tap is None]
    if settings.cache == "off" or not masked or not pool.masks_train or not pool.frozen([*plain, *owners]):
        return None
    taps = {name: [v.tap for v in masked if v.teacher == name and v.tap is not None] for name in owners}
    source, said = MaskSource(pool, variants, {}, features), []
    for name in owners:
        one = replace(source, variants=[v.name for v in masked if v.teacher == name], entered={name: taps[name]})
        reason = why_not_entered(one, teachers)
        if reason is None:
            source = replace(source, entered={**source.entered, name: taps[name]})
        else:
            said.append(f"teacher '{name}' runs in full, for it can't be entered at its taps ({reason})")
    if source.entered:
        cache, reasons = _activations(context, settings, teachers, source)
        source = replace(source, cache=cache)
        said += reasons
    _say(settings, source, said)
    return source if source.entered else None


@torch.no_grad()
def why_not_entered(source: MaskSource, teachers: TeacherPass) -> str | None:
    """Return why the variants are not those of the whole forward on a few samples, or None where they are."""
    pool, forwards = source.pool, source.pool.forwards
    rows = list(range(min(3, len(teachers.split))))
    batch = to_device(teachers.split.__getitems__(rows), teachers.device)
    modes = {name: pool.mask(name).training for name in source.variants}
    try:
        for name in modes:
            pool.mask(name).eval()
        with teachers.autocast():
            whole, entered = pool(batch, list(source.variants), features=source.features), source(batch)
    except Exception as error:  # a network may do anything with tensors that have no data
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    finally:
        pool.forwards = forwards
        for name, mode in modes.items():
            pool.mask(name).train(mode)
    for name in source.variants:
        wanted, found = teachers.needs.pick(whole[name]), teachers.needs.pick(entered[name])
        if missing := sorted(wanted.keys() - found.keys()):
            return f"{missing[0]} of '{name}' lies below its tap"
        if far := [key for key, value in wanted.items() if not _close(found[key], value)]:
            return f"{far[0]} of '{name}' would be another"
    return None


def _activations(
    context: StageContext, settings: StageSettings, teachers: TeacherPass, source: MaskSource
) -> tuple[SignalCache | None, list[str]]:
    """Return the cache of what is read of plain teachers and at the taps of masks, and why some is not in it."""
    pool, taps = source.pool, source.entered
    reasons = why_not_cached(
        pool, list(taps), transforms=settings.transforms, random_data=context.data.split(settings.split).random
    )
    if reasons:
        return None, [f"activations at the taps are not kept: {'; '.join(reasons)}"]
    plain = [name for name in source.variants if pool.variant(name).tap is None]
    read = teachers.needs.taps
    needs = replace(
        teachers.needs if plain else Needs(logits=False),
        features=True,
        taps=None if plain and source.features and read is None else _names(taps) | (read or frozenset()),
    )
    wanted = replace(teachers, variants=list(dict.fromkeys([*plain, *taps])), needs=needs)
    fits, skipped, room = [], [], context.cache.memory_gb * 1e9
    sizes = {name: _bytes(replace(wanted, variants=[name]), context) for name in wanted.variants}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        if sizes[name] <= room and _exact(source, wanted, name):
            fits.append(name)
            room -= sizes[name]
        else:
            skipped.append(f"'{name}' runs up to its taps ({sizes[name] / 1e9:.2f} GB of activations)")
    if not fits:
        return None, skipped
    kept = replace(wanted, variants=[name for name in wanted.variants if name in fits])
    context.progress.start(f"{settings.name}: activations at taps", len(kept.split))
    if context.store is None:
        cache = cache_in_memory(kept, context.cache, together=world_size() > 1)
    else:
        cache = context.store.cache(kept)
    context.progress.finish()
    return cache, skipped


@torch.no_grad()
def _exact(source: MaskSource, wanted: TeacherPass, name: str) -> bool:
    """Tell whether what a teacher records at its taps is what its masks see: no layer works in place on it."""
    if name not in source.entered:
        return True
    batch = to_device(wanted.split.__getitems__(list(range(min(3, len(wanted.split))))), wanted.device)
    forwards = source.pool.forwards
    with wanted.autocast():
        seen = activations_at(source.pool.teacher(name), source.entered[name], batch)
        recorded = source.pool(batch, [name], features=True)[name].features
    source.pool.forwards = forwards
    return all(tap in recorded and _close(recorded[tap], value) for tap, value in seen.items())


def _names(taps: Mapping[str, Sequence[str]]) -> frozenset[str]:
    return frozenset(tap for found in taps.values() for tap in found)


def _bytes(teachers: TeacherPass, context: StageContext) -> int:
    rows, shapes = len(teachers.split) * teachers.views, teachers.shapes().values()
    return rows * sum(context.cache.codec_of(key).bytes_a_row(like) for found in shapes for key, like in found.items())


def _close(a: Tensor, b: Tensor) -> bool:
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5 * scale)


def _say(settings: StageSettings, source: MaskSource, further: Sequence[str]) -> None:
    count = sum(len(taps) for taps in source.entered.values())
    words = []
    if count:
        words.append(f"{count} masks train; their teachers are entered at the taps")
    if source.cache is not None:
        words.append(f"activations of {len(source.cache.names)} teachers cached, {source.cache.nbytes / 1e6:.1f} MB")
    logger.info("stage '%s': %s", settings.name, "; ".join([*words, *further]))
