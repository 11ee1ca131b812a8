"""Objectives over pairs that move each response against the reference: APO, BCO, SPPO and NCA."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.errors import UserError
from align_jax.objectives.base import ref_logps
from align_jax.objectives.pairs import Pairwise, pairs_of

SHIFTS = ("none", "batch")


@dataclasses.dataclass(frozen=True)
class APOZero(Pairwise):
    """Anchored Preference Optimization, zero (arXiv 2408.06266): chosen responses are better than what the model says."""

    name: ClassVar[str] = "apo_zero"

    def loss(self, *logps) -> jax.Array:
        return losses.apo_zero_loss(*logps, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class APODown(Pairwise):
    """Anchored Preference Optimization, down (arXiv 2408.06266): chosen responses are worse than what the model says."""

    name: ClassVar[str] = "apo_down"

    def loss(self, *logps) -> jax.Array:
        return losses.apo_down_loss(*logps, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class BCOPair(Pairwise):
    """Binary Classifier Optimization on pairs (arXiv 2404.04656): chosen responses are told from rejected by rewards."""

    name: ClassVar[str] = "bco_pair"
    # what rewards are measured from: none is 0, batch the mean reward of the step's pairs (the paper: a mean over steps)
    shift: str = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.shift not in SHIFTS:
            raise UserError(f"objective.shift: {self.shift!r} is not one of {', '.join(SHIFTS)}")

    def statistics(self, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, jax.Array] | None:
        if self.shift == "none":
            return None
        exists = pairs_of(batch)
        rewards = self.beta * jnp.mean(logps - ref_logps(batch, logps, False), axis=-1)
        return jax.lax.stop_gradient(jnp.sum(jnp.where(exists, rewards, 0.0))), jnp.sum(exists).astype(jnp.float32)

    def loss(self, chosen, rejected, ref_chosen, ref_rejected, delta=0.0) -> jax.Array:
        return losses.bco_pair_loss(chosen, rejected, ref_chosen, ref_rejected, beta=self.beta, delta=delta)


@dataclasses.dataclass(frozen=True)
class SPPOHard(Pairwise):
    """Self-Play Preference Optimization with hard labels (arXiv 2405.00675)."""

    name: ClassVar[str] = "sppo_hard"

    def loss(self, *logps) -> jax.Array:
        return losses.sppo_hard_loss(*logps, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class NCAPair(Pairwise):
    """NCA on pairs (arXiv 2402.05369): DPO's absolute relative, which also keeps likelihoods from falling."""

    name: ClassVar[str] = "nca_pair"

    def loss(self, *logps) -> jax.Array:
        return losses.nca_pair_loss(*logps, beta=self.beta)
