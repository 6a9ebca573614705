"""A router: gate x selection x balance, and how its weights are used.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..signals import full_precision
from .alarm import CollapseAlarm
from .balances import Balance
from .gates import Gate
from .gates.base import Scores
from .routing import Combine, Mix, Routing, Signal
from .selections import Dense, Drop, Selection
from .selections.base import Selected
from .supervision import oracle_loss, task_loss

if TYPE_CHECKING:
    from ..step import Step


class Router(nn.Module):
    """Decides for every instance which teachers it learns from.

    Args:
        gate: scores the teachers.
        selection: turns scores into weights.
        balance: auxiliary losses on the probabilities.
        combine: `select`: every chosen teacher counts the same, the gate gets no gradient from distillation
            (MST-Distill); `loss`: the weights multiply the teachers' losses; `target`: they mix the teachers'
            distributions.
        signal: where the gate's gradient comes from: `aux_only` (balance losses), `kd` (the weights in the distillation
            loss), `task` (cross-entropy of the mixture of the teachers against the label), `oracle` (cross-entropy of
            the scores against the teacher that is best at the row), `none`.
            Default: `aux_only` with `select` or a single chosen teacher (whose weight is always 1), else `kd`.
        mix: what `target` and the signal `task` mix: `probs` or `logits`.
        experts: names of the teachers and variants that it chooses among, in the order of the axis T; None: all experts
            of the pool.
        oracle_tau: temperature in nats of soft targets of the signal `oracle`; None: hard ones.

    Raises:
        ConfigError: `select`, or constant weights such as that of a single chosen teacher, with the signal `kd`: the
            gate would get no such gradient. `select` with the selection `dense` and a gate that gives weights.
            `oracle_tau` not positive, or without the signal `oracle`.
    """

    def __init__(
        self,
        gate: Gate,
        selection: Selection,
        balance: Sequence[Balance] = (),
        combine: Combine = "select",
        signal: Signal | None = None,
        mix: Mix = "probs",
        experts: Sequence[str] | None = None,
        oracle_tau: float | None = None,
    ) -> None:
        super().__init__()
        self.experts = None if experts is None else list(experts)
        self.gate, self.selection = gate, selection
        self.balance = nn.ModuleList(balance)
        self.alarm = CollapseAlarm()
        self.combine: Combine = combine
        self.signal: Signal = signal or ("aux_only" if combine == "select" or selection.constant_weights else "kd")
        self.mix: Mix = mix
        self.oracle_tau = oracle_tau
        if oracle_tau is not None and (self.signal != "oracle" or oracle_tau <= 0):
            raise ConfigError(
                f"router.oracle_tau: soft targets of the signal 'oracle' have a temperature > 0; found {oracle_tau} "
                f"with the signal '{self.signal}'"
            )
        if combine == "select" and self.signal == "kd":
            raise ConfigError(
                "router.signal: with combine 'select' the weights multiply no loss: 'kd' gives the gate no gradient; "
                "use combine 'loss' or 'target', or signal 'aux_only' or 'task'"
            )
        if combine == "select" and gate.gives_weights and isinstance(selection, Dense):
            raise ConfigError(
                "router.combine: with 'select' and the selection 'dense' every teacher counts the same, so the weights "
                f"of {type(gate).__name__} would be ignored; use combine 'loss' or 'target'"
            )
        if combine == "select" and isinstance(selection, Drop) and not selection.sums_to_one:
            raise ConfigError(
                "router.combine: with 'select' every row counts the same, so normalise 'all' of the selection 'drop' "
                "would be ignored; use combine 'loss' or normalise 'row'"
            )
        if selection.constant_weights and self.signal == "kd":
            if selection.k != 1:
                raise ConfigError(
                    f"router.signal: the weights of {type(selection).__name__} are constants, so the distillation loss "
                    "gives the gate no gradient; leave 'kd' out, or use selection 'dense' or 'top_k'"
                )
            raise ConfigError(
                "router.selection.k: the weight of a single chosen teacher is always 1, so the distillation loss "
                "gives the gate no gradient; use k >= 2, selection 'dense', or signal 'task'"
            )
        if combine == "target" and not selection.sums_to_one:
            raise ConfigError(
                "router.combine: 'target' mixes distributions with weights that sum to 1, those of this selection do "
                "not; use combine 'loss', or normalise the selection's weights"
            )

    @property
    def needs_teachers(self) -> bool:
        """True when all teachers must have run before rows can be routed."""
        return self.gate.needs_teachers or self.selection.needs_teachers or self.signal in ("task", "oracle")

    @property
    def fitted(self) -> bool:
        """False while its gate has yet to be fitted by a stage."""
        return all(gate.fitted for gate in self.modules() if isinstance(gate, Gate))

    def forward(self, step: Step) -> Routing:
        """Return the routing of the step's instances."""
        scored = self.gate(step)
        scored = scored if isinstance(scored, Scores) else Scores(scored, {})
        logits = full_precision(scored.logits)
        experts = len(step.experts)
        if logits.dim() != 2 or logits.shape[1] != experts:
            raise ModelError(
                f"gate {type(self.gate).__name__} gave scores of shape {tuple(logits.shape)}; "
                f"expected [batch, {experts} teachers]"
            )
        probs = logits.softmax(dim=1)
        found = self.selection(logits, probs, step)
        selected = found if isinstance(found, Selected) else Selected(*found)
        probs = probs if selected.probs is None else selected.probs
        losses: dict[str, Tensor] = {}
        stats = {"entropy": -(probs * probs.clamp_min(1e-12).log()).sum(dim=1).mean().detach()}
        details = scored.details | (selected.details or {})
        routing = Routing(
            *(selected.weights, selected.chosen, logits, probs, losses, stats, details),
            combine=self.combine,
            signal=self.signal,
            mix=self.mix,
        )
        if step.training and self.signal != "none":
            for index, balance in enumerate(self.balance):
                assert isinstance(balance, Balance)
                name = f"balance/{index}" if len(self.balance) > 1 else "balance"
                losses[name] = balance.weight_at(step.progress) * balance(routing)
            if self.signal == "task":
                losses["router_task"] = task_loss(step, probs, self.mix)
            elif self.signal == "oracle":
                losses["router_oracle"] = oracle_loss(step, logits, self.oracle_tau)
        if step.training and self.training and logits.requires_grad:
            self.alarm.add(routing.applied_weights.sum(dim=0))
        return routing

    def after_step(self) -> None:
        """Let gate and selection update what no gradient trains (loads, biases); called once after every step."""
        for part in (self.gate, self.selection, self.alarm):
            part.after_step()

    def after_epoch(self) -> None:
        """Let the gate update what it updates once an epoch; called by stages that train the router."""
        self.gate.after_epoch()

    def warn_of_collapse(self, names: Sequence[str]) -> bool:
        """Log a warning if one of the teachers `names` takes nearly all rows for long; tell whether it does."""
        return self.alarm.warn(names)
