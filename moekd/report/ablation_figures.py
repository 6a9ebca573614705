"""Figures of the results of an ablation: intervals of the arms, and gain against agreement with the oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..evaluation.statistics import mean_interval
from .ablation_blocks import ArmResult, Block, Metric, numbers_of
from .ablation_tables import direction
from .figures import BLUE, GREY, RED, Drawing, finish, new_figure, shorten, slug
from .intervals import Entry, interval_figure
from .labels import place_labels
from .table import percent

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
    name = "" if base is None else f"mean of the baseline, {labels[base.name]}"
    figure = interval_figure(entries, metric.label, lambda value: _tick(metric, value), line, name)
    words = "; ".join(f"{arm.title} {metric.value(arm.mean)}" for arm in block.arms)
    alt = f"{metric.label} of {len(entries)} arms in {block.setting} on {block.split}, best first: {words}."
    caption = f"{block.split}: {metric.label} of the seeds (dots), their mean and its 95% interval. Triangles: beyond "
    caption += "chance against the baseline (p < 0.05 after Holm), better (up) or worse (down); circles: undecided; "
    caption += "square: the baseline"
    return finish(figure, slug("intervals", block.setting, block.split), "results", alt, caption)


def gain_against_agreement(block: Block, metric: Metric) -> list[Drawing]:
    """Draw one point an arm: weight on each row's best teacher against the student's paired gain, with intervals."""
    shown = [arm for arm in block.arms if arm.difference and math.isfinite(arm.means["oracle_weight"])]
    if not shown:
        return []
    figure, (axis,) = new_figure(4.4)
    chances = {round(arm.means["chance_weight"], 9) for arm in shown if math.isfinite(arm.means["chance_weight"])}
    for arm in shown:
        found = arm.difference
        assert found is not None
        gain, sign = metric.gain(found.mean), metric.gain(1.0)
        color, marker = LOOKS[verdict(arm, block, metric)]
        if found.low is not None and found.high is not None:
            axis.vlines(
                arm.means["oracle_weight"], sign * found.low, sign * found.high, color=color, lw=1.1, alpha=0.55
            )
        low, high = _weight_interval(arm)
        axis.hlines(gain, low, high, color=color, lw=1.1, alpha=0.55)
        axis.plot([arm.means["oracle_weight"]], [gain], marker, color=color, ms=5.5, mec="white", mew=0.5, zorder=3)
    axis.axhline(0, color="#777777", lw=1, ls="--", zorder=0.5)
    if len(chances) == 1:
        axis.axvline(next(iter(chances)), color="#777777", lw=1, ls=":", zorder=0.5)
    axis.set_xlabel("mean weight on each row's best teacher" + (" (dotted: chance)" if len(chances) == 1 else ""))
    axis.set_ylabel(f"gain in {metric.label} over the baseline, {metric.unit}")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    scale = 1 if metric.less_is_better else 100
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:+g}" if value else "0"))
    axis.yaxis.set_major_locator(MaxNLocator(7))
    axis.margins(0.12)
    places = [(arm.means["oracle_weight"], metric.gain(arm.difference.mean)) for arm in shown if arm.difference]
    labels = unique_labels(shown, 22)
    left = place_labels(figure, axis, places, [labels[arm.name] for arm in shown], 7 if len(shown) <= 15 else 6)
    words = "; ".join(
        f"{arm.title} {percent(arm.means['oracle_weight'], 0)}, {metric.difference(arm.difference.mean)}"
        for arm in shown
        if arm.difference
    )
    alt = f"Gain over the baseline against the weight on the best teacher in {block.setting}: {words}."
    caption = "does agreeing with the oracle pay? one point an arm, with 95% intervals over seeds; marks as above"
    caption += f"; no room for the names of {', '.join(left)}" if left else ""
    return [finish(figure, slug("gain-against-agreement", block.setting), "routing", alt, caption)]


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


def _weight_interval(arm: ArmResult) -> tuple[float, float]:
    weights = [value for row in arm.rows if math.isfinite(value := numbers_of(row)["oracle_weight"])]
    mean, low, high, _ = mean_interval(weights)
    return (mean, mean) if low is None or high is None else (low, high)


def _tick(metric: Metric, value: float) -> str:
    return f"{value:g}" if metric.less_is_better else f"{100 * value:g}%"
