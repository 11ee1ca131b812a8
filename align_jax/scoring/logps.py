"""Tokens in, response log-probs out: each prompt computed once, and logits of no more positions at a time than asked for."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from align_jax.batch import GroupBatch
from align_jax.models.decoder import Decoder, head_logits, head_slope
from align_jax.models.experts import Load
from align_jax.models.ops import precision
from align_jax.parallel import sequence
from align_jax.parallel.axes import constrain
from align_jax.scoring.responses import one_slot_per_token, sums_and_load

HEAD_CHUNK = 1024  # positions of a shard whose logits exist at one time


def response_logps(
    model: Decoder,
    batch: GroupBatch,
    *,
    per_token: bool = False,
    rows_per_chunk: int | None = None,
    head_chunk: int = HEAD_CHUNK,
) -> jax.Array:
    """Log-probability of every response given its prompt, `sum_t log p(y_t | x, y_<t)`.

    The prompt runs once for all its responses (prefix sharing); the head runs on response positions only. Values and
    gradients equal those of scoring each `prompt + response` alone, to rounding.

    Args:
      model: the decoder.
      batch: prompts and responses, see `align_jax.batch`; the arrays may be traced.
      per_token: True gives the terms of the sum instead.
      rows_per_chunk: response rows of a shard computed at one time. With fewer than N, chunks run one after the
        other and their activations are computed again in the backward pass, so that memory does not grow with K. None: all.
      head_chunk: positions of a shard whose logits exist at one time.

    Returns:
      float32 `[G, K]`, summed over the response's scored targets; 0 for a response that does not exist. With `per_token`
      `[G, K, R]`, R the length of the batch's rows: 0 behind the end of a response (`batch.lengths` `[G, K]`).

    Raises:
      ValueError: a chunk size below 1, or a batch that is laid out for scores.
    """
    slots = one_slot_per_token(batch) if per_token else batch
    how = {"rows_per_chunk": rows_per_chunk, "head_chunk": head_chunk}
    logps = scored_logps(model, slots, counted=False, **how).values
    return logps.reshape(*batch.mask.shape, -1) if per_token else logps


class ResponseSums(NamedTuple):
    """What scoring says of the responses of a batch.

    Attributes:
      values: float32 `[G, K]`, log-probs or scores.
      load: how the tokens of a mixture are spread over its experts; None where that was not counted, or the model is none.
      log_collisions: float32 `[G, K]`, `sum_t log sum_v p(v | x, y_<t)^2`, of the probability that two draws of the next token
        are the same one, not differentiated; None where it was not asked for.
    """

    values: jax.Array
    load: Load | None = None
    log_collisions: jax.Array | None = None


def scored_logps(
    model: Decoder,
    batch: GroupBatch,
    *,
    rows_per_chunk: int | None = None,
    head_chunk: int = HEAD_CHUNK,
    counted: bool = True,
    collisions: bool = False,
) -> ResponseSums:
    """`response_logps`, and what else the same pass can say."""
    if head_chunk < 1:
        raise ValueError(f"chunk sizes must be at least 1, got {head_chunk=}")
    if batch.ends:
        raise ValueError("the batch is laid out for scores (ends=True): its slots mark last tokens, not targets")

    def read(hidden: jax.Array, rows: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        found = target_logps(model, hidden, rows["targets"], head_chunk, collisions)
        return found if collisions else (found,)

    sums, load = sums_and_load(model, batch, read, rows_per_chunk, counted)
    return ResponseSums(sums[0], load, *sums[1:])


def target_logps(
    model: Decoder, hidden: jax.Array, targets: jax.Array, head_chunk: int = HEAD_CHUNK, collisions: bool = False
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Log-probability of each position's target, `logit[target] - logsumexp(logits)`, a chunk of logits at a time.

    Args:
      model: whose head to apply.
      hidden: normalized hidden states `[D, N, R, W]`.
      targets: int32 `[D, N, R]`.
      head_chunk: positions of a shard whose logits exist at one time; if there are more, logits are computed again in the
        backward pass.
      collisions: also the log of the probability that two draws are the same token, `log sum_v p(v)^2`, not differentiated.

    Returns:
      float32 `[D, N, R]`; two of them with `collisions`.
    """
    parts = sequence.pieces()
    shards, positions = hidden.shape[0] * parts, hidden.shape[1] * hidden.shape[2] // parts
    chunks = -(-positions // head_chunk)
    size = -(-positions // chunks)

    def split(x):
        rest = x.shape[3:]
        padding = ((0, 0), (0, chunks * size - positions), *((0, 0),) * len(rest))
        x = sequence.by_device(x, 2, 1) if parts > 1 else x
        flat = jnp.pad(x.reshape(shards, positions, *rest), padding)
        return jnp.moveaxis(flat.reshape(shards, chunks, size, *rest), 1, 0)

    def joined(x):
        x = jnp.moveaxis(x, 0, 1).reshape(shards, -1)[:, :positions]
        if parts == 1:
            return x.reshape(targets.shape)
        return sequence.from_devices(x.reshape(hidden.shape[0], parts, hidden.shape[1], -1), 2, 1)

    of_chunks = _logps_and_collisions if collisions else _target_logps
    return jax.tree.map(joined, of_chunks(model.config, model.head_weight(), split(hidden), split(jnp.asarray(targets))))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _target_logps(config, weight, hidden, targets):
    """weight `[W, V]`, hidden `[chunks, D, T, W]`, targets `[chunks, D, T]` -> float32 `[chunks, D, T]`.

    With the cotangent c of a position's log-prob, `d_logits = c (onehot(target) - softmax(logits))`, times the slope of logits
    where a model bounds or divides them (`head_slope`). Of several chunks all that is kept for the backward pass is each
    position's log-sum-exp, and the weight's gradient is summed over them in float32. The logits of a single chunk are kept: the
    backward pass begins with them, so the peak of memory is that of making them again.
    Left to JAX, the step takes 1.13 times the processor time and 1.15 times the temporaries on a CPU (configs/bench-cpu.yaml).
    """
    return _forward(config, weight, hidden, targets)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logps_and_collisions(config, weight, hidden, targets):
    """`_target_logps`, and `log sum_v p(v)^2` of every position, which has no gradient."""
    return _forward_both(config, weight, hidden, targets)[0]


def _forward(config, weight, hidden, targets):
    logps, saved, _ = _forward_of(config, weight, hidden, targets, False)
    return logps, saved


def _forward_both(config, weight, hidden, targets):
    logps, saved, collisions = _forward_of(config, weight, hidden, targets, True)
    return (logps, collisions), saved


def _forward_of(config, weight, hidden, targets, collisions):
    def one(chunk):
        x, target = chunk
        logits = _logits(config, weight, x)
        # A comparison instead of a gather: the vocabulary may be sharded.
        chosen = jnp.sum(jnp.where(_is_target(logits, target), logits, 0.0), axis=-1)
        lse = jax.nn.logsumexp(logits, axis=-1)
        squares = jax.nn.logsumexp(2 * logits, axis=-1) - 2 * lse if collisions else None
        return chosen - lse, lse, logits if single else None, squares

    single = hidden.shape[0] == 1
    logps, lse, logits, squares = _map(one, (hidden, targets))
    return logps, (weight, hidden, targets, lse, logits), squares


def _backward(config, saved, d_logps):
    weight, hidden, targets, lse, logits = saved

    def one(d_weight, chunk):
        x, target, lse, d, logits = chunk
        logits = _logits(config, weight, x) if logits is None else logits
        softmax = jnp.exp(logits - lse[..., None])
        d_logits = head_slope(config, logits, d[..., None] * (_is_target(logits, target) - softmax)).astype(x.dtype)
        d_logits = constrain(d_logits, "shard_pieces", None, "vocab")
        d_x = _product("dtv,wv->dtw", d_logits, weight).astype(x.dtype)
        more = _product("dtw,dtv->wv", x, d_logits)
        return more if d_weight is None else d_weight + more, d_x

    chunks = (hidden, targets, lse, d_logps, logits)
    if hidden.shape[0] == 1:
        d_weight, d_hidden = one(None, jax.tree.map(lambda x: x[0], chunks))
        d_hidden = d_hidden[None]
    else:
        d_weight, d_hidden = jax.lax.scan(one, jnp.zeros(weight.shape, jnp.float32), chunks)
    return d_weight.astype(weight.dtype), d_hidden, None


_target_logps.defvjp(_forward, _backward)
_logps_and_collisions.defvjp(_forward_both, lambda config, saved, d: _backward(config, saved, d[0]))


def _map(function, chunks):
    if jax.tree.leaves(chunks)[0].shape[0] > 1:
        return jax.lax.map(function, chunks)
    return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], chunks)))


def _logits(config, weight, x):
    return constrain(head_logits(config, _product("dtw,wv->dtv", x, weight)), "shard_pieces", None, "vocab")


def _is_target(logits, target):
    return jnp.arange(logits.shape[-1]) == target[..., None]


def _product(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32, precision=precision(a.dtype))
