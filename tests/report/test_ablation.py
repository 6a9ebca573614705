"""The report of an ablation: its files, what they say, and what they leave out."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser

import pytest
from example_ablation import ABOUT, ARMS, EVIL, SETTINGS, damaged_rows, example_rows
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from moekd.report import print_ablation, read_ablation_csv, write_ablation_report
from moekd.report.ablation import summary
from moekd.report.ablation_blocks import Metric, arrange
from moekd.report.ablation_tables import matrix, result_table, routing_table
from moekd.report.ablation_text import markdown

FEW = ABOUT | {"seeds": [0, 1, 2], "settings": SETTINGS[:1]}


def values(rows, arm, setting=SETTINGS[0], split="test", key="accuracy"):
    return [r[key] for r in rows if (r["setting"], r["arm"], r["split"]) == (setting, arm, split)]


def printed(rows, about, width=140):
    console = Console(file=io.StringIO(), width=width)
    print_ablation(rows, about, console)
    return console.file.getvalue()


def test_files(ablation_files):
    folder = ablation_files["html"].parent
    assert {path.name for path in ablation_files.values()} == {"routers.csv", "routers.md", "report.html"}
    kinds = {name.stem.split("-400-labels")[0] for name in (folder / "figures").glob("*400-labels*.png")}
    assert kinds == {"intervals", "intervals-corrupted", "shares", "shares-corrupted", "use-by-class"} | {
        "use-by-class-corrupted",
        "gain-against-agreement",
        "gain-against-agreement-corrupted",
    }
    assert not list(folder.rglob("*.tmp"))


def test_statistics_are_those_of_scipy_and_statsmodels():
    rows = example_rows()
    block = arrange(rows, ABOUT).of(SETTINGS[1])[0]
    assert len(block.arms) == len(ARMS)
    base = values(rows, "uniform", SETTINGS[1])
    raw = {a: stats.ttest_rel(values(rows, a, SETTINGS[1]), base) for a in ARMS if a != "uniform"}
    adjusted = dict(zip(raw, multipletests([test.pvalue for test in raw.values()], method="holm")[1], strict=True))
    for arm in block.arms:
        assert arm.mean == pytest.approx(sum(values(rows, arm.name, SETTINGS[1])) / 5, rel=2e-6)
        if arm.name == "uniform":
            assert arm is block.baseline
            continue
        interval = raw[arm.name].confidence_interval()
        assert (arm.difference.low, arm.difference.high) == pytest.approx((interval.low, interval.high), abs=2e-6)
        assert arm.difference.p == pytest.approx(raw[arm.name].pvalue, rel=1e-2)
        assert arm.difference.p_holm == pytest.approx(adjusted[arm.name], rel=1e-2)
    assert [arm.mean for arm in block.arms] == sorted((arm.mean for arm in block.arms), reverse=True)


def test_share_of_the_gap_refers_to_the_best_oracle_that_is_above_the_baseline():
    rows = example_rows(arms=11, settings=1)
    block = arrange(rows, ABOUT).blocks[0]
    assert block.oracle.name in ("oracle", "oracle_soft")
    best = max(("oracle", "oracle_soft"), key=lambda arm: sum(values(rows, arm)))
    assert block.oracle.name == best
    base, oracle, arm = (sum(values(rows, name)) for name in ("uniform", best, "logit_mean"))
    share = next(a.share for a in block.arms if a.name == "logit_mean")
    assert share.value == pytest.approx((arm - base) / (oracle - base), abs=1e-3)
    worse = [row | {"accuracy": 0.4} if row["arm"].startswith("oracle") else row for row in rows]
    assert arrange(worse, ABOUT).blocks[0].oracle is None
    assert "Gap to oracle closed" not in result_table(arrange(worse, ABOUT).blocks[0], arrange(worse, ABOUT)).header


def test_two_seeds_have_no_p_value_and_the_tables_say_why():
    rows, about = example_rows(5, 1, 2), FEW | {"seeds": [0, 1]}
    ablation = arrange(rows, about)
    table = result_table(ablation.blocks[0], ablation)
    cells = [row[table.header.index("p, Holm")].text for row in table.rows]
    assert sorted(cells) == ["-"] + ["n < 3"] * 4
    assert "n < 3" in printed(rows, about)
    assert "Fewer than 3 shared seeds give no p-value" in markdown(ablation)
    assert "Too few shared seeds" in summary(ablation)[0]
    assert not re.search(r"\d\*", markdown(ablation)), "nothing is beyond chance"


def test_what_is_left_out_is_named(ablation_files):
    text = ablation_files["md"].read_text()
    left_out = text.split("## Not in the comparison")[1]
    assert "loss is not finite at step 120" in left_out
    assert "needs at least 8 rows a batch" in left_out
    assert "accuracy is nan on test" in left_out
    assert "not run yet" in left_out
    assert "loss of dense softmax, temperature 2 is not finite for seed 1" in text
    assert "all labels: fewer than 5 seeds for prototype cosine (2)" in text
    assert "400 labels: fewer than 5 seeds for Switch top-1 (4), hash of the sample (4)" in text
    assert "| Switch top-1 | 4 of 5 |" in text
    assert "nan |" not in text.split("## Not in")[0]
    ablation = arrange(damaged_rows(), ABOUT)
    switch = next(a for a in ablation.of(SETTINGS[0])[0].arms if a.name == "switch")
    assert switch.n == 4
    assert math.isfinite(switch.mean)


def test_a_matrix_says_in_signs_what_it_says_in_colours():
    ablation = arrange(example_rows(), ABOUT)
    table = matrix(ablation, "test")
    assert table.header == ["Arm", *SETTINGS, "Mean of settings"]
    marked = [cell for row in table.rows for cell in row[1:-1] if cell.mark]
    assert {cell.mark for cell in marked} == {"up1", "up2", "up3", "down1", "down2", "down3"}
    for cell in marked:
        assert cell.text.startswith("+" if cell.mark.startswith("up") else "-")
        assert cell.text.endswith("*") == cell.mark.endswith("3")
        low, high = (float(end) for end in cell.detail.split(" to "))
        inside = "-" in cell.detail.split(" to ")[0] and "+" in cell.detail.split(" to ")[1]
        assert inside == cell.mark.endswith("1"), "the signs of the ends say whether 0 is inside"
        assert low <= high
    alone = next(row for row in table.rows if row[0].text == "student alone")
    assert alone[-1].value == pytest.approx(sum(cell.value for cell in alone[1:-1]) / 3)


def test_signs_of_what_rounds_to_zero():
    metric = Metric("accuracy")
    assert (metric.difference(-0.0001), metric.bound(-0.0001), metric.bound(0.0001)) == ("+0.0", "-0.0", "+0.0")
    assert (metric.difference(-0.02), metric.difference(0.02, 2), metric.difference(math.nan)) == ("-2.0", "+2.00", "-")
    assert (Metric("loss").difference(-0.0001), Metric("loss").bound(-0.5)) == ("+0.000", "-0.500")


def test_less_loss_is_better():
    rows, about = example_rows(9, 1), ABOUT | {"metric": "loss"}
    ablation = arrange(rows, about)
    block = ablation.blocks[0]
    assert [arm.mean for arm in block.arms] == sorted(arm.mean for arm in block.arms)
    assert block.oracle is not None
    table = result_table(block, ablation)
    alone = next(row for row in table.rows if row[0].text == "student alone")
    assert alone[table.header.index("Difference, nats")].text.startswith("+")
    assert alone[table.header.index("Difference, nats")].mark == "down3"
    assert "less is better" in markdown(ablation)


def test_routing_is_averaged_and_stands_beside_chance():
    rows = example_rows(8, 1)
    block = arrange(rows, ABOUT).blocks[0]
    table = routing_table(block)
    row = next(row for row in table.rows if row[0].text == "multimodal teacher only")
    cells = dict(zip(table.header, row, strict=True))
    weights = [r["routing"]["oracle_weight"] for r in rows if r["arm"] == "single" and r["split"] == "test"]
    assert cells["Weight on best teacher"].value == pytest.approx(sum(weights) / 5, rel=1e-5)
    assert cells["Weight on best teacher"].detail == "chance 20%"
    uniform = next(row for row in table.rows if row[0].text == "uniform over probabilities")
    assert uniform[3].detail == "100% of ln T"
    alone = next(row for row in table.rows if row[0].text == "student alone")
    assert [cell.text for cell in alone[3:]] == ["-"] * 7


def test_markup_in_names_stays_text(ablation_files):
    source, text = ablation_files["html"].read_text(), ablation_files["md"].read_text()
    assert "<script>alert" not in source
    assert "<script>alert" not in text
    assert "\\| \\*that\\* never" in text

    class Words(HTMLParser):
        found = ""

        def handle_data(self, data):
            self.found += data

    words = Words()
    words.feed(source)
    assert EVIL in words.found
    assert not re.search(r"(?i)https?://(?!e\.x)|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", source))
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (6, 7, 8), line
    assert EVIL in re.sub(r"[│\n ]+", " ", printed(damaged_rows(), ABOUT, width=400))


def test_a_committed_csv_gives_the_same_tables(ablation_files, tmp_path):
    rows = read_ablation_csv(ablation_files["csv"])
    again = write_ablation_report(rows, ABOUT, tmp_path)
    assert again["csv"].read_bytes() == ablation_files["csv"].read_bytes()
    assert again["md"].read_text() == ablation_files["md"].read_text()


def test_order_of_the_rows_does_not_matter():
    rows = damaged_rows()
    about = ABOUT | {"arms": list(ARMS)}
    one, two = arrange(rows, about), arrange(rows[::-1], about)
    assert markdown(one) == markdown(two)


def test_repeated_seeds_and_missing_baseline_are_noted():
    rows = example_rows(4, 1)
    twice = [*rows, rows[0]]
    assert any("twice" in note for note in arrange(twice, ABOUT).notes)
    without = [row for row in rows if row["arm"] != "uniform"]
    ablation = arrange(without, ABOUT)
    assert any("the baseline 'uniform' has no results" in note for note in ablation.notes)
    assert all(arm.difference is None for arm in ablation.blocks[0].arms)
    assert "baseline" in printed(without, ABOUT)


@pytest.mark.parametrize(
    "change", [{}, {"status": "failed", "reason": "x" * 5000, "accuracy": None}], ids=["none", "failed"]
)
def test_nothing_finished(tmp_path, change):
    rows = [row | change for row in example_rows(2, 1, 1)] if change else []
    files = write_ablation_report(rows, ABOUT, tmp_path)
    assert "nothing to compare" in files["md"].read_text()
    assert "nothing to compare" in files["html"].read_text()
    assert len(files["md"].read_text()) < 3000, "long reasons are cut"
    assert "nothing to compare" in printed(rows, ABOUT)


@pytest.mark.parametrize(
    "change",
    [
        {"routing": None, "history": []},
        {"history": None, "class_names": None, "teachers": None},
        {"routing": {"variants": ["a"], "shares": [1.0], "by_class": [[1.0]], "oracle_weight": 1.0}},
        {"routing": {"variants": ["a", "b"], "shares": [None, None], "by_class": [[math.nan] * 2] * 3}},
        {"routing": {"entropy": None, "oracle_weight": math.nan}},
        {"history": [{"epoch": 0, "shares": {}}, {"epoch": None, "shares": {"a": 1.0}}]},
        {
            "class_names": [f"c{i}" for i in range(90)],
            "routing": {"variants": ["a", "b"], "by_class": [[0.3, 0.7]] * 90},
        },
        {"accuracy": 0.5},
        {"title": "", "split": ""},
    ],
    ids=lambda change: "+".join(change),
)
def test_odd_rows_do_not_crash(tmp_path, change):
    rows = [row | change for row in example_rows(4, 1, 3)]
    assert write_ablation_report(rows, FEW, tmp_path)["html"].stat().st_size > 1000
    assert printed(rows, FEW)


def test_names_that_give_the_same_file_name_keep_their_figures(tmp_path):
    rows = [*example_rows(3, 1), *({**row, "setting": "400-labels"} for row in example_rows(3, 1))]
    files = write_ablation_report(rows, ABOUT | {"settings": ["400 labels", "400-labels"], "name": "../a b"}, tmp_path)
    assert files["csv"].name == "a-b.csv"
    assert len(list((tmp_path / "figures").glob("intervals-400-labels-test*.png"))) == 4
