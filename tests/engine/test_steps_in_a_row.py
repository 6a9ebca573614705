"""Many steps in a row: no wait for the device between two records, no growing memory, no hook left behind."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from moekd.program import Program
from moekd.stages.train import TrainLoop
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from ..builders import hook_count
from .test_distributed import ROUTED, TEACHERS
from .tiny import CROSS_ENTROPY, FULL, MLP, recipe_of, simple

#: Operators for whose result the host waits, on a device.
WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal", "is_nonzero", "bincount")
FITNETS = {"kind": "fitnets", "student_tap": "fc1", "teacher_tap": "fc1"}


class Waits(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        picks = [index for index in arguments[1] if index is not None] if name == "index" else []
        if name in WAITS or any(index.dtype == torch.bool for index in picks):
            self.found[name] += 1
        return function(*arguments, **(options or {}))


def recipe(objectives: list[Any], **stage: Any) -> dict[str, Any]:
    """Return a recipe of one stage with a router, two teachers and batches of the same size."""
    return simple(
        {"trains": ["student", "router"], "objectives": objectives, "epochs": 1000} | stage,
        student=MLP | {"taps": ["fc1"]},
        data={"kind": "tiny", "batch_size": 10, "rows": 40, "labels": 24},
        teachers=TEACHERS,
        router={"gate": "instance", "selection": "top_k", "balance": ["kl_to_uniform"]},
        trainer=FULL["trainer"] | {"log_every": 10**6, "checkpoint_every": None},
    )


@pytest.fixture
def loops(tmp_path: Path) -> Any:
    """Return a maker of loops at the start of a recipe's stage, as a trainer makes them."""

    def make(raw: dict[str, Any]) -> tuple[Program, TrainLoop]:
        program = recipe_of(raw).build()
        trainer = Trainer(program, RunFolder(tmp_path, f"run{len(list(tmp_path.iterdir()))}"), quiet=True)
        stage = program.phases[0].stages[0]
        return program, TrainLoop(stage.settings, trainer.context(program.phases[0]), None)

    return make


def epochs(loop: TrainLoop, count: int) -> None:
    """Run epochs without what comes between them."""
    for _ in range(count):
        loop.run_epoch()
        loop.state.epoch, loop.state.batch = loop.state.epoch + 1, 0


def as_on_a_gpu(loop: TrainLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check as on a GPU, and hide what reads nothing but the host's memory there: loader, counters of steps."""

    def unseen(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with _disable_current_modes():
                return function(*arguments)

        return call

    loop.guard.deferred = True
    monkeypatch.setattr(torch, "equal", lambda a, b: True)  # a look-up in the cache does not check the ids
    monkeypatch.setattr(loop.optimizer, "step", unseen(loop.optimizer.step))
    loader = loop.context.train_loader
    monkeypatch.setattr(loop.context, "train_loader", unseen(lambda *arguments: list(loader(*arguments))))
    if loop.ema is not None:
        assert loop.ema.n_averaged.device.type == "cpu"
        monkeypatch.setattr(loop.ema, "update_parameters", unseen(loop.ema.update_parameters))


@pytest.mark.parametrize(
    "objectives",
    [[CROSS_ENTROPY, ROUTED], [CROSS_ENTROPY, "kd", FITNETS]],
    ids=["routed", "mean and activations"],
)
@pytest.mark.parametrize("place", ["memory", "off"])
def test_steps_between_records_do_not_wait(
    objectives: list[Any], place: str, loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loop = loops(recipe(objectives, cache=place, clip_norm=1.0, ema=0.9))
    as_on_a_gpu(loop, monkeypatch)
    loop.module.variants = loop.module.variants or list(loop.context.models.pool.experts)
    epochs(loop, 2)
    with Waits() as waits:
        epochs(loop, 3)
    assert waits.found == {}


def test_rows_first_waits_once_for_the_sizes(loops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, loop = loops(recipe([ROUTED], cache="off"))
    as_on_a_gpu(loop, monkeypatch)
    epochs(loop, 1)
    with Waits() as waits:
        epochs(loop, 2)
    assert waits.found == {"nonzero": 2 * loop.batches}


@pytest.mark.parametrize(("place", "steps"), [("memory", 600), ("off", 2000)])
def test_many_steps_leave_nothing_behind(place: str, steps: int, loops: Any) -> None:
    program, loop = loops(recipe([CROSS_ENTROPY, ROUTED, FITNETS], cache=place))
    modules: list[nn.Module] = [program.pool, program.phases[0].student, loop.module]
    hooks = [hook_count(module) for module in modules]
    epochs(loop, steps // 16)
    objects, memory = live_tensors(), psutil.Process().memory_info().rss
    epochs(loop, steps // 4 - steps // 16)
    assert steps - 4 <= loop.state.step <= steps
    assert live_tensors() <= objects + 5
    assert psutil.Process().memory_info().rss - memory < 8 * 2**20
    assert [hook_count(module) for module in modules] == hooks
    assert all(parameter.grad is None and parameter.grad_fn is None for parameter in program.pool.parameters())
    assert not any(buffer.requires_grad for buffer in program.pool.buffers())


def live_tensors() -> int:
    """Return the number of tensors that are alive."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_frozen_teachers_are_no_matter_of_the_processes(loops: Any) -> None:
    _, loop = loops(recipe([CROSS_ENTROPY, ROUTED], cache="off"))
    step = loop.module
    ignored = set(step._ddp_params_and_buffers_to_ignore)
    known = dict((*step.named_parameters(), *step.named_buffers()))
    assert ignored <= known.keys()
    assert not any(known[name].requires_grad for name in ignored)
    assert {name for name in known if name.startswith("pool.teachers.")} == ignored
