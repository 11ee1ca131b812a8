"""Which prompt goes to which row, and which response beside which: bin packing on lengths alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from align_jax.data.records import TokenGroup


class Shape(NamedTuple):
    """Sizes of a shard's arrays: M prompt rows of P positions, N response rows of R positions."""

    prompt_rows: int
    prompt_length: int
    rows: int
    length: int

    @property
    def positions(self) -> int:
        """M * P + N * R."""
        return self.prompt_rows * self.prompt_length + self.rows * self.length

    def work(self, dense: int) -> int:
        """Positions weighted by what each costs: `dense` and one for every key that it attends to."""
        prompt = self.prompt_rows * self.prompt_length * (dense + self.prompt_length)
        return prompt + self.rows * self.length * (dense + self.prompt_length + self.length)


@dataclasses.dataclass(frozen=True)
class Unit:
    """Segments that must share a row: one, or a belief and the texts that continue it.

    Attributes:
      segments: indices in the group, a parent first. size: their tokens.
    """

    segments: tuple[int, ...]
    size: int


@dataclasses.dataclass(frozen=True)
class GroupSize:
    """What packing needs to know of a group: computed prompt positions (tokens - 1), and its units."""

    prompt: int
    units: tuple[Unit, ...]

    @property
    def positions(self) -> int:
        """Positions that the group needs."""
        return self.prompt + self.responses

    @functools.cached_property
    def responses(self) -> int:
        """Positions of its units."""
        return sum(unit.size for unit in self.units)


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """Where everything of a shard goes.

    Attributes:
      prompts: the groups (indices within the shard) of every prompt row.
      rows: the prompt row of every response row, and its units as (group, unit).
      repeats: (prompt row, group) of prompts that stand elsewhere too, where they are counted.
    """

    prompts: list[list[int]]
    rows: list[tuple[int, list[tuple[int, Unit]]]]
    repeats: frozenset[tuple[int, int]] = frozenset()


def group_size(group: TokenGroup, *, pack: bool = True) -> GroupSize:
    """The lengths of a group; with `pack` False every segment is a unit that repeats its parent's tokens."""
    lengths = [len(s.tokens) + group.ends for s in group.segments]
    if not pack:
        own = (n + (lengths[s.parent] if s.parent >= 0 else 0) for n, s in zip(lengths, group.segments, strict=True))
        return GroupSize(len(group.prompt) - 1, tuple(Unit((i,), n) for i, n in enumerate(own)))
    members: dict[int, list[int]] = {i: [i] for i, s in enumerate(group.segments) if s.parent < 0}
    for i, segment in enumerate(group.segments):
        if segment.parent >= 0:
            members[segment.parent].append(i)
    units = tuple(Unit(tuple(m), sum(lengths[i] for i in m)) for m in members.values())
    return GroupSize(len(group.prompt) - 1, units)


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit-decreasing bin packing: for every bin the indices of its items; no item may exceed the capacity."""
    bins: list[list[int]] = []
    room = np.full(len(sizes), capacity)
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        bin_ = int(np.argmax(room >= sizes[item]))
        if bin_ == len(bins):
            bins.append([])
        bins[bin_].append(item)
        room[bin_] -= sizes[item]
    return bins


def plan_packed(sizes: Sequence[GroupSize], prompt_length: int, length: int) -> ShardPlan:
    """Packs a shard's prompts, then the responses of each prompt row, which may see no other prompt row."""
    prompts = first_fit([size.prompt for size in sizes], prompt_length)
    rows = []
    for row, members in enumerate(prompts):
        units = [(g, unit) for g in members for unit in sizes[g].units]
        rows += [(row, [units[i] for i in bin_]) for bin_ in first_fit([u.size for _, u in units], length)]
    return ShardPlan(prompts, rows)


def plan_single(sizes: Sequence[GroupSize], rows_per_prompt: int | None) -> ShardPlan:
    """One prompt per row and one unit per row, in order; `rows_per_prompt` fills each prompt up with empty rows."""
    rows: list[tuple[int, list[tuple[int, Unit]]]] = []
    for g, size in enumerate(sizes):
        rows += [(g, [(g, unit)]) for unit in size.units]
        rows += [(g, [])] * ((rows_per_prompt or 0) - len(size.units))
    return ShardPlan([[g] for g in range(len(sizes))], rows)


def assign(sizes: Sequence[GroupSize], shards: int, groups_per_shard: int) -> list[list[int]]:
    """Groups to shards so that computed tokens balance: longest first, to the least loaded shard that has room.

    Returns:
      For every shard the indices of its groups, in the order given.
    """
    result: list[list[int]] = [[] for _ in range(shards)]
    load = [0] * shards
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i].positions, i)):
        shard = min((s for s in range(shards) if len(result[s]) < groups_per_shard), key=lambda s: (load[s], s))
        result[shard].append(i)
        load[shard] += sizes[i].positions
    return [sorted(members) for members in result]


def longest(sizes: Iterable[GroupSize]) -> tuple[int, int]:
    """Positions of the longest prompt and of the largest unit, at least 1 each."""
    sizes = list(sizes)
    return max([1, *(s.prompt for s in sizes)]), max([1, *(u.size for s in sizes for u in s.units)])
