"""Training a router by what its weights lead to: the student's loss on held-out rows after its next step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ..errors import ConfigError
from ..evaluation.evaluate import to_device
from ..model import Batch
from ..registry import Injected
from ..schedules import Progress
from ..step import Models
from .base import STAGES, StageSettings
from .context import RunData, StageContext
from .fused import use_fused
from .hypergradient import Order, averaged
from .outer_step import router_gradients
from .train import TrainLoop, TrainStage
from .untouched import same_random_numbers, untouched


@STAGES.register("bilevel")
class BilevelStage(TrainStage):
    """Train the student as the kind `train` does, and before each of its steps the router by held-out labels.

        outer step:   theta' = theta - inner_lr dL(theta; w)/dtheta,    router -= outer_lr dCE(theta')/drouter
        inner step:   the stage's optimizer moves the student down L(theta; w) with the new weights w

    So a teacher (or the label) gains weight at a row when its gradient there helps on held-out rows. CE is the
    student's cross-entropy on a batch of the split `held_out`, in eval mode. It is the exact hyper-gradient of one
    unrolled step of gradient descent, or its finite difference. The weights are constants in the student's own step,
    and in both steps no gradient reaches the student through them. The router has the signal `bilevel`; its balance
    losses train it in the outer step. Objectives may own parameters, but they count as constants in the outer step.

    It is the training that TGeo-KD describes (ICLR 2024, arXiv 2312.15112); its released code gives the controller no
    gradient.

    Args:
        settings: modules, objectives, optimizer, length; see the stage's keys in the config reference.
        held_out: split with labels that the student is not trained on, such as `val`. The router is trained on them:
            measure the result on others.
        order: `unroll` differentiates through the step, exactly; `darts` needs no second derivative and less memory.
        inner_lr: step size of the unrolled step; that of the stage's optimizer by default.
        outer_optimizer: what moves the router.
        outer_lr: its learning rate.
        outer_weight_decay: its weight decay.
        every: optimizer steps of the student for one of the router.
    """

    def __init__(
        self,
        settings: Injected[StageSettings],
        held_out: str = "val",
        order: Order = "unroll",
        inner_lr: Annotated[float, Gt(0)] | None = None,
        outer_optimizer: Literal["adam", "sgd"] = "adam",
        outer_lr: Annotated[float, Gt(0)] = 1e-3,
        outer_weight_decay: Annotated[float, Ge(0)] = 0.0,
        every: Annotated[int, Ge(1)] = 1,
    ) -> None:
        super().__init__(settings)
        self.held_out, self.inner_lr, self.every = held_out, inner_lr, every
        self.order: Order = order
        self.outer_optimizer, self.outer_lr, self.outer_weight_decay = outer_optimizer, outer_lr, outer_weight_decay

    @property
    def splits(self) -> list[str]:
        """Splits that the stage learns from."""
        return [self.settings.split, self.held_out]

    def make_loop(self, context: StageContext, resume: Mapping[str, Any] | None) -> BilevelLoop:
        """Return the loop that runs the stage."""
        return BilevelLoop(self, context, resume)

    def check(self, models: Models, data: RunData) -> None:
        """Refuse what leaves the outer step without a meaning.

        Raises:
            ConfigError: what it is.
        """
        settings, router = self.settings, models.router
        place = f"stage '{self.name}' of kind 'bilevel'"
        if router is None or not any(weighted.objective.routable for weighted in settings.objectives):
            raise ConfigError(f"{place} needs a router and an objective that is routed, such as routed_kd")
        if router.signal != "bilevel":
            raise ConfigError(f"{place} trains a router with the signal 'bilevel', found '{router.signal}'")
        if set(settings.trains) - {"objectives"} != {"student", "router"}:
            raise ConfigError(f"{place} trains student and router, no more and no less; found {list(settings.trains)}")
        if settings.micro_batch is not None:
            raise ConfigError(f"{place} differentiates through a whole step: leave micro_batch out")
        if not list(router.parameters()):
            raise ConfigError(f"{place}: the router has no parameters to train")
        if len(data.split(self.held_out)) < 1 or self.held_out == settings.split:
            raise ConfigError(f"{place}: held_out '{self.held_out}' must have rows, and be another split than 'split'")

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the router's optimizer."""
        kind = torch.optim.Adam if self.outer_optimizer == "adam" else torch.optim.SGD
        return kind(parameters, lr=self.outer_lr, weight_decay=self.outer_weight_decay)


class BilevelLoop(TrainLoop):
    """One run of a bilevel stage."""

    def __init__(self, stage: BilevelStage, context: StageContext, resume: Mapping[str, Any] | None) -> None:
        assert context.models.router is not None
        self.stage, self.router = stage, context.models.router
        super().__init__(stage.settings, context, resume)
        self.cached = self.module.cache is not None
        self.outer = use_fused(stage.make_optimizer(list(self.router.parameters())))
        self.last: dict[str, Tensor] = {}
        if resume is not None:
            self.outer.load_state_dict(resume["outer"])
            self.last = {name: value.to(context.device) for name, value in resume["last"].items()}
        done = math.ceil(self.state.step / stage.every)
        self.held_out = HeldOut(context, f"{stage.name}/held_out", stage.held_out, done)

    def optimized(self) -> dict[str, nn.Module]:
        """Return the modules whose parameters the stage's optimizer moves: all but the router."""
        return {name: module for name, module in self.modules.items() if name != "router"}

    def optimizers(self) -> list[Any]:
        """Return everything that moves parameters."""
        return [self.optimizer, self.outer]

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the models; which held-out batch is next follows from the number of steps."""
        return super().state_dict() | {"outer": self.outer.state_dict(), "last": self.last}

    def before_batch(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Let the router take its step before the first batch of a step of the student."""
        if not self.cached:
            self.module.cache = None
        first = self.state.batch % self.settings.accumulate == 0
        if first and self.state.step % self.stage.every == 0:
            self.last = {"held_out": self.outer_step(batch, self.held_out.next(), progress)}
        return self.last

    def outer_step(self, batch: Batch, held_out: Batch, progress: Progress) -> Tensor:
        """Move the router against the held-out loss after the student's next step; return that loss."""
        module, student = self.module, self.context.models.student
        lr = self.stage.inner_lr or float(self.optimizer.param_groups[0]["lr"])
        seen = batch
        with (
            untouched(student, self.router, module.objectives, module.transforms),
            same_random_numbers(self.context.device),
        ):
            for transform in self.settings.transforms:
                seen = transform(seen, progress)
            found = router_gradients(module, seen, held_out, progress, lr, self.stage.order)
        if not self.cached and seen is batch and found.teachers is not None:
            said = found.teachers
            module.cache = lambda _: said  # the teachers have run on this batch
        for parameter, gradient in zip(self.router.parameters(), averaged(found.gradients), strict=True):
            parameter.grad = gradient
        self.guard.check_gradients({"router": self.router}, held_out, f"{self.where()}, outer step", self.state.step)
        self.outer.step()
        self.outer.zero_grad()
        return found.loss


class HeldOut:
    """Batches of a split without end; the order of each pass depends on (seed, name, number of the pass) alone.

    Args:
        context: data and processes.
        name: of the stage, for the order.
        split: which split.
        done: batches that were taken before.
    """

    def __init__(self, context: StageContext, name: str, split: str, done: int) -> None:
        self.context, self.name, self.split = context, name, split
        self.length = len(context.train_loader(name, 0, split=split))
        self.epoch, start = divmod(done, self.length)
        self.batches = self._pass(start)

    def next(self) -> Batch:
        """Return the next batch, on the device."""
        batch = next(self.batches, None)
        if batch is None:
            self.epoch += 1
            self.batches = self._pass(0)
            batch = next(self.batches)
        return to_device(batch, self.context.device)

    def _pass(self, start: int) -> Iterator[Batch]:
        return iter(self.context.train_loader(self.name, self.epoch, start, self.split))
