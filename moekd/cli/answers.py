"""What `moekd predict` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import ConfigError
from ..inference import Match, Prediction, Predictor, embed, predict, search
from ..inference.labels import split_labels
from ..inference.predict import check_output


def answer(
    run: Path,
    images: Sequence[Path],
    *,
    labels: Sequence[str] | None,
    templates: Sequence[str] | None,
    label_vectors: Path | None,
    texts: Sequence[str],
    top: int,
    output: Path | None,
    as_json: bool,
    batch_size: int,
    device: str,
) -> Iterator[str]:
    """Yield the lines to print.

    Raises:
        ConfigError: questions that do not go together.
        MoekdError: files or a student that can't be used.
    """
    _check(images, labels, templates, texts, output, as_json)
    predictor = Predictor(run, device, label_vectors)
    if output is not None or not images:
        found = embed(predictor, images, texts, batch_size)
        yield json.dumps(found.plain()) if output is None else f"embeddings: {found.write(output)}"
    elif texts:
        matches = search(predictor, texts, images, top, batch_size)
        yield from _json(matches) if as_json else _matches(matches)
    else:
        names = None if labels is None else [name for text in labels for name in split_labels(text)]
        predictions = predict(predictor, images, top, batch_size, labels=names, templates=templates)
        yield from _json(predictions) if as_json else _predictions(predictions)


def _check(
    images: Sequence[Path],
    labels: Sequence[str] | None,
    templates: Sequence[str] | None,
    texts: Sequence[str],
    output: Path | None,
    as_json: bool,
) -> None:
    if not images and not texts:
        raise ConfigError("predict: expected pictures (INPUT or --image) or texts (--text), found none")
    if not images and output is None and not as_json:
        raise ConfigError(
            "predict: a text alone gives its embedding; name a file with --output, print it with --json, or give "
            "pictures to rank"
        )
    if (texts or output is not None) and (labels is not None or templates is not None):
        other = "--text" if texts else "--output"
        raise ConfigError(f"predict: {other} does not go together with --labels and --templates; leave one of them")
    if output is not None:
        check_output(output)


def _json(found: Sequence[Prediction | Match]) -> Iterator[str]:
    yield json.dumps([_named(asdict(one)) for one in found], ensure_ascii=False, indent=1)


def _named(one: dict[str, object]) -> dict[str, object]:
    """Give the pairs of an answer names."""
    if "classes" in one:
        return one | {"classes": [{"label": label, "probability": p} for label, p in _pairs(one["classes"])]}
    return one | {"pictures": [{"path": path, "cosine": cosine} for path, cosine in _pairs(one["pictures"])]}


def _pairs(value: object) -> list[tuple[str, float]]:
    assert isinstance(value, list)
    return value


def _predictions(predictions: Sequence[Prediction]) -> Iterator[str]:
    for prediction in predictions:
        yield prediction.path
        for name, probability in prediction.classes:
            yield f"  {100 * probability:5.1f} %  {name}"


def _matches(matches: Sequence[Match]) -> Iterator[str]:
    for match in matches:
        yield match.text
        for path, cosine in match.pictures:
            yield f"  {cosine:6.3f}  {path}"
