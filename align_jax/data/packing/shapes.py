"""The few shapes that the batches of a data set fit in with little padding."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from align_jax.data.packing.cover import MOST_SHAPES, SPARE, cover
from align_jax.data.packing.layout import RowLayout, fit, needed, split
from align_jax.data.packing.plan import GroupSize, Shape, longest, plan_packed


def choose_shapes(
    sizes: Sequence[GroupSize],
    *,
    shards: int,
    groups_per_shard: int,
    layout: RowLayout,
    limits: tuple[int, int],
    seed: int = 0,
    steps: int = 192,
    most: int = MOST_SHAPES,
    batches: float = math.inf,
) -> RowLayout:
    """The layout with the `shapes` that hold random steps of the data in the least work.

    Steps are drawn from the sizes and packed for several lengths of the prompt rows, then of the response rows. For each
    length, shapes are added one by one, each time the one that saves most, beginning with one that holds every step, as long
    as what a shape saves over all batches is more than its compilation costs (`layout.price`); the length with the least work
    wins, compilations included.

    Args:
      sizes: of a sample of the groups.
      shards, groups_per_shard: of a step.
      layout: which lengths there may be, and what a position costs.
      limits: positions of the longest prompt and of the largest unit that the data may have, sample or not.
      seed: of the drawn steps. steps: how many. most: shapes at most.
      batches: how many will be computed in these shapes.

    Returns:
      The layout itself where it is not packed.
    """
    if not layout.pack:
        return layout
    rng, count = np.random.default_rng((seed, 5)), shards * groups_per_shard
    order = np.concatenate([rng.permutation(len(sizes)) for _ in range(-(-steps * count // len(sizes)))])
    drawn = []
    for step in range(steps):
        groups = [sizes[i] for i in order[step * count : (step + 1) * count]]
        drawn.append([[groups[i] for i in shard] for shard in split(groups, shards, groups_per_shard)])
    prompts, responses = _lengths(sizes, layout, limits)
    found: dict[tuple[int, int], tuple[float, tuple[Shape, ...]]] = {}

    def work(p: int, r: int) -> float:
        if (p, r) not in found:
            found[p, r] = _shapes_for(drawn, p, r, layout, most, layout.price / batches)
        return found[p, r][0]

    prompt_length = min(prompts, key=lambda p: work(p, responses[0]))
    length = min(responses, key=lambda r: work(prompt_length, r))
    return dataclasses.replace(layout, shapes=found[prompt_length, length][1])


_FACTORS = ((1, 1.5, 2, 3, 4), (1, 1.25, 1.5, 2, 3))


def _lengths(sizes: Sequence[GroupSize], layout: RowLayout, limits: tuple[int, int]) -> list[list[int]]:
    """Lengths to try for prompt rows and for response rows: what the longest needs, and a few times that.

    A limit itself is a length where the sample comes near it, as it does wherever many texts are cut.
    """
    lengths = []
    ladders = (layout.prompt_lengths, layout.response_lengths)
    for value, limit, ladder, factors in zip(longest(sizes), limits, ladders, _FACTORS, strict=True):
        base = limit if value <= limit <= 1.25 * value else fit(value, ladder)
        lengths.append(list(dict.fromkeys([base, *(-(-int(base * f) // 8) * 8 for f in factors[1:])])))
    return lengths


def _shapes_for(
    drawn, prompt_length: int, length: int, layout: RowLayout, most: int, price: float
) -> tuple[float, tuple[Shape, ...]]:
    """Mean work of a step, with its part of the compilations, and the shapes, for one pair of row lengths."""
    needs = np.array([needed([plan_packed(shard, prompt_length, length) for shard in step]) for step in drawn])
    widest = [int(np.ceil(n * SPARE)) for n in needs.max(0)]
    rows = [sorted({*needs[:, i].tolist(), widest[i]}) for i in (0, 1)]
    options = [Shape(m, prompt_length, n, length) for m, n in itertools.product(*rows)]
    work = np.array([option.work(layout.dense) for option in options], np.float64)
    m, n = np.array([(o.prompt_rows, o.rows) for o in options]).T
    holds = (m >= needs[:, :1]) & (n >= needs[:, 1:])  # [steps, options]
    cost = np.where(holds, work, np.inf)
    chosen = cover(cost, options.index(Shape(widest[0], prompt_length, widest[1], length)), most, price)
    return float(cost[:, chosen].min(1).mean() + price * len(chosen)), tuple(sorted(options[i] for i in chosen))
