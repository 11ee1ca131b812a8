"""Losses over pairs that look at likelihoods themselves, beside the margin: DPO-Positive, CPO, ORPO, and WPO's weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, check_label_smoothing, check_not_negative, check_positive
from align_jax.losses.ratios import log_ratios

_SURE = 1.2e-7  # nats per token; nearer to 0, float32 cannot tell a probability from 1


def dpo_positive_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    penalty: float,
) -> jax.Array:
    """DPO-Positive: DPO that punishes a chosen response becoming less likely than under the reference.

        L = - log sigmoid(beta [r_c - r_r - penalty max(0, -r_c)])          r = log pi - log pi_ref

    The loss is ln 2 at the reference.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      penalty: >= 0, the paper's lambda (5 to 500 there); 0 is DPO. The gradient at the corner is 0.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.dpo_positive_loss(chosen, rejected, ref, ref, beta=0.5, penalty=5.0)[0]:.4f}"
      '0.3133'

    Source: arXiv 2402.13228.
    """
    check_positive("beta", beta)
    check_not_negative("penalty", penalty)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return jax.nn.softplus(-beta * (chosen - rejected - penalty * jax.nn.relu(-chosen)))


def cpo_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    chosen_mean_logps: ArrayLike,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    sft_weight: float = 1.0,
) -> jax.Array:
    """Contrastive Preference Optimization: DPO without a reference, and the likelihood of the chosen response.

        x = beta [log pi(y_c) - log pi(y_r)]
        L = - (1 - eps) log sigmoid(x) - eps log sigmoid(-x) - sft_weight log pi(y_c) / |y_c|

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      chosen_mean_logps: `[B]`, those of the chosen response averaged over its tokens.
      beta: > 0, scale of the log-probs.
      label_smoothing: eps in [0, 0.5), probability that a preference was recorded the wrong way round.
      sft_weight: >= 0, of the likelihood.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> f"{losses.cpo_loss(np.array([-4.0]), np.array([-6.0]), np.array([-1.0]), beta=0.5)[0]:.4f}"
      '1.3133'

    Source: arXiv 2401.08417 (which sums the likelihood); averaged as in TRL, which averages over a batch's tokens.
    """
    check_positive("beta", beta)
    check_label_smoothing(label_smoothing)
    check_not_negative("sft_weight", sft_weight)
    chosen, rejected, mean = as_floats(
        chosen_logps=chosen_logps, rejected_logps=rejected_logps, chosen_mean_logps=chosen_mean_logps
    )
    x = beta * (chosen - rejected)
    preference = (1 - label_smoothing) * jax.nn.softplus(-x) + label_smoothing * jax.nn.softplus(x)
    return preference - sft_weight * mean


def orpo_loss(
    chosen_mean_logps: ArrayLike, rejected_mean_logps: ArrayLike, *, beta: float, sft_weight: float = 1.0
) -> jax.Array:
    """ORPO: supervised fine-tuning, and the odds of the chosen response against those of the rejected one.

        odds(y) = p / (1 - p)          p = exp(log pi(y) / |y|)
        L       = - sft_weight log pi(y_c) / |y_c| - beta log sigmoid(log odds(y_c) - log odds(y_r))

    Args:
      chosen_mean_logps, rejected_mean_logps: `[B]`, log-probs averaged over the response's tokens.
      beta: > 0, weight of the odds ratio (the paper's lambda).
      sft_weight: >= 0, of the likelihood; 1 as published.

    Returns:
      float32 `[B]`. A probability per token that float32 cannot tell from 1 has no gradient by its odds.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> f"{losses.orpo_loss(np.array([-1.0]), np.array([-2.0]), beta=0.1)[0]:.4f}"
      '1.0238'

    Source: arXiv 2403.07691, Eq. 4 and 7; TRL's ORPOTrainer, whose likelihood is also that of the prompt.
    """
    check_positive("beta", beta)
    check_not_negative("sft_weight", sft_weight)
    chosen, rejected = as_floats(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    return beta * jax.nn.softplus(_log_odds(rejected) - _log_odds(chosen)) - sft_weight * chosen


def wpo_weights(chosen_mean_logps: ArrayLike, rejected_mean_logps: ArrayLike) -> jax.Array:
    """WPO's weight of a pair: how likely the policy is to say both responses itself, not differentiated.

        w = min(exp(a_c + a_r), 1)

    A pair's loss times this is nearer to what on-policy pairs would give. WPO's *sampled alignment* takes for `a` the mean over
    tokens of `log pi(y_t) - log sum_v pi(v)^2`, so that w does not fall where the policy is unsure of all words; then `a` may
    be larger than 0, and w is cut at 1.

    Args:
      chosen_mean_logps, rejected_mean_logps: `[B]`, a: log-probs averaged over the response's tokens, aligned or not.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> f"{losses.wpo_weights(np.log([0.5]), np.log([0.25]))[0]:.4f}"
      '0.1250'

    Source: arXiv 2406.11827, Eq. 2, and its sampled alignment; TRL's `use_weighting`, which has that and cuts at 1.
    """
    chosen, rejected = as_floats(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(chosen + rejected, 0.0)))


def _log_odds(mean_logps: jax.Array) -> jax.Array:
    """`log p - log(1 - p)` of `log p`, without cancellation where p is near 1."""
    logp = jnp.minimum(mean_logps, -_SURE)
    likely = logp > -0.7
    near, far = jnp.where(likely, logp, -1.0), jnp.where(likely, -1.0, logp)
    return logp - jnp.where(likely, jnp.log(-jnp.expm1(near)), jnp.log1p(-jnp.exp(far)))
