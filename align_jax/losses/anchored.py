"""Losses over pairs that move each response against the reference, not the pair's margin alone.

Throughout, `r_c` and `r_r` are the log-ratios `log pi - log pi_ref` of the chosen and the rejected response.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import check_positive
from align_jax.losses.ratios import log_ratios, rewards


def apo_zero_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
) -> jax.Array:
    """Anchored Preference Optimization, `zero`: chosen responses become more likely than at the reference, rejected ones less.

        L = 1 - sigmoid(beta r_c) + sigmoid(beta r_r)

    For chosen responses that are better than what the reference says by itself. The loss is 1 at the reference.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.apo_zero_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '0.7551'

    Source: arXiv 2408.06266, Eq. 7; TRL's `apo_zero`.
    """
    chosen, rejected = rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)


def apo_down_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
) -> jax.Array:
    """Anchored Preference Optimization, `down`: both responses become less likely, the rejected one more so.

        L = sigmoid(beta r_c) + 1 - sigmoid(beta (r_c - r_r))

    For chosen responses that are worse than what the reference says by itself. The loss is 1 at the reference.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.apo_down_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '0.8914'

    Source: arXiv 2408.06266, Eq. 8; TRL's `apo_down`.
    """
    chosen, rejected = rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    return jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected - chosen)


def bco_pair_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    delta: ArrayLike = 0.0,
) -> jax.Array:
    """Binary Classifier Optimization on pairs: a classifier of chosen and rejected responses whose logit is the reward.

        L = - log sigmoid(beta r_c - delta) - log sigmoid(-(beta r_r - delta))

    The loss is 2 ln 2 at the reference.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      delta: scalar, the reward that is taken for neither good nor bad; no gradient flows into it.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.bco_pair_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '0.9482'

    Source: arXiv 2404.04656, whose delta is a running mean of the rewards over steps; TRL's `bco_pair`, which has none.
    """
    chosen, rejected = rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    delta = jax.lax.stop_gradient(jnp.asarray(delta).astype(jnp.float32))
    if delta.ndim:
        raise ValueError(f"delta must be a scalar, one shift for the batch, got shape {delta.shape}")
    return jax.nn.softplus(delta - chosen) + jax.nn.softplus(rejected - delta)


def sppo_hard_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
) -> jax.Array:
    """Self-Play Preference Optimization with hard labels: log-ratios are regressed to finite targets.

        L = (r_c - 1 / (2 beta))^2 + (r_r + 1 / (2 beta))^2

    The probability to win is taken to be 1 for chosen and 0 for rejected responses. At the reference it is 1 / (2 beta^2).

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.sppo_hard_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '0.0000'

    Source: arXiv 2405.00675, Eq. 4.7 (with eta = 1 / beta); TRL's `sppo_hard`.
    """
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def nca_pair_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
) -> jax.Array:
    """NCA on pairs: a pair's responses are told from samples of the reference, so that likelihoods do not fall together.

        L = - log sigmoid(beta r_c) - 1/2 log sigmoid(-beta r_c) - 1/2 log sigmoid(-beta r_r)

    It is `nca_loss` of two responses with all of the soft target on the chosen one. The loss is 2 ln 2 at the reference.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.nca_pair_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '1.1982'

    Source: arXiv 2402.05369, the pairwise NCA; TRL's `nca_pair`.
    """
    chosen, rejected = rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    return jax.nn.softplus(-chosen) + (jax.nn.softplus(chosen) + jax.nn.softplus(rejected)) / 2
