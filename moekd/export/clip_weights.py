"""open_clip's image and text transformers under the names of transformers' CLIP.

Both are the towers of Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
2021, arXiv 2103.00020; query, key and value are one matrix in one library and three in the other, projections are
transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError

ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
CLIP_VOCABULARY, CLIP_END, LEGACY_END = 49408, 49407, 2
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def vision_weights(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the weights of `CLIPVisionModel`'s inside, and the projection `[D, width]`; `state` is that of `visual`.

    Raises:
        ModelError: a weight that CLIP does not have.
    """
    state = dict(state)
    projection = state.pop("proj", None)
    if projection is None:
        raise ModelError("the image tower has no projection")
    return _renamed(state, _VISION, "image tower"), projection.T


def text_weights(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Return the weights of `CLIPTextModel`'s inside, and the projection `[D, width]`; `state`: that of the text tower.

    Raises:
        ModelError: a weight that CLIP does not have.
    """
    state = dict(state)
    matrix, linear = state.pop("text_projection", None), state.pop("text_projection.weight", None)
    if matrix is None and linear is None:
        raise ModelError("the text tower has no projection without a bias")
    renamed = _renamed(state, _TEXT, "text tower")
    if linear is not None:
        return renamed, linear
    assert matrix is not None
    return renamed, matrix.T


def vision_options(visual: Any, width: int) -> dict[str, Any]:
    """Return the options of `CLIPVisionConfig` for an image transformer of open_clip."""
    blocks, patch = visual.transformer.resblocks, visual.conv1.kernel_size
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    return _transformer_options(blocks) | {"image_size": int(size), "patch_size": patch[0], "projection_dim": width}


def text_options(text: Any, width: int) -> dict[str, Any]:
    """Return the options of `CLIPTextConfig` for a text transformer of open_clip."""
    vocabulary = int(text.token_embedding.num_embeddings)
    return _transformer_options(text.transformer.resblocks) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": int(text.positional_embedding.shape[0]),
        "projection_dim": width,
        "eos_token_id": CLIP_END if vocabulary == CLIP_VOCABULARY else LEGACY_END,
    }


def _transformer_options(blocks: Any) -> dict[str, Any]:
    first = blocks[0]
    if not hasattr(first, "attn") or not isinstance(first.attn, nn.MultiheadAttention):
        raise ModelError(f"its transformer has blocks of type {type(first).__name__}")
    gelu = first.mlp.gelu
    activation = ACTIVATIONS.get(type(gelu).__name__)
    if activation is None:
        raise ModelError(f"its transformer has the activation {type(gelu).__name__}")
    return {
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": "gelu_pytorch_tanh" if getattr(gelu, "approximate", "none") == "tanh" else activation,
        "layer_norm_eps": first.ln_1.eps,
    }


def _renamed(state: Mapping[str, Tensor], outside: Mapping[str, str], what: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            if name not in outside:
                raise ModelError(f"the {what} has the weight '{name}', which CLIP of transformers does not have")
            renamed[outside[name]] = value
            continue
        prefix, inside = f"encoder.layers.{block[1]}", block[2]
        stem, _, kind = inside.rpartition(".")
        if inside in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for letter, part in zip("qkv", torch.chunk(value, 3), strict=True):
                renamed[f"{prefix}.self_attn.{letter}_proj.{inside.rpartition('_')[2]}"] = part
        elif stem in _INSIDE:
            renamed[f"{prefix}.{_INSIDE[stem]}.{kind}"] = value
        else:
            raise ModelError(f"the {what} has the weight '{name}', which CLIP of transformers does not have")
    return renamed
