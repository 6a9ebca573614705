"""The rows of an ablation, arranged: arms by setting and split with their statistics, and what could not take part."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.comparison import Compared, Difference, Share, compare, share_of_gap
from .ablation_rows import COST, OUTCOMES, ROUTING, Row, measured, ordered
from .measures import EMBEDDING, capital, measure_label
from .run import mapping, number
from .table import decimal, percent, points

REASON = 400
DERIVED = ("relative_entropy", "chance_weight")


@dataclass(frozen=True)
class Metric:
    """The number that arms are compared by: a share in [0, 1], or a loss in nats, of which less is better."""

    key: str

    @property
    def less_is_better(self) -> bool:
        """Whether a smaller number is the better one."""
        return self.key.endswith("loss")

    @property
    def label(self) -> str:
        """Name for people."""
        return measure_label(self.key)

    @property
    def heading(self) -> str:
        """The label with a capital."""
        return capital(self.label)

    @property
    def unit(self) -> str:
        """Unit of differences."""
        return "nats" if self.less_is_better else "points"

    def value(self, value: float, digits: int = 1) -> str:
        """Format a value."""
        return decimal(value, digits + 2) if self.less_is_better else percent(value, digits)

    def difference(self, value: float, digits: int = 1) -> str:
        """Format a difference with its sign, shares in percentage points; what rounds to zero is +0."""
        text = self.bound(value, digits)
        return text if text.strip("-0.") or text == "-" else text.replace("-", "+")

    def bound(self, value: float, digits: int = 1) -> str:
        """Format an end of a difference's interval: the sign stays, because it says whether 0 is inside."""
        if not self.less_is_better:
            return points(value, digits)
        return "-" if math.isnan(value) else f"{value:+.{digits + 2}f}"

    def spread(self, value: float | None, digits: int = 2) -> str:
        """Format a standard deviation in the unit of differences."""
        if value is None:
            return "-"
        return decimal(value, digits + 1) if self.less_is_better else decimal(100 * value, digits)

    def gain(self, difference: float) -> float:
        """Return the difference with the sign that makes better positive."""
        return -difference if self.less_is_better else difference


@dataclass(frozen=True)
class About:
    """What was compared; see `write_ablation_report`."""

    name: str
    title: str
    baseline: str
    command: str
    metric: Metric
    settings: tuple[str, ...]
    seeds: tuple[Any, ...]
    environment: Mapping[str, Any]
    date: str

    @classmethod
    def read(cls, about: Mapping[str, Any], rows: Sequence[Row]) -> About:
        """Fill in what `about` does not say: settings and seeds of the rows, today's date."""
        name = str(about.get("name") or "ablation")
        found = dict.fromkeys(str(row.get("setting")) for row in rows)
        settings = dict.fromkeys(map(str, about.get("settings") or ())) | found
        seeds = about.get("seeds") or sorted({row.get("seed") for row in rows if row.get("seed") is not None})
        return cls(
            name=name,
            title=str(about.get("title") or name),
            baseline=str(about.get("baseline") or ""),
            command=str(about.get("command") or f"moekd ablate {name}"),
            metric=Metric(str(about.get("metric") or "accuracy")),
            settings=tuple(setting for setting in settings if setting in found),
            seeds=tuple(seeds),
            environment=mapping(about.get("environment")),
            date=str(about.get("date") or datetime.date.today().isoformat()),
        )


@dataclass(frozen=True)
class ArmResult:
    """One arm on one split of one setting.

    Attributes:
        name: name in the ablation's file.
        title: what it is, for people.
        compared: values of the metric by seed, interval, and paired difference to the baseline.
        share: of the baseline's gap to the oracle, if there is such a gap.
        means: mean over the seeds of every other number, NaN where none is finite; with `relative_entropy` (entropy
            over ln T) and `chance_weight` (1 / T).
        rows: the rows that take part.
    """

    name: str
    title: str
    compared: Compared
    share: Share | None
    means: Mapping[str, float]
    rows: tuple[Row, ...]

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.compared.values)

    @property
    def mean(self) -> float:
        """Mean of the metric."""
        return self.compared.interval.mean if self.compared.interval else math.nan

    @property
    def difference(self) -> Difference | None:
        """Paired difference to the baseline."""
        return self.compared.difference

    @property
    def routed(self) -> bool:
        """Whether a router took part."""
        return any(row.get("routing") for row in self.rows)


@dataclass(frozen=True)
class Block:
    """The arms of one split of one setting, best first; `oracle` is the arm that `share` refers to."""

    setting: str
    split: str
    arms: tuple[ArmResult, ...]
    baseline: ArmResult | None
    oracle: ArmResult | None


@dataclass(frozen=True)
class Excluded:
    """Runs that are not in the comparison, and why."""

    setting: str
    arm: str
    title: str
    status: str
    reason: str
    seeds: tuple[Any, ...]


@dataclass
class Ablation:
    """Everything the report shows."""

    about: About
    blocks: list[Block] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, setting: str) -> list[Block]:
        """Return the blocks of a setting, the main split first."""
        return [block for block in self.blocks if block.setting == setting]

    @property
    def main(self) -> list[Block]:
        """Return the first block of each setting."""
        return [self.of(setting)[0] for setting in self.about.settings if self.of(setting)]

    @property
    def splits(self) -> list[str]:
        """Return the splits, the main one first."""
        return list(dict.fromkeys(block.split for block in sorted(self.blocks, key=lambda b: b.split != "test")))


def arrange(rows: Sequence[Row], about: Mapping[str, Any]) -> Ablation:
    """Sort the rows into blocks, compute their statistics, and note what is odd about them."""
    result = Ablation(About.read(about, rows))
    metric = result.about.metric.key
    usable: dict[tuple[str, str], dict[str, dict[Any, Row]]] = {}
    reasons: dict[tuple[str, str, str, str, str], dict[Any, None]] = {}
    rows = ordered(rows, result.about.settings, list(map(str, about.get("arms") or ())))
    for row in rows:
        setting, arm, title = _names(row)
        status, reason = str(row.get("status") or "done"), brief(str(row.get("reason") or ""))
        if status == "done" and not math.isfinite(number(row.get(metric))):
            found = "was not measured" if row.get(metric) is None else f"is {number(row.get(metric))}"
            status, reason = "not finite", f"{metric} {found} on {row.get('split')}"
        if status != "done":
            reasons.setdefault((setting, arm, title, status, reason), {})[row.get("seed")] = None
            continue
        arms = usable.setdefault((setting, str(row.get("split") or "test")), {})
        seeds = arms.setdefault(arm, {})
        if row.get("seed") in seeds:
            result.notes.append(f"{setting}: arm '{arm}' has seed {row.get('seed')} twice; the last one counts.")
        seeds[row.get("seed")] = row
    titles = {arm: title for _, arm, title in map(_names, rows) if title != arm}
    result.excluded = [
        Excluded(setting, arm, titles.get(arm, title), status, reason, tuple(seeds))
        for (setting, arm, title, status, reason), seeds in reasons.items()
    ]
    settings = result.about.settings
    for place in sorted(usable, key=lambda place: (settings.index(place[0]), place[1] != "test")):
        result.blocks.append(_block(place, usable[place], result.about))
    result.notes = list(dict.fromkeys([*result.notes, *_flags(result)]))
    return result


def brief(reason: str) -> str:
    """Return a reason on one line; of a long one the end, where an error says what it is."""
    reason = " ".join(reason.split())
    return reason if len(reason) <= REASON else "..." + reason[-REASON:]


def _block(place: tuple[str, str], arms: Mapping[str, Mapping[Any, Row]], about: About) -> Block:
    key, gain = about.metric.key, about.metric.gain
    values = {arm: {seed: measured(row.get(key)) for seed, row in seeds.items()} for arm, seeds in arms.items()}
    compared = compare(values, about.baseline)
    gains = {arm: {seed: gain(value) for seed, value in found.items()} for arm, found in values.items()}
    base = gains.get(about.baseline, {})
    oracles = [arm for arm in gains if arm.startswith("oracle") and share_of_gap(gains[arm], base, gains[arm])]
    oracle = max(oracles, key=lambda arm: gain(compared[arm].interval.mean), default=None)  # type: ignore[union-attr]
    results = []
    for arm, seeds in arms.items():
        taking_part = tuple(seeds.values())
        share = share_of_gap(gains[arm], base, gains[oracle]) if oracle and arm != about.baseline else None
        title = _names(taking_part[-1])[2]
        results.append(ArmResult(arm, title, compared[arm], share, _means(taking_part), taking_part))
    results.sort(key=lambda arm: -gain(arm.mean))
    named = {arm.name: arm for arm in results}
    return Block(*place, tuple(results), named.get(about.baseline), named.get(oracle or ""))


def numbers_of(row: Row) -> dict[str, float]:
    """Return every number of a row by its name, NaN where unknown."""
    routing = mapping(row.get("routing"))
    found = {key: measured(row.get(key)) for key in (*OUTCOMES, *EMBEDDING, *COST)}
    found |= {key: measured(routing.get(key)) for key in ROUTING}
    variants = len(routing.get("variants") or ())
    found["relative_entropy"] = found["entropy"] / math.log(variants) if variants > 1 else math.nan
    found["chance_weight"] = 1 / variants if variants else math.nan
    return found


def _means(rows: Sequence[Row]) -> dict[str, float]:
    tables = [numbers_of(row) for row in rows]
    means = {}
    for key in (*OUTCOMES, *EMBEDDING, *COST, *ROUTING, *DERIVED):
        known = [table[key] for table in tables if math.isfinite(table[key])]
        means[key] = sum(known) / len(known) if known else math.nan
    return means


def _names(row: Row) -> tuple[str, str, str]:
    arm = str(row.get("arm"))
    return str(row.get("setting")), arm, " ".join(str(row.get("title") or arm).split())


def _block_flags(block: Block, about: About) -> list[str]:
    flags, expected = [], len(about.seeds)
    if block.baseline is None:
        flags.append(f"the baseline '{about.baseline}' has no results, so no difference is shown.")
    fewer = sorted((arm.title, arm.n) for arm in block.arms if arm.n < expected)
    if fewer and len(fewer) == len(block.arms) and len({n for _, n in fewer}) == 1:
        flags.append(f"{fewer[0][1]} of {expected} seeds so far.")
    elif fewer:
        flags.append(f"fewer than {expected} seeds for {', '.join(f'{title} ({n})' for title, n in fewer)}.")
    return flags


def _flags(result: Ablation) -> list[str]:
    """Say which arms have fewer seeds, which numbers are not finite, where the baseline is missing."""
    if not result.blocks:
        return ["No run has finished, so there is nothing to compare."]
    flags: dict[tuple[str, str], list[str]] = {}
    for block in result.blocks:
        for words in _block_flags(block, result.about):
            flags.setdefault((block.setting, words), []).append(block.split)
    notes = []
    for (setting, words), splits in flags.items():
        everywhere = len(splits) == len(result.of(setting))
        notes.append(f"{setting}{'' if everywhere else ' on ' + ', '.join(splits)}: {words}")
    odd: dict[str, set[Any]] = {}
    for arm in (arm for block in result.blocks for arm in block.arms):
        for row in arm.rows:
            values = {key: row.get(key) for key in (*OUTCOMES, *COST)}
            values |= {key: mapping(row.get("routing")).get(key) for key in ROUTING}
            for key, value in values.items():
                if value is not None and not math.isfinite(number(value)):
                    odd.setdefault(f"{row.get('setting')}: {key} of {arm.title}", set()).add(row.get("seed"))
    seeds = {what: ", ".join(map(str, sorted(found, key=str))) for what, found in odd.items()}
    return notes + [
        f"{what} is not finite for seed {found}; its mean leaves that out." for what, found in seeds.items()
    ]
