"""Objectives over pairs that answer DPO's liking for long responses: length-normalized DPO, R-DPO and LD-DPO."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import SplitPair
from align_jax.errors import check_fields
from align_jax.objectives.pairs import PairObjective, WithDivergence


@dataclasses.dataclass(frozen=True)
class WithLengths(WithDivergence):
    """Shared by objectives whose loss takes the responses' lengths, too."""

    def inputs(self, logps, ref, batch: GroupLabels):
        lengths = jnp.asarray(batch.lengths)
        return *super().inputs(logps, ref, batch), lengths[:, 0], lengths[:, 1]


@dataclasses.dataclass(frozen=True)
class DPONorm(WithLengths):
    """Length-normalized DPO (Tulu 3, arXiv 2411.15124; LN-DPO, arXiv 2407.15229): log-ratios per token in place of sums."""

    name: ClassVar[str] = "dpo_norm"
    beta: float = 5.0  # strength of the pull to the reference, in logit units per nat per token: much larger than that of dpo

    def loss(self, *inputs) -> jax.Array:
        return losses.dpo_norm_loss(*inputs, beta=self.beta)

    def pull(self, *inputs: jax.Array) -> jax.Array:
        # By the mean over tokens, which is one scale for long and short responses.
        return super().pull(*inputs) * jnp.maximum(inputs[4], 1)

    def rewards(self, logps: jax.Array, ref: jax.Array, lengths: jax.Array) -> jax.Array:
        return self.beta * (logps - ref) / jnp.maximum(lengths, 1)


@dataclasses.dataclass(frozen=True)
class RDPO(WithLengths):
    """R-DPO (arXiv 2403.19159): DPO with a price on length."""

    name: ClassVar[str] = "r_dpo"
    alpha: float = 0.01  # logit units per token by which the chosen response is longer

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "alpha", low=0)

    def loss(self, *inputs) -> jax.Array:
        return losses.r_dpo_loss(*inputs, beta=self.beta, alpha=self.alpha)


@dataclasses.dataclass(frozen=True)
class LDDPO(PairObjective):
    """LD-DPO (arXiv 2409.06411): tokens beyond the shorter response's length count less; rewards are of whole responses."""

    name: ClassVar[str] = "ld_dpo"
    arrangement: ClassVar[SplitPair] = SplitPair()
    of_margin: ClassVar[bool] = False
    alpha: float = 0.5  # weight of the tokens beyond the shorter response's length: 1 is dpo, 0 leaves them out

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "alpha", low=0, high=1)

    def inputs(self, logps, ref, batch: GroupLabels):
        mask = jnp.asarray(batch.mask)
        there = (jnp.where(mask, x, 0.0) for x in (logps, ref))
        return tuple(x[:, response::2] for x in there for response in (0, 1))

    def loss(self, *parts) -> jax.Array:
        return losses.ld_dpo_loss(*parts, beta=self.beta, alpha=self.alpha)

    def whole(self, values: jax.Array, batch: GroupLabels) -> jax.Array:
        return values[:, :2] + jnp.where(jnp.asarray(batch.mask)[:, 2:], values[:, 2:], 0)
