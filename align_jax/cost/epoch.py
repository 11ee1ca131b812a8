"""The shapes that an epoch of groups is computed in: how often each occurs, and how much of it is real.

steps = epoch_steps(loader, dataset, model, 64)       # lengths -> shapes: the loader's own packing, nothing of it here
uses = shapes_of(steps)                               # the few programs, by the work that they do
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.batch import GroupBatch, computed_positions
from align_jax.cost.benchmark import shape_key
from align_jax.cost.flops import Forward, group_flops
from align_jax.data import BatchLoader
from align_jax.models import ModelConfig


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of training.

    Attributes:
      batch: as the loader gives it. forward: the least operations of scoring its groups.
      real: positions that its groups need, each prompt and answer once.
    """

    batch: GroupBatch
    forward: Forward
    real: int

    @property
    def computed(self) -> int:
        """Positions that are computed."""
        return computed_positions(self.batch)


@dataclasses.dataclass(frozen=True)
class ShapeUse:
    """A shape, and the steps that have it."""

    steps: tuple[Step, ...]

    @property
    def batch(self) -> GroupBatch:
        """One batch of this shape."""
        return self.steps[0].batch

    @property
    def computed(self) -> int:
        """Positions of a step, padding included."""
        return self.steps[0].computed

    @property
    def forward(self) -> Forward:
        """The least operations of scoring the groups of a step: the mean of its steps."""
        names = [field.name for field in dataclasses.fields(Forward)]
        return Forward(*(round(float(np.mean([getattr(step.forward, name) for step in self.steps]))) for name in names))

    @property
    def real_fraction(self) -> float:
        """Positions of real tokens among those computed."""
        return sum(step.real for step in self.steps) / (self.computed * len(self.steps))

    def describe(self) -> dict[str, Any]:
        """The shape, of a shard and microbatch, as JSON values."""
        batch = self.batch
        return {
            "prompt_rows": batch.prompt_tokens.shape[-2],
            "prompt_length": batch.prompt_tokens.shape[-1],
            "rows": batch.tokens.shape[-2],
            "length": batch.tokens.shape[-1],
        }


def epoch_steps(loader: BatchLoader, dataset: Any, model: ModelConfig, most: int) -> list[Step]:
    """The first steps of training, so many, without moving the loader.

    Args:
      loader: of these groups. dataset: index -> `TokenGroup`. most: how many steps.
    """
    found, rows = [], loader.first_rows(most)
    each = len(rows) // most
    for number, batch in enumerate(loader.preview(most)):
        groups = [dataset[int(i)] for i in rows[number * each : (number + 1) * each]]
        real = sum(len(g.prompt) - 1 + sum(len(s.tokens) + g.ends for s in g.segments) for g in groups)
        found.append(Step(batch, group_flops(model, groups), real))
    return found


def shapes_of(steps: Sequence[Step]) -> list[ShapeUse]:
    """The different shapes, the one first whose steps compute most together."""
    by_shape: dict[Any, list[Step]] = {}
    for step in steps:
        by_shape.setdefault(shape_key(step.batch), []).append(step)
    uses = [ShapeUse(tuple(found)) for found in by_shape.values()]
    return sorted(uses, key=lambda use: -use.computed * len(use.steps))


def chosen(uses: Sequence[ShapeUse], most: int) -> list[ShapeUse]:
    """Those to compile: the first ones, and the largest, whose memory decides whether the run fits."""
    largest = max(uses, key=lambda use: use.computed)
    first = list(uses[:most])
    return first if any(use is largest for use in first) else [*first[: most - 1], largest]


def real_fraction(uses: Sequence[ShapeUse]) -> float:
    """Positions of real tokens among those computed, over all steps."""
    computed = sum(use.computed * len(use.steps) for use in uses)
    return sum(step.real for use in uses for step in use.steps) / computed
