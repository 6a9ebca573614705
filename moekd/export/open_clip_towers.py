"""The project's own two-tower students as models of open_clip, as far as these have such towers.

What can't be said in open_clip's terms is refused with its reason: other image towers than `vit_encoder` with a class
token and those of timm, texts as bytes or vectors, attention in both directions that leaves out the padding, layers
with sizes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..networks.text_tower import CLIP, TextTower
from ..networks.timm_encoder import TimmEncoder
from ..networks.transformer import Block
from ..networks.two_tower import TwoTower
from ..networks.vit import VitEncoder
from .proof import refuse
from .tokenizer import contract_of, tokenizer_of

FORMAT, EPSILON = "open_clip", 1e-5
_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj": "attn.out_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}


def two_tower_config(network: TwoTower, size: tuple[int, int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture (`model_cfg`) of open_clip that a student has.

    Args:
        network: the student.
        size: height and width of its pictures.
        options: of its image tower, as the config has them.

    Raises:
        ModelError: open_clip has none.
    """
    towers = network.model
    if towers.text is None or not isinstance(towers.text_projection, nn.Linear):
        raise refuse(FORMAT, "it has no text tower")
    text, quick = _text_config(network, towers.text)
    config: dict[str, Any] = {"embed_dim": int(towers.width), "text_cfg": text}
    if isinstance(towers.image, VitEncoder):
        config["vision_cfg"], same = _vit_config(towers.image)
        if same != quick:
            raise refuse(FORMAT, "its two towers have different activations")
    elif isinstance(towers.image, TimmEncoder):
        if further := sorted(set(options.get("options") or {}) - {"drop_path_rate"}):
            raise refuse(FORMAT, f"its image tower is made with {', '.join(further)}")
        name = str(towers.image.model.pretrained_cfg.get("architecture"))
        config["vision_cfg"] = {
            "timm_model_name": name,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": list(size),
        }
    else:
        raise refuse(FORMAT, f"it has no image tower like {type(towers.image).__name__}")
    if quick:
        config["quick_gelu"] = True
    if towers.logit_bias is not None:
        config["init_logit_bias"] = float(towers.logit_bias.detach())
    return config


def two_tower_weights(network: TwoTower) -> dict[str, Tensor]:
    """Return the weights of a student under open_clip's names."""
    towers = network.model
    text = {"tokens.weight": "token_embedding.weight", "positions": "positional_embedding", "norm": "ln_final"}
    assert towers.text is not None
    weights = _renamed(towers.text.state_dict(), text, "")
    weights["text_projection"] = towers.text_projection.weight.T
    weights["logit_scale"] = network.scale_and_bias()[0].log()  # type: ignore[union-attr]
    if towers.logit_bias is not None:
        weights["logit_bias"] = towers.logit_bias
    if isinstance(towers.image, VitEncoder):
        image = {
            "patches": "conv1",
            "cls": "class_embedding",
            "positions": "positional_embedding",
            "pre_norm": "ln_pre",
            "norm": "ln_post",
        }
        state = dict(towers.image.state_dict())
        # open_clip's patches have no bias; added to the positions of the patches it does the same.
        bias, positions = state.pop("patches.bias"), state["positions"].clone()
        positions[1:] += bias
        weights |= _renamed(state | {"positions": positions}, image, "visual.")
        weights["visual.proj"] = towers.image_projection.weight.T
    else:
        weights |= {f"visual.trunk.{k.removeprefix('model.')}": v for k, v in towers.image.state_dict().items()}
        weights["visual.head.proj.weight"] = towers.image_projection.weight
    return weights


def two_tower_tokenizer(network: TwoTower) -> Any:
    """Return the tokenizer to save; None for open_clip's own.

    Raises:
        ModelError: open_clip has no such tokenizer.
    """
    return None if network.tokens is not None and network.tokens.name == CLIP else tokenizer_of(network)


def _text_config(network: TwoTower, tower: TextTower) -> tuple[dict[str, Any], bool]:
    contract, tokens = contract_of(network), network.tokens
    if tokens is None or contract is None or tokens.encode is None:
        raise refuse(FORMAT, "it reads texts as bytes, for which open_clip has no tokenizer")
    if tower.pool != "last":
        raise refuse(FORMAT, "its text tower takes the mean of the tokens")
    if not tower.causal and not tower.see_padding:
        raise refuse(FORMAT, "its text tower looks in both directions and leaves out the padding, which open_clip sees")
    layers, quick = _layers(tower.blocks, tower.out_features, "text tower")
    known = {"context_length": tower.context, "vocab_size": tower.tokens.num_embeddings, "width": tower.out_features}
    config = known | layers
    if not tower.causal:
        config["no_causal_mask"] = True
    if tokens.name == CLIP:
        return config, quick
    ids, mask = contract(["a"])
    end = int(ids[0][mask[0]][-1])
    return config | {"hf_tokenizer_name": "tokenizer", "pool_type": "eos", "eos_id": end}, quick


def _vit_config(tower: VitEncoder) -> tuple[dict[str, Any], bool]:
    if tower.pool != "cls":
        raise refuse(FORMAT, "its image tower takes the mean of the patches and has no class token")
    layers, quick = _layers(tower.blocks, tower.out_features, "image tower")
    channels, height, _ = tower.input_shape
    if channels != 3:
        raise refuse(FORMAT, f"its image tower takes {channels} channels")
    return {
        "image_size": height,
        "patch_size": tower.patches.kernel_size[0],
        "width": tower.out_features,
        "head_width": tower.out_features // layers.pop("heads"),
        "no_ln_pre": isinstance(tower.pre_norm, nn.Identity),
        **layers,
    }, quick


def _layers(blocks: nn.ModuleList, width: int, what: str) -> tuple[dict[str, Any], bool]:
    """Return the common sizes of transformer layers, and whether their activation is the quick one.

    Raises:
        ModelError: the layers differ, or have heads of another width than open_clip's.
    """
    sizes = set()
    for block in blocks:
        assert isinstance(block, Block)
        if block.attn is None or block.fc1 is None:
            raise refuse(FORMAT, f"layers of its {what} lack a part")
        sizes.add((block.attn.heads, block.attn.head_width, block.fc1.out_features, block.quick, block.norm1.eps))
    if len(sizes) != 1:
        raise refuse(FORMAT, f"the layers of its {what} have different sizes")
    heads, head_width, hidden, quick, epsilon = sizes.pop()
    if heads * head_width != width:
        raise refuse(FORMAT, f"the heads of its {what} have {heads} x {head_width} features, not {width}")
    said: dict[str, Any] = {"layers": len(blocks), "heads": heads, "mlp_ratio": hidden / width}
    return said | ({} if epsilon == EPSILON else {"norm_kwargs": {"eps": epsilon}}), quick


def _renamed(state: Mapping[str, Tensor], outside: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """Return a tower's weights under open_clip's names."""
    weights = {}
    for name, value in state.items():
        if name.startswith("blocks."):
            _, index, inside = name.split(".", 2)
            stem, _, kind = inside.rpartition(".")
            new = _BLOCK.get(inside) or f"{_BLOCK[stem]}.{kind}"
            weights[f"{prefix}transformer.resblocks.{index}.{new}"] = value
        else:
            stem, _, kind = name.rpartition(".")
            weights[prefix + (outside.get(name) or f"{outside[stem]}.{kind}")] = value
    return weights
