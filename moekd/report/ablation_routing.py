"""Figures of the routers of an ablation: shares over training, and who teaches which class, in small multiples."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from .ablation_blocks import ArmResult, Block
from .classes import USE_COLORS
from .figures import PALETTE, WIDTH, Drawing, finish, shorten, slug
from .run import mapping, number, numbers

PANELS = 12
COLUMNS = 3
CLASSES = 20
MOVED = 0.02
Table = NDArray[np.float64]
Curves = dict[str, tuple[Table, Table]]


def shares_over_training(block: Block) -> list[Drawing]:
    """Return small multiples of the routing shares over the epochs: mean over seeds and their range.

    Only routers that learn are shown: those whose shares move by more than `MOVED` over training; at most `PANELS`,
    those that move most.
    """
    curves = {arm.name: share_curves(arm) for arm in block.arms}
    moved = {arm.name: _movement(curves[arm.name]) for arm in block.arms}
    moving = [arm for arm in block.arms if moved[arm.name] > MOVED]
    shown = _first(moving, lambda arm: moved[arm.name])
    if not shown:
        return []
    variants = list(dict.fromkeys(name for arm in shown for name in curves[arm.name]))
    figure, axes = _grid(len(shown), 1.25, header=0.22 * math.ceil(len(variants) / 2), sharey=True)
    styles = {name: _style(index) for index, name in enumerate(variants)}
    for axis, arm in zip(axes, shown, strict=False):
        for name, (epochs, shares_SE) in curves[arm.name].items():
            axis.plot(epochs, shares_SE.mean(0), label=shorten(name), lw=1.5, **styles[name])
            if len(shares_SE) > 1:
                axis.fill_between(
                    epochs, shares_SE.min(0), shares_SE.max(0), color=styles[name]["color"], alpha=0.18, lw=0
                )
        axis.set_title(_wrapped(arm.title), fontsize=7.5)
        axis.set_ylim(-0.02, 1.02)
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.tick_params(labelsize=7)
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=2, fontsize=7.5)
    figure.supxlabel("epoch", fontsize=8.5)
    last = "; ".join(f"{arm.title}: {_largest(curves[arm.name])}" for arm in shown)
    alt = (
        f"Routing shares over training in {block.setting}, {len(shown)} arms. Largest share in the last epoch: {last}."
    )
    caption = "who taught, over training: share of the rows by teacher; lines are means over seeds, bands the range of "
    caption += "seeds; only routers whose shares move" + _choice(shown, moving, "those that move most")
    return [finish(figure, slug("shares", block.setting), "routing", alt, caption)]


def use_by_class(block: Block) -> list[Drawing]:
    """Return small multiples of who teaches which class (mean over seeds), at most `PANELS` arms.

    The arms whose choice depends most on the class are shown, and of many classes those where the choice differs most.
    """
    tables = {arm.name: table for arm in block.arms if (table := _by_class(arm)) is not None}
    known = [arm for arm in block.arms if arm.name in tables]
    special = {name: float(np.nanmean(_distance(table))) for name, table in tables.items()}
    shown = _first(known, lambda arm: special[arm.name])
    if not shown:
        return []
    names = _class_names(shown[0], len(tables[shown[0].name]))
    same = [arm for arm in shown if len(tables[arm.name]) == len(names)]
    classes = _classes([tables[arm.name] for arm in same], len(names))
    alike = len({tuple(_variants(arm)) for arm in same}) == 1
    figure, axes = _grid(len(same), 0.35 + 0.13 * len(classes) + (0 if alike else 0.6), 0.9, sharey=True)
    image = None
    for place, (axis, arm) in enumerate(zip(axes, same, strict=False)):
        shares_CT = np.ma.masked_invalid(tables[arm.name][classes])
        image = axis.imshow(shares_CT, cmap=USE_COLORS, vmin=0, vmax=1, aspect="auto")
        variants = [shorten(name, 16) for name in _variants(arm)]
        size = 7 if len(variants) <= 6 else 5.5
        axis.set_xticks(range(len(variants)), variants, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
        axis.tick_params(length=0, labelbottom=not alike or place + COLUMNS >= len(same))
        axis.set_yticks(range(len(classes)), [shorten(names[index], 16) for index in classes], fontsize=6.5)
        axis.set_title(_wrapped(arm.title), fontsize=7.5)
        axis.grid(False)
    if image is not None:
        bar = figure.colorbar(
            image, ax=axes, location="top", shrink=0.6, aspect=30, pad=0.01, format=PercentFormatter(1)
        )
        bar.ax.tick_params(labelsize=7, length=2)
    top = "; ".join(f"{arm.title} {100 * special[arm.name]:.0f} points" for arm in same)
    alt = f"Who teaches which class in {block.setting}. Mean distance of a class's shares from the arm's own: {top}."
    caption = "who teaches which class: share of the class's rows by teacher, mean over seeds"
    caption += _choice(same, known, "those whose choice depends most on the class")
    caption += (
        f"; {len(classes)} of {len(names)} classes, where choices differ most" if len(classes) < len(names) else ""
    )
    return [finish(figure, slug("use-by-class", block.setting), "routing", alt, caption)]


def share_curves(arm: ArmResult) -> Curves:
    """Return {variant: (epochs [E], shares [S, E])} over the epochs that every seed has."""
    histories = [
        {number(record.get("epoch")): mapping(record.get("shares")) for record in row.get("history") or ()}
        for row in arm.rows
    ]
    histories = [history for history in histories if history]
    if not histories:
        return {}
    epochs = sorted(epoch for epoch in set.intersection(*map(set, histories)) if math.isfinite(epoch))
    names = list(dict.fromkeys(name for history in histories for epoch in epochs for name in history[epoch]))
    times = np.array(epochs) + 1
    return {
        name: (times, np.array([[_or_zero(history[epoch].get(name)) for epoch in epochs] for history in histories]))
        for name in names
        if epochs
    }


def _movement(curves: Curves) -> float:
    """Return the largest change over training of a variant's share, mean over seeds."""
    means = [shares_SE.mean(0) for _, shares_SE in curves.values()]
    return max((float(np.ptp(mean_E)) for mean_E in means), default=0.0)


def _largest(curves: Curves) -> str:
    last = {name: float(shares_SE.mean(0)[-1]) for name, (_, shares_SE) in curves.items()}
    name = max(last, key=lambda key: last[key])
    return f"{name} {100 * last[name]:.0f}%"


def _by_class(arm: ArmResult) -> Table | None:
    """Return the shares by class [C, T], mean over the seeds, NaN for classes without rows."""
    tables = []
    for row in arm.rows:
        table = [numbers(shares) for shares in mapping(row.get("routing")).get("by_class") or ()]
        if table and all(len(shares) == len(_variants(arm)) > 1 for shares in table):
            tables.append(np.array(table))
    tables = [table for table in tables if table.shape == tables[0].shape]
    if not tables:
        return None
    stacked_SCT = np.stack(tables)
    known_SCT = np.isfinite(stacked_SCT)
    count_CT = known_SCT.sum(0)
    total_CT = np.where(known_SCT, stacked_SCT, 0).sum(0)
    return np.where(count_CT > 0, total_CT / np.maximum(count_CT, 1), math.nan)


def _distance(table_CT: Table) -> Table:
    """Return how far each class's shares are from the arm's own, half the sum of absolute differences [C]."""
    known_CT = table_CT[np.isfinite(table_CT).all(1)]
    if not len(known_CT):
        return np.zeros(1)
    return np.abs(table_CT - known_CT.mean(0)).sum(1) / 2


def _classes(tables: Sequence[Table], size: int) -> list[int]:
    if size <= CLASSES:
        return list(range(size))
    distance_C = np.nan_to_num(np.stack([_distance(table) for table in tables])).sum(0)
    return sorted(np.argsort(-distance_C, kind="stable")[:CLASSES].tolist())


def _class_names(arm: ArmResult, size: int) -> list[str]:
    given = [str(name) for name in arm.rows[-1].get("class_names") or ()]
    return [given[index] if index < len(given) else f"class {index}" for index in range(size)]


def _variants(arm: ArmResult) -> list[str]:
    return [str(name) for name in mapping(arm.rows[-1].get("routing")).get("variants") or ()]


def _first(arms: Sequence[ArmResult], key: Callable[[ArmResult], float]) -> list[ArmResult]:
    """Return the `PANELS` arms with the largest key, in the order of the block."""
    kept = {arm.name for arm in sorted(arms, key=lambda arm: -key(arm))[:PANELS]}
    return [arm for arm in arms if arm.name in kept]


def _choice(shown: Sequence[ArmResult], all_: Sequence[ArmResult], words: str) -> str:
    return f"; {len(shown)} of {len(all_)} arms, {words}" if len(shown) < len(all_) else ""


def _grid(panels: int, height: float, header: float, sharey: bool) -> tuple[Figure, list[Axes]]:
    """Return small axes of `height` inches, `COLUMNS` in a row; the places that stay empty are removed."""
    rows = math.ceil(panels / COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.5 + header + rows * (height + 0.35)), layout="constrained")
    axes = list(figure.subplots(rows, min(panels, COLUMNS), squeeze=False, sharey=sharey).flat)
    for axis in axes[panels:]:
        axis.remove()
    return figure, axes[:panels]


def _style(index: int) -> dict[str, Any]:
    """Return colour and line of a variant; lines repeat the colours after the palette's end."""
    return {"color": PALETTE[index % len(PALETTE)], "ls": ["-", "--", ":", "-."][index // len(PALETTE) % 4]}


def _wrapped(title: str) -> str:
    """Break a title into at most two lines of a panel's width."""
    return textwrap.fill(title, 19, max_lines=2, placeholder="...") or "(no name)"


def _or_zero(value: object) -> float:
    found = number(value)
    return found if math.isfinite(found) else 0.0
