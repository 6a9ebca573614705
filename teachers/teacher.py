"""A model that teaches: frozen unless a stage trains it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Batch, Model
from ..signals import Signals


class Teacher(Model):
    """A `Model` that is frozen (no gradients, eval mode) until `thaw()`.

    Args:
        network: any module; see `Model`.
        inputs: batch fields it reads, in call order.
        taps: module paths that masks may adapt.
        dtype: type of the weights and of the floating-point inputs; logits come back as float32.
        name: name in the pool, for messages.
        heads: further modules on taps; see `Model`.
        head_inputs: the tap that each of them reads; see `Model`.
    """

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
        self.to(dtype)
        self.freeze()

    def freeze(self) -> None:
        """Take part in no training: eval mode, no gradients."""
        self.trained = False
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)
        self.eval()

    def thaw(self) -> None:
        """Let a stage train this teacher."""
        self.trained = True
        self.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Set train or eval mode; a frozen teacher stays in eval mode."""
        super().train(mode and self.trained)
        return self

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the inputs, floating-point ones in the teacher's own dtype, unless the network sees to that itself."""
        if getattr(self.network, "casts_inputs", False):
            return super().arguments(batch)
        return tuple(x.to(self.dtype) if x.is_floating_point() else x for x in super().arguments(batch))

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
        structure = re.sub(
            r" at 0x[0-9a-f]+", "", f"{self.network!r}|{self.heads!r}|{sorted(self.head_inputs.items())}"
        )
        digest = hashlib.sha256(f"{structure}|{self.inputs}|{self.dtype}".encode())
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
