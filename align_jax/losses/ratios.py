"""Log-ratios of pairs, which all losses with a reference begin with."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, check_positive


def log_ratios(
    chosen_logps: ArrayLike, rejected_logps: ArrayLike, ref_chosen_logps: ArrayLike, ref_rejected_logps: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """`log pi - log pi_ref` of the chosen and of the rejected responses, float32; ValueError where the shapes differ."""
    chosen, rejected, ref_chosen, ref_rejected = as_floats(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    return chosen - ref_chosen, rejected - ref_rejected


def margin(*logps: ArrayLike) -> jax.Array:
    """`h`, the chosen response's log-ratio minus the rejected one's; the arguments of `log_ratios`."""
    chosen, rejected = log_ratios(*logps)
    return chosen - rejected


def rewards(*logps: ArrayLike, beta: float) -> tuple[jax.Array, jax.Array]:
    """`beta r` of the chosen and of the rejected responses; ValueError where beta is out of range."""
    check_positive("beta", beta)
    chosen, rejected = log_ratios(*logps)
    return beta * chosen, beta * rejected


def logit(*logps: ArrayLike, beta: float) -> jax.Array:
    """`beta h`; ValueError where beta is out of range."""
    check_positive("beta", beta)
    return beta * margin(*logps)
