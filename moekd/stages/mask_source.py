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

from ..cache import SignalCache
from ..cache.teacher_pass import TeacherPass
from ..evaluation.evaluate import to_device
from ..model import Batch
from ..signals import PoolSignals, Signals
from ..step import TeacherSource
from ..teachers import TeacherPool
from ..teachers.entry import activations_at
from ..teachers.masked_entry import MaskedEntry
from .base import StageSettings
from .context import StageContext
from .tap_cache import keep_taps

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskSource:
    """Gives the signals of masked variants while only their masks train.

    A teacher's layers below its first tap run without gradients or, where a cache holds its tapped activations, not at
    all; the layers above a tap run once for each variant, with gradients for the mask alone. A mask of channels is
    multiplied behind the ReLU and the pooling that follow its tap, with the same result.

    Attributes:
        pool: teachers and masks.
        variants: names, in the order asked for: plain teachers and variants.
        entered: the teachers that are entered at their taps.
        features: record the teachers' taps.
        caches: signals of plain teachers by sample id: what is kept of the activations at the taps of masks, and what
            else is read of them.
    """

    pool: TeacherPool
    variants: Sequence[str]
    entered: Sequence[str]
    features: bool
    caches: Sequence[SignalCache] = ()

    def __call__(self, batch: Batch) -> PoolSignals:
        """Return the signals of the batch's samples."""
        known: dict[str, Signals] = {}
        for cache in self.caches:
            known |= cache(batch)
        activations: dict[str, Mapping[str, Tensor]] = {}
        for name in self.entered:
            if name in known:
                activations[name] = known[name].features
            else:
                activations[name] = activations_at(self.pool.teacher(name), self.taps(name), batch)
                self.pool.forwards += 1
        found: dict[str, Signals] = {}
        for name in self.variants:
            if name in self.entries:
                found[name] = self.entries[name](activations[self.pool.variant(name).teacher], batch)
            elif name in known:
                found[name] = known[name]
        others = [name for name in self.variants if name not in found]
        live = self.pool(batch, others, features=self.features) if others else {}
        return PoolSignals({name: found[name] if name in found else live[name] for name in self.variants})

    @cached_property
    def entries(self) -> dict[str, MaskedEntry]:
        """The variants that are entered."""
        found = {}
        for name in self.variants:
            variant = self.pool.variant(name)
            if variant.tap is not None and variant.teacher in self.entered:
                teacher = self.pool.teacher(variant.teacher)
                found[name] = MaskedEntry(teacher, variant.tap, self.pool.mask(name), self.features)
        return found

    def taps(self, teacher: str) -> list[str]:
        """Return the taps that a forward up to the variants of a teacher has to note."""
        return list(dict.fromkeys(tap for entry in self.of(teacher) for tap in entry.taps))

    def of(self, teacher: str) -> list[MaskedEntry]:
        """Return the variants of a teacher that are entered."""
        return [entry for name, entry in self.entries.items() if self.pool.variant(name).teacher == teacher]


def mask_source(
    context: StageContext, settings: StageSettings, teachers: TeacherPass, features: bool
) -> TeacherSource | None:
    """Return the source of the variants of a stage that trains masks and no teacher, and tell the log what was decided.

    Whether a teacher can be entered is tried on a few samples: logits (and what else is read) have to be those of the
    whole forward. Activations are kept in memory or on disk where they fit, those that take least first.

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
    source, said = MaskSource(pool, variants, (), features), []
    for name in owners:
        one = replace(source, variants=[v.name for v in masked if v.teacher == name], entered=[name])
        reason = why_not_entered(one, teachers)
        if reason is None:
            source = replace(source, entered=[*source.entered, name])
        else:
            said.append(f"teacher '{name}' runs in full, for it can't be entered at its taps ({reason})")
    if source.entered:
        entries = {name: source.of(name) for name in source.entered}
        caches, reasons = keep_taps(context, settings, teachers, plain, entries)
        source = replace(source, caches=caches)
        said = [*reasons, *said]
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


def _close(a: Tensor, b: Tensor) -> bool:
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5 * scale)


def _say(settings: StageSettings, source: MaskSource, further: Sequence[str]) -> None:
    words = []
    if source.entries:
        words.append(f"{len(source.entries)} masks train; their teachers are entered at the taps")
    logger.info("stage '%s': %s", settings.name, "; ".join([*words, *further]))
