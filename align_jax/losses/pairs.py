"""Losses over pairs of a chosen and a rejected response: DPO and its family.

Throughout, `h = r(y_c|x) - r(y_r|x)` with the log-ratio `r(y|x) = log pi(y|x) - log pi_ref(y|x)`; zeros for the
reference make a loss reference-free.
"""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, check_label_smoothing, check_not_negative, check_positive
from align_jax.losses.ratios import logit, margin


def dpo_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Direct Preference Optimization; `label_smoothing > 0` makes it conservative DPO.

        L = - (1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      label_smoothing: eps in [0, 0.5), probability that a preference was recorded the wrong way round.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0, -5.0]), np.array([-6.0, -5.0]), np.array([-5.0, -5.0])
      >>> [f"{x:.4f}" for x in losses.dpo_loss(chosen, rejected, ref, ref, beta=0.5)]
      ['0.3133', '0.6931']

    Source: arXiv 2305.18290, Eq. 7; label smoothing as in the DPO authors' note on noisy preferences ("cDPO").
    """
    check_label_smoothing(label_smoothing)
    x = logit(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    return (1 - label_smoothing) * jax.nn.softplus(-x) + label_smoothing * jax.nn.softplus(x)


def robust_dpo_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Robust DPO: in expectation the DPO loss on clean preferences, when a known share of them was flipped.

        L = [ - (1 - eps) log sigmoid(beta h) + eps log sigmoid(-beta h) ] / (1 - 2 eps)

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      label_smoothing: eps in [0, 0.5), probability that a preference was recorded the wrong way round; 0 is DPO.

    Returns:
      float32 `[B]`, below 0 where the margin is large.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.robust_dpo_loss(chosen, rejected, ref, ref, beta=0.5, label_smoothing=0.1)[0]:.4f}"
      '0.1883'

    Source: arXiv 2403.00409.
    """
    check_label_smoothing(label_smoothing)
    x = logit(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    kept, flipped = (1 - label_smoothing) * jax.nn.softplus(-x), label_smoothing * jax.nn.softplus(x)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def hinge_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
) -> jax.Array:
    """Hinge loss on the reward margin: nothing more to gain once the margin is 1.

        L = max(0, 1 - beta h)

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, the inverse of the margin in nats.

    Returns:
      float32 `[B]`; the gradient at the corner is 0.

    Raises:
      ValueError: the shapes differ, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0, -2.0]), np.array([-5.0, -5.0]), np.array([-5.0, -5.0])
      >>> losses.hinge_loss(chosen, rejected, ref, ref, beta=0.5).tolist()
      [0.5, 0.0]

    Source: arXiv 2309.06657 (RSO), after SLiC, arXiv 2305.10425.
    """
    return jax.nn.relu(1 - logit(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta))


def ipo_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
) -> jax.Array:
    """Identity Preference Optimization: a regression of the margin to a finite target.

        L = (h - 1 / (2 beta))^2

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens as in the paper; averaged over
        them they give TRL's variant.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0 (the paper's tau), strength of the pull to the reference.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> losses.ipo_loss(chosen, rejected, ref, ref, beta=0.1).tolist()
      [9.0]

    Source: arXiv 2310.12036, Eq. 17.
    """
    check_positive("beta", beta)
    return (margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps) - 1 / (2 * beta)) ** 2


def simpo_loss(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """SimPO: no reference, log-probs averaged over tokens, and a margin to be exceeded.

        x = beta (a_c - a_r) - gamma
        L = - (1 - eps) log sigmoid(x) - eps log sigmoid(-x)

    Args:
      chosen_mean_logps, rejected_mean_logps: `[B]`, log-probs averaged over the response's tokens.
      beta: > 0, scale of the averages.
      gamma: >= 0, target margin in logit units (the paper quotes gamma / beta too).
      label_smoothing: eps in [0, 0.5), probability that a preference was recorded the wrong way round; 0 as published.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> f"{losses.simpo_loss(np.array([-1.0]), np.array([-2.0]), beta=2.0, gamma=1.0)[0]:.4f}"
      '0.3133'

    Source: arXiv 2405.14734, Eq. 6; label smoothing as in TRL.
    """
    check_label_smoothing(label_smoothing)
    check_positive("beta", beta)
    check_not_negative("gamma", gamma)
    chosen, rejected = as_floats(chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    short = gamma - beta * (chosen - rejected)
    return (1 - label_smoothing) * jax.nn.softplus(short) + label_smoothing * jax.nn.softplus(-short)
