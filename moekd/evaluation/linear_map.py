"""How much of a teacher is left in a student: a fresh linear map from one embedding to the other.

Shapes: N rows to fit on, M rows to measure on, D and E widths of the two embeddings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import DataError


def linear_map_r2(
    fit_ND: Tensor, fit_target_NE: Tensor, test_MD: Tensor, test_target_ME: Tensor, ridge: float = 1e-3
) -> float:
    """Return the share of a target's variance that a linear map predicts on rows that it was not fitted on.

        W, b = argmin mean_n |W x_n + b - y_n|^2 + ridge |W|^2
        R2 = 1 - sum_m |W x_m + b - y_m|^2 / sum_m |y_m - mean y|^2

    x is standardised by the rows of the fit. The sums run over rows and channels, so that loud channels count more and
    a rotation of the target changes nothing. Solved in closed form in float64.

    Args:
        fit_ND, fit_target_NE: embeddings of the student and of the teacher on the rows of the fit.
        test_MD, test_target_ME: the same on the rows of the measurement.
        ridge: weight decay, relative to features of variance 1; it keeps the map defined where N < D.

    Returns:
        At most 1, negative for predictions worse than the mean; NaN where the target does not vary.

    Raises:
        DataError: shapes that do not fit, no rows, or numbers that are not finite.
    """
    shapes = [tuple(x.shape) for x in (fit_ND, fit_target_NE, test_MD, test_target_ME)]
    fits = all(len(s) == 2 and s[0] for s in shapes) and shapes[0][0] == shapes[1][0] and shapes[2][0] == shapes[3][0]
    if not fits or shapes[0][1] != shapes[2][1] or shapes[1][1] != shapes[3][1]:
        raise DataError(f"a linear map needs [N, D], [N, E], [M, D] and [M, E]; found {shapes}")
    if ridge < 0:
        raise DataError(f"a linear map needs ridge >= 0; found {ridge}")
    x, y, test_x, test_y = (t.detach().cpu().double() for t in (fit_ND, fit_target_NE, test_MD, test_target_ME))
    if not all(bool(t.isfinite().all()) for t in (x, y, test_x, test_y)):
        raise DataError("a linear map needs finite embeddings; some are NaN or infinite")
    mean, deviation, mean_y = x.mean(dim=0), x.std(dim=0, correction=0), y.mean(dim=0)
    scale = torch.where(deviation > 1e-12, deviation, 1.0)
    x, test_x = (x - mean) / scale, (test_x - mean) / scale
    gram = x.T @ x / len(x) + (ridge + 1e-10) * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, x.T @ (y - mean_y) / len(x))
    error = (test_x @ weight + mean_y - test_y).square().sum()
    spread = (test_y - test_y.mean(dim=0)).square().sum()
    size = test_y.square().sum().clamp_min(1e-30)
    return math.nan if float(spread / size) < 1e-12 else 1.0 - float(error / spread)
