"""Exact round trips of training state."""

from __future__ import annotations

import json
import math
import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from moekd.errors import CheckpointError
from moekd.state_codec import flatten, unflatten

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool]


def round_trip(state):
    tensors, skeleton = flatten(state)
    return unflatten(load(save(tensors)), json.loads(json.dumps(skeleton, allow_nan=False)))


def same(left, right) -> bool:
    """Equality with types, bits of tensors, nan = nan and the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        raw = [t.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8) for t in (left, right)]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*raw)
    if isinstance(left, dict):
        return list(left) == list(right) and all(
            type(a) is type(b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    return left == right


def make_tensor(arguments):
    dtype, shape, seed, form = arguments
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if form == "transposed" and values.ndim >= 2:
        return values.transpose(0, 1)
    if form == "strided" and values.ndim >= 1:
        return values[::2]
    return values


TENSORS = st.tuples(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 100),
    st.sampled_from(["plain", "transposed", "strided"]),
).map(make_tensor)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | TENSORS
KEYS = st.text() | st.integers() | st.sampled_from(["$tensor", "$", "a.b", "__metadata__", "0", ""])
STATES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, STATES, max_size=4))
def test_any_state_comes_back_exactly(state):
    assert same(round_trip(state), state)


def test_the_hypothesis_comparison_sees_differences():
    assert not same({"a": 1}, {"a": True})
    assert not same({"a": (1,)}, {"a": [1]})
    assert not same(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not same(0.0, -0.0)


def test_optimizer_state_continues_identically():
    def train(net, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            net(torch.full((2, 3), float(step))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(1)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    train(net, optimizer, 3)
    restored = round_trip({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    twin = nn.Linear(3, 2)
    twin.load_state_dict(restored["net"])
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=0.5)
    twin_optimizer.load_state_dict(restored["optimizer"])
    train(net, optimizer, 2)
    train(twin, twin_optimizer, 2)
    assert torch.equal(net.weight, twin.weight)


def test_random_states_of_all_generators_continue():
    generators = random.Random(3), np.random.default_rng(4), np.random.RandomState(5), torch.Generator().manual_seed(6)
    python, pcg, mersenne, torch_generator = generators
    restored = round_trip(
        {
            "python": python.getstate(),
            "pcg": pcg.bit_generator.state,
            "mersenne": mersenne.get_state(legacy=False),
            "torch": torch_generator.get_state(),
        }
    )
    expected = python.random(), pcg.random(), mersenne.random(), torch.rand(1, generator=torch_generator).item()
    python, pcg, mersenne = random.Random(), np.random.default_rng(), np.random.RandomState()
    python.setstate(restored["python"])
    pcg.bit_generator.state = restored["pcg"]
    mersenne.set_state(restored["mersenne"])
    torch_generator = torch.Generator()
    torch_generator.set_state(restored["torch"])
    assert (python.random(), pcg.random(), mersenne.random()) == expected[:3]
    assert torch.rand(1, generator=torch_generator).item() == expected[3]


def test_snapshot_shares_nothing_with_the_state():
    weight = torch.zeros(2, 2)
    tensors, _ = flatten({"a": weight, "tied": weight, "row": weight[0]})
    weight.fill_(1)
    assert all(not tensor.any() for tensor in tensors.values())
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 3


def test_arrays_keep_type_and_shape():
    for array in (
        np.arange(6, dtype=np.uint32).reshape(2, 3).T,
        np.array(2.5),
        np.zeros(0, bool),
        np.arange(3, dtype=">i4"),
    ):
        restored = round_trip({"x": array})["x"]
        assert isinstance(restored, np.ndarray)
        assert restored.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(restored, array)


def test_parameter_and_ordered_dict_become_tensor_and_dict():
    restored = round_trip(OrderedDict(weight=nn.Parameter(torch.ones(2))))
    assert type(restored) is dict
    assert type(restored["weight"]) is torch.Tensor
    assert not restored["weight"].requires_grad


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (object(), "builtins.object"),
        ({1, 2}, "builtins.set"),
        (b"bytes", "builtins.bytes"),
        (np.float64(1.0), "numpy.float64, which a checkpoint can't hold; convert it with .item()"),
        (np.array(["text"]), "numpy.ndarray"),
        (np.array([object()]), "numpy.ndarray"),
        (namedtuple("Point", "x")(1), "Point"),
        (1j, "builtins.complex"),
        (print, "builtin_function_or_method"),
        (torch.zeros(2, device="meta"), "without data"),
        (torch.zeros(2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
        ({(1, 2): 3}, "has the key (1, 2) (tuple)"),
        ({True: 3}, "has the key True (bool)"),
    ],
)
def test_other_types_are_refused_with_their_path(value, found):
    with pytest.raises(CheckpointError) as failure:
        flatten({"optimizer": [{"extra": value}]})
    assert "optimizer.0.extra" in str(failure.value)
    assert found in str(failure.value)


def test_a_state_that_contains_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="contain itself"):
        flatten({"loop": loop})


@pytest.mark.parametrize(
    ("skeleton", "message"),
    [
        ({"a": {"$tensor": "missing"}}, "'a' needs the tensor 'missing'"),
        ({"a": {"$tensor": "t"}, "b": {"$tensor": "t"}}, "'b' needs the tensor 't'"),
        ({"a": {"$tensor": ["t"]}}, "needs the tensor"),
        ({"a": 1}, "without a place"),
        ({"t": {"$tensor": "t"}, "a": {"$eval": "1"}}, "unknown tag '\\$eval'"),
        ({"t": {"$tensor": "t"}, "a": {"$int": "zz"}}, "'a' is malformed"),
        ({"t": {"$tensor": "t"}, "a": {"$int": 3}}, "'a' is malformed"),
        ({"t": {"$tensor": "t"}, "a": {"$tuple": 3}}, "'a' is malformed"),
        ({"t": {"$tensor": "t"}, "a": {"$dict": [[1]]}}, "'a' is malformed"),
        ({"t": {"$tensor": "t"}, "a": {"$dict": [[[1], 2]]}}, "'a' is malformed"),
        ({"t": {"$tensor": "t"}, "a": {"$tuple": [], "b": 1}}, "'a' is malformed"),
    ],
)
def test_malformed_skeletons_are_refused(skeleton, message):
    with pytest.raises(CheckpointError, match=message):
        unflatten({"t": torch.zeros(1)}, skeleton)


def test_deep_skeletons_are_refused():
    deep: list = []
    for _ in range(800):
        deep = [deep]
    with pytest.raises(CheckpointError, match="too deep"):
        unflatten({}, deep)
