"""Backbones of the library timm, with their own pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..registry import Injected
from .adapter import Adapter, Classifier, Fields, library, local_weights
from .base import NETWORKS
from .images import ImageContract, ImageOptions, as_interpolation, image_settings
from .loading import Loading, on_meta
from .texts import TextContract


@NETWORKS.register("timm")
class Timm(Adapter):
    """A backbone of timm as teacher or student: image embeddings, any layer by tap, and a classifier on top.

    The embedding is what the model gives without its classifier (after pooling), not normalised.

    Args:
        num_classes: number of classes of the data set.
        model: name of a model, with or without the tag of its weights ("vit_small_patch16_224.augreg_in21k_ft_in1k"),
            or "hf-hub:owner/name@commit".
        pretrained: true downloads the weights of the model's tag; a local .safetensors file is loaded instead.
        classifier: `none`: embeddings alone; `new`: a new linear layer for the classes of the data set; `own`: the
            model's own, whose classes must then be the data set's.
        image: replaces parts of the model's own preparation of pictures.
        options: further options of `timm.create_model` (`img_size`, `drop_path_rate`, say).
        fields: what the data set says about the fields in `inputs`.
        loading: how much of the model is made.

    Raises:
        ConfigError: an unknown model or option, weights that do not fit, or a field that is no picture.
        MissingDependencyError: timm is not installed.

    Shape:
        input `[B, 3, H, W]` or `[B, 1, H, W]`; embedding image `[B, D]`, logits `[B, C]`; taps model.blocks.0,
        model.stages.1, ..., classifier.
    """

    def __init__(
        self,
        model: str,
        num_classes: Injected[int] = 0,
        pretrained: bool | str = False,
        classifier: Classifier = "none",
        image: ImageOptions | None = None,
        options: dict[str, Any] | None = None,
        fields: Injected[Fields | None] = None,
        loading: Injected[Loading] = "weights",
    ) -> None:
        super().__init__("timm")
        if "num_classes" in (options or {}):
            raise ConfigError("options: num_classes can't be set here; see 'classifier'")
        extra = dict(options or {}) | ({"num_classes": 0} if classifier != "own" else {})
        self.model = backbone(model, pretrained, extra, loading)
        self.classifier = self._take_classifier(model, classifier, num_classes)
        known = pictures_of(self.model, extra.get("img_size"))
        self.settings = image_settings(known, image, f"timm model '{model}'")
        self.read_fields(fields, ("image",), lambda f, label: ImageContract(self.settings, f, label), _no_text)

    def encode(self, modality: str, value: Tensor) -> Tensor:
        """Return image embeddings `[B, D]`.

        Raises:
            ConfigError: the model gives no vector an image.
        """
        return vectors(self.model(value))

    def _take_classifier(self, name: str, classifier: Classifier, num_classes: int) -> nn.Module | None:
        if classifier == "none":
            return None
        if classifier == "new":
            if num_classes < 1:
                raise ConfigError("classifier: the number of classes is not known here; use 'none' or 'own'")
            width = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
            layer = nn.Linear(width, num_classes)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            return layer
        own = self.model.get_classifier()
        if not isinstance(own, nn.Linear):
            raise ConfigError(f"classifier: that of '{name}' is {type(own).__name__}, no linear layer; use 'new'")
        self.model.reset_classifier(0)
        return own


def backbone(model: str, pretrained: bool | str, options: dict[str, Any], loading: Loading = "weights") -> nn.Module:
    """Make a model of timm.

    Args:
        model: its name.
        pretrained: true for the weights of its tag, or a local .safetensors file.
        options: of `timm.create_model`.
        loading: how much of it is made.

    Raises:
        ConfigError: an unknown model or option, or weights that do not fit.
        MissingDependencyError: timm is not installed.
    """
    timm = library("timm", "timm", "network kind 'timm'")
    if "/" not in model and not timm.is_model(model.partition(".")[0]):
        raise ConfigError(f"model: timm has no '{model}'{did_you_mean(model, timm.list_models())}")
    if reserved := {"pretrained", "in_chans", "pretrained_cfg_overlay"} & set(options):
        raise ConfigError(f"options: {', '.join(sorted(reserved))} can't be set here")
    wanted = pretrained if loading == "weights" else False
    if isinstance(wanted, str):
        file = str(local_weights(wanted, "pretrained"))
        options = options | {"pretrained_cfg_overlay": {"file": file, "custom_load": False}}
    try:
        with on_meta(loading):
            made: nn.Module = timm.create_model(model, pretrained=bool(wanted), **options)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f"model: timm can't make '{model}': {error}") from error
    return made


def pictures_of(model: nn.Module, size: int | tuple[int, int] | None = None) -> dict[str, Any]:
    """Return what timm says about a model's pictures, in the names of `ImageSettings`."""
    config = library("timm", "timm", "network kind 'timm'").data.resolve_model_data_config(model)
    height, width = config["input_size"][1:] if size is None else (size, size) if isinstance(size, int) else size
    crop, mode = float(config["crop_pct"]), config["crop_mode"]
    resize = "shortest" if mode == "center" else mode if crop == 1.0 else f"{mode} with a crop"
    return {
        "size": (height, width),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": as_interpolation(config["interpolation"]),
        "resize": resize,
        "scale_to": int(height / crop) if resize == "shortest" and height == width else None,
    }


def vectors(said: Any) -> Tensor:
    """Return a model's output, if it is one vector a picture.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(said, Tensor) or said.ndim != 2:
        found = list(said.shape) if isinstance(said, Tensor) else type(said).__name__
        raise ConfigError(f"options: this model gives {found}, expected [B, D]; set options.global_pool, say")
    return said


def _no_text(field: Any, label: str) -> TextContract:
    raise ConfigError(f"{label}: this model reads no text")
