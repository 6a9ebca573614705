"""Small quadratic programs over the capped simplex, without reading anything from the device.

Shapes: T teacher variants.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 100


def project_capped(point_T: Tensor, cap: float) -> Tensor:
    """Return the nearest point with `sum = 1` and `0 <= entries <= cap`, exactly; cap >= 1 / T.

    The projection is `clamp(point - shift, 0, cap)`. The sum is a decreasing, piecewise linear function of the shift,
    with corners at the entries and at the entries minus cap: find the piece in which it is 1, and interpolate.
    """
    corners = torch.cat([point_T, point_T - cap]).sort().values
    sums = (point_T[None, :] - corners[:, None]).clamp(0, cap).sum(dim=1)
    right = (sums >= 1).sum().clamp(1, corners.shape[0] - 1)
    left = right - 1
    here, there = sums[left], sums[right]
    slope = (here - there).clamp_min(torch.finfo(point_T.dtype).tiny)
    share = ((here - 1) / slope).clamp(0, 1)
    shift = corners[left] + share * (corners[right] - corners[left])
    inside = (point_T - shift).clamp(0, cap)
    return inside / inside.sum()


def min_norm_weights(gram_TT: Tensor, cap: float = 1.0, iterations: int = ITERATIONS) -> Tensor:
    """Return `argmin_w 1/2 w' G w` over the capped simplex, `[T]`; the cap is at least 1 / T.

    Accelerated projected gradient with restarts (O'Donoghue and Candes, "Adaptive Restart for Accelerated Gradient
    Schemes", 2015) in double precision, for a fixed number of iterations from the uniform weights, so that ties stay
    uniform. The step is 1 / ||G||, the Frobenius norm being at least the largest eigenvalue.
    """
    experts = gram_TT.shape[0]
    cap = max(cap, 1.0 / experts)
    uniform = torch.full((experts,), 1.0 / experts, dtype=torch.float64, device=gram_TT.device)
    gram = gram_TT.detach().to(torch.float64)
    gram = gram / gram.norm().clamp_min(torch.finfo(torch.float64).tiny)
    weights, ahead, momentum = uniform, uniform, torch.ones_like(uniform[0])
    for _ in range(iterations if cap > 1.0 / experts else 0):
        slope = gram @ ahead
        new = project_capped(ahead - slope, cap)
        restart = (slope * (new - weights)).sum() > 0
        following = torch.where(restart, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
        push = torch.where(restart, 0.0, (momentum - 1) / following)
        ahead, weights, momentum = new + push * (new - weights), new, following
    return weights.to(gram_TT.dtype)
