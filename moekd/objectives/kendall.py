"""Kendall's rank correlation of every row of two matrices.

Shapes: B rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_tau_b(a_BCN: Tensor, b_BCN: Tensor, rows: int = 4096) -> Tensor:
    """Mean of `kendall_tau_b` over the positions of every instance, `[B]`; `rows` positions are compared at a time.

    Shape:
        a_BCN, b_BCN: `[B, C, ...]`.
    """
    flat = [x.flatten(2).movedim(1, 2).flatten(0, 1) for x in (a_BCN, b_BCN)]
    parts = [kendall_tau_b(a, b) for a, b in zip(flat[0].split(rows), flat[1].split(rows), strict=True)]
    return torch.cat(parts).view(a_BCN.shape[0], -1).mean(dim=1)


def kendall_tau_b(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    """Kendall's tau-b of every two rows, `[B]` in [-1, 1]: concordant minus discordant pairs of columns, corrected for
    ties; 0 where a row is constant.

        tau_b = (P - Q) / sqrt((n - n_a)(n - n_b)),  n pairs of columns, n_a of them tied in a

    Memory is of order B C^2. No gradients.
    """
    with torch.no_grad():
        signs = [torch.sign(x.unsqueeze(2) - x.unsqueeze(1)).to(torch.int8) for x in (a_BC, b_BC)]
        agreement_B = (signs[0] * signs[1]).sum(dim=(1, 2)).to(torch.float64)
        untied = [sign.abs().sum(dim=(1, 2)).to(torch.float64) for sign in signs]
        norms_B = (untied[0] * untied[1]).sqrt()
        tau_B = agreement_B / norms_B.clamp_min(1.0)
    return tau_B.to(torch.promote_types(a_BC.dtype, torch.float32))
