"""May the signals of the teachers be computed once and reused?"""

from __future__ import annotations

from collections.abc import Sequence

from ..teachers import TeacherPool

#: Largest cache that is built without being asked for, in bytes.
MEMORY_LIMIT = 2 * 1024**3


def why_not_cached(
    pool: TeacherPool,
    variants: Sequence[str],
    *,
    reads_features: bool,
    transforms: int,
    random_data: bool,
    needs_bytes: int,
) -> str | None:
    """Return why the logits of the variants are no constants of a sample (or do not fit), or None if they can be
    cached.

    Args:
        pool: the teachers.
        variants: names that the stage reads.
        reads_features: an objective or gate reads tapped activations, which are not cached.
        transforms: number of batch transforms of the stage.
        random_data: the data set draws augmentations.
        needs_bytes: size of the logits.
    """
    if not variants:
        return "no teacher takes part"
    if not pool.frozen(variants):
        return "teachers or masks train in this stage"
    training = [n for n in variants if any(module.training for module in pool.parts(n))]
    if training:
        return f"'{training[0]}' runs in train mode (dropout or batch statistics)"
    if reads_features:
        return "an objective reads tapped activations"
    if transforms or random_data:
        return "inputs change from epoch to epoch"
    if needs_bytes > MEMORY_LIMIT:
        return f"the logits take {needs_bytes / 1e9:.1f} GB, more than {MEMORY_LIMIT / 1e9:.1f} GB"
    return None
