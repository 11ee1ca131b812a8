"""Steps that were left out, since their loss or gradient was not finite: which, how many, and how many are too many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


class SkippedSteps:
    """Counts steps that `train_step(skip=True)` left out; the weights and the optimizer are as before them.

    Args:
      most: how many a run may have; 0 where nothing is left out on the device.
      found: (step, metrics, rows of the batch) -> None, told of each, also of the one that ends the run.
      before: how many earlier starts of the run had; may be set before the first step.
    """

    def __init__(
        self, most: int = 0, found: Callable[[int, Mapping[str, float], Any], None] = lambda *_: None, before: int = 0
    ):
        self.most, self._found, self.before = most, found, before
        self._steps: list[int] = []

    @property
    def count(self) -> int:
        """Of the run so far."""
        return self.before + len(self._steps)

    def updates_before(self, step: int) -> int:
        """How many updates were made before a step: where its schedule is."""
        return step - 1 - self.before - sum(skipped < step for skipped in self._steps)

    def see(self, step: int, metrics: dict[str, float], rows: Any) -> bool:
        """Counts a step where it was left out, and notes the count in its metrics; False where the run must end with it."""
        if not math.isfinite(metrics.get("loss", 0.0)) or not math.isfinite(metrics.get("grad_norm", 0.0)):
            self._found(step, metrics, rows)
            self._steps.append(step)
        if self.count and self.most:
            metrics["skipped"] = float(self.count)
        return not self._steps or self._steps[-1] != step or self.count <= self.most

    @property
    def why_ended(self) -> str:
        """What to say of the count where it was too large."""
        return f" It is skipped step {self.count} of the run, more than train.max_skipped={self.most}." if self.most else ""
