"""Does agreeing with the oracle pay? The student's gain against the router's weight on each row's best teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..evaluation.comparison import Difference
from ..evaluation.statistics import mean_interval
from .ablation_blocks import ArmResult, Block, Metric, numbers_of
from .ablation_figures import LOOKS, unique_labels, verdict
from .figures import Drawing, finish, new_figure, slug
from .labels import place_labels
from .table import percent

DIRECT = 7
LINE = 0.165
Point = tuple[ArmResult, Difference]


def gain_against_agreement(block: Block, metric: Metric) -> list[Drawing]:
    """Draw one point an arm, with 95% intervals; more than `DIRECT` arms are numbered, with a key below."""
    shown = [(arm, arm.difference) for arm in block.arms if arm.difference]
    shown = [(arm, found) for arm, found in shown if math.isfinite(arm.means["oracle_weight"])]
    if not shown:
        return []
    labels = unique_labels([arm for arm, _ in shown], 29)
    names = [labels[arm.name] for arm, _ in shown]
    lines = math.ceil(len(shown) / 2) if len(shown) > DIRECT else 0
    figure, axes = new_figure(4.0 + LINE * lines, 2 if lines else 1, [4.0, LINE * lines] if lines else [1])
    axis = axes[0]
    for arm, found in shown:
        _draw_point(axis, arm, found, metric, *LOOKS[verdict(arm, block, metric)])
    _decorate(axis, shown, metric)
    if lines:
        _key(axes[1], names, lines)
    places = [(arm.means["oracle_weight"], metric.gain(found.mean)) for arm, found in shown]
    written = [str(index + 1) for index in range(len(names))] if lines else names
    left = place_labels(figure, axis, places, written, 7.5 if lines else 8)
    words = "; ".join(
        f"{arm.title} {percent(arm.means['oracle_weight'], 0)}, {metric.difference(found.mean)}" for arm, found in shown
    )
    alt = f"Gain over the baseline against the weight on the best teacher in {block.setting}: {words}."
    caption = "does agreeing with the oracle pay? one point an arm, with 95% intervals over seeds; marks as in the "
    caption += "interval plot" + (f"; no room for {', '.join(left)}" if left else "")
    return [finish(figure, slug("gain-against-agreement", block.setting), "routing", alt, caption)]


def _draw_point(axis: Axes, arm: ArmResult, found: Difference, metric: Metric, color: str, marker: str) -> None:
    weight, gain, sign = arm.means["oracle_weight"], metric.gain(found.mean), metric.gain(1.0)
    if found.low is not None and found.high is not None:
        axis.vlines(weight, sign * found.low, sign * found.high, color=color, lw=1, alpha=0.4)
    weights = [value for row in arm.rows if math.isfinite(value := numbers_of(row)["oracle_weight"])]
    _, low, high, _ = mean_interval(weights)
    if low is not None and high is not None:
        axis.hlines(gain, low, high, color=color, lw=1, alpha=0.4)
    axis.plot([weight], [gain], marker, color=color, ms=5.5, mec="white", mew=0.5, zorder=3)


def _decorate(axis: Axes, shown: Sequence[Point], metric: Metric) -> None:
    chances = {round(arm.means["chance_weight"], 9) for arm, _ in shown if math.isfinite(arm.means["chance_weight"])}
    axis.axhline(0, color="#777777", lw=1, ls="--", zorder=0.5)
    if len(chances) == 1:
        axis.axvline(next(iter(chances)), color="#777777", lw=1, ls=":", zorder=0.5)
    axis.set_xlabel("mean weight on each row's best teacher" + (" (dotted: chance)" if len(chances) == 1 else ""))
    axis.set_ylabel(f"gain in {metric.label} over the baseline, {metric.unit}")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    scale = 1 if metric.less_is_better else 100
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:+g}" if value else "0"))
    axis.yaxis.set_major_locator(MaxNLocator(7))
    axis.margins(0.1)


def _key(axis: Axes, names: Sequence[str], lines: int) -> None:
    """Write which number is which arm, in two columns."""
    axis.set_axis_off()
    for index, name in enumerate(names):
        column, line = divmod(index, lines)
        height = 1 - (line + 0.5) / lines
        x = 0.5 * column + 0.03
        axis.text(x, height, str(index + 1), ha="right", va="center", fontsize=7.5, transform=axis.transAxes)
        axis.text(x + 0.015, height, name, va="center", fontsize=7.5, transform=axis.transAxes)
