"""How many pairs of tokens the kernels for packed rows compute, which a compiled program's text does not say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.batch import GroupBatch
from align_jax.models.attention.runs import NOTHING, kind_of, runs_of
from align_jax.models.attention.tokens import Tokens


def computed_pairs(batch: GroupBatch, window: int | None = None, parts: int = 1) -> tuple[int, int]:
    """(query, key) pairs of a head for all prompt rows, and for all response rows: whole blocks where anything is visible.

    Args:
      batch: any number of axes before those of a shard. Of shapes alone (`jax.ShapeDtypeStruct`) all rows are full: one
        prompt, one response.
      window: the model's sliding window. parts: S, devices that share the positions of a row.
    """
    prompt = Tokens(*(_cut(_shards(batch, name), parts) for name in ("prompt_positions", "prompt_segments")))
    rows = Tokens(*(_cut(_shards(batch, name), parts) for name in ("positions", "segments", "parents", "groups")))
    return _pairs(prompt, window, parts), _pairs(rows, window, parts, prompt, _shards(batch, "prompt_row", axes=1))


_runs_of = jax.jit(runs_of, static_argnames=("window", "parts"))  # on whatever mesh they are computed


def _pairs(tokens: Tokens, window: int | None, parts: int, *prompt) -> int:
    seen = _runs_of(tokens, window, *prompt, parts=parts)
    return int(jnp.sum(kind_of(seen.by_token) != NOTHING)) * seen.blocks.size**2


def _cut(array: np.ndarray, parts: int) -> np.ndarray:
    """Rows with padding, so that their positions can be dealt to devices."""
    more = -array.shape[-1] % (2 * parts) if parts > 1 else 0
    return np.pad(array, ((0, 0), (0, 0), (0, more)))


def _shards(batch: GroupBatch, name: str, axes: int = 2) -> np.ndarray:
    """An array of the batch with one axis before its last ones."""
    array = getattr(batch, name)
    if isinstance(array, jax.ShapeDtypeStruct):
        array = _full(batch, name)
    return np.asarray(array).reshape(-1, *array.shape[-axes:])


def _full(batch: GroupBatch, name: str) -> np.ndarray:
    shape, before = getattr(batch, name).shape, batch.prompt_tokens.shape[-1]
    if name.endswith("positions"):
        return np.broadcast_to(np.arange(shape[-1], dtype=np.int32) + (0 if name.startswith("prompt") else before), shape)
    if name == "prompt_row":
        each = -(-shape[-1] // batch.prompt_tokens.shape[-2])
        return np.broadcast_to(np.arange(shape[-1], dtype=np.int32) // each, shape)
    return np.full(shape, name != "parents", np.int32)
