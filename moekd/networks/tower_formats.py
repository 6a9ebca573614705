"""Where open_clip, transformers, timm and this project keep the weights of a transformer tower.

Reads a tower out of a model under the project's own names, and writes it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .inherit import Modality, TowerWeights


class Entry(NamedTuple):
    """A tensor under the project's own name, and the parameters of a model that hold it (joined along axis 0).

    Attributes:
        name: see `TowerWeights`; `{i}` is the layer.
        own: names of parameters, behind the prefix of the tower.
        form: `plain`, `transposed`, or `row` where the model has leading axes of size 1.
    """

    name: str
    own: tuple[str, ...]
    form: str = "plain"


def _pairs(names: dict[str, str | tuple[str, ...]]) -> list[Entry]:
    return [
        Entry(f"{name}.{part}", tuple(f"{one}.{part}" for one in ([own] if isinstance(own, str) else own)))
        for name, own in names.items()
        for part in ("weight", "bias")
    ]


OWN_BLOCK = {k: f"blocks.{{i}}.{k}" for k in ("norm1", "attn.qkv", "attn.proj", "norm2", "fc1", "fc2")}
OWN: list[Entry] = [
    *_pairs({f"blocks.{{i}}.{name}": own for name, own in OWN_BLOCK.items()}),
    *_pairs({"patches": "patches", "pre_norm": "pre_norm", "norm": "norm"}),
    *(Entry(name, (name,)) for name in ("cls", "positions", "tokens.weight")),
]
_OPEN_CLIP_BLOCK = {
    "norm1": "ln_1",
    "attn.proj": "attn.out_proj",
    "norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}
OPEN_CLIP: list[Entry] = [
    *_pairs({f"blocks.{{i}}.{name}": f"transformer.resblocks.{{i}}.{own}" for name, own in _OPEN_CLIP_BLOCK.items()}),
    Entry("blocks.{i}.attn.qkv.weight", ("transformer.resblocks.{i}.attn.in_proj_weight",)),
    Entry("blocks.{i}.attn.qkv.bias", ("transformer.resblocks.{i}.attn.in_proj_bias",)),
    *_pairs({"patches": "conv1", "pre_norm": "ln_pre"}),
    Entry("cls", ("class_embedding",)),
    Entry("positions", ("positional_embedding",)),
    Entry("tokens.weight", ("token_embedding.weight",)),
]
_TRANSFORMERS_BLOCK: dict[str, str | tuple[str, ...]] = {
    "norm1": "layer_norm1",
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
TRANSFORMERS: list[Entry] = [
    *_pairs(
        {
            f"blocks.{{i}}.{name}": tuple(f"encoder.layers.{{i}}.{o}" for o in ([own] if isinstance(own, str) else own))
            for name, own in _TRANSFORMERS_BLOCK.items()
        }
    ),
    *_pairs({"patches": "embeddings.patch_embedding", "pre_norm": "pre_layrnorm"}),
    Entry("cls", ("embeddings.class_embedding",)),
    Entry("positions", ("embeddings.position_embedding.weight",)),
    Entry("tokens.weight", ("embeddings.token_embedding.weight",)),
]
_TIMM_BLOCK = {"norm1": "norm1", "attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "norm2": "norm2"}
TIMM: list[Entry] = [
    *_pairs({f"blocks.{{i}}.{name}": f"blocks.{{i}}.{own}" for name, own in _TIMM_BLOCK.items()}),
    *_pairs({"blocks.{i}.fc1": "blocks.{i}.mlp.fc1", "blocks.{i}.fc2": "blocks.{i}.mlp.fc2"}),
    *_pairs({"patches": "patch_embed.proj", "pre_norm": "norm_pre", "norm": "norm"}),
    Entry("cls", ("cls_token",), "row"),
    Entry("positions", ("pos_embed",), "row"),
]


class Format(NamedTuple):
    """How a model keeps one of its towers.

    Attributes:
        entries: its tensors.
        prefix: in front of their names.
        attention: path of the attention of layer `{i}`, behind the prefix.
        projection: the layer behind the tower, with its whole path.
    """

    entries: list[Entry]
    prefix: str
    attention: str
    projection: Entry | None


def format_of(model: nn.Module, modality: Modality, who: str) -> Format:
    """Return how a model keeps a tower.

    Raises:
        ConfigError: it has no such tower, or one that is no transformer of a known kind.
    """
    keys = model.state_dict().keys()
    image = modality == "image"
    if f"{modality}.blocks.0.norm1.weight" in keys:
        return Format(
            OWN, f"{modality}.", "blocks.{i}.attn", Entry("projection.weight", (f"{modality}_projection.weight",))
        )
    for prefix in ("visual.",) if image else ("text.", ""):
        if f"{prefix}transformer.resblocks.0.ln_1.weight" in keys:
            end = "ln_post" if image else "ln_final"
            entries = [*OPEN_CLIP, *_pairs({"norm": end})]
            name = "visual.proj" if image else f"{prefix}text_projection"
            flat = f"{name}.weight" if f"{name}.weight" in keys else name
            projection = Entry("projection.weight", (flat,), "plain" if flat != name else "transposed")
            return Format(entries, prefix, "transformer.resblocks.{i}.attn", projection)
    prefix = "vision_model." if image else "text_model."
    if f"{prefix}encoder.layers.0.layer_norm1.weight" in keys:
        end = "post_layernorm" if image else "final_layer_norm"
        name = "visual_projection" if image else "text_projection"
        projection = Entry("projection.weight", (f"{name}.weight",))
        return Format([*TRANSFORMERS, *_pairs({"norm": end})], prefix, "encoder.layers.{i}.self_attn", projection)
    if image and "blocks.0.norm1.weight" in keys and "patch_embed.proj.weight" in keys:
        return Format(TIMM, "", "blocks.{i}.attn", None)
    raise ConfigError(f"inherit: {who} has no {modality} tower that is a transformer of a known kind; see 'towers'")


def read_tower(model: nn.Module, modality: Modality, who: str) -> TowerWeights:
    """Return the weights of a tower under the project's own names.

    Raises:
        ConfigError: there is none of a known kind, or it has parts that are not known here.
    """
    found, state = format_of(model, modality, who), model.state_dict()
    tensors, used = dict[str, Tensor](), set[str]()
    for name, natives, form in _entries(found, state):
        parts = [state[native].detach() for native in natives]
        tensors[name] = _read(parts, form)
        used |= set(natives)
    prefix = found.prefix
    inside = {key for key in state if key.startswith(prefix)} if prefix else set(state)
    if not prefix:
        inside = {key for key in inside if not key.startswith("visual.") and key not in ("logit_scale", "logit_bias")}
    if unknown := sorted(key for key in inside - used if not key.endswith("attn_mask")):
        raise ConfigError(f"inherit: {who} has parts that can't be taken over, such as '{unknown[0]}'")
    layers = sum(1 for name in tensors if name.endswith(".norm1.weight"))
    heads = []
    for i in range(layers):
        attention: Any = dict(model.named_modules()).get(prefix + found.attention.format(i=i))
        heads.append(0 if attention is None else int(getattr(attention, "num_heads", getattr(attention, "heads", 0))))
    return TowerWeights(tensors, tuple(heads), _traits(model, found, modality))


@torch.no_grad()
def write_tower(model: nn.Module, modality: Modality, tensors: dict[str, Tensor], who: str) -> None:
    """Write weights under the project's own names into a tower; what is not given stays."""
    found, state = format_of(model, modality, who), model.state_dict()
    for name, natives, form in _entries(found, state):
        if name not in tensors:
            continue
        value = tensors[name].T if form == "transposed" else tensors[name]
        sizes = [state[native].shape[0] for native in natives]
        parts = [value.reshape(state[natives[0]].shape)] if len(natives) == 1 else list(value.split(sizes))
        for native, part in zip(natives, parts, strict=True):
            state[native].copy_(part)


def _entries(found: Format, state: dict[str, Tensor]) -> Iterator[Entry]:
    layers = 0
    probe = next(e for e in found.entries if e.name == "blocks.{i}.norm1.weight").own[0]
    while found.prefix + probe.format(i=layers) in state:
        layers += 1
    for name, own, form in found.entries:
        for i in range(layers) if "{i}" in name else (None,):
            natives = tuple(found.prefix + (one if i is None else one.format(i=i)) for one in own)
            if all(native in state for native in natives):
                yield Entry(name if i is None else name.format(i=i), natives, form)
    if found.projection is not None and found.projection.own[0] in state:
        yield found.projection


def _read(parts: list[Tensor], form: str) -> Tensor:
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if form == "transposed":
        return whole.T.contiguous()
    if form == "row":
        return whole[0, 0] if whole.shape[:2] == (1, 1) else whole[0]
    return whole


def _traits(model: nn.Module, found: Format, modality: Modality) -> dict[str, str]:
    """Return what else has to agree, such as the activation, and whether texts are read causally."""
    whole: Any = model
    if found.entries is OWN:
        tower = getattr(whole, modality)
        said = {"activation": "quick_gelu" if tower.blocks[0].quick else "gelu", "pool": tower.pool}
        said["epsilon"] = f"{tower.norm.eps:g}"
        return said | ({"causal": str(tower.causal)} if modality == "text" else {})
    if found.entries is TIMM:
        pool = "mean" if whole.global_pool == "avg" else "cls"
        return {"activation": "gelu", "pool": pool, "epsilon": f"{whole.norm.eps:g}"}
    if "layers" in found.attention:
        config = whole.config.vision_config if modality == "image" else whole.config.text_config
        said = {"activation": str(config.hidden_act), "pool": "cls" if modality == "image" else "last"}
        said["epsilon"] = f"{config.layer_norm_eps:g}"
        return said | ({"causal": "True"} if modality == "text" else {})
    block = whole.get_submodule(f"{found.prefix}transformer.resblocks.0")
    quick = "quick" in type(block.mlp.gelu).__name__.lower()
    tower = whole.visual if modality == "image" else (whole.text if found.prefix else whole)
    said = {"activation": "quick_gelu" if quick else "gelu", "epsilon": f"{block.ln_1.eps:g}"}
    if modality == "image":
        return said | {"pool": {"tok": "cls", "avg": "mean"}.get(tower.pool_type, str(tower.pool_type))}
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", "argmax"))
    causal = getattr(tower, "attn_mask", None) is not None
    return said | {"pool": "last" if pool in ("argmax", "eos", "last") else str(pool), "causal": str(causal)}
