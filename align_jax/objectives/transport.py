"""Alignment by optimal transport: quantiles over the pairs of a microbatch in place of pair by pair."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.errors import check_fields
from align_jax.objectives.pairs import Pairwise, pairs_of


@dataclasses.dataclass(frozen=True)
class AOT(Pairwise):
    """AOT (arXiv 2406.05882), paired: the margins of a microbatch exceed the reference's, quantile by quantile."""

    name: ClassVar[str] = "aot"
    label_smoothing: float = 0.0  # probability that a preference was recorded the wrong way round

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "label_smoothing", low=0, high=0.5, open_high=True)

    def inputs(self, logps, ref, batch: GroupLabels):
        return *super().inputs(logps, ref, batch), pairs_of(batch)

    def loss(self, *inputs) -> jax.Array:
        *logps, mask = inputs
        return losses.aot_loss(*logps, mask=mask, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class AOTUnpaired(AOT):
    """AOT (arXiv 2406.05882), unpaired: a microbatch's chosen rewards exceed its rejected ones, quantile by quantile."""

    name: ClassVar[str] = "aot_unpaired"

    def loss(self, *inputs) -> jax.Array:
        *logps, mask = inputs
        return losses.aot_unpaired_loss(*logps, mask=mask, beta=self.beta, label_smoothing=self.label_smoothing)
