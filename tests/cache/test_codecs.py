"""Codecs: what comes back, how far it is from what went in, how many bytes it takes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekd.cache import Codec, Like
from moekd.errors import ConfigError, DataError

SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple)


def back(codec: Codec, values_N: Tensor, rows_B: Tensor | None = None, seed: int = 0) -> Tensor:
    """Return the rows that come back."""
    encoded = codec.encode(values_N, seed)
    rows_B = torch.arange(len(values_N)) if rows_B is None else rows_B
    picked = {key: value[rows_B] for key, value in encoded.rows.items()}
    return codec.decode(picked, encoded.shared, len(rows_B), Like(tuple(values_N.shape[1:]), values_N.dtype))


def drawn(
    rows: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, size: float = 3.0
) -> Tensor:
    return (torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), SHAPES, st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_fp32_is_exact(rows: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
    values = drawn(rows, shape, seed, dtype)
    rows_B = torch.randint(0, rows, (7,), generator=torch.Generator().manual_seed(seed))
    found = back(Codec(), values, rows_B)
    assert found.dtype == dtype
    assert torch.equal(found, values[rows_B])


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), SHAPES, st.integers(0, 99), st.sampled_from(["bf16", "fp16", "int8"]))
def test_rounding_is_bounded(rows: int, shape: tuple[int, ...], seed: int, kind: str) -> None:
    values = drawn(rows, shape, seed)
    error = (back(Codec(kind), values) - values).abs()  # type: ignore[arg-type]
    if kind == "int8":
        axes = [axis for axis in range(values.dim()) if axis != 1]
        assert bool((error <= values.abs().amax(dim=axes, keepdim=True) / 254 * 1.001 + 1e-7).all())
    else:
        assert bool((error <= values.abs() * 2.0 ** (-8 if kind == "bf16" else -11) * 1.001 + 1e-7).all())


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "top_k", "sampled"])
def test_rows_that_are_the_same_are_stored_once_and_exactly(kind: str) -> None:
    values = torch.full((50, 30), 1 / 3)
    encoded = Codec(kind).encode(values)  # type: ignore[arg-type]
    assert encoded.rows == {}
    assert encoded.nbytes == 30 * 4
    assert torch.equal(back(Codec(kind), values), values)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 99), st.sampled_from([1.0, 0.5, 4.0]))
def test_top_k_keeps_the_largest_and_the_mass_of_the_rest(classes: int, k: int, seed: int, temperature: float) -> None:
    """K6: the largest values are exact, the tail's mass is kept."""
    logits = drawn(4, (classes,), seed)
    found = back(Codec("top_k", k, temperature), logits)
    top = logits.topk(min(k, classes), dim=1).indices
    assert torch.equal(found.gather(1, top), logits.gather(1, top))
    probs, want = ((z / temperature).softmax(dim=1).gather(1, top) for z in (found, logits))
    torch.testing.assert_close(probs, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(1 - probs.sum(dim=1), 1 - want.sum(dim=1), rtol=0, atol=1e-5)
    assert torch.equal(found.argmax(dim=1), logits.argmax(dim=1))


def test_top_k_of_maps_takes_the_class_axis() -> None:
    logits = drawn(2, (9, 3, 2), 0)
    found = back(Codec("top_k", 2), logits)
    expected = back(Codec("top_k", 2), logits.movedim(1, -1).reshape(-1, 9)).reshape(2, 3, 2, 9).movedim(-1, 1)
    torch.testing.assert_close(found, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 30), st.integers(1, 20), st.integers(0, 99), st.sampled_from([1.0, 4.0]))
def test_sampled_probabilities_are_near(classes: int, k: int, seed: int, temperature: float) -> None:
    logits = drawn(5, (classes,), seed)
    found = (back(Codec("sampled", k, temperature), logits, seed=seed) / temperature).softmax(dim=1)
    want = (logits / temperature).softmax(dim=1)
    assert float((found - want).abs().max()) < (1 / k if k < classes else 1e-6) + 1e-6


@pytest.mark.parametrize("k", [1, 3, 8])
def test_sampled_probabilities_are_unbiased(k: int) -> None:
    """K6: the mean over 10,000 rows of draws is the distribution, within five standard errors, which are at most
    sqrt(p (1 - p) / (10,000 k))."""
    rows, classes = 10_000, 11
    logits_C = drawn(1, (classes,), 4, size=1.5)[0]
    probs = logits_C.softmax(dim=0)
    logits = logits_C.expand(rows, -1) + torch.arange(rows)[:, None] * 1e-9
    codec = Codec("sampled", k)
    draws = codec.encode(logits.double(), seed=3)
    assert set(draws.rows) == {"draws"}
    found = codec.decode(draws.rows, {}, rows, Like((classes,), torch.float32)).softmax(dim=1)
    error = (found.mean(dim=0) - probs).abs()
    assert bool((error < 5 * (probs * (1 - probs) / rows).sqrt() + 1e-6).all())


def test_the_gradient_of_a_loss_on_samples_is_unbiased() -> None:
    """K6: KL divergence and cross-entropy have the gradient softmax(student) - p' at T = 1, linear in p'."""
    rows = 4000
    teacher, student = drawn(1, (6,), 1)[0], drawn(1, (6,), 2)[0].requires_grad_()
    found = back(Codec("sampled", 2), teacher.expand(rows, -1) + torch.arange(rows)[:, None] * 1e-6, seed=9)
    torch.nn.functional.kl_div(
        student.log_softmax(0).expand(rows, -1), found.log_softmax(1), reduction="batchmean", log_target=True
    ).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.softmax(0) - teacher.softmax(0)).detach(), rtol=0, atol=0.02)


def test_draws_depend_on_the_seed_alone() -> None:
    logits = drawn(20, (50,), 0)
    first, again, other = (Codec("sampled", 4).encode(logits, seed).rows["draws"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("fp32", (10,), 40),
        ("bf16", (10,), 20),
        ("int8", (10,), 10),
        ("top_k", (1000,), 16 * 6 + 4),
        ("top_k", (40_000,), 16 * 8 + 4),
        ("top_k", (10,), 40),
        ("sampled", (1000,), 32),
        ("top_k", (100, 2, 3), 6 * (16 * 6 + 4)),
    ],
)
def test_bytes_a_row(kind: str, shape: tuple[int, ...], expected: int) -> None:
    codec = Codec(kind)  # type: ignore[arg-type]
    assert codec.bytes_a_row(Like(shape, torch.float32)) == expected
    values = drawn(3, shape, 0)
    assert sum(v.numel() * v.element_size() for v in codec.encode(values).rows.values()) == 3 * expected


@pytest.mark.parametrize(
    ("kind", "value"), [("fp16", 1e6), ("int8", math.inf), ("int8", math.nan), ("sampled", math.nan)]
)
def test_what_a_codec_cannot_hold_is_refused(kind: str, value: float) -> None:
    values = drawn(3, (40,), 0)
    values[1, 2] = value
    with pytest.raises(DataError, match="use"):
        Codec(kind).encode(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"kind": "zip"}, {"kind": "top_k", "k": 0}, {"kind": "sampled", "temperature": 0.0}]
)
def test_impossible_codecs(options: dict) -> None:
    with pytest.raises(ConfigError):
        Codec(**options)
