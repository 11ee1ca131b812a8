"""What `align_jax.models.attention.cudnn_kernels` computes, by plain matrix products, where there is no GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def forward(q, k, v, q_lengths, k_lengths, *, causal: bool, window: int | None = None) -> tuple[jax.Array, jax.Array]:
    """See `cudnn_kernels.forward`; padded queries get NaN, so that whatever reads them shows."""
    logits = _logits(q, k, q_lengths, k_lengths, causal, window)
    top = jax.nn.logsumexp(logits, axis=-1)
    out = jnp.einsum("bhgts,bshe->bthge", jnp.exp(logits - top[..., None]), v).reshape(q.shape)
    real = (jnp.arange(q.shape[1]) < q_lengths[:, None])[..., None]
    top = jnp.moveaxis(top.reshape(q.shape[0], q.shape[2], q.shape[1]), 1, 2)
    return jnp.where(real[..., None], out, jnp.nan).astype(q.dtype), jnp.where(real, top, jnp.nan)


def backward(q, k, v, q_lengths, k_lengths, out, top, grad, *, causal: bool, window: int | None = None):
    """See `cudnn_kernels.backward`."""
    groups = (q.shape[0], q.shape[1], k.shape[2], -1, q.shape[3])
    top = jnp.einsum("bthg->bhgt", top.reshape(groups[:-1]))
    p = jnp.exp(_logits(q, k, q_lengths, k_lengths, causal, window) - top[..., None])
    p = jnp.where(jnp.isfinite(p), p, 0.0)
    grad, out = (x.astype(jnp.float32).reshape(groups) for x in (grad, out))
    shift = jnp.einsum("bthge,bthge->bhgt", grad, out)[..., None]
    dlogits = p * (jnp.einsum("bthge,bshe->bhgts", grad, v) - shift) * q.shape[-1] ** -0.5
    dq = jnp.einsum("bhgts,bshe->bthge", dlogits, k).reshape(q.shape)
    dk = jnp.einsum("bhgts,bthge->bshe", dlogits, q.reshape(groups))
    dv = jnp.einsum("bhgts,bthge->bshe", p, grad)
    return tuple(x.astype(like.dtype) for x, like in zip((dq, dk, dv), (q, k, v), strict=True))


def _logits(q, k, q_lengths, k_lengths, causal, window):
    grouped = q.reshape(q.shape[0], q.shape[1], k.shape[2], -1, q.shape[3])
    logits = jnp.einsum("bthge,bshe->bhgts", grouped, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    t, s = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None, :]
    seen = (t < q_lengths[:, None, None]) & (s < k_lengths[:, None, None])
    if causal:
        seen &= s <= t
    if window is not None:
        seen &= t - s < window
    return jnp.where(seen[:, None, None], logits, -jnp.inf)
