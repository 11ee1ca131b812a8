"""Attention by XLA's matrix products, a few rows at a time: every platform, every batch.

Axes as in `align_jax.batch`; H query heads, Hk key/value heads, E the head size, S = P + R the keys that a row may see. The
prompt's keys stand before the row's own, and a block of rows is computed at a time: its logits stay in the cache, and only the
output and the log-sum-exp of each query are kept. The backward pass computes the weights again from them (FlashAttention,
arXiv 2205.14135):

    p = exp(q k - lse),  dv = p^T do,  ds = p (do v^T - sum(o do)),  dq = ds k,  dk = ds^T q
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from align_jax.models.attention.visible import Masks

_NEVER = -1e30  # below any real logit, yet finite: a query that sees nothing gets finite values, not NaN
_BLOCK_BYTES = {"cpu": 4 << 20}  # what fits the cache; elsewhere large products matter more
_OTHER_BLOCK_BYTES = 256 << 20


def attend_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masks: Masks,
    prefix_k: jax.Array | None = None,
    prefix_v: jax.Array | None = None,
) -> jax.Array:
    """See `align_jax.models.attention.attend`."""
    seen = masks.own
    if prefix_k is not None:
        k, v = _joined(prefix_k, k, masks), _joined(prefix_v, v, masks)
        seen = jnp.concatenate([masks.prefix, masks.own], axis=-1)
    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    rows = tuple(jnp.moveaxis(x, 1, 0) for x in (_grouped(scaled, k.shape[-2]), _heads_first(k), _heads_first(v), seen))
    out = jnp.moveaxis(_attend_rows(*rows), 0, 1)
    return jnp.moveaxis(out, -2, 2).reshape(q.shape)


def _joined(prefix: jax.Array, own: jax.Array, masks: Masks) -> jax.Array:
    """Each row's prompt keys and its own, `[D, N, S, Hk, E]`."""
    shards, prompts = prefix.shape[:2]
    if masks.prompt_row is not None:
        mine = jax.vmap(lambda rows, index: rows[index])(prefix, masks.prompt_row)
    else:
        spread = (shards, prompts, own.shape[1] // prompts, *prefix.shape[2:])
        mine = jnp.broadcast_to(prefix[:, :, None], spread).reshape(shards, own.shape[1], *prefix.shape[2:])
    return jnp.concatenate([mine, own], axis=2)


def _grouped(q: jax.Array, kv_heads: int) -> jax.Array:
    """Queries by the key/value head that they share: `[D, N, R, H, E]` -> `[D, N, Hk, g, R, E]`."""
    split = q.reshape(*q.shape[:-2], kv_heads, q.shape[-2] // kv_heads, q.shape[-1])
    return jnp.moveaxis(split, 2, -2)


def _heads_first(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 2, 3)


def _block_rows(q: jax.Array, keys: int) -> int:
    """How many of the N rows are computed at a time: as many as keep the logits in the block's bytes, and divide N."""
    rows, row_bytes = q.shape[0], 4 * keys * q.size // (q.shape[0] * q.shape[-1])
    most = max(1, _BLOCK_BYTES.get(jax.default_backend(), _OTHER_BLOCK_BYTES) // max(row_bytes, 1))
    return max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)


def _over_blocks(function, q: jax.Array, keys: int, *arrays: jax.Array):
    size = _block_rows(q, keys)
    if size == q.shape[0]:
        return function(*arrays)
    split = tuple(x.reshape(x.shape[0] // size, size, *x.shape[1:]) for x in arrays)
    out = jax.lax.map(lambda block: function(*block), split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


@jax.custom_vjp
def _attend_rows(q, k, v, seen):
    """q `[N, D, Hk, g, R, E]`, k and v `[N, D, Hk, S, E]`, seen bool `[N, D, R, S]` -> like q."""
    return _forward(q, k, v, seen)[0]


def _forward(q, k, v, seen):
    out, lse = _over_blocks(_forward_block, q, k.shape[-2], q, k, v, seen)
    return out, (q, k, v, seen, out, lse)


def _backward(saved, d_out):
    q, k = saved[:2]
    return (*_over_blocks(_backward_block, q, k.shape[-2], *saved, d_out), None)


_attend_rows.defvjp(_forward, _backward)


def _logits(q, k, seen):
    return jnp.where(seen[:, :, None, None], _product("ndhgre,ndhse->ndhgrs", q, k), _NEVER)


def _forward_block(q, k, v, seen):
    logits = _logits(q, k, seen)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = _product("ndhgrs,ndhse->ndhgre", weights.astype(v.dtype), v) / total
    return out.astype(q.dtype), (top + jnp.log(total))[..., 0]


def _backward_block(q, k, v, seen, out, lse, d_out):
    weights = jnp.exp(_logits(q, k, seen) - lse[..., None])
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    d_logits = (weights * (_product("ndhgre,ndhse->ndhgrs", d_out, v) - delta)).astype(q.dtype)
    dv = _product("ndhgrs,ndhgre->ndhse", weights.astype(v.dtype), d_out)
    dq = _product("ndhgrs,ndhse->ndhgre", d_logits, k)
    dk = _product("ndhgrs,ndhgre->ndhse", d_logits, q)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32, precision=precision(a.dtype))


def precision(dtype) -> str | None:
    """Matrix-product precision: float32 means float32, also where the hardware would round its inputs (TF32, bf16 passes)."""
    return "highest" if jnp.dtype(dtype) == jnp.float32 else None
