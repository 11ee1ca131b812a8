"""Arrangement `pair`: the best response of a row against its worst."""

from __future__ import annotations

import dataclasses

import numpy as np

from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Filled
from align_jax.data.arrange.contrast import no_contrast
from align_jax.data.arrange.group import Scored
from align_jax.data.arrange.survey import Item
from align_jax.data.formats.example import Example


@dataclasses.dataclass(frozen=True)
class Pair(Scored):
    """Slot 0 holds the response with the highest score, slot 1 that with the lowest; rows where both have one
    score, or say the same, are dropped.
    """

    name = "pair"
    responses = 2
    needs = "two different scores and texts"

    def items(self, row: int, example: Example) -> list[Item]:
        if no_contrast(example):
            return []
        best, worst = _extremes(example)
        return [] if example.responses[best] == example.responses[worst] else [Item(row)]

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        return self.filled(example, _extremes(example), arranger)


def _extremes(example: Example) -> tuple[int, int]:
    return int(np.argmax(example.scores)), int(np.argmin(example.scores))
