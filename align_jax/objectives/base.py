"""What every objective is: which responses it needs, which loss it takes of them, which metrics it reports."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax.batch import GroupLabels
from align_jax.data.arrange import Arrangement

# name -> (sums [G], weights [G]): the metric is sum(sums) / sum(weights) over whatever groups are put together, so that
# microbatches, devices and evaluation batches of unequal size all give the same number. "loss" is always there.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of all objectives; the fields of a subclass are the keys of its `objective` section.

    A subclass outside this folder needs no `name`: `objective.name: package.module:Class` finds it.

    Class attributes:
      name: the value of `objective.name`.
      arrangement: which responses stand in which slots, and the labels; a property where it depends on a field.
      head: what the model has on its last layer, and so what the objective is called with: `lm_head`, response log-probs;
        `score`, a reward model's scores.
      learning_rate: where the config gives none: of full training, a usual one for this kind of loss.
      needs_contrast: whether groups whose responses all have one score teach nothing; a property of a mixture.
    """

    name: ClassVar[str]
    arrangement: ClassVar[Arrangement]
    head: ClassVar[str] = "lm_head"
    learning_rate: ClassVar[float] = 1e-6
    needs_contrast: ClassVar[bool] = False

    @property
    def needs_reference(self) -> bool:
        """Whether batches must carry `labels["ref_logps"]` `[G, K]`."""
        return True

    @property
    def needs_collisions(self) -> bool:
        """Whether batches must carry `labels["log_collisions"]` `[G, K]`, see `align_jax.scoring.logps.ResponseSums`."""
        return False

    def statistics(self, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, jax.Array] | None:
        """A (sum, weight) over the whole batch that the loss depends on and is not differentiated; None for most."""
        return None

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        """Loss and metrics of scored groups.

        Args:
          logps: float32 `[G, K]`, the policy's response log-probs, or the model's scores where `head` is `score`.
          batch: mask, lengths and labels of the groups.
          statistic: the mean of `statistics` over the whole batch, where there is one.

        Returns:
          Metrics with one (sum, weight) per group; `loss` is what training minimizes.
        """
        raise TypeError(f"{type(self).__name__} does not define a loss")


def ref_logps(batch: GroupLabels, like: jax.Array, reference_free: bool) -> jax.Array:
    """The reference's log-probs `[G, K]`, or zeros for a reference-free objective."""
    if reference_free:
        return jnp.zeros_like(like)
    if "ref_logps" not in batch.labels:
        raise ValueError("the batch has no labels['ref_logps']; compute them, or set objective.reference_free")
    return jnp.asarray(batch.labels["ref_logps"])


def weighted(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A metric entry from values `[G]` and weights `[G]`; a value of weight 0 may be NaN."""
    weights = weights.astype(jnp.float32)
    return jnp.where(weights > 0, values, 0.0) * weights, weights
