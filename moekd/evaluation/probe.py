"""How good frozen features are: nearest neighbours and a linear classifier.

Shapes: N training rows, M test rows, C classes, D width of a feature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError


def knn_votes(
    train_ND: Tensor,
    labels_N: Tensor,
    test_MD: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Weighted votes of the k nearest training rows: each votes for its class with exp(cosine / temperature).

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv 1805.01978.

    Args:
        train_ND, test_MD: features, not normalised.
        labels_N: classes of the training rows.
        num_classes: C.
        k: neighbours; all where there are fewer.
        temperature: positive; 0.07 is the published one.
        chunk: test rows that are compared at a time; memory is `chunk * N` numbers.

    Returns:
        Share of the votes by class, `[M, C]`, float32; rows sum to 1.

    Raises:
        DataError: shapes or labels that do not fit.
    """
    _check(train_ND, labels_N, test_MD, num_classes)
    if k < 1 or temperature <= 0 or chunk < 1:
        raise DataError(f"knn needs k >= 1, temperature > 0 and chunk >= 1; found {k}, {temperature}, {chunk}")
    train_ND, test_MD = (F.normalize(x.detach().float(), dim=1, eps=1e-6) for x in (train_ND, test_MD))
    votes = []
    for rows in test_MD.split(chunk):
        cosines, nearest = (rows @ train_ND.T).topk(min(k, len(train_ND)), dim=1)
        shares = (cosines / temperature).softmax(dim=1)
        votes.append(shares.new_zeros(len(rows), num_classes).scatter_add_(1, labels_N[nearest], shares))
    return torch.cat(votes) if votes else test_MD.new_zeros(0, num_classes)


class LinearProbe(NamedTuple):
    """A fitted linear classifier on standardised features.

    Attributes:
        weight: `[C, D]`, float64.
        bias: `[C]`.
        mean, scale: of the training features, `[D]`.
        loss: value of the objective at the end, nats.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    loss: float

    def __call__(self, features_MD: Tensor) -> Tensor:
        """Return logits `[M, C]`, float64."""
        return ((features_MD.detach().double() - self.mean) / self.scale) @ self.weight.T + self.bias


def linear_probe(
    train_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float = 1e-3, steps: int = 200, standardise: bool = True
) -> LinearProbe:
    """Fit multinomial logistic regression on frozen features by L-BFGS, on all rows at once, from zero, in float64.

        mean_n CE(W x_n + b, label_n) + l2 / 2 * sum W^2

    The objective is convex and nothing is drawn at random, so the same features give the same classifier. With C of the
    common form "sum of losses + 1 / (2 C) |W|^2", l2 = 1 / (C N).

    Args:
        train_ND: features.
        labels_N: their classes.
        num_classes: C.
        l2: weight decay of W (not of the bias).
        steps: largest number of L-BFGS iterations.
        standardise: bring every channel to mean 0 and variance 1 first.

    Raises:
        DataError: shapes or labels that do not fit, or features that are not finite.
    """
    _check(train_ND, labels_N, train_ND, num_classes)
    if l2 < 0 or steps < 1:
        raise DataError(f"the linear probe needs l2 >= 0 and steps >= 1; found {l2}, {steps}")
    features = train_ND.detach().double()
    mean, scale = torch.zeros_like(features[0]), torch.ones_like(features[0])
    if standardise:
        mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
        scale = torch.where(deviation > 1e-12, deviation, 1.0)
    features = (features - mean) / scale
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, labels_N) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
        loss = float(objective().detach())
    return LinearProbe(weight.detach(), bias.detach(), mean, scale, loss)


def accuracy(scores_MC: Tensor, labels_M: Tensor) -> float:
    """Return the share of rows whose largest score is that of their label.

    Raises:
        DataError: no rows, or other numbers of scores and labels.
    """
    if len(scores_MC) != len(labels_M) or not len(labels_M):
        raise DataError(f"accuracy needs one label a row; found {len(scores_MC)} rows and {len(labels_M)} labels")
    return (scores_MC.argmax(dim=1) == labels_M).double().mean().item()


def _check(train_ND: Tensor, labels_N: Tensor, test_MD: Tensor, num_classes: int) -> None:
    if train_ND.dim() != 2 or test_MD.dim() != 2 or train_ND.shape[1] != test_MD.shape[1] or not len(train_ND):
        raise DataError(
            f"a probe needs features [N, D] and [M, D]; found {tuple(train_ND.shape)} and {tuple(test_MD.shape)}"
        )
    if labels_N.shape != (len(train_ND),) or labels_N.dtype != torch.int64:
        raise DataError(f"a probe needs int64 labels [{len(train_ND)}]; found {tuple(labels_N.shape)} {labels_N.dtype}")
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= num_classes:
        raise DataError(
            f"labels lie between {int(labels_N.min())} and {int(labels_N.max())}, expected 0 to {num_classes - 1}; "
            "leave rows without a label out"
        )
    if not (train_ND.isfinite().all() and test_MD.isfinite().all()):
        raise DataError("a probe needs finite features; some are NaN or infinite")
