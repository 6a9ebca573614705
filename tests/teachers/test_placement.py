"""Where teachers live, how they are compiled and filled up: the signals are the same."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.objectives import KD
from moekd.teachers import Teacher, TeacherPool
from moekd.teachers.pool import filled_up

from ..builders import Vectors, hook_count, make_batch, make_mask, randomise, snapshot

META = torch.device("meta")


def teacher(name: str = "a", seed: int = 3, dtype: torch.dtype = torch.float32, **runs: Any) -> Teacher:
    """Return a teacher on vectors."""
    return Teacher(randomise(Vectors(10), seed), ["right"], ["fc1"], dtype, name).settled(**runs)


def on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch on a device."""
    return {key: value.to(device) for key, value in batch.items()}


def test_rotated_teachers_visit_one_at_a_time() -> None:
    pool = TeacherPool({name: teacher(name, seed, place="rotated") for seed, name in enumerate("abc")})
    before, seen = snapshot(pool), []

    def where(module: nn.Module, arguments: Any, output: Tensor) -> None:
        seen.append({name: str(pool.teacher(name).device) for name in pool.names})

    handles = [pool.teacher(name).network.out.register_forward_hook(where) for name in pool.names]
    said = pool.to(META)(on(META, make_batch()))
    assert seen == [{n: "meta" if n == here else "cpu" for n in pool.names} for here in pool.names]
    assert said.logits.device == META
    assert said.logits.shape == (6, 3, 4)
    for handle in handles:
        handle.remove()
    after = snapshot(pool)
    assert all(torch.equal(after[key], before[key]) for key in before), "the weights are back, bit for bit"
    assert all(isinstance(p, nn.Parameter) and p.device.type == "cpu" for p in pool.parameters())


def test_a_failing_forward_brings_the_weights_back() -> None:
    pool = TeacherPool({"a": teacher(place="rotated")})
    with pytest.raises(RuntimeError):
        pool({"right": torch.zeros(2, 3, device=META), "id": torch.zeros(2, device=META)})
    assert pool.teacher("a").device == torch.device("cpu")


def test_a_rotated_teacher_that_trains_goes_along_and_comes_back() -> None:
    one = teacher(place="rotated")
    one.thaw()
    assert one.to(META).device == META
    one = teacher(place="rotated")
    assert one.to(META).device == torch.device("cpu")
    assert one.to(torch.float64).network.out.weight.dtype == torch.float64, "casts are not moves"


def test_a_teacher_with_a_device_stays_there_with_its_masks() -> None:
    pool = TeacherPool({"a": teacher("a", place="cpu"), "b": teacher("b", 4)})
    for name in pool.names:
        pool.specialise(name, "fc1", make_mask())
    batch, before = make_batch(), snapshot(pool.teacher("a"))
    expected = pool(batch, ["a", "a/fc1"]).logits
    pool.to(META)
    assert {name: str(pool.teacher(name).device) for name in pool.names} == {"a": "cpu", "b": "meta"}
    assert next(pool.mask("a/fc1").parameters()).device.type == "cpu"
    assert next(pool.mask("b/fc1").parameters()).device.type == "meta"
    assert all(torch.equal(value, before[key]) for key, value in pool.teacher("a").state_dict().items())
    assert torch.equal(pool(batch, ["a", "a/fc1"]).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_and_a_loss_in_full(dtype: torch.dtype) -> None:
    half, full, batch = teacher(dtype=dtype), teacher(), make_batch()
    assert {p.dtype for p in half.parameters()} == {dtype}
    said, exact = half(batch), full(batch)
    assert said.logits.dtype == torch.float32
    torch.testing.assert_close(said.logits, exact.logits, rtol=0.05, atol=0.05)
    loss = KD().pair(full(make_batch(seed=1)), said, batch)
    assert loss.dtype == torch.float32


def test_compiled_is_plain_and_copies_start_anew() -> None:
    one, batch = teacher(compiles=True), make_batch(16)
    assert one.compiled is not None
    one.compiled.backend = "eager"  # traced all the same, without a C++ compiler
    pool, plain = TeacherPool({"a": one}), TeacherPool({"a": teacher()})
    names = set(one.state_dict())
    torch.testing.assert_close(pool(batch).logits, plain(batch).logits)
    assert one.compiled.calls == 1
    said = pool(batch, features=True)["a"]
    torch.testing.assert_close(said.features["fc1"], plain(batch, features=True)["a"].features["fc1"])
    assert one.compiled.calls == 1, "taps are read: the network runs as it is"
    assert set(one.state_dict()) == names
    assert hook_count(one) == 0
    twin = copy.deepcopy(one)
    torch.testing.assert_close(TeacherPool({"a": twin})(batch).logits, plain(batch).logits)


def test_a_compiler_that_fails_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler here")

    one, batch = teacher("slow", compiles=True), make_batch(16)
    assert one.compiled is not None
    one.compiled.backend = broken
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            said = TeacherPool({"slow": one})(batch)
    assert torch.equal(said.logits, TeacherPool({"slow": teacher()})(batch).logits)
    assert caplog.text.count("teacher 'slow' runs uncompiled: torch.compile failed") == 1
    assert "no compiler here" in caplog.text


def test_sizes_are_few_and_little_is_wasted() -> None:
    sizes = {n: len(filled_up(torch.arange(n))) for n in range(1, 1025)}
    assert all(n <= size for n, size in sizes.items())
    assert all(size <= 1.25 * n for n, size in sizes.items() if n >= 32)
    assert len(set(sizes.values())) <= 32
    assert filled_up(torch.tensor([5, 7])).tolist() == [5, 7, 5, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("masked", [True, False])
def test_filled_up_rows_say_the_same(masked: bool) -> None:
    pools = [TeacherPool({"a": teacher(pads=pads), "b": teacher("b", 4, pads=pads)}) for pads in (True, False)]
    shapes: list[int] = []
    for pool in pools:
        if masked:
            pool.specialise("a", "fc1", make_mask())
    pools[0].teacher("a").network.register_forward_pre_hook(lambda m, args: shapes.append(len(args[0])))
    batch = make_batch(20)
    rows = {name: torch.arange(2, 15) for name in pools[0].experts}
    padded, plain = (pool(batch, rows=rows) for pool in pools)
    for name in plain:
        torch.testing.assert_close(padded[name].logits, plain[name].logits, rtol=1e-5, atol=1e-6)
        assert len(padded[name].logits) == 13
    assert shapes[-1] == 16
