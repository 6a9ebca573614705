"""A model that teaches: frozen unless a stage trains it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ..model import Batch, Model
from ..signals import Signals
from .compiled import Compiled
from .rotated import visiting

#: Where the weights are: with the student (`auto`), in main memory and brought to the student's device for each forward
#: (`rotated`), or always on the device of this name ("cpu", "cuda:1").
Place = Literal["auto", "rotated"] | str


class Teacher(Model):
    """A `Model` that is frozen (no gradients, eval mode) until `thaw()`.

    Whatever the place of its weights, it takes batches on any device, and its signals come back to that device. Places
    other than `auto` have been tested without a GPU only.

    Args:
        network: any module; see `Model`.
        inputs: batch fields it reads, in call order.
        taps: module paths that masks may adapt.
        dtype: type of the weights and of the floating-point inputs; logits come back as float32.
        name: name in the pool, for messages.
        heads: further modules on taps; see `Model`.
        head_inputs: the tap that each of them reads; see `Model`.

    Attributes:
        follows: True where the weights follow those of the student, so that no optimizer moves them.
    """

    follows = False

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[str],
        taps: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        name: str = "teacher",
        heads: Mapping[str, nn.Module] | None = None,
        head_inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(network, inputs, taps, heads, head_inputs)
        self.name, self.dtype = name, dtype
        self.trained = False
        self.place: Place = "auto"
        self.pads = False
        self.compiled: Compiled | None = None
        self.to(dtype)
        self.freeze()

    def settled(self, place: Place = "auto", compiles: bool = False, pads: bool = False) -> Self:
        """Say where and how this teacher runs while it is frozen, and return it.

        Args:
            place: where its weights are kept; `.to()` and the like leave them there. One that trains has them where
                the student is, unless it has a device of its own.
            compiles: run the network through `torch.compile` in forwards without taps and masks.
            pads: fill up batches of some rows (`TeacherPool`'s `rows`) to one of a few sizes, so that compiled
                networks and tuned kernels meet few shapes; `compiles` implies it.
        """
        self.place, self.pads = place, pads or compiles
        self.compiled = Compiled(f"teacher '{self.name}'") if compiles else None
        return self

    @property
    def device(self) -> torch.device | None:
        """Where the weights are now; None without weights."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)

    @property
    def learns(self) -> bool:
        """True while any of its weights gets gradients."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def freeze(self) -> None:
        """Take part in no training: eval mode, no gradients."""
        self.trained = False
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)
        self.eval()
        if self.place == "rotated":
            self.cpu()

    def thaw(self) -> None:
        """Let a stage train this teacher."""
        self.trained = True
        self.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Set train or eval mode; a frozen teacher stays in eval mode."""
        super().train(mode and self.trained)
        return self

    def forward(self, batch: Batch, taps: Sequence[str] | None = None) -> Signals:
        """Return the signals, on the device of the batch; see `Model.forward`."""
        home = Model.arguments(self, batch)[0].device
        rotates = self.place == "rotated" and self.device not in (None, home) and not self.learns
        with visiting(self, home) if rotates else nullcontext():
            signals = super().forward(batch, taps)
        return signals if self.device in (None, home) or rotates else signals.to(home)

    def call(self, arguments: tuple[Tensor, ...]) -> Any:
        """Return what the network gives, compiled if it should be and nothing is tapped."""
        return self.network(*arguments) if self.compiled is None else self.compiled(self.network, arguments)

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the inputs where the weights are, floating-point ones in the teacher's own dtype, unless the network
        sees to that itself.
        """
        found, device = super().arguments(batch), self.device
        if device is not None:
            found = tuple(x if x.device == device else x.to(device, non_blocking=True) for x in found)
        if getattr(self.network, "casts_inputs", False):
            return found
        return tuple(x.to(self.dtype) if x.is_floating_point() else x for x in found)

    def interpret(self, output: Any) -> Signals:
        """Return the signals with float32 logits."""
        signals = super().interpret(output)
        if signals.logits is None or signals.logits.dtype == torch.float32:
            return signals
        return Signals(signals.logits.float(), signals.features, signals.embeddings, signals.heads)

    def fingerprint(self) -> str:
        """Return a sha256 over weights, buffers, inputs and the printed structure of the network and the heads.

        Whatever changes the signals should change it, so a network says its settings in its weights or in `extra_repr`.
        """
        digest = hashlib.sha256(f"{self._structure()}|{self.inputs}|{self.dtype}".encode())
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def same_as(self, other: Teacher) -> bool:
        """Tell whether another teacher says the same: equal fingerprints, taps and places; both have to be frozen.

        Weights are compared one after the other, so that teachers that differ cost next to nothing.
        """
        if any(teacher.learns or teacher.follows for teacher in (self, other)):
            return False
        kinds = [(t.inputs, t.taps, t.dtype, t.place, t.device) for t in (self, other)]
        if kinds[0] != kinds[1]:
            return False
        mine, theirs = self.state_dict(), other.state_dict()
        if mine.keys() != theirs.keys() or self._structure() != other._structure():
            return False
        return all(_same_bits(mine[key], theirs[key]) for key in mine)

    def _structure(self) -> str:
        text = f"{self.network!r}|{self.heads!r}|{sorted(self.head_inputs.items())}"
        return re.sub(r" at 0x[0-9a-f]+", "", text)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        """Move or cast the weights; a teacher with a place of its own is cast, and moved to that place."""
        place = self.__dict__.get("place", "auto")
        if place == "auto" or (place == "rotated" and self.learns):
            return super()._apply(fn, recurse)
        return super()._apply(staying(fn, torch.device("cpu" if place == "rotated" else place)), recurse)


def staying(fn: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what `fn` does to a tensor, but for moves: these go to the given device."""

    def there(tensor: Tensor) -> Tensor:
        like = fn(tensor.new_empty(0))
        return fn(tensor) if like.device == tensor.device else tensor.to(device, like.dtype)

    return there


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors hold the same; tensors without data never do."""
    if a.is_meta or b.is_meta or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.device == b.device and torch.equal(a, b)
