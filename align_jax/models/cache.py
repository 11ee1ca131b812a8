"""Decoding with a cache of keys and values: prompts computed once for all their samples, and a ring of own tokens.

Axes as in `align_jax.batch`, N rows per shard in M slots of C rows each, one sample per row; also S the prompts that a slot
holds at one time, P their longest length, T the columns of the ring. The C rows of a slot attend to its prompts in place:
no key of a prompt is ever copied for a sample.

At clock t every row writes its key at column `t mod T`, wherever the row stands in its text: one slice is written for the
whole batch. A row that has made n steps finds the key of d steps ago, d = 0 .. n, at column `(t - d) mod T`; rows that
start later, in the place of finished ones, need nothing cleared. T is at least the most tokens that a row generates, or
larger than the clock: a ring may start short and grow.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from align_jax.models.attention import Tokens, visibility_by_kind
from align_jax.models.decoder import Decoder, Inputs
from align_jax.models.kinds import kinds_of
from align_jax.models.ops import precision, soft_cap
from align_jax.parallel.axes import constrain, parts

_WIDTH = 32  # heads narrower than this share products: many tiny products cost more than the zeros in larger ones
_NEVER = -1e30  # below any real logit, yet finite: what is not visible gets weight 0, not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values, in the model's compute type: L arrays of each, because a slice of one large array is a copy.

    Attributes:
      prompt_k, prompt_v: `[D, M, Hk, E, S, P]` and `[D, M, Hk, S, P, E]`, the prompts without their last tokens.
      k, v: `[D * N, G, m E, T]` and `[D * N, G, T, m E]`, the ring: the prompt's last token and what was generated after
        it. m heads stand side by side, Hk = G m; the axis G is left out where it is 1, because XLA on the CPU copies the
        whole ring to drop it.
    """

    prompt_k: tuple[jax.Array, ...]
    prompt_v: tuple[jax.Array, ...]
    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]

    @property
    def length(self) -> int:
        """T."""
        return self.k[0].shape[-1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeRows:
    """Where the rows stand: int32 `[D, N]` each, but `lengths`.

    Attributes:
      tokens: the next input. steps: steps made so far; 0 is a row whose input is the last token of its prompt.
      prompts: which of the slot's S prompts the row continues.
      lengths: int32 `[D, M, S]`, cached tokens of every prompt (its length without the last token).
    """

    tokens: jax.Array
    steps: jax.Array
    prompts: jax.Array
    lengths: jax.Array


def init_cache(model: Decoder, shards: int, slots: int, prompts: int, prompt_length: int, rows: int, length: int) -> KVCache:
    """An empty cache for D, M, S, P, N, T as named in the module docstring."""
    c = model.config
    k = (shards, slots, c.kv_heads, c.head_size, prompts, prompt_length)
    v = (shards, slots, c.kv_heads, prompts, prompt_length, c.head_size)
    merged = _merged_heads(c.kv_heads, c.head_size)
    groups = c.kv_heads // merged
    ring = (shards * rows, groups)[: 1 if groups == 1 else 2]
    ring_k, ring_v = (*ring, merged * c.head_size, length), (*ring, length, merged * c.head_size)
    shapes = (k, v, ring_k, ring_v)
    return _lay_out(KVCache(*(tuple(jnp.zeros(shape, model.dtype) for _ in range(c.layers)) for shape in shapes)))


def _merged_heads(kv_heads: int, size: int) -> int:
    """m: as many heads as fit into `_WIDTH` and leave every device its own."""
    own = kv_heads // parts("kv_heads", kv_heads)
    return max(m for m in range(1, own + 1) if own % m == 0 and (m == 1 or m * size <= _WIDTH))


def write_prompts(
    model: Decoder, cache: KVCache, tokens: jax.Array, lengths: jax.Array, slots: jax.Array, prompts: jax.Array
) -> KVCache:
    """Computes prompts and puts their keys and values into the cache.

    Args:
      tokens: int32 `[D, R, <= P]`, prompts without their last tokens, padded at the end with anything.
      lengths: int32 `[D, R]`.
      slots, prompts: int32 `[D, R]`, the place `[M, S]` of each; a slot of M or more writes nothing.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.shape)
    segments = (positions < lengths[..., None]).astype(jnp.int32)
    seen = visibility_by_kind(kinds_of(model.config).windows, "xla", Tokens(positions, segments))
    k, v = model.run(Inputs(tokens, positions, seen), keep_kv=True).kv

    def put_k(cached, new, slot, prompt):  # new: [R, length, Hk, E]; indices apart from one another put R first
        new = jnp.transpose(new.astype(cached.dtype), (0, 2, 3, 1))
        return cached.at[slot, :, :, prompt, : new.shape[-1]].set(new, mode="drop")

    def put_v(cached, new, slot, prompt):
        new = jnp.transpose(new.astype(cached.dtype), (0, 2, 1, 3))
        return cached.at[slot, :, prompt, : new.shape[2]].set(new, mode="drop")

    def put(function, cached, new):
        return tuple(jax.vmap(function)(x, y, slots, prompts) for x, y in zip(cached, new, strict=True))

    return _lay_out(dataclasses.replace(cache, prompt_k=put(put_k, cache.prompt_k, k), prompt_v=put(put_v, cache.prompt_v, v)))


def grow_ring(cache: KVCache, length: int) -> KVCache:
    """The cache with a ring of more columns; to be called before the clock reaches the T that it has."""

    more = (0, length - cache.length)
    k = tuple(jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), more]) for x in cache.k)
    v = tuple(jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), more, (0, 0)]) for x in cache.v)
    return _lay_out(dataclasses.replace(cache, k=k, v=v))


def decode_step(model: Decoder, cache: KVCache, rows: DecodeRows, clock: jax.Array) -> tuple[jax.Array, KVCache]:
    """One token of every row.

    Args:
      clock: int32 scalar, one more than at the step before.

    Returns:
      Normalized hidden states `[D, N, W]` of the inputs, and the cache with their keys and values.
    """
    kinds = kinds_of(model.config)
    lengths, positions = _positions(cache, rows)
    seen = {w: _visible(w, cache, rows, clock, lengths, positions) for w in dict.fromkeys(kinds.windows)}
    x, layer = model.begin(rows.tokens[..., None], positions)
    stacked = model.stacked()
    ring = []
    for i, (*prompt, past_k, past_v) in enumerate(zip(cache.prompt_k, cache.prompt_v, cache.k, cache.v, strict=True)):
        kind = kinds.of_layers[i]
        visible = seen[kinds.windows[kind]]

        sinks = stacked["sinks"][i] if "sinks" in stacked else None

        def attention(q, k, v, prompt=prompt, past_k=past_k, past_v=past_v, visible=visible, sinks=sinks):
            kept = _write(past_k, k, clock, -1), _write(past_v, v, clock, -2)
            return _attend_cached(q, *prompt, *kept, *visible, model.config.attention_softcap, sinks), kept

        x, (kept, _) = layer(x, {name: weight[i] for name, weight in stacked.items()}, attention, kind)
        ring.append(kept)
    k, v = zip(*ring, strict=True)
    return model.finish(x)[:, :, 0], _lay_out(dataclasses.replace(cache, k=k, v=v))


def _write(ring, new, clock, axis):
    """Puts `[D, N, 1, Hk, E]` where the ring has the time of now along the axis."""
    shape = list(ring.shape)
    column, shape[axis] = clock % shape[axis], 1
    return jax.lax.dynamic_update_slice_in_dim(ring, new.astype(ring.dtype).reshape(shape), column, axis)


def _positions(cache, rows):
    """Cached tokens of each row's prompt, and the position of its input: int32 `[D, N, 1]` both."""
    count, slots = rows.tokens.shape[1], cache.prompt_v[0].shape[1]
    lengths = jnp.take_along_axis(jnp.repeat(rows.lengths, count // slots, axis=1), rows.prompts[..., None], axis=-1)
    return lengths, lengths + rows.steps[..., None]


def _visible(window, cache, rows, clock, lengths, positions):
    """Which keys the inputs see, within a window: of the prompts `[D, N, S * P]`, of the ring `[D, N, T]`."""
    shards, count = rows.tokens.shape
    prompts, prompt_length = cache.prompt_v[0].shape[3:5]
    index = jnp.arange(prompt_length)
    seen = index < lengths
    age = (clock - jnp.arange(cache.length)) % cache.length
    past = age <= rows.steps[..., None]
    if window is not None:
        seen &= positions - index < window
        past &= age < window
    of_row = jnp.arange(prompts) == rows.prompts[..., None]
    return (of_row[..., None] & seen[:, :, None]).reshape(shards, count, prompts * prompt_length), past


def _attend_cached(q, prompt_k, prompt_v, k, v, prefix, past, cap, sinks):
    """Attention of one token per row to its slot's prompts and to the ring, where it finds itself, as one softmax.

    Args:
      q: `[D, N, 1, H, E]`. prompt_k, prompt_v, k, v: the cache of one layer. prefix, past: see `_visible`. cap: of logits.
      sinks: `[H]`, one more logit of each head; None: none.
    """
    shards, rows, _, heads, size = q.shape
    slots, kv_heads = prompt_v.shape[1:3]
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32, precision=precision(q.dtype))
    q = (q * (size**-0.5)).reshape(shards * rows, kv_heads, heads // kv_heads, size)
    # The C rows of a slot are the rows of one larger product with its prompts.
    q_slots = q.reshape(shards, slots, rows // slots, *q.shape[1:])
    prompt_k = prompt_k.reshape(shards, slots, kv_heads, size, -1)
    prompt_v = prompt_v.reshape(shards, slots, kv_heads, -1, size)
    prefix = prefix.reshape(shards, slots, 1, rows // slots, 1, -1)
    past = past.reshape(shards * rows, 1, 1, -1)

    def by_row(x):  # [D, M, Hk, C, g, ...] to [D * N, Hk, g, ...]
        return jnp.moveaxis(x, 2, 3).reshape(shards * rows, *x.shape[2:3], *x.shape[4:])

    def by_slot(x):
        return jnp.moveaxis(x.reshape(shards, slots, rows // slots, *x.shape[1:]), 3, 2)

    merged = k.shape[-2] // size
    to_past = dot("...ae,...et->...at", _side_by_side(q, merged).reshape(*k.shape[:-2], -1, k.shape[-2]), k)
    to_past = jnp.where(past, soft_cap(to_past.reshape(*q.shape[:3], -1), cap), _NEVER)
    to_prompt = jnp.where(prefix, soft_cap(dot("dmchge,dmhep->dmhcgp", q_slots, prompt_k), cap), _NEVER)
    # A token always sees itself, so the largest logit is a real one and what is hidden gets weight 0.
    top = jnp.maximum(by_row(to_prompt.max(-1)), to_past.max(-1))[..., None]
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(kv_heads, -1, 1)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    on_prompt, on_past = jnp.exp(to_prompt - by_slot(top)), jnp.exp(to_past - top)
    total = by_row(on_prompt.sum(-1))[..., None] + on_past.sum(-1, keepdims=True)
    if sinks is not None:
        total += jnp.exp(sinks - top)
    mixed = by_row(dot("dmhcgp,dmhpe->dmhcge", on_prompt.astype(v.dtype), prompt_v))
    weights = on_past.astype(v.dtype).reshape(*k.shape[:-2], -1, k.shape[-1])
    mixed += _own(dot("...at,...te->...ae", weights, v), merged, size)
    # Always true; it keeps XLA on the CPU from fusing all these products into one slow kernel.
    mixed = jnp.where(total > 0, mixed, 0.0)
    return (mixed / total).astype(v.dtype).reshape(shards, rows, 1, heads, size)


def _side_by_side(q, merged):
    """`[R, G m, g, E]` to `[R, G, m g, m E]`, each head beside zeros where the others' values stand."""
    rows, heads, queries, size = q.shape
    q = q.reshape(rows, heads // merged, merged, queries, 1, size) * jnp.eye(merged, dtype=q.dtype)[:, None, :, None]
    return q.reshape(rows, heads // merged, merged * queries, merged * size)


def _own(mixed, merged, size):
    """Of `[R, G, m g, m E]` each head's own values, `[R, G m, g, E]`."""
    mixed = mixed.reshape(mixed.shape[0], -1, merged, mixed.shape[-2] // merged, merged, size)
    mixed = jnp.where(jnp.eye(merged, dtype=bool)[:, None, :, None], mixed, 0).sum(-2)
    return mixed.reshape(mixed.shape[0], -1, *mixed.shape[3:])


def _lay_out(cache: KVCache) -> KVCache:
    prompt = ("shards", None, "kv_heads", None, None, None)
    ring = ("shards", "kv_heads", None, None) if cache.k[0].ndim == 4 else ("shards", None, None)
    axes = {"prompt_k": prompt, "prompt_v": prompt, "k": ring, "v": ring}
    return KVCache(**{name: tuple(constrain(x, *axis) for x in getattr(cache, name)) for name, axis in axes.items()})
