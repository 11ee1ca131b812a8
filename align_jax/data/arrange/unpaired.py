"""Arrangement `unpaired`: single responses that are desirable or not, each beside the response to another prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from align_jax.data.arrange.answers import segment_of
from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Arrangement, Filled
from align_jax.data.arrange.contrast import no_contrast
from align_jax.data.arrange.labels import Label
from align_jax.data.arrange.survey import Item
from align_jax.data.formats import Format, spelled
from align_jax.data.formats.example import Example


@dataclasses.dataclass(frozen=True)
class Unpaired(Arrangement):
    """Slot 0 holds a response, slot 1 that of another group, with another prompt (for KTO's estimate of the KL divergence).

    A row with scores becomes a group per response, desirable where its score is above the row's mean; rows of one score are
    dropped, and those of one text. Label: `desirable` bool.
    """

    name = "unpaired"
    responses = 2
    contrasts = False
    needs = "two different scores and texts"

    @property
    def labels(self) -> dict[str, Label]:
        return {"desirable": Label("bool")}

    def refusal(self, data_format: Format) -> str | None:
        if not data_format.judged:
            return (
                f"data.format {spelled(data_format)!r} does not say whether its responses are desirable, which objective kto "
                "needs; use sft, or give a column `label`"
            )
        return super().refusal(data_format)

    def items(self, row: int, example: Example) -> list[Item]:
        if no_contrast(example):
            return []
        return [Item(row, i) for i in range(len(example.responses))] if example.desirable is None else [Item(row)]

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        own, cut = arranger.segments(example, (item.response,))
        other, stranger = arranger.stranger(index, example)
        strange = arranger.answer(stranger, other.response)
        desirable = example.desirable
        if desirable is None:
            desirable = example.scores[item.response] > float(np.mean(example.scores))
        return Filled([*own, segment_of(strange, 1)], {"desirable": np.asarray(desirable)}, cut)

    def random_labels(self, slots: int) -> dict[str, Any]:
        return {"desirable": np.asarray(True)}
