"""Batches of groups that are all at hand, for scoring: similar lengths together, in few shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from align_jax.batch import GroupBatch
from align_jax.data.packing.arrays import pack_groups
from align_jax.data.packing.layout import RowLayout, fit, ladder
from align_jax.data.records import TokenGroup

# Coarse, so that another call with other texts (the next round of sampling) meets shapes that are compiled already.
_LENGTHS = ladder(16, 1 << 18, 2, 16)
_LAYOUT = RowLayout(
    pack=False, prompt_lengths=_LENGTHS, response_lengths=_LENGTHS, row_counts=_LENGTHS, uniform_waste=0.25
)


def padded_length(prompt: int, response: int) -> int | None:
    """Positions of a prompt row and a response row together, in the longest layout; None where no layout holds them."""
    if max(prompt, response) > _LENGTHS[-1]:
        return None
    return fit(prompt, _LENGTHS) + fit(response, _LENGTHS)


def length_batches(groups: Sequence[TokenGroup], *, shards: int, rows: int) -> Iterator[GroupBatch]:
    """Batches that together hold every group once; `batch.rows` are places in `groups`.

    Args:
      groups: any number, with any numbers of responses.
      shards: D, see `align_jax.parallel.mesh.data_shards`.
      rows: responses of a batch over all shards, as far as groups can be cut to that: a group is never split.
    """
    if not groups:
        return
    slots = max(group.slots for group in groups)
    size = max(1, rows // (slots * shards)) * shards

    def lengths(group: TokenGroup) -> tuple[int, int]:
        longest = max(len(segment.tokens) for segment in group.segments)
        return fit(len(group.prompt), _LENGTHS), fit(longest + group.ends, _LENGTHS)

    ordered = sorted(range(len(groups)), key=lambda i: lengths(groups[i]), reverse=True)
    for start in range(0, len(ordered), size):
        chosen = [dataclasses.replace(groups[i], row=i) for i in ordered[start : start + size]]
        yield pack_groups(chosen, shards=shards, groups_per_shard=size // shards, layout=_LAYOUT, slots=slots)
