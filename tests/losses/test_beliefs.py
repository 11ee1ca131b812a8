"""What must hold for GDPO: calibration, the distance that measures it, and preferences that do not cancel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax import losses
from tests.losses import reference
from tests.losses.cases import belief_arrays

TARGETS = np.array([[0.25, 0.25, 0.25, 0.25], [0.7, 0.2, 0.1, 0], [0.95, 0.05, 0, 0], [0, 0, 0, 1]], np.float32)


@pytest.mark.parametrize(
    # A NaN among beliefs that are renormalised over is no zero: it is an error, to be seen.
    "logp, renormalize",
    [(-np.inf, False), (-1e4, False), (np.nan, False), (-np.inf, True), (-1e4, True)],
)
def test_a_belief_of_target_zero_contributes_nothing(logp, renormalize):
    logps, targets = np.log(np.array([[0.3, 0.4, 0.2]], np.float32)), np.array([[0.4, 0.6, 0.0]], np.float32)
    logps[0, 2] = logp

    def loss(logps):
        return losses.belief_calibration_loss(logps, targets, renormalize=renormalize)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logps))
    wanted = reference.calibration(logps[0, :2], targets[0, :2], renormalize=renormalize)
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-7)
    assert np.all(np.isfinite(gradient)) and gradient[0, 2] == 0 and gradient[0, 0] != 0


@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("renormalize", [False, True])
def test_masked_beliefs_are_never_read(filler, renormalize):
    logps, targets = belief_arrays()
    mask = np.arange(4) < np.array([4, 3, 2, 1, 0, 3, 4, 2])[:, None]

    def run(logps, targets):
        def total(logps):
            return jnp.sum(losses.belief_calibration_loss(logps, targets, mask=mask, renormalize=renormalize))

        return jax.value_and_grad(total)(logps)

    value, gradient = run(np.where(mask, logps, -1), np.where(mask, targets, 0))
    filled, filled_gradient = run(np.where(mask, logps, np.float32(filler)), np.where(mask, targets, np.float32(filler)))
    np.testing.assert_array_equal(filled, value)
    np.testing.assert_array_equal(filled_gradient, gradient)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and np.all(gradient[~mask] == 0)


@pytest.mark.parametrize("renormalize", [False, True])
def test_rows_without_targets_are_exactly_zero(renormalize):
    def total(logps):
        return jnp.sum(losses.belief_calibration_loss(logps, np.zeros((2, 3)), renormalize=renormalize))

    value, gradient = jax.value_and_grad(total)(jnp.array([[-jnp.inf] * 3, [-1.0, -2.0, -3.0]]))
    assert value == 0 and np.all(gradient == 0)


def test_leaking_probability_is_punished_unless_renormalised():
    leaking = np.log(TARGETS[:1] / 4)
    np.testing.assert_allclose(losses.belief_calibration_loss(leaking, TARGETS[:1]), [np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(losses.belief_calibration_loss(leaking, TARGETS[:1], renormalize=True), 0, atol=1e-6)


def test_broken_targets_are_seen():
    for bad in (np.nan, -0.1):
        assert np.isnan(losses.belief_calibration_loss(np.zeros((1, 2)), np.array([[bad, 0.5]]))[0])


def _calibrate(optimizer, steps, extra):
    """Policies over the beliefs and `extra` other tokens, trained by the calibration loss alone."""

    def loss(logits):
        return jnp.sum(losses.belief_calibration_loss(jax.nn.log_softmax(logits)[:, :4], TARGETS))

    @jax.jit
    def train(logits):
        def step(carry, _):
            logits, state = carry
            updates, state = optimizer.update(jax.grad(loss)(logits), state, logits)
            return (optax.apply_updates(logits, updates), state), None

        return jax.lax.scan(step, (logits, optimizer.init(logits)), length=steps)[0][0]

    start = jnp.asarray(np.random.default_rng(0).normal(0, 2, (4, 4 + extra)), jnp.float32)
    return jax.nn.softmax(start)[:, :4], jax.nn.softmax(train(start))[:, :4]


@pytest.mark.parametrize("optimizer", [optax.sgd(1.0), optax.adamw(0.1)], ids=["sgd", "adamw"])
def test_calibration_alone_drives_the_policy_to_the_target(optimizer):
    before, after = _calibrate(optimizer, 3000, extra=6)
    assert np.all(losses.jensen_shannon_distance(before, TARGETS) > 0.2)
    assert np.all(losses.jensen_shannon_distance(after, TARGETS) < 0.02)
    np.testing.assert_allclose(after[2, 1], 0.05, atol=0.002)  # 95/5: the minority keeps its share
    assert np.all(jnp.sum(after, axis=1) > 0.99)  # and nothing leaks


def _preference_loss(table, beliefs):
    """DPO on two people of one prompt who disagree: y0 > y1 (belief 0), y1 > y0 (belief 1); rows of the table are b."""
    logps, zeros = jax.nn.log_softmax(table, axis=1), jnp.zeros(2)
    chosen, rejected = logps[beliefs, np.array([0, 1])], logps[beliefs, np.array([1, 0])]
    return jnp.sum(losses.dpo_loss(chosen, rejected, zeros, zeros, beta=0.5))


def test_conflicting_preferences_cancel_without_beliefs_and_not_when_conditioned_on_them():
    table, ignored, conditioned = jnp.zeros((2, 2)), np.array([0, 0]), np.array([0, 1])
    gradient = jax.grad(_preference_loss)
    np.testing.assert_array_equal(gradient(table, ignored), 0)
    assert np.all(np.sign(gradient(table, conditioned)) == [[-1, 1], [1, -1]])
    trained = {}
    for name, beliefs in (("ignored", ignored), ("conditioned", conditioned)):
        table = jnp.zeros((2, 2))
        step = jax.jit(lambda t, beliefs=beliefs: t - 2 * gradient(t, beliefs))
        for _ in range(50):
            table = step(table)
        trained[name] = jax.nn.softmax(table, axis=1)
    np.testing.assert_array_equal(trained["ignored"][0], [0.5, 0.5])
    assert trained["conditioned"][0, 0] > 0.9 and trained["conditioned"][1, 1] > 0.9


def test_a_weight_of_zero_leaves_its_term_out_whatever_it_holds():
    targets, broken = np.array([[0.5, 0.5]]), np.array([np.nan])
    fine = (np.log(targets), targets, np.array([-0.5]), np.array([2.0]))
    cases = (
        ((np.full((1, 2), -np.inf), *fine[1:]), (0, 1, 1), 2.5),
        ((*fine[:2], broken, fine[3]), (1, 0, 1), 2.0),
        ((*fine[:3], broken), (1, 1, 0), 0.5),
    )
    for arrays, weights, wanted in cases:
        np.testing.assert_allclose(losses.gdpo_loss(*arrays, weights=weights), [wanted], rtol=1e-6)


@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e30])
def test_the_posterior_reads_no_masked_belief_and_has_no_gradient(filler):
    beliefs, mask = belief_arrays()[0], np.arange(4) < np.array([4, 3, 2, 1, 0, 3, 4, 2])[:, None]
    found = losses.belief_posterior(beliefs, 2 * beliefs, mask=mask)
    filled = losses.belief_posterior(*(np.where(mask, x, np.float32(filler)) for x in (beliefs, 2 * beliefs)), mask=mask)
    np.testing.assert_array_equal(filled, found)
    np.testing.assert_allclose(np.sum(found, axis=1), np.any(mask, axis=1), rtol=1e-6)
    assert np.all(np.asarray(found)[~mask] == 0)
    gradient = jax.grad(lambda own: jnp.sum(losses.belief_posterior(own, own, mask=mask) * beliefs))(jnp.asarray(beliefs))
    assert np.all(gradient == 0)


def test_the_posterior_of_texts_of_thousands_of_nats_is_finite():
    found = losses.belief_posterior(np.array([[-1e4, -1.0]]), np.array([[-1.0, -2e4]]))
    np.testing.assert_array_equal(found, [[1.0, 0.0]])


def test_distance_equals_scipys_normalised_or_not():
    scipy_distance = pytest.importorskip("scipy.spatial.distance")
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(6, 0.3), (2, 40))
    p[0], q[0] = [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]
    p[1:9, 2] = q[5:20, 4] = 0
    q[20:30] = p[20:30] * (1 + 1e-3 * rng.normal(size=(10, 6)))
    p *= rng.uniform(0.1, 50, (40, 1))
    p, q = p.astype(np.float32), q.astype(np.float32)
    wanted = [scipy_distance.jensenshannon(a.astype(float), b.astype(float)) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(losses.jensen_shannon_distance(p, q), wanted, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(losses.jensen_shannon_distance(p[:20], q[:20]), wanted[:20], rtol=2e-6)
    np.testing.assert_allclose(losses.jensen_shannon_distance(p[0], q[0]), np.sqrt(np.log(2)), rtol=1e-6)


def test_distance_of_near_distributions_does_not_drown_in_rounding():
    steps = np.array([3, 5, 7, 11, 13, 101])[:, None] * np.float32(2**-24)
    p = np.broadcast_to(np.array([0.25, 0.25, 0.5], np.float32), (6, 3))
    q = (p + steps * np.array([1, -1, 0])).astype(np.float32)
    # To leading order the divergence is the sum of (p - q)^2 / (4 (p + q)).
    np.testing.assert_allclose(losses.jensen_shannon_distance(p, q), steps[:, 0], rtol=1e-4)


def test_distance_to_itself_is_zero_with_a_gradient_of_zero():
    rows = jnp.asarray(TARGETS)
    value, gradients = jax.value_and_grad(lambda p, q: jnp.sum(losses.jensen_shannon_distance(p, q)), argnums=(0, 1))(
        rows, rows
    )
    assert value == 0 and np.all(np.asarray(gradients) == 0)


def test_distance_gradient_is_finite_where_a_probability_is_zero():
    p, q = jnp.array([[0.5, 0.5, 0.0, 0.0]]), jnp.array([[0.2, 0.0, 0.8, 0.0]])
    by_p, by_q = jax.grad(lambda p, q: losses.jensen_shannon_distance(p, q)[0], argnums=(0, 1))(p, q)
    assert np.all(np.isfinite(by_p)) and np.all(np.isfinite(by_q))
    step = 1e-6
    for index in (0, 1):  # entries that may move either way
        sums = [reference.jensen_shannon(np.asarray(p[0], float) + s * np.eye(4)[index], q[0]) for s in (step, -step)]
        np.testing.assert_allclose(by_p[0, index], (sums[0] - sums[1]) / (2 * step), rtol=1e-4)


def test_distance_of_a_row_without_mass_is_undefined():
    assert np.isnan(losses.jensen_shannon_distance(np.zeros(3), np.ones(3)))
