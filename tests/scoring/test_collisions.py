"""How likely two draws of a token are the same, which WPO's weights are measured by, and a step of WPO that takes it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.data import pack_groups
from align_jax.models import Decoder
from align_jax.objectives import SFT, WPO, Mixture
from align_jax.scoring.logps import response_logps, scored_logps
from tests.models import reference
from tests.models.test_decoder import FAMILIES, big_weights
from tests.scoring.devices import on_eight_devices
from tests.scoring.test_logps import BASE, BELIEFS, GROUPS, by_row, group, layout
from tests.training.test_step import make_items, one_step, scores, stacked


def alone(config, weights, groups, slots):
    """float64 `[G, K]`, one response at a time: `sum_t log sum_v p(v)^2`."""
    out = np.zeros((len(groups), slots))
    for g, item in enumerate(groups):
        for segment in item.segments:
            context = list(item.prompt) + (list(item.segments[segment.parent].tokens) if segment.parent >= 0 else [])
            logits = np.stack(reference.logits(config, weights, [*context, *segment.tokens][:-1]))[len(context) - 1 :]
            p = np.exp(logits - logits.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            out[g, segment.slot] = np.log((p**2).sum(-1)).sum()
    return out


def collisions(config, weights, batch, **chunks):
    model = Decoder(config, weights, dtype="float32")
    return scored_logps(model, batch, counted=False, collisions=True, **chunks).log_collisions


@pytest.mark.parametrize(
    ("config", "groups"), [(FAMILIES["gemma"], GROUPS), (BASE, BELIEFS)], ids=["gemma, responses", "llama, beliefs"]
)
def test_equals_the_squares_of_each_response_alone(config, groups):
    weights = big_weights(config)
    batch = pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=layout(True))
    expected = alone(config, weights, groups, batch.mask.shape[1])
    for chunks in ({}, {"rows_per_chunk": 1, "head_chunk": 7}):
        ours = by_row(batch, jax.jit(partial(collisions, config, **chunks))(weights, batch))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_differentiated_through_them_and_log_probs_are_as_without():
    weights = big_weights(BASE)
    batch = pack_groups(GROUPS, shards=1, groups_per_shard=len(GROUPS), layout=layout(True))

    def both(w):
        found = scored_logps(Decoder(BASE, w, dtype="float32"), batch, counted=False, collisions=True)
        return jnp.sum(found.values + found.log_collisions), found.values

    def plain(w):
        values = response_logps(Decoder(BASE, w, dtype="float32"), batch)
        return jnp.sum(values), values

    (grads, values), (wanted, logps) = (jax.jit(jax.grad(f, has_aux=True))(weights) for f in (both, plain))
    np.testing.assert_allclose(values, logps, rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, wanted)


def test_the_same_under_pmap_shard_map_and_a_mesh():
    weights = big_weights(BASE)
    groups = [group(i, 3 + i % 3, [2, 4]) for i in range(8)]
    batch = pack_groups(groups, shards=8, groups_per_shard=1, layout=layout(True))
    f = partial(collisions, BASE)
    expected = jax.jit(f)(weights, batch)
    for out in on_eight_devices(f, BASE, weights, batch):
        np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_a_step_of_wpo_weighs_pairs_by_how_likely_the_policys_own_draws_are():
    """At the reference every pair's loss is ln 2, so that the step's loss is that times the mean weight."""
    items = make_items(6, 2, scores=scores)
    sampled, none = (one_step(stacked(items, 1, 1), o)[1] for o in (WPO(), WPO(alignment="none")))
    # Fresh weights say every one of 32 words about equally often, and two draws are equal as often: 1/32.
    assert none["loss"] == pytest.approx(np.log(2) / 32**2, rel=0.5)
    assert 0.5 * np.log(2) < sampled["loss"] <= np.log(2) + 1e-6
    assert 100 * none["grad_norm"] < sampled["grad_norm"]
    # As a term of a mixture, cut into microbatches.
    mixed = one_step(stacked(items, 3, 1), Mixture((SFT(), WPO()), (0.5, 1.0)))[1]
    assert mixed["wpo/loss"] == pytest.approx(sampled["loss"], rel=1e-5)
    assert mixed["loss"] == pytest.approx(sampled["loss"] + 0.5 * mixed["sft/loss"], rel=1e-5)


def test_what_is_missing_or_wrong_is_said():
    batch = stacked(make_items(2, 2, scores=scores), 1, 1).group_labels
    batch = jax.tree.map(lambda x: x[0], batch).with_labels(ref_logps=np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"no labels\['log_collisions'\], which objective.alignment: sampled needs"):
        WPO()(jnp.zeros((2, 2)), batch)
    with pytest.raises(ValueError, match="objective.alignment: 'on' is not one of sampled, none"):
        WPO(alignment="on")
