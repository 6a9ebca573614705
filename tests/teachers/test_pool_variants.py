"""Variants of one forward equal variants run one by one, whatever the network and the way of sharing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import DataError, ModelError
from moekd.teachers import Teacher, TeacherPool

from ..builders import TAPS, Ones, hook_count, make_batch, make_mask, make_pool, make_teacher

#: Logits are about 10 in size, so this is about 1e-6 of their size.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def by_hand(pool: TeacherPool, batch: dict, variants: Sequence[str]) -> Tensor:
    """Run a teacher once with the masks of the given variants at their taps, by plain forward hooks."""
    teacher, handles = pool.teacher(pool.variant(variants[0]).teacher), []
    for name in variants:
        module = teacher.network.get_submodule(pool.variant(name).tap or "")
        handles.append(module.register_forward_hook(lambda m, a, out, name=name: pool.mask(name)(out) * out))
    logits = teacher(batch).logits
    for handle in handles:
        handle.remove()
    assert logits is not None
    return logits


@pytest.mark.parametrize("sharing", ["auto", "prefix", "replicate"])
@pytest.mark.parametrize("kind", ["fusion", "vectors", "maps"])
def test_independent_masks(kind: str, sharing: str) -> None:
    pool, batch = make_pool(kind, sharing=sharing), make_batch()
    signals = pool(batch)
    assert signals.names == [f"{kind}/{tap}" for tap in TAPS[kind]]
    for name in signals:
        torch.testing.assert_close(signals[name].logits, by_hand(pool, batch, [name]), **CLOSE)
    first, second = (signals[name].logits for name in signals)
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("sharing", ["auto", "prefix", "replicate"])
@pytest.mark.parametrize("kind", ["fusion", "vectors", "maps"])
def test_cumulative_masks(kind: str, sharing: str) -> None:
    pool, batch = make_pool(kind, sharing=sharing, mask_stacking="cumulative"), make_batch()
    first, second = pool.specialised
    signals = pool(batch)
    torch.testing.assert_close(signals[first].logits, by_hand(pool, batch, [first]), **CLOSE)
    torch.testing.assert_close(signals[second].logits, by_hand(pool, batch, [first, second]), **CLOSE)
    torch.testing.assert_close(pool(batch, [second])[second].logits, signals[second].logits, **CLOSE)
    assert (signals[second].logits - by_hand(pool, batch, [second])).abs().max() > 1e-2


@pytest.mark.parametrize("sharing", ["auto", "replicate"])
@pytest.mark.parametrize("stacking", ["independent", "cumulative"])
def test_masks_added_against_the_order_of_the_forward(stacking: str, sharing: str) -> None:
    pool, batch = TeacherPool({"t": make_teacher("vectors", "t")}, stacking, sharing), make_batch()
    for seed, tap in enumerate(["fc2", "fc1"]):
        pool.specialise("t", tap, make_mask(seed=seed))
    pool.requires_grad_(False)
    signals = pool(batch)
    expected = ["t/fc2", "t/fc1"] if stacking == "cumulative" else ["t/fc1"]
    torch.testing.assert_close(signals["t/fc2"].logits, by_hand(pool, batch, ["t/fc2"]), **CLOSE)
    torch.testing.assert_close(signals["t/fc1"].logits, by_hand(pool, batch, expected), **CLOSE)


def test_stacking_against_the_order_can_not_share_the_prefix() -> None:
    pool = TeacherPool({"t": make_teacher("vectors", "t")}, "cumulative", "prefix")
    for tap in ("fc2", "fc1"):
        pool.specialise("t", tap, make_mask())
    pool.requires_grad_(False)
    with pytest.raises(ModelError, match=r"stack in the order \['fc2', 'fc1'\], but tap 'fc1' fires earlier"):
        pool(make_batch())


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("stacking", ["independent", "cumulative"])
def test_rows_that_meet_another_branch_fall_back_to_replication(stacking: str, rows: int) -> None:
    pool = make_pool("late", mask_stacking=stacking)
    left, fc = pool.specialised
    for size in (rows, 6):
        batch, before = make_batch(size), pool.forwards
        signals = pool(batch, ["late", left, fc])
        assert pool.forwards == before + 1
        torch.testing.assert_close(signals["late"].logits, pool.teacher("late")(batch).logits, **CLOSE)
        torch.testing.assert_close(signals[left].logits, by_hand(pool, batch, [left]), **CLOSE)
        stacked = [left, fc] if stacking == "cumulative" else [fc]
        torch.testing.assert_close(signals[fc].logits, by_hand(pool, batch, stacked), **CLOSE)


def test_sharing_the_prefix_is_refused_by_a_network_that_can_not() -> None:
    with pytest.raises(RuntimeError, match="must match the size"):
        make_pool("late", sharing="prefix")(make_batch())


def test_auto_decides_anew_when_masks_begin_to_stack() -> None:
    pool, batch = TeacherPool({"t": make_teacher("vectors", "t")}, "cumulative"), make_batch()
    for seed, tap in enumerate(["fc2", "fc1"]):
        pool.specialise("t", tap, make_mask(seed=seed))
    pool.requires_grad_(False)
    pool.masks_train = True
    torch.testing.assert_close(pool(batch)["t/fc1"].logits, by_hand(pool, batch, ["t/fc1"]), **CLOSE)
    pool.masks_train = False
    torch.testing.assert_close(pool(batch)["t/fc1"].logits, by_hand(pool, batch, ["t/fc2", "t/fc1"]), **CLOSE)


def test_auto_shares_where_it_can() -> None:
    pool, seen = make_pool("fusion", "late"), {}
    for name in pool.names:
        network = pool.teacher(name).network
        network.left.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: len(args[0])}))
    pool(make_batch(6))
    pool(make_batch(6))
    assert seen == {"fusion": 6, "late": 12}


@pytest.mark.parametrize("sharing", ["prefix", "replicate"])
@pytest.mark.parametrize("stacking", ["independent", "cumulative"])
def test_masks_of_ones_give_the_plain_logits(stacking: str, sharing: str) -> None:
    pool, batch = make_pool("fusion", "maps", mask=Ones, mask_stacking=stacking, sharing=sharing), make_batch()
    for name, signals in pool(batch).items():
        plain = pool.teacher(pool.variant(name).teacher)(batch).logits
        torch.testing.assert_close(signals.logits, plain, **CLOSE)


def test_plain_teachers_and_variants_in_the_order_asked_for() -> None:
    pool, batch = make_pool("fusion", "vectors"), make_batch()
    order = ["vectors/fc2", "fusion", "vectors", "fusion/head.first"]
    signals = pool(batch, order)
    assert signals.names == order
    for name in ("fusion", "vectors"):
        torch.testing.assert_close(signals[name].logits, pool.teacher(name)(batch).logits, **CLOSE)
    torch.testing.assert_close(signals["vectors/fc2"].logits, by_hand(pool, batch, ["vectors/fc2"]), **CLOSE)


def test_experts_are_the_variants_or_else_the_teachers() -> None:
    assert make_pool("fusion", "vectors", masked=False).experts == ["fusion", "vectors"]
    expected = ["fusion/join", "fusion/head.first", "vectors/fc1", "vectors/fc2"]
    assert make_pool("fusion", "vectors").experts == expected
    assert TeacherPool({}).experts == []


def test_one_forward_a_teacher_whatever_the_number_of_variants() -> None:
    pool, batch, calls = make_pool("fusion", "vectors", "late"), make_batch(), []
    pool(batch)
    for name in pool.names:
        pool.teacher(name).network.register_forward_pre_hook(lambda m, args, name=name: calls.append(name))
    before = pool.forwards
    pool(batch)
    assert sorted(calls) == ["fusion", "late", "vectors"]
    assert pool.forwards - before == 3
    pool(batch, ["fusion", "fusion/join"])
    assert pool.forwards - before == 4
    pool(batch, [])
    assert pool.forwards - before == 4


def test_the_first_call_counts_one_forward_too() -> None:
    pool = make_pool("fusion", "late")
    pool(make_batch())
    assert pool.forwards == 2


@pytest.mark.parametrize("sharing", ["prefix", "replicate"])
def test_features_of_variants(sharing: str) -> None:
    teacher = make_teacher("fusion", "t")
    teacher.taps = ("left", "join", "head.first", "head.out")
    pool, batch = TeacherPool({"t": teacher}, sharing=sharing), make_batch()
    pool.specialise("t", "join", make_mask(seed=1))
    pool.specialise("t", "head.first", make_mask(seed=2))
    pool.requires_grad_(False)
    assert pool(batch)["t/join"].features == {}
    plain = teacher(batch).features
    signals = pool(batch, ["t", "t/join", "t/head.first"], features=True)
    joined = plain["join"] * pool.mask("t/join")(plain["join"])
    first = plain["head.first"] * pool.mask("t/head.first")(plain["head.first"])
    head = teacher.network.head
    expected = {
        "t": plain,
        "t/join": {"left": plain["left"], "join": joined, "head.first": head.first(joined), "head.out": head(joined)},
        "t/head.first": plain | {"head.first": first, "head.out": head.out(head.second(first))},
    }
    for name, features in expected.items():
        assert list(signals[name].features) == ["left", "join", "head.first", "head.out"]
        for tap, value in features.items():
            torch.testing.assert_close(signals[name].features[tap], value, **CLOSE)


def test_cumulative_features_below_the_own_mask_are_those_of_the_mask_before() -> None:
    teacher = make_teacher("vectors", "t")
    teacher.taps = ("fc1", "fc2")
    pool, batch = TeacherPool({"t": teacher}, "cumulative", "prefix"), make_batch()
    for seed, tap in enumerate(["fc1", "fc2"]):
        pool.specialise("t", tap, make_mask(seed=seed))
    pool.requires_grad_(False)
    signals = pool(batch, features=True)
    torch.testing.assert_close(signals["t/fc2"].features["fc1"], signals["t/fc1"].features["fc1"], **CLOSE)
    second = signals["t/fc1"].features["fc2"]
    torch.testing.assert_close(signals["t/fc2"].features["fc2"], pool.mask("t/fc2").adapt(second), **CLOSE)


def test_hooks_are_gone_after_a_forward_and_after_a_failure() -> None:
    """P3: no leaked hooks."""
    pool, batch = make_pool("fusion", "late"), make_batch()
    before = hook_count(pool)
    pool(batch, features=True)
    assert hook_count(pool) == before
    broken = batch | {"right": torch.zeros(6, 3)}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pool(broken)
    assert hook_count(pool) == before
    pool(batch)
    with pytest.raises(DataError, match="reads field 'left'"):
        make_pool("fusion")({"right": batch["right"]})


def test_an_empty_batch_gives_no_rows() -> None:
    signals = make_pool("fusion", "late")(make_batch(0))
    assert signals.logits.shape == (0, 4, 4)


class Spare(nn.Module):
    """A network with a module that its forward never calls, one called twice and one without a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare, self.twice = nn.Linear(10, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.pair = nn.LSTM(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.twice(self.twice(self.pair(self.used(x))[0]))
        return logits


@pytest.mark.parametrize("sharing", ["auto", "prefix", "replicate"])
@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("spare", r"taps \['spare'\] of teacher 't' take no part in its forward"),
        ("pair", r"tap 'pair' \(LSTM\) gives tuple, no tensor"),
    ],
)
def test_taps_that_can_not_be_masked_are_refused(tap: str, message: str, sharing: str) -> None:
    pool = TeacherPool({"t": Teacher(Spare(), ["right"], name="t")}, sharing=sharing)
    pool.specialise("t", tap, make_mask())
    with pytest.raises(ModelError, match=message):
        pool(make_batch())


def test_a_tap_that_fires_twice_can_not_share_the_prefix() -> None:
    pool = TeacherPool({"t": Teacher(Spare(), ["right"], name="t")}, sharing="prefix")
    pool.specialise("t", "twice", make_mask())
    with pytest.raises(ModelError, match="fires twice in one forward"):
        pool(make_batch())


def test_wrong_names_are_refused_with_the_nearest() -> None:
    pool = make_pool("fusion")
    with pytest.raises(ModelError, match=r"tap 'head.frst' is no module of Fusion; did you mean 'head.first'"):
        pool.specialise("fusion", "head.frst", make_mask())
    with pytest.raises(ModelError, match="no teacher 'fusio'; did you mean 'fusion'"):
        pool.specialise("fusio", "join", make_mask())
    with pytest.raises(ModelError, match="variant 'fusion/join' exists already"):
        pool.specialise("fusion", "join", make_mask())
    with pytest.raises(ModelError, match="no teacher variant 'fusion/joint'; did you mean 'fusion/join'"):
        pool(make_batch(), ["fusion/joint"])


@pytest.mark.parametrize("name", ["student", "teachers", "all"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"a teacher can't be called '{name}'"):
        TeacherPool({name: make_teacher("vectors", name)})
