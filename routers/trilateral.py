"""The geometry between student, teachers and label at a row.

    S   student's probabilities          T_t   probabilities of teacher t
    G   label, one-hot                   M_t   mean of T_t over the rows of the label's class

Squares and products are elementwise, so that an edge between two points is a vector of C numbers (Hu et al., "Less or
More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR 2024, arXiv 2312.15112, for one
teacher).

Shapes: B batch, T teacher variants, C classes, D numbers that describe a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Geometry = Literal["full", "vertices", "edges", "angles", "scalars"]


def trilateral_width(geometry: Geometry, num_classes: int, num_teachers: int) -> int:
    """Return D."""
    blocks = {
        "full": 3 + 6 * num_teachers,
        "vertices": 2 + 2 * num_teachers,
        "edges": 1 + 2 * num_teachers,
        "angles": 2 * num_teachers,
        "scalars": 3 + 6 * num_teachers,
    }[geometry]
    return blocks if geometry == "scalars" else blocks * num_classes


def trilateral_state(
    student_BC: Tensor, teachers_BTC: Tensor, label_BC: Tensor, means_BTC: Tensor, geometry: Geometry = "full"
) -> Tensor:
    """Return what a gate reads, `[B, D]`.

    - `vertices`: S, G, every T_t and M_t; D = (2 + 2 T) C.
    - `edges`: (G - S)^2, every (M_t - S)^2 and (T_t - S)^2; D = (1 + 2 T) C.
    - `angles`: every (M_t - S)(G - S) and (T_t - S)(G - S); D = 2 T C.
    - `full`: the vertices, the edges, every (T_t - G)^2 and (M_t - G)^2; D = (3 + 6 T) C, 9 C for one teacher.
    - `scalars`: for many classes, the lengths of the edges of `full`, and the largest and the label's probability of S
      and every T_t; D = 3 + 6 T. Ours.

    Args:
        student_BC: S.
        teachers_BTC: T.
        label_BC: G.
        means_BTC: M.
        geometry: which of these.
    """
    s_B1C, g_B1C = student_BC[:, None], label_BC[:, None]
    towards = [g_B1C - s_B1C, means_BTC - s_B1C, teachers_BTC - s_B1C]
    others = [teachers_BTC - g_B1C, means_BTC - g_B1C]
    if geometry == "vertices":
        parts = [s_B1C, g_B1C, teachers_BTC, means_BTC]
    elif geometry == "edges":
        parts = [edge.square() for edge in towards]
    elif geometry == "angles":
        parts = [edge * towards[0] for edge in towards[1:]]
    elif geometry == "scalars":
        lengths = [edge.norm(dim=2) for edge in [*towards, *others]]
        surest = [value.amax(dim=2) for value in (s_B1C, teachers_BTC)]
        right = [(value * g_B1C).sum(dim=2) for value in (s_B1C, teachers_BTC)]
        return torch.cat([*lengths, *surest, *right], dim=1)
    else:
        parts = [s_B1C, g_B1C, teachers_BTC, means_BTC, *(edge.square() for edge in [*towards, *others])]
    return torch.cat([part.flatten(1) for part in parts], dim=1)
