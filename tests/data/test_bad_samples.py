"""D1, D4: empty texts, missing modalities, wrong types and cut sounds, under each policy."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from moekd.data import make_loader, with_policy
from moekd.data.dataset import Split
from moekd.data.fields.audio import AudioField
from moekd.data.fields.image import ImageField
from moekd.data.fields.text import TextField
from moekd.data.files import Files
from moekd.errors import DataError

ROWS = 12
#: Row, what is wrong with it, and what the message says.
BAD = {
    2: ("caption", "  ", "field 'caption': expected a text, found an empty text"),
    4: ("caption", None, "field 'caption': expected a text, found an empty text"),
    5: ("picture", None, "field 'picture': expected a path or bytes, found an empty value"),
    7: ("picture", b"GIF89a but not really", "field 'picture': .* can't be decoded as an image"),
    9: ("sound", b"RIFF....WAVEfmt ", "field 'sound': .* can't be decoded as audio"),
}


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(stream, "PNG")
    return stream.getvalue()


def sound() -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    return stream.getvalue()


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Rows with a caption, a picture and a sound, some of which are bad."""
    rows: list[dict[str, Any]] = [
        {"caption": f"number {row}", "picture": picture(), "sound": sound(), "label": row % 2, "part": "train"}
        for row in range(ROWS)
    ]
    for row, (field, value, _) in BAD.items():
        rows[row][field] = value
    rows += [rows[0] | {"part": part} for part in ("val", "test")]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    fields = {"caption": TextField(), "picture": ImageField(8), "sound": AudioField(0.1, sample_rate=8000)}
    data = Files(str(tmp_path / "t.parquet"), fields=fields, split="part", cache_dir=str(tmp_path / "cache"))
    return data.splits["train"]


@pytest.mark.parametrize("row", BAD)
def test_the_message_names_row_field_and_reason(split: Split, row: int) -> None:
    """D1, D4: an empty text, a missing picture, a picture and a sound that are none."""
    with pytest.raises(DataError, match=rf"row {row}.*{BAD[row][2]}"):
        split.__getitems__([0, row])


def test_missing_modalities_are_never_zeros(split: Split) -> None:
    """D4: rows without a modality follow the policy, with counts; none is filled with zeros."""
    skipped = with_policy(split, "skip", 0.5)
    seen = [i for batch in make_loader(skipped, 5, shuffle=False) for i in batch["id"].tolist()]
    assert seen == [int(split.ids[row]) for row in range(ROWS) if row not in BAD]
    assert skipped.bad_count == len(BAD)
    substituted = with_policy(split, "substitute", 0.5)
    for batch in make_loader(substituted, 4, shuffle=False):
        assert len(batch["id"]) == 4
        assert bool(batch["caption_mask"].any(dim=1).all())
        assert bool((batch["picture"].flatten(1).amax(dim=1) > 0).all())
