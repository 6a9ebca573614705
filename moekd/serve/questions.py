"""What a request asks: read from a form or from JSON, with every limit checked before any work is done."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from ..errors import did_you_mean
from ..inference.labels import split_labels
from .request_error import RequestError, shown
from .settings import Settings

FORM, JSON = "multipart/form-data", "application/json"
LISTS = ("pictures", "labels", "templates", "texts")


@dataclass(frozen=True)
class Picture:
    """An encoded picture and what the client calls it."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Question:
    """A request; `labels` and `templates` are None where the student's own are wanted."""

    pictures: list[Picture] = field(default_factory=list)
    labels: list[str] | None = None
    templates: list[str] | None = None
    texts: list[str] = field(default_factory=list)
    top: int = 5


async def read_question(request: Request, keys: Sequence[str], settings: Settings) -> Question:
    """Read a request.

    Args:
        request: with a form (files `pictures`) or JSON (base64 `pictures`).
        keys: what this address takes.
        settings: the limits.

    Raises:
        RequestError: another type of content, an unknown key, a value of the wrong type, or more than is allowed.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        raw = await _form(request, settings)
    elif kind == JSON:
        raw = _json(await request.body())
    else:
        raise RequestError(415, "content_type", "the body has a type that is not read here", f"{FORM} or {JSON}", kind)
    for key in raw:
        if key not in keys:
            message = f"'{shown(key)}' is not known here{did_you_mean(key, keys)}"
            raise RequestError(422, "unknown_key", message, ", ".join(keys), key)
    question = Question(
        pictures=_pictures(raw.get("pictures")),
        labels=_texts(raw, "labels"),
        templates=_texts(raw, "templates"),
        texts=_texts(raw, "texts") or [],
        top=_top(raw.get("top", 5)),
    )
    _check_limits(question, settings)
    return question


async def _form(request: Request, settings: Settings) -> dict[str, Any]:
    """Return the parts of a form; labels are split at commas."""
    largest = max(1_000_000, settings.max_bytes)
    most = 2 * settings.max_labels + settings.max_prompts
    form = await request.form(max_files=settings.max_pictures + 1, max_fields=most, max_part_size=largest)
    raw: dict[str, Any] = {}
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            given: Any = Picture(value.filename or "", await value.read())
        elif key == "pictures":
            raise RequestError(422, "picture", "pictures: a text came in place of a file", "a file", value)
        else:
            given = value
        if key in LISTS:
            raw.setdefault(key, []).extend(split_labels(given) if key == "labels" and given == str(given) else [given])
        else:
            raw[key] = given
    if isinstance(raw.get("top"), str):
        raw["top"] = int(raw["top"]) if raw["top"].isascii() and raw["top"].isdigit() else raw["top"]
    return raw


def _json(body: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "json", "the body is no JSON", "a JSON object", f"{len(body)} bytes") from error
    if not isinstance(raw, dict):
        raise RequestError(422, "json", "the body is no JSON object", "an object", type(raw).__name__)
    if isinstance(raw.get("labels"), str):
        raw["labels"] = split_labels(raw["labels"])
    return raw


def _pictures(value: object) -> list[Picture]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError(422, "type", "pictures: wrong type", "a list of base64 texts or files", type(value).__name__)
    return [one if isinstance(one, Picture) else Picture("", _decoded(one, index)) for index, one in enumerate(value)]


def _decoded(value: object, index: int) -> bytes:
    if not isinstance(value, str):
        raise RequestError(422, "type", f"pictures[{index}]: wrong type", "base64 text", type(value).__name__)
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, "base64", f"pictures[{index}]: no base64", "base64 text", value[:20]) from error


def _texts(raw: dict[str, Any], key: str) -> list[str] | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        found = next((one for one in value if not isinstance(one, str)), value) if isinstance(value, list) else value
        raise RequestError(422, "type", f"{key}: wrong type", "a list of texts", type(found).__name__)
    for text in value:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(422, "text", f"{key}: a text is no Unicode", "Unicode text", ascii(text))
    return value


def _top(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(422, "top", "top: wrong value", "a whole number of at least 1", repr(value))
    return value


def _check_limits(question: Question, settings: Settings) -> None:
    counts = [
        ("pictures", len(question.pictures), settings.max_pictures),
        ("labels", len(question.labels or ()), settings.max_labels),
        ("texts", len(question.texts), settings.max_labels),
        ("templates", len(question.templates or ()), settings.max_prompts),
        ("labels * templates", len(question.labels or ()) * len(question.templates or ()), settings.max_prompts),
    ]
    for key, count, most in counts:
        if count > most:
            raise RequestError(422, "too_many", f"{key}: too many", f"at most {most}", count)
    for key in ("labels", "templates", "texts"):
        longest = max((len(text) for text in getattr(question, key) or ()), default=0)
        if longest > settings.max_characters:
            limit = f"at most {settings.max_characters} characters"
            raise RequestError(422, "too_long", f"{key}: a text is too long", limit, longest)
    if any(not text.strip() for text in question.texts):
        raise RequestError(422, "empty", "texts: an empty text", "texts with at least one character", "an empty text")
