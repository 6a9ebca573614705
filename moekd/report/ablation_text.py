"""An ablation as text: Markdown tables to commit, and tables in the terminal. Both have the same columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.comparison import MIN_PAIRS
from .ablation_blocks import Ablation, Block
from .ablation_tables import (
    brief_routing_table,
    difference_cell,
    excluded_table,
    matrix,
    mean_cell,
    p_text,
    seeds_cell,
    share_cell,
    without_empty,
)
from .html import Cell, PageTable, flatten

SPECIAL = re.compile(r"([\\`*<>|\[\]~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def markdown(ablation: Ablation) -> str:
    """Return the tables of an ablation as Markdown, the command that made them on top."""
    about = ablation.about
    seeds = ", ".join(map(str, about.seeds))
    lines = [f"# {escape(about.title)}", "", f"Made by `{_code(about.command)}` on {about.date}. Seeds: {seeds}.", ""]
    lines += [reading(ablation), ""]
    environment = _environment(about.environment)
    lines += [f"Environment: {escape(environment)}.", ""] if environment else []
    lines += [f"- {escape(note)}" for note in ablation.notes] + ([""] if ablation.notes else [])
    if len(ablation.main) > 1:
        for split in ablation.splits:
            lines += [f"## All settings, {split}", "", *table_lines(matrix(ablation, split)), ""]
    for setting in about.settings:
        blocks = ablation.of(setting)
        lines += [f"## {escape(setting)}", ""] if blocks else []
        for block in blocks:
            lines += [f"### {escape(setting)}, {escape(block.split)}", "", *table_lines(compact(block, ablation)), ""]
        if blocks:
            lines += [f"### {escape(setting)}: cost and routing", ""]
            lines += [
                "Seconds and teacher forwards a step; entropy in nats [of ln T]; load as coefficient of variation;"
            ]
            lines += [
                "mean weight on each row's best teacher [chance]; loss of the chosen teacher in nats [best one].",
                "",
            ]
            lines += [*table_lines(without_empty(brief_routing_table(blocks[0]))), ""]
    left_out = excluded_table(ablation)
    lines += ["## Not in the comparison", "", *table_lines(left_out), ""] if left_out else []
    return "\n".join(lines).rstrip() + "\n"


def print_tables(ablation: Ablation, console: Console) -> None:
    """Print the tables of the main split to the terminal."""
    console.print(Text(f"{ablation.about.title}: {reading(ablation)}"))
    if len(ablation.main) > 1:
        console.print(_rich(matrix(ablation, ablation.splits[0])))
    for setting in ablation.about.settings:
        blocks = ablation.of(setting)
        if blocks:
            console.print(_rich(compact(blocks[0], ablation)))
            console.print(_rich(without_empty(brief_routing_table(blocks[0]))))
    left_out = excluded_table(ablation)
    if left_out is not None:
        console.print(_rich(left_out))
    for note in ablation.notes:
        console.print(Text(f"Note: {note}"))


def reading(ablation: Ablation) -> str:
    """Say how the tables are to be read."""
    metric, baseline = ablation.about.metric, ablation.about.baseline
    unit = "in nats, less is better" if metric.less_is_better else "in percent"
    words = f"{metric.heading} {unit}: mean over seeds with its 95 % interval (Student's t). Differences are "
    words += (
        f"to the baseline arm '{baseline}', paired by seed, with their 95 % interval; p is that of a paired t-test, "
    )
    words += "corrected by Holm's method over the arms of a table (* below 0.05). "
    words += f"Fewer than {MIN_PAIRS} shared seeds give no p-value: from so few the t-test says nothing."
    oracles = list(dict.fromkeys(block.oracle.title for block in ablation.blocks if block.oracle))
    if oracles:
        words += (
            " Gap closed: (arm - baseline) / (oracle - baseline) with Fieller's 95 % interval, shown where the gap "
        )
        words += f"is above 0 (oracle: {' or '.join(repr(title) for title in oracles)})."
    return words


def compact(block: Block, ablation: Ablation) -> PageTable:
    """Return the result table with intervals beside their means."""
    metric = ablation.about.metric
    header = ["Arm", "Seeds", metric.heading, "Difference", "p (Holm)"]
    header += ["Gap closed"] if block.oracle else []
    rows = []
    for arm in block.arms:
        found = arm.difference
        cells = [Cell(arm.title), seeds_cell(arm, ablation), _plain(mean_cell(arm, metric))]
        cells += [_plain(difference_cell(arm, block, metric)), Cell(p_text(found, found.p_holm if found else None))]
        rows.append(cells + ([share_cell(arm, block)] if block.oracle else []))
    strong = frozenset(index for index, arm in enumerate(block.arms) if arm is block.baseline)
    return PageTable(f"{block.setting}, {block.split}", header, rows, strong)


def table_lines(table: PageTable) -> list[str]:
    """Return a table as Markdown; small print goes into brackets, strong rows are bold."""
    lines = ["| " + " | ".join(map(escape, table.header)) + " |", "|---" * len(table.header) + "|"]
    for index, row in enumerate(table.rows):
        texts = [_flat(cell, first=column == 0) for column, cell in enumerate(row)]
        texts = [text if cell.value is not None else escape(text) for text, cell in zip(texts, row, strict=True)]
        if index in table.strong:
            texts[0] = f"**{texts[0]}**"
        lines.append("| " + " | ".join(texts) + " |")
    return lines


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _plain(cell: Cell) -> Cell:
    """Return a cell with its interval, without percent signs: the heading says the unit."""
    return Cell(cell.text.replace("%", ""), cell.value, cell.detail.replace("%", "").replace(" to ", ", "))


def _flat(cell: Cell, first: bool = False) -> str:
    """Return a cell on one line; the first column's small print (the arm's name) is left out."""
    return cell.text if first or not cell.detail else f"{cell.text} [{cell.detail}]"


def _rich(table: PageTable) -> Table:
    result = Table(title=Text(table.caption), title_justify="left")
    for index, name in enumerate(table.header):
        result.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    for index, row in enumerate(table.rows):
        texts = [Text(_flat(cell, first=column == 0)) for column, cell in enumerate(row)]
        result.add_row(*texts, style="bold" if index in table.strong else "")
    return result


def _environment(environment: Mapping[str, object]) -> str:
    keys: Sequence[str] = (
        "python",
        "packages.torch",
        "packages.moekd",
        "platform",
        "machine",
        "cpu_count",
        "cpus",
        "gpus",
    )
    known = dict(flatten(environment))
    return ", ".join(f"{key.split('.')[-1]} {known[key]}" for key in keys if known.get(key) not in (None, "", "None"))


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
