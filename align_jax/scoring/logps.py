"""Tokens in, response log-probs out: each prompt computed once, and logits of no more positions at a time than asked for."""

from __future__ import annotations

from functools import partial

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
    logps, _ = logps_and_load(model, slots, counted=False, **how)
    return logps.reshape(*batch.mask.shape, -1) if per_token else logps


def logps_and_load(
    model: Decoder,
    batch: GroupBatch,
    *,
    rows_per_chunk: int | None = None,
    head_chunk: int = HEAD_CHUNK,
    counted: bool = True,
) -> tuple[jax.Array, Load | None]:
    """`response_logps`, and how the tokens of a mixture are spread over its experts: None if not `counted`, or no mixture."""
    if head_chunk < 1:
        raise ValueError(f"chunk sizes must be at least 1, got {head_chunk=}")
    if batch.ends:
        raise ValueError("the batch is laid out for scores (ends=True): its slots mark last tokens, not targets")

    def read(hidden: jax.Array, rows: dict[str, jax.Array]) -> jax.Array:
        return target_logps(model, hidden, rows["targets"], head_chunk)

    return sums_and_load(model, batch, read, rows_per_chunk, counted)


def target_logps(model: Decoder, hidden: jax.Array, targets: jax.Array, head_chunk: int = HEAD_CHUNK) -> jax.Array:
    """Log-probability of each position's target, `logit[target] - logsumexp(logits)`, a chunk of logits at a time.

    Args:
      model: whose head to apply.
      hidden: normalized hidden states `[D, N, R, W]`.
      targets: int32 `[D, N, R]`.
      head_chunk: positions of a shard whose logits exist at one time; if there are more, logits are computed again in the
        backward pass.

    Returns:
      float32 `[D, N, R]`.
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

    logps = _target_logps(model.config, model.head_weight(), split(hidden), split(jnp.asarray(targets)))
    logps = jnp.moveaxis(logps, 0, 1).reshape(shards, -1)[:, :positions]
    if parts == 1:
        return logps.reshape(targets.shape)
    return sequence.from_devices(logps.reshape(hidden.shape[0], parts, hidden.shape[1], -1), 2, 1)


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


def _forward(config, weight, hidden, targets):
    def one(chunk):
        x, target = chunk
        logits = _logits(config, weight, x)
        # A comparison instead of a gather: the vocabulary may be sharded.
        chosen = jnp.sum(jnp.where(_is_target(logits, target), logits, 0.0), axis=-1)
        lse = jax.nn.logsumexp(logits, axis=-1)
        return chosen - lse, lse, logits if single else None

    single = hidden.shape[0] == 1
    logps, lse, logits = _map(one, (hidden, targets))
    return logps, (weight, hidden, targets, lse, logits)


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
