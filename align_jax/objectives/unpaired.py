"""Objectives over single responses: KTO and supervised fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Sft, Unpaired
from align_jax.errors import check_fields
from align_jax.objectives.base import Metrics, Objective, ref_logps, weighted
from align_jax.objectives.signature_metrics import drift_metrics


@dataclasses.dataclass(frozen=True)
class KTO(Objective):
    """KTO (arXiv 2402.01306): each response is desirable or not; slot 1 holds another prompt's completion for the KL."""

    name: ClassVar[str] = "kto"
    arrangement: ClassVar[Unpaired] = Unpaired()

    beta: float = 0.1  # strength of the pull to the reference: rewards are beta * log-ratio
    desirable_weight: float = 1.0  # of the loss of desirable responses
    undesirable_weight: float = 1.0  # of the loss of the others

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)
        check_fields("objective", self, "desirable_weight", low=0)
        check_fields("objective", self, "undesirable_weight", low=0)

    def statistics(self, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, jax.Array]:
        return mismatched_ratio(logps, ref_logps(batch, logps, False), jnp.asarray(batch.mask), slot=1)

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        ref = ref_logps(batch, logps, False)
        exists = jnp.asarray(batch.mask)[:, 0]
        desirable = jnp.asarray(batch.labels["desirable"])
        kl = jnp.maximum(statistic, 0.0)
        values = losses.kto_loss(
            logps[:, 0],
            ref[:, 0],
            desirable,
            kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        rewards = self.beta * (logps[:, 0] - ref[:, 0])
        good, bad = exists & desirable, exists & ~desirable
        return {
            "loss": weighted(values, exists),
            "kl": weighted(jnp.broadcast_to(kl, exists.shape), exists),
            "rewards/chosen": weighted(rewards, good),
            "rewards/rejected": weighted(rewards, bad),
            "logps/chosen": weighted(logps[:, 0], good),
            "logps/rejected": weighted(logps[:, 0], bad),
            **drift_metrics((logps - ref)[:, :1], jnp.asarray(batch.lengths)[:, :1], good[:, None], bad[:, None]),
        }


def mismatched_ratio(logps, ref, mask, slot: int) -> tuple[jax.Array, jax.Array]:
    """Sum and count of the log-ratios of the mismatched completions, whose mean (at least 0) is KTO's `z0`."""
    there = mask[:, slot]
    ratios = jnp.where(there, logps[:, slot] - ref[:, slot], 0.0)
    return jax.lax.stop_gradient(jnp.sum(ratios)), jnp.sum(there).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class SFT(Objective):
    """Supervised fine-tuning on the chosen response: the mean over tokens of `-log p`, what both papers start from."""

    name: ClassVar[str] = "sft"
    arrangement: ClassVar[Sft] = Sft()
    learning_rate: ClassVar[float] = 2e-5

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        exists = jnp.asarray(batch.mask)[:, 0]
        tokens = jnp.where(exists, jnp.asarray(batch.lengths)[:, 0], 0).astype(jnp.float32)
        return {
            "loss": (jnp.where(exists, -logps[:, 0], 0.0), tokens),
            "logps/chosen": weighted(logps[:, 0], exists),
        }
