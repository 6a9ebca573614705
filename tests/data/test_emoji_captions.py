"""Raw texts of the emoji set: what they say, and that models of other libraries read them with their own tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from moekd.data import make_loader
from moekd.data.emoji import Emoji
from moekd.networks import OpenClip, Transformers

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def captioned():
    return Emoji(captions="name_keywords")


def read_back(batch):
    return [bytes((row[row > 0] - 1).tolist()).decode() for row in batch["caption"]]


def described(dataset):
    return {name: vars(dataset.fields[name]) | dataset.input_recipe(name) for name in ("image", "caption")}


def test_captions_say_what_the_concept_is(captioned):
    split = captioned.splits["test_unseen_style"]
    batch = next(iter(make_loader(split, 32, shuffle=True)))
    rows = split.rows_of(batch["id"].numpy())
    for text, row in zip(read_back(batch), rows, strict=True):
        assert text == f"{split.table['name'][row]}. {', '.join(split.table['keywords'][row])}"
    assert batch["concept"].tolist() == [[split.table["concept"][row]] for row in rows]
    assert torch.equal(batch["caption_mask"], batch["caption"] > 0)
    for name, spec in captioned.fields.items():
        assert batch[name].shape[1:] == spec.shape
        assert str(batch[name].dtype) == f"torch.{spec.dtype}"


def test_pictures_of_a_concept_share_caption_and_number(captioned):
    split = captioned.splits["train"]
    concepts = np.array(split.table["concept"])
    rows = np.flatnonzero(concepts == concepts[0]).tolist()
    batch = split.__getitems__([*rows, int(np.flatnonzero(concepts != concepts[0])[0])])
    assert len(rows) > 1
    assert len(set(read_back(batch)[:-1])) == 1
    assert batch["concept"][:-1].unique().numel() == 1
    assert batch["concept"][-1] != batch["concept"][0]
    assert read_back(batch)[-1] != read_back(batch)[0]


@pytest.mark.parametrize(("form", "longest", "first"), [("name", 44, "grinning face"), ("keywords", 139, "cheerful, ")])
def test_forms(form, longest, first):
    data = Emoji(captions=form)
    assert data.fields["caption"].shape == (longest,)
    split = next(split for split in data.splits.values() if 0 in split.table["concept"])
    row = split.table["concept"].index(0)
    assert read_back(split.__getitems__([row]))[0].startswith(first)


def test_without_the_option_nothing_changes(captioned):
    plain = Emoji()
    assert set(plain.fields) == {"image", "text"} == set(plain.splits["val"].fields)
    assert "captions" not in plain.identity()
    prints = {plain.fingerprint(), captioned.fingerprint(), Emoji(captions="name").fingerprint()}
    assert len(prints) == 3


def test_open_clip_reads_captions_with_its_own_tokenizer(captioned):
    batch = captioned.splits["train"].__getitems__([0, 500, 900])
    torch.manual_seed(0)
    network = OpenClip(model=CLIP, fields=described(captioned)).eval()
    with torch.no_grad():
        said, plain = network(batch["image"], batch["caption"]), network(batch["image"], read_back(batch))
    assert torch.equal(said["embeddings"]["text"], plain["embeddings"]["text"])
    assert not torch.equal(said["embeddings"]["text"][0], said["embeddings"]["text"][1])


def test_transformers_reads_captions_with_its_own_tokenizer(tmp_path):
    data = Emoji(captions="name")
    batch = data.splits["train"].__getitems__([0, 500, 900])
    words = ["[PAD]", "[UNK]", *sorted({word for text in read_back(batch) for word in text.split()})]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path)
    network = Transformers(str(tmp_path), fields={"caption": described(data)["caption"]}).eval()
    with torch.no_grad():
        said, plain = network(batch["caption"]), network(read_back(batch))
    assert torch.equal(said["embeddings"]["text"], plain["embeddings"]["text"])
    assert len({tuple(row.tolist()) for row in said["embeddings"]["text"]}) == 3
