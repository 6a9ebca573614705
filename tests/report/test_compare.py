"""Several runs on one page."""

from __future__ import annotations

import json
import re

import pytest
from example_run import write_example_run
from scipy import stats

from moekd.errors import DataError
from moekd.report import compare_report
from moekd.report.compare import arms_by_split, comparisons
from moekd.report.run import read_run


def runs_of(tmp_path, seeds=5, **titles):
    return [
        write_example_run(tmp_path / f"{title}-{seed}", title=title, seed=seed, student=accuracy)
        for title, accuracy in titles.items()
        for seed in range(seeds)
    ]


def student_accuracy(run):
    return json.loads((run / "results.json").read_text())["test"]["test"]["student"]["accuracy"]


def test_page_states_means_and_is_self_contained(tmp_path):
    output = compare_report(runs_of(tmp_path, routed=0.64, alone=0.6), tmp_path / "pages" / "compare.html")
    source = output.read_text()
    assert "On test the mean of the students is routed 6" in source
    assert "(5 seeds)" in source
    assert "9 paired differences are beyond chance" in source
    assert not re.search(r"(?i)https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", source))
    assert source.count("<img") == 2 == source.count('alt="Means over seeds on ')


def test_differences_are_paired_by_seed_whatever_the_order_of_the_runs(tmp_path):
    paths = runs_of(tmp_path, a=0.64, b=0.6)
    shuffled = [*paths[:5], *reversed(paths[5:])]
    arms = arms_by_split([read_run(path) for path in shuffled])[0]["test"]
    found = next(c for c in comparisons(arms) if c.right.name == "b")
    left, right = ([student_accuracy(path) for path in part] for part in (paths[:5], paths[5:]))
    assert found.result.n == 5
    assert found.result.mean == pytest.approx(sum(left) / 5 - sum(right) / 5)
    assert found.result.p == pytest.approx(stats.ttest_rel(left, right).pvalue)
    assert found.result.p_holm >= found.result.p


def test_only_shared_seeds_are_paired(tmp_path):
    paths = runs_of(tmp_path, seeds=4, a=0.64, b=0.6)
    arms = arms_by_split([read_run(path) for path in paths[:7]])[0]["test"]
    assert next(c for c in comparisons(arms) if c.right.name == "b").result.n == 3


def test_two_seeds_give_no_p_value(tmp_path):
    source = compare_report(runs_of(tmp_path, seeds=2, a=0.64, b=0.6), tmp_path / "c.html").read_text()
    assert "fewer than 3 shared seeds, so no difference can be tested" in source


def test_same_title_on_another_data_set_is_another_group(tmp_path):
    paths = [write_example_run(tmp_path / name, title="same") for name in ("one", "two")]
    results = json.loads((paths[1] / "results.json").read_text()) | {"dataset": "emoji"}
    (paths[1] / "results.json").write_text(json.dumps(results))
    arms = arms_by_split([read_run(path) for path in paths])[0]["test"]
    assert {arm.group for arm in arms} == {"same (avmnist)", "same (emoji)"}


def test_repeated_seed_and_unfinished_runs_are_noted(tmp_path):
    paths = [write_example_run(tmp_path / name, title="<b>t</b>") for name in ("one", "two")]
    paths.append(write_example_run(tmp_path / "half", finished=False))
    source = compare_report(paths, tmp_path / "c.html").read_text()
    assert "has seed 0 more than once on test; the run given last counts" in source
    assert "half has no test results and takes no part." in source
    assert "<b>t</b>" not in source


def test_nothing_to_compare(tmp_path):
    with pytest.raises(DataError, match="at least one run"):
        compare_report([], tmp_path / "c.html")
    half = write_example_run(tmp_path / "half", finished=False)
    assert "None of these runs has test results." in compare_report([half], tmp_path / "c.html").read_text()
    alone = write_example_run(tmp_path / "alone", baselines=False)
    assert "no baseline and no second group" in compare_report([alone], tmp_path / "c.html").read_text()
