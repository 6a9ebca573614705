"""The teachers of a run and their masked variants, with one forward a teacher a batch.

Shapes: B batch, V variants of one teacher, T variants of the pool.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ModelError, did_you_mean
from ..model import Batch, find_module
from ..signals import PoolSignals, Signals
from .forward import MaskedTap, batch_size, forward_replicated, forward_shared, prefix_is_exact
from .masks import Mask
from .teacher import Teacher, staying

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

    Teachers that are the same (weights, structure, inputs, taps) run as one after `merge_equal`, each with its own
    masks. `forwards` counts the forwards of networks.

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
        self._shares_prefix: dict[tuple[str, ...], bool] = {}
        self._stands_for: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """Names of the plain teachers."""
        return list(self.teachers)

    @property
    def followers(self) -> list[str]:
        """Names of the teachers whose weights follow the student's."""
        return [name for name in self.names if self.teacher(name).follows]

    @property
    def trainable(self) -> list[str]:
        """Names of the teachers that a stage can train: all but the followers."""
        return [name for name in self.names if not self.teacher(name).follows]

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

    def merge_equal(self) -> dict[str, str]:
        """Let teachers that are the same run once a batch; to be called whenever weights have changed.

        Returns:
            For every teacher that does not run itself the one that runs in its place.
        """
        self._stands_for = {}
        for index, name in enumerate(self.names):
            for earlier in self.names[:index]:
                if earlier not in self._stands_for and self.teacher(name).same_as(self.teacher(earlier)):
                    self._stands_for[name] = earlier
                    logger.info("teachers '%s' and '%s' are the same: they run once a batch", earlier, name)
                    break
        return dict(self._stands_for)

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
        for teacher, mine in self._by_forward(wanted).items():
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

    def fingerprint(self, name: str) -> str:
        """Return a sha256 over everything that a variant's signals depend on, besides the input."""
        variant = self.variant(name)
        digest = hashlib.sha256(
            f"{variant.tap}|{self._stacks()}|{self.teacher(variant.teacher).fingerprint()}".encode()
        )
        for active in self._active([variant], variant.teacher):
            digest.update(f"{active.tap}|{self.mask(active.name)!r}".encode())
            for key, tensor in sorted(self.mask(active.name).state_dict().items()):
                digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _by_forward(self, wanted: Sequence[Variant]) -> dict[str, list[Variant]]:
        """Return which variants come out of one forward, by the teacher that runs; stacked masks are of one teacher."""
        masked = {variant.teacher for variant in wanted if variant.tap is not None}
        found: dict[str, list[Variant]] = {}
        for variant in wanted:
            runs = self._stands_for.get(variant.teacher, variant.teacher)
            mixed = self._stacks() and bool(masked & {variant.teacher, runs})
            trains = self.teacher(runs).trained or self.teacher(variant.teacher).trained
            found.setdefault(variant.teacher if mixed or trains else runs, []).append(variant)
        return found

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
        asked = [rows[variant.name] for variant in mine]
        union = asked[0] if len(asked) == 1 else torch.unique(torch.cat(asked))
        filled = filled_up(union) if self.teacher(teacher).pads else union
        fields = {field: batch[field] for field in self.teacher(teacher).inputs if field in batch}
        part = {key: value[filled] if isinstance(value, Tensor) else value for key, value in fields.items()}
        signals = self._run(teacher, part, mine, features)
        if len(asked) == 1:
            return signals if filled is union else {mine[0].name: signals[mine[0].name].select(slice(len(union)))}
        return {v.name: signals[v.name].select(torch.searchsorted(union, rows[v.name])) for v in mine}

    def _run(self, name: str, batch: Batch, mine: Sequence[Variant], features: bool) -> dict[str, Signals]:
        """Return the signals of variants of one teacher, from one forward."""
        trains = not self.frozen([variant.name for variant in mine])
        teacher, record = self.teacher(name), None if features else ()
        owners = dict.fromkeys(variant.teacher for variant in mine)
        active = self._masked_taps([variant for owner in owners for variant in self._active(mine, owner)])
        if teacher.training and active:
            raise ModelError(f"teacher '{name}' is being trained: its masked variants can't run at the same time")
        with nullcontext() if trains else torch.inference_mode():  # inference_mode(False) would switch gradients on
            if not active:
                outputs = {name: teacher(batch, record)}
            elif self._shares(teacher, batch, tuple(owners)):
                outputs = forward_shared(teacher, batch, active, self._stacks(), record)
            else:
                plain = any(variant.tap is None for variant in mine)
                outputs = forward_replicated(teacher, batch, active, self._stacks(), record, plain)
        self.forwards += 1
        signals = {v.name: outputs[name if v.tap is None else v.name] for v in mine}
        return signals if trains else {key: value.map(torch.clone) for key, value in signals.items()}

    def _masked_taps(self, variants: Sequence[Variant]) -> list[MaskedTap]:
        return [MaskedTap(v.name, v.tap, self.mask(v.name)) for v in variants if v.tap is not None]

    def _shares(self, teacher: Teacher, batch: Batch, owners: tuple[str, ...] = ()) -> bool:
        """Tell whether a forward's variants share their prefix; `auto` tries it once and remembers."""
        if self.sharing != "auto" or batch_size(teacher, batch) == 0:
            return self.sharing == "prefix" and batch_size(teacher, batch) > 0
        owners = owners or (teacher.name,)
        key = (str(self._stacks()), teacher.name, *owners)
        if key not in self._shares_prefix:
            own = [variant for variant in self._variants.values() if variant.teacher in owners]
            every = self._masked_taps([variant for owner in owners for variant in self._active(own, owner)])
            self._shares_prefix[key] = prefix_is_exact(teacher, batch, every, self._stacks())
            if not self._shares_prefix[key]:
                logger.info("teacher '%s': variants replicate its input, since they can't share a prefix", teacher.name)
        return self._shares_prefix[key]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TeacherPool:
        """Move or cast everything; masks stay with teachers that have a device of their own."""
        places = {_key(v.name): self.teacher(v.teacher).place for v in self._variants.values() if v.tap is not None}
        devices = {key: torch.device(place) for key, place in places.items() if place not in ("auto", "rotated")}
        every = self.masks._modules
        self.masks._modules = {key: mask for key, mask in every.items() if key not in devices}
        try:
            super()._apply(fn, recurse)
        finally:
            self.masks._modules = every
        for key, device in devices.items():
            self.masks[key]._apply(staying(fn, device), recurse)
        return self


def filled_up(rows: Tensor) -> Tensor:
    """Return row indices with the first one repeated up to one of a few sizes: four an octave, multiples of 8."""
    count = len(rows)
    step = max(8, 1 << max(0, count.bit_length() - 3))
    missing = -count % step
    return torch.cat([rows, rows[:1].expand(missing)]) if missing else rows


def _key(variant: str) -> str:
    """Return a variant's key in a ModuleDict, which allows no dots."""
    return variant.replace(".", ":")
