"""The performance benchmark: its statistics, its baseline arm against the engine, and its tables."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from moekd.benchmarks import run_performance
from moekd.benchmarks.performance_baseline import BaselineProcess
from moekd.benchmarks.performance_engine import EngineArm, Shapes, make_data, make_pool, plain_loop, plain_rows
from moekd.benchmarks.performance_overhead import Bench, overhead, routing
from moekd.benchmarks.performance_published import AttentionMask, Image, PlainLoop, published_teachers
from moekd.benchmarks.performance_report import met
from moekd.benchmarks.performance_timing import Clock, Spent, Times, interval, take_turns
from moekd.errors import ConfigError, MoekdError
from moekd.model import Model
from moekd.networks.small_cnn import SmallCnn
from moekd.objectives import KD, kd_kl
from moekd.teachers import FeatureAttentionMask, TeacherPool

TAPS = {"pool": 12, "fc1": 6}


def network() -> SmallCnn:
    return SmallCnn(5, channels=(6, 12), hidden=6)


TINY = Shapes("tiny, 8 rows", {"image": (3, 8, 8)}, 5, 8, 2, network, network, TAPS, hidden_factor=2)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(Accelerator(cpu=True), quick=True)


def test_arms_take_turns_and_each_round_counts_its_steps() -> None:
    order: list[str] = []

    def arm(name: str, steps: int):
        def run() -> int:
            order.append(name)
            return steps

        return run

    times = take_turns({"a": arm("a", 1), "b": arm("b", 4)}, 3, Clock(torch.device("cpu")))
    assert {name: len(values) for name, values in times.rounds.items()} == {"a": 3, "b": 3}
    assert sorted("".join(order[i : i + 2]) for i in range(0, 8, 2)) == ["ab", "ab", "ba", "ba"]


def test_ratios_are_of_the_rounds_in_pairs() -> None:
    times = Times({"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 4.0]})
    assert times.ratio("slow", "fast") == (2.0, 1.0, 3.0)
    assert times.combined(lambda t: t["slow"] - t["fast"]) == (1.0, 0.0, 20.0)


def test_the_interval_of_a_median_holds_it_in_95_percent() -> None:
    rng = torch.Generator().manual_seed(0)
    found = [interval(torch.randn(15, generator=rng).tolist()) for _ in range(400)]
    inside = sum(low <= 0 <= high for _, low, high in found) / len(found)
    assert 0.93 < inside <= 1
    assert interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert found[0].high - found[0].low < 4


def test_targets_are_read_from_the_table() -> None:
    assert [met("at most 1.10", 1.1), met("at most 1.10", 1.2), met("at least 3", 3.5), met("", 1.0)] == [
        "yes",
        "no",
        "yes",
        "",
    ]
    assert met("at most 3 (only at steps of 200 ms)", 9.0) == ""


def same_mask(plain: AttentionMask, mask: FeatureAttentionMask) -> None:
    names = {"attention": "mha", "score": "fc"}
    state = {".".join([names.get(part, part) for part in key.split(".")]): v for key, v in plain.state_dict().items()}
    mask.load_state_dict(state)


def matched() -> tuple[PlainLoop, TeacherPool]:
    """Return the published loop and a pool with the same teachers and masks, which stack as they do there."""
    torch.manual_seed(0)
    loop, pool = plain_loop(TINY, 4, torch.device("cpu"), torch.no_grad), make_pool(TINY, 4)
    pool.mask_stacking = "cumulative"
    for index, teacher in enumerate(loop.teachers):
        teacher.network.eval()
        pool.teacher(f"t{index}").network.load_state_dict(teacher.network.state_dict())
        for tap, mask in teacher.masks.items():
            own = pool.mask(f"t{index}/{tap}")
            assert isinstance(mask, AttentionMask)
            assert isinstance(own, FeatureAttentionMask)
            same_mask(mask, own)
    return loop, pool


def test_the_published_loop_computes_what_the_engine_does() -> None:
    loop, pool = matched()
    batch = next(loop.batches(plain_rows(TINY), 8))
    said = pool(batch)
    for index, teacher in enumerate(loop.teachers):
        handles = []
        for tap in teacher.masks:
            handles.append(teacher.hook(tap))
            with torch.no_grad():
                logits = teacher(batch)
            torch.testing.assert_close(logits, said[f"t{index}/{tap}"].logits, rtol=1e-5, atol=1e-5)
        for handle in handles:
            handle.remove()


def test_the_published_distance_is_ours() -> None:
    from moekd.benchmarks.performance_published import distance

    a, b = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(distance(a, b), kd_kl(a, b, KD().temperature).mean())


def test_the_published_stage_3_takes_the_engines_step() -> None:
    torch.manual_seed(0)
    loop, pool = matched()
    loop.autocast = Accelerator(cpu=True).autocast
    arm = EngineArm("distill", network(), pool, make_data(TINY, 8), Accelerator(cpu=True), "off")
    ours = arm.models.student.network
    ours.load_state_dict(loop.student.state_dict())
    router = arm.models.router
    assert router is not None
    router.balance[0].normalize_by_experts = True  # type: ignore[union-attr]
    gate = loop.gate.state_dict()
    router.gate.load_state_dict({f"fc{int(key[0]) + 1}{key[1:]}": value for key, value in gate.items()})
    arm()
    batch = make_data(TINY, 8).split("train").__getitems__(list(range(8)))
    loop.distill(batch)
    for (name, mine), theirs in zip(ours.named_parameters(), loop.student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6, msg=name)


def test_the_published_networks_have_their_sizes() -> None:
    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    teachers = published_teachers()
    assert size(Image()) == 61_706
    assert [size(teacher.network) for teacher in teachers] == [1_809_752, 343_562]
    masks = [size(mask) for teacher in teachers for mask in teacher.masks.values()]
    assert masks == [106_030_486, 13_185_166, 133_351, 1_074_240]


def test_all_stages_of_the_published_loop_run_and_leave_no_hooks() -> None:
    loop = plain_loop(TINY, 4, torch.device("cpu"), Accelerator(cpu=True).autocast)
    before = {k: v.clone() for k, v in loop.student.state_dict().items()}
    for stage in ("alone", "cotrain", "specialise", "distill"):
        assert loop.epoch(stage, plain_rows(TINY), 8) == 2
    assert not torch.equal(before["fc2.weight"], loop.student.state_dict()["fc2.weight"])
    assert not [m for t in loop.teachers for m in t.network.modules() if m._forward_hooks]
    assert int(loop.counts.sum()) == 16


def test_the_published_loop_runs_in_a_process_of_its_own() -> None:
    with BaselineProcess("no", 2) as process:
        alone = process.epochs("alone")
        times = take_turns({"theirs": alone, "ours": lambda: Spent(2, 5.0)}, 2, Clock(torch.device("cpu")))
        assert times.rounds["ours"] == [2.5, 2.5]
        assert all(0 < seconds < 60 for seconds in times.rounds["theirs"])
        process.process.kill()
        with pytest.raises(MoekdError, match="published loop ended with exit code -9"):
            alone()
    assert process.process.poll() is not None


def test_overhead_and_routing_say_every_number_once(bench: Bench) -> None:
    rows = [*overhead(bench, {"smallest": TINY}), *routing(bench, TINY.short(16))]
    assert len({(row["case"], row["arm"], row["measure"]) for row in rows}) == len(rows)
    arms = {row["arm"] for row in rows}
    assert {"cached", "live shared", "live routed", "every variant in full", "routed, one of four"} <= arms
    assert {row["measure"] for row in rows if row["arm"] == "cached"} == {"O(1)", "O(4)", "step of T = 4 over T = 1"}


def test_the_live_arms_run_what_they_say() -> None:
    accelerator = Accelerator(cpu=True)
    routed = EngineArm("distill", network(), make_pool(TINY, 2), make_data(TINY), accelerator, "off")
    cached = EngineArm("distill", network(), make_pool(TINY, 2), make_data(TINY), accelerator, "memory")
    assert routed.loop.module.variants == []
    forwards = cached.models.pool.forwards
    assert (routed(), cached()) == (2, 2)
    assert cached.models.pool.forwards == forwards
    assert isinstance(routed.models.student, Model)


def test_tables_are_written_and_kept_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run_performance(["cache"], quick=True, output=tmp_path)
    assert "load" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("Made by `moekd benchmark performance --part cache --quick`")
    assert "| top_k | size of a sample |" in text
    with open(tmp_path / "performance.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"cache"}
    assert all(float(row["value"]) > 0 for row in rows)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="no part 'speed'; parts: overhead, routing"):
        run_performance(["speed"])
    with pytest.raises(ConfigError, match="found tpu and no"):
        run_performance(device="tpu")
