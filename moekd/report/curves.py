"""Figures over training: losses, validation metric, routing shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from .figures import BLUE, PALETTE, RED, Drawing, finish, new_figure, shorten, slug
from .measures import measure_label
from .run import Record, Run, mapping, number

MONITORS = ("miou", "accuracy", "balanced_accuracy", "weighted_f1", "retrieval_r1", "zero_shot_accuracy")
OTHERS = "other variants"
Line = list[tuple[float, float]]


def training_curves(run: Run) -> list[Drawing]:
    """Return one figure a stage: losses above, validation metric below."""
    trains, validations, ends = run.stages("train"), run.stages("validation"), run.stages("stage_end")
    keys = list(dict.fromkeys([*trains, *validations]))
    drawings = []
    for key in keys:
        end = ends.get(key, [{}])[-1]
        drawing = _stage_curves(key, trains.get(key, []), validations.get(key, []), end)
        if drawing is not None:
            drawings.append(drawing)
    return drawings


def routing_curves(run: Run) -> list[Drawing]:
    """Return one figure a stage with routing records: shares as stacked areas, entropy below."""
    return [_routing_curve(key, records) for key, records in run.stages("routing").items()]


def monitored(metrics: dict[str, Any]) -> str | None:
    """Return the metric that tells how good a validation was: mIoU, accuracy, or the first that is not a loss."""
    known = [*(name for name in MONITORS if name in metrics), *(name for name in metrics if "loss" not in name)]
    return known[0] if known else None


def _stage_curves(
    key: tuple[str, str], train: Sequence[Record], validation: Sequence[Record], end: Record
) -> Drawing | None:
    phase, stage = key
    losses = _series([(record.get("step"), mapping(record.get("losses"))) for record in train])
    if len(losses) == 2:
        losses.pop("total", None)
    metric = next((m for m in (monitored(dict(mapping(r.get("metrics")))) for r in validation) if m), None)
    measured = _series([(r.get("step"), mapping(r.get("metrics"))) for r in validation])
    panels = [panel for panel in _by_size(losses) if panel]
    ratios = [1.0, 0.6][: len(panels)] + ([1.0] if metric in measured else [])
    if not ratios:
        return None
    figure, axes = new_figure(1.2 + 2.0 * sum(ratios), len(ratios), ratios, sharex=True)
    figure.suptitle(shorten(stage if phase == "main" else f"{phase}: {stage}", 44), x=0.02, ha="left", weight="bold")
    colors = {name: "#777777" if name == "total" else _color(index) for index, name in enumerate(losses)}
    for axis, panel in zip(axes, panels, strict=False):
        _draw_losses(axis, panel, colors, measured.get("loss") if axis is axes[0] else None)
    words = [f"{name} goes from {line[0][1]:.3g} to {line[-1][1]:.3g}." for name, line in losses.items()]
    if metric in measured:
        words.append(_draw_metric(axes[-1], str(metric), measured[str(metric)], _best_step(validation, end)))
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    name = f"stage {stage}" if phase == "main" else f"stage {stage} of {phase}"
    section = "training" if phase == "main" else "baselines"
    return finish(figure, slug("curves", phase, stage), section, f"Training curves of {name}. {' '.join(words)}", name)


def _by_size(losses: dict[str, Line]) -> list[dict[str, Line]]:
    """Split the terms: those that would be flat beside the largest one get a panel of their own."""
    largest = {name: max((abs(v) for _, v in line if math.isfinite(v)), default=0.0) for name, line in losses.items()}
    limit = max(largest.values(), default=0.0) / 30
    large = {name: line for name, line in losses.items() if largest[name] >= limit}
    return [large, {name: line for name, line in losses.items() if name not in large}]


def _draw_losses(axis: Axes, losses: dict[str, Line], colors: dict[str, str], validation: Line | None) -> None:
    for name, line in losses.items():
        style, mark = "--" if name == "total" else "-", "o" if len(line) == 1 else None
        axis.plot(*_columns(line), color=colors[name], ls=style, marker=mark, label=shorten(name))
    if validation:
        axis.plot(*_columns(validation), color="#222222", ls=":", marker=".", label="validation loss")
    if any(_spans_decades(line) for line in losses.values()):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axis.set_ylabel("loss")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2, borderaxespad=0.2)


def _spans_decades(line: Line) -> bool:
    values = [value for _, value in line if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 1000 * min(values)


def _draw_metric(axis: Axes, metric: str, line: Line, best_step: float) -> str:
    axis.plot(*_columns(line), color=BLUE, marker="o", ms=3.5)
    axis.set_ylabel(f"validation {measure_label(metric)}")
    if metric in MONITORS:
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    best = next((value for step, value in line if step == best_step), None)
    if best is not None:
        axis.plot([best_step], [best], "D", color=RED, ms=7, mfc="none", mew=1.8, label=f"best epoch ({best:.3f})")
        axis.legend(loc="best")
    return f"Validation {metric.replace('_', ' ')} goes from {line[0][1]:.3f} to {line[-1][1]:.3f}."


def _color(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _best_step(validation: Sequence[Record], end: Record) -> float:
    """Step of the validation at the epoch that the stage kept; NaN if it kept the last one."""
    epoch = end.get("best_epoch")
    steps = (number(record.get("step")) for record in validation if record.get("epoch") == epoch)
    return math.nan if epoch is None else next(steps, math.nan)


def _routing_curve(key: tuple[str, str], records: Sequence[Record]) -> Drawing:
    phase, stage = key
    epochs = [number(record.get("epoch", index)) + 1 for index, record in enumerate(records)]
    shares = _largest([mapping(record.get("shares")) for record in records], len(PALETTE) - 1)
    entropy = [number(record.get("entropy")) for record in records]
    panels = 2 if any(map(math.isfinite, entropy)) else 1
    figure, axes = new_figure(2.6 + 1.3 * panels, panels, [2.2, 1][:panels], sharex=True)
    where = stage if phase == "main" else f"{phase}: {stage}"
    figure.suptitle(shorten(f"Routing in {where}", 44), x=0.02, ha="left", weight="bold")
    if len(records) > 1:
        axes[0].stackplot(
            epochs, list(shares.values()), colors=PALETTE, labels=map(shorten, shares), lw=0.6, ec="white"
        )
        axes[0].set_xlim(min(epochs), max(epochs))
    else:
        bottom = 0.0
        for (name, values), color in zip(shares.items(), PALETTE, strict=False):
            axes[0].bar(epochs, values, bottom=bottom, color=color, width=0.6, label=shorten(name))
            bottom += values[0]
    axes[0].set_ylim(0, 1)
    axes[0].set_ylabel("share of rows")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2, borderaxespad=0.2
    )
    if panels == 2:
        _draw_entropy(axes[1], epochs, entropy, max(len(mapping(record.get("shares"))) for record in records))
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    last = ", ".join(f"{name} {100 * values[-1]:.0f}%" for name, values in shares.items())
    alt = f"Share of rows routed to each teacher variant over the epochs of stage {stage}. In the last epoch: {last}."
    section = "routing" if phase == "main" else "baselines"
    return finish(figure, slug("routing", phase, stage), section, alt, f"who taught, over training (stage {stage})")


def _draw_entropy(axis: Axes, epochs: list[float], entropy: list[float], variants: int) -> None:
    axis.plot(epochs, entropy, color="#222222", marker="." if len(epochs) < 30 else None)
    if variants > 1:
        axis.axhline(math.log(variants), color="#777777", ls="--", lw=1.2, label="uniform")
        axis.legend(loc="best")
    axis.set_ylim(0, 1.15 * max([math.log(max(variants, 2)), *(v for v in entropy if math.isfinite(v))]))
    axis.set_ylabel("entropy (nats)")


def _largest(records: list[Any], limit: int) -> dict[str, list[float]]:
    """Shares over time by name; beyond `limit` names the smallest are added up."""
    names = list(dict.fromkeys(name for record in records for name in record))
    table = {name: [_or_zero(number(record.get(name, 0))) for record in records] for name in names}
    if len(names) <= limit:
        return table
    kept = sorted(names, key=lambda name: -sum(table[name]))[: limit - 1]
    rest = [sum(table[name][i] for name in names if name not in kept) for i in range(len(records))]
    return {name: table[name] for name in names if name in kept} | {OTHERS: rest}


def _series(points: list[tuple[Any, Any]]) -> dict[str, Line]:
    """Turn (step, {name: value}) into {name: [(step, value)]}; records without a number are left out."""
    lines: dict[str, Line] = {}
    for index, (step, values) in enumerate(points):
        at = number(step) if math.isfinite(number(step)) else float(index)
        for name, value in values.items():
            if not math.isnan(number(value)):
                lines.setdefault(str(name), []).append((at, number(value)))
    return lines


def _columns(line: Line) -> tuple[list[float], list[float]]:
    return [step for step, _ in line], [value for _, value in line]


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
