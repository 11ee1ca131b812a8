"""Attention by XLA's matrix products: every platform, every batch.

The rows that share a prompt are one product with its keys, and each row is one with its own; a softmax joins the two. A block
of them is computed at a time, so that logits stay in the cache, and only the output and the log-sum-exp of each query are
kept. The backward pass computes the weights again from them (FlashAttention, arXiv 2205.14135), for both kinds of keys:

    w = exp(q k - lse),  dv = w^T do,  dl = w (do v^T - sum(o do)),  dq = dl k,  dk = dl^T q

With a soft cap c, `c tanh(q k / c)` stands in place of `q k`, and dl has its slope as a factor. A sink s of a head is one more
logit of its softmax, without a key: it is in lse, and `ds = -sum_queries exp(s - lse) sum(o do)`.

Axes as in `align_jax.batch`; also H query heads, Hk key/value heads, g = H / Hk, E the head size, and here
B sets of C rows with one prompt each (N = B C), X = R g the queries of a row that share a key/value head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from align_jax.models.attention.visible import Masks
from align_jax.models.ops import precision, soft_cap, soft_cap_slope
from align_jax.models.remat import ATTENTION

_NEVER = -1e30  # below any real logit, yet finite: a query that sees nothing gets finite values, not NaN
_BLOCK_BYTES = {"cpu": 4 << 20}  # what fits the cache; elsewhere large products matter more
_OTHER_BLOCK_BYTES = 256 << 20
_CHUNK, _MOST_CHUNKS = 64, 4  # queries at a time: the later half sees keys that the earlier one does not


def attend_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masks: Masks,
    prefix_k: jax.Array | None = None,
    prefix_v: jax.Array | None = None,
    cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """See `align_jax.models.attention.attend`."""
    shards, count, length, heads, size = q.shape
    keys = length + (0 if prefix_k is None else prefix_k.shape[2])
    shared = 1 if prefix_k is None or masks.prompt_row is not None else count // prefix_k.shape[1]
    most = max(1, _block_bytes() // (4 * shards * heads * length * keys))
    rows = _largest_divisor(shared, most)
    sets = count // rows

    def by_set(x: jax.Array) -> jax.Array:
        """`[D, N, R, Hk * g, E]` -> `[B, D, Hk, C, R g, E]`."""
        kv_heads = k.shape[-2]
        split = x.reshape(shards, sets, rows, length, kv_heads, x.shape[3] // kv_heads, size)
        return split.transpose(1, 0, 4, 2, 3, 5, 6).reshape(sets, shards, kv_heads, rows, -1, size)

    def masks_by_set(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(shards, sets, rows, length, x.shape[-1]), 0, 1)

    scaled = q * jnp.asarray(size**-0.5, q.dtype)
    prompt = None
    if prefix_k is not None:
        prompt = _Prompt(jnp.swapaxes(prefix_k, 2, 3), jnp.swapaxes(prefix_v, 2, 3), masks_by_set(masks.prefix))
    own = _Own(by_set(k), by_set(v), masks_by_set(masks.own))
    how = _How(_largest_divisor(sets, max(1, most // rows)), cap)
    of_keys = None if sinks is None else sinks.reshape(k.shape[-2], -1)
    out = _attend(how, by_set(scaled), own, prompt, masks.prompt_row, of_keys)
    split = out.reshape(sets, shards, k.shape[-2], rows, length, -1, size)
    return split.transpose(1, 0, 3, 4, 2, 5, 6).reshape(q.shape)


class _How(NamedTuple):
    """How many sets are computed at a time, and the soft cap of logits, None for none."""

    block: int
    cap: float | None


class _Own(NamedTuple):
    """The rows' own keys and values `[B, D, Hk, C, R, E]`, and what is visible of them, bool `[B, D, C, R, R]`."""

    k: jax.Array
    v: jax.Array
    seen: jax.Array

    def of_queries(self, start: int, end: int) -> _Own:
        """What the queries from `start` to `end` may see: nothing after themselves."""
        return _Own(self.k[..., :end, :], self.v[..., :end, :], self.seen[..., start:end, :end])


class _Prompt(NamedTuple):
    """The prompts' keys and values `[D, M, Hk, P, E]` (of a block of sets `[B, D, Hk, P, E]`), and bool `[B, D, C, R, P]`."""

    k: jax.Array
    v: jax.Array
    seen: jax.Array

    def of_queries(self, start: int, end: int) -> _Prompt:
        """What the queries from `start` to `end` see."""
        return self._replace(seen=self.seen[..., start:end, :])


def _block_bytes() -> int:
    return _BLOCK_BYTES.get(jax.default_backend(), _OTHER_BLOCK_BYTES)


def _largest_divisor(n: int, most: int) -> int:
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _of_sets(x: jax.Array, prompt_row: jax.Array | None, sets: int) -> jax.Array:
    """Each set's prompt: `[D, M, ...]` -> `[B, D, ...]`."""
    if prompt_row is None:
        return jnp.repeat(jnp.swapaxes(x, 0, 1), sets // x.shape[1], axis=0)
    return jax.vmap(lambda rows, index: rows[index], out_axes=1)(x, prompt_row)


def _over_blocks(function, size: int, arrays):
    sets = jax.tree.leaves(arrays)[0].shape[0]
    if size == sets:
        return function(arrays)
    split = jax.tree.map(lambda x: x.reshape(sets // size, size, *x.shape[1:]), arrays)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(function, split))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: _How, q, own: _Own, prompt: _Prompt | None, prompt_row, sinks) -> jax.Array:
    """q `[B, D, Hk, C, X, E]` -> like q, some sets at a time; sinks float32 `[Hk, g]` or None.

    With JAX's derivative the step takes 1.05 times the processor time and 1.28 times the temporaries on a CPU
    (configs/bench-cpu.yaml).
    """
    return _forward(how, q, own, prompt, prompt_row, sinks)[0]


def _forward(how, q, own, prompt, prompt_row, sinks):
    of_sets = _expanded(prompt, prompt_row, q.shape[0])
    found = _over_blocks(partial(_forward_block, how.cap, sinks), how.block, (q, own, of_sets))
    out, lse = (checkpoint_name(x, ATTENTION) for x in found)
    return out, (q, own, prompt, prompt_row, sinks, out, lse)


def _backward(how, saved, d_out):
    q, own, prompt, prompt_row, sinks, out, lse = saved
    of_sets = _expanded(prompt, prompt_row, q.shape[0])
    d_q, d_own, d_prompt = _over_blocks(partial(_backward_block, how.cap), how.block, (q, own, of_sets, out, lse, d_out))
    if prompt is not None:
        _, collect = jax.vjp(lambda *kv: tuple(_of_sets(x, prompt_row, q.shape[0]) for x in kv), prompt.k, prompt.v)
        d_prompt = _Prompt(*collect(d_prompt), None)
    return d_q, _Own(*d_own, None), d_prompt, None, _sink_gradient(sinks, out, lse, d_out)


def _sink_gradient(sinks, out, lse, d_out):
    if sinks is None:
        return None
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    each = -jnp.exp(_of_queries(sinks, lse.shape[4])[..., 0] - lse) * delta
    return jnp.sum(each.reshape(*each.shape[:4], -1, sinks.shape[1]), axis=(0, 1, 3, 4))


def _of_queries(sinks, count):
    """`[Hk, g]` -> `[Hk, 1, X, 1]`, the sink of each of so many queries."""
    return jnp.tile(sinks, (1, count // sinks.shape[1]))[:, None, :, None]


_attend.defvjp(_forward, _backward)


def _expanded(prompt: _Prompt | None, prompt_row: jax.Array | None, sets: int) -> _Prompt | None:
    if prompt is None:
        return None
    return _Prompt(*(_of_sets(x, prompt_row, sets) for x in (prompt.k, prompt.v)), prompt.seen)


def _logits(q: jax.Array, keys: _Own | _Prompt, cap: float | None) -> jax.Array:
    """float32 `[B, D, Hk, C, X, keys]`."""
    products = _product("bdhcxe,bdhcse->bdhcxs", q, keys.k) if isinstance(keys, _Own) else _with_prompt(q, keys.k, "xe,se->xs")
    return _where_seen(soft_cap(products, cap), keys.seen, _NEVER)


def _where_seen(x: jax.Array, seen: jax.Array, otherwise: float) -> jax.Array:
    """x `[B, D, Hk, C, R g, S]` where seen `[B, D, C, R, S]`."""
    split = x.reshape(*x.shape[:4], seen.shape[3], -1, x.shape[-1])
    return jnp.where(seen[:, :, None, :, :, None], split, otherwise).reshape(x.shape)


def _with_prompt(rows: jax.Array, keys: jax.Array, spec: str) -> jax.Array:
    """A product of `[B, D, Hk, C, X, .]` with a prompt's `[B, D, Hk, P, .]`: all rows of a set at once."""
    a, b, out = (f"bdh{term}" for term in spec.replace("->", ",").split(","))
    flat = rows.reshape(*rows.shape[:3], -1, rows.shape[-1])
    return _product(f"{a},{b}->{out}", flat, keys).reshape(*rows.shape[:-1], -1)


def _summed_over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[B, D, Hk, C, X, P]` and `[B, D, Hk, C, X, E]` -> `[B, D, Hk, P, E]`."""
    flat = (x.reshape(*x.shape[:3], -1, x.shape[-1]) for x in (a, b))
    return _product("bdhxs,bdhxe->bdhse", *flat)


def _query_chunks(inputs) -> Iterator[tuple[slice, _Own, _Prompt | None]]:
    """Parts of the queries, since early ones see few keys: their place along X, and what they see."""
    q, own, prompt = inputs
    length = own.seen.shape[3]
    shared = q.shape[4] // length
    for start, end in itertools.pairwise(_bounds(length)):
        of_prompt = None if prompt is None else prompt.of_queries(start, end)
        yield slice(start * shared, end * shared), own.of_queries(start, end), of_prompt


def _bounds(length: int) -> list[int]:
    count = min(_MOST_CHUNKS, max(1, length // _CHUNK))
    return [length * i // count for i in range(count + 1)]


def computed_pairs(length: int, before: int = 0) -> int:
    """(query, key) pairs that a head computes for a row of a length, after a prompt row of the length `before`."""
    return sum((end - start) * (end + before) for start, end in itertools.pairwise(_bounds(length)))


def _forward_block(cap, sinks, inputs):
    q = inputs[0]
    parts = [_forward_queries(cap, sinks, q[..., x, :], own, prompt) for x, own, prompt in _query_chunks(inputs)]
    return tuple(jnp.concatenate(part, axis=4) for part in zip(*parts, strict=True))


def _forward_queries(cap, sinks, q, own: _Own, prompt: _Prompt | None):
    parts = [_logits(q, keys, cap) for keys in (own, prompt) if keys is not None]
    top = parts[0].max(axis=-1, keepdims=True)
    for part in parts[1:]:
        top = jnp.maximum(top, part.max(axis=-1, keepdims=True))
    if sinks is not None:
        top = jnp.maximum(top, _of_queries(sinks, q.shape[4]))
    weights = [jnp.exp(part - top) for part in parts]
    total = sum(w.sum(axis=-1, keepdims=True) for w in weights)
    if sinks is not None:
        total += jnp.exp(_of_queries(sinks, q.shape[4]) - top)
    out = _product("bdhcxs,bdhcse->bdhcxe", weights[0].astype(own.v.dtype), own.v)
    if prompt is not None:
        out += _with_prompt(weights[1].astype(prompt.v.dtype), prompt.v, "xs,se->xe")
    return (out / total).astype(q.dtype), (top + jnp.log(total))[..., 0]


def _backward_block(cap, inputs):
    q, own, prompt, out, lse, d_out = inputs
    d_q, d_own, d_prompt = [], None, None
    for x, mine, of_prompt in _query_chunks((q, own, prompt)):
        rows = (q[..., x, :], out[..., x, :], lse[..., x], d_out[..., x, :])
        part, more_own, more_prompt = _backward_queries(cap, *rows, mine, of_prompt)
        d_q.append(part)
        d_own = _longer(d_own, more_own)
        d_prompt = more_prompt if d_prompt is None else jax.tree.map(jnp.add, d_prompt, more_prompt)
    kept = q.dtype
    d_prompt = jax.tree.map(lambda d: d.astype(kept), d_prompt)
    return jnp.concatenate(d_q, axis=4), tuple(d.astype(kept) for d in d_own), d_prompt


def _longer(total, more):
    """Sums of gradients for the first keys and for the first few more."""
    if total is None:
        return more
    missing = more[0].shape[4] - total[0].shape[4]
    return tuple(jnp.pad(t, [*[(0, 0)] * 4, (0, missing), (0, 0)]) + m for t, m in zip(total, more, strict=True))


def _backward_queries(cap, q, out, lse, d_out, own: _Own, prompt: _Prompt | None):
    """Gradients of some queries; those of keys and values are float32, to be summed."""
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)

    def weights_of(keys, d_weights):
        logits = _logits(q, keys, cap)
        weights = jnp.exp(logits - lse[..., None])
        d_logits = weights * (d_weights - delta)
        if cap is not None:  # what is not seen has weight 0, whatever its slope
            d_logits *= jnp.where(logits > _NEVER / 2, soft_cap_slope(logits, cap), 0)
        return weights.astype(q.dtype), d_logits.astype(q.dtype)

    weights, d_logits = weights_of(own, _product("bdhcxe,bdhcse->bdhcxs", d_out, own.v))
    d_q = _product("bdhcxs,bdhcse->bdhcxe", d_logits, own.k)
    d_own = tuple(_product("bdhcxs,bdhcxe->bdhcse", *pair) for pair in ((d_logits, q), (weights, d_out)))
    if prompt is None:
        return d_q.astype(q.dtype), d_own, None
    weights, d_logits = weights_of(prompt, _with_prompt(d_out, prompt.v, "xe,se->xs"))
    d_q += _with_prompt(d_logits, prompt.k, "xs,se->xe")
    d_prompt = tuple(_summed_over_rows(*pair) for pair in ((d_logits, q), (weights, d_out)))
    return d_q.astype(q.dtype), d_own, d_prompt


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32, precision=precision(a.dtype))
