"""What must hold for the other divergences of beliefs: where they are 0, what leaks, and nothing that is not a number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax import losses
from tests.losses import reference
from tests.losses.cases import DIVERGENCES

TARGETS = np.array([[0.25, 0.25, 0.5], [0.7, 0.3, 0], [0.95, 0.05, 0]], np.float32)
every = pytest.mark.parametrize("loss, slow", [case[1:] for case in DIVERGENCES], ids=[case[0] for case in DIVERGENCES])
renormalized = pytest.mark.parametrize("renormalize", [False, True])


@every
@renormalized
@pytest.mark.parametrize("logp", [-np.inf, -1e4, -90.0, -40.0])
def test_beliefs_and_targets_of_nearly_zero_give_numbers(loss, slow, renormalize, logp):
    logps = np.log(np.array([[0.3, 0.4, 0.2], [0.5, 0.5, 0.1]], np.float32))
    logps[0, 2] = logps[1, 0] = logp  # of a target of 0, and of one above it
    targets = np.array([[0.4, 0.6, 0.0], [0.5, 0.4, 0.1]], np.float32)
    total = lambda own: jnp.sum(loss(own, targets, renormalize=renormalize))  # noqa: E731
    value, gradient = jax.value_and_grad(total)(jnp.asarray(logps))
    assert np.all(np.isfinite(gradient)) and abs(gradient[0, 2]) < 1e-12 and np.any(gradient != 0)
    exact = np.where(np.isinf(logps), -1e4, logps).astype(float)
    np.testing.assert_allclose(value, np.sum(reference.rows(slow, exact, targets, renormalize=renormalize)), rtol=1e-5)


@every
def test_all_mass_on_the_beliefs_gives_numbers(loss, slow):
    logps = jnp.log(jnp.asarray(np.array([[0.7, 0.3, 0.0], [0.1, 0.2, 0.7]], np.float32)))
    value, gradient = jax.value_and_grad(lambda own: jnp.sum(loss(own, TARGETS[1:])))(logps)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@every
@renormalized
@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf, 1e30])
def test_masked_beliefs_are_never_read(loss, slow, renormalize, filler):
    logps, mask = np.log(TARGETS + 0.1) - 1, np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]], bool)

    def run(logps, targets):
        return jax.value_and_grad(lambda own: jnp.sum(loss(own, targets, mask=mask, renormalize=renormalize)))(logps)

    value, gradient = run(np.where(mask, logps, -1), np.where(mask, TARGETS, 0))
    filled, other = run(np.where(mask, logps, np.float32(filler)), np.where(mask, TARGETS, np.float32(filler)))
    np.testing.assert_array_equal(filled, value)
    np.testing.assert_array_equal(other, gradient)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and np.all(gradient[~mask] == 0)


@every
def test_broken_targets_are_seen(loss, slow):
    for bad in (np.nan, -0.1):
        assert np.isnan(loss(np.log(np.full((1, 2), 0.5)), np.array([[bad, 0.5]]))[0])


@every
def test_leaking_is_punished_unless_renormalised(loss, slow):
    at, leaking = np.log(TARGETS[:1] * np.float32(1 - 1e-6)), np.log(TARGETS[:1] / 4)
    assert loss(leaking, TARGETS[:1])[0] > loss(at, TARGETS[:1])[0] + 0.05
    np.testing.assert_allclose(*(loss(a, TARGETS[:1], renormalize=True) for a in (leaking, at)), atol=1e-6)


def test_the_divergence_is_the_square_of_the_distance():
    p = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0], [0.01, 0.98, 0.01]], np.float32)
    squared = losses.jensen_shannon_distance(p, TARGETS) ** 2
    divergence = losses.belief_jensen_shannon_loss(np.log(np.maximum(p, 1e-30)), TARGETS, renormalize=True)
    np.testing.assert_allclose(divergence, squared, rtol=1e-5)


@every
def test_each_alone_drives_the_policy_to_the_target(loss, slow):
    """Policies over three beliefs and three other tokens; total variation only comes near, by steps of one size."""

    def total(logits):
        return jnp.sum(loss(jax.nn.log_softmax(logits)[:, :3], TARGETS))

    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 1500))

    @jax.jit
    def train(logits):
        def step(carry, _):
            updates, state = optimizer.update(jax.grad(total)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (logits, optimizer.init(logits)), length=1500)[0][0]

    start = jnp.asarray(np.random.default_rng(0).normal(0, 1, (3, 6)), jnp.float32)
    after = jax.nn.softmax(train(start))[:, :3]
    np.testing.assert_allclose(after, TARGETS, atol=0.01)
    assert np.all(np.max(np.abs(jax.nn.softmax(start)[:, :3] - TARGETS), axis=1) > 0.1)


def test_smoothing_out_of_range_is_named():
    for value in (0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="smoothing must be in"):
            losses.belief_reverse_kl_loss(np.zeros((1, 2)), np.full((1, 2), 0.5), smoothing=value)
