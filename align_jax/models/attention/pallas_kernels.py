"""The bodies of the kernels of `align_jax.models.attention.pallas`: one pair of blocks, for some heads, at a time.

Tokens stand in the last axis, so that what belongs to a token (its runs of keys, the maximum and the sum of its softmax) is
a row, and so that logits are `[keys, tokens]`:

    s = k q + hidden,  p = exp(s - lse),  dv = p d_out^T,  ds = p (v d_out - delta),  dk = ds q^T,  dq = k^T ds

References: `work` in scalar memory, see `align_jax.models.attention.runs`; `spans` int32 `[2 runs, tokens]`; q, out, d_out
`[h, E, tokens]` of the program's heads; k, v `[hk, keys, E]`; lse and delta `[h, tokens]`; the rest float32 of the same shapes,
and `hidden` `[keys, tokens]`, kept on chip from one item of work to the next.
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


def forward(work, spans, q, k, v, out, lse, total, top, mass, hidden, *, cap=None):
    """Output and log-sum-exp of a block of tokens, over its blocks of keys: the softmax is kept up to its maximum so far."""
    item, starts, ends = _place(work)

    @pl.when(starts)
    def _():
        total[...], mass[...] = jnp.zeros_like(total), jnp.zeros_like(mass)
        top[...] = jnp.full_like(top, _NEVER)

    @pl.when(runs.kind_of(item) != runs.NOTHING)
    def _():
        _hide(hidden, spans, item, runs.other_block_of(item))
        for h, of_key in _heads(q, k):
            logits = soft_cap(_product(k[of_key], q[h], _NN), cap) + hidden[...]
            before, row = top[pl.ds(h, 1)], pl.ds(h, 1)
            now = jnp.maximum(before, logits.max(axis=0, keepdims=True))
            weights, kept = jnp.exp(logits - now), jnp.exp(before - now)
            top[row] = now
            mass[row] = kept * mass[row] + weights.sum(axis=0, keepdims=True)
            total[h] = kept * total[h] + _product(v[of_key], weights.astype(v.dtype), _TN)

    @pl.when(ends)
    def _():
        # Until a token saw its first key, hidden ones were its largest: their weights went with the maximum after it.
        seen = top[...] > _NEVER / 2
        share = jnp.where(seen, 1 / jnp.where(seen, mass[...], 1), 0)
        lse[...] = jnp.where(seen, top[...] + jnp.log(jnp.where(seen, mass[...], 1)), _UNSEEN)
        for h in range(out.shape[0]):
            out[h] = (total[h] * share[h : h + 1]).astype(out.dtype)


def backward_queries(work, spans, q, k, v, lse, delta, d_out, d_q, total, hidden, *, cap=None):
    """The gradient of a block of queries, over its blocks of keys."""
    item, starts, ends = _place(work)

    @pl.when(starts)
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when(runs.kind_of(item) != runs.NOTHING)
    def _():
        _hide(hidden, spans, item, runs.other_block_of(item))
        for h, of_key in _heads(q, k):
            _, d_logits = _weights(h, of_key, q, k, v, lse, delta, d_out, hidden, cap)
            total[h] += _product(k[of_key], d_logits, _TN)

    @pl.when(ends)
    def _():
        d_q[...] = total[...].astype(d_q.dtype)


def backward_keys(work, spans, q, k, v, lse, delta, d_out, d_k, d_v, total_k, total_v, hidden, *, cap=None):
    """The gradients of a block of keys and values, over the blocks of tokens that see it."""
    item, starts, ends = _place(work)

    @pl.when(starts)
    def _():
        total_k[...], total_v[...] = jnp.zeros_like(total_k), jnp.zeros_like(total_v)

    @pl.when(runs.kind_of(item) != runs.NOTHING)
    def _():
        _hide(hidden, spans, item, runs.block_of(item))
        for h, of_key in _heads(q, k):
            weights, d_logits = _weights(h, of_key, q, k, v, lse, delta, d_out, hidden, cap)
            total_v[of_key] += _product(weights, d_out[h], _NT)
            total_k[of_key] += _product(d_logits, q[h], _NT)

    @pl.when(ends)
    def _():
        d_k[...], d_v[...] = total_k[...].astype(d_k.dtype), total_v[...].astype(d_v.dtype)


def _place(work):
    """The item of work, whether it is the first of the block that it adds to, and whether it is the last."""
    shard, at, count = pl.program_id(0), pl.program_id(2), pl.num_programs(2)
    item = work[shard, at]
    before, after = work[shard, jnp.maximum(at - 1, 0)], work[shard, jnp.minimum(at + 1, count - 1)]
    starts = (at == 0) | (runs.block_of(before) != runs.block_of(item))
    ends = (at == count - 1) | (runs.block_of(after) != runs.block_of(item))
    return item, starts, ends


def _heads(q, k):
    """Query heads with the key head of each."""
    return [(h, h * k.shape[0] // q.shape[0]) for h in range(q.shape[0])]


def _hide(hidden, spans, item, key_block):
    """Writes what is added to logits: 0 where a token sees a key, a very negative number where not."""
    kind, first_key = runs.kind_of(item), key_block * hidden.shape[0]

    def inside(run):
        first, last = (spans[pl.ds(2 * run + i, 1)] - first_key for i in range(2))
        index = jax.lax.broadcasted_iota(jnp.int32, hidden.shape, 0)
        return (index >= first) & (index <= last)

    masks = {
        runs.ALL: lambda: True,
        runs.PROMPT: lambda: inside(0),
        runs.OWN: lambda: inside(1),
        runs.PARENT: lambda: inside(1) | inside(2),
    }
    for which, seen in masks.items():

        @pl.when(kind == which)
        def _(seen=seen):
            hidden[...] = jnp.where(seen(), jnp.zeros_like(hidden), _NEVER)


def _weights(h, of_key, q, k, v, lse, delta, d_out, hidden, cap):
    """The weights `[keys, tokens]` of a head and the gradient of its logits, in the type of the products that follow."""
    row = pl.ds(h, 1)
    logits = soft_cap(_product(k[of_key], q[h], _NN), cap)
    weights = jnp.exp(logits + hidden[...] - lse[row])
    d_logits = weights * (_product(v[of_key], d_out[h], _NN) - delta[row])
    if cap is not None:
        d_logits *= soft_cap_slope(logits, cap)
    return weights.astype(q.dtype), d_logits.astype(q.dtype)


def _product(a, b, over):
    return jax.lax.dot_general(a, b, over, preferred_element_type=jnp.float32, precision=precision(a.dtype))
