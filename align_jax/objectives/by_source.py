"""An objective that reports some of its metrics once more for each data set of a mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from align_jax.batch import GroupLabels
from align_jax.data.arrange import Arrangement
from align_jax.objectives.base import Metrics, Objective

REPORTED = ("loss", "rewards/accuracies", "rewards/margins", "beliefs/js_distance", "beliefs/mass")


@dataclasses.dataclass(frozen=True)
class BySource(Objective):
    """What `inner` minimizes and reports, and `source/NAME/loss` (and others of `REPORTED`) of each data set.

    Attributes:
      inner: the objective. names: of the data sets, in the order of the label `source_id`.
    """

    inner: Objective
    names: tuple[str, ...]

    @property
    def arrangement(self) -> Arrangement:
        return self.inner.arrangement

    @property
    def head(self) -> str:
        return self.inner.head

    @property
    def needs_reference(self) -> bool:
        return self.inner.needs_reference

    def statistics(self, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, jax.Array] | None:
        return self.inner.statistics(logps, batch)

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        metrics = self.inner(logps, batch, statistic)
        return metrics | by_source(metrics, jnp.asarray(batch.labels["source_id"]), self.names, jnp.where)


def by_source(metrics: Mapping[str, tuple], ids: Any, names: Sequence[str], where: Any) -> dict[str, tuple]:
    """Some metrics once more for each data set: name -> (sums `[G]`, weights `[G]`), 0 in groups of the others.

    Args:
      metrics: those of `REPORTED` are repeated. ids: int `[G]`, numbers of `names`. where: of JAX or NumPy.
    """
    reported = [name for name in REPORTED if name in metrics]
    return {
        f"source/{source}/{name}": tuple(where(ids == i, part, 0.0) for part in metrics[name])
        for i, source in enumerate(names)
        for name in reported
    }


def told_apart(objective: Objective, names: Sequence[str]) -> Objective:
    """The objective with metrics of each data set, where there are several."""
    return BySource(objective, tuple(names)) if names else objective
