"""What the sections of a config are made of: their base and the kinds of words and numbers in them."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, StringConstraints

from .annotations import Means

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z"),
    Means("a name of at most 64 letters, digits, _ and -"),
]
SnakeCase = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}\z"), Means("a name in snake_case, at most 64 characters")
]
Trained = Annotated[
    str,
    StringConstraints(
        pattern=r"^(student(\.\w+)*|teachers|masks|router|objectives|teachers\.[A-Za-z0-9][A-Za-z0-9_-]{0,63}(\.\w+)*)\z"
    ),
    Means("student, teachers, teachers.NAME, masks, router, objectives, or a part such as student.model.image"),
]
ArxivId = Annotated[
    str, StringConstraints(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})\z"), Means("an arXiv id in quotes")
]
WeightsFile = Annotated[
    str, StringConstraints(pattern=r"^[^\x00]+\.safetensors\z"), Means("the path of a .safetensors file")
]
Positive = Annotated[int, Ge(1)]
Place = Annotated[
    str,
    StringConstraints(pattern=r"^(auto|rotated|cpu|cuda(:\d+)?)\z"),
    Means("auto, rotated, cpu, cuda or the name of a GPU such as cuda:1"),
]
Tracker = Literal["mlflow", "tensorboard", "trackio", "wandb"]


class Section(BaseModel):
    """A mapping of a config: keys other than its fields are forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
