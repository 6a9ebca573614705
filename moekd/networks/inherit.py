"""Weights of a small transformer tower, taken over from a larger one.

Manual weight inheritance of TinyCLIP (Wu et al., ICCV 2023, arXiv 2309.12314, section 3.2): layers, channels, heads and
hidden neurons are picked by a rule; what is picked keeps its weights. With equal sizes everything is kept.

Shapes: D features of a token, A heads, F hidden features, E width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

LayerRule = Literal["uniform", "first"]
WidthRule = Literal["uniform", "first", "magnitude"]
Modality = Literal["image", "text"]


@dataclass(frozen=True)
class InheritOptions:
    """Where the first weights of a student come from.

    Attributes:
        source: folder of a model of open_clip, transformers or timm, run folder or student folder of moekd, or the name
            of an architecture of open_clip.
        pretrained: tag or local .safetensors file of the weights of a named architecture.
        layers: which layers are kept: evenly spread with the first and the last among them, or the `first` ones.
        width: which channels, heads and hidden neurons are kept: evenly spread, the `first` ones, or those with the
            largest weights.
        towers: which towers inherit.
    """

    source: str
    pretrained: str | None = None
    layers: LayerRule = "uniform"
    width: WidthRule = "uniform"
    towers: list[Modality] = field(default_factory=lambda: ["image", "text"])


@dataclass(frozen=True)
class TowerWeights:
    """The weights of a tower under the project's own names, whatever library it is of.

    Attributes:
        tensors: `patches.weight`, `cls`, `tokens.weight`, `positions` `[N, D]`, `pre_norm.*`, `blocks.0.norm1.*`,
            `blocks.0.attn.qkv.*` `[3 A d, D]`, `blocks.0.attn.proj.*`, `blocks.0.norm2.*`, `blocks.0.fc1.*`,
            `blocks.0.fc2.*`, `norm.*`, `projection.weight` `[E, D]`.
        heads: A of each layer.
        traits: what else has to agree between two towers, such as the activation.
    """

    tensors: dict[str, Tensor]
    heads: tuple[int, ...]
    traits: dict[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """D."""
        return int(self.tensors["positions"].shape[1])


def pick_layers(total: int, wanted: int, rule: LayerRule = "uniform") -> list[int]:
    """Return which of `total` layers are kept, in order.

    Raises:
        ConfigError: more are wanted than there are.
    """
    _check_sizes("layers", total, wanted)
    if rule == "first" or wanted < 2:
        return list(range(wanted))
    return [round(i * (total - 1) / (wanted - 1)) for i in range(wanted)]


def pick(what: str, total: int, wanted: int, rule: WidthRule, scores: Tensor | None = None) -> Tensor:
    """Return the indices of the channels (or heads, or neurons) that are kept, int64 `[wanted]`, in order.

    Args:
        what: how messages call them.
        total: how many there are.
        wanted: how many are kept.
        rule: `uniform`: evenly spread; `first`; `magnitude`: those with the largest scores.
        scores: `[total]`, for `magnitude`.

    Raises:
        ConfigError: more are wanted than there are.
    """
    _check_sizes(what, total, wanted)
    if rule == "magnitude" and scores is not None:
        return scores.float().topk(wanted).indices.sort().values
    indices = torch.arange(wanted)
    return indices if rule == "first" else indices * total // max(wanted, 1)


def shrink(
    source: TowerWeights,
    like: TowerWeights,
    layers: LayerRule = "uniform",
    width: WidthRule = "uniform",
    embedding: Tensor | None = None,
) -> dict[str, Tensor]:
    """Cut the weights of a tower to the sizes of another one.

    Args:
        source: the larger tower.
        like: the smaller one, of which only sizes and heads count.
        layers: which layers are kept.
        width: which channels, heads and neurons are kept.
        embedding: which channels of the embedding are kept, int64 `[E]`; both towers of a model need the same ones.

    Returns:
        Tensors with the names and shapes of `like`.

    Raises:
        ConfigError: `like` is larger somewhere, or the towers are built in another way.
    """
    old, sizes = source.tensors, {name: tuple(tensor.shape) for name, tensor in like.tensors.items()}
    kept = pick("channels", source.width, like.width, width, channel_scores(source))
    new: dict[str, Tensor] = {}
    for name in ("tokens.weight", "cls", "pre_norm.weight", "pre_norm.bias", "norm.weight", "norm.bias"):
        if (name in old) != (name in sizes):
            raise ConfigError(f"only one of the two towers has '{name.partition('.')[0]}'; build them in the same way")
        if name in sizes:
            new[name] = old[name][..., kept]
    if "patches.weight" in sizes:
        new["patches.weight"] = old["patches.weight"][kept]
        if "patches.bias" in sizes:
            new["patches.bias"] = old.get("patches.bias", torch.zeros(source.width))[kept]
        elif "patches.bias" in old:
            raise ConfigError("the larger tower has a bias in its patches and the student has none")
    new["positions"] = _positions(old["positions"], sizes["positions"][0], "tokens.weight" in sizes, "cls" in sizes)[
        :, kept
    ]
    for index, layer in enumerate(pick_layers(len(source.heads), len(like.heads), layers)):
        block = {name.split(".", 2)[2]: t for name, t in old.items() if name.startswith(f"blocks.{layer}.")}
        wanted = {name.split(".", 2)[2]: s for name, s in sizes.items() if name.startswith(f"blocks.{index}.")}
        cut = _block(block, wanted, source.heads[layer], like.heads[index], kept, width)
        new |= {f"blocks.{index}.{name}": tensor for name, tensor in cut.items()}
    if "projection.weight" in old and "projection.weight" in sizes and embedding is not None:
        new["projection.weight"] = old["projection.weight"][embedding][:, kept]
    _compare(new, sizes)
    return new


def channel_scores(tower: TowerWeights) -> Tensor:
    """Return how large the weights are that read and write each channel of the residual stream, `[D]`."""
    total = torch.zeros(tower.width)
    for name, tensor in tower.tensors.items():
        if name.endswith(("qkv.weight", "fc1.weight")):
            total += tensor.float().abs().sum(dim=0)
        elif name.endswith(("attn.proj.weight", "fc2.weight")):
            total += tensor.float().abs().sum(dim=1)
    return total


def _block(
    old: dict[str, Tensor], sizes: dict[str, tuple[int, ...]], heads: int, wanted: int, kept: Tensor, rule: WidthRule
) -> dict[str, Tensor]:
    new = {name: old[name][kept] for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
    if wanted:
        inner = old["attn.proj.weight"].shape[1] // max(heads, 1)
        qkv = old["attn.qkv.weight"].unflatten(0, (3, heads, inner))
        bias = old["attn.qkv.bias"].unflatten(0, (3, heads, inner))
        proj = old["attn.proj.weight"].unflatten(1, (heads, inner))
        loud = qkv.float().abs().sum(dim=(0, 2, 3)) + proj.float().abs().sum(dim=(0, 2))
        which = pick("heads", heads, wanted, rule, loud)
        within = pick("features of a head", inner, sizes["attn.proj.weight"][1] // wanted, _plain(rule))
        new["attn.qkv.weight"] = qkv[:, which][:, :, within][..., kept].flatten(0, 2)
        new["attn.qkv.bias"] = bias[:, which][:, :, within].flatten()
        new["attn.proj.weight"] = proj[kept][:, which][:, :, within].flatten(1)
        new["attn.proj.bias"] = old["attn.proj.bias"][kept]
    if "fc1.weight" in sizes:
        loud = old["fc1.weight"].float().abs().sum(dim=1) + old["fc2.weight"].float().abs().sum(dim=0)
        neurons = pick("hidden neurons", len(loud), sizes["fc1.weight"][0], rule, loud)
        new["fc1.weight"], new["fc1.bias"] = old["fc1.weight"][neurons][:, kept], old["fc1.bias"][neurons]
        new["fc2.weight"], new["fc2.bias"] = old["fc2.weight"][kept][:, neurons], old["fc2.bias"][kept]
    return new


def _plain(rule: WidthRule) -> WidthRule:
    return "uniform" if rule == "magnitude" else rule


def _positions(old: Tensor, wanted: int, text: bool, cls: bool) -> Tensor:
    """Return the positions of shorter texts, or of a picture with another number of patches (bicubic)."""
    if text:
        _check_sizes("tokens of context", len(old), wanted)
        return old[:wanted]
    if len(old) == wanted:
        return old
    first, grid = old[: int(cls)], old[int(cls) :]
    side, new_side = round(len(grid) ** 0.5), round((wanted - cls) ** 0.5)
    if side**2 != len(grid) or new_side**2 != wanted - cls:
        raise ConfigError(f"positions of {len(grid)} patches can't become {wanted - cls}: only square pictures can")
    maps = grid.float().T.reshape(1, -1, side, side)
    maps = F.interpolate(maps, (new_side, new_side), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([first, maps.flatten(2)[0].T.to(old)])


def _check_sizes(what: str, total: int, wanted: int) -> None:
    if wanted > total:
        raise ConfigError(f"the student has {wanted} {what}, the larger model {total}; it can only be smaller")


def _compare(new: dict[str, Tensor], sizes: dict[str, tuple[int, ...]]) -> None:
    wrong: Sequence[str] = [
        f"{name}: {tuple(tensor.shape)} of the larger model, {sizes[name]} in the student"
        for name, tensor in new.items()
        if name in sizes and tuple(tensor.shape) != sizes[name]
    ]
    missing = [name for name in sizes if name not in new and not name.startswith("projection")]
    if wrong or missing:
        raise ConfigError([*wrong, *(f"{name}: not in the larger model" for name in missing)][:5])
