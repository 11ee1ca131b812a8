"""Metrics that tell how training fails, of log-probs that a step has anyway; each is a (sum, weight) a group.

What they warn of, and from where on, is in `align_jax.training.signatures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.objectives.base import Metrics, weighted

SQUARED, SPREAD = "loss/squared", "loss/std"
# Every pair of a microbatch is compared with every other one: 512 are a quarter of a million comparisons of numbers.
MOST_PAIRS = 512


def drift_metrics(ratios: jax.Array, lengths: jax.Array, chosen: jax.Array, rejected: jax.Array) -> Metrics:
    """How far log-probs moved from the reference, in nats per token; 0 at the start where that is the reference.

      drift/chosen, drift/rejected: sum of log-ratios over sum of tokens; below 0 the responses became less likely.
      drift/absolute: sum of |log-ratio| over sum of tokens, of both: grows where the KL does, which needs samples.

    Args:
      ratios: `log pi - log pi_ref`, `[G, K]`. lengths: tokens, `[G, K]`. chosen, rejected: bool `[G, K]`.
    """
    both = chosen | rejected

    def per_token(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jnp.sum(jnp.where(mask, values, 0.0), axis=-1)
        return total, jnp.sum(jnp.where(mask, lengths, 0), axis=-1).astype(jnp.float32)

    return {
        "drift/chosen": per_token(ratios, chosen),
        "drift/rejected": per_token(ratios, rejected),
        "drift/absolute": per_token(jnp.abs(jnp.where(both, ratios, 0.0)), both),
    }


def pair_drift(ratios: jax.Array, lengths: jax.Array, exists: jax.Array) -> Metrics:
    """`drift_metrics` of pairs: chosen in slot 0, rejected in slot 1 of `[G, K]`; exists: bool `[G]`."""
    first = jnp.arange(2) == 0
    return drift_metrics(ratios[:, :2], lengths[:, :2], exists[:, None] & first, exists[:, None] & ~first)


def set_signatures(ratios: jax.Array, lengths: jax.Array, scores: jax.Array, mask: jax.Array, beta: float) -> Metrics:
    """`drift_metrics` of the accepted and the rejected set, and how much of its mass the accepted set has on one answer.

      sets/top_accepted = max_{i in Y+} softmax_{Y+}(beta r)_i,  over groups with two accepted responses or more:
      1/|Y+| at the reference; MPO says nothing about it, since its gradient keeps shares within the set as they are.

    Args:
      ratios: `log pi - log pi_ref`, `[G, K]`. lengths, scores: `[G, K]`. mask: bool `[G, K]`. beta: of the rewards.
    """
    accepted, rejected, contrast = losses.partition(scores, mask)
    accepted, rejected = accepted & contrast[:, None], rejected & contrast[:, None]
    several = jnp.sum(accepted, axis=-1) > 1
    shares = jax.nn.softmax(jnp.where(accepted, beta * jnp.where(mask, ratios, 0.0), -jnp.inf), axis=-1, where=accepted)
    top = jnp.max(jnp.where(accepted, shares, 0.0), axis=-1)
    return {
        **drift_metrics(ratios, lengths, accepted, rejected),
        "sets/top_accepted": weighted(top, several),
    }


def loss_square(values: jax.Array, weights: jax.Array) -> Metrics:
    """The square of the groups' losses, of which `with_spread` makes their standard deviation over the whole step."""
    return {SQUARED: weighted(values**2, weights)}


def with_spread(means: Mapping[str, Any], root: Callable[[Any], Any]) -> dict[str, Any]:
    """The means, with `loss/std = sqrt(E[loss^2] - E[loss]^2)` over groups instead of `loss/squared`, where that is.

    Args:
      means: name -> number or array. root: the square root of numbers below 0 as 0, of JAX or NumPy.
    """
    result = dict(means)
    if SQUARED in result:
        result[SPREAD] = root(result.pop(SQUARED) - result["loss"] ** 2)
    return result


def belief_widths(belief_logps: jax.Array, target_probs: jax.Array, exists: jax.Array) -> Metrics:
    """Entropy in nats of the predicted beliefs (renormalised) and of the target: the first below the second is too narrow.

    Args:
      belief_logps: `[G, N]`, -inf where the prompt has no such belief. target_probs: `[G, N]`, NaN where nobody knows them:
        such groups do not count. exists: bool `[G]`.
    """
    known = exists & jnp.all(jnp.isfinite(target_probs), axis=-1)
    safe = jnp.where(exists[:, None], belief_logps, 0.0)
    predicted = jax.nn.softmax(safe, axis=-1)
    entropy = lambda p: jnp.sum(jax.scipy.special.entr(p), axis=-1)  # noqa: E731
    return {
        "beliefs/entropy": weighted(entropy(predicted), known),
        "beliefs/target_entropy": weighted(entropy(target_probs), known),
    }


def cancelled_pairs(logps: jax.Array, lengths: jax.Array, pull: jax.Array, exists: jax.Array) -> Metrics:
    """The part of the pairs' gradient weights that pairs of the same two texts the other way round take back.

      gradients/cancelled = 1 - sum_c |F_c - B_c| / sum_c (F_c + B_c),

    over the different pairs of texts c of a microbatch, with F_c and B_c the sums of `w_g = |dL_g / dh_g|` over the pairs
    that prefer the one or the other text: the gradient of a pair loss is `w_g grad h_g`, and turned round it is the same
    with another sign. Texts are taken for the same where their log-probs (to one in a thousand) and their lengths are; so
    texts conditioned on different beliefs are different ones, and do not cancel. Nothing for microbatches of more than
    512 pairs.

    Args:
      logps: `[G, 2]`, chosen and rejected. lengths: their tokens. pull: `w_g`, `[G]`, to a common scale. exists: bool `[G]`.
    """
    if logps.shape[0] > MOST_PAIRS:
        return {}
    logps, pull = jax.lax.stop_gradient((jnp.where(exists[:, None], logps, 0.0), jnp.where(exists, pull, 0.0)))

    def same(turned: jax.Array, tokens: jax.Array) -> jax.Array:
        near = jnp.abs(logps[:, None] - turned[None]) <= 1e-3 * jnp.abs(turned[None])
        return jnp.all(near & (lengths[:, None] == tokens[None]), axis=-1) & exists[:, None] & exists[None]

    with_it = jnp.sum(jnp.where(same(logps, lengths), pull, 0.0), axis=-1)
    against = jnp.sum(jnp.where(same(logps[:, ::-1], lengths[:, ::-1]), pull, 0.0), axis=-1)
    total = with_it + against
    left = jnp.abs(with_it - against) / jnp.where(total > 0, total, 1.0)
    return {"gradients/cancelled": (pull * (1 - left), pull)}
