"""Decoding with a cache of keys and values: prompts computed once for all their samples, and a ring of own tokens.

Axes as in `align_jax.batch`, N rows a shard in M slots of C rows each, one sample a row; also S the prompts that a slot
holds at one time, P their longest length, T the columns of the ring. The C rows of a slot attend to its prompts in place:
no key of a prompt is ever copied for a sample.

At clock t every row writes its key at column `t mod T`, wherever the row stands in its text: one slice is written for the
whole batch. A row that has made n steps finds the key of d steps ago, d = 1 .. n, at column `(t - d) mod T`; rows that
start later, in the place of finished ones, need nothing cleared. T is at least the most tokens that a row generates, or
larger than the clock: a ring may start short and grow.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from align_jax.axes import constrain
from align_jax.models.attention import Masks, Tokens, own_mask
from align_jax.models.decoder import Decoder
from align_jax.models.products import precision

_NEVER = -1e30  # below any real logit, yet finite: what is not visible gets weight 0, not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values, in the model's compute type.

    Attributes:
      prompt_k, prompt_v: `[L, D, M, Hk, S, P, E]`, the prompts without their last tokens.
      k, v: `[L, D, N, Hk, E, T]`, the ring: the prompt's last token and what was generated after it. Time stands last,
        which makes the products with a single query several times faster.
    """

    prompt_k: jax.Array
    prompt_v: jax.Array
    k: jax.Array
    v: jax.Array

    @property
    def length(self) -> int:
        """T."""
        return self.k.shape[-1]


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
    prompt = (c.layers, shards, slots, c.kv_heads, prompts, prompt_length, c.head_size)
    ring = (c.layers, shards, rows, c.kv_heads, c.head_size, length)
    return _lay_out(KVCache(*(jnp.zeros(shape, model.dtype) for shape in (prompt, prompt, ring, ring))))


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
    masks = Masks(own_mask(Tokens(positions, segments), model.config.sliding_window))
    _, (k, v) = model.run(tokens, positions, masks, keep_kv=True)

    def put(cached, new, slot, prompt):
        # Indices apart from one another put R first: [R, L, Hk, length, E].
        new = jnp.transpose(new.astype(cached.dtype), (1, 0, 3, 2, 4))
        return cached.at[:, slot, :, prompt, : new.shape[3]].set(new, mode="drop")

    over_shards = jax.vmap(put, in_axes=(1, 1, 0, 0), out_axes=1)
    prompt_k, prompt_v = (over_shards(x, y, slots, prompts) for x, y in ((cache.prompt_k, k), (cache.prompt_v, v)))
    return _lay_out(dataclasses.replace(cache, prompt_k=prompt_k, prompt_v=prompt_v))


def grow_ring(cache: KVCache, length: int) -> KVCache:
    """The cache with a ring of more columns; to be called before the clock reaches the T that it has."""
    k, v = (jnp.pad(x, [(0, 0)] * 5 + [(0, length - cache.length)]) for x in (cache.k, cache.v))
    return _lay_out(dataclasses.replace(cache, k=k, v=v))


def decode_step(model: Decoder, cache: KVCache, rows: DecodeRows, clock: jax.Array) -> tuple[jax.Array, KVCache]:
    """One token of every row.

    Args:
      clock: int32 scalar, one more than at the step before.

    Returns:
      Normalized hidden states `[D, N, W]` of the inputs, and the cache with their keys and values.
    """
    positions, prefix, past = _visible(model, cache, rows, clock)
    x, layer = model.begin(rows.tokens[..., None], positions)

    def body(x, inputs):
        weights, *cached = inputs
        return layer(x, weights, lambda q, k, v: (_attend_cached(q, k, v, *cached, prefix, past), (k, v)))

    # The layers only read the ring, and all write to it at once: a write in each would copy it.
    x, new = jax.lax.scan(body, x, (model.layers.weights(), cache.prompt_k, cache.prompt_v, cache.k, cache.v))

    def write(ring, new):  # new: [L, D, N, 1, Hk, E]
        return jax.lax.dynamic_update_slice_in_dim(ring, jnp.moveaxis(new, 3, 5), clock % cache.length, axis=5)

    k, v = write(cache.k, new[0]), write(cache.v, new[1])
    return model.finish(x)[:, :, 0], _lay_out(dataclasses.replace(cache, k=k, v=v))


def _visible(model, cache, rows, clock):
    """Positions `[D, N, 1]` of the inputs, and which keys they see: of the prompts `[D, N, S * P]`, of the ring `[D, N, T]`."""
    window = model.config.sliding_window
    shards, count = rows.tokens.shape
    slots, _, prompts, prompt_length = cache.prompt_k.shape[2:6]
    lengths = jnp.take_along_axis(jnp.repeat(rows.lengths, count // slots, axis=1), rows.prompts[..., None], axis=-1)
    positions = lengths + rows.steps[..., None]
    index = jnp.arange(prompt_length)
    seen = index < lengths
    age = (clock - 1 - jnp.arange(cache.length)) % cache.length + 1
    past = age <= rows.steps[..., None]
    if window is not None:
        seen &= positions - index < window
        past &= age < window
    of_row = jnp.arange(prompts) == rows.prompts[..., None]
    return positions, (of_row[..., None] & seen[:, :, None]).reshape(shards, count, prompts * prompt_length), past


def _attend_cached(q, k, v, prompt_k, prompt_v, past_k, past_v, prefix, past):
    """Attention of one token a row to its slot's prompts, to the ring and to itself, as one softmax.

    Args:
      q: `[D, N, 1, H, E]`; k, v: `[D, N, 1, Hk, E]`; the cache without L. prefix, past: see `_visible`.
    """
    shards, rows, _, heads, size = q.shape
    slots, kv_heads = prompt_k.shape[1:3]
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32, precision=precision(q.dtype))
    q = (q * (size**-0.5)).reshape(shards, rows, kv_heads, heads // kv_heads, size)
    # The C rows of a slot are the rows of one larger product with its prompts.
    q_slots = q.reshape(shards, slots, rows // slots, *q.shape[2:])
    prompt_k, prompt_v = (x.reshape(shards, slots, kv_heads, -1, size) for x in (prompt_k, prompt_v))
    prefix = prefix.reshape(shards, slots, 1, rows // slots, 1, -1)
    k, v = (x.reshape(shards, rows, kv_heads, 1, size).astype(jnp.float32) for x in (k, v))

    def by_row(x):  # [D, M, Hk, C, g, ...] to [D, N, Hk, g, ...]
        return jnp.moveaxis(x, 2, 3).reshape(shards, rows, *x.shape[2:3], *x.shape[4:])

    def by_slot(x):
        return jnp.moveaxis(x.reshape(shards, slots, rows // slots, *x.shape[2:]), 3, 2)

    to_prompt = jnp.where(prefix, dot("dmchge,dmhpe->dmhcgp", q_slots, prompt_k), _NEVER)
    to_past = jnp.where(past[:, :, None, None], dot("dnhge,dnhet->dnhgt", q, past_k), _NEVER)
    to_self = jnp.sum(q.astype(jnp.float32) * k, axis=-1, keepdims=True)
    # A token always sees itself, so the largest logit is a real one and what is hidden gets weight 0.
    top = jnp.maximum(jnp.maximum(by_row(to_prompt.max(-1)), to_past.max(-1)), to_self[..., 0])[..., None]
    on_prompt, on_past, on_self = jnp.exp(to_prompt - by_slot(top)), jnp.exp(to_past - top), jnp.exp(to_self - top)
    total = by_row(on_prompt.sum(-1))[..., None] + on_past.sum(-1, keepdims=True) + on_self
    mixed = by_row(dot("dmhcgp,dmhpe->dmhcge", on_prompt.astype(past_v.dtype), prompt_v)) + on_self * v
    mixed += dot("dnhgt,dnhet->dnhge", on_past.astype(past_v.dtype), past_v)
    return (mixed / total).astype(past_v.dtype).reshape(shards, rows, 1, heads, size)


def _lay_out(cache: KVCache) -> KVCache:
    prompt = (None, "shards", None, "kv_heads", None, None, None)
    ring = (None, "shards", None, "kv_heads", None, None)
    return KVCache(
        constrain(cache.prompt_k, *prompt),
        constrain(cache.prompt_v, *prompt),
        constrain(cache.k, *ring),
        constrain(cache.v, *ring),
    )
