"""Normalisation of teachers' targets, so that no teacher counts more because its numbers are larger.

Every kind is affine in the target: y' = R (y - mean), so it can be undone, and folded into the last layer of a head.

Shapes: B rows, D channels (the last axis).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..distributed import sum_over_processes
from ..errors import ConfigError, ModelError
from .rotation import even_rotation

Normalisation = Literal["none", "zscore", "ema", "phi_s"]
EPSILON = 1e-6


class TargetNorm(nn.Module):
    """Statistics of one teacher's targets of one kind (an embedding, the patches of a layer), and their normalisation.

    - `none` changes nothing.
    - `zscore` gives every channel mean 0 and variance 1, from sums over all rows seen (as in Theia: Shang et al., CoRL
      2024, arXiv 2407.20179).
    - `ema` does the same with running averages whose momentum falls on a cosine from 1 to 0.001 over `freeze_after`
      updates (UNIC: Sariyildiz et al., ECCV 2024, arXiv 2408.05088).
    - `phi_s` rotates so that all channels have the same variance and divides by one number, so that ratios of distances
      stay (PHI-S: Ranzinger et al., arXiv 2410.01680): y' = H U^T (y - mean) / sqrt(mean of the eigenvalues), with the
      eigenvectors U of the covariance and the rotation H of `even_rotation`.

    A batch is normalised with the statistics of the batches before it, the very first with its own. Sums are over all
    processes, which therefore have to update together.

    Args:
        kind: `none`, `zscore`, `ema` or `phi_s`.
        dim: D.
        freeze_after: updates after which the statistics stay; 0: never update (statistics come from a checkpoint).
        refresh_every: `phi_s` finds a new rotation after so many updates, and when it freezes.

    Raises:
        ConfigError: a width or a number of updates that makes no sense.
    """

    #: Buffers: mean and scale `[D]`, the rotation `[D, D]` of `phi_s`, sums in float64.
    mean: Tensor
    scale: Tensor
    rotation: Tensor
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, kind: Normalisation, dim: int, freeze_after: int = 3000, refresh_every: int = 100) -> None:
        super().__init__()
        if dim < 1 or freeze_after < 0 or refresh_every < 1:
            raise ConfigError(
                f"target normalisation needs dim >= 1, freeze_after >= 0 and refresh_every >= 1; found {dim}, "
                f"{freeze_after}, {refresh_every}"
            )
        self.kind, self.dim = kind, dim
        self.freeze_after, self.refresh_every = freeze_after, refresh_every
        self.updates = 0
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        if kind == "phi_s":
            self.register_buffer("rotation", torch.eye(dim))
        if kind in ("zscore", "phi_s"):
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))
            self.register_buffer("total", torch.zeros(dim, dtype=torch.float64))
            shape = (dim, dim) if kind == "phi_s" else (dim,)
            self.register_buffer("products", torch.zeros(shape, dtype=torch.float64))

    def forward(self, target: Tensor, update: bool = False) -> Tensor:
        """Return the normalised targets `[..., D]`; with `update`, they count in the statistics from the next call on.

        Raises:
            ModelError: the last axis is not D wide.
        """
        if target.shape[-1] != self.dim:
            raise ModelError(
                f"target normalisation was made for {self.dim} channels, found targets {tuple(target.shape)}; the last "
                "axis has to be the channels"
            )
        if self.kind == "none":
            return target
        first = update and self.updates == 0
        if first:
            self.update(target)
        values = (target.to(torch.promote_types(target.dtype, torch.float32)) - self.mean) / self.scale
        if self.kind == "phi_s":
            values = values @ self.rotation.T
        if update and not first:
            self.update(target)
        return values

    def inverse(self, values: Tensor) -> Tensor:
        """Return the targets of which `values` `[..., D]` are the normalised ones."""
        if self.kind == "phi_s":
            values = values @ self.rotation
        return values if self.kind == "none" else values * self.scale + self.mean

    @property
    def frozen(self) -> bool:
        """True when the statistics stay as they are."""
        return self.kind == "none" or self.updates >= self.freeze_after

    @torch.no_grad()
    def update(self, target: Tensor) -> None:
        """Let a batch of targets `[..., D]` count in the statistics; does nothing once they are frozen."""
        if self.frozen:
            return
        rows = target.detach().reshape(-1, self.dim).to(torch.float64)
        count = sum_over_processes(torch.tensor(float(rows.shape[0]), dtype=torch.float64, device=rows.device))
        total = sum_over_processes(rows.sum(dim=0))
        products = sum_over_processes(rows.T @ rows if self.kind == "phi_s" else rows.square().sum(dim=0))
        self.updates += 1
        if self.kind == "ema":
            self._average(total, products, count)
            return
        self.count += count
        self.total += total
        self.products += products
        if self.kind == "zscore":
            mean = self.total / self.count.clamp_min(1)
            self._set(mean, (self.products / self.count.clamp_min(1) - mean.square()).clamp_min(0))
        elif self.updates == 1 or self.updates % self.refresh_every == 0 or self.frozen:
            self._rotate()

    def fold(self, linear: nn.Linear) -> nn.Linear:
        """Return the linear layer that gives raw targets where `linear` gives normalised ones.

        Raises:
            ModelError: the layer is not D wide.
        """
        if linear.out_features != self.dim:
            raise ModelError(f"can't fold statistics of {self.dim} channels into a layer of {linear.out_features}")
        folded = nn.Linear(linear.in_features, self.dim, device=linear.weight.device, dtype=linear.weight.dtype)
        with torch.no_grad():
            zero = self.inverse(torch.zeros_like(self.mean))
            folded.weight.copy_((self.inverse(linear.weight.T.to(self.mean)) - zero).T)
            bias = torch.zeros_like(self.mean) if linear.bias is None else linear.bias.to(self.mean)
            folded.bias.copy_(self.inverse(bias))
        return folded

    def get_extra_state(self) -> Tensor:
        """Return the number of updates, for checkpoints."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number of updates from a checkpoint."""
        self.updates = int(state)

    def extra_repr(self) -> str:
        """Say the settings."""
        return f"{self.kind}, dim={self.dim}, freeze_after={self.freeze_after}, refresh_every={self.refresh_every}"

    def _average(self, total: Tensor, products: Tensor, count: Tensor) -> None:
        done = (self.updates - 1) / max(self.freeze_after - 1, 1)
        momentum = (0.001 + 0.999 * (1 + math.cos(math.pi * done)) / 2) * (count > 0)
        mean = total / count.clamp_min(1)
        variance = (products / count.clamp_min(1) - mean.square()).clamp_min(0)
        old_mean, old_variance = self.mean.double(), self.scale.double().square()
        self._set(old_mean + momentum * (mean - old_mean), old_variance + momentum * (variance - old_variance))

    def _rotate(self) -> None:
        mean = self.total / self.count.clamp_min(1)
        covariance = self.products / self.count.clamp_min(1) - mean[:, None] * mean
        variances, directions = torch.linalg.eigh(covariance)
        variances = variances.clamp_min(0)
        self._set(mean, variances.mean().expand(self.dim))
        self.rotation.copy_(even_rotation(variances) @ directions.T)

    def _set(self, mean: Tensor, variance: Tensor) -> None:
        self.mean.copy_(mean)
        self.scale.copy_(variance.sqrt().clamp_min(EPSILON))
