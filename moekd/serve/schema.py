"""The answers of the server, and what its requests hold, for the OpenAPI description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Label(BaseModel):
    """A label with its probability among those asked for."""

    label: str
    probability: float


class Classified(BaseModel):
    """The most probable labels of one picture."""

    picture: str
    classes: list[Label]


class Predictions(BaseModel):
    """Answer of /predict: one entry a picture, in order."""

    predictions: list[Classified]


class Embedded(BaseModel):
    """Answer of /embed: one row a picture and one row a text, in order, not normalised."""

    pictures: list[list[float]] | None = None
    texts: list[list[float]] | None = None


class Hit(BaseModel):
    """A picture that fits a text; `index` is its place in the request."""

    index: int
    picture: str
    cosine: float


class Found(BaseModel):
    """The pictures that fit a text best."""

    text: str
    pictures: list[Hit]


class Matches(BaseModel):
    """Answer of /search: one entry a text, in order."""

    matches: list[Found]


class Health(BaseModel):
    """Answer of /health."""

    status: str


class Info(BaseModel):
    """Answer of /info: what the student is and takes, and the limits of the server."""

    title: str
    version: str
    network: str
    parameters: int
    classes: list[str]
    input: dict[str, Any]
    reads_texts: bool
    classifies: bool
    embeds: bool
    templates: list[str]
    limits: dict[str, float]
    card: str


class ErrorDetails(BaseModel):
    """What was wrong with a request."""

    code: str
    message: str
    expected: str | None = None
    found: str | None = None


class Failure(BaseModel):
    """Answer to a request that can't be answered."""

    error: ErrorDetails


_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_KEYS: dict[str, dict[str, Any]] = {
    "labels": {
        **_TEXTS,
        "description": "What to choose from, default the student's classes; in a form between commas.",
    },
    "templates": {**_TEXTS, "description": "Prompts with one {} for the label, for students that read texts."},
    "texts": {**_TEXTS, "description": "Texts for the student's text tower."},
    "top": {"type": "integer", "minimum": 1, "default": 5, "description": "Entries to return."},
}


def request_body(*keys: str) -> dict[str, Any]:
    """Return the OpenAPI description of a request with pictures and further keys."""
    more = {key: _KEYS[key] for key in keys if key != "pictures"}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "Encoded pictures."}
    base64 = {"type": "array", "items": {"type": "string", "format": "byte"}, "description": "Pictures in base64."}
    content = {
        kind: {"schema": {"type": "object", "properties": {"pictures": pictures, **more}}}
        for kind, pictures in (("multipart/form-data", files), ("application/json", base64))
    }
    return {"requestBody": {"required": True, "content": content}}


FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": description}
    for status, description in (
        (413, "The request is too large."),
        (415, "The body is neither a form nor JSON."),
        (422, "Something in the request can't be used."),
        (503, "Too many requests, or not ready: come again after `Retry-After` seconds."),
        (504, "The request took too long."),
    )
}
