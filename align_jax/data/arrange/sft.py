"""Arrangement `sft`: the best response of a row alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Arrangement, Filled
from align_jax.data.arrange.survey import Item
from align_jax.data.formats.example import Example


@dataclasses.dataclass(frozen=True)
class Sft(Arrangement):
    """The only slot holds the response with the highest score; single responses that are not desirable are dropped."""

    name = "sft"
    responses = 1
    contrasts = False
    needs = "a desirable completion"

    def items(self, row: int, example: Example) -> list[Item]:
        return [] if example.desirable is False else [Item(row)]

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        best = int(np.argmax(example.scores)) if example.scores is not None else 0
        segments, cut = arranger.segments(example, (best,))
        return Filled(segments, {}, cut)

    def random_labels(self, slots: int) -> dict[str, Any]:
        return {}
