"""What a step with a loss or gradient that is no number leads to: an error, a skipped step, or the last good state."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..errors import NonFiniteError
from .loop_state import LoopState
from .untouched import remember_buffers

logger = logging.getLogger(__name__)

#: The scale of the loss is halved at each overflow: from 65536 it is below 1e-10 by then.
MOST_OVERFLOWS = 50

OnNonFinite = Literal["raise", "skip", "rollback"]


@dataclass(frozen=True)
class NonFinitePolicy:
    """What a bad step leads to.

    Attributes:
        policy: `raise` stops the run; `skip` leaves the step out; `rollback` also takes weights, buffers and the
            optimizer's memory back to where they were at the last checkpoint. The order of the data goes on.
        limit: bad steps in a row (`rollback`: since the last checkpoint) that are tolerated.
    """

    policy: OnNonFinite = "raise"
    limit: int = 10


class Recovery:
    """Follows the policy, and keeps what it needs to put things back.

    A bad step changes no parameter, and buffers that its forward wrote (statistics of batch normalisation, memory
    banks) are put back. The price of `skip` is a copy of the buffers a step, that of `rollback` a copy of all trained
    weights and the optimizer's memory in main memory, made when a checkpoint is saved. On a GPU both wait for every
    step.

    Args:
        policy: the policy.
        state: of the loop; counts the bad steps.
        modules: whose parameters and buffers a step changes.
        optimizers: what moves them, asked for when a copy is made.
    """

    def __init__(
        self,
        policy: NonFinitePolicy,
        state: LoopState,
        modules: Sequence[nn.Module],
        optimizers: Callable[[], Sequence[Any]],
    ) -> None:
        self.policy, self.state, self.optimizers = policy, state, optimizers
        self.modules = list(dict.fromkeys(modules))
        self.spoilt, self.moved, self.overflows = False, False, 0
        self._put_back: Callable[[], None] = _nothing

    def before(self) -> None:
        """Remember what the next step may change; called before the first batch of a step."""
        self.spoilt = False
        if self.policy.policy == "skip":
            self._put_back = remember_buffers(*self.modules)

    def saved(self) -> None:
        """Remember the state that was saved, or that the stage begins or goes on with."""
        if self.policy.policy == "rollback":
            self._put_back = _remember(self.modules, self.optimizers())
            if self.moved:
                self.state.bad_in_a_row = 0
            self.moved = False

    def note(self, error: NonFiniteError) -> None:
        """Spoil the running step.

        Raises:
            NonFiniteError: the policy is `raise`, or there were too many.
        """
        policy, state = self.policy, self.state
        if policy.policy == "raise":
            raise error
        if self.spoilt:
            return
        self.spoilt = True
        state.bad_steps, state.bad_in_a_row = state.bad_steps + 1, state.bad_in_a_row + 1
        if state.bad_in_a_row > policy.limit:
            since = "in a row" if policy.policy == "skip" else "since the last checkpoint"
            raise NonFiniteError(
                f"{state.bad_in_a_row} steps {since} were not finite, more than trainer.max_nonfinite "
                f"({policy.limit}) allows; the last:\n  {error}"
            ) from error
        done = "skipped" if policy.policy == "skip" else "taken back to the last checkpoint"
        logger.warning("%s (%s, %d so far)", error, done, state.bad_steps)

    def undo(self) -> None:
        """Put back what the spoilt step changed."""
        self._put_back()

    def stepped(self, overflowed: bool = False) -> None:
        """Note a good step, or one that the loss scaling of fp16 left out; it does so now and then by design.

        Raises:
            NonFiniteError: the last steps all overflowed, so that no scale helps.
        """
        self.overflows = self.overflows + 1 if overflowed else 0
        if self.overflows > MOST_OVERFLOWS:
            raise NonFiniteError(
                f"the gradients of {self.overflows} steps in a row were not finite in fp16, whatever the loss scale; "
                "use mixed_precision bf16, or lower the learning rate"
            )
        self.moved = True
        if self.policy.policy == "skip":
            self.state.bad_in_a_row = 0

    def counts(self) -> dict[str, int]:
        """Return what the log tells: bad steps of the stage, where the policy goes on after them."""
        return {} if self.policy.policy == "raise" else {"nonfinite_steps": self.state.bad_steps}


def _remember(modules: Sequence[nn.Module], optimizers: Sequence[Any]) -> Callable[[], None]:
    """Copy parameters, buffers and the optimizers' memory; what is returned puts them back, as often as needed."""
    parameters = {parameter: parameter.detach().cpu().clone() for m in modules for parameter in m.parameters()}
    buffers = remember_buffers(*modules)
    memories = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in optimizers]

    def put_back() -> None:
        with torch.no_grad():
            for parameter, value in parameters.items():
                parameter.copy_(value)
        buffers()
        for optimizer, memory in zip(optimizers, memories, strict=True):
            now: Mapping[str, Any] = optimizer.state_dict()
            optimizer.load_state_dict({"state": copy.deepcopy(memory), "param_groups": now["param_groups"]})

    return put_back


def _nothing() -> None:
    """Put nothing back."""
