"""What runs on the devices: loading prompts into the cache, and several decoding steps per call.

Axes as in `align_jax.models.cache`. Everything that the host decides (which row continues which prompt, who is done)
travels as small integer arrays with every call; only the cache and the tokens seen stay on the devices.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.generation.sampling import Sampling, penalize, sample
from align_jax.models import Decoder, ModelConfig
from align_jax.models.cache import DecodeRows, KVCache, decode_step, grow_ring, init_cache, write_prompts
from align_jax.parallel.axes import constrain


@dataclasses.dataclass(frozen=True)
class Program:
    """All that a compiled program depends on besides array shapes.

    Attributes:
      config, dtype: of the model. sampling: how tokens are drawn. eos_ids: tokens that end a text. steps: of a call.
      never: of tokens that are not drawn, (first, one past the last) of each run of them.
    """

    config: ModelConfig
    dtype: str
    sampling: Sampling
    eos_ids: tuple[int, ...]
    steps: int
    never: tuple[tuple[int, int], ...] = ()

    def model(self, params: dict) -> Decoder:
        return Decoder(self.config, params, dtype=self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Device:
    """What stays on the devices.

    Attributes:
      cache: keys and values.
      prompt_seen: bool `[D, M, S, V]`, tokens of the prompts; seen: bool `[D, N, V]`, tokens of prompt and response.
        Both None without a repetition penalty.
    """

    cache: KVCache
    prompt_seen: jax.Array | None
    seen: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowStates:
    """The rows as the host sees them between calls: int32 `[D, N]`, `lengths` `[D, M, S]` as in `DecodeRows`.

    Attributes:
      tokens, steps, prompts, lengths: see `DecodeRows`.
      left: tokens that the row may still generate; 0 is an idle row.
      prompt_ids, sample_ids: with the seed and the step, what the row's random numbers are keyed by.
    """

    tokens: jax.Array
    steps: jax.Array
    prompts: jax.Array
    lengths: jax.Array
    left: jax.Array
    prompt_ids: jax.Array
    sample_ids: jax.Array


@partial(jax.jit, static_argnames=("program", "shape"))
def create(params: dict, *, program: Program, shape: tuple[int, int, int, int, int, int]) -> Device:
    """An empty cache; shape is (D, M, S, P, N, T)."""
    shards, slots, prompts, _, rows, _ = shape
    cache = init_cache(program.model(params), *shape)
    if not program.sampling.penalizes:
        return Device(cache, None, None)
    vocab = program.config.vocab_size
    seen = jnp.zeros((shards, slots, prompts, vocab), bool), jnp.zeros((shards, rows, vocab), bool)
    return Device(cache, constrain(seen[0], "shards", None, None, None), constrain(seen[1], "shards", None, None))


@partial(jax.jit, static_argnames="program", donate_argnames="device")
def load(
    params: dict,
    device: Device,
    tokens: jax.Array,
    lengths: jax.Array,
    slots: jax.Array,
    prompts: jax.Array,
    *,
    program: Program,
) -> Device:
    """Computes prompts into the cache.

    Args:
      tokens: int32 `[D, R, Q]`, whole prompts. lengths: int32 `[D, R]`, theirs.
      slots, prompts: int32 `[D, R]`, where they go; a slot of M or more is padding.
    """
    # The last token of a prompt is the first input of its rows.
    cache = write_prompts(program.model(params), device.cache, tokens[..., :-1], lengths - 1, slots, prompts)
    if device.prompt_seen is None:
        return dataclasses.replace(device, cache=cache)
    real = jnp.arange(tokens.shape[-1]) < lengths[..., None]
    index = jnp.where(real, tokens, program.config.vocab_size)
    mark = jax.vmap(jax.vmap(lambda i: jnp.zeros(program.config.vocab_size, bool).at[i].set(True, mode="drop")))
    put = jax.vmap(lambda seen, new, slot, prompt: seen.at[slot, prompt].set(new, mode="drop"))
    return dataclasses.replace(device, cache=cache, prompt_seen=put(device.prompt_seen, mark(index), slots, prompts))


@partial(jax.jit, static_argnames="length")
def grow(device: Device, *, length: int) -> Device:
    """A longer ring, see `grow_ring`."""
    return dataclasses.replace(device, cache=grow_ring(device.cache, length))


def _in_runs(runs: tuple[tuple[int, int], ...], size: int) -> np.ndarray:
    """Bool `[size]`, True in the runs (first, one past the last)."""
    found = np.zeros(size, bool)
    for first, end in runs:
        found[first:end] = True
    return found


@partial(jax.jit, static_argnames="program", donate_argnames="device")
def decode(
    params: dict, device: Device, rows: RowStates, key: jax.Array, clock: jax.Array, *, program: Program
) -> tuple[Device, jax.Array, jax.Array]:
    """Up to `program.steps` steps of all rows; ends early when no row is left.

    Args:
      key: of the run; rows fold their ids and steps into it.
      clock: see `decode_step`.

    Returns:
      The device state; the generated tokens, int32 `[steps, D, N]`, -1 where a row generated nothing; and their
      log-probs under the model itself (no temperature, no filter), float32 `[steps, D, N]`.
    """
    model = program.model(params)
    seen = device.seen
    if seen is not None:
        count, slots = rows.tokens.shape[1], rows.lengths.shape[1]
        slot = jnp.arange(count) // (count // slots)
        of_prompt = jax.vmap(lambda all_seen, prompt: all_seen[slot, prompt])(device.prompt_seen, rows.prompts)
        seen = jnp.where((rows.steps == 0)[..., None], of_prompt, seen)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(None, 0))
    fold_each = jax.vmap(jax.vmap(jax.random.fold_in))
    keys = fold_each(fold(key, rows.prompt_ids), rows.sample_ids)

    def step(carry):
        i, cache, seen, rows, tokens, logps = carry
        where = DecodeRows(rows.tokens, rows.steps, rows.prompts, rows.lengths)
        hidden, cache = decode_step(model, cache, where, clock + i)
        logits = constrain(model.logits(hidden), "shards", None, "vocab")
        scores = logits if seen is None else penalize(logits, seen, program.sampling.repetition_penalty)
        if program.never:
            scores = jnp.where(_in_runs(program.never, program.config.vocab_size), -jnp.inf, scores)
        token = sample(scores, fold_each(keys, rows.steps), program.sampling)
        chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        logp = chosen - jax.nn.logsumexp(logits, axis=-1)
        active = rows.left > 0
        if seen is not None:
            seen |= jnp.arange(logits.shape[-1]) == token[..., None]
        ended = jnp.isin(token, jnp.asarray(program.eos_ids, jnp.int32)) if program.eos_ids else False
        rows = dataclasses.replace(
            rows,
            tokens=jnp.where(active, token, rows.tokens),
            steps=rows.steps + active,
            left=jnp.where(active & ~jnp.asarray(ended), rows.left - 1, 0),
        )
        return i + 1, cache, seen, rows, tokens.at[i].set(jnp.where(active, token, -1)), logps.at[i].set(logp)

    empty = (program.steps, *rows.tokens.shape)
    carry = (jnp.int32(0), device.cache, seen, rows, jnp.full(empty, -1, jnp.int32), jnp.zeros(empty, jnp.float32))
    carry = jax.lax.while_loop(lambda c: (c[0] < program.steps) & jnp.any(c[3].left > 0), step, carry)
    # Whole on every process: each makes the same decisions about them.
    tokens, logps = (constrain(x, None, None, None) for x in carry[4:])
    return Device(carry[1], device.prompt_seen, carry[2]), tokens, logps
