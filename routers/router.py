"""A router: gate x selection x balance, and how its weights are used.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..errors import ModelError
from ..signals import full_precision
from .alarm import CollapseAlarm
from .balances import Balance
from .combinations import default_signal, refuse_contradictions
from .gates import Gate
from .gates.base import Scores
from .measures import labels_of
from .positions import mean_over_positions
from .routing import Combine, Mix, Routing, Signal
from .selections import Selection
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
            the scores against the teacher that is best at the row), `bilevel` (the loss on held-out rows after the
            student's step; needs a stage of kind `bilevel`), `policy` (a reward; the gate trains itself), `none`.
            Default: `policy` for a gate that trains itself, `aux_only` with `select` or a single chosen teacher (whose
            weight is always 1), else `kd`.
        mix: what `target` and the signal `task` mix: `probs`, `logits`, `logmeanexp` or `confidence`, see `mixture`.
        experts: names of the teachers and variants that it chooses among, in the order of the axis T; None: all experts
            of the pool.
        oracle_tau: temperature in nats of soft targets of the signal `oracle`; None: hard ones.

    Raises:
        ConfigError: parts that exclude each other, such as `select`, or the constant weight of a single chosen teacher,
            with the signal `kd`: the gate would get no such gradient.
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
        self.signal: Signal = signal or default_signal(gate, selection, combine)
        self.mix: Mix = mix
        self.oracle_tau = oracle_tau
        refuse_contradictions(gate, selection, balance, combine, self.signal, oracle_tau)

    @property
    def needs_teachers(self) -> bool:
        """True when all teachers must have run before rows can be routed, as where an instance has many rows."""
        dense = self.gate.rows.granularity != "instance"
        return dense or self.gate.needs_teachers or self.selection.needs_teachers or self.signal in ("task", "oracle")

    @property
    def reads_features(self) -> bool:
        """True when the gate reads tapped activations of the teachers."""
        return any(gate.reads_features for gate in self.modules() if isinstance(gate, Gate))

    @property
    def reads_losses(self) -> bool:
        """True when the gate reads the losses of a routed objective to every teacher."""
        return any(gate.reads_losses for gate in self.modules() if isinstance(gate, Gate))

    @property
    def fitted(self) -> bool:
        """False while its gate has yet to be fitted by a stage."""
        return all(gate.fitted for gate in self.modules() if isinstance(gate, Gate))

    def forward(self, step: Step) -> Routing:
        """Return the routing of the step's instances, or of its tokens or pixels, as the gate says."""
        scored = self.gate(step)
        scored = scored if isinstance(scored, Scores) else Scores(scored, {})
        logits = full_precision(scored.logits)
        experts = len(step.experts)
        if logits.dim() != 2 or logits.shape[1] != experts + self.gate.scores_label:
            raise ModelError(
                f"gate {type(self.gate).__name__} gave scores of shape {tuple(logits.shape)}; "
                f"expected [batch, {experts} teachers{' and the label' if self.gate.scores_label else ''}]"
            )
        label_weights = self._label_weights(step, logits) if self.gate.scores_label else None
        logits = logits[:, :experts]
        probs = logits.softmax(dim=1)
        grid = self.gate.rows.grid(step, f"the gate {type(self.gate).__name__}")
        found = self.selection(logits, probs, step, *(() if grid.mask is None else (grid.mask,)))
        selected = found if isinstance(found, Selected) else Selected(*found)
        probs = probs if selected.probs is None else selected.probs
        losses: dict[str, Tensor] = {}
        entropy = mean_over_positions(-(probs * probs.clamp_min(1e-12).log()).sum(dim=1)[None], grid.mask)
        stats = {"entropy": entropy[0].detach()}
        if label_weights is not None:
            stats["label_weight"] = label_weights.mean().detach()
        details = scored.details | (selected.details or {})
        routing = Routing(
            *(selected.weights, selected.chosen, logits, probs, losses, stats, details),
            mask=grid.mask,
            positions=grid.positions,
            combine=self.combine,
            signal=self.signal,
            mix=self.mix,
            label_weights=label_weights,
        )
        if step.training and self.signal != "none":
            for index, balance in enumerate(self.balance):
                assert isinstance(balance, Balance)
                name = f"balance/{index}" if len(self.balance) > 1 else "balance"
                losses[name] = balance.weight_at(step.progress) * balance(routing)
            if self.signal == "task":
                losses["router_task"] = task_loss(step, probs, self.mix, self.gate.rows)
            elif self.signal == "oracle":
                losses["router_oracle"] = oracle_loss(step, logits, self.oracle_tau, self.gate.rows)
        if step.training and self.training and logits.requires_grad:
            self.alarm.add(routing.load)
        return routing

    def _label_weights(self, step: Step, scores: Tensor) -> Tensor:
        """Return how much the label counts beside the teachers, `[B]`; 0 where there is none."""
        _, known_B = labels_of(step, f"the gate {type(self.gate).__name__}")
        return scores.softmax(dim=1)[:, -1].where(known_B, 0.0)

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
