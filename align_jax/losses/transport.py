"""Alignment by optimal transport: distributions over a batch are compared, by their quantiles, and not pair by pair.

Sorting is over the last axis: a value depends on all pairs of the batch, unlike that of every other loss. Of one device's part
of a batch, as under `shard_map`, that part is sorted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import (
    as_floats,
    as_mask,
    check_label_smoothing,
    check_positive,
    check_same_shape,
    check_set_axis,
)
from align_jax.losses.ratios import log_ratios


def aot_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """Alignment by optimal transport, paired: the policy's margins shall exceed the reference's, quantile by quantile.

        d_(i) = [log pi(y_c) - log pi(y_r)]_(i) - [log pi_ref(y_c) - log pi_ref(y_r)]_(i)      (i): the i-th smallest of a batch
        L_i   = - (1 - eps) log sigmoid(beta d_(i)) - eps log sigmoid(-beta d_(i))

    Of a single pair, and at the reference, it is DPO.

    Args:
      chosen_logps, rejected_logps: `[..., B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[..., B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      label_smoothing: eps in [0, 0.5), probability that a preference was recorded the wrong way round.
      mask: bool `[..., B]`, True for a pair that exists; None for all.

    Returns:
      float32 `[..., B]`, at the place of the policy's pair; 0 where there is none.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.aot_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '0.3133'

    Source: arXiv 2406.05882 (AOT); TRL's `aot`, which sorts a device's batch and takes no mask.
    """
    logps = {
        "chosen_logps": chosen_logps,
        "rejected_logps": rejected_logps,
        "ref_chosen_logps": ref_chosen_logps,
        "ref_rejected_logps": ref_rejected_logps,
    }
    chosen, rejected, ref_chosen, ref_rejected = as_floats(**logps)
    options = {"beta": beta, "label_smoothing": label_smoothing, "mask": mask}
    return _above_quantiles(chosen - rejected, ref_chosen - ref_rejected, **options)


def aot_unpaired_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """Alignment by optimal transport, unpaired: chosen responses' rewards shall exceed rejected ones', quantile by quantile.

        d_(i) = [r_c]_(i) - [r_r]_(i)          (i): the i-th smallest of the batch;  r = log pi - log pi_ref
        L_i   = - (1 - eps) log sigmoid(beta d_(i)) - eps log sigmoid(-beta d_(i))

    Of a single pair it is DPO. Which rejected response belongs to which chosen one is not used.

    Args:
      chosen_logps, rejected_logps: `[..., B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[..., B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      label_smoothing: eps in [0, 0.5), probability that a preference was recorded the wrong way round.
      mask: bool `[..., B]`, True for a pair that exists; None for all.

    Returns:
      float32 `[..., B]`, at the place of the chosen response; 0 where there is none.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.aot_unpaired_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '0.3133'

    Source: arXiv 2406.05882 (AOT); TRL's `aot_unpaired`, which sorts a device's batch and takes no mask.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return _above_quantiles(chosen, rejected, beta=beta, label_smoothing=label_smoothing, mask=mask)


def _above_quantiles(values: jax.Array, others: jax.Array, *, beta, label_smoothing, mask) -> jax.Array:
    """The logistic loss of each value against the other one of the same rank, `[..., B]`."""
    check_positive("beta", beta)
    check_label_smoothing(label_smoothing)
    check_set_axis("chosen_logps", values)
    mask = jnp.ones(values.shape, bool) if mask is None else as_mask(mask)
    check_same_shape(chosen_logps=values, mask=mask)
    # What does not exist is behind all that does, in both orders.
    ordered = jnp.sort(jnp.where(mask, others, jnp.inf), axis=-1)
    ranks = jnp.argsort(jnp.argsort(jnp.where(mask, values, jnp.inf), axis=-1), axis=-1)
    same_rank = jnp.where(mask, jnp.take_along_axis(ordered, ranks, axis=-1), 0.0)
    x = beta * (jnp.where(mask, values, 0.0) - same_rank)
    losses = (1 - label_smoothing) * jax.nn.softplus(-x) + label_smoothing * jax.nn.softplus(x)
    return jnp.where(mask, losses, 0.0)
