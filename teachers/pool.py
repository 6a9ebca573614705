"""The teachers of a run and their masked variants, with one forward a teacher a batch.

Shapes: B batch, V variants of one teacher, T variants of the pool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ModelError, did_you_mean
from ..model import Batch, find_module, tapped
from ..signals import PoolSignals, Signals
from .masks import Mask
from .teacher import Teacher

logger = logging.getLogger(__name__)
#: Names that objectives use for the student and for groups of models.
RESERVED = {"student", "teachers", "all"}
Stacking = Literal["independent", "cumulative"]
Sharing = Literal["auto", "prefix", "replicate"]


class Variant(NamedTuple):
    """A teacher, alone (`tap` is None) or with the mask at one of its taps."""

    name: str
    teacher: str
    tap: str | None = None


class TeacherPool(nn.Module):
    """Ordered named teachers and their specialised variants.

    `pool(batch)` runs each teacher once, whatever the number of its variants: at each tap a hook appends the masked
    copy of the plain rows to the batch, so that variants share everything below their tap and run together above it.
    A network whose rows meet another branch of the old batch size can't take that; there the input is replicated
    instead (`sharing="auto"` finds out with a few rows, once a teacher, by comparing both).

    Args:
        teachers: the teachers by name.
        mask_stacking: `independent` gives every variant its own mask only (the paper of MST-Distill); `cumulative`
            leaves the masks of earlier taps of the same teacher active, as the released code does.
        sharing: `prefix`, `replicate`, or `auto`.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        mask_stacking: Stacking = "independent",
        sharing: Sharing = "auto",
    ) -> None:
        super().__init__()
        if taken := RESERVED & set(teachers):
            raise ModelError(f"a teacher can't be called '{min(taken)}': objectives use this name; choose another")
        self.teachers = nn.ModuleDict(dict(teachers))
        self.masks = nn.ModuleDict()
        self.mask_stacking, self.sharing = mask_stacking, sharing
        self.masks_train = False
        self.forwards = 0
        self._variants = {name: Variant(name, name) for name in teachers}
        self._shares_prefix: dict[tuple[str, bool], bool] = {}

    @property
    def names(self) -> list[str]:
        """Names of the plain teachers."""
        return list(self.teachers)

    @property
    def specialised(self) -> list[str]:
        """Names of the masked variants, in the order they were added."""
        return [variant.name for variant in self._variants.values() if variant.tap is not None]

    @property
    def experts(self) -> list[str]:
        """Names on the axis T that routers score: the masked variants, or the plain teachers where there are none."""
        return self.specialised or self.names

    def teacher(self, name: str) -> Teacher:
        """Return a teacher by name."""
        if name not in self.teachers:
            raise ModelError(
                f"no teacher '{name}'{did_you_mean(name, self.names) or '; teachers: ' + ', '.join(self.names)}"
            )
        teacher = self.teachers[name]
        assert isinstance(teacher, Teacher)
        return teacher

    def mask(self, variant: str) -> Mask:
        """Return the mask of a specialised variant."""
        mask = self.masks[_key(variant)]
        assert isinstance(mask, Mask)
        return mask

    def specialise(self, teacher: str, tap: str, mask: Mask) -> str:
        """Add the variant `teacher/tap`, whose activation at `tap` goes through `mask`; return its name."""
        find_module(self.teacher(teacher).network, tap)
        name = f"{teacher}/{tap}"
        if name in self._variants:
            raise ModelError(f"variant '{name}' exists already")
        self.masks[_key(name)] = mask
        self._variants[name] = Variant(name, teacher, tap)
        self._shares_prefix.clear()
        return name

    def variant(self, name: str) -> Variant:
        """Return what a variant is made of."""
        if name not in self._variants:
            known = list(self._variants)
            raise ModelError(
                f"no teacher variant '{name}'{did_you_mean(name, known) or '; variants: ' + ', '.join(known)}"
            )
        return self._variants[name]

    def forward(
        self,
        batch: Batch,
        variants: Sequence[str] | None = None,
        rows: Mapping[str, Tensor] | None = None,
        features: bool = False,
    ) -> PoolSignals:
        """Run the teachers of the given variants once each.

        Args:
            batch: fields `[B, ...]`.
            variants: names to compute, default all experts.
            rows: row indices by variant name; a teacher then sees only the rows of its variants, and each variant's
                signals have as many rows as were asked for. Variants without rows are left out.
            features: record the teachers' taps too (they cost memory, so only where an objective or gate reads them).

        Returns:
            The signals by variant, in the order asked for. Where nothing trains they carry no autograd graph.
        """
        wanted = [self.variant(name) for name in (variants if variants is not None else self.experts)]
        if rows is not None:
            wanted = [variant for variant in wanted if variant.name in rows and len(rows[variant.name])]
        found: dict[str, Signals] = {}
        for teacher in dict.fromkeys(variant.teacher for variant in wanted):
            mine = [variant for variant in wanted if variant.teacher == teacher]
            if rows is None:
                found |= self._run(teacher, batch, mine, features)
            else:
                found |= self._run_rows(teacher, batch, mine, rows, features)
        return PoolSignals({variant.name: found[variant.name] for variant in wanted})

    def frozen(self, variants: Sequence[str] | None = None) -> bool:
        """Tell whether nothing trains in the given variants (default: all teachers and masks)."""
        names = list(self._variants) if variants is None else variants
        return not any(p.requires_grad for name in names for module in self.parts(name) for p in module.parameters())

    def parts(self, name: str) -> list[nn.Module]:
        """Return the modules that make a variant: its teacher and the masks that are active in it."""
        variant = self.variant(name)
        masks = [self.mask(v.name) for v in self._active([variant], variant.teacher)]
        return [self.teacher(variant.teacher), *masks]

    def _active(self, mine: Sequence[Variant], teacher: str) -> list[Variant]:
        """Return the masked variants that a forward needs: those asked for and, if masks stack, the earlier ones."""
        masked = [v for v in self._variants.values() if v.teacher == teacher and v.tap is not None]
        asked = [index for index, v in enumerate(masked) if v in mine]
        if self._stacks():
            return masked[: max(asked, default=-1) + 1]
        return [masked[index] for index in asked]

    def _stacks(self) -> bool:
        """Tell whether earlier masks are active in a variant; while masks train, each is alone."""
        return self.mask_stacking == "cumulative" and not self.masks_train

    def _run_rows(
        self, teacher: str, batch: Batch, mine: Sequence[Variant], rows: Mapping[str, Tensor], features: bool
    ) -> dict[str, Signals]:
        union = torch.unique(torch.cat([rows[variant.name] for variant in mine]))
        part = {key: value[union] if isinstance(value, Tensor) else value for key, value in batch.items()}
        signals = self._run(teacher, part, mine, features)
        return {v.name: signals[v.name].select(torch.searchsorted(union, rows[v.name])) for v in mine}

    def _run(self, name: str, batch: Batch, mine: Sequence[Variant], features: bool) -> dict[str, Signals]:
        """Return the signals of variants of one teacher."""
        trains = not self.frozen([variant.name for variant in mine])
        teacher, active = self.teacher(name), self._active(mine, name)
        record = None if features else ()
        if teacher.training and active:
            raise ModelError(f"teacher '{name}' is being trained: its masked variants can't run at the same time")
        with torch.inference_mode(not trains):
            if active and self._prefix_is_exact(teacher, batch, active):
                outputs = self._run_shared(teacher, batch, active, record)
            elif active:
                outputs = self._run_replicated(teacher, batch, active, record)
            else:
                self.forwards += 1
                outputs = {name: teacher(batch, record)}
        signals = {variant.name: outputs[variant.name] for variant in mine}
        return signals if trains else {key: value.map(torch.clone) for key, value in signals.items()}

    def _run_shared(
        self, teacher: Teacher, batch: Batch, active: Sequence[Variant], record: Sequence[str] | None = ()
    ) -> dict[str, Signals]:
        """One forward: each tap appends the masked copy of its source rows behind the rows that are there."""
        size, order = _batch_size(teacher, batch), [teacher.name]
        by_tap = {variant.tap: variant for variant in active}
        cumulative = self._stacks()

        def append(tap: str, output: Tensor) -> Tensor:
            variant = by_tap[tap]
            if variant.name in order:
                raise ModelError(
                    f"tap '{tap}' of teacher '{teacher.name}' fires twice in one forward; tap another module"
                )
            if cumulative and variant != active[len(order) - 1]:
                raise ModelError(
                    f"masks of teacher '{teacher.name}' stack in the order {[v.tap for v in active]}, but tap '{tap}' "
                    "fires earlier; specialise the taps in the order of the forward, or use sharing='replicate'"
                )
            source = len(order) - 1 if cumulative else 0
            part = output[source * size : (source + 1) * size]
            order.append(variant.name)
            return torch.cat([output, self.mask(variant.name).adapt(part)])

        signals = self._forward_with(teacher, batch, active, append, record)

        def part_of(index: int, tensor: Tensor) -> Tensor:
            """Return the rows of a variant; below its own mask it shares the rows of its source."""
            while index * size >= tensor.shape[0]:
                index = index - 1 if cumulative else 0
            return tensor[index * size : (index + 1) * size]

        return {name: signals.map(partial(part_of, index)) for index, name in enumerate(order)}

    def _run_replicated(
        self, teacher: Teacher, batch: Batch, active: Sequence[Variant], record: Sequence[str] | None = ()
    ) -> dict[str, Signals]:
        """One forward over 1 + V copies of the input; each tap masks the rows of its variants."""
        size, names = _batch_size(teacher, batch), [teacher.name, *[variant.name for variant in active]]
        copies = {f: torch.cat([batch[f]] * len(names)) for f in teacher.inputs}
        by_tap = {variant.tap: variant for variant in active}
        cumulative = self._stacks()

        def replace(tap: str, output: Tensor) -> Tensor:
            variant = by_tap[tap]
            first = names.index(variant.name) * size
            last = output.shape[0] if cumulative else first + size
            adapted = self.mask(variant.name).adapt(output[first:last])
            return torch.cat([output[:first], adapted, output[last:]])

        signals = self._forward_with(teacher, copies, active, replace, record)
        return {name: signals.select(slice(i * size, (i + 1) * size)) for i, name in enumerate(names)}

    def _forward_with(
        self,
        teacher: Teacher,
        batch: Batch,
        active: Sequence[Variant],
        on_tap: Callable[[str, Tensor], Tensor],
        record: Sequence[str] | None,
    ) -> Signals:
        self.forwards += 1
        silent = {variant.tap for variant in active if variant.tap}

        def note(tap: str, output: Tensor) -> Tensor:
            silent.discard(tap)
            return on_tap(tap, output)

        with tapped(teacher.network, list(silent), note):
            signals = teacher(batch, record)
        if silent:
            raise ModelError(f"taps {sorted(silent)} of teacher '{teacher.name}' take no part in its forward")
        return signals

    def _prefix_is_exact(self, teacher: Teacher, batch: Batch, active: Sequence[Variant]) -> bool:
        """Tell whether the teacher takes a batch that grows at its taps; tried once with a few rows and remembered."""
        size = _batch_size(teacher, batch)
        if self.sharing != "auto" or size == 0:
            return self.sharing == "prefix" and size > 0
        key = (teacher.name, self._stacks())
        if key not in self._shares_prefix:
            few = {field: batch[field][torch.arange(3) % size] for field in teacher.inputs}
            count = self.forwards
            masks = [
                self.mask(v.name) for v in self._variants.values() if v.teacher == teacher.name and v.tap is not None
            ]
            modes = [mask.training for mask in masks]
            every = self._active([v for v in self._variants.values() if v.teacher == teacher.name], teacher.name)
            try:
                for mask in masks:
                    mask.eval()
                with torch.no_grad():
                    shared, replicated = (
                        self._run_shared(teacher, few, every),
                        self._run_replicated(teacher, few, every),
                    )
                exact = all(_close(shared[v.name], replicated[v.name]) for v in every)
            except (RuntimeError, ModelError) as error:
                logger.debug("teacher '%s' can't share its prefix: %s", teacher.name, error)
                exact = False
            finally:
                for mask, mode in zip(masks, modes, strict=True):
                    mask.train(mode)
                self.forwards = count
            if not exact:
                logger.info(
                    "teacher '%s': variants replicate the input, since its rows meet another branch", teacher.name
                )
            self._shares_prefix[key] = exact
        return self._shares_prefix[key]


def _close(a: Signals, b: Signals) -> bool:
    x, y = a.require_logits("a variant"), b.require_logits("a variant")
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-3, atol=1e-4 * max(1.0, float(y.abs().max())))


def _batch_size(teacher: Teacher, batch: Batch) -> int:
    return int(teacher.arguments(batch)[0].shape[0])


def _key(variant: str) -> str:
    """Return a variant's key in a ModuleDict, which allows no dots."""
    return variant.replace(".", ":")
