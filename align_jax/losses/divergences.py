"""Other divergences of the belief distribution from its target, in place of `belief_calibration_loss`.

The policy's probability that is on no belief is one more outcome, whose target is 0:

    pi_o = 1 - sum_b pi(b|x)

so that leaking is punished by all of them, as by the calibration. With `renormalize` there is no such outcome. All are 0
only where `pi = p*`. Unlike KL(p* || pi), their gradient by `log pi(b|x)` has the factor `pi(b|x)`: where a model gives a
belief hardly any probability, they hardly teach it, so that they want a model that states beliefs already.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, as_mask, check_same_shape, check_set_axis, check_smoothing
from align_jax.losses.masking import masked_log_softmax

_LEAST = 2.0**-24  # below it, what float32 resolves of 1 - sum_b pi(b|x) is rounding


def belief_reverse_kl_loss(
    belief_logps: ArrayLike,
    target_probs: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    renormalize: bool = False,
    smoothing: float = 1e-3,
) -> jax.Array:
    """Reverse calibration: the KL divergence of the target from the policy's belief distribution, the target smoothed.

        L = sum_i pi_i [ log pi_i - log t_i ],    t_i = (1 - smoothing) p*_i + smoothing / M

    over the M outcomes: the beliefs of the row and, unless renormalised, "no belief" with `p* = 0`. Without smoothing L is
    infinite as soon as `p*_i = 0 < pi_i`, which is always so of "no belief". It is 0 at `pi = t`, where every outcome, also
    "no belief", keeps `smoothing / M`.

    Args:
      belief_logps: `[B, N]`, log-probs of the belief statements, summed over each one's tokens.
      target_probs: `[B, N]`, p*, which sums to 1 over the beliefs of a row.
      mask: bool `[B, N]`, True for a belief that exists; None for all.
      renormalize: use `pi` renormalised over the beliefs of the row instead.
      smoothing: in (0, 1), how much of the target is spread over all outcomes.

    Returns:
      float32 `[B]`, in nats; 0 for a row whose targets are all 0.

    Raises:
      ValueError: the shapes differ, or the smoothing is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> beliefs, targets = np.log(np.array([[0.5, 0.5]])), np.array([[1.0, 0.0]])
      >>> f"{losses.belief_reverse_kl_loss(beliefs, targets, renormalize=True, smoothing=0.1)[0]:.4f}"  # t is .95, .05
      '0.8304'

    Source: the calibration term of arXiv 2412.20299 with the divergence turned round; ours.
    """
    check_smoothing("smoothing", smoothing)
    logps, targets, there, counted = _taken(belief_logps, target_probs, mask, renormalize)
    outcomes = jnp.sum(there, axis=-1, keepdims=True) + (0 if renormalize else 1)
    floor = smoothing / jnp.maximum(outcomes, 1)
    smoothed = (1 - smoothing) * targets + floor
    probs = jnp.exp(logps)
    # exp(-inf) is 0, and 0 * -inf must not be NaN, also in the backward pass.
    some = probs > 0
    log_odds = jnp.where(some, logps, 0.0) - jnp.log(jnp.where(some, smoothed, 1.0))
    total = _row_sum(probs * log_odds, there)
    if not renormalize:
        left = _left(probs, there)
        total = total + left * (jnp.log(jnp.maximum(left, _LEAST)) - jnp.log(floor[..., 0]))
    return jnp.where(counted, total, 0.0)


def belief_jensen_shannon_loss(
    belief_logps: ArrayLike, target_probs: ArrayLike, *, mask: ArrayLike | None = None, renormalize: bool = False
) -> jax.Array:
    """Calibration by the Jensen-Shannon divergence of the policy's belief distribution and the target.

        L = sum_i [ pi_i log(pi_i / m_i) + p*_i log(p*_i / m_i) ] / 2,    m = (pi + p*) / 2,    0 <= L <= ln 2

    over the beliefs and, unless renormalised, "no belief", which adds `(1 - sum_b pi(b|x)) ln 2 / 2`. Finite whatever is 0.
    It is the square of `jensen_shannon_distance` where both sum to 1.

    Args:
      belief_logps: `[B, N]`, log-probs of the belief statements, summed over each one's tokens.
      target_probs: `[B, N]`, p*, which sums to 1 over the beliefs of a row.
      mask: bool `[B, N]`, True for a belief that exists; None for all.
      renormalize: use `pi` renormalised over the beliefs of the row instead.

    Returns:
      float32 `[B]`, in nats; 0 for a row whose targets are all 0.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> beliefs, targets = np.log(np.array([[0.25, 1e-30]])), np.array([[1.0, 0.0]])
      >>> f"{losses.belief_jensen_shannon_loss(beliefs, targets)[0]:.4f}"
      '0.3804'

    Source: Lin 1991; in place of the calibration term of arXiv 2412.20299.
    """
    logps, targets, there, counted = _taken(belief_logps, target_probs, mask, renormalize)
    probs = jnp.exp(logps)
    both = (probs > 0) & (targets != 0)
    # Where one of the two is 0, the other counts with log 2 and nothing has to be divided.
    alone = (probs + targets) * jnp.log(2.0)
    log_middle = jnp.log(jnp.where(both, probs + targets, 2.0) / 2)
    log_probs, log_targets = jnp.where(both, logps, 0.0), jnp.log(jnp.where(both, targets, 1.0))
    shared = probs * (log_probs - log_middle) + targets * (log_targets - log_middle)
    total = _row_sum(jnp.where(both, shared, alone), there) / 2
    if not renormalize:
        total = total + _left(probs, there) * jnp.log(2.0) / 2
    return jnp.where(counted, total, 0.0)


def belief_total_variation_loss(
    belief_logps: ArrayLike, target_probs: ArrayLike, *, mask: ArrayLike | None = None, renormalize: bool = False
) -> jax.Array:
    """Calibration by the total variation between the policy's belief distribution and the target.

        L = sum_i | pi_i - p*_i | / 2,    0 <= L <= 1

    over the beliefs and, unless renormalised, "no belief", which adds `(1 - sum_b pi(b|x)) / 2`. The gradient by a belief at
    its target is 0 (L has a corner there).

    Args:
      belief_logps: `[B, N]`, log-probs of the belief statements, summed over each one's tokens.
      target_probs: `[B, N]`, p*, which sums to 1 over the beliefs of a row.
      mask: bool `[B, N]`, True for a belief that exists; None for all.
      renormalize: use `pi` renormalised over the beliefs of the row instead.

    Returns:
      float32 `[B]`, a probability; 0 for a row whose targets are all 0.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> beliefs, targets = np.log(np.array([[0.4, 0.1]])), np.array([[0.8, 0.2]])
      >>> f"{losses.belief_total_variation_loss(beliefs, targets)[0]:.2f}"  # half of the probability leaks away
      '0.50'

    Source: in place of the calibration term of arXiv 2412.20299; ours.
    """
    logps, targets, there, counted = _taken(belief_logps, target_probs, mask, renormalize)
    probs = jnp.exp(logps)
    total = _row_sum(jnp.abs(probs - targets), there) / 2
    if not renormalize:
        total = total + _left(probs, there) / 2
    return jnp.where(counted, total, 0.0)


def _taken(
    belief_logps: ArrayLike, target_probs: ArrayLike, mask: ArrayLike | None, renormalize: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log-probs (-inf where there is no belief) and targets `[B, N]`, which beliefs count, and which rows `[B]`."""
    given = {} if mask is None else {"mask": mask}
    check_same_shape(belief_logps=belief_logps, target_probs=target_probs, **given)
    check_set_axis("belief_logps", belief_logps)
    logps, targets = as_floats(belief_logps=belief_logps, target_probs=target_probs)
    mask = jnp.ones(targets.shape, bool) if mask is None else as_mask(mask)
    targets = jnp.where(mask, jax.lax.stop_gradient(targets), 0.0)
    counted = jnp.any(targets != 0, axis=-1)
    there = mask & counted[..., None]
    targets = jnp.where(targets < 0, jnp.nan, targets)  # a broken target must show up in the loss
    if renormalize:
        logps = masked_log_softmax(logps, there)
    return jnp.where(there, logps, -jnp.inf), targets, there, counted


def _row_sum(terms: jax.Array, there: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(there, terms, 0.0), axis=-1)


def _left(probs: jax.Array, there: jax.Array) -> jax.Array:
    """The probability that is on no belief; rounding may leave it a little below 0."""
    return 1 - _row_sum(probs, there)
