"""Stages that train masks: entered teachers and a cached student against whole live forwards."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.cache import Table
from moekd.networks import NETWORKS
from moekd.registry import Injected
from moekd.stages.mask_source import MaskSource

from ..builders import make_batch, make_pool
from ..engine.tiny import FULL, full, train
from .builders import tables
from .runs import farthest

VECTORS, MAPS = FULL["teachers"], {"kind": "small_cnn", "inputs": ["image"], "in_channels": 1, "channels": [8, 6]}


def recipe(place: str = "auto", teachers: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a recipe that trains masks and nothing else."""
    stage = FULL["stages"][1] | {"cache": place}
    masks = {"kind": "feature_attention", "hidden_factor": 2, "heads": 1}
    return full(
        **{"teachers": teachers or VECTORS, "stages": [stage], "masks": masks, "baselines": {}, "router": None}
        | changes
    )


def ran(raw: dict[str, Any], folder: Path, log: pytest.LogCaptureFixture) -> tuple[Any, str]:
    """Train, and return the run and what it said about the stage."""
    log.clear()
    with log.at_level(logging.INFO):
        finished = train(raw, folder)
    return finished, "\n".join(record.getMessage() for record in log.records if "specialise" in record.getMessage())


def test_entered_is_live(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live, said = ran(recipe("off"), tmp_path / "off", caplog)
    assert "teachers run live: switched off" in said
    entered, said = ran(recipe(), tmp_path / "auto", caplog)
    words = "3 masks train; their teachers are entered at the taps; activations of 2 teachers cached in memory, 0.0 MB"
    assert words in said
    assert "signals of the frozen student cached in memory" in said
    assert live.records("stage_end")[0]["teacher_forwards"] > 0
    assert entered.records("stage_end")[0]["teacher_forwards"] == 0
    assert farthest(live, entered) < 1e-6
    assert entered.records("validation")[-1]["metrics"] == pytest.approx(live.records("validation")[-1]["metrics"])


@pytest.mark.parametrize("kind", ["feature_attention", "factorised_attention"])
def test_masks_of_maps_with_and_without_room_for_them(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teachers = {"maps": MAPS | {"taps": ["conv1", "norm2"]}, "right": FULL["teachers"]["right"]}
    masks = {"kind": kind, "rank": 3} if kind == "factorised_attention" else {"kind": kind, "heads": 1}
    live, _ = ran(recipe("off", teachers, masks=masks), tmp_path / "off", caplog)
    kept, said = ran(recipe("auto", teachers, masks=masks), tmp_path / "auto", caplog)
    assert "activations of 2 teachers cached" in said
    limits = {"memory_gb": 1e-5, "disk_gb": 0}
    cramped, said = ran(recipe("auto", teachers, masks=masks, cache=limits), tmp_path / "cramped", caplog)
    assert "activations of 1 teachers cached in memory" in said
    assert "'maps' runs up to its taps (0.00 GB of activations)" in said
    assert cramped.records("stage_end")[0]["teacher_forwards"] == cramped.records("stage_end")[0]["steps"]
    assert farthest(live, kept) < 1e-6
    assert farthest(live, cramped) < 1e-6


def test_what_is_read_of_maps_goes_to_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A mask that reads means does not need the whole map, and the network needs what ReLU and pooling leave of it."""
    teachers = {"maps": MAPS | {"taps": ["conv1"], "norm": "none"}, "right": FULL["teachers"]["right"]}
    masks = {"kind": "factorised_attention", "rank": 3}
    live, _ = ran(recipe("off", teachers, masks=masks), tmp_path / "off", caplog)
    cache = {"memory_gb": 1e-5, "folder": str(tmp_path / "signals")}
    mapped, said = ran(recipe("auto", teachers, masks=masks, cache=cache), tmp_path / "mapped", caplog)
    assert "activations of 1 teachers cached in memory" in said
    assert "activations of 1 teachers cached on disk" in said
    stored = {Table.open(folder).identity.signal for folder in tables(tmp_path / "signals")}
    assert {"features/conv1 mean", "features/relu1 BHWC"} == {name for name in stored if "1 " in name}
    assert mapped.records("stage_end")[0]["teacher_forwards"] == 0
    assert farthest(live, mapped) < 1e-6
    _, said = ran(recipe("auto", teachers, cache=cache), tmp_path / "whole", caplog)
    assert "'maps' runs up to its taps" in said


def test_without_any_room_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live, _ = ran(recipe("off"), tmp_path / "off", caplog)
    cramped, said = ran(recipe(cache={"memory_gb": 0, "disk_gb": 0}), tmp_path / "cramped", caplog)
    assert "the frozen student runs live: 0.00 GB of signals" in said
    assert "cached" not in said
    assert cramped.records("stage_end")[0]["teacher_forwards"] == 2 * cramped.records("stage_end")[0]["steps"]
    assert farthest(live, cramped) < 1e-6


def test_data_that_change_are_not_cached_but_run_without_gradients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = FULL["data"] | {"augmented": True}
    live, _ = ran(recipe("off", data=data), tmp_path / "off", caplog)
    entered, said = ran(recipe("auto", data=data), tmp_path / "auto", caplog)
    assert "activations at the taps are not kept: inputs change from epoch to epoch" in said
    assert "student" not in said
    assert farthest(live, entered) < 1e-6


class PassesBy(nn.Module):
    """A network with a branch beside its tap `left`."""

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__()
        self.left, self.right, self.fc = nn.Linear(8, 12), nn.Linear(10, 12), nn.Linear(12, num_classes)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        joined: Tensor = self.fc(self.left(left) + self.right(right))
        return joined


def test_a_teacher_that_can_not_be_entered_runs_in_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS._members, "passes_by", PassesBy)
    by = {"kind": "passes_by", "inputs": ["left", "right"], "taps": ["left"]}
    alone, said = ran(recipe("auto", {"by": by}), tmp_path / "alone", caplog)
    assert "teacher 'by' runs in full, for it can't be entered at its taps (RuntimeError: " in said
    assert "teachers run live: teachers or masks train in this stage" in said
    teachers = {"by": by, "right": FULL["teachers"]["right"]}
    both, said = ran(recipe("auto", teachers), tmp_path / "both", caplog)
    assert "1 masks train; their teachers are entered at the taps; activations of 1 teachers cached" in said
    live, _ = ran(recipe("off", teachers), tmp_path / "off", caplog)
    assert both.records("stage_end")[0]["teacher_forwards"] == both.records("stage_end")[0]["steps"]
    assert farthest(live, both) < 1e-6
    assert alone.records("stage_end")[0]["teacher_forwards"] > 0


def test_what_is_read_of_plain_teachers_is_kept_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    to_plain = {"kind": "kd", "teacher": "both"}
    changes = {"stages": [FULL["stages"][1] | {"objectives": ["kd_to_student", to_plain], "monitor": None}]}
    off = {"stages": [changes["stages"][0] | {"cache": "off"}]}
    live, _ = ran(recipe(**off), tmp_path / "off", caplog)
    entered, said = ran(recipe(**changes), tmp_path / "auto", caplog)
    assert "activations of 2 teachers cached" in said
    assert entered.records("stage_end")[0]["teacher_forwards"] == 0
    assert farthest(live, entered) < 1e-6


def test_signals_go_through_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = {"folder": str(tmp_path / "signals")}
    first, _ = ran(recipe(cache=cache), tmp_path / "first", caplog)
    stored = {Table.open(folder).identity.signal for folder in tables(tmp_path / "signals")}
    assert {"features/fc1", "features/concat_identity"} <= stored
    again, _ = ran(recipe(cache=cache), tmp_path / "again", caplog)
    assert farthest(first, again) == 0


def test_frozen_networks_get_no_gradient_and_hold_no_graph() -> None:
    """Of all tensors that autograd keeps for the backward pass none belongs to a forward below a tap."""
    pool, batch = make_pool("fusion", "maps"), make_batch()
    pool.masks.requires_grad_(True)
    pool.masks_train = True
    source = MaskSource(pool, pool.specialised, pool.names, features=False)
    inputs = {batch[field].data_ptr() for name in pool.names for field in pool.teacher(name).inputs}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        signals = source(batch)
    assert not {tensor.data_ptr() for tensor in kept} & inputs
    for name in pool.specialised:
        signals[name].logits.square().sum().backward(retain_graph=True)
    assert all(p.grad is None and not p.requires_grad for p in pool.teachers.parameters())
    assert all(p.grad is not None for p in pool.masks.parameters())
    assert not any(module._forward_hooks for module in pool.modules())
