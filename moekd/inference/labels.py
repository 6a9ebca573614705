"""The names that pictures are compared with: checked, and put into prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..evaluation.zero_shot import TEMPLATES

PLACE = "{}"


@dataclass(frozen=True)
class Labels:
    """Labels in the order asked for, and the prompts in which a text tower reads them."""

    names: tuple[str, ...]
    templates: tuple[str, ...] = tuple(TEMPLATES)

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of each label."""
        return [[template.replace(PLACE, name) for template in self.templates] for name in self.names]


def clean_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels without blanks around them, each once.

    Raises:
        ConfigError: no label is left.
    """
    names = tuple(dict.fromkeys(stripped for label in labels if (stripped := " ".join(label.split()))))
    if not names:
        raise ConfigError("labels: expected at least one name, found none")
    return names


def split_labels(text: str) -> list[str]:
    """Return the parts of a text with labels between commas."""
    return text.split(",")


def clean_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return prompt templates; each has one place for the label.

    Raises:
        ConfigError: no template, or one without a place or with several.
    """
    if wrong := [template for template in templates if template.count(PLACE) != 1]:
        raise ConfigError(f"templates: expected prompts with one {PLACE} for the label, found {wrong[0]!r}")
    if not templates:
        raise ConfigError("templates: expected at least one prompt, found none")
    return tuple(templates)
