"""A folder that transformers loads: `AutoModel.from_pretrained(FOLDER)`, with its image processor and its tokenizer.

    <folder>/ config.json  model.safetensors  preprocessor_config.json  tokenizer files  README.md

No code of moekd is needed or written. Right after writing, transformers loads the folder and has to give the student's
embeddings (or logits) to 1e-5, its own preparation of pictures and texts included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..atomic import atomic_directory, write_bytes, write_json, write_text
from ..errors import ModelError
from ..networks.adapter import Adapter
from ..networks.images import ImageContract, ImageSettings
from ..networks.open_clip import OpenClip
from ..networks.sounds import SoundContract
from ..networks.transformers import AUTO_CLASSIFIERS, Transformers
from ..networks.transformers_files import hugging_face
from .cards import format_card, transformers_use
from .pictures import is_grey, preparation, prepared, sample_pictures
from .proof import SENTENCES, prove, refuse
from .student import load_student
from .tokenizer import tokenizer_of
from .transformers_models import FORMAT, Source, transformers_source

CLASSIFIER = "classifier.safetensors"
TASKS = {"image": "image-feature-extraction", "text": "feature-extraction", "audio": "feature-extraction"}
LOADERS = {"image": "AutoImageProcessor", "text": "AutoTokenizer", "audio": "AutoFeatureExtractor"}
CALLS = {
    "image": 'inputs = processor(picture, return_tensors="pt")  # picture: a PIL image',
    "text": 'inputs = tokenizer(["a cat"], padding="max_length", truncation=True, return_tensors="pt")',
    "audio": 'inputs = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")',
}
POOLED = {
    "pooler": "model({given}).pooler_output.flatten(1)",
    "cls": "model({given}).last_hidden_state[:, 0]",
    "mean": "model({given}).last_hidden_state.mean(dim=1)  # of the tokens that are no padding (or of the patches)",
}
GREY = "The student was trained on grey pictures: convert pictures to grey (`picture.convert('L')`) first.\n"


def write_transformers(student: Path, document: Mapping[str, Any], target: Path) -> Path:
    """Write a student as a folder of transformers.

    Args:
        student: folder of the student.
        document: its `config.json`.
        target: folder to write.

    Raises:
        ModelError: transformers can't express the student, or gives other embeddings.
        DataError: `target` exists.
    """
    network = load_student(student)
    pictures = preparation(network, document["fields"]) if isinstance(network, Adapter) else None
    source = transformers_source(network, pictures, document)
    assert isinstance(network, Adapter)
    with atomic_directory(target) as temporary, _quiet():
        source.model.save_pretrained(temporary)
        if source.processor is not None:
            source.processor.save_pretrained(temporary)
        tokenizer = tokenizer_of(network)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if source.classifier:
            content = {name: value.contiguous() for name, value in source.classifier.items()}
            write_bytes(temporary / CLASSIFIER, safetensors.torch.save(content, metadata={"format": "pt"}))
        how = pooling(network)
        if how in ("mean", "cls") and network.texts:
            _sentence_encoder(temporary, how, next(iter(network.texts.values())).context)
        prove_transformers(network, pictures, source, temporary)
        write_text(temporary / "README.md", _card(network, source, student, document))
    return target


@torch.no_grad()
def prove_transformers(
    network: Adapter, pictures: ImageSettings | None, source: Source, folder: Path
) -> dict[str, float]:
    """Load a folder with transformers and compare it with the student; returns the largest differences.

    Raises:
        ModelError: transformers can't load it, or gives other numbers.
    """
    auto = auto_class(network, source)
    try:
        model, info = getattr(hugging_face(), auto).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(f"transformers can't load what was written: {error}; nothing is exported") from error
    lost = sorted(key for key in info["missing_keys"] if "pooler" not in key) + sorted(info["unexpected_keys"])
    if type(model) is not type(source.model) or lost:
        raise refuse(FORMAT, f"{auto} makes a {type(model).__name__} of it ({', '.join(lost[:3]) or 'another model'})")
    model.eval()
    found, expected = dict[str, Tensor](), dict[str, Tensor]()
    for name, modality in network.readers.items():
        given, own = _inputs(network, name, modality, pictures, folder)
        expected[modality] = _encode(network, modality, own)
        if auto in AUTO_CLASSIFIERS.values():
            found[modality] = model(**given).logits
            if network.classifier is not None:
                expected[modality] = network.classifier(expected[modality])
        elif hasattr(model, f"get_{modality}_features"):
            found[modality] = _vector(getattr(model, f"get_{modality}_features")(**given))
        elif isinstance(network, Transformers):
            found[modality] = _pooled(network, model, modality, given)
        else:
            found[modality] = model(**given).pooler_output
    scale, written = network.scale_and_bias()[0], getattr(model, "logit_scale", None)
    if scale is not None and written is not None:
        found["logit_scale"], expected["logit_scale"] = written.exp().reshape(1), scale.reshape(1)
    return prove(found, expected, FORMAT)


def auto_class(network: Adapter, source: Source) -> str:
    """Return the class of transformers that loads the whole student."""
    if network.logits_only or (network.classifier is not None and not source.classifier):
        return AUTO_CLASSIFIERS[next(iter(network.readers.values()))]
    return "AutoModel"


def pooling(network: Adapter) -> str:
    """Return where the embedding is: "features", "pooler", "cls" or "mean"; "logits" for classifiers of their own."""
    if network.logits_only:
        return "logits"
    if not isinstance(network, Transformers):
        return "features" if isinstance(network, OpenClip) else "pooler"
    if network.dual or network.pool != "auto":
        return "features" if network.dual else network.pool
    name = next(iter(network.readers))
    reader = network.reader(name)
    with torch.no_grad():
        if isinstance(reader, SoundContract):
            given = reader(torch.zeros(1, min(reader.rate, reader.limit or reader.rate)))
        else:
            assert isinstance(reader, ImageContract)
            given = {"pixel_values": torch.zeros(1, 3, *reader.settings.size)}
        said = network.model(**given)
    return "pooler" if getattr(said, "pooler_output", None) is not None else network.fallback


def _inputs(
    network: Adapter, name: str, modality: str, pictures: ImageSettings | None, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the folder's own files make of samples, and what the student's code makes of them."""
    transformers = hugging_face()
    if modality == "image":
        assert pictures is not None
        samples = sample_pictures(pictures)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        return dict(processor(samples, return_tensors="pt")), {"pixel_values": prepared(pictures, samples)}
    if modality == "text":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids, mask = network.texts[name](list(SENTENCES))
        padding = "max_length" if network.texts[name].fixed else "longest"
        said = tokenizer(list(SENTENCES), padding=padding, truncation=True, return_tensors="pt")
        kept = ("input_ids", "attention_mask") if getattr(network, "masked", True) else ("input_ids",)
        return {key: said[key] for key in kept if key in said}, {"input_ids": ids, "attention_mask": mask}
    reader = network.reader(name)
    assert isinstance(reader, SoundContract)
    wave = torch.randn(2, min(reader.rate, reader.limit or reader.rate), generator=torch.Generator().manual_seed(0))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    return dict(extractor(list(wave.numpy()), sampling_rate=reader.rate, return_tensors="pt")), reader(wave)


def _encode(network: Adapter, modality: str, given: Mapping[str, Tensor]) -> Tensor:
    if modality == "text":
        mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
        return network.encode_text(given["input_ids"], mask.bool())
    return network.encode(modality, given["pixel_values"] if modality == "image" else given)


def _pooled(network: Transformers, model: nn.Module, modality: str, given: Mapping[str, Tensor]) -> Tensor:
    """Return the embedding of an encoder's tokens, pooled as the student does it."""
    kept = network.model
    try:
        network.model = model
        return _encode(network, modality, given)
    finally:
        network.model = kept


def _vector(said: Any) -> Tensor:
    vector: Tensor = said if isinstance(said, Tensor) else said.pooler_output
    return vector


def _sentence_encoder(folder: Path, how: str, context: int) -> None:
    """Say how tokens are pooled, as the library sentence-transformers does it."""
    width = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("hidden_size")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {"word_embedding_dimension": width, f"pooling_mode_{how}{'_tokens' * (how == 'mean')}": True}
    if how == "cls":
        pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": context, "do_lower_case": False})


def _card(network: Adapter, source: Source, student: Path, document: Mapping[str, Any]) -> str:
    how, auto = pooling(network), auto_class(network, source)
    modalities = list(dict.fromkeys(network.readers.values()))
    lines = [f"from transformers import {', '.join(sorted({auto, *(LOADERS[m] for m in modalities)}))}", ""]
    lines.append(f'model = {auto}.from_pretrained("FOLDER").eval()')
    for modality in modalities:
        loader, call = LOADERS[modality], CALLS[modality]
        if modality == "text" and network.texts and not next(iter(network.texts.values())).fixed:
            call = call.replace('padding="max_length"', "padding=True")
        lines += [f'{loader_name(modality)} = {loader}.from_pretrained("FOLDER")', call]
        masked = modality != "text" or getattr(network, "masked", True)
        given = "**inputs" if masked else 'inputs["input_ids"]'
        if auto != "AutoModel":
            lines.append(f"logits = model({given}).logits")
        elif how == "features":
            lines.append(f"{modality} = model.get_{modality}_features({given}).pooler_output")
        else:
            lines.append(f"{modality} = {POOLED[how].format(given=given)}")
    notes = GREY if is_grey(network, document["fields"]) else ""
    if source.classifier:
        notes += f"`{CLASSIFIER}` has `weight` and `bias` of the linear classifier that stands on this embedding.\n"
    task = "image-classification" if auto == AUTO_CLASSIFIERS["image"] else TASKS[modalities[0]]
    if len(modalities) == 2 and "image" in modalities:
        task = "zero-shot-image-classification"
    return format_card(student, FORMAT, transformers_use("\n".join(lines), notes), {"pipeline_tag": task})


def loader_name(modality: str) -> str:
    """Return the variable of a modality's processor in the README."""
    return {"image": "processor", "text": "tokenizer", "audio": "extractor"}[modality]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars of saving and loading from the terminal."""
    log = hugging_face().utils.logging
    shown, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
