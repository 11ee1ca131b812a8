"""The bodies of the kernels of `align_jax.models.attention.triton`: a tile of tokens or of keys, over its items of work.

    s = q k^T where a run of keys of the token has the key,  p = exp(s - lse),  dv = p^T d_out,
    ds = p (d_out v^T - delta),  dk = ds^T q,  dq = ds k

References: `work` int32 `[items]` of a shard, see `align_jax.models.attention.runs`, and `starts`, where each block's items
begin; `spans` int32 `[2 runs, tokens]`; q, out, d_out `[tokens, E]` and k, v `[keys, E]` of a head, those of a tile or all;
lse and delta float32 `[tokens]`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from align_jax.models.attention import runs
from align_jax.models.ops import precision, soft_cap, soft_cap_slope

_NEVER = -1e30  # below any real logit, and finite
_UNSEEN = 1e30  # the log-sum-exp of a token that sees nothing: all its weights are 0
_NN, _NT, _TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))


def forward(work, starts, spans, q, k, v, out, lse, *, block: int, cap: float | None = None):
    """Output and log-sum-exp of a tile of tokens: the softmax is kept up to its maximum so far."""
    tile, size = q.shape
    at = pl.program_id(2) * tile
    tokens, own = q[...], _runs(spans, at, tile)

    def add(key, carry):
        total, top, mass = carry
        logits = jnp.where(_seen(own, key, tile), soft_cap(_product(tokens, k[pl.ds(key, tile), :], _NT), cap), _NEVER)
        now = jnp.maximum(top, jnp.max(logits, axis=1))
        # Until a token saw its first key, hidden ones are its largest: they weigh nothing.
        weights = jnp.where(logits > _NEVER / 2, jnp.exp(logits - now[:, None]), 0)
        kept = jnp.exp(top - now)
        total = kept[:, None] * total + _product(weights.astype(v.dtype), v[pl.ds(key, tile), :], _NN)
        return total, now, kept * mass + jnp.sum(weights, axis=1)

    begin = jnp.zeros((tile, size), jnp.float32), jnp.full(tile, _NEVER, jnp.float32), jnp.zeros(tile, jnp.float32)
    total, top, mass = _over_work(work, starts, at // block, block, tile, add, begin)
    some = mass > 0
    safe = jnp.where(some, mass, 1)
    out[...] = jnp.where(some[:, None], total / safe[:, None], 0).astype(out.dtype)
    lse[...] = jnp.where(some, top + jnp.log(safe), _UNSEEN)


def backward_queries(work, starts, spans, q, k, v, lse, delta, d_out, d_q, *, block: int, cap: float | None = None):
    """The gradient of a tile of queries, over its keys."""
    tile = q.shape[0]
    at = pl.program_id(2) * tile
    rows = q[...], d_out[...], lse[...], delta[...]
    own = _runs(spans, at, tile)

    def add(key, total):
        keys = k[pl.ds(key, tile), :]
        _, d_logits = _weights(*rows, keys, v[pl.ds(key, tile), :], _seen(own, key, tile), cap)
        return total + _product(d_logits, keys, _NN)

    total = _over_work(work, starts, at // block, block, tile, add, jnp.zeros(q.shape, jnp.float32))
    d_q[...] = total.astype(d_q.dtype)


def backward_keys(work, starts, spans, q, k, v, lse, delta, d_out, d_k, d_v, *, block: int, cap: float | None = None):
    """The gradients of a tile of keys and values, over the tokens that see them, of every query head that reads them."""
    tile, size = k.shape
    at = pl.program_id(2) * tile
    keys, values = k[...], v[...]

    def add(token, carry):
        total_k, total_v = carry
        seen = _seen(_runs(spans, token, tile), at, tile)
        for h in range(q.shape[0]):
            here = pl.ds(token, tile)
            queries, grads = q[h, here, :], d_out[h, here, :]
            weights, d_logits = _weights(queries, grads, lse[h, here], delta[h, here], keys, values, seen, cap)
            total_k += _product(d_logits, queries, _TN)
            total_v += _product(weights, grads, _TN)
        return total_k, total_v

    begin = jnp.zeros((tile, size), jnp.float32), jnp.zeros((tile, size), jnp.float32)
    total_k, total_v = _over_work(work, starts, at // block, block, tile, add, begin)
    d_k[...], d_v[...] = total_k.astype(d_k.dtype), total_v.astype(d_v.dtype)


def _over_work(work, starts, number, block, tile, add, carry):
    """`add(first of a tile, carry)` for all tiles of the blocks that are read for block `number`."""

    def body(i, carry):
        first = runs.other_block_of(work[i]) * block
        for part in range(block // tile):
            carry = add(first + part * tile, carry)
        return carry

    return jax.lax.fori_loop(starts[number], starts[number + 1], body, carry)


def _runs(spans, at, tile):
    """First and last keys of the runs of a tile of tokens."""
    return [spans[i, pl.ds(at, tile)] for i in range(spans.shape[0])]


def _seen(own, key, tile):
    """Which of a tile of keys each token sees: bool `[tokens, keys]`."""
    index = key + jax.lax.broadcasted_iota(jnp.int32, (own[0].shape[0], tile), 1)
    inside = [(index >= first[:, None]) & (index <= last[:, None]) for first, last in zip(own[::2], own[1::2], strict=True)]
    return inside[0] | inside[1] | inside[2]


def _weights(q, d_out, lse, delta, k, v, seen, cap):
    """The weights `[tokens, keys]` and the gradient of the logits, in the type of the products that follow."""
    logits = soft_cap(_product(q, k, _NT), cap)
    weights = jnp.where(seen, jnp.exp(logits - lse[:, None]), 0)
    d_logits = weights * (_product(d_out, v, _NT) - delta[:, None])
    if cap is not None:
        d_logits *= soft_cap_slope(logits, cap)
    return weights.astype(q.dtype), d_logits.astype(q.dtype)


def _product(a, b, over):
    return jax.lax.dot_general(a, b, over, preferred_element_type=jnp.float32, precision=precision(a.dtype))
