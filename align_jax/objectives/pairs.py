"""Objectives over pairs of a chosen (slot 0) and a rejected (slot 1) response."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Pair
from align_jax.errors import check_fields
from align_jax.objectives.base import Metrics, Objective, ref_logps, weighted
from align_jax.objectives.metrics import pair_metrics
from align_jax.objectives.signature_metrics import cancelled_pairs, pair_drift


@dataclasses.dataclass(frozen=True)
class PairObjective(Objective):
    """Shared by the objectives of the DPO family."""

    arrangement: ClassVar[Pair] = Pair()

    beta: float = 0.1  # strength of the pull to the reference: rewards are beta * log-ratio
    reference_free: bool = False  # True sets log pi_ref to 0

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        ref = ref_logps(batch, logps, self.reference_free)
        exists = jnp.all(jnp.asarray(batch.mask), axis=-1)
        inputs = self.inputs(logps, ref, batch)
        values, lengths = self.loss(*inputs), jnp.asarray(batch.lengths)
        return {
            "loss": weighted(values, exists),
            **pair_metrics(logps, self.beta * (logps - ref), exists),
            **({} if self.reference_free else pair_drift(logps - ref, lengths, exists)),
            **cancelled_pairs(logps, lengths, self.pull(*inputs), exists),
        }

    def pull(self, *inputs: jax.Array) -> jax.Array:
        """How strongly each pair pulls, `|dL / d chosen|`, `[G]`; not differentiated."""
        chosen, *others = jax.lax.stop_gradient(inputs)
        return jnp.abs(jax.grad(lambda first: jnp.sum(self.loss(first, *others)))(chosen))

    def inputs(self, logps, ref, batch: GroupLabels):
        """The four arrays `[G]` of the pairwise losses."""
        return logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1]

    def loss(self, chosen, rejected, ref_chosen, ref_rejected) -> jax.Array:
        """The loss of each pair, `[G]`."""
        raise TypeError(f"{type(self).__name__} does not define a loss")


@dataclasses.dataclass(frozen=True)
class DPO(PairObjective):
    """Direct Preference Optimization (arXiv 2305.18290); label_smoothing > 0 makes it conservative DPO."""

    name: ClassVar[str] = "dpo"
    label_smoothing: float = 0.0  # probability that a preference was recorded the wrong way round

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "label_smoothing", low=0, high=0.5, open_high=True)

    def loss(self, *logps) -> jax.Array:
        return losses.dpo_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class RobustDPO(PairObjective):
    """Robust DPO (arXiv 2403.00409): unbiased under preferences that were flipped with a known probability."""

    name: ClassVar[str] = "robust_dpo"
    label_smoothing: float = 0.1  # probability that a preference was recorded the wrong way round

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "label_smoothing", low=0, high=0.5, open_high=True)

    def loss(self, *logps) -> jax.Array:
        return losses.robust_dpo_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class Hinge(PairObjective):
    """Hinge loss on the reward margin (arXiv 2309.06657)."""

    name: ClassVar[str] = "hinge"

    def loss(self, *logps) -> jax.Array:
        return losses.hinge_loss(*logps, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class IPO(PairObjective):
    """Identity Preference Optimization (arXiv 2310.12036)."""

    name: ClassVar[str] = "ipo"
    average_tokens: bool = False  # log-probs per token, as TRL does, instead of sums as in the paper

    def inputs(self, logps, ref, batch: GroupLabels):
        if self.average_tokens:
            tokens = jnp.maximum(jnp.asarray(batch.lengths), 1)
            logps, ref = logps / tokens, ref / tokens
        return super().inputs(logps, ref, batch)

    def loss(self, *logps) -> jax.Array:
        return losses.ipo_loss(*logps, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class SimPO(Objective):
    """SimPO (arXiv 2405.14734): no reference, log-probs averaged over tokens, a target margin."""

    name: ClassVar[str] = "simpo"
    arrangement: ClassVar[Pair] = Pair()

    beta: float = 2.0  # scale of the averaged log-probs
    gamma: float = 1.0  # target margin, in logit units

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)
        check_fields("objective", self, "gamma", low=0)

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        exists = jnp.all(jnp.asarray(batch.mask), axis=-1)
        means = logps / jnp.maximum(jnp.asarray(batch.lengths), 1)
        values = losses.simpo_loss(means[:, 0], means[:, 1], beta=self.beta, gamma=self.gamma)
        return {"loss": weighted(values, exists), **pair_metrics(logps, self.beta * means, exists)}
