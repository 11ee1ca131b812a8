"""Batches in a seeded order, made ahead by workers, with an iterator whose state can be saved and restored exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from align_jax.batch import GroupBatch, pad_to_common
from align_jax.data.batching import pack_groups
from align_jax.data.dataset import GroupDataset, labelled
from align_jax.data.layout import RowLayout
from align_jax.data.records import TokenGroup


class BatchLoader:
    """An endless iterator of training batches, and one pass of evaluation batches.

    Every epoch is a new seeded order in which each group occurs once; a batch may span two epochs, so none is dropped.
    Process p of P takes every P-th group of that order.

    Args:
      dataset: the groups.
      shards: D, data shards of this process.
      groups_per_step: groups of a step, over all processes and microbatches.
      accumulation_steps: A, microbatches of a step.
      seed: of the order. shuffle: False keeps the order of the data.
      layout: shapes of the rows.
      labels: name -> `[rows, K]`, joined to the groups by row.
      workers, prefetch: threads that make batches, and how many are made ahead.
      process_index, process_count: which part of the data this process reads.

    Raises:
      ValueError: a number of groups that cannot be split evenly.
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
        labels: dict[str, np.ndarray] | None = None,
        workers: int = 2,
        prefetch: int = 4,
        process_index: int = 0,
        process_count: int = 1,
    ):
        parts = shards * process_count * accumulation_steps
        if groups_per_step % parts:
            raise ValueError(f"{groups_per_step} groups a step cannot be split over {parts} shards and microbatches")
        self._dataset, self._shards, self._accumulation = dataset, shards, accumulation_steps
        self._per_shard = groups_per_step // parts
        self._layout, self._labels = layout or RowLayout(), labels or {}
        self._process = (process_index, process_count)
        self._options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=prefetch)
        order = grain.MapDataset.range(len(dataset)).seed(seed)
        order = (order.shuffle() if shuffle else order).repeat()[process_index::process_count]
        batches = order.batch(groups_per_step // process_count, batch_fn=list).map(self._train_batch)
        self._iterator = iter(batches.to_iter_dataset(self._options))

    def __iter__(self) -> BatchLoader:
        return self

    def __next__(self) -> GroupBatch:
        """The next batch, microbatches on a leading axis A of every array."""
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on after the batch handed out last; JSON values."""
        return self._iterator.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self._iterator.set_state(state)

    def eval_batches(self) -> Iterator[GroupBatch]:
        """One pass in order, without the microbatch axis; the last batch is filled up with groups of row -1."""
        index, count = self._process
        size = self._shards * self._per_shard
        for start in range(0, len(self._dataset), size * count):
            mine = range(start + index * size, min(start + (index + 1) * size, len(self._dataset)))
            yield self._pack([self._group(i) for i in mine])

    def _group(self, index: int) -> TokenGroup:
        return labelled(self._dataset[index], self._labels)

    def _train_batch(self, indices: list[int]) -> GroupBatch:
        groups = [self._group(i) for i in indices]
        size = len(groups) // self._accumulation
        micro = [self._pack(groups[i * size : (i + 1) * size]) for i in range(self._accumulation)]
        return jax.tree.map(lambda *xs: np.stack(xs), *pad_to_common(micro))

    def _pack(self, groups: list[TokenGroup]) -> GroupBatch:
        return pack_groups(groups, shards=self._shards, groups_per_shard=self._per_shard, layout=self._layout)
