"""The slots of arrangement `Beliefs` taken apart, and who is taken to hold which belief."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from align_jax.batch import GroupLabels
from align_jax.data.arrange import Beliefs
from align_jax.objectives.base import Metrics


@dataclasses.dataclass(frozen=True)
class BeliefParts:
    """Log-probs of N beliefs, and of T texts behind C of them: the accepted one, or all (C = N)."""

    beliefs: jax.Array  # [G, N], of whole statements; -inf where the prompt has no such belief
    belief_mask: jax.Array  # bool [G, N]
    calibrated: jax.Array  # [G, N], of what is calibrated: whole statements, or the ids; -inf where there is none
    statement_means: jax.Array  # [G, N], of the statements per token, whole or shortened; 0 where there is none
    targets: jax.Array  # [G, N], p*; 0 where there is no such belief, NaN where nobody knows it
    chosen: jax.Array  # int [G], the accepted belief; -1 where nobody says it
    texts: jax.Array  # [G, C, T], 0 where there is none
    text_mask: jax.Array  # bool [G, C, T]
    text_lengths: jax.Array  # int [G, C, T], tokens of each
    exists: jax.Array  # bool [G]

    @property
    def accepted(self) -> jax.Array:
        """`[G, N]`, 1 at the accepted belief."""
        return jax.nn.one_hot(self.chosen, self.beliefs.shape[1])

    @property
    def accepted_texts(self) -> jax.Array:
        """`[G, C]`, of the row's own accepted text."""
        return self.texts[:, :, 0]

    @property
    def majority(self) -> tuple[jax.Array, jax.Array]:
        """bool `[G, C]`: whether a belief with texts is the target's most probable one, and whether that is known."""
        most = self.targets >= jnp.max(self.targets, axis=1, keepdims=True)
        if self.texts.shape[1] == 1:
            most = jnp.any(most & (self.accepted > 0), axis=1, keepdims=True)
        known = jnp.all(jnp.isfinite(self.targets), axis=1, keepdims=True)
        return most, jnp.broadcast_to(known, most.shape)


def split_beliefs(logps: jax.Array, batch: GroupLabels, arrangement: Beliefs) -> BeliefParts:
    """Takes the slots of arrangement `Beliefs` apart; see `BeliefParts`."""
    mask, lengths = jnp.asarray(batch.mask), jnp.asarray(batch.lengths)
    clean = jnp.where(mask, logps, 0.0)
    count = batch.labels["target_probs"].shape[1]
    extra = count * (arrangement.ids + arrangement.shortened)
    last = logps.shape[1] - extra
    there = mask[:, :count]
    # The slots of ids come first, those of shortened statements last.
    ids = slice(last, last + count) if arrangement.ids else slice(count)
    stated = slice(logps.shape[1] - count, None) if arrangement.shortened else slice(count)
    behind = count if arrangement.every else 1
    texts = lambda x: x[:, count:last].reshape(x.shape[0], behind, -1)  # noqa: E731
    return BeliefParts(
        beliefs=jnp.where(there, clean[:, :count], -jnp.inf),
        belief_mask=there,
        calibrated=jnp.where(there, clean[:, ids], -jnp.inf),
        statement_means=clean[:, stated] / jnp.maximum(lengths[:, stated], 1),
        targets=jnp.where(there, jnp.asarray(batch.labels["target_probs"]), 0.0),
        chosen=jnp.asarray(batch.labels["chosen_belief"]),
        texts=texts(clean),
        text_mask=texts(mask),
        text_lengths=texts(lengths),
        exists=jnp.any(there, axis=-1),
    )


def weighed(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum over the last axis of values times weights; a value of weight 0 counts nothing, whatever it is."""
    return jnp.sum(jnp.where(weights != 0, values, 0.0) * weights, axis=-1)


def gathered(metrics: Metrics, weights: jax.Array) -> Metrics:
    """Metrics of groups from those of every belief that their texts stand behind.

    Args:
      metrics: name -> (sums `[G * C]`, weights `[G * C]`). weights: `[G, C]`, of the beliefs of a group.
    """
    return {
        name: tuple(weighed(part.reshape(weights.shape).astype(jnp.float32), weights) for part in parts)
        for name, parts in metrics.items()
    }
