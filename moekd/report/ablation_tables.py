"""The tables of an ablation: arms of a setting, what routing did and cost, arms by settings, what is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..evaluation.comparison import MIN_PAIRS, Difference
from .ablation_blocks import Ablation, ArmResult, Block, Metric
from .html import Cell, PageTable
from .measures import capital, known_measures, measure_label
from .run import number
from .table import count, decimal, p_value, percent, span

ENTROPY, LOAD, BEST, AGREEMENT = "Routing entropy, nats", "Load, cv", "Weight on best teacher", "Best teacher chosen"
FEW_PAIRS = f"n < {MIN_PAIRS}"


def result_table(block: Block, ablation: Ablation) -> PageTable:
    """Return one row an arm: seeds, mean, interval, sd, paired difference to the baseline, p, share of the gap."""
    metric = ablation.about.metric
    header = ["Arm", "Seeds", metric.heading, f"SD, {metric.unit}", f"Difference, {metric.unit}", "p", "p, Holm"]
    header += ["Gap to oracle closed"] if block.oracle else []
    rows = []
    for arm in block.arms:
        interval, found = arm.compared.interval, arm.difference
        sd = interval.sd if interval else None
        cells = [_name(arm), seeds_cell(arm, ablation), mean_cell(arm, metric), Cell(metric.spread(sd), number(sd))]
        cells += [difference_cell(arm, block, metric)]
        cells += [Cell(p_text(found, p), number(p)) for p in ((found.p, found.p_holm) if found else (None, None))]
        cells += [share_cell(arm, block)] if block.oracle else []
        rows.append(cells)
    caption = f"{block.setting}, {block.split}: mean over seeds"
    caption += f", and paired difference to '{block.baseline.title}'" if block.baseline else ""
    caption += "; 95% intervals in small print"
    return PageTable(caption, header, rows, _baseline_rows(block))


def routing_table(block: Block) -> PageTable:
    """Return one row an arm: time and teacher forwards a step, entropy, load, agreement with the oracle, losses."""
    header = ["Arm", "Seconds a step", "Teacher forwards a step", ENTROPY, LOAD, BEST, AGREEMENT]
    header += ["Loss of chosen teacher", "Loss of best teacher", "Mean loss of teachers"]
    rows = []
    for arm in block.arms:
        cells = [_name(arm), _decimal(arm, "seconds_per_step", 4), _decimal(arm, "teacher_forwards_per_step", 2)]
        cells += [_detailed(arm, "entropy", "relative_entropy", "{} of ln T", lambda x: decimal(x, 2))]
        cells += [_decimal(arm, "load_cv", 2)]
        cells += [_detailed(arm, "oracle_weight", "chance_weight", "chance {}", percent)]
        cells += [_detailed(arm, "oracle_agreement", "chance_agreement", "chance {}", percent)]
        cells += [_decimal(arm, key, 3) for key in ("chosen_loss", "oracle_loss", "mean_loss")]
        rows.append(cells)
    caption = f"{block.setting}: cost of a step, and what the router did (means over seeds)"
    return PageTable(caption, header, rows, _baseline_rows(block))


def brief_routing_table(block: Block) -> PageTable:
    """Return the routing table for text: fewer and narrower columns."""
    header = ["Arm", "s / step", "Forwards / step", "Entropy", "Load cv", "Weight on best", "Loss of chosen"]
    rows = []
    for arm in block.arms:
        means = arm.means
        cells = [_name(arm), _decimal(arm, "seconds_per_step", 4), _decimal(arm, "teacher_forwards_per_step", 2)]
        cells += [_detailed(arm, "entropy", "relative_entropy", "{}", lambda x: decimal(x, 2))]
        cells += [_decimal(arm, "load_cv", 2), _detailed(arm, "oracle_weight", "chance_weight", "{}", percent)]
        loss = Cell(decimal(means["chosen_loss"], 3), means["chosen_loss"], decimal(means["oracle_loss"], 3).strip("-"))
        rows.append([*cells, loss])
    caption = f"{block.setting}: entropy in nats [of ln T], weight on each row's best teacher [chance], loss [best]"
    return PageTable(caption, header, rows, _baseline_rows(block))


def other_measures(block: Block) -> PageTable:
    """Return one row an arm: every measure of the student, and the time of the arm's own stages."""
    means = [arm.means for arm in block.arms]
    shares = [*known_measures(means, ("accuracy", "balanced_accuracy", "weighted_f1")), *known_measures(means)]
    header = ["Arm", *(capital(measure_label(key)) for key in shares), "Loss", "Seconds", "Peak memory, MB"]
    rows = []
    for arm in block.arms:
        cells = [_name(arm), *(Cell(percent(arm.means[key], 2), arm.means[key]) for key in shares)]
        cost = [Cell(count(arm.means[key]), arm.means[key]) for key in ("seconds", "peak_memory_mb")]
        rows.append([*cells, _decimal(arm, "loss", 4), *cost])
    return PageTable(f"{block.setting}, {block.split}: other measures, means over seeds", header, rows)


def matrix(ablation: Ablation, split: str) -> PageTable:
    """Return paired differences to the baseline, arms by settings, on one split; the arms with most gain on top."""
    metric = ablation.about.metric
    blocks = [block for block in ablation.blocks if block.split == split]
    arms: dict[str, ArmResult] = {arm.name: arm for block in blocks for arm in block.arms}
    found = {(b.setting, a.name): a for b in blocks for a in b.arms}
    rows: list[tuple[float, list[Cell], bool]] = []
    for name, arm in arms.items():
        here = [found.get((block.setting, name)) for block in blocks]
        gains = [a.difference.mean for a in here if a and a.difference]
        mean = sum(gains) / len(gains) if len(gains) == len(blocks) else math.nan
        base = name == ablation.about.baseline
        cells = [_name(arm)]
        for result in here:
            if base and result:
                cells.append(Cell(metric.value(result.mean), 0.0))
            elif result is None or result.difference is None:
                cells.append(Cell("-", math.nan))
            else:
                cells.append(matrix_cell(result.difference, metric))
        cells.append(Cell("baseline" if base else metric.difference(mean), 0.0 if base else mean))
        order = sum(gains) / len(gains) if gains else 0.0
        rows.append((-metric.gain(order), cells, base))
    rows.sort(key=lambda row: row[0])
    header = ["Arm", *(block.setting for block in blocks), "Mean of settings"]
    caption = f"{split}: difference of {metric.label} to the baseline, in {metric.unit}"
    strong = frozenset(index for index, row in enumerate(rows) if row[2])
    return PageTable(caption, header, [cells for _, cells, _ in rows], strong)


def matrix_cell(found: Difference, metric: Metric) -> Cell:
    """Return a coloured cell: sign and asterisk say the same as the colour."""
    text = metric.difference(found.mean) + ("*" if found.beyond_chance else "")
    detail = interval_text(found.low, found.high, metric.bound)
    return Cell(text, found.mean, detail, _mark(text, found, metric))


def direction(found: Difference, metric: Metric) -> str:
    """Return up or down with 1 (interval includes 0), 2 (it does not) or 3 (p < 0.05 after Holm); empty for 0."""
    if found.mean == 0:
        return ""
    sure = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    return ("up" if metric.gain(found.mean) > 0 else "down") + ("3" if found.beyond_chance else "2" if sure else "1")


def excluded_table(ablation: Ablation) -> PageTable | None:
    """Return the runs that are not in the comparison, with the reason."""
    if not ablation.excluded:
        return None
    together: dict[tuple[str, str, str, str], list[str]] = {}
    for found in ablation.excluded:
        seeds = ", ".join("all" if seed is None else str(seed) for seed in found.seeds)
        together.setdefault((found.setting, seeds, found.status, found.reason), []).append(found.title)
    rows = [
        [Cell("; ".join(arms)), Cell(setting), Cell(seeds), Cell(status), Cell(reason or "-")]
        for (setting, seeds, status, reason), arms in together.items()
    ]
    return PageTable("runs that are not in the comparison", ["Arms", "Setting", "Seeds", "Status", "Reason"], rows)


def difference_cell(arm: ArmResult, block: Block, metric: Metric) -> Cell:
    """Return the paired difference; the baseline says that it is the baseline."""
    if block.baseline is arm:
        return Cell("baseline", 0.0)
    if arm.difference is None:
        return Cell("-", math.nan)
    found = arm.difference
    text = metric.difference(found.mean, 2) + ("*" if found.beyond_chance else "")
    detail = interval_text(found.low, found.high, lambda x: metric.bound(x, 2))
    return Cell(text, found.mean, detail, _mark(text, found, metric))


def mean_cell(arm: ArmResult, metric: Metric) -> Cell:
    """Return the mean with its interval."""
    interval = arm.compared.interval
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Cell(metric.value(arm.mean, 2), arm.mean, interval_text(low, high, lambda x: metric.value(x, 2)))


def seeds_cell(arm: ArmResult, ablation: Ablation) -> Cell:
    """Return the number of seeds, and of how many where some are missing."""
    expected = len(ablation.about.seeds)
    return Cell(f"{arm.n} of {expected}" if arm.n < expected else str(arm.n), arm.n)


def share_cell(arm: ArmResult, block: Block) -> Cell:
    """Return the share of the gap to the oracle with its interval."""
    if arm is block.oracle:
        return Cell("oracle", 1.0)
    if arm.share is None:
        return Cell("-", math.nan)
    detail = interval_text(arm.share.low, arm.share.high, lambda x: percent(x, 0))
    return Cell(percent(arm.share.value, 0), arm.share.value, detail)


def p_text(found: Difference | None, p: float | None) -> str:
    """Return a p-value, or why there is none."""
    return FEW_PAIRS if found is not None and found.n < MIN_PAIRS else p_value(p)


def interval_text(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    """Return an interval; empty where there is none."""
    return "" if low is None or high is None else span(low, high, form)


def without_empty(table: PageTable, keep: Sequence[str] = ()) -> PageTable:
    """Leave out the columns in which no row has a value."""
    kept = [
        column
        for column, name in enumerate(table.header)
        if column == 0 or name in keep or any(row[column].text != "-" for row in table.rows)
    ]
    rows = [[row[column] for column in kept] for row in table.rows]
    return PageTable(table.caption, [table.header[column] for column in kept], rows, table.strong)


def _mark(text: str, found: Difference, metric: Metric) -> str:
    """Return the colour of a difference; none where it is shown as zero."""
    return direction(found, metric) if text.strip("+0.*") else ""


def _name(arm: ArmResult) -> Cell:
    return Cell(arm.title, detail=arm.name if arm.name != arm.title else "")


def _decimal(arm: ArmResult, key: str, digits: int) -> Cell:
    return Cell(decimal(arm.means[key], digits), arm.means[key])


def _detailed(arm: ArmResult, key: str, beside: str, words: str, form: Callable[[float], str]) -> Cell:
    """Return a mean with another one in small print (a relative number in percent)."""
    value, other = arm.means[key], arm.means[beside]
    detail = "" if math.isnan(value) or math.isnan(other) else words.format(percent(other, 0))
    return Cell(form(value), value, detail)


def _baseline_rows(block: Block) -> frozenset[int]:
    return frozenset(index for index, arm in enumerate(block.arms) if arm is block.baseline)
