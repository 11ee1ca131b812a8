"""Slots of one arrangement as those of another: how terms of a mixture read the same responses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from align_jax.batch import GroupLabels
from align_jax.data.arrange import Arrangement, Group, Pair, Sft, SplitPair, Unpaired
from align_jax.losses import partition

# Which slots make up each slot of the view, bool `[G, K', K]`, and which of these exist, bool `[G, K']`.
Selection = tuple[jax.Array, jax.Array]


def can_see(want: Arrangement, have: Arrangement) -> bool:
    """Whether an objective of arrangement `want` can read groups that are arranged as `have`."""
    return want == have or (type(want), type(have)) in _SELECTIONS


def seen_as(want: Arrangement, have: Arrangement, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, GroupLabels]:
    """Log-probs and labels of groups that are arranged as `have`, in the slots of arrangement `want`.

    Args:
      logps: `[G, K]`. batch: of the same groups.

    Returns:
      Log-probs `[G, K']`, and the batch with its mask, lengths and labels per response in these slots.

    Raises:
      KeyError: `can_see` is False.
    """
    if want == have:
        return logps, batch
    mask = jnp.asarray(batch.mask)
    chosen, exists = _SELECTIONS[type(want), type(have)](batch, mask)
    chosen = chosen & mask[:, None]

    def read(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(chosen, jnp.asarray(values)[:, None], 0), axis=-1)

    per_response = {"ref_logps", "log_collisions", *(name for name, label in have.labels.items() if label.per_response)}
    labels = {name: read(value) if name in per_response else value for name, value in batch.labels.items()}
    return read(logps), GroupLabels(exists, read(batch.lengths), labels)


def _slots(batch: GroupLabels, *picked: jax.Array) -> jax.Array:
    """Each slot of the view is one slot of the groups, `[G]`."""
    return jnp.stack([jax.nn.one_hot(slot, batch.mask.shape[1], dtype=bool) for slot in picked], axis=1)


def _extremes(batch: GroupLabels, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The slots with the highest and the lowest score, `[G]`."""
    scores = jnp.asarray(batch.scores)
    best, worst = jnp.where(mask, scores, -jnp.inf), jnp.where(mask, scores, jnp.inf)
    return jnp.argmax(best, axis=-1), jnp.argmin(worst, axis=-1)


def _pair_of_group(batch: GroupLabels, mask: jax.Array) -> Selection:
    contrast = partition(jnp.asarray(batch.scores), mask)[2]
    return _slots(batch, *_extremes(batch, mask)), jnp.broadcast_to(contrast[:, None], (len(mask), 2))


def _best_of_group(batch: GroupLabels, mask: jax.Array) -> Selection:
    return _slots(batch, _extremes(batch, mask)[0]), jnp.any(mask, axis=-1, keepdims=True)


def _whole_of_split(batch: GroupLabels, mask: jax.Array) -> Selection:
    parts = jnp.arange(4) % 2 == jnp.arange(2)[:, None]
    return jnp.broadcast_to(parts, (len(mask), 2, 4)), mask[:, :2]


def _chosen_of_split(batch: GroupLabels, mask: jax.Array) -> Selection:
    parts, exists = _whole_of_split(batch, mask)
    return parts[:, :1], exists[:, :1]


def _first(batch: GroupLabels, mask: jax.Array) -> Selection:
    return _slots(batch, jnp.zeros(len(mask), int)), mask[:, :1]


def _desirable(batch: GroupLabels, mask: jax.Array) -> Selection:
    slots, exists = _first(batch, mask)
    return slots, exists & jnp.asarray(batch.labels["desirable"])[:, None]


# (what the objective wants, what the groups are)
_SELECTIONS: dict[tuple[type, type], Callable[[GroupLabels, jax.Array], Selection]] = {
    (Sft, Pair): _first,
    (Sft, SplitPair): _chosen_of_split,
    (Sft, Group): _best_of_group,
    (Sft, Unpaired): _desirable,
    (Pair, SplitPair): _whole_of_split,
    (Pair, Group): _pair_of_group,
}
