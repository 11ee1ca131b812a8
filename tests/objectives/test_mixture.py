"""Mixtures: the weighted sum of the terms' own batch means, whatever responses they read, and what cannot be mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from align_jax.batch import GroupLabels
from align_jax.data.arrange import Group, Pair, SplitPair, Unpaired
from align_jax.errors import UserError
from align_jax.objectives import (
    DPO,
    GDPO,
    IPO,
    KTO,
    LDDPO,
    MPO,
    SFT,
    BCOPair,
    InfoNCA,
    Mixture,
    Reward,
    SimPO,
    name_of,
)
from tests.losses import pair_reference, reference

GROUPS = 8
RNG = np.random.default_rng(0)


def mean(entry):
    return float(np.sum(entry[0]) / np.sum(entry[1]))


def numbers(slots, **labels):
    """Log-probs of the policy, and a batch whose padding holds what must never be read."""
    logps, ref = RNG.normal(-20, 4, (2, GROUPS, slots)).astype(np.float32)
    mask, lengths = np.ones((GROUPS, slots), bool), RNG.integers(2, 9, (GROUPS, slots))
    mask[-1] = False
    logps[-1], ref[-1], lengths[-1] = np.nan, 1e30, 0
    return logps, GroupLabels(mask, lengths, {"ref_logps": ref, **labels})


def of_sets():
    logps, batch = numbers(4, scores=RNG.permuted(np.arange(4.0) * np.ones((GROUPS, 1)), axis=1).astype(np.float32))
    batch.mask[2, 3] = batch.mask[4, 1:] = False  # a smaller set, and one without contrast
    batch.labels["scores"][5] = 1.0
    logps[2, 3] = logps[4, 1:] = np.nan
    return logps, batch


def of_halves():
    logps, batch = numbers(4)
    for longer in range(GROUPS):
        batch.mask[longer, 3 - longer % 2] = False  # the shorter response has nothing behind its end
    return logps, batch


# The slow sums: float64, a group at a time, each over its own weight.
def rows_of(batch: GroupLabels) -> list[int]:
    return [g for g in range(GROUPS) if batch.mask[g].any()]


def slow_pairs(loss: Callable, logps, batch, best, worst, **options):
    ref = np.asarray(batch.labels["ref_logps"], np.float64)
    pairs = [(logps[g, best(g)], logps[g, worst(g)], ref[g, best(g)], ref[g, worst(g)]) for g in rows_of(batch)]
    return np.mean([loss(*map(float, pair), **options) for pair in pairs])


def slow_sft(logps, batch, which):
    total = [-float(logps[g, which(g)]) for g in rows_of(batch) if which(g) is not None]
    return sum(total) / sum(int(batch.lengths[g, which(g)]) for g in rows_of(batch) if which(g) is not None)


def first(g):
    return 0


def second(g):
    return 1


def slow_dpo_ipo_sft(logps, batch):
    dpo = slow_pairs(reference.dpo, logps, batch, first, second, beta=0.3)
    ipo = slow_pairs(reference.ipo, logps, batch, first, second, beta=0.2)
    return 0.7 * dpo + 0.05 * ipo + 0.2 * slow_sft(logps, batch, first)


def slow_sets(logps, batch):
    ref, scores, mask = batch.labels["ref_logps"].astype(np.float64), batch.labels["scores"], batch.mask
    contrast = [g for g in rows_of(batch) if len(set(scores[g][mask[g]])) > 1]
    mpo = np.mean([reference.mpo(logps[g], ref[g], scores[g], mask[g], beta=0.3, alpha=0.2) for g in contrast])
    best = lambda g: max(np.flatnonzero(mask[g]), key=lambda k: scores[g, k])  # noqa: E731
    worst = lambda g: min(np.flatnonzero(mask[g]), key=lambda k: scores[g, k])  # noqa: E731
    kept = dataclasses.replace(batch, mask=mask & np.isin(np.arange(GROUPS), contrast)[:, None])
    dpo = slow_pairs(reference.dpo, logps, kept, best, worst, beta=0.1)
    return mpo + 0.5 * dpo + 0.1 * slow_sft(logps, batch, best)


def slow_unpaired(logps, batch):
    ref, desirable = batch.labels["ref_logps"].astype(np.float64), batch.labels["desirable"]
    rows = rows_of(batch)
    kl = max(0.0, float(np.mean([FIXED["kto_sft"][g, 1] - ref[g, 1] for g in rows])))
    values = []
    for g in rows:
        x = 0.4 * (float(logps[g, 0]) - ref[g, 0] - kl)
        values.append(2.0 * pair_reference.sigmoid(-x) if desirable[g] else pair_reference.sigmoid(x))
    return 0.6 * np.mean(values) + 0.3 * slow_sft(logps, batch, lambda g: 0 if desirable[g] else None)


def slow_halves(logps, batch):
    there = lambda x: np.where(batch.mask, x, 0.0)  # noqa: E731
    ref = there(batch.labels["ref_logps"].astype(np.float64))
    halves, logps = lambda x, alpha: x[:, :2] + alpha * x[:, 2:], there(logps)  # noqa: E731
    whole = GroupLabels(batch.mask[:, :2], halves(there(batch.lengths), 1), {"ref_logps": halves(ref, 1)})
    part = dataclasses.replace(whole, labels={"ref_logps": halves(ref, 0.3)})
    ld = slow_pairs(reference.dpo, halves(logps, 0.3), part, first, second, beta=0.2)
    dpo = slow_pairs(reference.dpo, halves(logps, 1), whole, first, second, beta=0.1)
    return ld + 0.5 * dpo + 0.1 * slow_sft(halves(logps, 1), whole, first)


def slow_bco(logps, batch):
    ref = batch.labels["ref_logps"].astype(np.float64)
    delta = 0.2 * np.mean([(FIXED["bco_bco"][g] - ref[g]).mean() for g in rows_of(batch)])
    shifted = slow_pairs(pair_reference.bco_pair, logps, batch, first, second, beta=0.2, delta=delta)
    return shifted + 0.5 * slow_pairs(pair_reference.bco_pair, logps, batch, first, second, beta=0.1)


MIXTURES = {
    "dpo_ipo_sft": (Mixture((DPO(beta=0.3), IPO(beta=0.2), SFT()), (0.7, 0.05, 0.2)), slow_dpo_ipo_sft, numbers(2)),
    "mpo_dpo_sft": (Mixture((MPO(beta=0.3, alpha=0.2), DPO(), SFT()), (1.0, 0.5, 0.1)), slow_sets, of_sets()),
    "kto_sft": (
        Mixture((KTO(beta=0.4, desirable_weight=2.0), SFT()), (0.6, 0.3)),
        slow_unpaired,
        numbers(2, desirable=np.arange(GROUPS) % 3 == 0),
    ),
    "ld_dpo_sft": (Mixture((LDDPO(beta=0.2, alpha=0.3), DPO(), SFT()), (1.0, 0.5, 0.1)), slow_halves, of_halves()),
    "bco_bco": (Mixture((BCOPair(beta=0.2, shift="batch"), BCOPair()), (1.0, 0.5)), slow_bco, numbers(2)),
}
FIXED = {name: logps for name, (_, _, (logps, _)) in MIXTURES.items()}  # statistics are not differentiated


def gradient(slow, logps, batch):
    found = np.zeros(logps.shape)
    for place in zip(*np.nonzero(batch.mask), strict=True):
        high, low = logps.astype(np.float64), logps.astype(np.float64)
        high[place] += 1e-4
        low[place] -= 1e-4
        found[place] = (slow(high, batch) - slow(low, batch)) / 2e-4
    return found


def whole_loss(objective, statistic, axis=None):
    """The batch's loss and its gradient, of arrays with the groups of one device."""

    def run(logps, batch):
        def loss(logps):
            total, weight = (jnp.sum(x) for x in objective(logps, batch, statistic)["loss"])
            return total, weight

        (total, weight), grads = jax.value_and_grad(loss, has_aux=True)(logps)
        total, weight = (x if axis is None else jax.lax.psum(x, axis) for x in (total, weight))
        return total / weight, grads / weight

    return run


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_the_sum_of_the_batch_means(name):
    objective, slow, (logps, batch) = MIXTURES[name]
    value, grads = jax.jit(whole_loss(objective, None))(logps, batch)
    assert float(value) == pytest.approx(slow(logps.astype(np.float64), batch), rel=1e-5)
    wanted = gradient(slow, logps, batch)
    assert np.any(wanted)
    np.testing.assert_allclose(np.where(batch.mask, grads, 0), wanted, rtol=1e-4, atol=2e-6)
    terms = zip(objective.weights, objective.names, strict=True)
    metrics = jax.jit(objective)(logps, batch)
    assert sum(w * mean(metrics[f"{term}/loss"]) for w, term in terms) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
def test_devices_that_share_a_batch_share_its_sizes(way):
    objective, slow, (logps, batch) = MIXTURES["mpo_dpo_sft"]
    total, count = jax.jit(objective.statistics)(logps, batch)
    run = whole_loss(objective, total / jnp.maximum(count, 1), "data")
    if way == "pmap":
        value, grads = jax.pmap(run, axis_name="data")(*jax.tree.map(lambda x: x[:, None], (logps, batch)))
    else:
        mesh = jax.make_mesh((GROUPS,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = PartitionSpec("data")
        shared = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=(PartitionSpec(), spec))
        value, grads = jax.jit(shared)(logps, batch)
    assert len(grads.sharding.device_set) == GROUPS
    np.testing.assert_allclose(value, slow(logps.astype(np.float64), batch), rtol=1e-5)
    grads = np.where(batch.mask, np.reshape(grads, logps.shape), 0)
    np.testing.assert_allclose(grads, gradient(slow, logps, batch), rtol=1e-4, atol=2e-6)


def test_terms_are_told_apart_and_the_first_gives_the_usual_metrics():
    logps, batch = numbers(2)
    mixture = Mixture((DPO(beta=0.1), DPO(beta=0.5), SFT()), (1.0, 0.0, 0.3))
    metrics = mixture(logps, batch)
    assert mixture.names == ("dpo", "dpo_2", "sft") and name_of(mixture) == "dpo+dpo_2+sft"
    alone = [DPO(beta=0.1)(logps, batch), DPO(beta=0.5)(logps, batch)]
    for key in ("rewards/margins", "loss"):
        assert mean(metrics["dpo/loss" if key == "loss" else key]) == pytest.approx(mean(alone[0][key]))
        assert mean(metrics[f"dpo_2/{key}"]) == pytest.approx(mean(alone[1][key]))
    assert "sft/logps/chosen" in metrics and mixture.beta == 0.1  # of its one slot
    assert "dpo_2/logps/chosen" not in metrics and "dpo_2/drift/absolute" not in metrics
    assert mean(metrics["loss"]) == pytest.approx(mean(metrics["dpo/loss"]) + 0.3 * mean(metrics["sft/loss"]), rel=1e-6)


def test_a_mixture_of_one_is_its_term():
    logps, batch = numbers(2)
    assert mean(Mixture((DPO(),), (1.0,))(logps, batch)["loss"]) == pytest.approx(mean(DPO()(logps, batch)["loss"]), rel=1e-6)


def test_the_data_are_those_of_the_term_that_reads_most():
    assert Mixture((SFT(), DPO()), (1, 1)).arrangement == Pair()
    assert Mixture((DPO(), SFT(), InfoNCA()), (1, 1, 1)).arrangement == Group()
    assert Mixture((IPO(), LDDPO()), (1, 1)).arrangement == SplitPair()
    assert Mixture((SFT(), KTO()), (1, 1)).arrangement == Unpaired()
    assert not Mixture((SimPO(), SFT()), (1, 1)).needs_reference and Mixture((SimPO(), DPO()), (1, 1)).needs_reference
    assert Mixture((SFT(), DPO()), (1, 1)).learning_rate == 1e-6
    assert Mixture((Reward(), Reward(contrast="set")), (1, 1)).head == "score"


@pytest.mark.parametrize(
    "terms, weights, said",
    [
        (
            (DPO(), KTO()),
            (1, 1),
            "dpo and kto cannot be mixed: dpo learns from pairs, kto from single responses that are desir",
        ),
        ((MPO(), GDPO()), (1, 1), "mpo and gdpo cannot be mixed: .*sets of scored responses.*beliefs and texts"),
        ((GDPO(), SFT()), (1, 1), "objective.sft_weight of gdpo adds the likelihood"),
        ((GDPO(), GDPO(preference="kto")), (1, 1), "preference dpo.*preference kto"),
        ((SFT(), LDDPO(), MPO()), (1, 1, 1), "ld_dpo and mpo cannot be mixed"),
        ((MPO(), Reward()), (1, 1), "mpo trains a language model, reward a reward model"),
        ((DPO(), SFT()), (1, -1), "objective.1.weight: -1 must be"),
        ((DPO(), SFT()), (1, np.nan), "objective.1.weight: nan must be"),
        ((DPO(), SFT()), (0, 0), "objective.0.weight: nothing is learned"),
        ((DPO(),), (1, 1), "1 terms and 2 weights"),
        ((), (), "0 terms"),
        ((Mixture((DPO(),), (1,)), SFT()), (1, 1), "a term is a mixture itself"),
    ],
)
def test_what_cannot_be_mixed_is_said(terms, weights, said):
    with pytest.raises(UserError, match=said):
        Mixture(terms, weights)
