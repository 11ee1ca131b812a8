"""Arrangement `split_pair`: a pair whose responses are cut where the shorter one ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Filled
from align_jax.data.arrange.labels import Label
from align_jax.data.arrange.pair import Pair
from align_jax.data.arrange.survey import Item
from align_jax.data.formats.example import Example
from align_jax.data.records import Segment


@dataclasses.dataclass(frozen=True)
class SplitPair(Pair):
    """Slots 0 and 1 hold the best and the worst response up to the length of the shorter one (in scored tokens), slots 2 and 3
    what each has behind that: the longer one alone.
    """

    name = "split_pair"
    responses = 4

    @property
    def labels(self) -> dict[str, Label]:
        return {}

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        pair = super().fill(index, item, example, arranger)
        shared = min(segment.length for segment in pair.segments)
        heads, rests = zip(*(split_after(segment, shared) for segment in pair.segments), strict=True)
        return Filled([*heads, *(rest for rest in rests if rest is not None)], {}, pair.cut, self.responses)

    def random_labels(self, slots: int) -> dict[str, Any]:
        return {}


def split_after(segment: Segment, scored: int) -> tuple[Segment, Segment | None]:
    """A segment up to its so many-th scored token, and what is behind it: two slots on, its continuation; None for nothing."""
    counts = np.ones(len(segment.tokens), int) if segment.scored is None else np.asarray(segment.scored, int)
    if scored >= segment.length:
        return segment, None
    end = int(np.searchsorted(np.cumsum(counts), scored)) + 1
    parts = [None, None] if segment.scored is None else [segment.scored[:end], segment.scored[end:]]
    head = Segment(segment.tokens[:end], segment.slot, segment.parent, parts[0])
    return head, Segment(segment.tokens[end:], segment.slot + 2, segment.slot, parts[1])
