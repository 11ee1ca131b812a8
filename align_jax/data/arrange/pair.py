"""Arrangement `pair`: the best response of a row against its worst."""

from __future__ import annotations

import dataclasses

import numpy as np

from align_jax.data.arrange.answers import one_score
from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Filled
from align_jax.data.arrange.group import Scored
from align_jax.data.arrange.survey import Item
from align_jax.data.formats.example import Example


@dataclasses.dataclass(frozen=True)
class Pair(Scored):
    """Slot 0 holds the response with the highest score, slot 1 that with the lowest; rows of one score are dropped."""

    name = "pair"
    responses = 2

    def items(self, row: int, example: Example) -> list[Item]:
        return [] if one_score(example) else [Item(row)]

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        return self.filled(example, (int(np.argmax(example.scores)), int(np.argmin(example.scores))), arranger)
