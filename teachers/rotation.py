"""Orthonormal matrices that spread variance evenly over all channels.

Shapes: D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def even_rotation(variances_D: Tensor) -> Tensor:
    """Return an orthonormal H with every diagonal element of `H diag(variances) H^T` equal to their mean.

    A Hadamard matrix does it for all variances at once; it is taken where one of Sylvester's or Paley's exists for D.
    Elsewhere (D odd, or no such construction) D - 1 plane rotations bring the diagonal elements to the mean one by one;
    that such a matrix exists is the theorem of Schur and Horn.

    Args:
        variances_D: eigenvalues of a covariance matrix, not negative.

    Returns:
        `[D, D]`, float64.
    """
    signs = hadamard(variances_D.shape[0])
    if signs is not None:
        return signs.to(variances_D.device) / variances_D.shape[0] ** 0.5
    return _plane_rotations(variances_D.double())


def hadamard(order: int) -> Tensor | None:
    """Return a Hadamard matrix `[D, D]` of +1 and -1 (float64), or None where no construction is known here.

    Sylvester's doubling of Paley's matrices: D = m 2^k with m = 1, m = q + 1 (prime q = 3 mod 4), or m = 2 (q + 1)
    (prime q = 1 mod 4). The usual widths are among them: 384, 512, 768, 1024, 1152, 1280, 1408, 1664.
    """
    doublings, core = 0, order
    while True:
        base = _paley(core)
        if base is not None:
            break
        if core % 2:
            return None
        doublings, core = doublings + 1, core // 2
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for _ in range(doublings):
        base = torch.kron(pair, base)
    return base


def _paley(order: int) -> Tensor | None:
    """Return a Hadamard matrix of order 1, q + 1 or 2 (q + 1) (Paley, J. Math. Phys. 12, 1933), or None."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order % 4 == 0 and _is_prime(order - 1):
        skew = _conference(order - 1)
        skew[1:, 0] = -1.0
        return skew + torch.eye(order, dtype=torch.float64)
    half = order // 2
    if order % 4 == 0 and _is_prime(half - 1) and (half - 1) % 4 == 1:
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_conference(half - 1), plus) + torch.kron(torch.eye(half, dtype=torch.float64), diagonal)
    return None


def _conference(prime: int) -> Tensor:
    """Return the quadratic residues of a prime, bordered by a row and a column of ones and a 0: `[q + 1, q + 1]`."""
    numbers = torch.arange(prime)
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[(numbers * numbers) % prime] = 1.0
    character[0] = 0.0
    matrix = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 0] = 0.0
    matrix[1:, 1:] = character[(numbers[:, None] - numbers) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _plane_rotations(variances_D: Tensor) -> Tensor:
    """Return a product of rotations in planes (i, j), each of which brings one diagonal element to the mean."""
    count, mean = variances_D.shape[0], float(variances_D.mean())
    covariance, rotation = torch.diag(variances_D), torch.eye(count, dtype=torch.float64, device=variances_D.device)
    pending = torch.ones(count, dtype=torch.bool, device=variances_D.device)
    for _ in range(count - 1):
        diagonal = covariance.diagonal()
        i = int(diagonal.where(pending, diagonal.new_tensor(float("inf"))).argmin())
        j = int(diagonal.where(pending, diagonal.new_tensor(float("-inf"))).argmax())
        if i != j:
            # With t = s / c, element i becomes the mean m where (b - m) t^2 - 2 x t + (a - m) = 0; the roots are real
            # because a <= m <= b.
            low, high, cross = float(diagonal[i]) - mean, float(diagonal[j]) - mean, float(covariance[i, j])
            tangent = 0.0 if high <= 0 else (cross + (cross * cross - high * min(low, 0.0)) ** 0.5) / high
            cosine = (1 + tangent * tangent) ** -0.5
            turn = covariance.new_tensor([[1.0, -tangent], [tangent, 1.0]]) * cosine
            rows = torch.tensor([i, j], device=covariance.device)
            covariance[rows] = turn @ covariance[rows]
            covariance[:, rows] = covariance[:, rows] @ turn.T
            rotation[rows] = turn @ rotation[rows]
        pending[i] = False
    return rotation
