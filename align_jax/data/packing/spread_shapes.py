"""The few shapes that steps fit in where groups are spread over shards."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from align_jax.data.packing.cover import MOST_SHAPES, SPARE, cover
from align_jax.data.packing.layout import RowLayout, split
from align_jax.data.packing.plan import GroupSize, Shape, longest
from align_jax.data.packing.spread import plan_spread

# Lanes of a shard, and response rows of a lane, that are tried.
_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
_FINE = 0.005  # part of a row's length by which the least length is told
_TRIES = 16
_FIRST, _FURTHER = 3, 10  # steps that all kinds of shapes are tried on, and how many kinds on further ones


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Shapes that differ in the length of response rows alone: M prompt rows of P positions, so many response rows each."""

    prompt_rows: int
    prompt_length: int
    each: int

    def at(self, length: int) -> Shape:
        return Shape(self.prompt_rows, self.prompt_length, self.prompt_rows * self.each, length)


Step = list[list[GroupSize]]  # the groups of each microbatch


def choose_spread_shapes(
    sizes: Sequence[GroupSize],
    *,
    microbatches: int,
    groups_per_shard: int,
    layout: RowLayout,
    limits: tuple[int, int],
    seed: int = 0,
    steps: int = 48,
    most: int = MOST_SHAPES,
    batches: float = math.inf,
) -> RowLayout:
    """The layout with the `shapes` that hold random steps of the data in the least work, their groups spread over shards.

    For several numbers of prompt rows, their length, and numbers of response rows, the least length of response rows that holds
    each drawn step is looked for; the kind of shape with the least mean work is taken, and as many lengths of its rows as save
    more than their compilation costs.

    Args:
      sizes: of a sample of the groups.
      microbatches, groups_per_shard: of a step; `layout.spread` shards make a microbatch.
      layout: how rows are filled, and what a position costs.
      limits: positions of the longest prompt and of the largest unit that the data may have, sample or not.
      seed: of the drawn steps. steps: how many. most: shapes at most. batches: how many will be computed in these shapes.
    """
    rng, count = np.random.default_rng((seed, 6)), layout.spread * groups_per_shard
    steps = max(6, steps // microbatches)
    drawn = [_drawn(rng, sizes, microbatches, count) for _ in range(steps)]
    dense, found = layout.dense, {}

    def work(kind: _Kind, steps: int) -> float:
        known = found.setdefault(kind, [])
        known += [_least_length(step, kind, layout) for step in drawn[len(known) : steps]]
        return sum(kind.at(length).work(dense) for length in known[:steps]) / steps

    totals = np.array([[[sum(s.prompt for s in b), sum(s.responses for s in b)] for b in step] for step in drawn])
    load = totals[..., 0].max() / layout.spread, totals[..., 1].mean() / layout.spread
    kinds = sorted(_kinds(sizes, load, layout, limits), key=lambda kind: _estimated(kind, load, sizes, layout))
    kinds = sorted(kinds[:_FURTHER], key=lambda kind: work(kind, _FIRST))[:3]
    best = min(kinds, key=lambda kind: work(kind, steps))
    return dataclasses.replace(layout, shapes=_lengths(best, found[best], layout, most, layout.price / batches))


def _drawn(rng: np.random.Generator, sizes: Sequence[GroupSize], microbatches: int, count: int) -> Step:
    """A step of random groups: with replacement, for those of one sample would have too equal sums."""
    groups = [sizes[i] for i in rng.integers(len(sizes), size=microbatches * count)]
    return [[groups[i] for i in block] for block in split(groups, microbatches, count)]


def _kinds(
    sizes: Sequence[GroupSize], load: tuple[float, float], layout: RowLayout, limits: tuple[int, int]
) -> Iterator[_Kind]:
    """Kinds to try; `load`: prompt positions of a shard in the fullest step, and response positions in the mean one."""
    prompt, unit = longest(sizes)
    # A limit itself is a length where the sample comes near it, as it does wherever many texts are cut.
    prompt, unit = (limit if n <= limit <= 1.25 * n else n for n, limit in zip((prompt, unit), limits, strict=True))
    for lanes in _COUNTS:
        needed = max(prompt, load[0] / lanes)
        lengths = {_up(factor * needed, layout) for factor in (1, 1.1, 1.25, 1.5, 2)}
        rows = [n for n in _COUNTS if n == 1 or load[1] / lanes / n >= unit]
        yield from (_Kind(lanes, length, n) for length, n in itertools.product(sorted(lengths), rows))


def _estimated(kind: _Kind, load: tuple[float, float], sizes: Sequence[GroupSize], layout: RowLayout) -> float:
    """The work of a shape that holds the mean shard nearly without padding; prompts that split groups repeat need room."""
    length = max(longest(sizes)[1], 1.02 * load[1] / (kind.prompt_rows * kind.each))
    crowded = kind.prompt_rows * kind.prompt_length < 1.15 * load[0]
    return kind.at(_up(length, layout)).work(layout.dense) * (1.1 if crowded else 1.0)


def _least_length(step: Step, kind: _Kind, layout: RowLayout) -> int:
    """The shortest response rows that hold every microbatch, nearly; much more where even quite long ones do not."""
    unit = longest(size for block in step for size in block)[1]
    room = layout.spread * kind.prompt_rows * kind.each
    length = _up(max(unit, max(sum(size.responses for size in block) for block in step) / room), layout)
    for tries in range(_TRIES):
        if all(plan_spread(block, layout.spread, kind.at(length)) for block in step):
            return length
        length = _up(length * (1 + _FINE * (1 + tries / 4)) + 1, layout)
    return _up(1.5 * length, layout)


def _lengths(kind: _Kind, needs: Sequence[int], layout: RowLayout, most: int, price: float) -> tuple[Shape, ...]:
    widest = _up(SPARE * max(needs), layout)
    options = [kind.at(length) for length in sorted({*needs, widest})]
    work = np.array([option.work(layout.dense) for option in options], np.float64)
    holds = np.array([option.length for option in options]) >= np.array(needs)[:, None]
    chosen = cover(np.where(holds, work, np.inf), len(options) - 1, most, price)
    return tuple(sorted(options[i] for i in chosen))


def _up(length: float, layout: RowLayout) -> int:
    return -(-math.ceil(length) // layout.multiple) * layout.multiple
