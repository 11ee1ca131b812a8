"""GDPO: calibration of the belief distribution, its combination with preferences, and the distance that measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, as_mask, check_not_negative, check_same_shape, check_set_axis
from align_jax.losses.masking import masked_log_softmax


def belief_calibration_loss(
    belief_logps: ArrayLike, target_probs: ArrayLike, *, mask: ArrayLike | None = None, renormalize: bool = False
) -> jax.Array:
    """Calibration: the KL divergence of the policy's belief distribution from the target.

        L = sum_b p*(b) [ log p*(b) - log pi(b|x) ]

    Without renormalisation, probability that leaks outside the beliefs is punished. `p*(b) = 0` contributes 0, value
    and gradient, even where `log pi(b|x)` is -inf.

    Args:
      belief_logps: `[B, N]`, log-probs of the belief statements, summed over each one's tokens.
      target_probs: `[B, N]`, p*, which sums to 1 over the beliefs of a row; used as it is.
      mask: bool `[B, N]`, True for a belief that exists; None for all.
      renormalize: use `pi` renormalised over the beliefs of the row instead.

    Returns:
      float32 `[B]`, in nats; 0 for a row whose targets are all 0.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> beliefs, targets = np.log(np.array([[0.4, 0.1, 1e-9]])), np.array([[0.8, 0.2, 0.0]])
      >>> f"{losses.belief_calibration_loss(beliefs, targets)[0]:.4f}"  # half of the probability leaks away
      '0.6931'
      >>> f"{abs(losses.belief_calibration_loss(beliefs, targets, renormalize=True)[0]):.4f}"
      '0.0000'

    Source: arXiv 2412.20299, the calibration term; not renormalised, as in the authors' code.
    """
    given = {} if mask is None else {"mask": mask}
    check_same_shape(belief_logps=belief_logps, target_probs=target_probs, **given)
    check_set_axis("belief_logps", belief_logps)
    logps, targets = as_floats(belief_logps=belief_logps, target_probs=target_probs)
    targets = jax.lax.stop_gradient(targets)
    mask = jnp.ones(targets.shape, bool) if mask is None else as_mask(mask)
    # Not `> 0`: a NaN or a negative target must show up in the loss.
    counted = mask & (targets != 0)
    if renormalize:
        logps = masked_log_softmax(logps, mask & jnp.any(counted, axis=-1, keepdims=True))
    log_odds = jnp.log(jnp.where(counted, targets, 1.0)) - jnp.where(counted, logps, 0.0)
    return jnp.sum(jnp.where(counted, targets, 0.0) * log_odds, axis=-1)


def gdpo_loss(
    belief_logps: ArrayLike,
    target_probs: ArrayLike,
    belief_statement_mean_logps: ArrayLike,
    preference_losses: ArrayLike,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    calibration: Callable[[ArrayLike, ArrayLike], jax.Array] = belief_calibration_loss,
) -> jax.Array:
    """Group Distributional Preference Optimization: beliefs first, then preferences conditioned on the belief.

        L = w_1 sum_b p*(b) [log p*(b) - log pi(b|x)]  -  w_2 mean log pi(tokens of b_c|x)  +  w_3 L_preference

    Args:
      belief_logps: `[B, N]`, log-probs of the belief statements; -inf with `p* = 0` for a belief that does not exist.
      target_probs: `[B, N]`, p*, which sums to 1 over the beliefs of a row.
      belief_statement_mean_logps: `[B]`, log-prob of the chosen belief statement `b_c`, averaged over its tokens.
      preference_losses: `[B]`, a preference loss (DPO, KTO or MPO) on the texts, all conditioned on `b_c`.
      weights: three numbers >= 0 for calibration, belief statement and preference. A term whose weight is the number 0
        is left out, whatever it holds.
      calibration: `(belief_logps, target_probs) -> [B]`, the first term: `belief_calibration_loss`, or another divergence.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, there are not three weights, or one is negative.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> targets = np.array([[0.75, 0.25]])
      >>> preference = losses.dpo_loss(*np.zeros((4, 1)), beta=0.1)
      >>> f"{losses.gdpo_loss(np.log(targets), targets, np.array([-0.5]), preference)[0]:.4f}"  # 0 + 0.5 + ln 2
      '1.1931'

    Source: arXiv 2412.20299; the belief statement's term and weights of 1 are those of the authors' code.
    """
    if len(weights) != 3:
        raise ValueError(f"weights must be three numbers (calibration, belief statement, preference), got {weights!r}")
    for name, weight in zip(("calibration", "belief statement", "preference"), weights, strict=True):
        check_not_negative(f"the {name} weight", weight)
    check_set_axis("belief_logps", belief_logps)
    if jnp.shape(belief_logps)[:-1] != jnp.shape(preference_losses):
        shapes = f"belief_logps {jnp.shape(belief_logps)}, preference_losses {jnp.shape(preference_losses)}"
        raise ValueError(f"the beliefs [B, N] and the preference losses [B] must have one B, got {shapes}")
    statement, preference = as_floats(
        belief_statement_mean_logps=belief_statement_mean_logps, preference_losses=preference_losses
    )
    terms = (calibration(belief_logps, target_probs), -statement, preference)
    total = jnp.zeros_like(preference)
    for weight, term in zip(weights, terms, strict=True):
        if isinstance(weight, jax.Array) or weight != 0:
            total = total + weight * term
    return total


def belief_posterior(belief_logps: ArrayLike, text_logps: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
    """The expectation step for beliefs that nobody labelled: who may have said a text, not differentiated.

        q(b) = softmax_b [ log pi(b|x) + log pi(y|b,x) ]

    Args:
      belief_logps: `[B, N]`, log-probs of the belief statements, summed over each one's tokens.
      text_logps: `[B, N]`, log-probs of one text conditioned on each of the beliefs, summed over its tokens.
      mask: bool `[B, N]`, True for a belief that exists; None for all.

    Returns:
      float32 `[B, N]`, which sums to 1 over the beliefs of a row; 0 where there is none.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> beliefs, texts = np.log(np.array([[0.8, 0.2]])), np.log(np.array([[0.1, 0.8]]))
      >>> [f"{q:.4f}" for q in losses.belief_posterior(beliefs, texts)[0]]
      ['0.3333', '0.6667']

    Source: Dempster, Laird and Rubin 1977, for the factorised policy of arXiv 2412.20299 (its question about latent beliefs).
    """
    given = {} if mask is None else {"mask": mask}
    check_same_shape(belief_logps=belief_logps, text_logps=text_logps, **given)
    check_set_axis("belief_logps", belief_logps)
    beliefs, texts = as_floats(belief_logps=belief_logps, text_logps=text_logps)
    mask = jnp.ones(beliefs.shape, bool) if mask is None else as_mask(mask)
    joint = jax.lax.stop_gradient(jnp.where(mask, beliefs, 0.0) + jnp.where(mask, texts, 0.0))
    return jnp.where(mask, jnp.exp(masked_log_softmax(joint, mask)), 0.0)


def jensen_shannon_distance(p: ArrayLike, q: ArrayLike) -> jax.Array:
    """The Jensen-Shannon distance, a metric between distributions: the square root of the divergence in nats.

        D = sqrt( KL(p || m) / 2 + KL(q || m) / 2 ),    m = (p + q) / 2,    0 <= D <= sqrt(ln 2)

    The same as `scipy.spatial.distance.jensenshannon(p, q)`: both rows are divided by their sums first, and a row that
    sums to 0 is no distribution, so that its distance to anything is NaN. The gradient is 0 where `p = q` (the distance
    has a corner there) and with respect to entries that are exactly 0 (where it would be infinite).

    Args:
      p, q: `[..., N]`, numbers >= 0.

    Returns:
      float32 `[...]`.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> f"{losses.jensen_shannon_distance(np.array([0.5, 0.5]), np.array([1.0, 0.0])):.4f}"
      '0.4645'

    Source: Endres and Schindelin 2003; the calibration metric of arXiv 2412.20299.
    """
    check_same_shape(p=p, q=q)
    check_set_axis("p", p)
    p, q = as_floats(p=p, q=q)
    p, q = p / jnp.sum(p, axis=-1, keepdims=True), q / jnp.sum(q, axis=-1, keepdims=True)
    divergence = jnp.sum(_divergence_term(p, q), axis=-1)
    differs = divergence != 0
    return jnp.where(differs, jnp.sqrt(jnp.where(differs, divergence, 1.0)), 0.0)


@jax.custom_jvp
def _divergence_term(p: jax.Array, q: jax.Array) -> jax.Array:
    """`[p log(p / m) + q log(q / m)] / 2`, elementwise, without cancellation where p is near q.

    With `p = m (1 + d)` and `q = m (1 - d)` it is `m/2 [(1+d) log(1+d) + (1-d) log(1-d)]`, which for small d is the
    difference of two large parts; `m/2 [2 d atanh(d) + log(1 - d^2)]` is the same number and is not.
    """
    mean, d = (p + q) / 2, _half_difference(p, q)
    near = jnp.abs(d) < 0.5
    small, large = jnp.where(near, d, 0.0), jnp.where(near, 0.0, d)
    series = 2 * small * jnp.arctanh(small) + jnp.log1p(-small * small)
    plain = jax.scipy.special.xlog1py(1 + large, large) + jax.scipy.special.xlog1py(1 - large, -large)
    return mean / 2 * jnp.where(near, series, plain)


@_divergence_term.defjvp
def _divergence_term_jvp(primals, tangents):
    """The derivatives are `log(p / m) / 2` and `log(q / m) / 2`; automatic ones give 0 * inf at p = 0 or q = 0."""
    (p, q), (dp, dq) = primals, tangents
    d = _half_difference(p, q)
    by_p = jnp.where(p == 0, 0.0, jnp.log1p(jnp.where(p == 0, 0.0, d)) / 2)
    by_q = jnp.where(q == 0, 0.0, jnp.log1p(jnp.where(q == 0, 0.0, -d)) / 2)
    return _divergence_term(p, q), by_p * dp + by_q * dq


def _half_difference(p: jax.Array, q: jax.Array) -> jax.Array:
    total = p + q
    return jnp.where(total == 0, 0.0, (p - q) / jnp.where(total == 0, 1.0, total))
