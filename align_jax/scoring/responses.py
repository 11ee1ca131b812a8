"""The decoder over the responses of a batch: each prompt computed once, response rows in chunks, one number per response."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from align_jax.batch import GroupBatch
from align_jax.errors import UserError
from align_jax.models.attention import Tokens, resolve_backend, takes_no_pieces, takes_packed, visibility_by_kind
from align_jax.models.config import ModelConfig
from align_jax.models.decoder import Decoder, Inputs
from align_jax.models.experts import Load
from align_jax.models.kinds import kinds_of
from align_jax.parallel import sequence
from align_jax.parallel.axes import constrain, mesh_size

_PROMPT_FIELDS = ("prompt_tokens", "prompt_segments", "prompt_positions")
_ROW_FIELDS = ("tokens", "targets", "positions", "segments", "parents", "groups", "slots", "prompt_row")


Read = Callable[[jax.Array, dict[str, jax.Array]], Any]


def sum_over_responses(model: Decoder, batch: GroupBatch, read: Read, rows_per_chunk: int | None = None) -> Any:
    """Sums, for every response, what `read` says of the positions that `batch.slots` marks.

    Args:
      model: the decoder.
      batch: prompts and responses, see `align_jax.batch`; the arrays may be traced.
      read: (normalized hidden states `[D, n, R, W]`, these rows' arrays by name, such as `targets` `[D, n, R]`)
        -> float32 `[D, n, R]`, or a tree of such arrays.
      rows_per_chunk: response rows of a shard computed at one time, n. With fewer than N, chunks run one after the other
        and their activations are computed again in the backward pass, so that memory does not grow with K. None: all.

    Returns:
      float32 `[G, K]`, or a tree of them as `read` gives one; 0 for a response that does not exist.

    Raises:
      ValueError: `rows_per_chunk` below 1.
    """
    return sums_and_load(model, batch, read, rows_per_chunk, False)[0]


def sums_and_load(
    model: Decoder, batch: GroupBatch, read: Read, rows_per_chunk: int | None = None, counted: bool = True
) -> tuple[Any, Load | None]:
    """`sum_over_responses`, and how the batch's tokens are spread over experts: of prompts (once) and responses, no padding.

    The load is None where it is not `counted`, and for a model that is no mixture.
    """
    counted = counted and model.config.experts is not None
    if rows_per_chunk is not None and rows_per_chunk < 1:
        raise ValueError(f"chunk sizes must be at least 1, got {rows_per_chunk=}")
    if batch.spread > 1 and batch.tokens.shape[0] != batch.spread:
        raise ValueError(
            f"the batch's groups are spread over {batch.spread} shards, and here are {batch.tokens.shape[0]}: under pmap or "
            "shard_map, score batches of RowLayout(spread=1)"
        )
    _warn_of_length(model.config, batch)
    batch = _in_pieces(_aligned(batch, _backend(model, batch)))
    count = batch.tokens.shape[1]
    whole = rows_per_chunk is None or rows_per_chunk >= count
    kv = load = None
    if not (whole and _pays_together()):
        _, kv, load = model.run(_prompts(model, batch, counted), keep_kv=True)
    rows = {name: getattr(batch, name) for name in _ROW_FIELDS}
    if whole:
        sums, more = _read_rows(model, batch, kv, read, counted, rows)
    else:

        def read_rows(part: jax.Array | None, own: dict[str, jax.Array]):
            return _read_rows(model if part is None else model.of_part(part), batch, kv, read, counted, own)

        sums, more = _scan_chunks(read_rows, rows, rows_per_chunk, batch, model.drops)
    load = more if load is None else jax.tree.map(jnp.add, load, more)
    if batch.spread > 1:
        # Every response stands in one shard, and is 0 in the others: between devices goes one number a response.
        return jax.tree.map(lambda x: constrain(x.sum(0).reshape(batch.mask.shape), "shards", None), sums), load
    return jax.tree.map(lambda x: x.reshape(batch.mask.shape), sums), load


def _warn_of_length(config: ModelConfig, batch: GroupBatch) -> None:
    scaling, longest = config.rope_scaling, batch.prompt_tokens.shape[-1] + batch.tokens.shape[-1]
    if scaling is None or not scaling.depends_on_length or config.rope_length is not None:
        return
    if longest > scaling.original_length:
        warnings.warn(
            f"rows of up to {longest} tokens are scored with the rotary frequencies of texts of at most "
            f"{scaling.original_length}: the model has others for longer ones; set its config's rope_length",
            stacklevel=3,
        )


def one_slot_per_token(batch: GroupBatch) -> GroupBatch:
    """The batch with R slots in place of each, R the length of its rows: one for every target of the response, in order.

    Targets that are not scored have a slot too, with nothing in it.
    """
    slots, length = jnp.asarray(batch.slots), batch.slots.shape[-1]
    at, segments, last = jnp.arange(length), jnp.asarray(batch.segments), slots.ndim - 1
    latest = jax.lax.cummax(jnp.where(slots >= 0, at, -1), axis=last)
    before = jnp.concatenate([jnp.full_like(latest[..., :1], -1), latest[..., :-1]], axis=-1)  # the scored target before
    same = (before >= 0) & (jnp.take_along_axis(segments, jnp.maximum(before, 0), axis=-1) == segments)
    first = jax.lax.cummax(jnp.where((slots >= 0) & ~same, at, 0), axis=last)
    mask = jnp.repeat(jnp.asarray(batch.mask), length, axis=1)
    return dataclasses.replace(batch, slots=jnp.where(slots < 0, -1, slots * length + at - first), mask=mask)


def _prompts(model: Decoder, batch: GroupBatch, counted: bool = False) -> Inputs:
    own = Tokens(batch.prompt_positions, batch.prompt_segments)
    seen = visibility_by_kind(kinds_of(model.config).windows, _backend(model, batch), own)
    real = jnp.asarray(batch.prompt_segments) > 0 if counted else None
    if counted and batch.repeated is not None:
        real &= ~jnp.asarray(batch.repeated)
    tokens, positions = (sequence.dealt(jnp.asarray(x), 2) for x in (batch.prompt_tokens, batch.prompt_positions))
    return Inputs(tokens, positions, seen, real if real is None else sequence.dealt(real, 2))


def _pays_together() -> bool:
    """Whether prompts and rows run in one scan: where weights are gathered, and the positions of rows are not cut."""
    return max(mesh_size("fsdp"), mesh_size("expert")) > 1 and sequence.pieces() == 1


def _backend(model: Decoder, batch: GroupBatch) -> str:
    """The model's attention backend, or another where `auto` chose one that does not take this batch."""
    if takes_packed(model.backend) or not (batch.packed or sequence.pieces() > 1):
        return model.backend
    if model.attention == "auto":
        return resolve_backend("auto", model.dtype, config=model.config, packed=True)
    if sequence.pieces() > 1:
        raise UserError(f"model.attention: {takes_no_pieces(model.backend, sequence.pieces())}")
    raise UserError(f"model.attention: {model.backend!r} takes one response per row, and this batch is packed (data.pack)")


def _aligned(batch: GroupBatch, backend: str) -> GroupBatch:
    """Prompts moved to the end that the backend's kernels count from: splash to the right, cuDNN to the left.

    At the right, distances between array indices are those between positions, which is what a sliding window needs.
    """
    if takes_packed(backend):
        return batch
    real = jnp.asarray(batch.prompt_segments) > 0
    order = jnp.argsort(~real if backend.startswith("cudnn") else real, axis=-1, stable=True)
    moved = {name: jnp.take_along_axis(jnp.asarray(getattr(batch, name)), order, axis=-1) for name in _PROMPT_FIELDS}
    return dataclasses.replace(batch, **moved)


def _in_pieces(batch: GroupBatch) -> GroupBatch:
    """Rows that the mesh can cut: padded to a length that its pieces divide."""
    if sequence.pieces() == 1:
        return batch

    def grown(name: str) -> jax.Array:
        x = jnp.asarray(getattr(batch, name))
        more = sequence.padded(x.shape[-1]) - x.shape[-1]
        return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, more)), constant_values=-1 if name == "slots" else 0)

    return dataclasses.replace(batch, **{name: grown(name) for name in (*_PROMPT_FIELDS, *_ROW_FIELDS[:-1])})


def _read_rows(model, batch, kv, read, counted, rows):
    """What is read of some of the batch's response rows, summed into response slots, `[D, slots]`, and the load of experts."""
    windows = kinds_of(model.config).windows
    own = Tokens(rows["positions"], rows["segments"], rows["parents"] if batch.packed else None, rows["groups"])
    prompt = Tokens(batch.prompt_positions, batch.prompt_segments)
    uniform = batch.uniform and rows["tokens"].shape == batch.tokens.shape
    seen = visibility_by_kind(windows, _backend(model, batch), own, prompt, rows["prompt_row"], uniform)
    rows = {name: sequence.dealt(jnp.asarray(x), 2) if x.ndim > 2 else x for name, x in rows.items()}
    inputs = Inputs(rows["tokens"], rows["positions"], seen, rows["segments"] > 0 if counted else None)
    ran = model.run_together(_prompts(model, batch, counted), inputs) if kv is None else model.run(inputs, kv)
    into_slots = functools.partial(_sum_into_slots, slots=rows["slots"], count=_slots(batch))
    return jax.tree.map(into_slots, read(ran.hidden, rows)), ran.load


def _slots(batch: GroupBatch) -> int:
    """How many response slots the rows of a shard may name."""
    return batch.mask.size // (1 if batch.spread > 1 else batch.tokens.shape[0])


def _sum_into_slots(values, slots, count):
    def one_shard(values, index):
        # A negative index would wrap around; one past the end is dropped.
        index = jnp.where(index < 0, count, index).reshape(-1)
        return jnp.zeros(count, jnp.float32).at[index].add(values.reshape(-1), mode="drop")

    return jax.vmap(one_shard)(values, slots)


def _scan_chunks(read_rows, rows, size, batch, dropout):
    """Sums over chunks of rows; the checkpoint makes the backward pass hold one chunk's activations at a time."""
    count = batch.tokens.shape[1]
    chunks = -(-count // size)

    def split(name, x):
        # Rows of padding: no segment, and slots that nothing is added to.
        fill = -1 if name == "slots" else 0
        padding = ((0, 0), (0, chunks * size - count), *((0, 0),) * (x.ndim - 2))
        x = jnp.pad(jnp.asarray(x), padding, constant_values=fill)
        return jnp.moveaxis(x.reshape(x.shape[:1] + (chunks, size) + x.shape[2:]), 1, 0)

    def body(sums, chunk):
        return jax.tree.map(jnp.add, sums, read_rows(*chunk)), None

    parts = jnp.arange(chunks) if dropout else None, {name: split(name, x) for name, x in rows.items()}
    shapes = jax.eval_shape(lambda each: read_rows(*jax.tree.map(lambda x: x[0], each)), parts)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), zero, parts)[0]
