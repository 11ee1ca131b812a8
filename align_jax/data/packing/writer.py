"""The arrays of a batch, written from plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.batch import GroupBatch
from align_jax.data.packing.layout import RowLayout
from align_jax.data.packing.plan import Shape, ShardPlan, Unit
from align_jax.data.records import TokenGroup


class Writer:
    """The arrays of a batch while they are filled, shard by shard.

    Args:
      shape: of every shard. shards, groups_per_shard: D and G / D, of this process.
      slots: K. layout: how rows are filled.
    """

    def __init__(self, shape: Shape, shards: int, groups_per_shard: int, slots: int, layout: RowLayout):
        prompts = (shards, shape.prompt_rows, shape.prompt_length)
        responses = (shards, shape.rows, shape.length)
        self.prompts = {name: np.zeros(prompts, np.int32) for name in ("tokens", "segments", "positions")}
        self.repeated = np.zeros(prompts, bool)
        names = ("tokens", "targets", "positions", "segments", "parents", "groups")
        self.responses = {name: np.zeros(responses, np.int32) for name in names}
        self.responses["slots"] = np.full(responses, -1, np.int32)
        self.prompt_row = np.zeros((shards, shape.rows), np.int32)
        self.mask = np.zeros((shards * groups_per_shard, slots), bool)
        self.lengths = np.zeros((shards * groups_per_shard, slots), np.int32)
        self.rows = np.full(shards * groups_per_shard, -1, np.int32)
        self.slots, self.layout = slots, layout

    def write_group(self, place: int, group: TokenGroup) -> None:
        """Writes what stands once for a group, at its place among the groups `[G]`."""
        self.rows[place] = group.row
        for segment in group.segments:
            if segment.slot >= 0:
                self.mask[place, segment.slot] = True
                self.lengths[place, segment.slot] = segment.length

    def write_tokens(self, d: int, groups: Mapping[int, TokenGroup], places: Mapping[int, int], plan: ShardPlan) -> None:
        """Writes the tokens of one shard.

        Args:
          groups: by their numbers in the plan. places: where the slots of each are counted from, in groups.
        """
        numbers = self._write_prompts(d, groups, plan)
        for row, (prompt_row, units) in enumerate(plan.rows):
            self.prompt_row[d, row] = prompt_row
            arrays = {name: array[d, row] for name, array in self.responses.items()}
            at = segment = 0
            for g, unit in units:
                number = numbers[prompt_row, g]
                at, segment = self._write_unit(arrays, at, segment, places[g], groups[g], unit, number)

    def _write_prompts(self, d: int, groups: Mapping[int, TokenGroup], plan: ShardPlan) -> dict[tuple[int, int], int]:
        """Returns the number of every group's prompt within its row."""
        arrays, numbers = {name: array[d] for name, array in self.prompts.items()}, {}
        for row, members in enumerate(plan.prompts):
            at = 0
            for number, g in enumerate(members, start=1):
                tokens = groups[g].prompt[:-1]
                if not self.layout.pack and self.layout.align == "right":
                    at = arrays["tokens"].shape[1] - len(tokens)
                here = slice(at, at + len(tokens))
                arrays["tokens"][row, here], arrays["segments"][row, here] = tokens, number
                arrays["positions"][row, here] = np.arange(len(tokens))
                self.repeated[d, row, here] = (row, g) in plan.repeats
                numbers[row, g], at = number, at + len(tokens)
        return numbers

    def _write_unit(
        self, arrays: dict[str, np.ndarray], at: int, segment: int, place: int, group: TokenGroup, unit: Unit, number: int
    ) -> tuple[int, int]:
        """Writes the segments of a unit from position `at` on; returns the next position and the last segment number."""
        numbers: dict[int, int] = {}
        for index in unit.segments:
            own = group.segments[index]
            parent = group.segments[own.parent] if own.parent >= 0 else None
            segment += 1
            numbers[index] = segment
            targets, prefix, slots = own.tokens, len(group.prompt), np.full(len(own.tokens), own.slot)
            if own.scored is not None:
                slots = np.where(own.scored, own.slot, -1)
            if group.ends:
                targets, slots = np.append(targets, 0), np.append(np.full(len(targets), -1), own.slot)
            first = group.prompt[-1]
            if parent is not None and self.layout.pack:
                prefix, first = prefix + len(parent.tokens), parent.tokens[-1]
            elif parent is not None:
                targets = np.concatenate([parent.tokens, own.tokens])
                slots = np.concatenate([np.full(len(parent.tokens), -1), slots])
            here = slice(at, at + len(targets))
            arrays["tokens"][here] = np.concatenate([[first], targets[:-1]])
            arrays["targets"][here] = targets
            arrays["positions"][here] = prefix - 1 + np.arange(len(targets))
            arrays["segments"][here], arrays["groups"][here] = segment, number
            arrays["parents"][here] = numbers[own.parent] if parent is not None and self.layout.pack else 0
            arrays["slots"][here] = np.where(slots >= 0, place * self.slots + slots, -1)
            at += len(targets)
        return at, segment

    def batch(self, groups: Sequence[TokenGroup], uniform: bool, like: TokenGroup | None = None) -> GroupBatch:
        """The batch.

        Args:
          groups: those written, in the order of their places. like: one with the same labels, where none was written.
        """
        like = groups[0] if like is None else like
        if uniform:
            shards, rows = self.prompt_row.shape
            prompts = self.prompts["tokens"].shape[1]
            self.prompt_row[:] = np.repeat(np.arange(prompts), rows // prompts)
        return GroupBatch(
            **{f"prompt_{name}": array for name, array in self.prompts.items()},
            **self.responses,
            prompt_row=self.prompt_row,
            mask=self.mask,
            lengths=self.lengths,
            rows=self.rows,
            labels=_labels(groups, like, self.rows >= 0, self.slots),
            repeated=self.repeated if self.layout.spread > 1 else None,
            uniform=uniform,
            packed=self.layout.pack,
            ends=like.ends,
            spread=self.layout.spread,
            per_response=tuple(sorted(like.per_response)),
        )


def _labels(groups: Sequence[TokenGroup], like: TokenGroup, real: np.ndarray, slots: int) -> dict[str, np.ndarray]:
    names = set(like.labels)
    different = next((group for group in groups if set(group.labels) != names), None)
    if different is not None:
        have = f"{sorted(different.labels)} and row {like.row} {sorted(names)}"
        raise ValueError(f"groups of one batch must have the same labels; row {different.row} has {have}")
    result = {}
    for name in like.labels:
        values = [np.asarray(group.labels[name]) for group in groups or [like]]
        if len({value.ndim for value in values}) > 1:
            raise ValueError(f"labels[{name!r}] has a different number of axes in different groups")
        shape = tuple(np.max([value.shape for value in values], axis=0).astype(int))
        if name in like.per_response:
            shape = (slots, *shape[1:])
        result[name] = np.zeros((len(real), *shape), values[0].dtype)
        for at, value in zip(np.flatnonzero(real), values if groups else [], strict=True):
            result[name][(at, *(slice(0, n) for n in value.shape))] = value
    return result
