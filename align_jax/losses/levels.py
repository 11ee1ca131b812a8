"""Ordered levels of responses from their scores, for `ordered_mpo_loss`: integers, 0 best.

Responses with one score are of one level, whatever the rule. What a mask leaves out has level 0, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, as_mask, check_same_shape, check_set_axis


def levels_by_range(scores: ArrayLike, mask: ArrayLike, levels: int) -> jax.Array:
    """Which of M equal intervals between the group's lowest and highest score a response is in.

        level_i = min(M - 1, floor(M (max S - S_i) / (max S - min S)))

    Args:
      scores: `[G, K]`, larger is better. mask: bool `[G, K]`, True for a response that exists.
      levels: M, at least 2.

    Returns:
      int32 `[G, K]`; a number in between that no response has is no level.

    Raises:
      ValueError: the shapes differ, or fewer than 2 levels.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> losses.levels_by_range(np.array([[9.0, 10.0, 5.5, 1.0]]), np.ones((1, 4), bool), 3).tolist()
      [[0, 0, 1, 2]]
    """
    scores, mask = _checked(scores, mask, levels)
    low = jnp.min(jnp.where(mask, scores, jnp.inf), axis=-1, keepdims=True)
    high = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
    span = jnp.where(high > low, high - low, 1.0)
    rank = jnp.floor((high - jnp.where(mask, scores, high)) / span * levels)
    return jnp.where(mask, jnp.minimum(rank, levels - 1), 0).astype(jnp.int32)


def levels_by_quantiles(scores: ArrayLike, mask: ArrayLike, levels: int) -> jax.Array:
    """Levels of equally many responses of the group, as far as ties allow: these stay in one level.

        level_i = floor(M m_i / n)      m_i = #{S_j > S_i} + (#{S_j = S_i} - 1) / 2, the mean rank from 0; n responses

    Unequal scores give at least two levels.

    Args:
      scores: `[G, K]`, larger is better. mask: bool `[G, K]`, True for a response that exists.
      levels: M, at least 2.

    Returns:
      int32 `[G, K]`. Needs `[G, K, K]` of memory.

    Raises:
      ValueError: the shapes differ, or fewer than 2 levels.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> losses.levels_by_quantiles(np.array([[100.0, 3.0, 2.0, 2.0, 1.0, 0.0]]), np.ones((1, 6), bool), 3).tolist()
      [[0, 0, 1, 1, 2, 2]]
    """
    scores, mask = _checked(scores, mask, levels)
    others = mask[..., None, :]
    better = jnp.sum(others & (scores[..., None, :] > scores[..., :, None]), axis=-1)
    equal = jnp.sum(others & (scores[..., None, :] == scores[..., :, None]), axis=-1)
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    # Twice the mean rank is whole: no rounding decides.
    return jnp.where(mask, (2 * better + equal - 1) * levels // (2 * count), 0).astype(jnp.int32)


def levels_by_thresholds(scores: ArrayLike, mask: ArrayLike, thresholds: Sequence[float]) -> jax.Array:
    """Levels divided by scores that are the same for all groups: a response's level is how many of them it does not reach.

        level_i = #{t : S_i < t}

    Args:
      scores: `[G, K]`, larger is better. mask: bool `[G, K]`, True for a response that exists.
      thresholds: M - 1 scores, at least one.

    Returns:
      int32 `[G, K]`.

    Raises:
      ValueError: the shapes differ, or no threshold.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> losses.levels_by_thresholds(np.array([[9.0, 7.0, 6.9, 1.0]]), np.ones((1, 4), bool), [3, 7]).tolist()
      [[0, 0, 1, 2]]
    """
    scores, mask = _checked(scores, mask, len(thresholds) + 1)
    below = scores[..., None] < jnp.asarray(thresholds, jnp.float32)
    return jnp.where(mask, jnp.sum(below, axis=-1), 0).astype(jnp.int32)


def levels_of_grades(scores: ArrayLike, mask: ArrayLike, levels: int | None = None) -> jax.Array:
    """Every different score of a group as a level of its own: the scores are grades already.

        level_i = min(M - 1, number of different scores above S_i)

    Args:
      scores: `[G, K]`, larger is better. mask: bool `[G, K]`, True for a response that exists.
      levels: M, the most levels, at least 2: the worst ones share the last; None is as many as there are.

    Returns:
      int32 `[G, K]`. Needs `[G, K, K]` of memory.

    Raises:
      ValueError: the shapes differ, or fewer than 2 levels.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> losses.levels_of_grades(np.array([[5.0, 4.0, 5.0, 1.0, 0.0]]), np.ones((1, 5), bool)).tolist()
      [[0, 1, 0, 2, 3]]
    """
    scores, mask = _checked(scores, mask, levels)
    pairs = mask[..., :, None] & mask[..., None, :]
    same = pairs & (scores[..., :, None] == scores[..., None, :])
    first = mask & ~jnp.any(jnp.tril(same, -1), axis=-1)  # one response speaks for its grade
    above = jnp.sum(first[..., None, :] & (scores[..., None, :] > scores[..., :, None]), axis=-1)
    found = above if levels is None else jnp.minimum(above, levels - 1)
    return jnp.where(mask, found, 0).astype(jnp.int32)


def _checked(scores: ArrayLike, mask: ArrayLike, levels: int | None) -> tuple[jax.Array, jax.Array]:
    check_same_shape(scores=scores, mask=mask)
    check_set_axis("scores", scores)
    if levels is not None and levels < 2:
        raise ValueError(f"there must be at least 2 levels, got {levels}")
    (scores,), mask = as_floats(scores=scores), as_mask(mask)
    return jax.lax.stop_gradient(jnp.where(mask, scores, 0.0)), mask
