"""Which parts of a router exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import ConfigError
from .balances import Balance
from .gates import Gate
from .routing import Combine, Signal
from .selections import Selection

#: Signals whose gradient comes through the weights in the distillation loss.
THROUGH_WEIGHTS = ("kd", "bilevel")


def default_signal(gate: Gate, selection: Selection, combine: Combine) -> Signal:
    """Return where a gate's gradient comes from when nothing is said about it."""
    if gate.trains_itself:
        return "policy"
    return "aux_only" if combine == "select" or selection.constant_weights else "kd"


def refuse_contradictions(
    gate: Gate,
    selection: Selection,
    balance: Sequence[Balance],
    combine: Combine,
    signal: Signal,
    oracle_tau: float | None,
) -> None:
    """Refuse parts that would make a router do something else than it says.

    Raises:
        ConfigError: which ones, and what to do instead.
    """
    for problem in (
        *_about_signal(gate, selection, balance, combine, signal),
        *_about_combine(gate, selection, combine),
        *_about_choice(gate, selection),
    ):
        raise ConfigError(problem)
    if oracle_tau is not None and (signal != "oracle" or oracle_tau <= 0):
        raise ConfigError(
            f"router.oracle_tau: soft targets of the signal 'oracle' have a temperature > 0; found {oracle_tau} "
            f"with the signal '{signal}'"
        )


def _about_choice(gate: Gate, selection: Selection) -> Iterator[str]:
    if gate.admits is not None and selection.k is not None and selection.k > gate.admits:
        yield (
            f"router.selection.k: {selection.k} teachers chosen, but {type(gate).__name__} admits {gate.admits} for "
            "some rows; lower k, or share more teachers"
        )


def _about_signal(
    gate: Gate, selection: Selection, balance: Sequence[Balance], combine: Combine, signal: Signal
) -> Iterator[str]:
    if gate.trains_itself != (signal == "policy"):
        if gate.trains_itself:
            yield f"router.signal: {type(gate).__name__} trains itself by a reward; use 'policy', not '{signal}'"
        else:
            yield "router.signal: 'policy' needs a gate that trains itself by a reward, such as 'policy'"
    if signal == "policy" and balance:
        yield f"router.balance: no loss reaches {type(gate).__name__}, which trains itself; remove the balance losses"
    if combine == "select" and signal in THROUGH_WEIGHTS:
        yield (
            f"router.signal: with combine 'select' the weights multiply no loss: '{signal}' gives the gate no "
            "gradient; use combine 'loss' or 'target', or signal 'aux_only' or 'task'"
        )
    if selection.constant_weights and signal in THROUGH_WEIGHTS and selection.k != 1:
        yield (
            f"router.signal: the weights of {type(selection).__name__} are constants, so the distillation loss gives "
            f"the gate no gradient; leave '{signal}' out, or use selection 'dense' or 'top_k'"
        )
    elif selection.constant_weights and signal in THROUGH_WEIGHTS:
        yield (
            "router.selection.k: the weight of a single chosen teacher is always 1, so the distillation loss gives the "
            "gate no gradient; use k >= 2, selection 'dense', or signal 'task'"
        )


def _about_combine(gate: Gate, selection: Selection, combine: Combine) -> Iterator[str]:
    if combine == "select" and gate.gives_weights and selection.takes_all:
        yield (
            f"router.combine: with 'select' and {type(selection).__name__} every teacher counts the same, so the "
            f"weights of {type(gate).__name__} would be ignored; use combine 'loss' or 'target'"
        )
    if combine == "select" and selection.weighs_rows:
        yield (
            "router.combine: with 'select' every row counts the same, so the weights of rows of "
            f"{type(selection).__name__} would be ignored; use combine 'loss' or normalise 'row'"
        )
    if combine == "target" and not selection.sums_to_one:
        yield (
            "router.combine: 'target' mixes distributions with weights that sum to 1, those of this selection do not; "
            "use combine 'loss', or normalise the selection's weights"
        )
