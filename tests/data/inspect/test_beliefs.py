"""Belief distributions: intervals against scipy's, agreement with what is stated, imbalance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from align_jax.data.config import DataConfig
from align_jax.data.inspect.beliefs import belief_findings, belief_tables, posterior, unstated_findings, wilson
from align_jax.data.inspect.gather import gather
from align_jax.data.opened import open_data
from tests.data.toys import opinion, write_jsonl


@pytest.mark.parametrize("count, total", [(0, 7), (3, 7), (7, 7), (30, 1000), (1, 1)])
def test_wilson_is_scipys(count, total):
    wanted = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(count, total), (wanted.low, wanted.high), atol=2e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_posterior_is_that_of_draws():
    counts = np.array([12, 3, 0])
    drawn = np.random.default_rng(0).dirichlet(counts + 1.0, 200_000)
    found = np.asarray(posterior(counts, 1.0))
    np.testing.assert_allclose(found[:, 0], drawn.mean(0), atol=2e-3)
    np.testing.assert_allclose(found[:, 1:].T, np.quantile(drawn, [0.025, 0.975], axis=0), atol=4e-3)


def _tables(tmp_path, rows, prior=1.0):
    gathered = gather(open_data(DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows)), "train", None))
    return belief_tables(gathered, prior)


def _rows(counts, probabilities=(0.25, 0.5, 0.25), prompt="q", **more):
    made = [opinion(prompt, accepted=i, rejected=(i + 1) % 3, **more) for i, count in enumerate(counts) for _ in range(count)]
    return [row | ({"probabilities": list(probabilities)} if probabilities else {"probabilities": None}) for row in made]


def test_rows_as_stated_are_fine_and_others_are_a_warning(tmp_path):
    fine, wrong = _rows([25, 50, 25]), _rows([50, 25, 25], prompt="p")
    assert [f.code for f in belief_findings(_tables(tmp_path, fine))] == []
    tables = _tables(tmp_path, fine + wrong)
    (found,) = belief_findings(tables)
    assert (found.code, found.severity, found.count) == ("beliefs_disagree", "warning", 1)
    assert found.details[0].startswith("'p': no 0.50 (stated 0.25)")
    of_p = next(unit for unit in tables["units"] if unit["prompt"] == "p")
    wanted = stats.chisquare([50, 25, 25], [25, 50, 25]).pvalue
    np.testing.assert_allclose(of_p["p_value"], wanted, rtol=1e-6)


def test_a_sample_of_what_is_stated_is_rarely_a_warning(tmp_path):
    rng, found = np.random.default_rng(0), 0
    for i in range(20):
        rows = []
        for prompt in range(10):
            rows += _rows(rng.multinomial(40, [0.1, 0.7, 0.2]), (0.1, 0.7, 0.2), prompt=f"{i} {prompt}")
        found += any(f.code == "beliefs_disagree" for f in belief_findings(_tables(tmp_path, rows)))
    assert found <= 4


def test_what_has_no_probability_cannot_be_accepted(tmp_path):
    (found, *_) = belief_findings(_tables(tmp_path, _rows([10, 10, 1], (0.5, 0.5, 0.0))))
    assert (found.code, found.severity, found.count) == ("impossible_belief", "problem", 1)


def test_groups_and_statements_are_told_apart(tmp_path):
    rows = _rows([5, 10, 5], group="a") + _rows([2, 16, 2], (0.1, 0.8, 0.1), group="b")
    tables = _tables(tmp_path, rows)
    assert [(unit["group"], unit["counts"]) for unit in tables["units"]] == [("a", [5, 10, 5]), ("b", [2, 16, 2])]
    assert set(tables["by_group"]) == {"all", "group a", "group b"}
    assert tables["by_group"]["group b"]["yes"]["count"] == 16 and tables["by_group"]["all"]["yes"]["share"] == 26 / 40
    mixed = _rows([5, 10, 5]) + _rows([5, 10, 5], (0.3, 0.4, 0.3))
    codes = [f.code for f in belief_findings(_tables(tmp_path, mixed))]
    assert codes == ["several_distributions"]


def test_without_stated_probabilities_few_rows_are_uncertain(tmp_path):
    codes = {f.code: f for f in belief_findings(_tables(tmp_path, _rows([3, 1, 0], None)))}
    assert codes["uncertain_beliefs"].severity == "warning" and codes["belief_without_rows"].count == 1
    (unit,) = _tables(tmp_path, _rows([3, 1, 0], None), prior=0.5)["units"]
    np.testing.assert_allclose([p["mean"] for p in unit["posterior"]], np.array([3.5, 1.5, 0.5]) / 5.5)
    assert "stated" not in unit


def test_minorities_and_unanimity_are_said(tmp_path):
    codes = [f.code for f in belief_findings(_tables(tmp_path, _rows([1, 96, 3], (0.01, 0.96, 0.03))))]
    assert codes == ["rare_beliefs", "one_sided"]


def test_rows_that_do_not_say_their_beliefs_are_counted_apart(tmp_path):
    unsaid = {"accept_choice_id": None, "reject_choice_id": None, "accept_choice": None, "reject_choice": None}
    rows = [*_rows((3, 1, 0)), opinion() | unsaid, opinion("other") | unsaid]
    gathered = gather(open_data(DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), format="gdpo"), "train", None))
    tables = belief_tables(gathered, 1.0)
    assert [unit["counts"] for unit in tables["units"]] == [[3, 1, 0]] and tables["by_group"]["all"]["no"]["count"] == 3
    (finding,) = unstated_findings(gathered)
    assert finding.text.startswith("2 of 6 rows lack the beliefs") and finding.count == 2
    rows = write_jsonl(tmp_path / "none.jsonl", [opinion() | unsaid])
    gathered = gather(open_data(DataConfig(train=rows, format="gdpo"), "train", None))
    assert belief_tables(gathered, 1.0) is None and "1 of 1 row lacks" in unstated_findings(gathered)[0].text
