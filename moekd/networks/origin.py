"""What the description beside a file of weights says about them: classes in another order, other preparation.

Weights of the right shape load without a word although their class 0 is another class. A student that was exported lies
beside its `config.json`, which tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError

#: What a field's description says about how its values were prepared.
PREPARATION = ("mean", "std", "rate", "sample_rate", "tokenizer")
_SHOWN = 4


def check_origin(
    weights: Path,
    where: str,
    inputs: Sequence[str],
    class_names: Sequence[str],
    fields: Mapping[str, Mapping[str, Any]],
) -> None:
    """Compare the description beside a file of weights with the data set; without a description nothing is known.

    Args:
        weights: the file.
        where: path in the config, for messages.
        inputs: batch fields that the model reads.
        class_names: classes of the data set, in its order.
        fields: what the data set says of its fields, with their preparation.

    Raises:
        ConfigError: other classes or another order, or inputs that were prepared in another way.
    """
    document = _described(weights)
    problems = []
    names = document.get("class_names")
    if isinstance(names, list) and names and list(class_names) != names:
        order = (
            "the same classes in another order" if sorted(map(str, names)) == sorted(class_names) else "other classes"
        )
        problems.append(
            f"{where}.weights: {weights} was trained on {order}: {_some(names)}; the data set has "
            f"{_some(class_names)}. Logits are compared class by class: bring the classes into one order, or train the "
            "model on this data set"
        )
    theirs = document.get("fields")
    for name in inputs:
        said = theirs.get(name) if isinstance(theirs, dict) else None
        if not isinstance(said, dict) or name not in fields:
            continue
        for key in PREPARATION:
            mine, other = _plain(fields[name].get(key)), _plain(said.get(key))
            if mine is not None and other is not None and mine != other:
                problems.append(
                    f"{where}.weights: {weights} was trained on '{name}' with {key} {_short(other)}; the data set has "
                    f"{key} {_short(mine)}: prepare the field in the same way"
                )
    if problems:
        raise ConfigError(problems)


def _described(weights: Path) -> dict[str, Any]:
    """Return the description of the exported student whose weights these are, or nothing."""
    try:
        document = json.loads((weights.parent / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    mine = isinstance(document, dict) and document.get("format") == "moekd-student"
    files = document.get("files") if mine else None
    return document if isinstance(files, dict) and weights.name in files else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _some(names: Sequence[Any]) -> str:
    more = f", ... ({len(names)})" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
