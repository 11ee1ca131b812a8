"""Which keys each token sees, as runs of neighbours, and which blocks of tokens and keys have anything to do.

All rows of a shard stand one after the other, and so do its keys, `[prompt rows | padding | rows | padding]`. Of these keys
a token sees three runs `first .. last`, in this order: its prompt, its own segment up to itself, and its segment's parent;
`0 .. -1` where there is none. So two integers a run say all that `align_jax.batch` calls visible, a sliding window makes
the runs shorter and no more, and a kernel compares a key's index with them.

The work of a kernel is the list of pairs of blocks (tokens, keys) in which anything is visible, made here once for all
layers. An item is one integer: `block that is written << 17 | block that is read << 3 | kind`.

Where a mesh cuts rows (`align_jax.parallel.sequence`), every device has the tokens of its S-th of the positions, and all keys.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from align_jax.errors import UserError
from align_jax.models.attention.tokens import Tokens
from align_jax.parallel import sequence
from align_jax.parallel.axes import constrain

# What a pair of blocks needs: nothing; no mask; the mask of the prompt's run; of the own one; of the own and the parent's.
NOTHING, ALL, PROMPT, OWN, PARENT = range(5)
_KIND_BITS, _BLOCK_BITS = 3, 14
# Tokens of a block, the row length from which on it is taken, and what is taken below it: small blocks leave out more, large
# ones cost less a pair.
_BLOCK, _LONG_ROW, _LONG_BLOCK, _SMALL_BLOCK = 256, 4096, 512, 128


@dataclasses.dataclass(frozen=True)
class Blocks:
    """In tokens: the size of a block (of tokens and of keys alike), a shard's rows, and its prompt rows, with padding.

    `tokens` are those of the rows that a device has, one of `parts`, with padding.
    """

    size: int
    rows: int
    prompts: int
    tokens: int
    parts: int = 1

    @classmethod
    def of(cls, rows: int, length: int, prompts: int, parts: int = 1) -> Blocks:
        """Of `rows` tokens in rows of `length`, and tokens of prompts; a device has one of `parts` of the rows' tokens.

        Raises:
          UserError: more blocks than an item of work can name.
        """
        own = rows // parts
        long = length >= _LONG_ROW and length // parts >= _LONG_BLOCK
        size = _LONG_BLOCK if long else _BLOCK if own > _SMALL_BLOCK else min(_SMALL_BLOCK, _BLOCK)
        up = lambda count: -(-count // size) * size  # noqa: E731
        blocks = cls(size, up(rows), up(prompts), up(own), parts)
        if blocks.of_keys >= 1 << _BLOCK_BITS:
            raise UserError(
                f"model.attention: 'pallas' takes fewer than {size << _BLOCK_BITS} tokens of a shard at a time, got "
                f"{rows + prompts}; set model.rows_per_chunk, or raise train.accumulation_steps"
            )
        return blocks

    @property
    def of_tokens(self) -> int:
        """How many blocks of tokens there are."""
        return self.tokens // self.size

    @property
    def of_keys(self) -> int:
        """How many blocks of keys there are."""
        return (self.prompts + self.rows) // self.size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Runs:
    """Visibility for the kernel of packed rows; the S parts of a shard's rows follow one another on the leading axis.

    Attributes:
      spans: int32 `[D S, 6, tokens]`, the first and the last key of each run in turn, for every token of the shard's rows.
      by_token: int32 `[D S, items]`, the work in the order of tokens. by_key: the same in the order of keys.
      counts: int32 `[D S, 2]`, how many items of both lists there are.
      blocks: static; see `Blocks`.
    """

    spans: jax.Array
    by_token: jax.Array
    by_key: jax.Array
    counts: jax.Array
    blocks: Blocks = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GpuRuns:
    """The same, for the kernels of a GPU."""

    runs: Runs


def runs_of(
    tokens: Tokens,
    window: int | None,
    prompt: Tokens | None = None,
    prompt_row: jax.Array | None = None,
    parts: int | None = None,
) -> Runs:
    """The runs of keys that tokens see and the work that this makes; arguments as of `visibility`.

    Args:
      parts: S; None is what the mesh in context says.
    """
    (shards, rows, length), parts = tokens.segments.shape, parts or sequence.pieces()
    prompt_size = (0, 0) if prompt is None else prompt.segments.shape[1:]
    blocks = Blocks.of(rows * length, length, prompt_size[0] * prompt_size[1], parts)
    row = blocks.prompts + length * jnp.arange(rows, dtype=jnp.int32)[:, None]
    before = None if prompt is None else jnp.asarray(prompt_row)[..., None] * prompt_size[1]
    spans = spans_of(tokens, window, prompt, prompt_row, (before, row))
    own = rows * length // parts
    own_parts = [part_of_devices(x, parts) for run in spans for x in run]
    flat = [constrain(x.reshape(shards * parts, own), "shard_pieces", None) for x in own_parts]
    # Tokens of padding see nothing: first 0, last -1.
    padding = ((0, 0), (0, blocks.tokens - own))
    flat = [jnp.pad(x, padding, constant_values=-(i % 2)) for i, x in enumerate(flat)]
    pairs = jax.vmap(lambda *x: _kinds(x, blocks))(*flat)
    most = _most_items(blocks, length, prompt_size)
    by_token, count = jax.vmap(lambda x: _work(x, most))(pairs)
    by_key, count_by_key = jax.vmap(lambda x: _work(x.T, most))(pairs)
    return Runs(jnp.stack(flat, axis=1), by_token, by_key, jnp.stack([count, count_by_key], axis=1), blocks)


def block_of(item: jax.Array) -> jax.Array:
    """The block that an item of work adds to."""
    return item >> (_KIND_BITS + _BLOCK_BITS)


def other_block_of(item: jax.Array) -> jax.Array:
    """The block that an item of work reads."""
    return (item >> _KIND_BITS) & ((1 << _BLOCK_BITS) - 1)


def kind_of(item: jax.Array) -> jax.Array:
    """NOTHING, ALL, PROMPT, OWN or PARENT."""
    return item & ((1 << _KIND_BITS) - 1)


def part_of_devices(x: jax.Array, parts: int) -> jax.Array:
    """`[D, N, R]` by natural position -> `[D, S, N, R / S]`, what each of the S devices of a row has; itself where S is 1.

    Args:
      parts: S.
    """
    return x if parts == 1 else sequence.by_device(sequence.dealt(x, 2, parts), 2, 1, parts)


def spans_of(tokens, window, prompt, prompt_row, at):
    """First and last key `[D, N, R]` of each run: of the prompt, the own segment, the parent.

    Args:
      at: where keys of a row's prompt row, and its own, begin: int32 that go with `[D, N, R]`.
    """
    segments, positions = jnp.asarray(tokens.segments), jnp.asarray(tokens.positions)
    index = jnp.broadcast_to(jnp.arange(segments.shape[-1], dtype=jnp.int32), segments.shape)
    before, row = at
    ends = _ends(segments, positions)

    def own_run(of, upto):
        first, last, position = (jnp.take_along_axis(x, of, axis=-1) for x in ends)
        first = _within(first, position, positions, window)
        return _or_none(of, first + row, jnp.minimum(last, upto) + row)

    none = jnp.zeros_like(index), jnp.full_like(index, -1)
    own = own_run(segments, index)
    parent = none if tokens.parents is None else own_run(jnp.asarray(tokens.parents), index)
    if prompt is None:
        return none, own, parent
    groups = jnp.asarray(tokens.groups)
    of_rows = [jax.vmap(lambda x, i: x[i])(x, jnp.asarray(prompt_row)) for x in _ends(prompt.segments, prompt.positions)]
    first, last, position = (jnp.take_along_axis(x, groups, axis=-1) for x in of_rows)
    first = _within(first, position, positions, window)
    return _or_none(groups, first + before, last + before), own, parent


def _ends(segments, positions):
    """Of every segment of every row, by its number: its first index, its last one, and the position of its first token."""
    segments, positions = jnp.asarray(segments), jnp.asarray(positions)
    length = segments.shape[-1]
    index = jnp.arange(length, dtype=jnp.int32)

    def of_row(segments, positions):
        first = jnp.full(length + 1, length, jnp.int32).at[segments].min(index, mode="drop")
        last = jnp.full(length + 1, -1, jnp.int32).at[segments].max(index, mode="drop")
        return first, last, positions[jnp.minimum(first, length - 1)]

    return jax.vmap(jax.vmap(of_row))(segments, positions)


def _within(first, position, own, window):
    """The first key of a run that is less than `window` positions before tokens at positions `own`."""
    return first if window is None else first + jnp.maximum(0, own - window + 1 - position)


def _or_none(of, first, last):
    """The run, or `0 .. -1` where there is none: no segment, an empty one, or all of it too far back."""
    seen = (of > 0) & (first <= last)
    return jnp.where(seen, first, 0), jnp.where(seen, last, -1)


def _kinds(flat, blocks: Blocks):
    """What each pair of blocks needs, int32 `[blocks of tokens, blocks of keys]`; flat: firsts and lasts `[tokens]` in turn."""
    start = jnp.arange(blocks.of_keys, dtype=jnp.int32) * blocks.size
    end = start + blocks.size - 1
    split = [x.reshape(blocks.of_tokens, blocks.size, 1) for x in flat]
    runs = list(zip(split[::2], split[1::2], strict=True))
    touched = [jnp.any((first <= end) & (last >= start), axis=1) for first, last in runs]
    whole = sum((first <= start) & (last >= end) for first, last in runs) > 0
    result = jnp.full(touched[0].shape, NOTHING, jnp.int32)
    for kind, seen in zip((PROMPT, OWN, PARENT), touched, strict=True):
        result = jnp.where(seen, kind, result)
    return jnp.where(jnp.all(whole, axis=1), ALL, result)


def _work(kinds, most: int):
    """Items of work `[most]` and their number; every block that is written has one at least. Fillers repeat the last."""
    count, others = kinds.shape
    nothing = ~jnp.any(kinds > 0, axis=1)
    wanted = (kinds > 0).at[:, 0].set((kinds[:, 0] > 0) | nothing).reshape(-1)
    number = jnp.sum(wanted, dtype=jnp.int32)
    at = jnp.flatnonzero(wanted, size=most, fill_value=0).astype(jnp.int32)
    last = at[number - 1]
    real = jnp.arange(most) < number
    at = jnp.where(real, at, last)
    kind = jnp.where(real, kinds.reshape(-1)[at], NOTHING)
    return (at // others << (_KIND_BITS + _BLOCK_BITS)) | (at % others << _KIND_BITS) | kind, number


def _most_items(blocks: Blocks, length: int, prompt_size: tuple[int, int]) -> int:
    """How much work there can be: a token sees nothing but its row, to itself, and its prompt row."""
    rows = (blocks.size - 2) // (length // blocks.parts) + 2  # that a block of tokens may have a part of
    own = rows * ((length - 2) // blocks.size + 2) if blocks.parts > 1 else (blocks.size + length - 2) // blocks.size + 2
    own = min(blocks.rows // blocks.size, own)
    prompts = blocks.prompts // blocks.size
    if prompts:
        prompts = min(prompts, min(rows, prompt_size[0]) * ((prompt_size[1] - 2) // blocks.size + 2))
    every = blocks.of_tokens * blocks.of_keys
    return min(every, blocks.of_tokens * (own + prompts) + blocks.of_keys)
