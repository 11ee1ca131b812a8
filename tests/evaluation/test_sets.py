"""Metrics of scored responses against one pair at a time and scipy; what they must say of known rewards."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.evaluation import Responses, estimates, measure, table_of
from align_jax.evaluation.metrics.sets import set_agreement
from align_jax.objectives import MPO
from tests.evaluation import reference

G, K, BETA = 9, 5, 0.5


def responses(rewards, scores, lengths, mask=None) -> Responses:
    """Groups whose implicit reward at beta 1 is `rewards`; the reference's log-probs are -5."""
    rewards = np.asarray(rewards, np.float32)
    mask = np.ones(rewards.shape, bool) if mask is None else mask
    logps = np.where(mask, rewards - 5, 0).astype(np.float32)
    labels = {"scores": np.asarray(scores, np.float32), "characters": np.asarray(lengths, np.int32)}
    labels["ref_logps"] = np.where(mask, np.float32(-5), np.nan).astype(np.float32)
    return Responses(np.arange(len(rewards)), logps, mask, np.full(mask.shape, 7), labels)


@pytest.fixture(scope="module")
def random():
    """Random groups with ties in rewards, scores and lengths, missing responses, a group without contrast, one of ties."""
    rng = np.random.default_rng(0)
    rewards, scores = rng.integers(-6, 7, (G, K)) / 4, rng.integers(0, 4, (G, K))
    lengths, mask = rng.integers(10, 15, (G, K)), rng.random((G, K)) < 0.8
    mask[:, :2] = True
    scores[0], rewards[1], lengths[2], scores[1] = 2, 0.25, 12, np.arange(K)
    return responses(rewards, np.where(mask, scores, 1e30), np.where(mask, lengths, 99), mask)


def groups_of(r: Responses):
    for i in range(len(r.rows)):
        m = r.mask[i]
        yield i, (BETA * r.log_ratios[i][m]).tolist(), r.labels["scores"][i][m].tolist(), r.labels["characters"][i][m].tolist()


def test_every_metric_equals_the_slow_reference(random):
    metrics = set_agreement(random, BETA)
    for i, rewards, scores, lengths in groups_of(random):
        found = {name: (float(s[i]), float(w[i])) for name, (s, w) in metrics.items()}
        contrast, varies = len(set(scores)) > 1, len(set(lengths)) > 1
        for name, expected, counts in (
            ("sets/log_likelihood", lambda: reference.log_likelihood(rewards, scores), contrast),  # noqa: B023
            ("rewards/best_of_n", lambda: reference.best_of_n(rewards, scores), contrast),  # noqa: B023
            ("rewards/rank_correlation", lambda: reference.correlation(rewards, scores), contrast),  # noqa: B023
            ("length/reward_correlation", lambda: reference.correlation(rewards, lengths), varies),  # noqa: B023
            ("length/score_correlation", lambda: reference.correlation(scores, lengths), varies and contrast),  # noqa: B023
        ):
            assert found[name] == pytest.approx((expected() if counts else 0, int(counts)), abs=1e-5), (i, name)
        for name in ("longer", "shorter"):
            expected = reference.pair_accuracy(rewards, scores, lengths, name == "longer") if contrast else (0, 0)
            assert found[f"length/accuracies_{name}"] == pytest.approx(expected), (i, name)


def test_the_cases_that_matter_are_among_them(random):
    metrics = set_agreement(random, BETA)
    assert metrics["rewards/rank_correlation"][1][0] == 0  # no contrast
    assert metrics["rewards/rank_correlation"][0][1] == 0 and metrics["rewards/rank_correlation"][1][1] == 1  # all rewards tie
    assert metrics["rewards/best_of_n"][0][1] == pytest.approx(1 / random.mask[1].sum())
    assert metrics["length/reward_correlation"][1][2] == 0  # all lengths equal


def means_of(rewards, scores, lengths):
    return table_of(set_agreement(responses(rewards, scores, lengths), 1.0), np.arange(len(rewards))).means()


def test_length_control_sees_through_a_reward_that_only_knows_length():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(300, 6))
    lengths = (200 + 40 * scores + rng.normal(0, 30, (300, 6))).astype(int)  # the better are the longer ones
    by_length, by_score = means_of(lengths, scores, lengths), means_of(scores, scores, lengths)
    table = table_of(set_agreement(responses(lengths, scores, lengths), 1.0), np.arange(300))
    plain = measure(responses(lengths, scores, lengths), MPO(beta=1.0), np.arange(300)).means()["rewards/accuracies"]
    assert plain > 0.8 and by_length["length/reward_correlation"] == pytest.approx(1)
    assert by_length["length/controlled_accuracy"] == 0.5
    assert by_score["length/controlled_accuracy"] == 1
    assert by_length["length/score_correlation"] == by_score["length/score_correlation"] > 0.6
    assert estimates(table, 50, 0)["length/controlled_accuracy"].low == 0.5


def test_a_model_that_equals_the_reference():
    rng = np.random.default_rng(2)
    scores, lengths = rng.normal(size=(40, 4)), rng.integers(10, 90, (40, 4))
    rounding = rng.uniform(-1e-6, 1e-6, (40, 4))  # of float32 log-probs
    means = means_of(rounding, scores, lengths)
    accepted = (scores > scores.mean(1, keepdims=True)).mean(1)
    assert means["sets/log_likelihood"] == pytest.approx(np.log(accepted).mean(), abs=1e-5)
    assert means["rewards/best_of_n"] == 0.25
    assert means["rewards/rank_correlation"] == means["length/reward_correlation"] == 0
    assert means["length/controlled_accuracy"] == 0.5
