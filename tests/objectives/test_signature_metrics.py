"""Metrics that warn: against sums written out in NumPy, under padding, and what each says of a batch that fails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.objectives import DPO, GDPO, KTO, MPO, SimPO
from align_jax.objectives.signature_metrics import (
    MOST_PAIRS,
    belief_widths,
    cancelled_pairs,
    drift_metrics,
    set_signatures,
)
from align_jax.training.step import group_metrics, means
from tests.objectives.test_objectives import batch_of, pairs

RNG = np.random.default_rng(0)


def mean(entry):
    return float(np.sum(entry[0]) / np.sum(entry[1]))


def test_drift_is_nats_per_token_whatever_stands_in_padding():
    ratios, lengths = RNG.normal(0, 3, (4, 5)), RNG.integers(1, 9, (4, 5))
    kinds = RNG.integers(0, 3, (4, 5))  # rejected, chosen, padding
    chosen, rejected = kinds == 1, kinds == 0
    found = drift_metrics(jnp.asarray(np.where(kinds == 2, np.nan, ratios)), jnp.asarray(lengths), chosen, rejected)
    for name, mask, values in (
        ("chosen", chosen, ratios),
        ("rejected", rejected, ratios),
        ("absolute", chosen | rejected, abs(ratios)),
    ):
        np.testing.assert_allclose(mean(found[f"drift/{name}"]), values[mask].sum() / lengths[mask].sum(), rtol=1e-5)


@pytest.mark.parametrize("objective", [DPO(), MPO(), KTO()])
def test_drift_is_told_where_there_is_a_reference(objective):
    logps, batch = pairs()
    labels = batch.labels | {"scores": np.tile([2.0, 1.0], (5, 1)), "desirable": np.array([True, False, True, False, True])}
    out = group_metrics(jnp.asarray(logps), batch_of(batch.mask, **labels), objective)
    ratios = (logps - batch.labels["ref_logps"])[:4, 0]
    expected = ratios[[0, 2]].sum() / 6 if objective.name == "kto" else ratios.sum() / 12  # 3 tokens each
    np.testing.assert_allclose(mean(out["drift/chosen"]), expected, rtol=1e-5)
    assert not {"drift/chosen"} & SimPO()(logps, batch).keys()
    assert not {"drift/chosen"} & DPO(reference_free=True)(logps, batch).keys()


def test_all_mass_on_one_accepted_answer_is_seen():
    scores, mask = np.array([[9.0, 8, 1, 0], [9, 1, 1, 0]]), np.array([[True] * 4, [True, True, True, False]])
    ratios = np.zeros((2, 4))
    found = set_signatures(jnp.asarray(ratios), np.ones((2, 4), int), scores, mask, 0.1)
    assert mean(found["sets/top_accepted"]) == 0.5  # of two; the second group accepts one, and does not count
    ratios[0] = [60, 0, 99, -99]  # what was rejected does not matter
    ratios[1] = [5, 1, 1, np.nan]
    found = set_signatures(jnp.asarray(ratios), np.ones((2, 4), int), scores, mask, 0.1)
    np.testing.assert_allclose(mean(found["sets/top_accepted"]), 1 / (1 + np.exp(-6)), rtol=1e-5)


def test_the_spread_of_losses_is_over_all_groups_however_they_are_cut():
    logps, ref = RNG.normal(-20, 9, (2, 6, 4))
    batch = {"scores": RNG.normal(size=(6, 4)), "ref_logps": ref}
    each = MPO()(jnp.asarray(logps), batch_of(np.ones((6, 4), bool), **batch))
    parts = [
        MPO()(jnp.asarray(logps[i]), batch_of(np.ones((len(i), 4), bool), **{k: v[i] for k, v in batch.items()}))
        for i in ([0, 1, 2, 3], [4, 5])
    ]
    values = np.asarray(each["loss"][0])
    sums = {name: tuple(sum(float(part[name][j].sum()) for part in parts) for j in (0, 1)) for name in ("loss", "loss/squared")}
    found = means({name: tuple(map(jnp.asarray, both)) for name, both in sums.items()})
    assert found.keys() == {"loss", "loss/std"}
    np.testing.assert_allclose(float(found["loss/std"]), values.std(), rtol=1e-4)


def test_narrow_beliefs_have_less_entropy_than_their_target():
    targets = np.array([[0.5, 0.5, 0], [0.2, 0.3, 0.5], [0.0, 0, 0]])
    logps = np.array([[np.log(0.098), np.log(0.002), -np.inf], np.log([0.2, 0.3, 0.5]), [np.nan] * 3])
    exists = np.array([True, True, False])
    found = belief_widths(jnp.asarray(logps), jnp.asarray(targets), exists)
    entropy = lambda p: -(p * np.log(p)).sum()  # noqa: E731
    np.testing.assert_allclose(found["beliefs/target_entropy"][0], [np.log(2), entropy(targets[1]), 0], rtol=1e-5)
    narrow = entropy(np.array([0.98, 0.02]))
    np.testing.assert_allclose(found["beliefs/entropy"][0], [narrow, entropy(targets[1]), 0], rtol=1e-5)


def test_pairs_turned_round_cancel_by_their_weights():
    a, b, c, d = -20.0, -31.0, -25.0, -8.0
    logps = jnp.asarray([[a, b], [b, a], [a, b], [c, d], [np.nan, np.nan]])
    exists = np.array([True] * 4 + [False])
    pull = jnp.asarray([0.5, 0.3, 0.1, 0.2, np.nan])
    total, weight = cancelled_pairs(logps, np.full((5, 2), 7), pull, exists)["gradients/cancelled"]
    # Of a against b: 0.6 one way, 0.3 the other; of c against d: 0.2, nothing back.
    np.testing.assert_allclose(float(total.sum() / weight.sum()), 1 - (0.3 + 0.2) / (0.9 + 0.2), rtol=1e-5)
    other_lengths = np.array([[7, 7], [7, 6], [7, 7], [7, 7], [7, 7]])
    assert mean(cancelled_pairs(logps, other_lengths, pull, exists)["gradients/cancelled"]) == 0
    many = MOST_PAIRS + 1
    assert cancelled_pairs(jnp.zeros((many, 2)), np.ones((many, 2)), jnp.ones(many), np.ones(many, bool)) == {}


def test_conflicting_pairs_cancel_under_dpo_and_not_when_conditioned_on_beliefs():
    a, b = -20.0, -31.0
    flat = np.array([[a, b], [b, a]])
    batch = batch_of(np.ones((2, 2), bool), ref_logps=flat)
    for call in (DPO(), jax.jit(lambda logps, _: DPO()(logps, batch))):
        np.testing.assert_allclose(mean(call(jnp.asarray(flat), batch)["gradients/cancelled"]), 1, rtol=1e-5)
    conditioned = np.array([[-1, -2, a, b], [-1, -2, b - 4, a + 3]])  # the texts given the one belief and given the other
    labels = {"target_probs": np.full((2, 2), 0.5), "chosen_belief": np.array([0, 1]), "ref_logps": conditioned}
    out = GDPO()(jnp.asarray(conditioned), batch_of(np.ones((2, 4), bool), **labels))
    assert mean(out["gradients/cancelled"]) == 0
    assert mean(out["beliefs/entropy"]) < mean(out["beliefs/target_entropy"])


def test_the_metrics_leave_the_gradient_as_it_is():
    logps, ref = jnp.asarray([[-20.0, -31.0], [-31.0, -20.0]]), np.array([[-21.0, -30.0], [-30.0, -21.0]])
    batch = batch_of(np.ones((2, 2), bool), ref_logps=ref)

    def loss(values):
        out = DPO()(values, batch)
        return out["loss"][0].sum() + out["gradients/cancelled"][0].sum()

    margins = 0.1 * ((logps - ref)[:, 0] - (logps - ref)[:, 1])
    pull = 0.1 / (1 + np.exp(margins))
    np.testing.assert_allclose(jax.grad(loss)(logps), np.stack([-pull, pull], 1), rtol=1e-5)
