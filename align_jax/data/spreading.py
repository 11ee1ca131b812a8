"""Steps whose groups are spread over the shards of several processes: each tells its lengths, then all plan the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from align_jax.batch import GroupBatch
from align_jax.data.packing.layout import RowLayout
from align_jax.data.packing.plan import GroupSize, Unit, group_size
from align_jax.data.packing.step_plan import plan_step, write_step
from align_jax.data.records import TokenGroup


@dataclasses.dataclass(frozen=True)
class Draft:
    """A step of which this process has read its part.

    Attributes:
      indices: the groups of the whole step. read: those that this process has read, by their numbers in the step.
      microbatches: A; 0 where there is no axis of microbatches. layout: how rows are filled.
    """

    indices: Sequence[int]
    read: dict[int, TokenGroup]
    microbatches: int
    layout: RowLayout


@dataclasses.dataclass(frozen=True)
class Spreading:
    """How one of several processes makes its batches.

    Attributes:
      load: number of a group of the data set -> its tokens.
      slots: K. groups_per_shard: G / D.
      part: this process's index, and how many there are. shards: the numbers of its shards.
      workers: threads that read what the plan brings here from other processes' parts.
    """

    load: Callable[[int], TokenGroup]
    slots: int
    groups_per_shard: int
    part: tuple[int, int]
    shards: tuple[int, ...]
    workers: int = 2

    def draft(self, indices: Sequence[int], microbatches: int, layout: RowLayout) -> Draft:
        """Reads this process's part of a step: with P processes every P-th group."""
        index, count = self.part
        return Draft(indices, {i: self.load(indices[i]) for i in range(index, len(indices), count)}, microbatches, layout)

    def batch(self, draft: Draft, agree: Callable[[tuple[int, ...]], tuple[int, ...] | None]) -> GroupBatch | None:
        """This process's shards of the step, and its part of the groups `[G]`.

        Args:
          agree: numbers of this process -> the largest of all processes, of each; None when it was closed.

        Returns:
          The batch, or None where `agree` gave None.
        """
        told = agree(self._lengths(draft))
        if told is None:
            return None
        width = self.slots + 1
        sizes = [_size(told[i * width : (i + 1) * width]) for i in range(len(draft.indices))]
        how = {"microbatches": max(1, draft.microbatches), "groups_per_shard": self.groups_per_shard, "layout": draft.layout}
        plan = plan_step(sizes, **how)
        # The arrays of a process without any group are like those of others: it needs one to know the labels.
        needed = plan.part(self.shards).groups or {0}
        missing = sorted(needed - draft.read.keys())
        with ThreadPoolExecutor(self.workers) as pool:
            loaded = dict(zip(missing, pool.map(lambda i: self.load(draft.indices[i]), missing), strict=True))
        groups = {i: draft.read[i] if i in draft.read else loaded[i] for i in needed}
        return write_step(plan, groups, slots=self.slots, layout=draft.layout, part=self.shards)

    def _lengths(self, draft: Draft) -> tuple[int, ...]:
        """Prompt and units of each group of the step in `1 + K` numbers, all 0 for those that other processes read."""
        told = []
        for i in range(len(draft.indices)):
            own: list[int] = []
            if i in draft.read:
                size = group_size(draft.read[i])
                own = [size.prompt, *(unit.size for unit in size.units)]
                if len(own) > self.slots + 1:
                    raise ValueError(f"group {draft.indices[i]} has {len(own) - 1} units, more than its {self.slots} slots")
            told += own + [0] * (self.slots + 1 - len(own))
        return tuple(told)


def _size(numbers: Sequence[int]) -> GroupSize:
    prompt, *units = numbers
    return GroupSize(prompt, tuple(Unit((i,), n) for i, n in enumerate(units) if n > 0))
