"""KTO: single responses that are desirable or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, as_mask, check_not_negative, check_positive, check_same_shape
from align_jax.losses.masking import log_ratio


def kto_kl(policy_logps: ArrayLike, ref_logps: ArrayLike, mask: ArrayLike) -> jax.Array:
    """The batch estimate of KL(pi || pi_ref) that KTO measures rewards from, not differentiated.

        z0 = max(0, mean of [log pi(y'|x) - log pi_ref(y'|x)])          y' a completion of another prompt

    The mean is over the arrays given. When they are one device's part of a batch, add up sums and counts instead.

    Args:
      policy_logps, ref_logps: `[B]`, log-probs of the mismatched completions, summed over tokens.
      mask: bool `[B]`, True for a pair that exists.

    Returns:
      float32 scalar, 0 where no pair exists.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> float(losses.kto_kl(np.array([-1.0, -2.0, np.nan]), np.array([-3.0, -3.0, 0.0]), np.array([1, 1, 0])))
      1.5

    Source: arXiv 2402.01306, the reference point z_0 of Section 4.
    """
    check_same_shape(policy_logps=policy_logps, ref_logps=ref_logps, mask=mask)
    policy, ref = as_floats(policy_logps=policy_logps, ref_logps=ref_logps)
    mask = as_mask(mask)
    mean = jnp.sum(log_ratio(policy, ref, mask)) / jnp.maximum(jnp.sum(mask), 1)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def kto_loss(
    policy_logps: ArrayLike,
    ref_logps: ArrayLike,
    desirable: ArrayLike,
    kl: ArrayLike,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """Kahneman-Tversky Optimization: a saturating value of each response, measured from the batch KL estimate.

        r = log pi(y|x) - log pi_ref(y|x)
        L = desirable_weight   (1 - sigmoid(beta (r - kl)))      where desirable
        L = undesirable_weight (1 - sigmoid(beta (kl - r)))      elsewhere

    Args:
      policy_logps, ref_logps: `[B]`, log-probs summed over the response's tokens.
      desirable: bool `[B]`.
      kl: scalar, `kto_kl` of the whole batch, in nats; no gradient flows into it.
      beta: > 0, strength of the pull to the reference.
      desirable_weight, undesirable_weight: >= 0, weights of the two classes.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, desirable is not bool, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> policy, ref = np.array([-4.0, -6.0]), np.array([-5.0, -5.0])
      >>> loss = losses.kto_loss(policy, ref, np.array([True, False]), 0.0, beta=1.0)
      >>> [f"{x:.4f}" for x in loss]
      ['0.2689', '0.2689']

    Source: arXiv 2402.01306, the KTO loss of Section 4.
    """
    check_positive("beta", beta)
    check_not_negative("desirable_weight", desirable_weight)
    check_not_negative("undesirable_weight", undesirable_weight)
    check_same_shape(policy_logps=policy_logps, ref_logps=ref_logps, desirable=desirable)
    policy, ref = as_floats(policy_logps=policy_logps, ref_logps=ref_logps)
    desirable, kl = jnp.asarray(desirable), jax.lax.stop_gradient(jnp.asarray(kl).astype(jnp.float32))
    if desirable.dtype != bool:
        raise ValueError(f"desirable must be bool (labels of -1 and 1 would both be True), got dtype {desirable.dtype}")
    if kl.ndim:
        raise ValueError(f"kl must be a scalar, one estimate for the batch, got shape {kl.shape}")
    advantage = beta * (policy - ref - kl)
    return jnp.where(desirable, desirable_weight * jax.nn.sigmoid(-advantage), undesirable_weight * jax.nn.sigmoid(advantage))
