"""Objectives over the whole set of scored responses to a prompt."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Group
from align_jax.errors import check_fields
from align_jax.objectives.base import Metrics, Objective, ref_logps, weighted
from align_jax.objectives.metrics import set_metrics
from align_jax.objectives.signature_metrics import loss_square, set_signatures


@dataclasses.dataclass(frozen=True)
class SetObjective(Objective):
    """Shared by the set objectives: beta, the reference, and the metrics of accepted and rejected responses."""

    arrangement: ClassVar[Group] = Group()

    beta: float = 0.1  # strength of the pull to the reference: rewards are beta * log-ratio
    reference_free: bool = False  # True sets log pi_ref to 0

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        ref = ref_logps(batch, logps, self.reference_free)
        mask = jnp.asarray(batch.mask)
        exists = jnp.any(mask, axis=-1)
        scores = jnp.asarray(batch.scores)
        contrast = losses.partition(scores, mask)[2]
        metrics = set_metrics(logps, self.beta * (logps - ref), scores, mask)
        values, counted = self.loss(logps, ref, scores, mask), self.counted(exists, contrast)
        return {
            "loss": weighted(values, counted),
            "groups/no_contrast": weighted((exists & ~contrast).astype(jnp.float32), exists),
            **metrics,
            **loss_square(values, counted),
            **({} if self.reference_free else set_signatures(logps - ref, jnp.asarray(batch.lengths), scores, mask, self.beta)),
        }

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        """The loss of each group, `[G]`."""
        raise TypeError(f"{type(self).__name__} does not define a loss")

    def counted(self, exists: jax.Array, contrast: jax.Array) -> jax.Array:
        """Which groups enter the batch mean, bool `[G]`."""
        return contrast


@dataclasses.dataclass(frozen=True)
class MPO(SetObjective):
    """Multi-Preference Optimization (arXiv 2412.04628); alpha > 0 makes it W-MPO."""

    name: ClassVar[str] = "mpo"
    alpha: float = 0.0  # logit units per score unit of deviation from the group's mean; 0 is MPO
    power: float = 1.0  # of the deviation; 0 drops the weighting

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "alpha", low=0)
        check_fields("objective", self, "power", low=0)

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        return losses.mpo_loss(logps, ref, scores, mask, beta=self.beta, alpha=self.alpha, power=self.power)


@dataclasses.dataclass(frozen=True)
class OrderedMPO(SetObjective):
    """Plackett-Luce over ordered levels of responses, best first.

    A response's level is which of the `levels` equal intervals between its group's lowest and highest score it is in. (Two
    levels are MPO's loss with the sets divided at the middle of the scores' range instead of at their mean.)
    """

    name: ClassVar[str] = "ordered_mpo"
    levels: int = 3  # how many levels the scores of a group are cut into

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "levels", low=2)

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        low = jnp.min(jnp.where(mask, scores, jnp.inf), axis=-1, keepdims=True)
        high = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
        span = jnp.where(high > low, high - low, 1.0)
        rank = jnp.floor((high - jnp.where(mask, scores, high)) / span * self.levels)
        levels = jnp.where(mask, jnp.minimum(rank, self.levels - 1), 0).astype(jnp.int32)
        return losses.ordered_mpo_loss(logps, ref, levels, mask, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class InfoNCA(SetObjective):
    """InfoNCA (arXiv 2402.05369): cross-entropy to the softmax of the scores."""

    name: ClassVar[str] = "infonca"
    temperature: float = 1.0  # of the soft targets, in score units

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "temperature", low=0, open_low=True)

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        return losses.infonca_loss(logps, ref, scores, mask, beta=self.beta, temperature=self.temperature)

    def counted(self, exists: jax.Array, contrast: jax.Array) -> jax.Array:
        return exists  # soft targets of equal scores still say something: no response above another


@dataclasses.dataclass(frozen=True)
class NCA(InfoNCA):
    """NCA (arXiv 2402.05369): InfoNCA's absolute relative, which also keeps likelihoods from falling."""

    name: ClassVar[str] = "nca"

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        return losses.nca_loss(logps, ref, scores, mask, beta=self.beta, temperature=self.temperature)
