"""Preparing `crisismmd`: two layouts are recognised.

(a) features: `image_features.npy` `[N, 2048]`, `text_features.npy` `[N, 768]`, `labels.npy` `[N]`, rows in one order;
(b) the original files of CrisisMMD v2.0, at any depth: `task_humanitarian_text_img_{train,dev,test}.tsv` with the
    columns `tweet_id`, `tweet_text`, `image` and `label`, and the pictures that they name (`data_image/...`). The files
    are joined in the order of their names; of several rows of a tweet the first one is kept, as published. Pictures
    are resized to 224 x 224; texts are normalised, see `normalise_tweet`.
"""

from __future__ import annotations

import csv
import html
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from .resumable import check_sums, write_rows
from .storage import load_array, progress_bar
from .tokenizers import BytesTokenizer

CATEGORIES = [
    "not_humanitarian",
    "affected_individuals",
    "infrastructure_and_utility_damage",
    "injured_or_dead_people",
    "missing_or_found_people",
    "rescue_volunteering_or_donation_effort",
    "vehicle_damage",
    "other_relevant_information",
]
SIZE = 224
TABLES = "task_humanitarian*.tsv"
FEATURES = {"image": "image_features.npy", "text": "text_features.npy", "label": "labels.npy"}
COLUMNS = ("tweet_id", "tweet_text", "image", "label")
_CONTRACTIONS = [("n't", " n't"), ("'m", " 'm"), ("'re", " 're"), ("'s", " 's"), ("'ll", " 'll"), ("'d", " 'd")]


def write_crisismmd(source: Path | None, output: Path, progress: bool = True, chunk: int = 64) -> Path:
    """Write `image.npy`, `text.npy` and `label.npy` from one of the two layouts.

    Raises:
        DataError: unknown layout, missing files (they are named), or a file that is not as it should be.
    """
    if source is None or not source.is_dir():
        raise DataError(f"source folder {source} does not exist: give the folder of CrisisMMD (--source DIR)")
    verified = check_sums(source)
    found = {key: next(iter(sorted(source.rglob(name))), None) for key, name in FEATURES.items()}
    if all(found.values()):
        return _write_features({k: p for k, p in found.items() if p}, source, output, verified, progress, chunk)
    rows = read_tables(source)
    pictures = _find_pictures(source, rows)
    texts = [normalise_tweet(row["tweet_text"]) for row in rows]
    labels = np.array([CATEGORIES.index(row["label"]) for row in rows], dtype=np.uint8)
    context = max(len(text.encode()) for text in texts)
    tokenizer = BytesTokenizer(context, lower=False)

    def read(part: range) -> dict[str, NDArray[Any]]:
        ids = np.full((len(part), context), -1, dtype=np.int16)
        for place, row in enumerate(part):
            encoded = tokenizer.encode(texts[row])
            ids[place, : len(encoded)] = encoded
        image = np.stack([read_picture(pictures[row]) for row in part])
        return {"image": image, "text": ids, "label": labels[part.start : part.stop]}

    arrays = {"image": ((3, SIZE, SIZE), "uint8"), "text": ((context,), "int16"), "label": ((), "uint8")}
    facts = {"layout": "files", "context": context, "verified": verified}
    facts["names"] = [row["tweet_id"] for row in rows]
    return write_rows(
        "crisismmd", source, output, arrays, len(rows), read, lambda folder: facts, chunk=chunk, progress=progress
    )


def read_tables(source: Path) -> list[dict[str, str]]:
    """Return the rows of layout (b), one a tweet.

    Raises:
        DataError: no table, a missing column, or an unknown category.
    """
    tables = sorted(source.rglob(TABLES), key=lambda path: path.name)
    if not tables:
        raise DataError(
            f"{source} has no known layout of crisismmd: neither {', '.join(FEATURES.values())} nor {TABLES} found"
        )
    rows: dict[str, dict[str, str]] = {}
    for path in tables:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks the columns {', '.join(missing)}")
            for number, row in enumerate(reader, start=2):
                if row["label"] not in CATEGORIES:
                    raise DataError(f"{path}, line {number}: unknown category '{row['label']}'")
                rows.setdefault(row["tweet_id"], {name: row[name] for name in COLUMNS})
    if len(rows) < 5:
        raise DataError(f"{source}: {len(rows)} tweets; a 60/20/20 split needs at least 5")
    return list(rows.values())


def _find_pictures(source: Path, rows: list[dict[str, str]]) -> list[Path]:
    """Return the files that the rows name, relative to the folder that holds `data_image`."""
    base = next((path.parent for path in sorted(source.rglob("data_image")) if path.is_dir()), source)
    pictures = [base / row["image"] for row in rows]
    missing = [str(path.relative_to(base)) for path in pictures if not path.is_file()]
    if missing:
        raise DataError(f"{base} lacks {len(missing)} pictures, the first: {', '.join(missing[:5])}")
    return pictures


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Return a picture as uint8 `[3, 224, 224]`, its aspect ratio changed, as published.

    Raises:
        DataError: not decodable.
    """
    try:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return np.asarray(small, dtype=np.uint8).transpose(2, 0, 1)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} can't be decoded as an image: {error}") from error


def normalise_tweet(text: str) -> str:
    """Return a text in the form that BERTweet was trained on: `@USER` for users, `HTTPURL` for addresses (links to
    t.co are left out), symbols beyond letters as `:name:`, contractions apart, single spaces.

    The released preparation does this with three libraries (ftfy, emoji, nltk); names of emoji are those of Unicode
    here, which differ from theirs now and then.
    """
    text = html.unescape(text).replace("\u2019", "'").replace("\u2026", "...")
    words = []
    for word in text.split():
        lower = word.lower()
        if lower.startswith("https://t.co/"):
            continue
        if lower.startswith(("http", "www.")):
            words.append("HTTPURL")
        elif re.fullmatch(r"@\w+", word.rstrip(":,.!?")):
            words.append("@USER" + word[len(word.rstrip(":,.!?")) :])
        else:
            words.append("".join(_symbol(c) for c in word))
    joined = " " + " ".join(words).replace("cannot ", "can not ") + " "
    for found, apart in _CONTRACTIONS:
        joined = joined.replace(f"{found} ", f"{apart} ")
    return " ".join(joined.split()) or "."


def _symbol(character: str) -> str:
    """Return a pictograph as its name; other characters stay."""
    if unicodedata.category(character) != "So":
        return "" if character in "\ufe0f\u200d" else character
    return f" :{unicodedata.name(character, 'symbol').lower().replace(' ', '_')}: "


def _write_features(
    found: dict[str, Path], source: Path, output: Path, verified: int, progress: bool, chunk: int
) -> Path:
    opened = {key: load_array(path) for key, path in found.items()}
    rows = len(opened["label"])
    for key, array in opened.items():
        if len(array) != rows or array.ndim != (1 if key == "label" else 2):
            raise DataError(f"{found[key]} has shape {array.shape}; {FEATURES['label']} has {rows} rows")
    label = np.asarray(opened["label"])
    if rows < 5 or label.min() < 0 or label.max() >= len(CATEGORIES):
        raise DataError(f"{found['label']}: expected at least 5 labels from 0 to {len(CATEGORIES) - 1}")
    for key in ("image", "text"):
        for start in progress_bar(range(0, rows, 1024), f"Checking {FEATURES[key]}", progress):
            if not np.isfinite(opened[key][start : start + 1024]).all():
                raise DataError(f"{found[key]} holds NaN or infinite values near row {start}")

    def read(part: range) -> dict[str, NDArray[Any]]:
        return {key: np.asarray(array[part.start : part.stop]) for key, array in opened.items()}

    widths = {key: int(opened[key].shape[1]) for key in ("image", "text")}
    arrays = {key: ((width,), "float32") for key, width in widths.items()} | {"label": ((), "uint8")}
    facts = {"layout": "features", "widths": widths, "verified": verified, "names": [f"row {i}" for i in range(rows)]}
    return write_rows(
        "crisismmd", source, output, arrays, rows, read, lambda folder: facts, chunk=16 * chunk, progress=progress
    )
