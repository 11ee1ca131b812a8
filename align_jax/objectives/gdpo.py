"""Group Distributional Preference Optimization: beliefs first, then preferences conditioned on the belief."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Beliefs
from align_jax.data.arrange.beliefs import TEXTS
from align_jax.errors import UserError, check_fields
from align_jax.objectives.base import Metrics, Objective, ref_logps, weighted
from align_jax.objectives.metrics import belief_metrics, pair_metrics, set_metrics, split_by_majority
from align_jax.objectives.signature_metrics import belief_widths, cancelled_pairs, pair_drift, set_signatures
from align_jax.objectives.unpaired import mismatched_ratio

PREFERENCES = tuple(TEXTS)


@dataclasses.dataclass(frozen=True)
class GDPO(Objective):
    """GDPO (arXiv 2412.20299): belief calibration + belief statement + belief-conditioned preference (+ SFT of the text).

    Slots: the N belief statements of the prompt, then the texts, each conditioned on the accepted belief. Text slots are
    chosen and rejected (`dpo`), also a mismatched text (`kto`), or accepted and rejected sets (`mpo`).
    """

    name: ClassVar[str] = "gdpo"

    beta: float = 0.1  # strength of the pull to the reference: rewards are beta * log-ratio
    preference: str = "dpo"  # dpo, kto or mpo on the texts
    alpha: float = 0.0  # preference mpo: weight of the deviation from the mean
    calibration_weight: float = 1.0  # of the belief calibration term
    belief_weight: float = 1.0  # of the belief statement term
    preference_weight: float = 1.0  # of the preference term
    renormalize: bool = False  # calibrate the distribution renormalised over the beliefs
    sft_weight: float = 0.0  # of the accepted text's own negative log-likelihood per token, given its belief

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)
        check_fields("objective", self, "alpha", low=0)
        check_fields("objective", self, "calibration_weight", "belief_weight", "preference_weight", "sft_weight", low=0)
        if self.preference not in PREFERENCES:
            raise UserError(f"objective.preference must be one of {', '.join(PREFERENCES)}, got {self.preference!r}")
        if self.alpha and self.preference != "mpo":
            raise UserError(f"objective.alpha={self.alpha} is used by preference mpo only, not by {self.preference}")

    @property
    def arrangement(self) -> Beliefs:
        return Beliefs(self.preference)

    def statistics(self, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, jax.Array] | None:
        if self.preference != "kto":
            return None
        ref = ref_logps(batch, logps, False)
        return mismatched_ratio(logps, ref, jnp.asarray(batch.mask), slot=logps.shape[1] - 1)

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        parts = split_beliefs(logps, batch)
        exists, count = parts.exists, parts.beliefs.shape[1]
        ref = ref_logps(batch, logps, False)[:, count:]
        preference, metrics = self._preference(parts, ref, batch, statistic)
        beliefs = parts.beliefs
        if self.renormalize:
            beliefs = jax.nn.log_softmax(jnp.where(exists[:, None], beliefs, 0.0), axis=-1)
        weights = (self.calibration_weight, self.belief_weight, self.preference_weight)
        values = losses.gdpo_loss(beliefs, parts.targets, parts.statement_mean_logps, preference, weights=weights)
        calibration = losses.belief_calibration_loss(beliefs, parts.targets, mask=parts.belief_mask)
        sft = self._sft(parts, batch)
        if self.sft_weight:
            values = values + self.sft_weight * sft
        return {
            "loss": weighted(values, exists),
            "loss/calibration": weighted(calibration, exists),
            "loss/belief": weighted(-parts.statement_mean_logps, exists),
            "loss/preference": weighted(preference, exists),
            "loss/sft": weighted(sft, exists),
            **belief_metrics(parts.beliefs, parts.targets, exists),
            **belief_widths(parts.beliefs, parts.targets, exists),
            **metrics,
            **split_by_majority(metrics, parts.majority),
        }

    def _sft(self, parts: BeliefParts, batch: GroupLabels) -> jax.Array:
        """Negative log-likelihood per token of the accepted text, `[G]`; a mean over them where there are several."""
        accepted = jnp.arange(parts.texts.shape[1]) == 0
        if self.preference == "mpo":
            accepted = jnp.asarray(batch.labels["text_scores"]) > 0
        accepted = accepted & parts.text_mask
        means = jnp.where(accepted, parts.texts, 0.0) / jnp.maximum(parts.text_lengths, 1)
        return -jnp.sum(means, axis=-1) / jnp.maximum(jnp.sum(accepted, axis=-1), 1)

    def _preference(self, parts: BeliefParts, ref, batch, statistic) -> tuple[jax.Array, Metrics]:
        texts, rewards = parts.texts, self.beta * (parts.texts - ref)
        if self.preference == "mpo":
            scores = jnp.asarray(batch.labels["text_scores"])
            values = losses.mpo_loss(texts, ref, scores, parts.text_mask, beta=self.beta, alpha=self.alpha)
            own = set_signatures(texts - ref, parts.text_lengths, scores, parts.text_mask, self.beta)
            return values, set_metrics(texts, rewards, scores, parts.text_mask) | own
        metrics = pair_metrics(texts, rewards, parts.exists) | pair_drift(texts - ref, parts.text_lengths, parts.exists)
        if self.preference == "dpo":
            pull = jax.nn.sigmoid(rewards[:, 1] - rewards[:, 0])
            metrics |= cancelled_pairs(texts, parts.text_lengths, pull, parts.exists)
            return losses.dpo_loss(texts[:, 0], texts[:, 1], ref[:, 0], ref[:, 1], beta=self.beta), metrics
        kl = jnp.maximum(statistic, 0.0)
        both = [losses.kto_loss(texts[:, i], ref[:, i], jnp.full(texts.shape[:1], i == 0), kl, beta=self.beta) for i in (0, 1)]
        return (both[0] + both[1]) / 2, {**metrics, "kl": weighted(jnp.broadcast_to(kl, parts.exists.shape), parts.exists)}


@dataclasses.dataclass(frozen=True)
class BeliefParts:
    """The slots of arrangement `Beliefs` taken apart: N beliefs, T texts."""

    beliefs: jax.Array  # [G, N], -inf where the prompt has no such belief
    belief_mask: jax.Array  # bool [G, N]
    targets: jax.Array  # [G, N]
    texts: jax.Array  # [G, T]
    text_mask: jax.Array  # bool [G, T]
    text_lengths: jax.Array  # int [G, T], tokens of each
    statement_mean_logps: jax.Array  # [G], of the accepted belief's tokens
    majority: jax.Array  # bool [G], the accepted belief is the target's most probable one
    exists: jax.Array  # bool [G]


def split_beliefs(logps: jax.Array, batch: GroupLabels) -> BeliefParts:
    """Takes the slots of arrangement `Beliefs` apart; see `BeliefParts`."""
    mask, lengths = jnp.asarray(batch.mask), jnp.asarray(batch.lengths)
    count = batch.labels["target_probs"].shape[1]
    targets = jnp.where(mask[:, :count], jnp.asarray(batch.labels["target_probs"]), 0.0)
    chosen = jnp.asarray(batch.labels["chosen_belief"])[:, None]
    take = lambda x: jnp.take_along_axis(x[:, :count], chosen, axis=1)[:, 0]  # noqa: E731
    return BeliefParts(
        beliefs=jnp.where(mask[:, :count], logps[:, :count], -jnp.inf),
        belief_mask=mask[:, :count],
        targets=targets,
        texts=logps[:, count:],
        text_mask=mask[:, count:],
        text_lengths=lengths[:, count:],
        statement_mean_logps=take(logps) / jnp.maximum(take(lengths), 1),
        majority=take(targets) >= jnp.max(targets, axis=1),
        exists=jnp.any(mask[:, :count], axis=-1),
    )
