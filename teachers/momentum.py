"""A teacher that is the moving average of the student it teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from ..errors import ModelError
from ..model import Model
from .teacher import Teacher

#: What becomes of buffers, such as the running statistics of batch normalisation.
Buffers = Literal["copy", "keep"]


class MomentumTeacher(Teacher):
    """A copy of the student whose weights follow the student's: `theta_m <- m theta_m + (1 - m) theta`.

    The self-teacher of MoCo (He et al., CVPR 2020, arXiv 1911.05722, equation 2) and of momentum distillation (Li et
    al., "Align before Fuse", NeurIPS 2021, arXiv 2107.07651, section 3.3, where m = 0.995). It starts as an exact copy
    of the student, no optimizer ever moves it, and it is in eval mode; the released code of the latter leaves its
    dropout on.

    A stage moves it after every optimizer step. That code moves it at the start of every forward instead, which gives
    every forward the same teacher: at the first one, the average of the student and its exact copy is that copy.

    Args:
        network: of the same structure as the student's.
        inputs, taps, dtype, name, heads, head_inputs: see `Teacher`.
        momentum: m, in [0, 1). A run of a few hundred steps wants 0.99, or the teacher is still the first student at
            its end.
        buffers: `copy` takes the student's (an average of its weights with the newest statistics); `keep` leaves those
            of the start, as the code of momentum distillation does, whose networks have none that matter.

    Raises:
        ValueError: a momentum outside of [0, 1).
    """

    follows = True

    def __init__(
        self,
        network: nn.Module,
        inputs: Sequence[str],
        taps: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        name: str = "momentum",
        heads: Mapping[str, nn.Module] | None = None,
        head_inputs: Mapping[str, str] | None = None,
        momentum: float = 0.995,
        buffers: Buffers = "copy",
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), found {momentum}")
        super().__init__(network, inputs, taps, dtype, name, heads, head_inputs)
        self.momentum, self.buffer_policy = momentum, buffers

    def thaw(self) -> None:
        """Refuse to be trained.

        Raises:
            ModelError: always.
        """
        raise ModelError(f"teacher '{self.name}' follows the student, so that no stage can train it")

    def check(self, student: Model) -> None:
        """Refuse a student of another structure.

        Raises:
            ModelError: the first weights that differ in name or shape, or other inputs.
        """
        mine, theirs = self.state_dict(), student.state_dict()
        problems = [name for name in {**theirs, **mine} if (name in mine) != (name in theirs)]
        problems += [n for n in mine if n in theirs and mine[n].shape != theirs[n].shape]
        if problems:
            raise ModelError(
                f"teacher '{self.name}' follows the student and must be built as it is; these weights differ: "
                f"{', '.join(problems[:5])}{', ...' if len(problems) > 5 else ''}"
            )

    def restart(self, student: Model) -> None:
        """Become an exact copy of the student.

        Raises:
            ModelError: the student is built otherwise.
        """
        self.check(student)
        self.load_state_dict(student.state_dict())

    @torch.no_grad()
    def follow(self, student: Model) -> None:
        """Move one step towards the student."""
        mine, theirs = list(self.parameters()), list(student.parameters())
        pairs = [(m, t.to(m.dtype)) for m, t in zip(mine, theirs, strict=True)]
        torch._foreach_lerp_([m for m, _ in pairs], [t for _, t in pairs], 1 - self.momentum)
        if self.buffer_policy == "copy":
            for old, new in zip(self.buffers(), student.buffers(), strict=True):
                old.copy_(new)
