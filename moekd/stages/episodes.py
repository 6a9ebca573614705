"""What has to hold for a stage whose batches are few-shot episodes."""

from __future__ import annotations

from ..data import Episodes
from ..errors import ConfigError
from ..objectives import PrototypeCE
from .base import StageSettings
from .context import RunData


def check_shots(settings: StageSettings, data: RunData) -> None:
    """Refuse objectives that would take queries for examples, or examples for queries.

    Raises:
        ConfigError: `prototype_ce` has other `shots` than the episodes.
    """
    episodes = data.split(settings.split).batching
    if not isinstance(episodes, Episodes):
        return
    found = [m for o in settings.objectives for m in o.modules() if isinstance(m, PrototypeCE)]
    for objective in found:
        if objective.shots not in (None, episodes.shots):
            raise ConfigError(
                f"stage '{settings.name}': prototype_ce.shots is {objective.shots}, but data.episodes has "
                f"{episodes.shots} shots a class; make them equal, or leave prototype_ce.shots out (then every row is "
                "a query and an example for the others)"
            )
