"""May the signals of the teachers be computed once and reused?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..teachers import TeacherPool
from ..transforms import ReplayableTransform, Transform


def why_not_cached(
    pool: TeacherPool, variants: Sequence[str], *, transforms: Sequence[Transform] = (), random_data: bool = False
) -> list[str]:
    """Return all reasons why the signals of the variants are no constants of a sample (or of a view of it).

    Args:
        pool: the teachers.
        variants: names that the stage reads.
        transforms: batch transforms of the stage.
        random_data: the data set draws augmentations.

    Returns:
        Nothing where they can be computed once.
    """
    if not variants:
        return ["no teacher takes part"]
    reasons = []
    if trained := [name for name in variants if not pool.frozen([name])]:
        reasons.append(f"teachers or masks train in this stage ({_names(trained)})")
    if moving := [name for name in pool.followers if name in {pool.variant(v).teacher for v in variants}]:
        reasons.append(f"teachers follow the student ({_names(moving)})")
    for name in dict.fromkeys(pool.variant(variant).teacher for variant in variants):
        if pool.frozen([name]) and (what := _train_mode(pool.teacher(name))):
            reasons.append(f"teacher '{name}' runs in train mode ({what})")
    masks = [name for name in variants if any(part.training for part in pool.parts(name)[1:])]
    if masks and not trained:
        reasons.append(f"masks run in train mode ({_names(masks)})")
    if random_data:
        reasons.append("inputs change from epoch to epoch: the data set draws augmentations")
    if reason := why_not_replayed(transforms):
        reasons.append(f"inputs change from epoch to epoch: {reason}")
    return reasons


def why_not_replayed(transforms: Sequence[Transform]) -> str | None:
    """Return why transforms do not show one of a few views of a sample that can be made again, or None if they do."""
    replayable = [transform for transform in transforms if isinstance(transform, ReplayableTransform)]
    if len(replayable) < len(transforms):
        kinds = {type(t).__name__ for t in transforms if not isinstance(t, ReplayableTransform)}
        return f"{', '.join(sorted(kinds))} can't be replayed"
    if endless := [t for t in replayable if t.views is None]:
        return f"{type(endless[0]).__name__} shows something new in every epoch; set its 'views' to replay so many"
    if len({(t.views, t.seed) for t in replayable}) > 1:
        return "the transforms show different views; give all of them the same 'views' and 'seed'"
    return None


def _train_mode(teacher: nn.Module) -> str:
    """Return what depends on the rest of the batch or on chance, "" in eval mode."""
    training = [module for module in teacher.modules() if module.training]
    if not training:
        return ""
    dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in training)
    norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in training)
    found = [word for word, there in (("dropout", dropout), ("batch statistics", norm)) if there]
    return ", ".join(found) or "its layers may depend on chance or on the batch"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
