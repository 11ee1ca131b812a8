"""Reductions over the members of a set, along the last axis, that never read what the mask leaves out.

Replacing a bad value *after* a function has been applied to it keeps it out of the result but not out of the gradient
(0 * inf is NaN in the backward pass), so each helper replaces bad arguments first and results second.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def log_ratio(policy_logps: jax.Array, ref_logps: jax.Array, mask: jax.Array) -> jax.Array:
    """`log pi - log pi_ref` where the mask is True, 0 elsewhere."""
    return jnp.where(mask, policy_logps, 0.0) - jnp.where(mask, ref_logps, 0.0)


def scaled_logsumexp(z: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(m, s)` with `logsumexp over the mask of z = m + s`, m the largest z; both 0 where the mask selects nothing.

    Kept apart because the difference of two such sums needs the large parts subtracted from one another before the
    small parts are added: at |z| = 1e4 float32 resolves only 1e-3.

    Args:
      z: float32 `[..., K]`. mask: bool `[..., K]`, what to sum over.

    Returns:
      Two arrays float32 `[...]`; the gradient, softmax over the mask, flows through s.
    """
    some = jnp.any(mask, axis=-1)
    top = jnp.max(jnp.where(mask, z, -jnp.inf), axis=-1)
    # The sum does not depend on which m is taken out, so m needs no gradient.
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    terms = jnp.where(mask, jnp.exp(jnp.where(mask, z - top[..., None], 0.0)), 0.0)
    return top, jnp.log(jnp.where(some, jnp.sum(terms, axis=-1), 1.0))


def masked_log_softmax(z: jax.Array, mask: jax.Array) -> jax.Array:
    """Log-softmax over the mask `[..., K]`; 0 outside the mask."""
    top, rest = scaled_logsumexp(z, mask)
    return jnp.where(mask, (jnp.where(mask, z, 0.0) - top[..., None]) - rest[..., None], 0.0)


def set_contrast(z: jax.Array, preferred: jax.Array, others: jax.Array) -> jax.Array:
    """`logsumexp over preferred and others - logsumexp over preferred`, exactly 0 where either set is empty.

    Computed as `softplus(logsumexp over others - logsumexp over preferred)`, which keeps small losses exact.

    Args:
      z: float32 `[..., K]`. preferred, others: bool `[..., K]`, disjoint.

    Returns:
      float32 `[...]`.
    """
    both = jnp.any(preferred, axis=-1) & jnp.any(others, axis=-1)
    preferred_top, preferred_rest = scaled_logsumexp(z, preferred & both[..., None])
    others_top, others_rest = scaled_logsumexp(z, others & both[..., None])
    log_odds = (others_top - preferred_top) + (others_rest - preferred_rest)
    return jnp.where(both, jax.nn.softplus(log_odds), 0.0)
