"""What each token sees, in the form that a backend takes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from align_jax.models.attention.blockwise import RowSpans, row_spans
from align_jax.models.attention.runs import GpuRuns, Runs, runs_of
from align_jax.models.attention.tokens import Tokens
from align_jax.parallel import sequence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masks:
    """True where a query sees a key: `own` bool `[D, N, R, R]`, `prefix` bool `[D, N, R, P]` or None.

    `prompt_row` int32 `[D, N]` names each row's prompt row; None says that rows are uniform (batch.uniform).
    """

    own: jax.Array
    prefix: jax.Array | None = None
    prompt_row: jax.Array | None = None


def own_mask(tokens: Tokens, window: int | None) -> jax.Array:
    """Which tokens of its own row each token sees: bool `[D, N, R, R]`."""
    q_segment, k_segment = tokens.segments[..., :, None], tokens.segments[..., None, :]
    same = q_segment == k_segment
    if tokens.parents is not None:
        same |= (tokens.parents[..., :, None] == k_segment) & (k_segment > 0)
    index = jnp.arange(tokens.segments.shape[-1])
    return same & (index[:, None] >= index[None, :]) & _near(tokens.positions, tokens.positions, window)


def prefix_mask(tokens: Tokens, prompt: Tokens, prompt_row: jax.Array, window: int | None) -> jax.Array:
    """Which tokens of its prompt row each response token sees: bool `[D, N, R, P]`."""
    take = jax.vmap(lambda rows, index: rows[index])
    segments, positions = take(prompt.segments, prompt_row), take(prompt.positions, prompt_row)
    same = (tokens.groups[..., :, None] == segments[..., None, :]) & (segments > 0)[..., None, :]
    return same & _near(tokens.positions, positions, window)


def _near(q_positions: jax.Array, k_positions: jax.Array, window: int | None) -> jax.Array | bool:
    if window is None:
        return True
    return q_positions[..., :, None] - k_positions[..., None, :] < window


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowIds:
    """Visibility for splash and cuDNN, which make no mask: causal within a segment, the whole prompt before it.

    Attributes:
      segments: int32 `[D, N, R]`; a token sees the earlier tokens of its row with its segment. 0 is padding.
      prefix: int32 `[D, M, P]`, 1 for a token of the prompt and 0 for padding; None for rows without a prompt.
      prompt_row: int32 `[D, N]` names each row's prompt row; None says that rows are uniform (batch.uniform).
      window: how far back a token sees, counted by array index over `[prefix | row]`; None is everything.
      backend: which kernels compute it.
    """

    segments: jax.Array
    prefix: jax.Array | None = None
    prompt_row: jax.Array | None = None
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    backend: str = dataclasses.field(default="splash", metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByKind:
    """What tokens see in each kind of layer."""

    kinds: tuple[Masks | RowIds | Runs | GpuRuns | RowSpans, ...]


Seen = Masks | RowIds | Runs | GpuRuns | RowSpans | ByKind


def visibility(
    backend: str,
    tokens: Tokens,
    window: int | None,
    prompt: Tokens | None = None,
    prompt_row: jax.Array | None = None,
    uniform: bool = False,
) -> Masks | RowIds | Runs | GpuRuns | RowSpans:
    """What tokens see, for one backend; of tokens in their natural order, also where a mesh cuts rows.

    Args:
      backend: a resolved name, see `resolve_backend`. `splash` and `cudnn` ask for `packed` False where there is a prompt,
        and for prompts at the end of their rows that the kernels count from.
      tokens: of the rows.
      window: the model's sliding window; None is everything.
      prompt, prompt_row: the prompt rows, and int32 `[D, N]` which of them each row sees; None for rows without a prompt.
      uniform: see `align_jax.batch.GroupBatch.uniform`.
    """
    rows = None if uniform else prompt_row
    if backend == "xla" and sequence.pieces() > 1:
        return row_spans(tokens, window, prompt, prompt_row)
    if backend == "xla":
        prefix = None if prompt is None else prefix_mask(tokens, prompt, prompt_row, window)
        return Masks(own_mask(tokens, window), prefix, rows)
    if backend in ("pallas", "triton"):
        runs = runs_of(tokens, window, prompt, prompt_row)
        return GpuRuns(runs) if backend == "triton" else runs
    segments = jnp.asarray(tokens.segments)
    farthest = segments.shape[-1] - 1 + (0 if prompt is None else prompt.segments.shape[-1])
    window = None if window is None or window > farthest else window
    if prompt is None:
        return RowIds(segments, window=window, backend=backend)
    exists = [(jnp.asarray(x) > 0).astype(jnp.int32) for x in (segments, prompt.segments)]
    return RowIds(exists[0], exists[1], rows, window, backend)


def visibility_by_kind(
    windows: tuple[int | None, ...],
    backend: str,
    tokens: Tokens,
    prompt: Tokens | None = None,
    prompt_row: jax.Array | None = None,
    uniform: bool = False,
) -> Seen:
    """What tokens see in each kind of layer; one for all where the kinds' windows are the same, or as good as none.

    Args:
      windows: of each kind, see `align_jax.models.kinds`. The others are those of `visibility`.
    """
    farthest = tokens.segments.shape[-1] - 1 + (0 if prompt is None else prompt.segments.shape[-1])
    if len(set(windows)) > 1:
        windows = tuple(None if window is None or window > farthest else window for window in windows)
    made = {w: visibility(backend, tokens, w, prompt, prompt_row, uniform) for w in dict.fromkeys(windows)}
    return made[windows[0]] if len(made) == 1 else ByKind(tuple(made[window] for window in windows))
