"""Objectives over pairs that look at likelihoods themselves, beside the margin: DPO-Positive, WPO, CPO and ORPO."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.errors import UserError, check_fields
from align_jax.objectives.pairs import DPO, Pairwise, per_token

ALIGNMENTS = ("sampled", "none")


@dataclasses.dataclass(frozen=True)
class DPOPositive(Pairwise):
    """DPO-Positive (arXiv 2402.13228): punishes a chosen response that becomes less likely than under the reference."""

    name: ClassVar[str] = "dpo_positive"
    penalty: float = 50.0  # of each nat that the chosen response loses, as a multiple of what a nat of the margin counts

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "penalty", low=0)

    def loss(self, *logps) -> jax.Array:
        return losses.dpo_positive_loss(*logps, beta=self.beta, penalty=self.penalty)


@dataclasses.dataclass(frozen=True)
class WPO(DPO):
    """WPO (arXiv 2406.11827): DPO with each pair weighted by how likely the policy is to say it."""

    name: ClassVar[str] = "wpo"
    alignment: str | None = None  # of the weights: sampled (null too) measures a token by the policy's own draws; or none

    def __post_init__(self):
        super().__post_init__()
        if self.alignment not in (None, *ALIGNMENTS):
            raise UserError(f"objective.alignment: {self.alignment!r} is not one of {', '.join(ALIGNMENTS)}")

    @property
    def needs_collisions(self) -> bool:
        return self.alignment != "none"

    def inputs(self, logps, ref, batch: GroupLabels):
        means = per_token(self.aligned(logps, batch), batch)
        return *super().inputs(logps, ref, batch), means[:, 0], means[:, 1]

    def aligned(self, logps: jax.Array, batch: GroupLabels) -> jax.Array:
        """`sum_t log pi(y_t)` without, or with `- log sum_v pi(v)^2` of every token, `[G, K]`."""
        if self.alignment == "none":
            return logps
        if "log_collisions" not in batch.labels:
            raise ValueError(
                "the batch has no labels['log_collisions'], which objective.alignment: sampled needs; give those of "
                "align_jax.scoring.logps.scored_logps(model, batch, collisions=True), or set objective.alignment: none"
            )
        return logps - jnp.asarray(batch.labels["log_collisions"])

    def loss(self, chosen, rejected, ref_chosen, ref_rejected, chosen_mean, rejected_mean) -> jax.Array:
        return losses.wpo_weights(chosen_mean, rejected_mean) * super().loss(chosen, rejected, ref_chosen, ref_rejected)


@dataclasses.dataclass(frozen=True)
class WithLikelihood(Pairwise):
    """Shared by objectives without a reference that contain the chosen response's likelihood, as `Pairwise` adds it."""

    @property
    def needs_reference(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class CPO(WithLikelihood):
    """Contrastive Preference Optimization (arXiv 2401.08417): DPO without a reference, and the chosen response's likelihood."""

    name: ClassVar[str] = "cpo"
    beta: float = 0.1  # scale of the log-probs
    sft_weight: float = 1.0  # of the chosen response's own negative log-likelihood per token
    label_smoothing: float = 0.0  # probability that a preference was recorded the wrong way round

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "label_smoothing", low=0, high=0.5, open_high=True)

    def loss(self, chosen, rejected, ref_chosen, ref_rejected) -> jax.Array:
        how = {"beta": self.beta, "label_smoothing": self.label_smoothing, "sft_weight": 0.0}
        return losses.cpo_loss(chosen, rejected, jnp.zeros_like(chosen), **how)


@dataclasses.dataclass(frozen=True)
class ORPO(WithLikelihood):
    """ORPO (arXiv 2403.07691): supervised fine-tuning, and the odds of the chosen response against the rejected one's."""

    name: ClassVar[str] = "orpo"
    learning_rate: ClassVar[float] = 5e-6
    beta: float = 0.1  # weight of the odds ratio (the paper's lambda)
    sft_weight: float = 1.0  # of the chosen response's own negative log-likelihood per token

    def inputs(self, logps, ref, batch: GroupLabels):
        means = per_token(logps, batch)
        return means[:, 0], means[:, 1]

    def loss(self, chosen_mean, rejected_mean) -> jax.Array:
        return losses.orpo_loss(chosen_mean, rejected_mean, beta=self.beta, sft_weight=0.0)

    def rewards(self, logps: jax.Array, ref: jax.Array, lengths: jax.Array) -> jax.Array:
        return self.beta * logps / jnp.maximum(lengths, 1)
