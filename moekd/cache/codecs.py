"""How a stored signal is written: exactly, in fewer bits, as its largest logits, or as draws from its distribution.

Shapes: N rows, C classes or channels (axis 1), k kept classes or draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, DataError

Kind = Literal["fp32", "bf16", "fp16", "int8", "top_k", "sampled"]
#: Probability of a class that no draw hit.
NEVER = 1e-30
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Encoded:
    """Rows in their stored form.

    Attributes:
        rows: tensors with the rows on axis 0.
        shared: what all rows have in common: scales, or under `constant` the row itself where all are the same.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(t.numel() * t.element_size() for part in (self.rows, self.shared) for t in part.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoded:
        """Apply `function` to every tensor."""
        return Encoded(
            {key: function(value) for key, value in self.rows.items()},
            {key: function(value) for key, value in self.shared.items()},
        )


@dataclass(frozen=True)
class Codec:
    """Writes and reads rows of one signal.

    `fp32` is exact: floats up to float32 keep their type (float64 becomes float32). `bf16`, `fp16` round, and `int8`
    rounds to 255 steps with one scale a channel (axis 1) of each shard. Other than floats are always exact, and so
    are rows that are all the same, which are stored once. For logits there are two more:

    `top_k` keeps the k largest logits of a row exactly, and `tail`, from which all others get one value f such that the
    mass of the rest is exact as well:

        (C - k) exp(f / T) = sum over the rest of exp(z_j / T)

    `sampled` keeps k draws from p = softmax(z / T), by which p is estimated without bias (Anshumann et al., "Sparse
    Logit Sampling: Accelerating Knowledge Distillation in LLMs", ACL 2025, arXiv 2503.16870):

        p'_j = (number of draws of j) / k,    E[p'_j] = p_j

    The draws are systematic, u_i = (i + U) / k with one uniform U a row, so that |p'_j - p_j| < 1 / k always. Read are
    logits T log p', whose softmax at T is p'. A loss that is linear in the teacher's probabilities at this T
    (cross-entropy, the gradient of the KL divergence) is therefore unbiased; at another temperature it is not.

    Args:
        kind: its name.
        k: classes that are kept, or draws.
        temperature: T of the loss that reads the logits.
    """

    kind: Kind = "fp32"
    k: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"codec '{self.kind}' is none of {', '.join(get_args(Kind))}")
        if self.k < 1 or not 0 < self.temperature < math.inf:
            raise ConfigError(f"a codec needs k >= 1 and a positive temperature, found {self.k} and {self.temperature}")

    @property
    def sparse(self) -> bool:
        """True for the codecs of logits only."""
        return self.kind in ("top_k", "sampled")

    def __str__(self) -> str:
        return f"{self.kind}(k={self.k}, temperature={self.temperature:g})" if self.sparse else self.kind

    def encode(self, values_N: Tensor, seed: int = 0) -> Encoded:
        """Return rows `[N, ...]` in their stored form.

        Args:
            values_N: the rows.
            seed: of the draws.

        Raises:
            DataError: values that the codec can't hold: not finite, or beyond the range of fp16.
        """
        if len(values_N) > 1 and torch.equal(values_N, values_N[:1].expand_as(values_N)):
            return Encoded(shared={"constant": values_N[:1].clone()})
        if not values_N.is_floating_point():
            return Encoded({"values": values_N})
        if self.sparse and values_N.dim() > 1 and values_N.shape[1] > self.k:
            encode = _largest if self.kind == "top_k" else _draws
            return encode(values_N.float(), self.k, self.temperature, seed)
        if self.kind == "int8":
            return _steps(values_N.float())
        if self.kind in _HALVES and values_N.element_size() > 2:
            return Encoded({"values": _narrow(values_N, _HALVES[self.kind])})
        return Encoded({"values": values_N.float() if values_N.dtype == torch.float64 else values_N})

    def decode(self, rows: dict[str, Tensor], shared: dict[str, Tensor], count: int, like: Like) -> Tensor:
        """Return `count` rows as they were, or as near to it as the codec allows.

        Args:
            rows: stored rows that were picked.
            shared: what all rows have in common.
            count: number of rows.
            like: shape of a row and type of the result.
        """
        if "constant" in shared:
            return shared["constant"].to(like.dtype).expand(count, *like.shape)
        if "tail" in rows:
            values = rows["tail"].expand(count, *like.shape).scatter(1, rows["index"].long(), rows["values"])
        elif "draws" in rows:
            draws = rows["draws"].long()
            share = torch.full((), 1 / draws.shape[1], device=draws.device).expand(draws.shape)
            probs = torch.zeros(count, *like.shape, device=draws.device).scatter_add_(1, draws, share)
            values = self.temperature * probs.clamp_min(NEVER).log()
        elif "scale" in shared:
            values = rows["values"] * shared["scale"]
        else:
            values = rows["values"]
        return values.to(like.dtype)

    def bytes_a_row(self, like: Like) -> int:
        """Return the bytes that a row takes, constants apart."""
        size = torch.empty((), dtype=like.dtype).element_size()
        if not like.dtype.is_floating_point:
            return size * like.numel
        classes = like.shape[0] if like.shape else 1
        if self.sparse and classes > self.k:
            places, index = like.numel // classes, _index_type(classes).itemsize
            return places * (self.k * (4 + index) + 4 if self.kind == "top_k" else self.k * index)
        return like.numel * {"int8": 1, "bf16": 2, "fp16": 2}.get(self.kind, min(size, 4))


@dataclass(frozen=True)
class Like:
    """Shape of a row, without the batch axis, and its type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)


def _narrow(values_N: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values_N.to(dtype)
    if bool((values_N.isfinite() & ~narrow.isfinite()).any()):
        largest = float(values_N[values_N.isfinite()].abs().max())
        raise DataError(f"a signal reaches {largest:.3g}, more than the codec holds; use bf16 or fp32")
    return narrow


def _steps(values_N: Tensor) -> Encoded:
    """Round to 255 steps: scale_c = max |x_c| / 127 over all rows and positions of a channel."""
    axes = [axis for axis in range(values_N.dim()) if axis != 1]
    if not bool(values_N.isfinite().all()):
        raise DataError("a signal holds NaN or infinite values, which int8 can't hold; use the codec fp32")
    scale = values_N.abs().amax(dim=axes, keepdim=True) / 127
    steps = (values_N / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-127, 127)
    return Encoded({"values": steps.to(torch.int8)}, {"scale": scale})


def _largest(values_N: Tensor, k: int, temperature: float, seed: int) -> Encoded:
    values, index = values_N.topk(k, dim=1)
    rest = (values_N / temperature).scatter(1, index, -math.inf).logsumexp(dim=1, keepdim=True)
    tail = temperature * (rest - math.log(values_N.shape[1] - k))
    return Encoded({"values": values, "index": index.to(_index_type(values_N.shape[1])), "tail": tail})


def _draws(values_N: Tensor, k: int, temperature: float, seed: int) -> Encoded:
    if not bool(values_N.isfinite().all()):
        raise DataError("logits hold NaN or infinite values, from which nothing can be drawn; use the codec fp32")
    cumulative = (values_N.double() / temperature).softmax(dim=1).movedim(1, -1).cumsum(dim=-1).contiguous()
    cumulative /= cumulative[..., -1:].clone()
    generator = torch.Generator().manual_seed(seed % 2**63)
    start = torch.rand(*cumulative.shape[:-1], 1, generator=generator, dtype=torch.float64).to(cumulative.device)
    points = (torch.arange(k, dtype=torch.float64, device=cumulative.device) + start) / k
    draws = torch.searchsorted(cumulative, points, right=True).clamp_max(values_N.shape[1] - 1)
    return Encoded({"draws": draws.movedim(-1, 1).to(_index_type(values_N.shape[1])).contiguous()})


def _index_type(classes: int) -> torch.dtype:
    return torch.int16 if classes <= torch.iinfo(torch.int16).max else torch.int32
