"""One of several captions of a sample, drawn anew in each epoch."""

from __future__ import annotations

import pytest
import torch

from moekd.data.emoji import Emoji
from moekd.data.fields.text import TextField
from moekd.data.files import Files
from moekd.data.tokenizers import BytesTokenizer
from moekd.errors import DataError
from moekd.schedules import Progress
from moekd.transforms import TRANSFORMS, DrawText, ImageAugment

CAPTIONS = [["a red ball", "ball"], ["one"], ["x", "yy", "zzz", "never"], ["Äpfel", "b"]]


@pytest.fixture
def batch(tmp_path):
    """Four samples with one to four captions, of which three are read."""
    import json

    rows = [{"caption": texts, "part": part} for texts in CAPTIONS for part in ("train", "val", "test")]
    (tmp_path / "t.json").write_text("\n".join(map(json.dumps, rows)))
    field = TextField(tokenizer=BytesTokenizer(12, lower=False), choices=3)
    data = Files(str(tmp_path / "t.json"), {"caption": field}, None, "part", cache_dir=str(tmp_path / "cache"))
    assert data.fields["caption_choices"].shape == (3, 12)
    return data.splits["train"].__getitems__([0, 1, 2, 3])


def texts(batch):
    return [bytes((row[row > 0] - 1).tolist()).decode() for row in batch["caption"]]


def test_all_captions_that_are_read_occur(batch):
    assert texts(batch) == [several[0] for several in CAPTIONS]
    seen = [texts(DrawText()(batch, Progress(epoch=epoch))) for epoch in range(60)]
    for row, several in enumerate(CAPTIONS):
        found = [epoch[row] for epoch in seen]
        assert set(found) == set(several[:3])
        assert all(found.count(text) > 8 for text in several[:3])
    drawn = DrawText()(batch, Progress(epoch=1))
    assert torch.equal(drawn["caption_mask"], drawn["caption"] > 0)
    assert drawn["caption_mask"].dtype == torch.bool


def test_a_view_is_the_same_again(batch):
    transform = DrawText(views=5)
    first = transform(batch, Progress(epoch=2))
    rows = torch.tensor([2, 0])
    part = {key: value[rows] for key, value in batch.items()}
    again = DrawText(views=5).replay(part, first["view"][rows])
    assert torch.equal(again["caption"], first["caption"][rows])
    assert torch.equal(DrawText(views=5)(batch, Progress(epoch=2))["caption"], first["caption"])


def test_it_goes_with_other_transforms_of_the_same_views():
    split = Emoji(captions="all").splits["train"]
    given = split.__getitems__(list(range(256)))
    assert given["caption_choices"].shape[:2] == (256, 3)
    seen = ImageAugment(views=4)(DrawText(views=4)(given, Progress()), Progress())
    assert {"view", "caption", "image"} <= seen.keys()
    longer = seen["caption_mask"].sum(1) > given["caption_mask"].sum(1)
    assert 100 < longer.sum() < 230, "keywords and 'name. keywords' are mostly longer than the name"
    same = (seen["caption"] == given["caption"]).all(dim=1).float().mean()
    assert abs(same - 1 / 3) < 0.1


def test_padding_is_that_of_the_tokenizer(batch):
    drawn = DrawText(field_info={"caption": {"tokenizer": {"pad_id": 99}}})(batch, Progress())
    assert (drawn["caption"][~drawn["caption_mask"]] == 99).all()


def test_mistakes_say_what_to_do(batch):
    with pytest.raises(DataError, match="field 'title' has one text a sample; set 'choices'"):
        DrawText(["title"])(batch, Progress())
    field = TextField(choices=2)
    for value, message in [
        ([], "an empty one"),
        (3, "found int"),
        (None, "an empty text"),
        (["a", ""], "an empty text"),
    ]:
        with pytest.raises(DataError, match=message):
            field.decode(value, None)
    with pytest.raises(DataError, match="expected a text, found list"):
        TextField().decode(["a"], None)
    assert TRANSFORMS.get("draw_text") is DrawText
    assert "choices" not in TextField().identity()
