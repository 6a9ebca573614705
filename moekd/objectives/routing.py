"""An objective that trains nothing but the router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .base import OBJECTIVES, Loss, Objective

if TYPE_CHECKING:
    from ..step import Step


@OBJECTIVES.register("routing")
class RouteOnly(Objective):
    """No loss of its own: it has the router route the batch, so that the router's own losses train it.

    These are the balance losses and the loss of the signals `task` and `oracle`. Use it in a stage that fits a gate
    before distillation, such as `{name: fit_router, trains: [router], objectives: [routing], epochs: 10}`, on labels
    that the teachers have not seen.
    """

    routable = True

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return nothing, after the step was routed."""
        assert step.routing is not None
        return {}
