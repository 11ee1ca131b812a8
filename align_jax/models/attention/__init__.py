"""Attention of response rows to their prompt and to themselves: backends behind one function, `attend`.

    seen = visibility("auto", tokens, window, prompt, prompt_row)      # once for all layers
    out = attend(q, k, v, seen, prefix_k, prefix_v)                    # in every layer

`xla` runs everywhere and takes every batch. The others never make a `[length, length]` array: `pallas` (TPU, our kernels)
and `triton` (GPU, our kernels, never run on a card: `auto` leaves them out) take every batch, too; `splash` (TPU, JAX's
kernels) and `cudnn` (GPU) take one prompt per prompt row and one response per response row (`GroupBatch.packed` False).
"""

from __future__ import annotations

import jax

from align_jax.models.attention.backends import (
    BACKENDS,
    BackendChoice,
    choose_backend,
    resolve_backend,
    takes_no_pieces,
    takes_packed,
)
from align_jax.models.attention.blockwise import RowSpans, attend_blockwise
from align_jax.models.attention.cudnn import attend_cudnn
from align_jax.models.attention.pallas import attend_pallas
from align_jax.models.attention.runs import GpuRuns, Runs
from align_jax.models.attention.splash import attend_splash
from align_jax.models.attention.tokens import Tokens
from align_jax.models.attention.triton import attend_triton
from align_jax.models.attention.visible import Masks, RowIds, own_mask, prefix_mask, visibility
from align_jax.models.attention.xla import attend_xla

__all__ = [
    "BACKENDS",
    "BackendChoice",
    "Masks",
    "RowIds",
    "RowSpans",
    "Runs",
    "Tokens",
    "attend",
    "choose_backend",
    "own_mask",
    "prefix_mask",
    "resolve_backend",
    "takes_no_pieces",
    "takes_packed",
    "visibility",
]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: Masks | RowIds | Runs | RowSpans,
    prefix_k: jax.Array | None = None,
    prefix_v: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of every token over its visible prompt tokens and row tokens.

    Args:
      q: `[D, N, R, H, E]`; k, v: `[D, N, R, Hk, E]`, H a multiple of Hk (axes as in `align_jax.batch`; H query heads,
        Hk key/value heads, E the head size).
      seen: what is visible and which backend computes it, from `visibility`; made once for all layers.
      prefix_k, prefix_v: `[D, M, P, Hk, E]`, the prompt rows' keys and values; None for rows without a prompt.

    Returns:
      `[D, N, R, H, E]` in the type of q; logits, weights and sums are float32. Tokens of padding get finite values.
    """
    if isinstance(seen, Masks):
        return attend_xla(q, k, v, seen, prefix_k, prefix_v)
    if isinstance(seen, Runs):
        return attend_pallas(q, k, v, seen, prefix_k, prefix_v)
    if isinstance(seen, GpuRuns):
        return attend_triton(q, k, v, seen, prefix_k, prefix_v)
    if isinstance(seen, RowSpans):
        return attend_blockwise(q, k, v, seen, prefix_k, prefix_v)
    backend = attend_cudnn if seen.backend == "cudnn" else attend_splash
    return backend(q, k, v, seen, prefix_k, prefix_v)
