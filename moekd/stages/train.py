"""The common kind of stage: epochs of optimizer steps, validation, the best epoch kept."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..distributed import average_buffers, rows_everywhere, sharding_asked_for, sum_over_processes, whole
from ..errors import CheckpointError, ConfigError, NonFiniteError, StoppedError
from ..evaluation.evaluate import to_device
from ..model import Batch, Model
from ..peak_memory import PeakMemory
from ..registry import Injected
from ..schedules import Progress
from ..step import Models
from .ahead import look_ahead
from .base import STAGES, Stage, StageSettings
from .context import RunData, StageContext
from .episodes import check_shots
from .fit_gates import fit_gates
from .followers import Followers
from .fused import use_fused, without_wrapper
from .grad_cache import refuse_batch_norm
from .guard import FiniteGuard
from .judges import ValidationJudges
from .known_student import known_student
from .loop_state import LoopState, adopt_options, copy_weights, load_weights, options_of
from .recovery import Recovery
from .sharding import Shards, refuse_to_shard
from .teacher_plan import build_cache, plan_teachers
from .trainable import parameters_of, train_only
from .training_step import TrainingStep
from .validate import validate_objectives, validate_student

logger = logging.getLogger(__name__)


@STAGES.register("train")
class TrainStage(Stage):
    """Train modules on weighted objectives.

    Args:
        settings: modules, objectives, optimizer, length; see the stage's keys in the config reference.
    """

    def __init__(self, settings: Injected[StageSettings]) -> None:
        super().__init__(settings)

    def run(self, context: StageContext, resume: Mapping[str, Any] | None = None) -> None:
        """Run the stage; with `resume`, continue from what `context.save` was given."""
        self.check(context.models, context.data)
        if self.idle:
            without_training(self.settings, context)
            return
        loop = self.make_loop(context, resume)
        try:
            loop.run()
        finally:
            loop.close()

    def make_loop(self, context: StageContext, resume: Mapping[str, Any] | None) -> TrainLoop:
        """Return the loop that runs the stage; other kinds override this."""
        return TrainLoop(self.settings, context, resume)

    def check(self, models: Models, data: RunData) -> None:
        """Refuse to train a gate by a signal that this kind of stage does not give, and to read episodes wrongly.

        Raises:
            ConfigError: the router's signal is `bilevel`, or an objective takes other rows for examples than the
                episodes have.
        """
        check_shots(self.settings, data)
        router = models.router
        routes = any(weighted.objective.routable for weighted in self.settings.objectives)
        if router is not None and router.signal == "bilevel" and "router" in self.settings.trains and routes:
            raise ConfigError(
                f"stage '{self.name}' would not train the router, whose signal is 'bilevel': use kind 'bilevel', "
                "another signal, or leave 'router' out of 'trains'"
            )


class TrainLoop:
    """One run of a stage; kinds of stages that do more in a step override its hooks."""

    def __init__(self, settings: StageSettings, context: StageContext, resume: Mapping[str, Any] | None) -> None:
        self.settings, self.context = settings, context
        self.memory = PeakMemory(context.device)
        self.modules = train_only(context.models, settings.trains, nn.ModuleList(settings.objectives))
        _tell_of_small_batches(settings)
        if settings.micro_batch is not None:
            refuse_batch_norm(context.models.student, f"stages.{settings.name}.")
        parameters = parameters_of(self.optimized().values())
        if not parameters:
            raise ConfigError(f"stage '{settings.name}' has nothing to train: 'trains' names no module with parameters")
        for module in [context.models.student, context.models.pool, context.models.router, *settings.objectives]:
            if module is not None:
                module.to(context.device)
        self.followers = Followers(context.models, settings, "student" in self.modules, restart=resume is None)
        context.models.pool.merge_equal()
        plan = plan_teachers(context.models, context.data, settings, context.cache)
        cache = build_cache(context, settings, plan)
        if resume is None:
            fit_gates(context, settings, cache)
        self.module = TrainingStep(
            context.models,
            settings.objectives,
            settings.transforms,
            plan.variants,
            plan.features,
            cache,
            settings.micro_batch,
            known_student(context, settings, "student" in self.modules),
        )
        self.ahead = look_ahead(context, settings, plan) if context.overlap and cache is None else None
        self.module.cache = cache if self.ahead is None else self.ahead
        self.batches = len(context.train_loader(settings.name, 0, split=settings.split))
        self.total_steps = settings.steps or math.ceil(self.batches / settings.accumulate) * (settings.epochs or 1)
        self.epochs = settings.epochs or math.ceil(self.total_steps / math.ceil(self.batches / settings.accumulate))
        self.shards = self.make_shards(resume)
        parameters = parameters_of(self.optimized().values())
        raw = use_fused(settings.optimizer(parameters))
        self.options = options_of(raw)
        self.scheduler = settings.scheduler(raw, self.total_steps) if settings.scheduler else None
        if self.shards is None:
            self.step_module, self.optimizer = context.accelerator.prepare(self.module, raw)
        else:
            self.step_module = context.accelerator.prepare_model(self.module, evaluation_mode=True)
            self.optimizer = context.accelerator.prepare_optimizer(raw)
        self.optimizer = without_wrapper(self.optimizer, context.accelerator)
        self.parameters = parameters
        self.ema: AveragedModel | None = None
        if settings.ema is not None and "student" in self.modules:
            average = get_ema_multi_avg_fn(settings.ema)
            self.ema = AveragedModel(context.models.student, multi_avg_fn=average, use_buffers=True)
        self.guard = FiniteGuard(deferred=None if context.nonfinite.policy == "raise" else False)
        self.state = LoopState()
        self.training_loss, self.validated = math.nan, ""
        self.started = time.monotonic()
        if resume is not None:
            self.load_state(resume)
        others = [context.models.router, nn.ModuleList(settings.objectives), self.ema, *self.followers.teachers]
        written = [*self.modules.values(), *others]
        present = [module for module in written if module is not None]
        self.recovery = Recovery(context.nonfinite, self.state, present, self.optimizers)

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the models."""
        scaler = self.context.accelerator.scaler
        return {
            "loop": self.state.state_dict() | {"seconds": self.seconds()},
            "optimizer": self.optimizer.state_dict(),
            "options": self.options,
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "objectives": nn.ModuleList(self.settings.objectives).state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.state = LoopState.from_state(state["loop"], self.context.device)
        if self.shards is None:
            self.optimizer.load_state_dict(state["optimizer"])
            nn.ModuleList(self.settings.objectives).load_state_dict(state["objectives"])
        else:
            self.shards.load_optimizer(self.optimizer, state["optimizer"], self.parameters)
        changed = adopt_options(self.optimizer.param_groups, self.options, state["options"])
        if self.scheduler is not None:
            if changed:
                raise CheckpointError(
                    f"stage '{self.settings.name}': {', '.join(changed)} can't change in the middle of a stage with a "
                    "scheduler; go on with the old settings"
                )
            self.scheduler.load_state_dict(state["scheduler"])
        if self.context.accelerator.scaler is not None:
            self.context.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def seconds(self) -> float:
        """Seconds spent in this stage, over all sessions."""
        return self.state.seconds + time.monotonic() - self.started

    def close(self) -> None:
        """Give the wrapped modules back."""
        self.context.progress.finish()
        self.context.accelerator.free_memory()

    def make_shards(self, resume: Mapping[str, Any] | None) -> Shards | None:
        """Share the trained models out over the processes, where `accelerate launch` asks for it."""
        if not sharding_asked_for():
            return None
        follows = bool(self.followers.teachers)
        refuse_to_shard(self.settings, type(self) is TrainLoop, self.modules.values(), follows)
        if resume is not None:
            nn.ModuleList(self.settings.objectives).load_state_dict(resume["objectives"])
        return Shards(self.context.models, self.modules, self.context.device)

    # -- hooks ---------------------------------------------------------------------------------------------------

    def optimized(self) -> dict[str, nn.Module]:
        """Return the modules whose parameters the stage's optimizer moves."""
        return self.modules

    def optimizers(self) -> list[Any]:
        """Return everything that moves parameters."""
        return [self.optimizer]

    def before_batch(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Do what comes before the gradients of a batch; return further loss terms for the log."""
        return {}

    # -- loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train epoch by epoch, then leave the best (or last) weights in the models."""
        self.recovery.saved()
        while self.state.epoch < self.epochs and not self.stops_early():
            self.run_epoch()
            self.end_epoch()
            if stop := self.context.stops(0):
                raise StoppedError(stop, f"{self.where()}, step {self.state.step}")
        self.finish()

    def run_epoch(self) -> None:
        """Run the batches of the epoch that are left."""
        settings, state, context = self.settings, self.state, self.context
        loader = context.train_loader(settings.name, state.epoch, state.batch, settings.split)
        context.progress.start(
            f"{context.phase}/{settings.name} {state.epoch + 1}/{self.epochs}", self.batches, state.batch
        )
        started, forwards = time.monotonic(), context.models.pool.forwards
        moved = (to_device(batch, context.device) for batch in loader)
        for batch in moved if self.ahead is None else self.ahead.batches(loader):
            if state.step >= self.total_steps:
                break
            stepped = self.run_batch(batch)
            now, ran = time.monotonic(), context.models.pool.forwards
            state.train_seconds, started = state.train_seconds + now - started, now
            state.teacher_forwards, forwards = state.teacher_forwards + ran - forwards, ran
            if not stepped or state.batch == self.batches:
                continue
            due = context.checkpoint_every
            stop = context.stops(state.step)
            if stop or (due and state.step % due == 0):
                self.save()
                started = time.monotonic()
            if stop:
                raise StoppedError(stop, f"{self.where()}, step {state.step}")

    def run_batch(self, batch: Batch) -> bool:
        """Add the gradients of one batch; step when enough are added, and tell whether."""
        settings, state, context = self.settings, self.state, self.context
        progress = Progress(state.epoch, state.step / max(1, self.total_steps))
        group = min(settings.accumulate, self.batches - state.batch // settings.accumulate * settings.accumulate)
        last = (state.batch + 1) % settings.accumulate == 0 or state.batch + 1 == self.batches
        quiet = contextlib.nullcontext() if last else context.accelerator.no_sync(self.step_module)
        if state.batch % settings.accumulate == 0:
            self.recovery.before()
        if rows_everywhere(batch) and not self.recovery.spoilt:
            try:
                with quiet:
                    self.add_gradients(batch, progress, group)
            except NonFiniteError as error:
                self.recovery.note(error)
        state.batch += 1
        if last:
            self.update(batch)
        if last and state.count and state.step % context.log_every == 0:
            self.record(progress)
        context.progress.advance()
        return last

    def add_gradients(self, batch: Batch, progress: Progress, group: int) -> None:
        """Add the gradients of one batch of a group, whose losses are averaged.

        Raises:
            NonFiniteError: the loss is no number.
        """
        further = self.before_batch(batch, progress)
        result = self.step_module(batch, progress)
        self.guard.check(self.module, result["loss"], batch, progress, self.where(), self.state.step)
        self.context.accelerator.backward(result["loss"] / group)
        self.state.add(result | {"terms": result["terms"] | further})

    def update(self, batch: Batch) -> None:
        """One optimizer step; `batch` is the last one of its gradients. A spoilt one changes nothing."""
        if self.context.accelerator.scaler is None and not self.recovery.spoilt:
            try:
                self.guard.check_gradients(self.modules, batch, self.where(), self.state.step)
            except NonFiniteError as error:
                self.recovery.note(error)
        if self.recovery.spoilt:
            self.recovery.undo()
            for module in self.modules.values():
                module.zero_grad()
        else:
            self.move()
        self.state.step += 1

    def move(self) -> None:
        """Move the parameters along the gradients."""
        if self.settings.clip_norm is not None:
            self.context.accelerator.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        skipped = self.context.accelerator.optimizer_step_was_skipped
        self.recovery.stepped(skipped)
        if self.scheduler is not None and not skipped:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.context.models.student)
        if not skipped:
            self.followers.follow()
        if "router" in self.modules and self.context.models.router is not None:
            self.context.models.router.after_step()

    def record(self, progress: Progress) -> None:
        """Write the means of the loss terms since the last record."""
        self.guard.flush(self.where())
        losses = self.state.take_means()
        self.training_loss = losses["total"]
        if "router" in self.modules and self.context.models.router is not None:
            self.context.models.router.warn_of_collapse(self.context.models.experts)
        weights = {
            type(w.objective).__name__ if w.name is None else w.name: w.weight_at(progress)
            for w in self.settings.objectives
        }
        lr = self.optimizer.param_groups[0]["lr"]
        self.context.progress.advance(0, f"loss {losses['total']:.4g}  {self.validated}")
        self.context.log(
            self.entry("train")
            | {"losses": losses, "weights": weights, "lr": lr, "seconds": self.seconds()}
            | self.recovery.counts()
        )

    def end_epoch(self) -> None:
        """Validate, keep the best, log, save."""
        state, context = self.state, self.context
        self.guard.flush(self.where())
        if state.count:
            self.record(Progress(state.epoch, state.step / max(1, self.total_steps)))
        if "router" in self.modules and context.models.router is not None:
            context.models.router.after_epoch()
        average_buffers(self.module)
        if self.ema is not None:
            average_buffers(self.ema)
        metrics = self.validate() or {"training loss": self.training_loss}
        place = f"{context.phase}/{self.settings.name} {state.epoch + 1}/{self.epochs}"
        monitored = [self.settings.monitor.metric] if self.settings.monitor else []
        usual = ["accuracy", "loss", "training loss", "retrieval_r1", "zero_shot_accuracy"]
        shown = [name for name in dict.fromkeys([*usual, *monitored]) if name in metrics] or [*metrics][:2]
        numbers = [f"{name} {metrics[name]:.3g}" for name in shown]
        self.validated = f"validation {numbers[0]}"
        context.progress.say("  ".join([place, *numbers, f"{self.seconds():.0f} s"]))
        self.log_routing()
        state.epoch, state.batch, state.shares = state.epoch + 1, 0, {}
        self.save()

    @cached_property
    def judges(self) -> ValidationJudges:
        """The teachers whose order of hard negatives validation compares."""
        return ValidationJudges(self.context, self.settings)

    def validate(self) -> dict[str, Any]:
        """Measure what the stage trains; remember the best epoch."""
        monitor, context, state = self.settings.monitor, self.context, self.state
        metrics: dict[str, Any] = {}
        split = monitor.split if monitor else "val"
        if "student" in self.modules and split in context.data.splits:
            metrics = _headline(validate_student(context, self.averaged(), split, self.judges.on(split)))
        if monitor is not None and monitor.metric not in metrics:
            progress = Progress(state.epoch, state.step / max(1, self.total_steps))
            losses = validate_objectives(context, self.measured(), split, progress)
            if monitor.metric not in losses:
                known = ", ".join(sorted({*metrics, *losses}))
                raise ConfigError(
                    f"stage '{self.settings.name}': monitor.metric '{monitor.metric}' is not measured; known: {known}"
                )
            metrics |= {name: value for name, value in losses.items() if "/" not in name}
        if metrics:
            context.log(self.entry("validation") | {"metrics": metrics})
        if monitor is not None:
            value = float(metrics[monitor.metric])
            state.stale += 1
            if not math.isnan(value) and monitor.better(value, state.best_value):
                state.best_value, state.best_epoch, state.stale = value, state.epoch, 0
                state.best_weights = copy_weights(self.kept())
        return metrics

    def log_routing(self) -> None:
        """Write which share of the rows each teacher variant taught in the epoch."""
        if not self.state.shares:
            return
        sums = {name: sum_over_processes(value.clone()) for name, value in self.state.shares.items()}
        shares, rows = sums.pop("shares"), sums.pop("rows")
        names, values = self.context.models.experts, (shares / rows).tolist()
        routed = {"shares": dict(zip(names, values, strict=True))}
        self.context.log(self.entry("routing") | routed | {name: float(sums[name] / rows) for name in sorted(sums)})

    def finish(self) -> None:
        """Leave the kept weights in the models and write the stage's summary."""
        state = self.state
        if self.shards is not None:
            self.shards.gather()
        if state.best_weights is not None:
            load_weights(self.modules, state.best_weights)
        elif self.ema is not None:
            self.context.models.student.load_state_dict(self.ema.module.state_dict())
        self.context.log(
            self.entry("stage_end")
            | {"epochs": state.epoch, "steps": state.step, "seconds": self.seconds(), "best_epoch": state.best_epoch}
            | {"train_seconds": state.train_seconds, "teacher_forwards": state.teacher_forwards}
            | self.memory.record()
            | self.recovery.counts()
        )

    # -- helpers -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint."""
        self.guard.flush(self.where())
        self.recovery.saved()
        self.context.save(whole(self.state_dict()))

    def averaged(self) -> Model:
        """Return the student that is validated and kept: its moving average if there is one."""
        student = self.ema.module if self.ema is not None else self.context.models.student
        assert isinstance(student, Model)
        return student

    def measured(self) -> TrainingStep:
        """Return the step whose losses are validated: with the student's moving average if there is one."""
        if self.ema is None:
            return self.module
        models = replace(self.context.models, student=self.averaged())
        return TrainingStep(models, self.settings.objectives, (), self.module.variants, self.module.features)

    def kept(self) -> dict[str, nn.Module]:
        """Return the modules whose weights a best epoch keeps."""
        return {**self.modules, "student": self.averaged()} if "student" in self.modules else self.modules

    def stops_early(self) -> bool:
        """Tell whether the monitored metric has not improved for too long."""
        patience = self.settings.patience
        return patience is not None and self.state.stale >= patience

    def where(self) -> str:
        """Return the place for messages."""
        return f"{self.context.phase}, stage '{self.settings.name}', epoch {self.state.epoch}"

    def entry(self, kind: str) -> dict[str, Any]:
        """Return the head of a record."""
        place = {"phase": self.context.phase, "stage": self.settings.name}
        return {"type": kind, **place, "epoch": self.state.epoch, "step": self.state.step}


def without_training(settings: StageSettings, context: StageContext) -> None:
    """Freeze all models and write the summary of a stage that trains nothing."""
    train_only(context.models, (), nn.ModuleList())
    done = {"epoch": 0, "step": 0, "epochs": 0, "steps": 0, "seconds": 0.0, "best_epoch": None}
    forwards = {"train_seconds": 0.0, "teacher_forwards": 0}
    place = {"type": "stage_end", "phase": context.phase, "stage": settings.name}
    context.log(place | done | forwards | PeakMemory(context.device).record())


def _tell_of_small_batches(settings: StageSettings) -> None:
    """Say that adding up gradients is not a larger batch for losses that compare its rows."""
    names = [w.name or type(w.objective).__name__ for w in settings.objectives if w.objective.compares_rows]
    if settings.accumulate > 1 and names:
        logger.warning(
            "stage '%s': %s compare the rows of a batch, so %d batches whose gradients are added up are not one large "
            "batch; use a larger batch_size with micro_batch for that",
            *(settings.name, ", ".join(names), settings.accumulate),
        )


def _headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if isinstance(value, int | float) and key != "n"}
