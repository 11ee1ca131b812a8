"""Losses over pairs that answer DPO's liking for long responses.

Throughout, `r_c` and `r_r` are the log-ratios `log pi - log pi_ref` of the chosen and the rejected response, `h = r_c - r_r`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, check_between, check_not_negative, check_positive, check_same_shape
from align_jax.losses.pairs import dpo_loss
from align_jax.losses.ratios import log_ratios, logit


def dpo_norm_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    *,
    beta: float,
) -> jax.Array:
    """Length-normalized DPO (LN-DPO): log-ratios per token in place of sums.

        L = - log sigmoid(beta [r_c / |y_c| - r_r / |y_r|])

    The loss is ln 2 at the reference.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      chosen_lengths, rejected_lengths: `[B]`, tokens of the responses; no gradient flows into them.
      beta: > 0, strength of the pull to the reference.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or beta is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.dpo_norm_loss(chosen, rejected, ref, ref, np.array([4]), np.array([8]), beta=0.5)[0]:.4f}"
      '0.6038'

    Source: arXiv 2411.15124 (Tulu 3); arXiv 2407.15229 (LN-DPO); TRL's `sigmoid_norm`.
    """
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    check_same_shape(chosen_logps=chosen, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    tokens = [jnp.maximum(x, 1) for x in as_floats(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)]
    return jax.nn.softplus(-beta * (chosen / tokens[0] - rejected / tokens[1]))


def r_dpo_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    *,
    beta: float,
    alpha: float,
) -> jax.Array:
    """R-DPO: DPO with a price on length, so that a longer chosen response is no reason to be longer.

        L = - log sigmoid(beta h + alpha (|y_c| - |y_r|))

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      chosen_lengths, rejected_lengths: `[B]`, tokens of the responses; no gradient flows into them.
      beta: > 0, strength of the pull to the reference.
      alpha: >= 0, logit units per token of difference in length; 0 is DPO.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.r_dpo_loss(chosen, rejected, ref, ref, np.array([4]), np.array([8]), beta=0.5, alpha=0.1)[0]:.4f}"
      '0.4375'

    Source: arXiv 2403.19159.
    """
    check_not_negative("alpha", alpha)
    x = logit(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    check_same_shape(chosen_logps=x, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    chosen, rejected = as_floats(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    return jax.nn.softplus(-x - alpha * (chosen - rejected))


def ld_dpo_loss(
    chosen_parts: ArrayLike,
    rejected_parts: ArrayLike,
    ref_chosen_parts: ArrayLike,
    ref_rejected_parts: ArrayLike,
    *,
    beta: float,
    alpha: float,
) -> jax.Array:
    """Length-desensitized DPO: what the longer response has beyond the length of the shorter one counts less.

        log pi(y) = sum_{t <= m} log pi(y_t) + alpha sum_{t > m} log pi(y_t)         m = min(|y_c|, |y_r|)
        L         = the DPO loss of these

    Args:
      chosen_parts, rejected_parts: `[B, 2]`, log-probs summed over the first m tokens of the response, and over the others (0
        where there are none).
      ref_chosen_parts, ref_rejected_parts: `[B, 2]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      alpha: in [0, 1]; 1 is DPO, 0 leaves the others out.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, the last axis is not 2, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([[-4.0, 0.0]]), np.array([[-4.0, -2.0]]), np.array([[-4.0, -1.0]])
      >>> f"{losses.ld_dpo_loss(chosen, rejected, ref * [1, 0], ref, beta=0.5, alpha=0.5)[0]:.4f}"
      '0.5759'

    Source: arXiv 2409.06411; TRL's `ld_alpha`.
    """
    check_between("alpha", alpha, 0, 1, closed_low=True, closed_high=True)
    parts = as_floats(
        chosen_parts=chosen_parts,
        rejected_parts=rejected_parts,
        ref_chosen_parts=ref_chosen_parts,
        ref_rejected_parts=ref_rejected_parts,
    )
    if parts[0].shape[-1:] != (2,):
        raise ValueError(f"chosen_parts must have a last axis of 2 (shared tokens, the others), got shape {parts[0].shape}")
    return dpo_loss(*(part[..., 0] + alpha * part[..., 1] for part in parts), beta=beta)
