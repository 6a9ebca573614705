"""What a tokenizer says about itself, so that a model can tell whether it reads the ids."""

from __future__ import annotations

import json

from moekd.data.tokenizers import PROBE, BytesTokenizer


def test_the_recipe_holds_what_becomes_of_a_few_texts():
    tokenizer = BytesTokenizer(context=6)
    recipe = tokenizer.recipe()
    assert recipe["probe"] == {text: tokenizer.encode(text)[:6] for text in PROBE}
    assert (recipe["context"], recipe["vocabulary"], recipe["pad_id"]) == (6, 257, 0)
    assert json.loads(json.dumps(recipe)) == recipe


def test_bytes_can_be_read_back_and_hashes_cannot():
    assert BytesTokenizer(lower=False).recipe() | {"probe": None} == {
        "context": 128, "vocabulary": 257, "pad_id": 0, "probe": None, "bytes": True, "lower": False,
    }  # fmt: skip
    assert BytesTokenizer(ngram=3).recipe()["bytes"] is False
