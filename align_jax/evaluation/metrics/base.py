"""What a metric of scored responses is."""

from __future__ import annotations

from typing import ClassVar

from align_jax.evaluation.responses import Responses
from align_jax.evaluation.table import Sums


class Metric:
    """Base of all metrics; a subclass defines `measure`. One instance measures every model of an evaluation.

    Class attributes:
      name: for a metric of this folder.
      labels: that the data must have; a metric of this folder is left out where it lacks one.
    """

    name: ClassVar[str]
    labels: ClassVar[tuple[str, ...]] = ()

    def measure(self, responses: Responses, beta: float) -> Sums:
        """The metric, or several, of all groups.

        Args:
          responses: log-probs `[n, K]`, mask, lengths and labels of n groups.
          beta: scale of implicit rewards; 1 for a reward model, whose scores are rewards.

        Returns:
          name -> (sums `[n]`, weights `[n]`): the metric over any groups is `sum(sums) / sum(weights)`.
        """
        raise TypeError(f"{type(self).__name__} does not define `measure`")
