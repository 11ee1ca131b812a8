"""The bootstrap: coverage on data whose truth is known, clusters as the unit, groups of people, tables of several kinds."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.evaluation import estimates, resampled_means, stack, table_of


def table(values, weights=None, clusters=None, **more):
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    return table_of({"m": (values * weights, weights)}, np.arange(len(values)) if clusters is None else clusters, **more)


def test_resamples_are_weighted_means_of_drawn_clusters():
    rng = np.random.default_rng(0)
    values, weights, clusters = rng.normal(size=30), rng.integers(1, 5, 30), rng.integers(0, 7, 30)
    drawn = resampled_means(table(values, weights, clusters), 200, seed=3)["m"]
    counts = np.random.default_rng((3, 7)).multinomial(7, np.full(7, 1 / 7), size=64)[5]
    rows = np.concatenate([np.repeat(np.flatnonzero(clusters == c), counts[c]) for c in range(7)])
    assert drawn[5] == pytest.approx(np.average(values[rows], weights=weights[rows]))
    assert drawn.shape == (200,) and len(set(drawn)) > 150


def test_the_interval_holds_the_truth_about_95_times_in_100():
    rng, hits = np.random.default_rng(1), 0
    for trial in range(200):
        weights = rng.integers(1, 4, 60)  # accuracy over unequal numbers of pairs
        found = estimates(table(rng.binomial(weights, 0.3) / weights, weights), 200, seed=trial)["m"]
        hits += found.low <= 0.3 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_copies_of_a_row_in_one_cluster_do_not_narrow_the_interval():
    values = np.random.default_rng(2).normal(size=50)
    once = estimates(table(values), 400, 0)["m"]
    copied = table(np.repeat(values, 20), clusters=np.repeat(np.arange(50), 20))
    as_rows = estimates(table(np.repeat(values, 20)), 400, 0)["m"]
    assert estimates(copied, 400, 0)["m"].__dict__ == pytest.approx(once.__dict__)
    assert as_rows.high - as_rows.low < (once.high - once.low) / 3


def test_no_resamples_and_too_few_that_count():
    assert estimates(table([1, 2, 3]), 0, 0)["m"].__dict__ == {"value": 2, "low": None, "high": None}
    rare = table(np.arange(9.0), np.eye(9)[0])  # one row in nine counts: a third of the resamples lack it
    assert estimates(rare, 300, 0)["m"].low == 0
    one = estimates(table([1, 2], clusters=[0, 0]), 300, 0)["m"]  # one prompt says nothing of others
    assert one.__dict__ == {"value": 1.5, "low": None, "high": None}
    two = table_of({"m": (np.zeros(2), np.zeros(2)), "n": (np.ones(2), np.ones(2))}, np.arange(2))
    assert set(estimates(two, 10, 0)) == {"n"}


def test_groups_of_people_and_the_worst_of_them():
    metrics = {
        "beliefs/js_distance": (np.array([0.1, 0.3, 0.5, 0.5]), np.ones(4)),
        "rewards/accuracies": (np.array([1.0, 0.0, 1.0, 1.0]), np.ones(4)),
        "rewards/accuracies/majority": (np.zeros(4), np.ones(4)),
        "rewards/margins": (np.ones(4), np.ones(4)),
    }
    both = table_of(metrics, np.arange(4), np.array([0, 0, 1, -1]), ("north", "south"))
    means = both.means()
    assert means["beliefs/js_distance/north"] == pytest.approx(0.2) and means["beliefs/js_distance/worst_group"] == 0.5
    assert means["rewards/accuracies/worst_group"] == means["rewards/accuracies/north"] == 0.5
    assert "rewards/margins/north" not in means
    drawn = resampled_means(both, 100, 0)
    with np.errstate(all="ignore"):
        expected = np.fmax(drawn["beliefs/js_distance/north"], drawn["beliefs/js_distance/south"])
    np.testing.assert_array_equal(drawn["beliefs/js_distance/worst_group"], expected)
    assert "beliefs/js_distance/worst_group" not in table_of(metrics, np.arange(4), np.zeros(4), ("one",)).means()


def test_groups_named_like_metrics_do_not_take_their_place():
    ones = np.ones(2)
    metrics = {"rewards/accuracies": (np.array([1.0, 0.0]), ones), "rewards/accuracies/majority": (ones, ones)}
    means = table_of(metrics, np.arange(2), np.array([0, 1]), ("minority", "majority")).means()
    assert means["rewards/accuracies/majority"] == 1 and means["rewards/accuracies/group majority"] == 0
    assert means["rewards/accuracies/worst_group"] == 0


def test_stacked_tables_keep_their_metrics():
    first = table([1.0, 3.0], clusters=np.array([0, 1]))
    second = table_of({"other": (np.array([5.0]), np.array([2.0]))}, np.array([1]))
    both = stack([first, second])
    assert both.means() == first.means() | second.means()
    drawn = resampled_means(both, 50, 0)
    assert set(drawn["m"]) == {1.0, 2.0, 3.0}
    assert np.isnan(drawn["other"][drawn["m"] == 1.0]).all()  # cluster 1 was not drawn
