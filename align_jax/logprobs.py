"""Tokens in, response log-probs out: each prompt computed once, no `[batch, length, vocabulary]` array."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from align_jax.axes import constrain
from align_jax.batch import GroupBatch
from align_jax.errors import UserError
from align_jax.models.attention import Tokens, visibility
from align_jax.models.decoder import Decoder
from align_jax.models.products import precision

HEAD_CHUNK = 1024  # positions of a shard whose logits exist at one time


def response_logps(
    model: Decoder, batch: GroupBatch, *, rows_per_chunk: int | None = None, head_chunk: int = HEAD_CHUNK
) -> jax.Array:
    """Log-probability of every response given its prompt, `sum_t log p(y_t | x, y_<t)`.

    The prompt runs once for all its responses (prefix sharing); the head runs on response positions only. Values and
    gradients equal those of scoring each `prompt + response` alone, to rounding.

    Args:
      model: the decoder.
      batch: prompts and responses, see `align_jax.batch`; the arrays may be traced.
      rows_per_chunk: response rows of a shard computed at one time. With fewer than N, chunks run one after the
        other and their activations are computed again on the way back, so that memory does not grow with K. None: all.
      head_chunk: positions of a shard whose logits exist at one time.

    Returns:
      float32 `[G, K]`, summed over the response's scored targets; 0 for a response that does not exist.

    Raises:
      ValueError: a chunk size below 1.
    """
    if head_chunk < 1 or (rows_per_chunk is not None and rows_per_chunk < 1):
        raise ValueError(f"chunk sizes must be at least 1, got {rows_per_chunk=}, {head_chunk=}")
    batch = _aligned(batch, _backend(model, batch))
    kv = prompt_kv(model, batch)
    rows = {name: getattr(batch, name) for name in _ROW_FIELDS}
    score = partial(_score_rows, model, batch, kv, head_chunk)
    count = batch.tokens.shape[1]
    if rows_per_chunk is None or rows_per_chunk >= count:
        sums = score(rows)
    else:
        sums = _scan_chunks(score, rows, count, rows_per_chunk, batch)
    return sums.reshape(batch.mask.shape)


_ROW_FIELDS = ("tokens", "targets", "positions", "segments", "parents", "groups", "slots", "prompt_row")


def prompt_kv(model: Decoder, batch: GroupBatch) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the prompt rows in every layer: two `[L, D, M, P, Hk, E]`."""
    own = Tokens(batch.prompt_positions, batch.prompt_segments)
    seen = visibility(_backend(model, batch), own, model.config.sliding_window)
    _, kv = model.run(batch.prompt_tokens, batch.prompt_positions, seen, keep_kv=True)
    return kv


def _backend(model: Decoder, batch: GroupBatch) -> str:
    """The model's attention backend, or XLA's where `auto` chose one that does not take this batch."""
    if model.backend == "xla" or not batch.packed:
        return model.backend
    if model.attention == "auto":
        return "xla"
    raise UserError(f"model.attention: {model.backend!r} takes one response a row, and this batch is packed (data.pack)")


def _aligned(batch: GroupBatch, backend: str) -> GroupBatch:
    """Prompts moved to the end that the backend's kernels count from: splash to the right, cuDNN to the left.

    At the right, distances between array indices are those between positions, which is what a sliding window needs.
    """
    if backend == "xla":
        return batch
    real = jnp.asarray(batch.prompt_segments) > 0
    order = jnp.argsort(~real if backend.startswith("cudnn") else real, axis=-1, stable=True)
    names = ("prompt_tokens", "prompt_segments", "prompt_positions")
    moved = {name: jnp.take_along_axis(jnp.asarray(getattr(batch, name)), order, axis=-1) for name in names}
    return dataclasses.replace(batch, **moved)


def _score_rows(model, batch, kv, head_chunk, rows):
    """Log-probs summed into response slots, `[D, slots of a shard]`, for some of the batch's response rows."""
    window = model.config.sliding_window
    own = Tokens(rows["positions"], rows["segments"], rows["parents"] if batch.packed else None, rows["groups"])
    prompt = Tokens(batch.prompt_positions, batch.prompt_segments)
    uniform = batch.uniform and rows["tokens"].shape == batch.tokens.shape
    seen = visibility(_backend(model, batch), own, window, prompt, rows["prompt_row"], uniform)
    hidden, _ = model.run(rows["tokens"], rows["positions"], seen, kv)
    logps = target_logps(model, hidden, rows["targets"], head_chunk)
    slots = batch.mask.size // batch.tokens.shape[0]
    return _sum_into_slots(logps, rows["slots"], slots)


def _sum_into_slots(logps, slots, count):
    def one_shard(values, index):
        # A negative index would wrap around; one past the end is dropped.
        index = jnp.where(index < 0, count, index).reshape(-1)
        return jnp.zeros(count, jnp.float32).at[index].add(values.reshape(-1), mode="drop")

    return jax.vmap(one_shard)(logps, slots)


def _scan_chunks(score, rows, count, size, batch):
    """Sums over chunks of rows; the checkpoint makes the backward pass hold one chunk's activations at a time."""
    chunks = -(-count // size)

    def split(name, x):
        # Rows of padding: no segment, and slots that nothing is added to.
        fill = -1 if name == "slots" else 0
        padding = ((0, 0), (0, chunks * size - count), *((0, 0),) * (x.ndim - 2))
        x = jnp.pad(jnp.asarray(x), padding, constant_values=fill)
        return jnp.moveaxis(x.reshape(x.shape[:1] + (chunks, size) + x.shape[2:]), 1, 0)

    def body(sums, chunk):
        return sums + score(chunk), None

    shards = batch.tokens.shape[0]
    zero = jnp.zeros((shards, batch.mask.size // shards), jnp.float32)
    sums, _ = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), zero, {name: split(name, x) for name, x in rows.items()})
    return sums


def target_logps(model: Decoder, hidden: jax.Array, targets: jax.Array, head_chunk: int = HEAD_CHUNK) -> jax.Array:
    """Log-probability of each position's target, `logit[target] - logsumexp(logits)`, a chunk of logits at a time.

    Args:
      model: whose head to apply.
      hidden: normalized hidden states `[D, N, R, W]`.
      targets: int32 `[D, N, R]`.
      head_chunk: positions of a shard whose logits exist at one time; they are computed again in the backward pass.

    Returns:
      float32 `[D, N, R]`.
    """
    shards, positions = hidden.shape[0], hidden.shape[1] * hidden.shape[2]
    chunks = -(-positions // head_chunk)
    size = -(-positions // chunks)

    def split(x):
        rest = x.shape[3:]
        padding = ((0, 0), (0, chunks * size - positions), *((0, 0),) * len(rest))
        flat = jnp.pad(x.reshape(shards, positions, *rest), padding)
        return jnp.moveaxis(flat.reshape(shards, chunks, size, *rest), 1, 0)

    logps = _target_logps(model.head_weight(), split(hidden), split(jnp.asarray(targets)))
    return jnp.moveaxis(logps, 0, 1).reshape(shards, -1)[:, :positions].reshape(targets.shape)


@jax.custom_vjp
def _target_logps(weight, hidden, targets):
    """weight `[W, V]`, hidden `[chunks, D, T, W]`, targets `[chunks, D, T]` -> float32 `[chunks, D, T]`.

    With the cotangent c of a position's log-prob, `d_logits = c (onehot(target) - softmax(logits))`: all that is kept for the
    way back is each position's log-sum-exp, and the weight's gradient is summed over chunks in float32.
    """
    return _forward(weight, hidden, targets)[0]


def _forward(weight, hidden, targets):
    def one(chunk):
        x, target = chunk
        logits = _logits(weight, x)
        # A comparison instead of a gather: the vocabulary may be sharded.
        chosen = jnp.sum(jnp.where(_is_target(logits, target), logits, 0.0), axis=-1)
        lse = jax.nn.logsumexp(logits, axis=-1)
        return chosen - lse, lse

    logps, lse = _map(one, (hidden, targets))
    return logps, (weight, hidden, targets, lse)


def _backward(saved, d_logps):
    weight, hidden, targets, lse = saved

    def one(d_weight, chunk):
        x, target, lse, d = chunk
        logits = _logits(weight, x)
        softmax = jnp.exp(logits - lse[..., None])
        d_logits = (d[..., None] * (_is_target(logits, target) - softmax)).astype(x.dtype)
        d_logits = constrain(d_logits, "shards", None, "vocab")
        d_x = _product("dtv,wv->dtw", d_logits, weight).astype(x.dtype)
        more = _product("dtw,dtv->wv", x, d_logits)
        return more if d_weight is None else d_weight + more, d_x

    chunks = (hidden, targets, lse, d_logps)
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


def _logits(weight, x):
    return constrain(_product("dtw,wv->dtv", x, weight), "shards", None, "vocab")


def _is_target(logits, target):
    return jnp.arange(logits.shape[-1]) == target[..., None]


def _product(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32, precision=precision(a.dtype))
