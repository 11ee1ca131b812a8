"""Policies that are tables: a distribution over the answers to one prompt, trained exactly through `align_jax.losses`.

What such a policy learns is known without noise: its expected true score, its KL to the reference and its optimum.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from align_jax import losses


@dataclasses.dataclass(frozen=True)
class TabularObjective:
    """A loss of the library over sets of scored answers.

    Attributes:
      name: `mpo`, `infonca`, or `dpo`, on the best against the worst answer of each set.
      beta, alpha, power, temperature: of the loss; those that it does not know are left alone.
    """

    name: str
    beta: float = 1.0
    alpha: float = 0.0
    power: float = 1
    temperature: float = 1.0

    def __call__(self, policy: jax.Array, ref: jax.Array, scores: jax.Array) -> jax.Array:
        """Log-probabilities and scores `[M, K]` to losses `[M]`."""
        mask = jnp.ones(scores.shape, bool)
        if self.name == "mpo":
            return losses.mpo_loss(policy, ref, scores, mask, beta=self.beta, alpha=self.alpha, power=self.power)
        if self.name == "infonca":
            return losses.infonca_loss(policy, ref, scores, mask, beta=self.beta, temperature=self.temperature)
        if self.name == "dpo":
            best, worst = (jnp.argmax(scores, -1)[:, None], jnp.argmin(scores, -1)[:, None])
            pair = [jnp.take_along_axis(logps, which, -1)[:, 0] for logps in (policy, ref) for which in (best, worst)]
            values = losses.dpo_loss(*pair, beta=self.beta)
            return jnp.where(best[:, 0] == worst[:, 0], 0.0, values)  # equal scores are no pair
        raise ValueError(f"a table is trained by mpo, dpo or infonca, got {self.name!r}")


def trained(
    objective: TabularObjective,
    ref_logits: ArrayLike,
    sets: ArrayLike,
    scores: ArrayLike,
    *,
    steps: int,
    rate: float,
    start: ArrayLike | None = None,
) -> np.ndarray:
    """The logits after 0, 1, ..., `steps` steps of Adam on all sets.

    Args:
      objective: what is minimized, on average over the sets. ref_logits: `[V]`, of the reference.
      sets: integers `[M, K]`, the answers in each set. scores: `[M, K]`, theirs. start: `[V]`; the reference by default.

    Returns:
      `[steps + 1, V]`.
    """
    ref, sets = jnp.asarray(ref_logits, jnp.float32), jnp.asarray(sets)
    first = ref if start is None else jnp.asarray(start, jnp.float32)
    path = _path(objective, steps, rate, first, ref, sets, jnp.asarray(scores, jnp.float32))
    return np.concatenate([np.asarray(first)[None], np.asarray(path)])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _path(objective, steps, rate, first, ref, sets, scores):
    optimizer, ref_logps = optax.adam(rate), jax.nn.log_softmax(ref)

    def loss(logits):
        return jnp.mean(objective(jax.nn.log_softmax(logits)[sets], ref_logps[sets], scores))

    def step(state, _):
        logits, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(logits), moments)
        logits = optax.apply_updates(logits, updates)
        return (logits, moments), logits

    return jax.lax.scan(step, (first, optimizer.init(first)), None, length=steps)[1]


def loss_of(objective: TabularObjective, logits: ArrayLike, ref_logits: ArrayLike, sets: ArrayLike, scores: ArrayLike) -> float:
    """The mean loss of a policy `[V]` over sets `[M, K]`."""
    logps, ref = (jax.nn.log_softmax(jnp.asarray(one, jnp.float32)) for one in (logits, ref_logits))
    sets = jnp.asarray(sets)
    return float(jnp.mean(objective(logps[sets], ref[sets], jnp.asarray(scores, jnp.float32))))


def drawn_sets(rng: np.random.Generator, probs: ArrayLike, count: int, answers: int, correlation: float = 0.0) -> np.ndarray:
    """`count` sets of answers drawn from a distribution `[V]`, integers `[count, answers]`.

    With a correlation, each answer is with probability `sqrt(correlation)` the one answer that its set shares: then
    anything measured on two answers of a set has just this correlation, and every answer the same distribution as before.
    """
    p = np.asarray(probs, np.float64)
    own = rng.choice(len(p), (count, answers), p=p / p.sum())
    common = rng.choice(len(p), (count, 1), p=p / p.sum())
    return np.where(rng.random((count, answers)) < np.sqrt(correlation), common, own)


def probabilities(logits: ArrayLike) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    weights = np.exp(z - z.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def expected(logits: ArrayLike, values: ArrayLike) -> np.ndarray:
    """The mean of values `[V]` under policies `[..., V]`."""
    return probabilities(logits) @ np.asarray(values, np.float64)


def kl(logits: ArrayLike, ref_logits: ArrayLike) -> np.ndarray:
    """KL of policies `[..., V]` to the reference `[V]`, nats."""
    p, q = probabilities(logits), probabilities(ref_logits)
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0.0), axis=-1)


def at_kl(distance: ArrayLike, values: ArrayLike, limit: float) -> float | None:
    """A value where a path first is `limit` from the reference, between two steps by a line; None if it never is."""
    d, v = np.asarray(distance, np.float64), np.asarray(values, np.float64)
    if d.max() < limit:
        return None
    i = int(np.argmax(d >= limit))
    if i == 0:
        return float(v[0])
    share = (limit - d[i - 1]) / (d[i] - d[i - 1])
    return float(v[i - 1] + share * (v[i] - v[i - 1]))


def best_at_kl(ref_logits: ArrayLike, values: ArrayLike, limit: float) -> float:
    """The highest mean of values `[V]` within a KL of the reference: that of `pi_ref exp(values / t)`, t by bisection."""
    ref, v = np.asarray(ref_logits, np.float64), np.asarray(values, np.float64)
    low, high = 0.0, 1.0
    while kl(ref + high * v, ref) < limit and high < 1e6:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(ref + middle * v, ref) < limit else (low, middle)
    return float(expected(ref + low * v, v))
