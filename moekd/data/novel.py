"""Classes that training knows nothing of, or no label of: base-to-novel generalisation.

The protocol of CoOp's successors (Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022,
arXiv 2203.05557, section 4.1): models learn from labels of the base classes and are tested on the base classes and on
the novel ones, each among themselves.

Shapes: N rows of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, did_you_mean
from .dataset import Split
from .few_labels import FewLabels, labelled_mask, with_labels
from .subset import Rows

#: What training sees of the novel classes: nothing, or the rows without their labels.
InTraining = Literal["nothing", "no_labels"]
ALL_TRAINING_ROWS = "train_all"


def novel_classes(choice: float | Sequence[str], names: Sequence[str], seed: int = 0) -> list[int]:
    """Return the novel classes, sorted.

    Args:
        choice: their names, or the fraction of the classes that are drawn.
        names: names of all classes.
        seed: seed of the draw.

    Raises:
        DataError: an unknown name, or nothing left on one of the sides.
    """
    if isinstance(choice, int | float):
        count = round(choice * len(names))
        drawn = np.random.default_rng(seed).permutation(len(names))[:count].tolist()
    else:
        for name in choice:
            if name not in names:
                raise DataError(f"novel.classes: no class '{name}'{did_you_mean(name, names) or ''}")
        drawn = [list(names).index(name) for name in choice]
    found = sorted({int(label) for label in drawn})
    if not 0 < len(found) < len(names):
        raise DataError(f"novel.classes: {len(found)} of {len(names)} classes; both sides need at least one")
    return found


def with_novel_classes(
    splits: Mapping[str, Split],
    novel: Sequence[int],
    classes: int,
    training: InTraining,
    amount: int | float | None = None,
    seed: int = 0,
) -> dict[str, Split]:
    """Return the splits of a run whose training knows the labels of base classes only.

    `train` loses the rows of the novel classes (`nothing`), or keeps them without labels; `train_all` has all rows and
    labels, for models that stand for ones trained elsewhere; `val` has base classes alone. Each other split stays, and
    gets two parts, `<split>_base` and `<split>_novel`, in which only classes of the part are candidates.

    Args:
        splits: of the data set.
        novel: the novel classes.
        classes: C.
        training: what training sees of them.
        amount: how many training rows of base classes keep their label: a count or a fraction; None: all.
        seed: seed of the draw of these.

    Raises:
        DataError: a split without one label a row, or a part without rows.
    """
    base = [label for label in range(classes) if label not in set(novel)]
    found: dict[str, Split] = {}
    for name, split in splits.items():
        if name == "train":
            if training == "no_labels":
                found[name] = base_labels(split, novel, amount, seed)
            else:
                found[name] = with_labels(part_of(split, base, name), amount, seed)
            found[ALL_TRAINING_ROWS] = split
        elif name == "val":
            found[name] = part_of(split, base, name)
        else:
            found |= {name: split, f"{name}_base": part_of(split, base, f"{name}_base")}
            found[f"{name}_novel"] = part_of(split, novel, f"{name}_novel")
    return found


def part_of(split: Split, classes: Sequence[int], name: str) -> Split:
    """Return the rows of some classes, which are the only candidates there.

    Raises:
        DataError: the split has not one label a row, or none of these classes.
    """
    part = Rows(split, np.flatnonzero(np.isin(_labels(split), classes)), name)
    if not len(part):
        raise DataError(f"novel: split '{split.name}' has no row for '{name}'")
    part.candidates = np.asarray(classes, dtype=np.int64)
    return part


def base_labels(split: Split, novel: Sequence[int], amount: int | float | None, seed: int = 0) -> Split:
    """Return a training split in which rows of novel classes have no label, and `amount` of the others has one.

    Args:
        split: training rows of all classes.
        novel: the novel classes.
        amount: a count or a fraction of the rows of base classes; None: all of them.
        seed: seed of the draw.

    Raises:
        DataError: amount out of range.
    """
    labels = _labels(split)
    base = np.flatnonzero((labels >= 0) & ~np.isin(labels, novel))
    mask = np.zeros(len(split), dtype=bool)
    mask[base] = True if amount is None else labelled_mask(labels[base], amount, seed)
    return FewLabels(split, mask)


def _labels(split: Split) -> NDArray[np.int64]:
    labels = split.labels
    if not isinstance(labels, np.ndarray) or labels.ndim != 1:
        raise DataError(f"novel: split '{split.name}' needs one label a row")
    return labels
