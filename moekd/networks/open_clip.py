"""Contrastive models of the library open_clip, with their own pictures, tokens and scale."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..registry import Injected
from .adapter import HUB, Adapter, Fields, hub_folder, library, local_weights
from .base import NETWORKS
from .images import ImageContract, ImageOptions, as_interpolation, image_settings
from .inherit import InheritOptions
from .loading import Loading, on_meta
from .texts import TextContract, Texts, UnknownTokens
from .tip_adapter import TipAdapterOptions
from .zero_shot import ZeroShotOptions, eval_mode

CONFIG = "open_clip_config.json"


@NETWORKS.register("open_clip")
class OpenClip(Adapter):
    """A model of open_clip as teacher or student: image and text embeddings, and classes by their names.

    Embeddings are not normalised. A field of modality "image" goes to the image tower, one of modality "text" to the
    text tower; a tower without a field does not run.

    Args:
        num_classes: number of classes of the data set.
        model: name of an architecture ("ViT-B-32"), "hf-hub:owner/name", a folder with `open_clip_config.json` and
            `open_clip_model.safetensors`, a JSON file of an architecture, or the architecture itself (`embed_dim`,
            `vision_cfg`, `text_cfg`).
        pretrained: tag of the weights of a named architecture, which open_clip downloads, or a local .safetensors file;
            None leaves new weights (a folder or a repository brings its own).
        revision: commit of a "hf-hub:" repository, so that the same weights come each time.
        zero_shot: classify by the names of the classes.
        tip_adapter: labelled pictures vote beside the classifier, see `TipAdapter`.
        image: replaces parts of the model's own preparation of pictures.
        options: further options of `open_clip.create_model` (`force_quick_gelu`, say).
        inherit: take the first weights over from a larger model, see `InheritOptions`.
        class_names, fields: what the data set says about its classes and the fields in `inputs`.
        loading: how much of the model is made.

    Raises:
        ConfigError: an unknown name or tag, weights that do not fit, or a field that the model can't read.
        MissingDependencyError: open_clip_torch is not installed.

    Shape:
        inputs image `[B, 3, H, W]` and/or text `[B, N]`; embeddings `[B, D]`, logits `[B, C]`, logit_scale `[B]`;
        taps model.visual, model.visual.transformer.resblocks.0, model.transformer.resblocks.0, ...
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        num_classes: Injected[int] = 0,
        pretrained: str | None = None,
        revision: str | None = None,
        zero_shot: ZeroShotOptions | None = None,
        tip_adapter: TipAdapterOptions | None = None,
        image: ImageOptions | None = None,
        options: dict[str, Any] | None = None,
        inherit: InheritOptions | None = None,
        class_names: Injected[list[str] | None] = None,
        fields: Injected[Fields | None] = None,
        loading: Injected[Loading] = "weights",
    ) -> None:
        super().__init__("open_clip")
        open_clip = library("open_clip", "open_clip_torch", "network kind 'open_clip'")
        who = f"open_clip model '{model}'" if isinstance(model, str) else "this open_clip model"
        with _source(open_clip, model, pretrained, revision, loading) as (name, tag, file), quiet():
            extra = dict(options or {}) | _without_weights(open_clip, name, tag, options, loading)
            try:
                with on_meta(loading):
                    self.model = open_clip.create_model(
                        name,
                        pretrained=tag if loading == "weights" else None,
                        pretrained_text=False,
                        output_dict=False,
                        **extra,
                    )
                self.tokenizer = _tokenizer(open_clip, name, model, loading)
                if file is not None and loading == "weights":
                    open_clip.load_checkpoint(self.model, str(file), strict=True)
            except (RuntimeError, ValueError, OSError, KeyError, TypeError, AssertionError) as error:
                raise ConfigError(f"model: open_clip can't make {who}: {error}") from error
        self.settings = image_settings(_known(open_clip.get_model_preprocess_cfg(self.model)), image, who)
        self.context = int(getattr(self.model, "context_length", None) or self.tokenizer.context_length)
        self.read_fields(fields, ("image", "text"), lambda f, label: ImageContract(self.settings, f, label), self._text)
        self.add_zero_shot(zero_shot, class_names, self._text(None, "class names"))
        self.add_tip_adapter(tip_adapter, num_classes, self._width)
        if inherit is not None and loading == "weights":
            from .inherit_source import take_over

            take_over(self.model, inherit)

    def encode(self, modality: str, value: Tensor) -> Tensor:
        """Return image embeddings `[B, D]`."""
        embedding: Tensor = self.model.encode_image(value)
        return embedding

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return text embeddings `[B, D]`; the model finds the end of a text by itself."""
        embedding: Tensor = self.model.encode_text(ids)
        return embedding

    def _width(self) -> int:
        with eval_mode(self), torch.no_grad():
            return self.encode("image", self._place(torch.zeros(1, 3, *self.settings.size))).shape[1]

    def scale_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """Return exp of the learned log-scale, and the bias of sigmoid models."""
        return self.model.logit_scale.exp(), getattr(self.model, "logit_bias", None)

    def text_parameters(self) -> list[nn.Parameter]:
        """Return the weights outside of the image tower."""
        return [p for name, p in self.model.named_parameters() if not name.startswith("visual.")]

    def _text(self, field: Mapping[str, Any] | None, label: str) -> TextContract:
        if self.tokenizer is None:
            return UnknownTokens(self.context, label)
        inner = getattr(self.tokenizer, "tokenizer", None)
        pad = 0 if inner is None or inner.pad_token_id is None else int(inner.pad_token_id)

        def encode(texts: Texts) -> tuple[Tensor, Tensor]:
            ids = self.tokenizer(list(texts), context_length=self.context)
            return ids, ids != pad

        return TextContract(encode, self.context, pad, True, field, label)


def architecture_of(
    model: str | dict[str, Any], revision: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the architecture of a model as `open_clip_config.json` holds it (`model_cfg`).

    Args:
        model, revision, options: those of `OpenClip`.

    Raises:
        ConfigError: open_clip does not know it, or an option that is no part of an architecture.
    """
    open_clip = library("open_clip", "open_clip_torch", "network kind 'open_clip'")
    with _source(open_clip, model, None, revision) as (name, _, _):
        config: dict[str, Any] = open_clip.get_model_config(name)
    given = dict(options or {})
    if given.pop("force_quick_gelu", False):
        config["quick_gelu"] = True
    if given.pop("force_custom_text", False):
        config["custom_text"] = True
    forced = {"force_patch_dropout": "vision_cfg", "force_image_size": "vision_cfg", "force_context_length": "text_cfg"}
    for key, part in forced.items():
        if (value := given.pop(key, None)) is not None:
            config[part][key.removeprefix("force_")] = value
    given.pop("force_preprocess_cfg", None)
    known = {"embed_dim", "quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
    if odd := sorted(set(given) - known):
        raise ConfigError(f"options: {', '.join(odd)} can't be written into an architecture")
    return config | given


@contextmanager
def _source(
    open_clip: Any,
    model: str | Mapping[str, Any],
    pretrained: str | None,
    revision: str | None,
    loading: Loading = "weights",
) -> Iterator[tuple[str, str | None, Path | None]]:
    """Yield the name that open_clip takes, the tag of its weights, and a local file of weights to load afterwards."""
    local = pretrained is not None and (pretrained.endswith(".safetensors") or Path(pretrained).expanduser().exists())
    file = local_weights(str(pretrained), "pretrained") if local and loading == "weights" else None
    if isinstance(model, str) and model.startswith(HUB):
        if loading == "meta":
            raise ConfigError(
                f"model: the architecture of '{model}' is in its repository; to check it without a download, give the "
                "architecture itself (embed_dim, vision_cfg, text_cfg) or its name in open_clip"
            )
        folder = hub_folder(model.removeprefix(HUB), revision, ["*.json", "*.txt", "*.model", "*.safetensors"])
        yield _folder(folder, file or (loading != "weights")), None, file
    elif isinstance(model, str) and Path(model).expanduser().is_dir():
        yield _folder(Path(model).expanduser(), file or (loading != "weights")), None, file
    elif isinstance(model, str) and not model.endswith(".json"):
        if model.replace("/", "-") not in open_clip.list_models():
            raise ConfigError(f"model: open_clip has no '{model}'{did_you_mean(model, open_clip.list_models())}")
        if pretrained is not None and not local:
            known = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
            if pretrained not in known:
                hint = did_you_mean(pretrained, known) or f"; tags: {', '.join(known) or 'none'}"
                raise ConfigError(f"pretrained: '{pretrained}' is no tag of '{model}' and no local file{hint}")
        yield model, None if local else pretrained, file
    else:
        if pretrained is not None and not local:
            raise ConfigError(f"pretrained: expected a local .safetensors file for this model, found '{pretrained}'")
        with tempfile.TemporaryDirectory() as temporary:
            (Path(temporary) / CONFIG).write_text(json.dumps(_architecture(model)), encoding="utf-8")
            yield f"local-dir:{temporary}", None, file


def _folder(folder: Path, weights: Path | bool | None) -> str:
    """Return open_clip's name of a folder; `weights` says whether they come from elsewhere.

    Raises:
        ConfigError: it has no config, or no weights that are safe to load.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"model: {folder} has no {CONFIG}")
    if not weights and not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model: {folder} has no .safetensors file with weights; name one under 'pretrained', or give the JSON "
            "file alone for new weights"
        )
    return f"local-dir:{folder}"


def _architecture(model: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `open_clip_config.json` for an architecture in a JSON file or a config."""
    if isinstance(model, str):
        path = Path(model).expanduser()
        try:
            model = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"model: {path} can't be read as JSON: {error}") from error
    whole = dict(model) if isinstance(model, Mapping) else {}
    inner = whole.get("model_cfg", whole)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in inner]
    if missing:
        raise ConfigError(f"model: an architecture of open_clip needs {', '.join(missing)}")
    return whole if "model_cfg" in whole else {"model_cfg": whole, "preprocess_cfg": {}}


def _without_weights(
    open_clip: Any, name: str, tag: str | None, options: Mapping[str, Any] | None, loading: Loading
) -> dict[str, Any]:
    """Return the options that leave the weights out, and keep the preparation of pictures that belongs to their tag."""
    if loading == "weights":
        return {}
    said = (open_clip.get_pretrained_cfg(name.replace("/", "-"), tag) or {}) if tag is not None else {}
    prepared = {key: said[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in said}
    prepared |= dict((options or {}).get("force_preprocess_cfg") or {})
    extra: dict[str, Any] = {"load_weights": False, "force_preprocess_cfg": prepared}
    return extra | ({"device": "meta"} if loading == "meta" else {})


def _tokenizer(open_clip: Any, name: str, model: str | Mapping[str, Any], loading: Loading = "weights") -> Any:
    """Return the tokenizer; that of an architecture alone may be named in it, since it has no folder. None: its files
    would have to be downloaded, for a model that is a description alone."""
    if loading == "meta" and (open_clip.get_model_config(name) or {}).get("text_cfg", {}).get("hf_tokenizer_name"):
        return None
    if not name.startswith("local-dir:") or (isinstance(model, str) and not model.endswith(".json")):
        return open_clip.get_tokenizer(name)
    text = _architecture(model)["model_cfg"]["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return open_clip.get_tokenizer(name)
    from open_clip.tokenizer import HFTokenizer

    return HFTokenizer(
        text["hf_tokenizer_name"],
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )


def _known(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Return what open_clip says about a model's pictures, in the names of `ImageSettings`.

    Raises:
        ConfigError: pictures are padded with a colour other than black.
    """
    if preprocess.get("fill_color") and preprocess.get("resize_mode") == "longest":
        raise ConfigError("image: this model's pictures are padded with another colour than black; set image.resize")
    return {
        "size": preprocess.get("size"),
        "mean": preprocess.get("mean"),
        "std": preprocess.get("std"),
        "interpolation": as_interpolation(preprocess.get("interpolation", "bicubic")),
        "resize": preprocess.get("resize_mode", "shortest"),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep open_clip, which tells the root logger of every step, from filling the log or setting up a handler."""
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
