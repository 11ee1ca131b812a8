"""Attention of response rows to their prompt and to themselves: backends behind one function, `attend`.

    seen = visibility("auto", tokens, window, prompt, prompt_row)      # once for all layers
    out = attend(q, k, v, seen, prefix_k, prefix_v)                    # in every layer

`xla` runs everywhere and takes every batch. The others never make a `[length, length]` array: `pallas` (TPU, our kernels)
and `triton` (GPU, our kernels, never run on a card: `auto` leaves them out) take every batch, too; `splash` (TPU, JAX's
kernels) and `cudnn` (GPU) take one prompt per prompt row and one response per response row (`GroupBatch.packed` False).

Where layers differ in their window, `visibility_by_kind` makes what each kind of layer sees, and `attend` takes the kind.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from align_jax.errors import UserError
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
from align_jax.models.attention.visible import (
    ByKind,
    Masks,
    RowIds,
    Seen,
    own_mask,
    prefix_mask,
    visibility,
    visibility_by_kind,
)
from align_jax.models.attention.xla import attend_xla

__all__ = [
    "BACKENDS",
    "BackendChoice",
    "ByKind",
    "Masks",
    "RowIds",
    "RowSpans",
    "Runs",
    "Seen",
    "Tokens",
    "attend",
    "choose_backend",
    "own_mask",
    "prefix_mask",
    "resolve_backend",
    "takes_no_pieces",
    "takes_packed",
    "visibility",
    "visibility_by_kind",
]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: Seen,
    prefix_k: jax.Array | None = None,
    prefix_v: jax.Array | None = None,
    *,
    kind: jax.Array | int | None = None,
    cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of every token over its visible prompt tokens and row tokens.

    Args:
      q: `[D, N, R, H, E]`; k, v: `[D, N, R, Hk, E]`, H a multiple of Hk (axes as in `align_jax.batch`; H query heads,
        Hk key/value heads, E the head size).
      seen: what is visible and which backend computes it, from `visibility`; made once for all layers.
      prefix_k, prefix_v: `[D, M, P, Hk, E]`, the prompt rows' keys and values; None for rows without a prompt.
      kind: int32 scalar, which of several visibilities; read only where there are several.
      cap: the c of `c tanh(logit / c)`, which logits go through before the softmax; None is none.
      sinks: `[H]`, one more logit of each head in the softmax, of no key and without a value (GPT-OSS); None is none.

    Returns:
      `[D, N, R, H, E]` in the type of q; logits, weights and sums are float32. Tokens of padding get finite values.
    """
    if isinstance(seen, ByKind):
        branches = [partial(_attend, seen=each, cap=cap) for each in seen.kinds]
        return jax.lax.switch(kind, branches, q, k, v, prefix_k, prefix_v, sinks)
    return _attend(q, k, v, prefix_k, prefix_v, sinks, seen, cap)


def _attend(q, k, v, prefix_k, prefix_v, sinks, seen, cap):
    backends = {Masks: attend_xla, Runs: attend_pallas, GpuRuns: attend_triton, RowSpans: attend_blockwise}
    if isinstance(seen, RowIds):
        backend = attend_cudnn if seen.backend == "cudnn" else attend_splash
    else:
        backend = backends[type(seen)]
    if sinks is None:
        return backend(q, k, v, seen, prefix_k, prefix_v, cap)
    if backend not in (attend_xla, attend_pallas, attend_blockwise):
        raise UserError("model.attention: only xla and pallas compute a model with attention sinks; set it to auto (or xla)")
    return backend(q, k, v, seen, prefix_k, prefix_v, cap, sinks.astype(jnp.float32))
