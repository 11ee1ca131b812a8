"""Group Distributional Preference Optimization: beliefs first, then preferences conditioned on the belief."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Beliefs
from align_jax.data.arrange.beliefs import TEXTS
from align_jax.errors import UserError, check_fields
from align_jax.objectives.base import Metrics, Objective, ref_logps, weighted
from align_jax.objectives.belief_slots import BeliefParts, gathered, split_beliefs, weighed
from align_jax.objectives.metrics import belief_metrics, latent_metrics, pair_metrics, set_metrics, split_by_majority
from align_jax.objectives.signature_metrics import belief_widths, cancelled_pairs, pair_drift, set_signatures

DIVERGENCES = {
    "kl": losses.belief_calibration_loss,
    "reverse_kl": losses.belief_reverse_kl_loss,
    "js": losses.belief_jensen_shannon_loss,
    "tv": losses.belief_total_variation_loss,
}
_CHOICES = {
    "preference": tuple(TEXTS),
    "divergence": tuple(DIVERGENCES),
    "calibrate": ("statement", "id"),
    "statement": ("whole", "authors"),
    "condition": ("accepted", "distribution"),
    "posterior": ("reference", "policy"),
}
_MISMATCHED = 2  # the text slot of another prompt's text, with preference kto


@dataclasses.dataclass(frozen=True)
class GDPO(Objective):
    """GDPO (arXiv 2412.20299): belief calibration + belief statement + belief-conditioned preference (+ SFT of the text).

    Slots: the N belief statements of the prompt, then the texts, each conditioned on the accepted belief. Text slots are
    chosen and rejected (`dpo`), also a mismatched text (`kto`), or accepted and rejected sets (`mpo`). With `latent_beliefs`
    or `condition: distribution` the texts stand behind each belief. docs/gdpo.md has the equations.
    """

    name: ClassVar[str] = "gdpo"

    beta: float = 0.1  # strength of the pull to the reference: rewards are beta * log-ratio
    preference: str = "dpo"  # dpo, kto or mpo on the texts
    alpha: float = 0.0  # preference mpo: weight of the deviation from the mean
    desirable_weight: float = 1.0  # preference kto: of the loss of accepted texts (lambda_d)
    undesirable_weight: float = 1.0  # preference kto: of the loss of rejected texts (lambda_u)
    calibration_weight: float = 1.0  # of the belief calibration term
    belief_weight: float = 1.0  # of the belief statement term
    preference_weight: float = 1.0  # of the preference term
    renormalize: bool = False  # calibrate the distribution renormalised over the beliefs
    divergence: str = "kl"  # of the calibration from the target: kl, reverse_kl, js (Jensen-Shannon) or tv (total variation)
    calibrate: str = "statement"  # what is calibrated: the whole belief statement, or its id alone (as the authors' code does)
    statement: str = "whole"  # whose likelihood is raised: whole, or authors: without what the template has behind {belief}
    sft_weight: float = 0.0  # of the accepted text's own negative log-likelihood per token, given its belief
    condition: str = "accepted"  # texts given the accepted belief, or all beliefs, weighted by the distribution of beliefs
    latent_beliefs: bool = False  # rows need not say their beliefs: each belief counts by its posterior given the accepted text
    posterior: str = "reference"  # of latent beliefs: of the reference, or of the policy as it is at this step

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)
        check_fields("objective", self, "alpha", "desirable_weight", "undesirable_weight", low=0)
        check_fields("objective", self, "calibration_weight", "belief_weight", "preference_weight", "sft_weight", low=0)
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"objective.{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if self.alpha and self.preference != "mpo":
            raise UserError(f"objective.alpha={self.alpha} is used by preference mpo only, not by {self.preference}")
        for key in ("desirable_weight", "undesirable_weight"):
            if getattr(self, key) != 1 and self.preference != "kto":
                raise UserError(
                    f"objective.{key}={getattr(self, key)} is used by preference kto only, not by {self.preference}"
                )
        if self.preference == "kto" and self.preference_weight and not (self.desirable_weight or self.undesirable_weight):
            raise UserError("objective.desirable_weight: 0, and undesirable_weight: 0, leave no preference; raise one")
        if self.posterior != "reference" and not self.latent_beliefs:
            raise UserError(f"objective.posterior={self.posterior} is used with objective.latent_beliefs only")
        self._check_weights()
        if self.latent_beliefs and self.condition != "accepted":
            raise UserError("objective.condition: with latent_beliefs the texts are weighted by the posterior; leave it out")
        if self.latent_beliefs and self.preference == "mpo":
            raise UserError(
                "objective.preference: mpo puts texts of the same belief together, which latent_beliefs does not know; use "
                "dpo or kto"
            )

    def _check_weights(self) -> None:
        """UserError where nothing is learned, or an option is that of a term whose weight is 0."""
        terms = ("calibration_weight", "belief_weight", "preference_weight", "sft_weight")
        if not any(getattr(self, term) for term in terms):
            raise UserError(f"objective.calibration_weight: nothing is learned with {', '.join(terms)} all 0; raise one")
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        of_terms = (
            ("calibration_weight", ("divergence", "renormalize", "calibrate")),
            ("belief_weight", ("statement",)),
        )
        for term, keys in of_terms:
            for key in keys if not getattr(self, term) else ():
                if (value := getattr(self, key)) != usual[key]:
                    raise UserError(
                        f"objective.{key}: {value} has no effect on what is learned with objective.{term}: 0; leave it out, or "
                        f"raise objective.{term}"
                    )

    @property
    def arrangement(self) -> Beliefs:
        return Beliefs(
            self.preference,
            every=self.latent_beliefs or self.condition == "distribution",
            labelled=not self.latent_beliefs,
            ids=self.calibrate == "id",
            shortened=self.statement == "authors",
        )

    def statistics(self, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, jax.Array] | None:
        if self.preference != "kto":
            return None
        parts, ref = self._split(logps, batch)
        _, given = self._held(parts, ref)
        weights = jnp.where(parts.text_mask[:, :, _MISMATCHED], given, 0.0)
        ratios = parts.texts[:, :, _MISMATCHED] - ref.texts[:, :, _MISMATCHED]
        return jax.lax.stop_gradient(jnp.sum(weighed(ratios, weights))), jnp.sum(weights)

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        parts, ref = self._split(logps, batch)
        held, given = self._held(parts, ref)
        exists = parts.exists
        each, metrics = self._preference(parts, ref, batch, statistic)
        preference, statement = weighed(each, given), weighed(parts.statement_means, held)
        targets = parts.targets
        if self.latent_beliefs:
            targets = smoothed_posterior(held, parts.belief_mask, jnp.asarray(batch.labels["belief_smoothing"]))
            metrics |= latent_metrics(held, parts.beliefs, parts.accepted_texts, parts.chosen, exists)
        calibration = functools.partial(DIVERGENCES[self.divergence], mask=parts.belief_mask, renormalize=self.renormalize)
        weights = (self.calibration_weight, self.belief_weight, self.preference_weight)
        values = losses.gdpo_loss(parts.calibrated, targets, statement, preference, weights=weights, calibration=calibration)
        sft = self._sft(parts, batch, held)
        if self.sft_weight:
            values = values + self.sft_weight * sft
        if self.calibrate == "id":
            by_id = belief_metrics(parts.calibrated, parts.targets, exists)
            metrics |= {name.replace("beliefs/", "beliefs/id_"): entry for name, entry in by_id.items()}
        return {
            "loss": weighted(values, exists),
            "loss/calibration": weighted(calibration(parts.calibrated, targets), exists),
            "loss/belief": weighted(-statement, exists),
            "loss/preference": weighted(preference, exists),
            "loss/sft": weighted(sft, exists),
            **belief_metrics(parts.beliefs, parts.targets, exists),
            **belief_widths(parts.beliefs, parts.targets, exists),
            **metrics,
        }

    def _split(self, logps: jax.Array, batch: GroupLabels) -> tuple[BeliefParts, BeliefParts]:
        """Of the policy, and of the reference."""
        arrangement = self.arrangement
        return split_beliefs(logps, batch, arrangement), split_beliefs(ref_logps(batch, logps, False), batch, arrangement)

    def _held(self, parts: BeliefParts, ref: BeliefParts) -> tuple[jax.Array, jax.Array]:
        """`[G, N]`, how far the accepted text's author is taken to hold each belief; `[G, C]`, what its preference counts."""
        if self.latent_beliefs:
            known = ref if self.posterior == "reference" else parts
            posterior = losses.belief_posterior(known.beliefs, known.accepted_texts, mask=parts.belief_mask)
            return posterior, posterior
        if self.condition == "distribution":
            return parts.accepted, jnp.where(parts.exists[:, None], parts.targets, 0.0)
        return parts.accepted, parts.exists[:, None].astype(jnp.float32)

    def _sft(self, parts: BeliefParts, batch: GroupLabels, held: jax.Array) -> jax.Array:
        """Negative log-likelihood per token of the accepted text, `[G]`; a mean over them where there are several."""
        accepted = jnp.arange(parts.texts.shape[2]) == 0
        if self.preference == "mpo":
            accepted = jnp.asarray(batch.labels["text_scores"])[:, None] > 0
        accepted = accepted & parts.text_mask
        means = jnp.where(accepted, parts.texts, 0.0) / jnp.maximum(parts.text_lengths, 1)
        each = jnp.sum(means, axis=-1) / jnp.maximum(jnp.sum(accepted, axis=-1), 1)
        return -(weighed(each, held) if each.shape[1] == held.shape[1] else each[:, 0])

    def _preference(self, parts: BeliefParts, ref: BeliefParts, batch: GroupLabels, statistic) -> tuple[jax.Array, Metrics]:
        """The loss behind each belief `[G, C]`, and the metrics of the groups."""
        texts, rewards = parts.texts, self.beta * (parts.texts - ref.texts)
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        _, given = self._held(parts, ref)
        there, moved, lengths = jnp.any(flat(parts.text_mask), axis=-1), flat(texts - ref.texts), flat(parts.text_lengths)
        more: Metrics = {}
        if self.preference == "mpo":
            scores = jnp.broadcast_to(jnp.asarray(batch.labels["text_scores"])[:, None], texts.shape)
            values = losses.mpo_loss(texts, ref.texts, scores, parts.text_mask, beta=self.beta, alpha=self.alpha)
            metrics = set_metrics(flat(texts), flat(rewards), flat(scores), flat(parts.text_mask), self.beta)
            metrics |= set_signatures(moved, lengths, flat(scores), flat(parts.text_mask), self.beta)
        else:
            metrics = pair_metrics(flat(texts), flat(rewards), flat(self.beta * texts), there)
            metrics |= pair_drift(moved, lengths, there)
            if self.preference == "dpo":
                pair = [x[:, :, i] for x in (texts, ref.texts) for i in (0, 1)]
                values = losses.dpo_loss(*pair, beta=self.beta)
                pull = jax.nn.sigmoid(self.beta * (moved[:, 1] - moved[:, 0]))
                metrics |= cancelled_pairs(flat(texts), lengths, pull, there)
            else:
                values, more = self._kto(parts, ref, jnp.maximum(statistic, 0.0))
        majority, known = map(flat, parts.majority)
        split = split_by_majority({name: tuple(jnp.where(known, p, 0.0) for p in m) for name, m in metrics.items()}, majority)
        return values, {**gathered(metrics | split, given), **more}

    def _kto(self, parts: BeliefParts, ref: BeliefParts, kl: jax.Array) -> tuple[jax.Array, Metrics]:
        weights = {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}
        desirable = [jnp.full(parts.texts.shape[:2], i == 0) for i in (0, 1)]
        both = [
            losses.kto_loss(parts.texts[:, :, i], ref.texts[:, :, i], desirable[i], kl, beta=self.beta, **weights)
            for i in (0, 1)
        ]
        return (both[0] + both[1]) / 2, {"kl": weighted(jnp.broadcast_to(kl, parts.exists.shape), parts.exists)}


def smoothed_posterior(posterior: jax.Array, mask: jax.Array, share: jax.Array) -> jax.Array:
    """The target of a row whose belief is latent: its posterior, mixed with the uniform distribution.

        t(b) = (1 - lambda) q(b) + lambda / N

    The mean of t over the n rows of a prompt is `p_hat(b|x) = (n mean q(b) + a) / (n + N a)` with `lambda = N a / (n + N a)`:
    the posterior mean under a Dirichlet prior with pseudo-count a. KL(t || pi) of the rows and KL(p_hat || pi) of the prompt
    have the same gradient by pi.

    Args:
      posterior: `[G, N]`, q. mask: bool `[G, N]`, which beliefs exist. share: `[G]`, lambda.
    """
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return jnp.where(mask, (1 - share[:, None]) * posterior + share[:, None] / count, 0.0)
