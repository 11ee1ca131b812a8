"""Decoding with a cache of keys and values: prompts computed once for all their samples, and a ring of own tokens.

Axes as in `align_jax.batch`, N rows a shard in M slots of C rows each, one sample a row; also S the prompts that a slot
holds at one time, P their longest length, T the most tokens a row generates. The C rows of a slot attend to its prompts
in place: no key of a prompt is ever copied for a sample.

At clock t every row writes its new key at column `t mod T`, wherever the row stands in its text: one slice is written
for the whole batch. A row that has made n steps finds the key of d steps ago, d = 1 .. n, at column `(t - d) mod T`; rows
that start later, in the place of finished ones, need nothing cleared.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from align_jax.axes import constrain
from align_jax.models.attention import Masks, Tokens, own_mask, precision
from align_jax.models.decoder import Decoder

_NEVER = -1e30  # below any real logit, yet finite: a part in which nothing is visible gets weight 0, not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values, in the model's compute type.

    Attributes:
      prompt_k, prompt_v: `[L, D, M, S, P, Hk, E]`, the prompts without their last tokens.
      k, v: `[L, D, N, Hk, T, E]`, the ring: the prompt's last token and what was generated after it.
    """

    prompt_k: jax.Array
    prompt_v: jax.Array
    k: jax.Array
    v: jax.Array


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
    prompt_shape = (c.layers, shards, slots, prompts, prompt_length, c.kv_heads, c.head_size)
    shape = (c.layers, shards, rows, c.kv_heads, length, c.head_size)
    return _lay_out(KVCache(*(jnp.zeros(s, model.dtype) for s in (prompt_shape, prompt_shape, shape, shape))))


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
        return cached.at[:, slot, prompt, : new.shape[2]].set(new.astype(cached.dtype), mode="drop")

    over_shards = jax.vmap(put, in_axes=(1, 1, 0, 0), out_axes=1)
    return _lay_out(
        dataclasses.replace(
            cache,
            prompt_k=over_shards(cache.prompt_k, k, slots, prompts),
            prompt_v=over_shards(cache.prompt_v, v, slots, prompts),
        )
    )


def decode_step(
    model: Decoder, cache: KVCache, rows: DecodeRows, clock: jax.Array, span: int
) -> tuple[jax.Array, KVCache]:
    """One token of every row.

    Args:
      clock: int32 scalar, one more than at the step before.
      span: columns of the ring that may hold anything visible: the first `span`; T always is right.

    Returns:
      Normalized hidden states `[D, N, W]` of the inputs, and the cache with their keys and values.
    """
    length, window = cache.k.shape[-2], model.config.sliding_window
    shards, count = rows.tokens.shape
    slots, prompts, prompt_length = cache.prompt_k.shape[2:5]
    per_slot = count // slots
    lengths = jnp.take_along_axis(jnp.repeat(rows.lengths, per_slot, axis=1), rows.prompts[..., None], axis=-1)
    positions = lengths + rows.steps[..., None]

    index = jnp.arange(prompt_length)
    seen = index < lengths
    age = (clock - 1 - jnp.arange(span)) % length + 1
    past = age <= rows.steps[..., None]
    if window is not None:
        seen &= positions - index < window
        past &= age < window
    of_row = jnp.arange(prompts) == rows.prompts[..., None]
    prefix = (of_row[..., None] & seen[:, :, None]).reshape(shards, count, prompts * prompt_length)
    hidden, (k, v) = model.run(
        rows.tokens[..., None],
        positions,
        None,
        prefix=(cache.prompt_k, cache.prompt_v, cache.k, cache.v),
        keep_kv=True,
        attention=partial(_attend_cached, prefix=prefix, past=past, span=span),
    )

    def write(cached, new):  # [L, D, N, 1, Hk, E] into [L, D, N, Hk, T, E]
        return jax.lax.dynamic_update_slice_in_dim(cached, jnp.moveaxis(new, 3, 4), clock % length, axis=4)

    return hidden[:, :, 0], _lay_out(dataclasses.replace(cache, k=write(cache.k, k), v=write(cache.v, v)))


def _attend_cached(q, k, v, masks, prompt_k, prompt_v, past_k, past_v, *, prefix, past, span):
    """Attention of one token a row to its slot's prompts, to the ring and to itself, merged by their log-sum-exps.

    Args:
      q: `[D, N, 1, H, E]`; k, v: `[D, N, 1, Hk, E]`; the cache without L.
      masks: unused, the interface of `Decoder.run`. prefix: bool `[D, N, S * P]`. past: bool `[D, N, span]`.
    """
    shards, rows, _, heads, size = q.shape
    slots, kv_heads = prompt_k.shape[1], k.shape[3]
    q_scaled = (q * (size**-0.5)).reshape(shards, rows, kv_heads, heads // kv_heads, size)
    # The C rows of a slot are the rows of one larger product with its prompts.
    split = (shards, slots, rows // slots)
    flat = (shards, slots, -1, kv_heads, size)
    to_prompt = _part(
        ("dmchge,dmphe->dmchgp", "dmchgp,dmphe->dmchge"),
        q_scaled.reshape(split + q_scaled.shape[2:]),
        prompt_k.reshape(flat),
        prompt_v.reshape(flat),
        prefix.reshape(split + (1, 1, -1)),
    )
    parts = [
        tuple(x.reshape(shards, rows, *x.shape[3:]) for x in to_prompt),
        _part(
            ("dnhge,dnhte->dnhgt", "dnhgt,dnhte->dnhge"),
            q_scaled,
            past_k[..., :span, :],
            past_v[..., :span, :],
            past[:, :, None, None],
        ),
        _part(("dnhge,dnthe->dnhgt", "dnhgt,dnthe->dnhge"), q_scaled, k, v, True),
    ]
    top = jnp.maximum(jnp.maximum(parts[0][0], parts[1][0]), parts[2][0])
    scales = [jnp.exp(part[0] - top) for part in parts]
    total = sum(scale * part[1] for scale, part in zip(scales, parts, strict=True))
    mixed = sum(scale * part[2] for scale, part in zip(scales, parts, strict=True)) / total
    return mixed.astype(q.dtype).reshape(q.shape)


def _part(specs, q, k, v, mask):
    """Largest logit, sum of weights and weighted values over one set of keys, in float32."""
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32, precision=precision(q.dtype))
    logits = jnp.where(mask, dot(specs[0], q, k), _NEVER)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.where(mask, jnp.exp(logits - top), 0.0)
    return top, jnp.sum(weights, axis=-1, keepdims=True), dot(specs[1], weights.astype(v.dtype), v)


def _lay_out(cache: KVCache) -> KVCache:
    prompt_axes = (None, "shards", None, None, None, "kv_heads", None)
    axes = (None, "shards", None, "kv_heads", None, None)
    return KVCache(
        constrain(cache.prompt_k, *prompt_axes),
        constrain(cache.prompt_v, *prompt_axes),
        constrain(cache.k, *axes),
        constrain(cache.v, *axes),
    )
