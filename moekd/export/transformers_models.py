"""Students as models of the library transformers, without code of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..networks.adapter import Adapter, library
from ..networks.images import ImageSettings
from ..networks.open_clip import OpenClip
from ..networks.timm import Timm
from ..networks.transformers import Transformers
from ..networks.transformers_files import PILLOW_FILTERS, hugging_face
from ..networks.two_tower import TwoTower
from .clip_weights import text_options, text_weights, vision_options, vision_weights
from .open_clip_format import open_clip_source
from .proof import refuse

FORMAT = "transformers"
TIMM_CROPS = {"shortest": "center", "squash": "squash"}


@dataclass(frozen=True)
class Source:
    """A student in the terms of transformers.

    Attributes:
        model: the model to save.
        processor: an image processor or feature extractor to save; None where the model's config says it.
        classifier: weights of a linear classifier on the embedding that the model has no place for.
    """

    model: Any
    processor: Any = None
    classifier: dict[str, Tensor] = field(default_factory=dict)


def transformers_source(network: nn.Module, pictures: ImageSettings | None, document: Mapping[str, Any]) -> Source:
    """Put a student into the terms of transformers.

    Args:
        network: the student's network.
        pictures: how its pictures are prepared, if it reads any.
        document: its `config.json`.

    Raises:
        ModelError: it can't be.
    """
    if getattr(network, "tip_adapter", None) is not None:
        raise refuse(FORMAT, "labelled pictures vote beside its classifier")
    if isinstance(network, Transformers):
        return Source(network.model, _processor(network, pictures), _classifier(network))
    if isinstance(network, Timm):
        assert pictures is not None
        return _timm(network, pictures, document)
    if isinstance(network, OpenClip):
        try:
            return Source(open_clip_model(network.model, pictures), _processor(network, pictures))
        except ModelError as error:
            raise refuse(FORMAT, str(error), "open_clip, onnx, torch_export, safetensors") from error
    if isinstance(network, TwoTower):
        return Source(_two_tower(network, pictures, document), _processor(network, pictures))
    raise refuse(FORMAT, f"networks of kind '{document['network']['kind']}' are no models of that library")


def image_processor(pictures: ImageSettings) -> Any:
    """Return an image processor that prepares pictures as a student's own code does.

    Raises:
        ModelError: transformers has none that does.
    """
    (height, width), square = pictures.size, pictures.size[0] == pictures.size[1]
    if pictures.resize == "longest" or (pictures.resize == "shortest" and not square):
        raise refuse(FORMAT, f"its pictures are resized by '{pictures.resize}' to {height} x {width}")
    cut = pictures.resize == "shortest"
    size = {"shortest_edge": pictures.scale_to or height} if cut else {"height": height, "width": width}
    return hugging_face().CLIPImageProcessor(
        do_resize=True,
        size=size,
        do_center_crop=cut,
        crop_size={"height": height, "width": width},
        resample=_filter(pictures),
        image_mean=list(pictures.mean),
        image_std=list(pictures.std),
        do_convert_rgb=True,
    )


def open_clip_model(model: Any, pictures: ImageSettings | None) -> Any:
    """Return a model of open_clip as CLIP, or with an image tower of timm as a dual encoder.

    Raises:
        ModelError: it has a part that these don't have.
    """
    transformers = hugging_face()
    if getattr(model, "logit_bias", None) is not None:
        raise ModelError("it has a bias on its cosines (a SigLIP)")
    state = {name: value.detach() for name, value in model.state_dict().items()}
    prefix = "text." if hasattr(model, "text") else ""
    text = model.text if prefix else model
    if not hasattr(text, "token_embedding"):
        raise ModelError(f"its text tower is a {type(text).__name__}")
    if text.attn_mask is None:
        raise ModelError("its text tower looks in both directions, that of CLIP in one")
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    others = ("visual.", "logit_scale", "logit_bias")
    texts, text_projection = text_weights({k: v for k, v in own.items() if prefix or not k.startswith(others)})
    width = text_projection.shape[0]
    visual = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    weights = {f"text_model.{name}": value for name, value in texts.items()}
    weights |= {"text_projection.weight": text_projection, "logit_scale": state["logit_scale"].reshape(())}
    options = text_options(text, width)
    if hasattr(model.visual, "trunk"):
        if pictures is None or set(visual) - {name for name in visual if name.startswith("trunk.")} != {
            "head.proj.weight"
        }:
            raise ModelError("its image tower of timm has another head than a linear one without bias")
        weights |= {f"vision_model.timm_model.{k[6:]}": v for k, v in visual.items() if k.startswith("trunk.")}
        weights["visual_projection.weight"] = visual["head.proj.weight"]
        trunk = model.visual.trunk
        vision = timm_config(trunk, pictures, {}, hidden_size=visual["head.proj.weight"].shape[1])
        return _filled(dual_encoder(vision, transformers.CLIPTextConfig(**options), width), weights)
    if not hasattr(model.visual, "conv1") or not hasattr(model.visual, "transformer"):
        raise ModelError(f"its image tower is a {type(model.visual).__name__}")
    pixels, visual_projection = vision_weights(visual)
    weights |= {f"vision_model.{name}": value for name, value in pixels.items()}
    weights["visual_projection.weight"] = visual_projection
    config = transformers.CLIPConfig(
        text_config=options, vision_config=vision_options(model.visual, width), projection_dim=width
    )
    return _filled(transformers.CLIPModel(config), weights)


def dual_encoder(vision: Any, text: Any, width: int) -> Any:
    """Return an image tower and a text tower, each with a projection to one width, from their configs."""
    transformers = hugging_face()
    config = transformers.VisionTextDualEncoderConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=width
    )
    return transformers.VisionTextDualEncoderModel(config)


def timm_config(trunk: Any, pictures: ImageSettings, options: Mapping[str, Any], **further: Any) -> Any:
    """Return the config of a backbone of timm in transformers.

    Raises:
        ModelError: timm has no preparation like this student's.
    """
    (height, width), square = pictures.size, pictures.size[0] == pictures.size[1]
    crop = TIMM_CROPS.get(pictures.resize)
    if crop is None or (crop == "center" and not square):
        raise refuse(FORMAT, f"its pictures are resized by '{pictures.resize}' to {height} x {width}")
    known = {
        "input_size": [3, height, width],
        "mean": list(pictures.mean),
        "std": list(pictures.std),
        "interpolation": pictures.interpolation,
        "crop_pct": _share(height, pictures.scale_to or height),
        "crop_mode": crop,
    }
    name = str(trunk.pretrained_cfg.get("architecture") or "")
    if not name:
        raise refuse(FORMAT, "its backbone does not say its name")
    return hugging_face().TimmWrapperConfig(
        architecture=name, pretrained_cfg=known, model_args=dict(options) or None, **further
    )


def _share(side: int, scaled: int) -> float:
    """Return the share of a picture that a cut keeps; timm rounds `side / share` down, which has to give `scaled`."""
    share = side / scaled
    return share if math.floor(side / share) == scaled else math.nextafter(share, 0.0)


def _two_tower(network: TwoTower, pictures: ImageSettings | None, document: Mapping[str, Any]) -> Any:
    """Return a student as a model of transformers, by way of open_clip."""
    open_clip = library("open_clip", "open_clip_torch", "format transformers")
    try:
        source = open_clip_source(network, document, any_pictures=True)
        config = {**source.config, "text_cfg": {**source.config["text_cfg"]}}
        model = open_clip.CLIP(**config)
        model.load_state_dict({name: value.detach() for name, value in source.weights.items()})
        return open_clip_model(model, pictures)
    except (ModelError, RuntimeError) as error:
        reason = str(error).removeprefix("format open_clip can't express this student: ").partition("; formats")[0]
        raise refuse(FORMAT, reason) from error


def _timm(network: Timm, pictures: ImageSettings, document: Mapping[str, Any]) -> Source:
    transformers, names = hugging_face(), [str(name) for name in document["class_names"]]
    classifies = isinstance(network.classifier, nn.Linear)
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names))} if classifies and names else {}
    options = document["network"]["options"].get("options") or {}
    config = timm_config(network.model, pictures, options, **labels)
    weights = {f"timm_model.{name}": value for name, value in network.model.state_dict().items()}
    if classifies:
        assert isinstance(network.classifier, nn.Linear)
        model = transformers.TimmWrapperForImageClassification(config)
        head = model.timm_model.get_classifier()
        place = next((name for name, module in model.named_modules() if module is head), None)
        if isinstance(head, nn.Linear) and place and head.in_features == network.classifier.in_features:
            inside = {f"{place}.{key}": value for key, value in network.classifier.state_dict().items()}
            return Source(_filled(model, weights | inside))
    model = _filled(transformers.TimmWrapperModel(config), weights)
    return Source(model, None, _classifier(network))


def _filled(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """Give a model its weights.

    Raises:
        ModelError: some are missing or of another shape.
    """
    missing = sorted(set(model.state_dict()) - set(weights))
    if missing:
        raise ModelError(f"it has no weights for {', '.join(missing[:3])}")
    try:
        model.load_state_dict({name: value.detach().cpu().clone() for name, value in weights.items()}, strict=True)
    except RuntimeError as error:
        raise ModelError(f"its weights do not fit: {str(error).strip().splitlines()[-1].strip()}") from error
    return model.eval()


def _processor(network: Adapter, pictures: ImageSettings | None) -> Any:
    if pictures is not None:
        return image_processor(pictures)
    for name in network.readers:
        extractor = getattr(network.reader(name), "extractor", None)
        if extractor is not None:
            return extractor
    return None


def _classifier(network: Adapter) -> dict[str, Tensor]:
    layer = network.classifier
    return {} if layer is None else {name: value.detach().clone() for name, value in layer.state_dict().items()}


def _filter(pictures: ImageSettings) -> int:
    return next(number for number, name in PILLOW_FILTERS.items() if name == pictures.interpolation)
