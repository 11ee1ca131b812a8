"""Losses over the whole set of scored responses to a prompt: MPO, W-MPO and ordered levels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import (
    as_floats,
    as_mask,
    check_not_negative,
    check_positive,
    check_same_shape,
    check_set_axis,
)
from align_jax.losses.masking import log_ratio, set_contrast


def partition(scores: ArrayLike, mask: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits the valid responses of each group at their mean score.

        accepted = {i : S_i > mean}      rejected = {i : S_i <= mean}

    Rounding decides nothing: a score that float32 cannot tell from the mean counts as the mean, hence as rejected, and
    equal scores never contrast. Unequal scores always do.

    Args:
      scores: `[G, K]`, larger is better.
      mask: bool `[G, K]`, True for a response that exists.

    Returns:
      accepted: bool `[G, K]`. rejected: bool `[G, K]`, valid and not accepted.
      contrast: bool `[G]`, some response is accepted (then some other is rejected).

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> accepted, rejected, contrast = losses.partition(np.array([[1.0, 5.0, 6.0, 9.0]]), np.array([[1, 1, 1, 0]]))
      >>> accepted.tolist(), rejected.tolist(), contrast.tolist()
      ([[False, True, True, False]], [[True, False, False, False]], [True])

    Source: arXiv 2412.04628, the definition of Y+ and Y-.
    """
    check_same_shape(scores=scores, mask=mask)
    check_set_axis("scores", scores)
    (scores,), mask = as_floats(scores=scores), as_mask(mask)
    accepted = score_deviations(scores, mask) > 0
    return accepted, mask & ~accepted, jnp.any(accepted, axis=-1)


def score_deviations(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """`S_i - mean` over the valid responses, 0 elsewhere and where float32 cannot tell the difference from 0.

    Args:
      scores: float32 `[..., K]`. mask: bool `[..., K]`.

    Returns:
      float32 `[..., K]`, all NaN on the valid responses of a group with a NaN or infinite valid score.
    """
    scores = jax.lax.stop_gradient(scores)
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(jnp.float32)
    top = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
    # Measured from the largest score: equal scores are then exactly 0, whose mean is exact.
    below = jnp.where(mask, scores - top, 0.0)
    spread = -jnp.min(below, axis=-1, keepdims=True)
    size = jnp.max(jnp.where(mask, jnp.abs(scores), 0.0), axis=-1, keepdims=True)
    deviations = jnp.where(mask, below - jnp.sum(below, axis=-1, keepdims=True) / count, 0.0)
    # What rounding can do: in the scores themselves (a unit in the last place), and in the sum. The order of a sum, a
    # padded response or a shift of all scores must not move a response across the mean. The largest score is at least
    # spread / count above it, so that half of that is no threat to any real contrast.
    eps = jnp.finfo(jnp.float32).eps
    rounding = jnp.minimum(eps * size + 16 * eps * spread, spread / (2 * count))
    return jnp.where(jnp.abs(deviations) <= rounding, 0.0, deviations)


def mpo_loss(
    policy_logps: ArrayLike,
    ref_logps: ArrayLike,
    scores: ArrayLike,
    mask: ArrayLike,
    *,
    beta: float,
    alpha: float = 0.0,
    power: float = 1,
) -> jax.Array:
    """Multi-Preference Optimization: accepted responses against all, in one softmax; `alpha > 0` makes it W-MPO.

        z_i = beta (log pi(y_i|x) - log pi_ref(y_i|x)) + alpha |S_i - mean|^power
        L   = logsumexp_{i in Y} z_i - logsumexp_{i in Y+} z_i          Y+ = {i : S_i > mean}

    With two unequal scores this is DPO, whatever alpha. A group without contrast (equal scores, or fewer than two valid
    responses) has loss and gradient exactly 0.

    Args:
      policy_logps: `[G, K]`, log-probs summed over the response's tokens.
      ref_logps: `[G, K]`, the same under the reference; zeros make the loss reference-free.
      scores: `[G, K]`, larger is better.
      mask: bool `[G, K]`, True for a response that exists.
      beta: > 0, strength of the pull to the reference.
      alpha: >= 0, logit units per score unit (to the power) of deviation from the mean.
      power: >= 0; 1 as published, 0 drops the weighting.

    Returns:
      float32 `[G]`; NaN where a valid score is NaN or infinite.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> policy = np.array([[-4.0, -5.0, -6.0], [-4.0, -5.0, 0.0]])
      >>> ref = np.array([[-5.0, -5.0, -5.0], [-5.0, -5.0, 0.0]])
      >>> scores = np.array([[9.0, 8.0, 1.0], [2.0, 2.0, 0.0]])
      >>> mask = np.array([[True, True, True], [True, True, False]])
      >>> [f"{x:.4f}" for x in losses.mpo_loss(policy, ref, scores, mask, beta=1.0)]
      ['0.0943', '0.0000']

    Source: arXiv 2412.04628 (MPO; W-MPO is called SWEPO in its earlier versions).
    """
    check_positive("beta", beta)
    check_not_negative("alpha", alpha)
    check_not_negative("power", power)
    check_same_shape(policy_logps=policy_logps, ref_logps=ref_logps, scores=scores, mask=mask)
    check_set_axis("scores", scores)
    policy, ref, scores = as_floats(policy_logps=policy_logps, ref_logps=ref_logps, scores=scores)
    mask = as_mask(mask)
    deviations = score_deviations(scores, mask)
    weights = jnp.abs(deviations) ** power
    # The loss ignores what is added to all logits; measured from the largest, two equal deviations add exactly nothing.
    weights = weights - jnp.max(jnp.where(mask, weights, 0.0), axis=-1, keepdims=True)
    z = beta * log_ratio(policy, ref, mask) + jnp.where(mask, alpha * weights, 0.0)
    return contrast_by_deviation(z, deviations, mask)


def contrast_by_deviation(z: jax.Array, deviations: jax.Array, mask: jax.Array) -> jax.Array:
    """The set contrast of the responses above the mean with the others, `[..., K]` x3 to `[...]`."""
    accepted = deviations > 0
    values = set_contrast(z, accepted, mask & ~accepted)
    # NaN compares as False: unseen, a broken score would pass for a group without contrast.
    return jnp.where(jnp.any(jnp.isnan(deviations), axis=-1), jnp.nan, values)


def ordered_mpo_loss(
    policy_logps: ArrayLike, ref_logps: ArrayLike, levels: ArrayLike, mask: ArrayLike, *, beta: float
) -> jax.Array:
    """MPO over ordered levels of responses: Plackett-Luce over sets, each level against all that are worse.

        z_i = beta (log pi(y_i|x) - log pi_ref(y_i|x))
        L   = sum over levels m but the worst of [ logsumexp over levels >= m of z - logsumexp over level m of z ]

    The levels are those present in the group: a number that no response has is no level. Two levels make it MPO; one
    level has loss and gradient exactly 0. Needs `[G, K, K]` of memory.

    Args:
      policy_logps: `[G, K]`, log-probs summed over the response's tokens.
      ref_logps: `[G, K]`, the same under the reference; zeros make the loss reference-free.
      levels: integers `[G, K]`, 0 best.
      mask: bool `[G, K]`, True for a response that exists.
      beta: > 0, strength of the pull to the reference.

    Returns:
      float32 `[G]`.

    Raises:
      ValueError: the shapes differ, the levels are not integers, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> logps = np.zeros((1, 3))
      >>> loss = losses.ordered_mpo_loss(logps, logps, np.array([[0, 1, 2]]), np.ones((1, 3), bool), beta=0.1)
      >>> f"{loss[0]:.4f}"  # ln 3 + ln 2: nothing is known yet about any of the 3! orders
      '1.7918'

    Source: arXiv 2412.04628, open question 1.
    """
    check_positive("beta", beta)
    check_same_shape(policy_logps=policy_logps, ref_logps=ref_logps, levels=levels, mask=mask)
    check_set_axis("levels", levels)
    if not jnp.issubdtype(jnp.result_type(levels), jnp.integer):
        raise ValueError(f"levels must be integers (0 best), got dtype {jnp.result_type(levels)}")
    policy, ref = as_floats(policy_logps=policy_logps, ref_logps=ref_logps)
    mask, levels = as_mask(mask), jnp.asarray(levels)
    z = beta * log_ratio(policy, ref, mask)
    pairs = mask[..., :, None] & mask[..., None, :]
    same = pairs & (levels[..., :, None] == levels[..., None, :])
    worse = pairs & (levels[..., :, None] < levels[..., None, :])
    # One response speaks for its level: the first.
    first = mask & ~jnp.any(jnp.tril(same, -1), axis=-1)
    terms = set_contrast(z[..., None, :], same & first[..., None], worse & first[..., None])
    return jnp.sum(terms, axis=-1)
