"""Arrangement `group`: all responses to a prompt, with their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.data.arrange.answers import characters, subset
from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Arrangement, Filled
from align_jax.data.arrange.contrast import no_contrast
from align_jax.data.arrange.labels import Label
from align_jax.data.arrange.survey import Item
from align_jax.data.formats.example import Example


@dataclasses.dataclass(frozen=True)
class Scored(Arrangement):
    """Shared by arrangements whose slots are responses with scores.

    Labels: `scores` float32 `[K]`, and `characters` int32 `[K]`, the lengths of the texts before anything is cut.
    """

    @property
    def labels(self) -> dict[str, Label]:
        return {"scores": Label("float32", ("K",)), "characters": Label("int32", ("K",))}

    def filled(self, example: Example, keep: Sequence[int], arranger: Arranger) -> Filled:
        """Some responses of an example in slots 0, 1, ..."""
        segments, cut = arranger.segments(example, keep)
        scores = np.asarray([example.scores[i] for i in keep], np.float32)
        lengths = np.asarray([characters(example.responses[i]) for i in keep], np.int32)
        return Filled(segments, {"scores": scores, "characters": lengths}, cut)

    def random_labels(self, slots: int) -> dict[str, Any]:
        return {"scores": np.linspace(1, 0, slots, dtype=np.float32)}


@dataclasses.dataclass(frozen=True)
class Group(Scored):
    """All responses to a prompt; of more than `data.max_responses`, the best, the worst and others drawn at random."""

    name = "group"

    def is_level(self, example: Example) -> bool:
        return no_contrast(example)

    def items(self, row: int, example: Example) -> list[Item]:
        """A group without contrast is kept, and counted, unless it lost that with its empty answers."""
        return [] if example.left_out and no_contrast(example) else [Item(row)]

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        keep = subset(example.scores, arranger.encoder.config.max_responses, (arranger.seed, index))
        return self.filled(example, keep, arranger)
