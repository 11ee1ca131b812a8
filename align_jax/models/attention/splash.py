"""Attention by the splash kernels (Pallas, TPU): logits and masks exist in on-chip memory only, a block at a time.

One call per prompt: the queries of its C response rows, one after the other, over the keys `[prompt | row 0 | .. | row C-1]`.
A query at offset r of row c sees the prompt, and keys 0 .. r of row c; the kernel computes this from indices and skips
blocks in which nothing is visible, so the prompt's keys are not copied for its rows and rows do not pay for one another.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from align_jax.errors import UserError
from align_jax.models.attention.partition import over_mesh
from align_jax.models.attention.visible import RowIds
from align_jax.models.remat import ATTENTION

_BLOCKS = (512, 384, 256, 128)
_LONGEST = 4096  # queries of one call: more rows than this are cut into calls, each with the prompt's keys
_OFFSET_BITS = 16


def attend_splash(q, k, v, seen: RowIds, prefix_k=None, prefix_v=None, cap=None) -> jax.Array:
    """See `align_jax.models.attention.attend`."""
    shards, count, length, heads, size = q.shape
    scaled = (q.astype(jnp.float32) * size**-0.5).astype(q.dtype)
    rows = 1 if prefix_k is None or seen.prompt_row is not None else _rows_per_call(count // prefix_k.shape[1], length)
    if prefix_k is None:
        prefix_k = prefix_v = jnp.zeros((shards, count, 0, *k.shape[3:]), k.dtype)
        prefix = jnp.zeros((shards, count, 0), jnp.int32)
    else:
        where = _prompt_of_call(seen, shards, count // rows)
        prefix_k, prefix_v, prefix = (_take(x, where) for x in (prefix_k, prefix_v, seen.prefix))

    def calls(x):  # [D, N, R, ...] -> [D, calls, rows * R, ...]
        return x.reshape(shards, count // rows, rows * length, *x.shape[3:])

    ids = calls(seen.segments)
    keys, values = (jnp.concatenate([a, calls(b)], axis=2) for a, b in ((prefix_k, k), (prefix_v, v)))
    run = functools.partial(_run, length=length, before=prefix.shape[-1], window=seen.window, cap=cap)
    out = over_mesh(run, calls(scaled), (keys, values), (ids, jnp.concatenate([prefix, ids], axis=2)))
    return out.reshape(q.shape)


def _rows_per_call(rows: int, length: int) -> int:
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * length <= _LONGEST))


def _prompt_of_call(seen: RowIds, shards: int, calls: int) -> jax.Array | None:
    """Which prompt row each call sees, int32 `[D, calls]`; None where call i sees prompt row i."""
    if seen.prompt_row is not None:
        return seen.prompt_row
    prompts = seen.prefix.shape[1]
    if calls == prompts:
        return None
    return jnp.broadcast_to(jnp.repeat(jnp.arange(prompts), calls // prompts), (shards, calls))


def _take(x: jax.Array, index: jax.Array | None) -> jax.Array:
    return x if index is None else jax.vmap(lambda rows, i: rows[i])(x, index)


def _run(q, k, v, q_ids, k_ids, *, length, before, window, cap):
    """The kernel over `[D, calls, queries, H, E]` of one device."""
    shape = _Shape(q.shape[2] // length, length, before, window)
    kernel = _kernel(shape, q.shape[3], cap)
    q, k, v = (jnp.moveaxis(x, 3, 2) for x in (q, k, v))
    # Padded queries repeat the last one's id and mask, so that they see something; padded keys are seen by no query.
    padding = ((0, 0), (0, 0), (0, shape.padded_queries - q.shape[3]))
    q_ids = jnp.pad(q_ids, padding, mode="edge")
    q = jnp.pad(q, (*padding[:2], (0, 0), padding[2], (0, 0)))
    padding = ((0, 0), (0, 0), (0, shape.padded_keys - k.shape[3]))
    k_ids = jnp.pad(k_ids, padding, constant_values=-1)
    k, v = (jnp.pad(x, (*padding[:2], (0, 0), padding[2], (0, 0))) for x in (k, v))
    out = jax.vmap(jax.vmap(kernel))(q, k, v, kernels.SegmentIds(q_ids, k_ids))
    return jnp.moveaxis(out[:, :, :, : shape.rows * length], 2, 3)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Rows of one call, their length, the prompt's length, the window."""

    rows: int
    length: int
    before: int
    window: int | None

    @property
    def q_block(self) -> int:
        return _block(self.rows * self.length)

    @property
    def k_block(self) -> int:
        return _block(self.before + self.rows * self.length)

    @property
    def padded_queries(self) -> int:
        return _up(self.rows * self.length, self.q_block)

    @property
    def padded_keys(self) -> int:
        return _up(self.before + self.rows * self.length, self.k_block)


def _up(length: int, block: int) -> int:
    return -(-length // block) * block


def _block(length: int) -> int:
    """The largest block among those that pad the least."""
    return min(_BLOCKS, key=lambda block: (_up(length, block), -block))


def _kernel(shape: _Shape, heads: int, cap: float | None) -> kernels.SplashAttentionKernel:
    q, kv = shape.q_block, shape.k_block
    return kernels.make_splash_mha(
        masks.MultiHeadMask([_RowsMask(shape)] * heads),
        block_sizes=kernels.BlockSizes(block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        attn_logits_soft_cap=cap,
    )


@dataclasses.dataclass(frozen=True)
class _Visible:
    """Whether a query, given as `row * 2^16 + offset`, sees the key at an index; runs on the host and in the kernel."""

    shape: _Shape

    def __call__(self, q, k):
        row, offset = q >> _OFFSET_BITS, q & (2**_OFFSET_BITS - 1)
        before, window = self.shape.before, self.shape.window
        own = k - (before + row * self.shape.length)
        seen_own, seen_prompt = (own >= 0) & (own <= offset), k < before
        if window is not None:
            seen_own = seen_own & (offset - own < window)
            seen_prompt = seen_prompt & (before + offset - k < window)
        return seen_own | seen_prompt


class _RowsMask(masks.Mask):
    """The mask of `_Visible` for all queries of a call; `q_sequence` and `mask_function` are what the kernel reads."""

    def __init__(self, mask_shape: _Shape):
        self._of = mask_shape
        if mask_shape.length >= 2**_OFFSET_BITS:
            raise UserError(
                f"model.attention: 'splash' takes rows of fewer than {2**_OFFSET_BITS} tokens, got {mask_shape.length}; lower "
                "data.max_prompt_tokens and data.max_response_tokens, or set model.attention: xla"
            )
        index = np.minimum(np.arange(mask_shape.padded_queries), mask_shape.rows * mask_shape.length - 1)
        row, offset = np.divmod(index, mask_shape.length)
        self.q_sequence = ((row << _OFFSET_BITS) + offset).astype(np.int32)
        self.mask_function = _Visible(mask_shape)

    @property
    def shape(self) -> tuple[int, int]:
        return self._of.padded_queries, self._of.padded_keys

    def __getitem__(self, index) -> np.ndarray:
        queries, keys = index
        return self.mask_function(self.q_sequence[queries][:, None], np.arange(self.shape[1])[keys][None, :])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RowsMask) and self._of == other._of

    def __hash__(self) -> int:
        return hash(self._of)


def computed_pairs(rows: int, length: int, before: int, window: int | None = None) -> int:
    """How many (query, key) pairs a head computes for `rows` rows of a prompt: whole blocks, where anything is visible.

    Args:
      rows: responses of the prompt. length: of a row. before: of the prompt row; all with their padding.
    """
    per_call = _rows_per_call(rows, length)
    shape = _Shape(per_call, length, before, window)
    mask, pairs = _RowsMask(shape), 0
    for i in range(0, shape.padded_queries, shape.q_block):
        for j in range(0, shape.padded_keys, shape.k_block):
            if mask[i : i + shape.q_block, j : j + shape.k_block].any():
                pairs += shape.q_block * shape.k_block
    return pairs * rows // per_call
