"""The rewards that metrics report: each in the unit of its objective's loss, beside NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.batch import GroupLabels
from align_jax.objectives import DPO, GDPO, KTO, MPO, NCA, InfoNCA, OrderedMPO, SimPO
from align_jax.objectives.lengths import DPONorm
from align_jax.objectives.metrics import wins

BETA = 0.3
GROUPS, K, BELIEFS = 3, 4, 3


def drawn(k, seed=0):
    logps, ref = np.random.default_rng(seed).normal(-20, 3, (2, GROUPS, k)).astype(np.float32)
    return logps, ref, np.ones((GROUPS, k), bool), np.full((GROUPS, k), 5)


def mean(entry):
    return float(entry[0].sum() / entry[1].sum())


def of_sets(rewards, scores):
    """Mean reward of the responses above their group's mean score, and of the others, averaged over groups."""
    above = scores > scores.mean(axis=1, keepdims=True)
    chosen = np.mean([r[a].mean() for r, a in zip(rewards, above, strict=True)])
    rejected = np.mean([r[~a].mean() for r, a in zip(rewards, above, strict=True)])
    return {"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected}


def agree(metrics, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(mean(metrics[name]), value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("objective", [MPO, OrderedMPO, InfoNCA, NCA])
def test_the_rewards_of_a_set_are_beta_times_the_log_ratio(objective):
    logps, ref, mask, lengths = drawn(K)
    scores = np.array([[4.0, 1.0, 2.0, 8.0]] * GROUPS)
    out = objective(beta=BETA)(logps, GroupLabels(mask, lengths, {"scores": scores, "ref_logps": ref}))
    agree(out, of_sets(BETA * (logps.astype(np.float64) - ref), scores))


def test_the_rewards_of_kto_are_beta_times_the_log_ratio():
    logps, ref, mask, lengths = drawn(2)
    labels = {"desirable": np.array([True, False, True]), "ref_logps": ref}
    out = KTO(beta=BETA)(logps, GroupLabels(mask, lengths, labels), np.float32(0.1))
    rewards = BETA * (logps.astype(np.float64) - ref)[:, 0]
    agree(out, {"rewards/chosen": rewards[[0, 2]].mean(), "rewards/rejected": rewards[1]})


def test_the_rewards_of_length_normalized_dpo_are_of_a_token():
    logps, ref, mask, _ = drawn(2)
    lengths = np.array([[5, 9], [1, 4], [7, 7]])
    out = DPONorm(beta=BETA)(logps, GroupLabels(mask, lengths, {"ref_logps": ref}))
    rewards = BETA * (logps.astype(np.float64) - ref) / lengths
    agree(out, {"rewards/chosen": rewards[:, 0].mean(), "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean()})


@pytest.mark.parametrize("preference", ["dpo", "kto", "mpo"])
def test_the_rewards_of_gdpo_are_those_of_its_texts(preference):
    scores = np.array([[1.0, 3.0, 0.0]] * GROUPS)
    texts = 3 if preference == "mpo" else 2
    slots = BELIEFS + texts + (preference == "kto")
    logps, ref, mask, lengths = drawn(slots)
    targets = np.full((GROUPS, BELIEFS), 1 / BELIEFS, np.float32)
    labels = {"target_probs": targets, "chosen_belief": np.zeros(GROUPS, int), "ref_logps": ref}
    labels |= {"text_scores": scores} if preference == "mpo" else {}
    out = GDPO(preference=preference, beta=BETA)(logps, GroupLabels(mask, lengths, labels), np.float32(0.1))
    rewards = BETA * (logps.astype(np.float64) - ref)[:, BELIEFS : BELIEFS + texts]
    own = scores if preference == "mpo" else np.array([[1.0, 0.0]] * GROUPS)
    agree(out, of_sets(rewards, own))


def test_beliefs_that_are_equally_probable_are_both_of_the_majority():
    logps, ref, mask, lengths = drawn(BELIEFS * 3)
    targets = np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4], [0.2, 0.3, 0.5]], np.float32)
    labels = {"target_probs": targets, "chosen_belief": np.array([0, 1, 2]), "ref_logps": ref}
    out = GDPO(condition="distribution", beta=BETA)(logps, GroupLabels(mask, lengths, labels))
    np.testing.assert_allclose(out["rewards/margins/majority"][1], [0.7, 0.8, 0.5], rtol=1e-5)
    np.testing.assert_allclose(out["rewards/margins/minority"][1], [0.3, 0.2, 0.5], rtol=1e-5)


@pytest.mark.parametrize("beta", [0.01, 1.0, 100.0])
def test_the_tie_of_rounding_is_as_wide_as_rewards_of_this_beta_round(beta):
    logps, ref, mask, lengths = drawn(2)
    logps[:] = -1000.0
    labels = {"scores": np.array([[1.0, 0.0]] * GROUPS)}
    for objective in (DPO(beta=beta), MPO(beta=beta)):
        for ahead, expected in ((6e-5, 0.5), (6e-3, 1.0), (-6e-3, 0.0)):
            ref = logps - np.float32([[ahead, 0.0]])
            out = objective(logps, GroupLabels(mask, lengths, labels | {"ref_logps": ref}))
            assert mean(out["rewards/accuracies"]) == expected, (objective, ahead)


def test_the_tie_of_averaged_log_probs_is_that_of_their_means():
    logps, _, mask, lengths = drawn(2)
    logps[:] = np.float32([-1000.0, -1000.1])  # means of 5 tokens, beta 2: 0.04 apart, both about 400
    assert mean(SimPO()(logps, GroupLabels(mask, lengths, {}))["rewards/accuracies"]) == 1.0
    assert float(wins(np.float32(-400.0), np.float32(-400.0001), np.float32(400), np.float32(400))) == 0.5
