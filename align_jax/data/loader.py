"""Batches in a seeded order, made ahead by workers, with an iterator whose state can be saved and restored exactly."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from align_jax.batch import GroupBatch
from align_jax.data.agreed import Agree, AgreedAhead, agreed, stacked
from align_jax.data.dataset import GroupDataset, labelled
from align_jax.data.packing.arrays import pack_groups
from align_jax.data.packing.layout import RowLayout
from align_jax.data.packing.plan import Shape
from align_jax.data.packing.shapes import choose_shapes
from align_jax.data.packing.spread_shapes import choose_spread_shapes
from align_jax.data.records import TokenGroup
from align_jax.data.spreading import Draft, Spreading

_ENDLESS = 1 << 48  # groups that a loader hands out


class BatchLoader:
    """An endless iterator of training batches, and one pass of evaluation batches.

    Every epoch is a new seeded order in which each group occurs once; a batch may span two epochs, so none is dropped.
    Process p of P takes every P-th group of that order, or, where groups are spread over all shards, of each step what the plan
    puts in its shards.

    Args:
      dataset: the groups.
      shards: D, data shards of this process.
      groups_per_step: groups of a step, over all processes and microbatches.
      accumulation_steps: A, microbatches of a step.
      seed: of the order. shuffle: False keeps the order of the data.
      layout: how rows are filled; its `shapes`, where it has none, are chosen for the data set and the number of `batches`.
      batches: how many will be computed, over and over ones counted each time; what a shape saves is weighed with it.
      labels: name -> `[rows, K]`, joined to the groups by row.
      workers, prefetch: threads that make batches, and how many are made ahead.
      process_index, process_count: which part of the data this process reads; several that hold the same shards are one.
      shard_numbers: which shards of the whole batch are this process's, ascending; None: those of consecutive processes.
      agree: with several processes: this process's numbers (`(M, P, N, R, K)`, or lengths of groups) -> the largest of all
        processes, of each. Called once per batch, in the thread that asks for the batch.
      agree_ahead: makes another one for training batches, which are then made in a thread of their own that calls it, so that
        who asks for a batch need not wait; with a method `close()`, after which it returns None.

    Raises:
      ValueError: a number of groups that cannot be split evenly, or several processes without `agree`.
    """

    def __init__(
        self,
        dataset: GroupDataset,
        *,
        shards: int,
        groups_per_step: int,
        accumulation_steps: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        layout: RowLayout | None = None,
        batches: float = math.inf,
        labels: dict[str, np.ndarray] | None = None,
        workers: int = 2,
        prefetch: int = 4,
        process_index: int = 0,
        process_count: int = 1,
        shard_numbers: tuple[int, ...] | None = None,
        agree: Agree | None = None,
        agree_ahead: Callable[[], Any] | None = None,
    ):
        parts = shards * process_count * accumulation_steps
        if groups_per_step % parts:
            raise ValueError(f"{groups_per_step} groups per step cannot be split over {parts} shards and microbatches")
        if process_count > 1 and agree is None:
            raise ValueError(f"{process_count} processes need `agree`, so that their batches have one shape")
        self._dataset, self._shards, self._accumulation = dataset, shards, accumulation_steps
        self._per_shard, self._seed = groups_per_step // parts, seed
        self._layout, self._uses, self._labels = layout or RowLayout(), batches, labels or {}
        self._process, self._agree, self._agree_ahead = (process_index, process_count), agree, agree_ahead
        self._lock = threading.Lock()
        self._options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(prefetch, workers))
        order = grain.MapDataset.range(len(dataset)).seed(seed)
        # grain's own endless repeat overflows where the batch is a single group
        self._order = (order.shuffle() if shuffle else order).repeat(_ENDLESS // len(dataset) + 1)
        self._groups_per_step, self._begun = groups_per_step, False
        self._spreads = self._layout.spread > 1 and process_count > 1
        first = process_index * shards
        self._numbers = tuple(range(first, first + shards)) if shard_numbers is None else shard_numbers
        if self._layout.spread not in (1, shards * process_count):
            raise ValueError(f"groups are spread over all {shards * process_count} shards or none, not {self._layout.spread}")
        if self._spreads:
            self._batches = self._order.batch(groups_per_step, batch_fn=list).map(self._train_draft)
        else:
            mine = self._order[process_index::process_count]
            self._batches = mine.batch(groups_per_step // process_count, batch_fn=list).map(self._train_batch)
        self._iterator = iter(self._batches.to_iter_dataset(self._options))
        self._agreed: AgreedAhead | None = None  # with `agree_ahead`, from the first batch on
        self._state = self._iterator.get_state()

    def __iter__(self) -> BatchLoader:
        return self

    def __next__(self) -> GroupBatch:
        """The next batch, microbatches on a leading axis A of every array."""
        self._begun = True
        if self._agree_ahead is None:
            batch = self._made(next(self._iterator))
            self._state = self._iterator.get_state()
            return batch
        if self._agreed is None:
            self._agreed = AgreedAhead(self, self._agree_ahead())
        batch, self._state = self._agreed.get()
        return batch

    def drawn(self) -> tuple[GroupBatch | Draft, dict[str, Any], Callable[[GroupBatch | Draft, Agree], GroupBatch | None]]:
        """What this process made of the next step, the state after it, and what makes its batch of that and of `agree`."""
        return next(self._iterator), self._iterator.get_state(), self._agreeing

    def preview(self, steps: int) -> Iterator[GroupBatch]:
        """The batches of the first steps, without moving the loader."""
        for batch in itertools.islice(self._batches.to_iter_dataset(self._options), steps):
            yield self._made(batch)

    def join(self, labels: dict[str, np.ndarray]) -> None:
        """Adds labels, name -> `[rows, K]`, to the groups of all batches that are made from now on.

        Raises:
          ValueError: a batch was handed out already, so that others made ahead have no such label.
        """
        if self._begun:
            raise ValueError("labels must be joined before the first batch is taken")
        self._labels = {**self._labels, **labels}

    def first_rows(self, steps: int) -> np.ndarray:
        """The group numbers of the first steps, over all processes: int `[steps * groups_per_step]`."""
        return np.asarray([self._order[i] for i in range(steps * self._groups_per_step)], np.int64)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on after the batch handed out last; JSON values."""
        return self._state

    @property
    def shapes(self) -> dict[str, Any]:
        """The shapes of training batches, and the split they were chosen for; JSON values, for `restore`."""
        return {"split": self._split, "shapes": [list(shape) for shape in self.train_layout.shapes]}

    def restore(self, state: dict[str, Any], shapes: dict[str, Any] | None = None) -> None:
        """Goes on where `state` was taken.

        Args:
          shapes: what `shapes` was then. Where groups are still split over as many shards, they are kept, so that a run with
            other steps than before needs no other program; else shapes are chosen anew.
        """
        if shapes is not None and shapes["split"] == self._split and self._layout.pack:
            kept = tuple(Shape(*shape) for shape in shapes["shapes"])
            self.train_layout = dataclasses.replace(self._layout, shapes=kept)
        if self._agreed is not None:
            self._agreed.close()
            self._agreed = None
        self._iterator.set_state(state)
        self._state = state

    def eval_batches(self) -> Iterator[GroupBatch]:
        """One pass in order, without the microbatch axis; the last batches are filled up with groups of row -1."""
        size, (_, count) = self._shards * self._per_shard, self._process
        made = self._eval_draft if self._spreads else self._eval_batch
        batches = grain.MapDataset.range(-(-len(self._dataset) // (size * count))).map(made)
        for batch in batches.to_iter_dataset(self._options):
            yield self._made(batch)

    @property
    def _split(self) -> list[int]:
        spread = [self._layout.spread] if self._layout.spread > 1 else []  # absent where shapes were kept without it
        return [self._shards * self._accumulation, self._per_shard, *spread]

    @functools.cached_property
    def train_layout(self) -> RowLayout:
        """The shapes of the microbatches, chosen for the data."""
        return self._fitted(self._accumulation)

    @functools.cached_property
    def eval_layout(self) -> RowLayout:
        """The shapes of evaluation batches, chosen for the data."""
        return self.train_layout if self._accumulation == 1 else self._fitted(1)

    def _fitted(self, microbatches: int) -> RowLayout:
        if self._layout.shapes or not self._layout.pack:
            return self._layout
        how = {
            "groups_per_shard": self._per_shard,
            "layout": self._layout,
            "limits": self._dataset.limits,
            "seed": self._seed,
            "batches": self._uses,
        }
        with self._lock:  # by the first worker to come, for all
            sample = self._dataset.sizes
        if self._layout.spread > 1:
            return choose_spread_shapes(sample, microbatches=microbatches, **how)
        return choose_shapes(sample, shards=self._shards * microbatches, **how)

    def _group(self, index: int) -> TokenGroup:
        return _load(self._dataset, self._labels, index)

    def _train_batch(self, indices: list[int]) -> GroupBatch:
        """All microbatches packed at once, as further shards, so that they balance and have one shape."""
        groups = [self._group(i) for i in indices]
        return stacked(self._pack(groups, self._shards * self._accumulation, self.train_layout), self._accumulation)

    def _train_draft(self, indices: list[int]) -> Draft:
        return self._spreading.draft(indices, self._accumulation, self.train_layout)

    def _eval_batch(self, number: int) -> GroupBatch:
        size, (index, count) = self._shards * self._per_shard, self._process
        start = (number * count + index) * size
        mine = range(start, min(start + size, len(self._dataset)))
        if not mine:
            return _blank(self._pack([self._group(0)], self._shards, self.eval_layout))
        return self._pack([self._group(i) for i in mine], self._shards, self.eval_layout)

    def _eval_draft(self, number: int) -> Draft:
        size = self._shards * self._per_shard * self._process[1]
        return self._spreading.draft(range(number * size, min((number + 1) * size, len(self._dataset))), 0, self.eval_layout)

    @property
    def _spreading(self) -> Spreading:
        load = functools.partial(_load, self._dataset, self._labels)
        how = (self._per_shard, self._process, self._numbers, self._options.num_threads)
        return Spreading(load, self._dataset.slots, *how)

    def _pack(self, groups: list[TokenGroup], shards: int, layout: RowLayout) -> GroupBatch:
        return pack_groups(groups, shards=shards, groups_per_shard=self._per_shard, layout=layout, slots=self._dataset.slots)

    def _made(self, batch: GroupBatch | Draft) -> GroupBatch:
        """The batch in the shape that all processes agree on."""
        return batch if self._agree is None else self._agreeing(batch, self._agree)

    @property
    def _agreeing(self) -> Callable[[GroupBatch | Draft, Agree], GroupBatch | None]:
        return functools.partial(agreed, self._spreading if self._spreads else None)


def _load(dataset: GroupDataset, labels: dict[str, np.ndarray], index: int) -> TokenGroup:
    return labelled(dataset[index], labels)


def _blank(batch: GroupBatch) -> GroupBatch:
    """A batch of padding groups only, in the shapes of another."""
    empty = jax.tree.map(np.zeros_like, batch)
    return dataclasses.replace(empty, slots=np.full_like(batch.slots, -1), rows=np.full_like(batch.rows, -1))


def ahead(batches: Iterable, put: Callable, count: int | None = None) -> Iterator[tuple[Any, Any, Any]]:
    """Batches on the device with their host originals and the iterator's state after each, one transfer ahead.

    The state belongs to the batch that was handed out, not to the one fetched ahead: a resumed run loses no row.

    Args:
      batches: host batches; their state is None where they have no `state()`.
      put: host batch -> device batch.
      count: how many are handed out, none is fetched after them; None is all.
    """
    source = iter(batches)
    position = getattr(source, "state", lambda: None)
    made = ((put(host), host, position()) for host in itertools.islice(source, count))
    current = next(made, None)
    while current is not None:
        upcoming = next(made, None)
        yield current
        current = upcoming
