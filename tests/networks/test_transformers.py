"""Models of transformers: the adapter gives what the library itself gives, and refuses what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from moekd.errors import ConfigError, ModelError
from moekd.networks import ImageOptions, TipAdapterOptions, Transformers, ZeroShotOptions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "dog", "red", "apple", "."]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = TOWER | {"image_size": 32, "patch_size": 16}
TEXTS = ["a cat", "red apple . a dog", "photo"]
IMAGE = {"image": {"modality": "image", "shape": (3, 20, 20), "dtype": "float32"}}


def save_tokenizer(folder, end="[SEP]", length=12):
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=f"[CLS] $A {end}", special_tokens=[("[CLS]", 2), (end, WORDS.index(end))]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=length, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save(folder, model):
    torch.manual_seed(0)
    model.eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    text = TOWER | {"vocab_size": 12, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=PICTURE, projection_dim=8)
    model = save(folder, transformers.CLIPModel(config))
    transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=32).save_pretrained(folder)
    return folder, model, save_tokenizer(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    text = TOWER | {"vocab_size": 12, "max_position_embeddings": 12}
    model = save(folder, transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=PICTURE)))
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, model, save_tokenizer(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(**TOWER, vocab_size=12, max_position_embeddings=20)
    return folder, save(folder, transformers.BertModel(config)), save_tokenizer(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    model = save(folder, transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURE, num_labels=5)))
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, model


def test_clip_equals_the_library(clip):
    folder, model, tokenizer = clip
    pixels = np.random.default_rng(0).integers(100, 150, (3, 40, 34, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    ours = Transformers(str(folder)).eval()
    raw = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    prepared = processor(list(pixels), return_tensors="pt")["pixel_values"]
    assert (ours.reader("image")(raw) - prepared).abs().max() < 2.5 / 255 / 0.26
    with torch.no_grad():
        said = ours(raw, TEXTS)
        own = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"), pixel_values=ours.reader("image")(raw))
    for modality, expected in (("image", own.image_embeds), ("text", own.text_embeds)):
        found = torch.nn.functional.normalize(said["embeddings"][modality], dim=1)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(said["logit_scale"], model.logit_scale.exp().expand(3))


def test_labelled_pictures_vote_beside_a_classifier(clip, vit):
    pixels = torch.rand(3, 3, 40, 34)
    votes = TipAdapterOptions(3)
    for folder, options in (
        (clip[0], {"zero_shot": ZeroShotOptions(), "class_names": ["cat", "dog"]}),
        (vit[0], {"classifier": "new"}),
    ):
        network = Transformers(str(folder), 2, tip_adapter=votes, fields=IMAGE, **options).eval()
        said = network(pixels)
        assert network.tip_adapter.keys.shape == (3, said["embeddings"]["image"].shape[1])
        network.tip_adapter.adopt(said["embeddings"]["image"], torch.tensor([1, 0, 1]))
        torch.testing.assert_close(
            network(pixels)["logits"], said["logits"] + network.tip_adapter(said["embeddings"]["image"])
        )
    with pytest.raises(ConfigError, match="logits, which the model does not give"):
        Transformers(str(clip[0]), 2, tip_adapter=votes)


def test_siglip_texts_fill_the_context_and_its_bias_is_given(siglip):
    folder, model, tokenizer = siglip
    ours = Transformers(str(folder), zero_shot=ZeroShotOptions(["{}"]), class_names=["cat", "dog"]).eval()
    ids = tokenizer(TEXTS, padding="max_length", return_tensors="pt")["input_ids"]
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        said = ours(pixels, TEXTS)
        own = model(input_ids=ids, pixel_values=pixels * 2 - 1)
        classes = tokenizer(["cat", "dog"], padding="max_length", return_tensors="pt")["input_ids"]
        logits = model(input_ids=classes, pixel_values=pixels * 2 - 1).logits_per_image
    unit = torch.nn.functional.normalize(said["embeddings"]["text"], dim=1)
    torch.testing.assert_close(unit, own.text_embeds)
    torch.testing.assert_close(said["logit_bias"], model.logit_bias.expand(3))
    torch.testing.assert_close(said["logits"], logits)


def test_a_text_encoder_pools_the_tokens_that_are_no_padding(bert):
    folder, model, tokenizer = bert
    ours = Transformers(str(folder)).eval()
    with torch.no_grad():
        found = ours(TEXTS)["embeddings"]["text"]
        for row, text in enumerate(TEXTS):
            tokens = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            torch.testing.assert_close(found[row], tokens.mean(dim=0))
        first = Transformers(str(folder), pool="cls").eval()(TEXTS)["embeddings"]["text"]
        torch.testing.assert_close(first[0], model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0, 0])


def test_ids_with_padding_give_what_texts_give(bert):
    folder, _, tokenizer = bert
    probe = {text: tokenizer(text)["input_ids"] for text in TEXTS}
    source = {"context": 12, "pad_id": 0, "probe": probe}
    field = {"modality": "text", "shape": (12,), "dtype": "int64", "tokenizer": source}
    ids = tokenizer(TEXTS, padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = Transformers(str(folder), fields={"caption": field}).eval()(ids)["embeddings"]["text"]
        expected = Transformers(str(folder)).eval()(TEXTS)["embeddings"]["text"]
    torch.testing.assert_close(found, expected)


def test_lower_case_bytes_are_refused_by_a_tokenizer_that_minds(bert):
    source = {"bytes": True, "lower": True}
    field = {"modality": "text", "shape": (40,), "dtype": "int64", "tokenizer": source}
    Transformers(str(bert[0]), fields={"caption": field | {"tokenizer": source | {"lower": False}}})
    with pytest.raises(ConfigError, match="tells apart"):
        Transformers(str(bert[0]), fields={"caption": field})


def test_sentence_encoder_files_are_read(bert, tmp_path):
    import shutil

    folder = tmp_path / "sentences"
    shutil.copytree(bert[0], folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 4}))
    network = Transformers(str(folder))
    assert network.pool == "cls"
    assert network.texts["text"].context == 4
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="pooling_mode_max_tokens"):
        Transformers(str(folder))


def test_a_picture_classifier_has_no_random_pooling(vit):
    folder, model = vit
    raw = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.vit((raw - 0.5) / 0.5).last_hidden_state
        found = Transformers(str(folder)).eval()(raw)["embeddings"]["image"]
        torch.testing.assert_close(found, tokens[:, 0])
        mean = Transformers(str(folder), pool="mean").eval()(raw)["embeddings"]["image"]
        torch.testing.assert_close(mean, tokens[:, 1:].mean(dim=1))
        own = Transformers(str(folder), classifier="own").eval()(raw)
        torch.testing.assert_close(own["logits"], model((raw - 0.5) / 0.5).logits)
    assert list(own) == ["logits"]
    new = Transformers(str(folder), num_classes=3, classifier="new")(raw)
    assert new["logits"].shape == (2, 3)


def test_weights_that_are_missing_are_refused(vit, bert):
    with pytest.raises(ConfigError, match="has no weights for classifier"):
        Transformers(str(bert[0]), classifier="own")
    with pytest.raises(ConfigError, match="name the commit"):
        Transformers("owner/name")
    with pytest.raises(ConfigError, match="no text tower"):
        Transformers(str(vit[0]), zero_shot=ZeroShotOptions(), class_names=["a", "b"])


def test_new_weights_from_a_config(bert):
    image = ImageOptions(size=32, mean=[0.5] * 3, std=[0.5] * 3)
    network = Transformers({"model_type": "dinov2", **PICTURE}, image=image, num_classes=4, classifier="new")
    assert network(torch.rand(2, 3, 20, 20))["logits"].shape == (2, 4)
    with pytest.raises(ConfigError, match=r"image.size.*\n.*image.mean.*\n.*image.std"):
        Transformers({"model_type": "vit", **PICTURE})
    with pytest.raises(ConfigError, match="name the folder of its tokenizer"):
        Transformers({"model_type": "bert", **TOWER})
    text = {"model_type": "bert", **TOWER, "vocab_size": 12, "max_position_embeddings": 12}
    assert Transformers(text, tokenizer=str(bert[0]))(TEXTS)["embeddings"]["text"].shape == (3, 16)
    with pytest.raises(ConfigError, match="needs 'model_type'"):
        Transformers({"hidden_size": 3})


def save_audio(folder, model, extractor):
    save(folder, model)
    extractor.save_pretrained(folder)
    return model, extractor


def test_spectrogram_transformer(tmp_path):
    config = transformers.ASTConfig(**TOWER, max_length=64, num_mel_bins=32, patch_size=16)
    extractor = transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    model, extractor = save_audio(tmp_path, transformers.ASTModel(config), extractor)
    field = {"modality": "audio", "shape": (1, 8000), "dtype": "float32", "sample_rate": 16000, "log_mel": False}
    wave = torch.randn(2, 1, 8000) * 0.1
    ours = Transformers(str(tmp_path), fields={"sound": field}).eval()
    with torch.no_grad():
        found = ours(wave)["embeddings"]["audio"]
        values = extractor(list(wave.squeeze(1).numpy()), sampling_rate=16000, return_tensors="pt")["input_values"]
        torch.testing.assert_close(found, model(values).pooler_output)
    with pytest.raises(ConfigError, match="hears 16000 Hz, the data set gives 8000"):
        Transformers(str(tmp_path), fields={"sound": field | {"sample_rate": 8000}})
    with pytest.raises(ConfigError, match="seconds, the model hears"):
        Transformers(str(tmp_path), fields={"sound": field | {"shape": (1, 32000)}})
    with pytest.raises(ConfigError, match="leave out 'log_mel'"):
        Transformers(str(tmp_path), fields={"sound": field | {"shape": (1, 64, 64), "log_mel": True}})
    with pytest.raises(ModelError, match="expected mono waves"):
        ours(torch.randn(2, 2, 8000))


def test_encoder_of_whisper(tmp_path):
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=100, vocab_size=99,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    model, extractor = save_audio(tmp_path, transformers.WhisperModel(config), extractor)
    wave = torch.randn(2, 16000) * 0.1
    with torch.no_grad():
        found = Transformers(str(tmp_path)).eval()(wave)["embeddings"]["audio"]
        features = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")["input_features"]
        torch.testing.assert_close(found, model.get_encoder()(features).last_hidden_state.mean(dim=1))


def test_processors_that_do_something_else_are_refused(vit, tmp_path):
    import shutil

    folder = tmp_path / "odd"
    shutil.copytree(vit[0], folder)
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text())
    for change, words in [
        ({"do_pad": True}, "do_pad"),
        ({"rescale_factor": 0.5}, "scaled by 0.5"),
        ({"resample": 1}, "wants 'lanczos'"),
    ]:
        path.write_text(json.dumps(said | change))
        with pytest.raises(ConfigError, match=words):
            Transformers(str(folder), fields=IMAGE)
