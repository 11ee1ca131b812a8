"""Which checkpoints of a run stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass
class KeepLatestAndBest:
    """Orbax preservation policy: the newest, others up to `keep` (those of `every` first), the best, multiples of `forever`."""

    keep: int
    mode: str
    scores: dict[int, float]
    every: int | None = None
    forever: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of the checkpoints (with a `step` each) stay."""
        steps = [info.step for info in checkpoints]
        older, newest = sorted(steps)[:-1], max(steps, default=None)
        older.sort(key=lambda step: (self.every is None or step % self.every == 0, step))
        kept = {newest, *older[max(len(older) - self.keep + 1, 0) :], self.best(steps)}
        return [step in kept or (self.forever is not None and step % self.forever == 0) for step in steps]

    def best(self, steps: Sequence[int]) -> int | None:
        """The step with the best metric, a tie goes to the later one; None where none has it."""
        sign = 1 if self.mode == "max" else -1
        scored = [step for step in steps if step in self.scores]
        return max(scored, key=lambda step: (sign * self.scores[step], step), default=None)
