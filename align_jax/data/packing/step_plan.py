"""The plan of a step whose groups are spread: one shape for all shards and microbatches, and where everything goes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from align_jax.batch import GroupBatch
from align_jax.data.packing.layout import RowLayout, split
from align_jax.data.packing.plan import GroupSize, Shape, ShardPlan, Unit, group_size, longest
from align_jax.data.packing.spread import plan_spread
from align_jax.data.packing.writer import Writer
from align_jax.data.records import TokenGroup

_GROWTH = 1.06  # of row lengths, from one shape to the next, where none of the layout's holds a step


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Where the groups of a step go; it follows from their lengths alone.

    Attributes:
      shape: of every shard.
      blocks: the shards' plans of each microbatch, with the groups' numbers in the step.
      places: of each microbatch, `[G]` numbers of the groups in the order in which they stand there, -1 for none. A group's
        place is in the shard that holds most of its tokens, as long as that has places left.
    """

    shape: Shape
    blocks: list[list[ShardPlan]]
    places: list[list[int]]

    def part(self, shards: Sequence[int]) -> StepPlan:
        """What a process with these shards holds of every microbatch, and the places that belong to them."""
        blocks = [[block[shard] for shard in shards] for block in self.blocks]
        each = len(self.places[0]) // len(self.blocks[0])
        places = [[g for shard in shards for g in block[shard * each : (shard + 1) * each]] for block in self.places]
        return dataclasses.replace(self, blocks=blocks, places=places)

    @property
    def groups(self) -> set[int]:
        """The groups whose tokens or places are in it."""
        standing = {g for block in self.blocks for plan in block for row in plan.prompts for g in row}
        return standing | {g for block in self.places for g in block if g >= 0}


def plan_step(sizes: Sequence[GroupSize], *, microbatches: int, groups_per_shard: int, layout: RowLayout) -> StepPlan:
    """Plans a step in the first of the layout's shapes, by their work, that holds it.

    Groups go to microbatches, as many to each, so that their tokens balance, and there to `layout.spread` shards. Where no
    shape holds them, the last one's rows are made longer until they do.

    Raises:
      ValueError: no group, or more than there is room for.
    """
    sizes = [_bare(size) for size in sizes]
    members = split(sizes, microbatches, layout.spread * groups_per_shard)
    of_blocks = [[sizes[g] for g in block] for block in members]
    ordered = sorted(layout.shapes, key=lambda shape: (shape.work(layout.dense), shape))
    for shape in itertools.chain(ordered, _longer(ordered or [first_shape(of_blocks, layout)], of_blocks, layout)):
        plans = _in_shape(of_blocks, shape, layout.spread)
        if plans is not None:
            break
    numbered = [[_numbered(plan, block) for plan in found] for found, block in zip(plans, members, strict=True)]
    return StepPlan(shape, numbered, [_places(found, groups_per_shard) for found in numbered])


def _in_shape(of_blocks: Sequence[Sequence[GroupSize]], shape: Shape, shards: int) -> list[list[ShardPlan]] | None:
    plans = []
    for block in of_blocks:
        found = plan_spread(block, shards, shape) if block else [ShardPlan([], [])] * shards
        if found is None:
            return None
        plans.append(found)
    return plans


def first_shape(of_blocks: Sequence[Sequence[GroupSize]], layout: RowLayout) -> Shape:
    """A shape for microbatches like these, where the layout has none: rows of about the longest unit."""
    sizes = [size for block in of_blocks for size in block]
    prompt, unit = longest(sizes)
    shards = layout.spread * len(of_blocks)
    prompts, responses = sum(size.prompt for size in sizes) / shards, sum(size.responses for size in sizes) / shards
    lanes = max(1, round(prompts / (2 * prompt)))
    rows = max(1, int(responses / lanes / unit))
    up = lambda n: -(-int(n) // layout.multiple) * layout.multiple  # noqa: E731
    return Shape(lanes, up(max(prompt, prompts / lanes)), lanes * rows, up(max(unit, responses / lanes / rows)))


def _longer(shapes: Sequence[Shape], of_blocks: Sequence[Sequence[GroupSize]], layout: RowLayout) -> Iterator[Shape]:
    """The shapes with rows made as long as the longest prompt and unit need, then the last of them longer and longer.

    Lengths grow by a factor, not to what is needed, so that there are few shapes.
    """
    prompt, unit = longest(size for block in of_blocks for size in block)

    def grown(length: int, least: int, steps: int) -> int:
        steps += max(0, math.ceil(math.log(least / length, _GROWTH)))
        while (rounded := -(-int(length * _GROWTH**steps) // layout.multiple) * layout.multiple) < least:
            steps += 1
        return rounded

    held = [Shape(s.prompt_rows, grown(s.prompt_length, prompt, 0), s.rows, grown(s.length, unit, 0)) for s in shapes]
    yield from held
    for steps in itertools.count(1):
        last = held[-1]
        yield Shape(last.prompt_rows, last.prompt_length, last.rows, grown(last.length, unit, steps))
        yield Shape(last.prompt_rows, grown(last.prompt_length, prompt, steps), last.rows, grown(last.length, unit, steps))


def _bare(size: GroupSize) -> GroupSize:
    """The same with units that hold their number in place of segments, which another process's lengths do not tell."""
    return GroupSize(size.prompt, tuple(Unit((i,), unit.size) for i, unit in enumerate(size.units)))


def _numbered(plan: ShardPlan, block: Sequence[int]) -> ShardPlan:
    """A plan of a microbatch with the numbers of the step."""
    return ShardPlan(
        [[block[g] for g in row] for row in plan.prompts],
        [(row, [(block[g], unit) for g, unit in units]) for row, units in plan.rows],
        frozenset((row, block[g]) for row, g in plan.repeats),
    )


def _places(plans: Sequence[ShardPlan], groups_per_shard: int) -> list[int]:
    held: dict[int, dict[int, int]] = {}
    for shard, plan in enumerate(plans):
        for _, units in plan.rows:
            for g, unit in units:
                of_group = held.setdefault(g, {})
                of_group[shard] = of_group.get(shard, 0) + unit.size
    shards, homeless = [[] for _ in plans], []
    for g in sorted(held):
        best = min(held[g], key=lambda shard: (-held[g][shard], shard))
        (shards[best] if len(shards[best]) < groups_per_shard else homeless).append(g)
    for shard in shards:
        while homeless and len(shard) < groups_per_shard:
            shard.append(homeless.pop(0))
        shard += [-1] * (groups_per_shard - len(shard))
    return [g for shard in shards for g in shard]


def write_step(
    plan: StepPlan, groups: Mapping[int, TokenGroup], *, slots: int, layout: RowLayout, part: Sequence[int] | None = None
) -> GroupBatch:
    """The arrays of a planned step, microbatches as further shards.

    Args:
      plan: of the step.
      groups: those of the step that this process holds, by number: `plan.part(part).groups`.
      slots: K. layout: what the plan was made for.
      part: the numbers of this process's shards; None: all.
    """
    mine = plan if part is None else plan.part(part)
    shards, room = len(mine.blocks[0]), len(mine.places[0])
    writer, real = Writer(plan.shape, len(mine.blocks) * shards, room // shards, slots, layout), []
    for b, (block, places) in enumerate(zip(mine.blocks, mine.places, strict=True)):
        for at, g in enumerate(places):
            if g >= 0:
                writer.write_group(b * room + at, groups[g])
                real.append(groups[g])
        place = {g: at for at, g in enumerate(plan.places[b])}
        for d, shard in enumerate(block):
            writer.write_tokens(b * shards + d, groups, place, _with_units(shard, groups))
    return writer.batch(real, uniform=True, like=next(iter(groups.values())))


def _with_units(plan: ShardPlan, groups: Mapping[int, TokenGroup]) -> ShardPlan:
    """A plan whose units hold their segments again, see `_bare`."""
    units = {g: group_size(groups[g]).units for row in plan.prompts for g in row}
    rows = [(row, [(g, units[g][unit.segments[0]]) for g, unit in members]) for row, members in plan.rows]
    return dataclasses.replace(plan, rows=rows)
