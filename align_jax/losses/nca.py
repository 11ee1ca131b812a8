"""Losses towards soft targets made of the scores: InfoNCA and NCA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, as_mask, check_positive, check_same_shape, check_set_axis
from align_jax.losses.masking import log_ratio, masked_log_softmax


def infonca_loss(
    policy_logps: ArrayLike,
    ref_logps: ArrayLike,
    scores: ArrayLike,
    mask: ArrayLike,
    *,
    beta: float,
    temperature: float,
) -> jax.Array:
    """InfoNCA: cross-entropy of the softmax of the rewards to the softmax of the scores.

        z_i = beta (log pi(y_i|x) - log pi_ref(y_i|x))      t = softmax(S / temperature)
        L   = - sum_i t_i log softmax(z)_i

    Equal scores are targets like any other (all t equal); a group with fewer than two valid responses has loss 0.

    Args:
      policy_logps: `[G, K]`, log-probs summed over the response's tokens.
      ref_logps: `[G, K]`, the same under the reference; zeros make the loss reference-free.
      scores: `[G, K]`, larger is better.
      mask: bool `[G, K]`, True for a response that exists.
      beta: > 0, strength of the pull to the reference.
      temperature: > 0, of the targets, in score units.

    Returns:
      float32 `[G]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> logps = np.zeros((1, 4))
      >>> scores, mask = np.array([[3.0, 2.0, 1.0, 0.0]]), np.ones((1, 4), bool)
      >>> loss = losses.infonca_loss(logps, logps, scores, mask, beta=0.1, temperature=1.0)
      >>> f"{loss[0]:.4f}"  # ln 4: the policy is the reference
      '1.3863'

    Source: arXiv 2402.05369.
    """
    z, targets, mask = _rewards_and_targets(policy_logps, ref_logps, scores, mask, beta, temperature)
    return -jnp.sum(targets * masked_log_softmax(z, mask), axis=-1)


def nca_loss(
    policy_logps: ArrayLike,
    ref_logps: ArrayLike,
    scores: ArrayLike,
    mask: ArrayLike,
    *,
    beta: float,
    temperature: float,
) -> jax.Array:
    """NCA: each response on its own against noise, so that likelihoods rise and not only their differences.

        z_i = beta (log pi(y_i|x) - log pi_ref(y_i|x))      t = softmax(S / temperature)
        L   = - sum_i [ t_i log sigmoid(z_i) + (1 / K_valid) log sigmoid(-z_i) ]

    A group without valid responses has loss 0.

    Args:
      policy_logps: `[G, K]`, log-probs summed over the response's tokens.
      ref_logps: `[G, K]`, the same under the reference; zeros make the loss reference-free.
      scores: `[G, K]`, larger is better.
      mask: bool `[G, K]`, True for a response that exists.
      beta: > 0, strength of the pull to the reference.
      temperature: > 0, of the targets, in score units.

    Returns:
      float32 `[G]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> logps = np.zeros((1, 4))
      >>> scores, mask = np.array([[3.0, 2.0, 1.0, 0.0]]), np.ones((1, 4), bool)
      >>> loss = losses.nca_loss(logps, logps, scores, mask, beta=0.1, temperature=1.0)
      >>> f"{loss[0]:.4f}"  # 2 ln 2: the policy is the reference
      '1.3863'

    Source: arXiv 2402.05369.
    """
    z, targets, mask = _rewards_and_targets(policy_logps, ref_logps, scores, mask, beta, temperature)
    noise = mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return jnp.sum(targets * jax.nn.softplus(-z) + noise * jax.nn.softplus(z), axis=-1)


def _rewards_and_targets(policy_logps, ref_logps, scores, mask, beta, temperature):
    check_positive("beta", beta)
    check_positive("temperature", temperature)
    check_same_shape(policy_logps=policy_logps, ref_logps=ref_logps, scores=scores, mask=mask)
    check_set_axis("scores", scores)
    policy, ref, scores = as_floats(policy_logps=policy_logps, ref_logps=ref_logps, scores=scores)
    mask = as_mask(mask)
    # Shifted before the division: scores of any size, and any temperature, leave the largest at exactly 0.
    top = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
    shifted = jnp.where(mask, scores - top, 0.0) / temperature
    targets = jnp.where(mask, jnp.exp(masked_log_softmax(shifted, mask)), 0.0)
    return beta * log_ratio(policy, ref, mask), jax.lax.stop_gradient(targets), mask
