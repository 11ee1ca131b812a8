"""Objectives that take another function of a pair's margin than DPO's: EXO and DiscoPOP."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from align_jax import losses
from align_jax.errors import check_fields
from align_jax.objectives.pairs import WithDivergence


@dataclasses.dataclass(frozen=True)
class EXOPair(WithDivergence):
    """Efficient Exact Optimization on pairs (arXiv 2402.00856): the KL of the policy's preference from the smoothed label."""

    name: ClassVar[str] = "exo_pair"
    label_smoothing: float = 1e-3  # probability that a preference was recorded the wrong way round; above 0

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "label_smoothing", low=0, open_low=True, high=0.5, open_high=True)

    def loss(self, *logps) -> jax.Array:
        return losses.exo_pair_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class DiscoPOP(WithDivergence):
    """DiscoPOP (arXiv 2406.08414): a blend of the logistic and the exponential loss."""

    name: ClassVar[str] = "discopop"
    tau: float = 0.05  # width of the blend, in logit units

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "tau", low=0, open_low=True, high=1)

    def loss(self, *logps) -> jax.Array:
        return losses.discopop_loss(*logps, beta=self.beta, tau=self.tau)
