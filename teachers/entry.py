"""Running a teacher from one of its taps on, without what lies below it.

Shapes: B batch.

Below the tap the network runs on tensors that have shapes and no data (PyTorch's `meta` device): its weights are out of
reach until the tapped module has run, and nothing is computed. The tap then gives the activation, and the weights are
back for the rest. A network in which something passes the tap by, such as a skip connection, mixes a tensor without
data with one that has some; PyTorch refuses that, so that the result is the true one or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..model import Batch, Model, tapped
from ..signals import Signals
from .known_shapes import KnownShapes
from .rotated import visiting
from .teacher import Teacher


def enter(
    teacher: Teacher,
    tap: str,
    activation: Tensor,
    batch: Batch,
    record: Sequence[str] | None = (),
    shapes: KnownShapes | None = None,
) -> Signals:
    """Return what a teacher says when a tap gives this activation.

    Args:
        teacher: frozen, in eval mode.
        tap: module path in its network; everything else that it reads of the batch has to pass through it.
        activation: `[B, ...]`; gradients reach it through the layers above the tap.
        batch: the fields that the teacher reads, of which only shapes matter.
        record: taps to record, see `Model.forward`; those below `tap` are left out.
        shapes: those that layers below this tap gave in earlier calls, and will give again.

    Returns:
        The signals, on the device of the activation; those that lie below the tap are left out.

    Raises:
        ModelError: the logits do not depend on the tap, or the tap fires never, twice, or with another shape.
        RuntimeError: of PyTorch, where something passes the tap by.
    """
    home, place = activation.device, teacher.device or activation.device
    rotates = teacher.place == "rotated" and place != home
    fields = {field: batch[field].to("meta") for field in teacher.inputs if field in batch}
    entered = False
    with visiting(teacher, home) if rotates else nullcontext(), without_data(teacher.network) as bring_back:

        def give(path: str, output: Tensor) -> Tensor:
            nonlocal entered
            if entered or output.shape != activation.shape:
                raise ModelError(
                    f"teacher '{teacher.name}' can't be entered at '{path}': it fires twice, or with shape "
                    f"{tuple(output.shape)} for an activation {tuple(activation.shape)}"
                )
            entered = True
            bring_back()
            return activation if rotates else activation.to(place)

        with tapped(teacher.network, [tap], give), nullcontext() if shapes is None else shapes.used():
            signals = Model.forward(teacher, fields, record)
    if not entered or (signals.logits is not None and signals.logits.is_meta):
        raise ModelError(f"teacher '{teacher.name}' says nothing that depends on the tap '{tap}'")
    return _with_data(signals).to(home)


@contextmanager
def without_data(network: nn.Module) -> Iterator[Callable[[], None]]:
    """Replace weights and buffers by tensors without data until the yielded function is called or the context ends."""
    homes: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for part in network.modules():
        for group in (part._parameters, part._buffers):
            homes.extend((group, name, tensor) for name, tensor in group.items() if tensor is not None)  # type: ignore[misc]

    def bring_back() -> None:
        for group, name, tensor in homes:
            group[name] = tensor

    try:
        for group, name, tensor in homes:
            group[name] = torch.empty_like(tensor, device="meta", requires_grad=False)
        yield bring_back
    finally:
        bring_back()


class _EnoughError(Exception):
    """All taps have fired."""


@torch.no_grad()
def activations_at(teacher: Teacher, taps: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """Run a teacher up to the last of some taps and return their activations `[B, ...]`, which carry no graph.

    Raises:
        ModelError: a tap takes no part in the forward.
    """
    found: dict[str, Tensor] = {}

    def keep(tap: str, output: Tensor) -> None:
        found[tap] = output
        if len(found) == len(taps):
            raise _EnoughError
        found[tap] = output.clone()  # the next layer may work in place

    try:
        with tapped(teacher.network, taps, keep):
            teacher(batch, ())
    except _EnoughError:
        home = Model.arguments(teacher, batch)[0].device
        return {tap: found[tap].to(home) for tap in taps}
    raise ModelError(f"taps {sorted(set(taps) - set(found))} of teacher '{teacher.name}' take no part in its forward")


def _with_data(signals: Signals) -> Signals:
    """Leave out what was recorded below the tap."""

    def real(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in group.items() if not value.is_meta}

    return Signals(signals.logits, real(signals.features), real(signals.embeddings), real(signals.heads))
