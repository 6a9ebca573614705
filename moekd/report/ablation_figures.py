"""The interval plot of an ablation, and what its figures have in common: marks by verdict, short labels."""

from __future__ import annotations

from collections.abc import Sequence

from .ablation_blocks import ArmResult, Block, Metric
from .ablation_tables import direction
from .figures import BLUE, GREY, RED, Drawing, finish, shorten, slug
from .intervals import Entry, interval_figure

LOOKS = {"up": (BLUE, "^"), "down": (RED, "v"), "open": (GREY, "o"), "baseline": ("#222222", "s")}


def interval_plot(block: Block, metric: Metric) -> Drawing:
    """Draw the arms sorted by their mean, the baseline's mean as a line."""
    labels = unique_labels(block.arms)
    entries = []
    for arm in reversed(block.arms):
        interval = arm.compared.interval
        if interval is None:
            continue
        color, marker = LOOKS[verdict(arm, block, metric)]
        values = list(arm.compared.values.values())
        entries.append(Entry(labels[arm.name], values, *interval[:3], color, marker))
    base = block.baseline
    line = None if base is None else base.mean
    figure = interval_figure(entries, metric.label, lambda value: _tick(metric, value), line, "mean of the baseline")
    words = "; ".join(f"{arm.title} {metric.value(arm.mean)}" for arm in block.arms)
    alt = f"{metric.label} of {len(entries)} arms in {block.setting} on {block.split}, best first: {words}."
    caption = f"{block.split}: {metric.label} of the seeds (dots), their mean and its 95% interval. Triangles: beyond "
    caption += "chance against the baseline (p < 0.05 after Holm), better (up) or worse (down); circles: undecided; "
    caption += "square: the baseline"
    return finish(figure, slug("intervals", block.setting, block.split), "results", alt, caption)


def verdict(arm: ArmResult, block: Block, metric: Metric) -> str:
    """Return baseline, up, down (beyond chance after Holm) or open."""
    if arm is block.baseline:
        return "baseline"
    if arm.difference is None or not arm.difference.beyond_chance:
        return "open"
    return direction(arm.difference, metric).rstrip("123") or "open"


def unique_labels(arms: Sequence[ArmResult], limit: int = 28) -> dict[str, str]:
    """Return short titles by arm; where two are alike, the arms' names instead."""
    titles = {arm.name: shorten(arm.title, limit) for arm in arms}
    seen = list(titles.values())
    return {name: title if seen.count(title) == 1 else shorten(name, limit) for name, title in titles.items()}


def _tick(metric: Metric, value: float) -> str:
    return f"{value:g}" if metric.less_is_better else f"{100 * value:g}%"
