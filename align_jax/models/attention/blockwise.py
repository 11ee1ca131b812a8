"""Attention by XLA's products over rows that a mesh cuts: a block of queries at a time, over all keys that it may see.

Each device has the queries of its own positions and brings the keys of a row's other positions, and of its prompt's, together
(`align_jax.parallel.sequence`). What a query sees is three runs of keys, as for our own kernels
(`align_jax.models.attention.runs`), so that no array has the queries of a row by its keys; the backward pass computes each
block again.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from align_jax.models.attention.partition import over_mesh
from align_jax.models.attention.runs import part_of_devices, spans_of
from align_jax.models.attention.tokens import Tokens
from align_jax.models.ops import precision, soft_cap
from align_jax.models.remat import ATTENTION
from align_jax.parallel import sequence

_NEVER = -1e30  # below any real logit, yet finite: a query that sees nothing gets finite values, not NaN
_BLOCK_BYTES = 64 << 20  # of the logits of a block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSpans:
    """Visibility for rows that are cut.

    Attributes:
      spans: int32 `[D S, N, R / S, 6]`, the first and the last key of each run in turn among `[prompt row | row]`, of the
        positions that each of the S devices has.
      prompt_row: int32 `[D, N]`, each row's prompt row; None for rows without a prompt.
      parts: static; S.
    """

    spans: jax.Array
    prompt_row: jax.Array | None
    parts: int = dataclasses.field(metadata={"static": True})


def row_spans(
    tokens: Tokens, window: int | None, prompt: Tokens | None = None, prompt_row: jax.Array | None = None
) -> RowSpans:
    """The runs of keys that tokens see; arguments as of `visibility`."""
    before = 0 if prompt is None else prompt.segments.shape[-1]
    spans = spans_of(tokens, window, prompt, prompt_row, (0, before))
    parts = sequence.pieces()
    of_parts = jnp.stack([part_of_devices(x, parts) for run in spans for x in run], axis=-1)
    where = None if prompt is None else jnp.asarray(prompt_row)
    return RowSpans(of_parts.reshape(-1, *of_parts.shape[2:]), where, parts)


def attend_blockwise(q, k, v, seen: RowSpans, prefix_k=None, prefix_v=None, cap=None, sinks=None) -> jax.Array:
    """See `align_jax.models.attention.attend`."""
    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    keys, ids = ((k, v), ()) if prefix_k is None else ((k, v, prefix_k, prefix_v), (seen.prompt_row,))
    # Kept for the backward pass is what a device has, and not the keys that were brought together.
    run = jax.checkpoint(partial(_run, seen.parts, cap), prevent_cse=False)
    of_heads = () if sinks is None else (sinks,)
    return checkpoint_name(over_mesh(run, scaled, keys, ids, (seen.spans,), of_heads), ATTENTION)


def _run(parts, cap, q, *arrays):
    """Of one device: q `[D, N, T, H, E]`; keys, values; prompts' and `prompt_row` `[D, N]`, if any; spans `[D, N, T, 6]`; sinks
    `[H]`, if any."""
    sinks = arrays[-1] if arrays[-1].ndim == 1 else None
    *keys, spans = arrays if sinks is None else arrays[:-1]
    prompt_row = keys.pop() if len(keys) > 2 else None
    keys = [sequence.gathered(x, 2, parts) for x in keys]
    rows = q, *keys[:2], spans
    if prompt_row is None:
        return jax.vmap(lambda *row: jax.lax.map(lambda x: _of_row(cap, sinks, *x), row))(*rows)

    def of_shard(q, k, v, spans, prompt_k, prompt_v, prompt_row):
        def of_row(x):
            q, k, v, spans, m = x
            return _of_row(cap, sinks, q, jnp.concatenate([prompt_k[m], k]), jnp.concatenate([prompt_v[m], v]), spans)

        return jax.lax.map(of_row, (q, k, v, spans, prompt_row))

    return jax.vmap(of_shard)(*rows, *keys[2:], prompt_row)


def computed_pairs(length: int, before: int, parts: int, heads: int) -> int:
    """(query, key) pairs of a head that a device computes for its part of a row of a length.

    Args:
      before: of the prompt row. parts: S. heads: of a device.
    """
    length, before = (-(-x // (2 * parts)) * 2 * parts for x in (length, before))
    size, blocks = _blocks(length // parts, heads, before + length)
    return size * blocks * (before + length)


def _blocks(count: int, heads: int, keys: int) -> tuple[int, int]:
    """Queries of a block, and how many blocks so many queries are."""
    size = max(1, min(count, _BLOCK_BYTES // (4 * heads * keys)))
    return size, -(-count // size)


def _of_row(cap, sinks, q, k, v, spans):
    """A row's queries `[T, H, E]` over keys and values `[keys, Hk, E]`, spans `[T, 6]`, sinks `[H]` or None; like q."""
    count, heads = q.shape[:2]
    size, blocks = _blocks(count, heads, k.shape[0])
    # In float32 for what comes back: each block adds to it.
    keys = k.astype(jnp.float32), v.astype(jnp.float32)

    @partial(jax.checkpoint, prevent_cse=False)
    def of_block(block):
        q, spans = block
        return _of_queries(cap, sinks, q, *(x.astype(k.dtype) for x in keys), spans)

    def split(x):
        x = jnp.pad(x, ((0, blocks * size - count), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(blocks, size, *x.shape[1:])

    return jax.lax.map(of_block, (split(q), split(spans))).reshape(-1, *q.shape[1:])[:count]


def _of_queries(cap, sinks, q, k, v, spans):
    """Some queries `[t, H, E]`."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[2])
    logits = soft_cap(_product("tkge,ske->kgts", grouped, k), cap)
    index = jnp.arange(k.shape[0], dtype=jnp.int32)
    runs = [(spans[:, i, None] <= index) & (index <= spans[:, i + 1, None]) for i in range(0, spans.shape[1], 2)]
    logits = jnp.where(sum(runs) > 0, logits, _NEVER)
    top, sink = logits.max(axis=-1, keepdims=True), None
    if sinks is not None:
        sink = sinks.reshape(k.shape[1], -1, 1, 1)
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(top)
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1)
    if sink is not None:
        total += jnp.exp(sink - top)[..., 0]
    out = _product("kgts,ske->tkge", weights.astype(v.dtype), v)
    return (out / jnp.moveaxis(total, 2, 0)[..., None]).reshape(q.shape).astype(q.dtype)


def _product(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32, precision=precision(a.dtype))
