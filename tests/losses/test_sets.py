"""What must hold for losses over sets of responses, whatever the numbers."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import losses
from tests.losses.cases import set_arrays

MPO = jax.jit(losses.mpo_loss)
ORDERED = jax.jit(losses.ordered_mpo_loss)


def _ordered_by_score(policy, ref, scores, mask, **options):
    return losses.ordered_mpo_loss(policy, ref, jnp.where(jnp.asarray(scores) > 5, 0, 3), mask, **options)


LOSSES = {
    "mpo": functools.partial(losses.mpo_loss, beta=0.2),
    "wmpo": functools.partial(losses.mpo_loss, beta=0.2, alpha=0.5),
    "ordered": functools.partial(_ordered_by_score, beta=0.2),
    "infonca": functools.partial(losses.infonca_loss, beta=0.2, temperature=2.0),
    "nca": functools.partial(losses.nca_loss, beta=0.2, temperature=2.0),
    "bradley_terry_set": lambda policy, ref, scores, mask: losses.bradley_terry_set_loss(policy - ref, scores, mask),
    "bradley_terry_pairs": lambda policy, ref, scores, mask: losses.bradley_terry_pairs_loss(policy - ref, scores, mask),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@functools.cache
def with_gradient(name):
    """(values [G], gradients by policy, ref) of a loss, compiled once a shape."""

    def total(policy, ref, scores, mask):
        values = LOSSES[name](policy, ref, scores, mask)
        return jnp.sum(values), values

    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))

    def run(*arrays):
        (_, values), gradients = both(*arrays)
        return np.asarray(values), np.asarray(gradients)

    return run


def softmax(z, chosen):
    weights = np.where(chosen, np.exp(z - z.max()), 0)
    return weights / weights.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 100.0, 1e6])
@pytest.mark.parametrize("power", [0, 1, 2])
def test_two_unequal_scores_make_mpo_and_wmpo_dpo_whatever_alpha(alpha, power):
    rng = np.random.default_rng(0)
    policy, ref = rng.normal(-50, 20, (2, 6, 2)).astype(np.float32)
    scores = np.array([[9, 1], [1, 9], [0.3, 0.1], [-5, -4], [1e6, 1e6 + 0.0625], [1e-30, 0]], np.float32)
    best, worst = scores.argmax(1)[:, None], scores.argmin(1)[:, None]
    pair = [np.take_along_axis(a, i, 1)[:, 0] for a in (policy, ref) for i in (best, worst)]
    values = MPO(policy, ref, scores, np.ones((6, 2), bool), beta=0.1, alpha=alpha, power=power)
    np.testing.assert_allclose(values, losses.dpo_loss(*pair, beta=0.1), rtol=1e-6, atol=1e-30)


@every_loss
def test_permuted_responses_change_nothing(name):
    arrays, order = set_arrays(), [3, 0, 4, 1, 2]
    values, gradients = with_gradient(name)(*arrays)
    permuted = with_gradient(name)(*(a[:, order] for a in arrays))
    np.testing.assert_allclose(permuted[0], values, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(permuted[1], gradients[..., order], rtol=1e-5, atol=1e-7)


@every_loss
@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_changes_nothing_whatever_it_holds(name, filler):
    policy, ref, scores, mask = set_arrays()
    values, gradients = with_gradient(name)(*(np.where(mask, a, 0) for a in (policy, ref, scores)), mask)
    assert np.all(np.isfinite(values)) and np.all(gradients[:, ~mask] == 0)
    filled = [np.where(mask, a, np.float32(filler)) for a in (policy, ref, scores)]
    wide = [np.pad(a, ((0, 0), (0, 3)), constant_values=filler) for a in filled]
    padded = with_gradient(name)(*wide, np.pad(mask, ((0, 0), (0, 3))))
    np.testing.assert_allclose(padded[0], values, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(padded[1][..., :5], gradients, rtol=1e-5, atol=1e-8)
    assert np.all(padded[1][..., 5:] == 0)


@pytest.mark.parametrize("name", ["mpo", "wmpo", "infonca", "nca", "bradley_terry_set", "bradley_terry_pairs"])
@pytest.mark.parametrize("shift", [-7.0, 0.25, 1000.0])
def test_a_constant_added_to_all_scores_changes_nothing(name, shift):
    policy, ref, scores, mask = set_arrays()
    scores = np.round(scores * 16) / 16  # so that adding the constant does not round
    values, gradients = with_gradient(name)(policy, ref, scores, mask)
    shifted = with_gradient(name)(policy, ref, scores + np.float32(shift), mask)
    np.testing.assert_allclose(shifted[0], values, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(shifted[1], gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["mpo", "wmpo", "ordered", "bradley_terry_set", "bradley_terry_pairs"])
@pytest.mark.parametrize("score", [0.1, 0.7, 1e-30, 1e30, -3.3])
def test_no_contrast_is_exactly_zero_value_and_gradient(name, score):
    policy, ref, scores, mask = set_arrays()
    mask = np.broadcast_to(np.arange(5) < np.array([5, 4, 3, 2, 1, 0, 1, 5])[:, None], mask.shape)
    values, gradients = with_gradient(name)(policy * 500, ref, np.full_like(scores, score), mask)
    assert np.all(values == 0) and np.all(gradients == 0)


def test_equal_scores_never_partition_and_unequal_ones_always_do():
    count = 300
    mask = np.ones((1, count), bool)
    accepted, rejected, contrast = losses.partition(np.full((1, count), 0.1, np.float32), mask)
    assert not contrast[0] and not np.any(accepted) and np.all(rejected)
    for low, high in ((1e6, 1e6 + 0.0625), (0.1, np.nextafter(np.float32(0.1), np.float32(1))), (0, 1e-30)):
        for winners in (1, count - 1):
            scores = np.where(np.arange(count) < winners, high, low)[None].astype(np.float32)
            accepted, rejected, contrast = losses.partition(scores, mask)
            assert contrast[0] and accepted.sum() == winners and rejected.sum() == count - winners


@pytest.mark.parametrize("shift", [0, 1, 100, -3])
def test_a_score_at_the_mean_is_rejected_in_any_order_and_under_any_shift(shift):
    partition = jax.jit(losses.partition)
    for middle in (0.2, 0.8, 3.3, 7.7):
        for scores in itertools.permutations([middle - 0.1, middle, middle + 0.1, middle]):
            row = (np.array([scores + (np.nan,)]) + shift).astype(np.float32)
            accepted, rejected, _ = partition(row, np.isfinite(row))
            assert accepted[0, :4].tolist() == [s > middle for s in scores]
            assert rejected[0, :4].tolist() == [s <= middle for s in scores]
            assert not accepted[0, 4] and not rejected[0, 4]


def test_partition_splits_valid_scores_at_their_mean():
    _, _, scores, mask = set_arrays()
    accepted, rejected, contrast = losses.partition(scores, mask)
    for g in range(len(scores)):
        valid = scores[g][mask[g]]
        above = mask[g] & (scores[g] > np.mean(valid, dtype=np.float64) + 1e-7) if len(valid) else mask[g]
        assert accepted[g].tolist() == above.tolist()
        assert rejected[g].tolist() == (mask[g] & ~above).tolist()
        assert bool(contrast[g]) == (len(np.unique(valid)) > 1)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gradient_is_softmax_over_all_minus_softmax_over_accepted(alpha):
    policy, ref, scores, mask = set_arrays()
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(losses.mpo_loss(p, ref, scores, mask, beta=0.3, alpha=alpha))))(policy)
    accepted, _, contrast = (np.asarray(x) for x in losses.partition(scores, mask))
    assert contrast.sum() == 5
    for g in np.flatnonzero(contrast):
        deviation = scores[g] - scores[g][mask[g]].mean(dtype=np.float64)
        z = np.where(mask[g], 0.3 * (policy[g] - ref[g]) + alpha * abs(deviation), -1e9)
        wanted = 0.3 * (softmax(z, mask[g]) - softmax(z, accepted[g]))
        np.testing.assert_allclose(gradient[g], wanted, rtol=1e-4, atol=1e-6)


@every_loss
def test_finite_for_rewards_of_ten_thousand(name):
    scores, mask = np.arange(10, dtype=np.float32)[None].repeat(6, 0), np.ones((6, 10), bool)
    signs = np.stack([np.where(np.arange(10) < k, 1, -1) for k in (0, 1, 5, 9, 10, 0)])
    signs[5, 5:] *= -1
    policy = (signs * 5e4).astype(np.float32)  # beta 0.2 makes it 1e4
    values, gradients = with_gradient(name)(policy, np.zeros_like(policy), scores, mask)
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(gradients))
    assert np.any(gradients)


def test_a_difference_far_below_the_rewards_survives():
    policy = np.array([[1e4 + 5, 1e4, 1e4]], np.float32)
    value = MPO(policy, np.zeros((1, 3)), np.array([[2.0, 1.0, 0.0]]), np.ones((1, 3), bool), beta=1.0)
    np.testing.assert_allclose(value, [np.log1p(2 * np.exp(-5.0))], rtol=1e-5)


@pytest.mark.parametrize("name", ["mpo", "ordered"])
def test_padding_makes_no_nan_on_the_way_either(name):
    policy, ref, scores, mask = set_arrays()
    policy, ref, scores = (np.where(mask, a, np.float32(np.inf)) for a in (policy, ref, scores))
    with jax.debug_nans(True):  # a user's first tool must not stop at what is thrown away later
        jax.grad(lambda p: jnp.sum(LOSSES[name](p, ref, scores, mask)))(policy)


def test_policy_equal_to_the_reference_gives_the_log_ratio_of_the_set_sizes():
    _, ref, scores, mask = set_arrays()
    accepted, _, contrast = losses.partition(scores, mask)
    wanted = np.where(contrast, np.log(np.maximum(mask.sum(1), 1) / np.maximum(accepted.sum(1), 1)), 0)
    np.testing.assert_allclose(MPO(ref, ref, scores, mask, beta=0.1), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["mpo", "wmpo", "infonca", "nca", "bradley_terry_set", "bradley_terry_pairs"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_valid_score_is_seen(name, bad):
    policy, ref, scores, mask = set_arrays()
    scores[:, 0], mask = bad, np.ones_like(mask)
    assert np.all(np.isnan(with_gradient(name)(policy, ref, scores, mask)[0]))


def test_two_ordered_levels_are_mpo_and_their_numbers_do_not_matter():
    policy, ref, scores, mask = set_arrays()
    accepted, _, _ = losses.partition(scores, mask)
    for best, worst in ((0, 1), (3, 70)):
        levels = np.where(accepted, best, worst)
        values = ORDERED(policy, ref, levels, mask, beta=0.2)
        np.testing.assert_allclose(values, MPO(policy, ref, scores, mask, beta=0.2), rtol=1e-6)


def test_one_response_a_level_is_plackett_luce():
    rng = np.random.default_rng(0)
    z, levels = rng.normal(0, 2, 4).astype(np.float32), np.array([2, 0, 3, 1])
    chance = 1.0
    order = np.argsort(levels)
    for m in range(4):
        chance *= np.exp(z[order[m]]) / np.exp(z[order[m:]]).sum()
    value = losses.ordered_mpo_loss(z[None], np.zeros((1, 4)), levels[None], np.ones((1, 4), bool), beta=1.0)
    np.testing.assert_allclose(value, [-np.log(chance)], rtol=1e-5)


def test_infonca_gradient_vanishes_when_rewards_are_the_scores():
    _, ref, scores, mask = set_arrays()
    policy = ref + scores * 2  # beta / temperature = 1 / 2
    _, gradients = with_gradient("infonca")(policy * 1, ref, scores * 0.8, mask)  # z = 0.4 S, t = softmax(0.8 S / 2)
    np.testing.assert_allclose(gradients, 0, atol=1e-6)


def test_set_reward_loss_of_two_is_bradley_terry():
    scores = np.random.default_rng(0).normal(0, 3, (4, 2)).astype(np.float32)
    labels = np.array([[1, 0]] * 4)
    for loss in (losses.bradley_terry_set_loss, losses.bradley_terry_pairs_loss):
        values = loss(scores, labels, np.ones((4, 2), bool))
        np.testing.assert_allclose(values, losses.bradley_terry_loss(scores[:, 0], scores[:, 1]), rtol=1e-6)
