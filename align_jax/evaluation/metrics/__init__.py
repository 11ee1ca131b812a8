"""Metrics of scored responses, a file each: those of this folder are measured wherever their labels are."""

from __future__ import annotations

from collections.abc import Sequence

from align_jax import registry
from align_jax.errors import UserError
from align_jax.evaluation.metrics.base import Metric

__all__ = ["Metric", "find_metrics"]


def find_metrics(names: Sequence[str] = ()) -> list[Metric]:
    """The metrics of this folder, and those named `package.module:Class` (`evaluate.metrics`).

    Raises:
      UserError: a name that is no such class.
    """
    own = registry.table(__name__, Metric)
    for name in names:
        if name in own:
            raise UserError(f"evaluate.metrics: {name!r} is measured anyway; name metrics of your own, as package.module:Class")
    return [cls() for cls in own.values()] + [registry.find(n, __name__, Metric, "metric", "evaluate.metrics")() for n in names]
