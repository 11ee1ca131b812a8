"""Which shapes batches may have: few, so that compilation is bounded, and tight, so that little padding is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from align_jax.data.packing.plan import GroupSize, Shape, ShardPlan, assign, longest, plan_packed


def ladder(smallest: int, largest: int, ratio: float, multiple: int) -> tuple[int, ...]:
    """Sizes from `smallest` up, each about `ratio` times the one before, multiples of `multiple`."""
    sizes, value = [], float(smallest)
    while not sizes or sizes[-1] < largest:
        size = -(-int(value) // multiple) * multiple
        if not sizes or size > sizes[-1]:
            sizes.append(size)
        value *= ratio
    return tuple(sizes)


LENGTHS = ladder(8, 1 << 18, 1.25, 8)
COUNTS = ladder(1, 1 << 18, 1.125, 1)


def fit(value: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes that holds the value."""
    for size in sizes:
        if size >= value:
            return size
    raise ValueError(f"{value} is more than the largest size of the layout, {sizes[-1]}")


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """How rows are filled, and which shapes there are.

    Attributes:
      pack: several prompts per prompt row and several segments per response row; False: one of each.
      align: `left` or `right`, where the prompt of an unpacked row stands; at the right, distance between array indices
        is distance in the conversation, as kernels with a static sliding window need.
      prompt_lengths, response_lengths: lengths that rows may have, ascending.
      row_counts: numbers of rows that there may be, ascending.
      shapes: packed shapes that are tried before the ladders, such as `data.shapes.choose_shapes` finds for a data set.
      uniform_waste: empty rows, as a fraction of the others, with which unpacked prompts may be filled up to the same
        number of rows each, so that keys need not be gathered.
      dense: cost of a position besides attention, in attended keys: about 6 x hidden width + half the vocabulary.
      price: what compiling one more shape costs, in the same unit (`Shape.work`).
      spread: over how many shards the tokens of a group may be spread, see `GroupBatch.spread`: all of a (micro)batch; 1: each
        group stands whole in one shard. Packed rows only.
      multiple: what lengths of rows are multiples of where groups are spread.
    """

    pack: bool = True
    align: str = "left"
    prompt_lengths: tuple[int, ...] = LENGTHS
    response_lengths: tuple[int, ...] = LENGTHS
    row_counts: tuple[int, ...] = COUNTS
    shapes: tuple[Shape, ...] = ()
    uniform_waste: float = 0.1
    dense: int = 32768
    price: float = 0.0
    spread: int = 1
    multiple: int = 8

    def __post_init__(self):
        if self.spread < 1 or self.multiple < 1 or (self.spread > 1 and not self.pack):
            raise ValueError(f"spread={self.spread} and multiple={self.multiple} must be positive, and spread rows packed")
        if self.align not in ("left", "right"):
            raise ValueError(f"align must be left or right, got {self.align!r}")
        for name in ("prompt_lengths", "response_lengths", "row_counts"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"{name} must be positive and ascending, got {values!r}")


Plans = tuple[Shape, list[ShardPlan]]


def packed_plans(shards: Sequence[Sequence[GroupSize]], layout: RowLayout) -> Plans:
    """The cheapest packed shape that holds every shard, and where everything goes in it."""
    prompt, unit = longest(size for shard in shards for size in shard)
    tried: dict[tuple[int, int], list[ShardPlan]] = {}

    def plans(prompt_length: int, length: int) -> list[ShardPlan]:
        key = (prompt_length, length)
        if key not in tried:
            tried[key] = [plan_packed(shard, *key) for shard in shards]
        return tried[key]

    fitting = [
        shape
        for shape in layout.shapes
        if shape.prompt_length >= prompt and shape.length >= unit and holds(shape, plans(shape.prompt_length, shape.length))
    ]
    if not fitting:
        for p in dict.fromkeys(fit(factor * prompt, layout.prompt_lengths) for factor in (1, 2, 4)):
            for r in dict.fromkeys(fit(int(factor * unit), layout.response_lengths) for factor in (1, 1.5, 2)):
                m, n = needed(plans(p, r))
                fitting.append(Shape(fit(m, layout.row_counts), p, fit(n, layout.row_counts), r))
    best = min(fitting, key=lambda shape: (shape.work(layout.dense), shape))
    return best, plans(best.prompt_length, best.length)


def needed(plans: Sequence[ShardPlan]) -> tuple[int, int]:
    """Prompt rows and response rows that the fullest shard needs, at least 1 each."""
    return max([1, *(len(p.prompts) for p in plans)]), max([1, *(len(p.rows) for p in plans)])


def holds(shape: Shape, plans: Sequence[ShardPlan]) -> bool:
    """Whether plans made for the shape's lengths have no more rows than it."""
    m, n = needed(plans)
    return m <= shape.prompt_rows and n <= shape.rows


def split(sizes: Sequence[GroupSize], shards: int, groups_per_shard: int) -> list[list[int]]:
    """Indices of the groups of every shard; a single shard keeps the order given.

    Raises:
      ValueError: no group, or more than the shards hold.
    """
    if not 1 <= len(sizes) <= shards * groups_per_shard:
        raise ValueError(f"{len(sizes)} groups for {shards} shards of {groups_per_shard} groups")
    return assign(sizes, shards, groups_per_shard)
