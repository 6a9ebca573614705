"""What to show of a model on a split: a map of its embeddings, what it finds, and what it takes for what.

Everything is chosen by position or by count, never by how well it went.

Shapes: N rows of a split, Q queries, K answers, D width of an embedding.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .embedded import Embedded
from .embedding_metrics import candidates, modality_pair, seen_modality
from .retrieval import match_ranks

MAP_ROWS, GROUPS = 1500, 9


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` positions, evenly spaced."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(most, count))}) if count else []


def principal_map(values_ND: Tensor) -> tuple[Tensor, list[float]]:
    """Return the first two principal components of the rows at length 1, `[N, 2]`, and their shares of the variance.

    The sign of a component is such that its largest entry is positive, so that the same rows give the same map.
    """
    unit_ND = F.normalize(values_ND.detach().cpu().double(), dim=1, eps=1e-6)
    centred_ND = unit_ND - unit_ND.mean(dim=0)
    points_N2 = torch.zeros(len(unit_ND), 2, dtype=torch.float64)
    _, sizes, axes = torch.linalg.svd(centred_ND, full_matrices=False)
    kept = min(2, len(sizes))
    points_N2[:, :kept] = centred_ND @ axes[:kept].T
    for column in points_N2.T:
        column *= 1.0 if not len(column) or column[column.abs().argmax()] >= 0 else -1.0
    total = sizes.square().sum().clamp_min(1e-30)
    shares = (sizes[:kept].square() / total).tolist()
    return points_N2.float(), [float(s) for s in shares] + [0.0] * (2 - kept)


def embedding_map(embedded: Embedded, names: list[str]) -> dict[str, Any] | None:
    """Return the map of at most `MAP_ROWS` rows, coloured by the most frequent of the named groups.

    Args:
        embedded: rows of a split.
        names: group of each row, `[N]`.
    """
    rows = spread(len(embedded), MAP_ROWS)
    if len(rows) < 3:
        return None
    modality = seen_modality(embedded)
    points, shares = principal_map(embedded.embeddings[modality][rows])
    chosen = [names[row] for row in rows]
    largest = [name for name, _ in Counter(chosen).most_common(GROUPS)]
    place = {name: index for index, name in enumerate(largest)}
    return {
        "modality": modality,
        "points": [[round(float(x), 4), round(float(y), 4)] for x, y in points],
        "group": [place.get(name, -1) for name in chosen],
        "groups": largest,
        "all_groups": len(set(names)),
        "variance": [round(share, 4) for share in shares],
        "rows": len(embedded),
    }


def found_for(embedded: Embedded, queries: int, answers: int) -> dict[str, Any] | None:
    """Return what evenly spaced queries find, both ways; None for models without a pair of modalities.

    Returns:
        `{"first", "second", "image_to_text": [{"row", "rank", "found": [{"row", "right", "score"}]}], ...}`: rows are
        positions in `embedded`.
    """
    pair = modality_pair(embedded)
    if pair is None:
        return None
    rows = {modality: candidates(embedded, modality) for modality in pair}
    units = {m: F.normalize(embedded.embeddings[m][rows[m]].float(), dim=1, eps=1e-6) for m in pair}
    groups = {m: embedded.groups[rows[m]] for m in pair}
    result: dict[str, Any] = {"modalities": list(pair)}
    for source, target in (pair, pair[::-1]):
        asked = torch.tensor(spread(len(rows[source]), queries))
        scores_QK, nearest_QK = (units[source][asked] @ units[target].T).topk(min(answers, len(rows[target])), dim=1)
        ranks = match_ranks(units[source][asked], units[target], groups[source][asked], groups[target], 1024)
        shown = []
        for place, query in enumerate(asked.tolist()):
            found = [
                {
                    "row": int(rows[target][n]),
                    "right": bool(groups[target][n] == groups[source][query]),
                    "score": round(float(s), 3),
                }
                for n, s in zip(nearest_QK[place], scores_QK[place], strict=True)
            ]
            shown.append({"row": int(rows[source][query]), "rank": int(ranks[place]), "found": found})
        result[f"{source}_to_{target}"] = shown
    return result


def confusions(labels_N: Tensor, predicted_N: Tensor, most: int, pictures: int) -> list[dict[str, Any]]:
    """Return the most frequent pairs of class and wrong prediction, with rows to look at.

    Args:
        labels_N: classes; rows below 0 do not count.
        predicted_N: predicted classes.
        most: pairs.
        pictures: rows of each side of a pair.

    Returns:
        `{"label", "predicted", "count", "of", "rows", "like"}`: `of` is how many rows the class has, `rows` are wrong
        ones, `like` rows of the class that they were taken for (right ones first). Ties go to smaller classes' numbers.
    """
    wrong = (labels_N >= 0) & (labels_N != predicted_N)
    pairs = Counter(zip(labels_N[wrong].tolist(), predicted_N[wrong].tolist(), strict=True))
    sizes = Counter(labels_N.tolist())
    found = []
    for (label, predicted), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]:
        rows = ((labels_N == label) & (predicted_N == predicted)).nonzero().flatten()
        there = labels_N == predicted
        like = torch.cat(
            [(there & (predicted_N == predicted)).nonzero(), (there & (predicted_N != predicted)).nonzero()]
        )
        found.append(
            {
                "label": label,
                "predicted": predicted,
                "count": count,
                "of": sizes[label],
                "rows": [int(rows[i]) for i in spread(len(rows), pictures)],
                "like": like.flatten()[:pictures].tolist(),
            }
        )
    return found
