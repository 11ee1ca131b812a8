"""Schedule-free AdamW: against optax's, against its paper, and that every reader of weights gets the average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax.errors import UserError
from align_jax.training import optim

PARAMS = {
    "embed": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "layers": {"attn_norm": np.ones((2, 3), np.float32)},
    "head": np.linspace(0.1, 2, 12, dtype=np.float32).reshape(3, 4),
}
TARGET = jax.tree.map(lambda p: np.cos(3 * p), PARAMS)


def loss(params):
    return sum(jnp.sum((p - t) ** 4) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(TARGET), strict=True))


def run(spec, steps: int, params=PARAMS):
    """Weights and state after some steps, each with the gradient where the optimizer wants it."""
    transform = optim.make_optimizer(spec, steps)
    params = jax.tree.map(jnp.asarray, params)
    state = transform.init(params)

    @jax.jit
    def step(params, state, n):
        grads = jax.grad(loss)(optim.gradient_point(params, state))
        updates, state = transform.update(grads, state, params)
        return optim.apply_updates(params, updates, 0, n), state

    for n in range(steps):
        params, state = step(params, state, jnp.int32(n))
    return params, state


def test_weights_are_what_optax_evaluates():
    lr, b1 = 0.05, 0.8
    spec = optim.ScheduleFree(learning_rate=lr, b1=b1, b2=0.95, weight_decay=0.1, decayed="all", clip_norm=None)
    base = optax.chain(
        optax.scale_by_rms(0.95, 1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(lr),
    )
    theirs = optax.contrib.schedule_free(base, lr, b1=b1)
    y = jax.tree.map(jnp.asarray, PARAMS)
    state = theirs.init(y)
    for _ in range(12):
        updates, state = theirs.update(jax.grad(loss)(y), state, y)
        y = optax.apply_updates(y, updates)
    weights, ours = run(spec, 12)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # noqa: E731
    jax.tree.map(same, weights, optax.contrib.schedule_free_eval_params(state, y))
    jax.tree.map(same, optim.gradient_point(weights, ours), y)
    jax.tree.map(same, ours.z, state.z)


def test_a_warmup_and_the_average_are_those_of_the_paper():
    """Iterates in float64, and their average with weights that are the squared largest rates so far."""
    spec = optim.ScheduleFree(learning_rate=0.1, warmup_steps=4, clip_norm=None)
    z = x = PARAMS["head"].astype(np.float64)
    target, second, weights, iterates = TARGET["head"], 0.0, [], []
    for step in range(9):
        y = 0.1 * z + 0.9 * x
        grad = 4 * (y - target) ** 3
        second = 0.999 * second + 0.001 * grad**2
        rate = 0.1 * min(1, (step + 1) / 4)
        z = z - rate * grad / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
        weights.append(rate**2)
        iterates.append(z)
        x = np.average(iterates, axis=0, weights=weights)
    ours, _ = run(spec, 9)
    np.testing.assert_allclose(ours["head"], x, rtol=1e-4, atol=1e-5)
    assert np.abs(ours["head"] - z).max() > 0.01  # the average is not the last iterate


def test_bfloat16_weights_are_the_average_of_float32_iterates():
    spec = optim.ScheduleFree(learning_rate=0.01)
    weights, state = run(spec, 40, jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS))
    exact, _ = run(spec, 40)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.z)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(optim.gradient_point(weights, state))} == {jnp.dtype("bfloat16")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=0.04), weights, exact)


def test_other_optimizers_take_gradients_at_their_weights():
    state = optim.make_optimizer(optim.AdamW(), 3).init(PARAMS)
    assert optim.gradient_point(PARAMS, state) is PARAMS


def test_a_schedule_that_decays_is_refused():
    with pytest.raises(UserError, match="optimizer.schedule: cosine does not go with optimizer.name: schedule_free"):
        optim.ScheduleFree(schedule="cosine")
    with pytest.raises(UserError, match="optimizer.b1: 0"):
        optim.ScheduleFree(b1=0.0)


def test_a_power_whose_weights_are_nothing_is_refused():
    with pytest.raises(UserError, match="optimizer.weight_power: 7: the first learning rate, 1e-06"):
        optim.ScheduleFree(learning_rate=1e-6, weight_power=7)
