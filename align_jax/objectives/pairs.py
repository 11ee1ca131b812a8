"""Objectives over pairs of a chosen (slot 0) and a rejected (slot 1) response."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Arrangement, Pair
from align_jax.errors import UserError, check_fields
from align_jax.objectives.base import Metrics, Objective, ref_logps, weighted
from align_jax.objectives.metrics import pair_metrics
from align_jax.objectives.signature_metrics import cancelled_pairs, pair_drift


@dataclasses.dataclass(frozen=True)
class Pairwise(Objective):
    """Shared by the objectives over pairs: a loss of log-probs under policy and reference, and the metrics of pairs.

    Class attributes:
      of_margin: whether the gradient of a pair is a multiple of that of `h = r_c - r_r`, so that pairs can cancel.
    """

    arrangement: ClassVar[Arrangement] = Pair()
    of_margin: ClassVar[bool] = False

    beta: float = 0.1  # strength of the pull to the reference: rewards are beta * log-ratio
    sft_weight: float = 0.0  # of the chosen response's own negative log-likelihood per token, which is added (RPO)

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)
        check_fields("objective", self, "sft_weight", low=0)

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        ref = ref_logps(batch, logps, not self.needs_reference)
        exists = pairs_of(batch)
        inputs = self.inputs(logps, ref, batch)
        values = self.loss(*inputs) if statistic is None else self.loss(*inputs, statistic)
        logps, ref, lengths = (self.whole(x, batch) for x in (logps, ref, jnp.asarray(batch.lengths)))
        metrics = {}
        if self.sft_weight:
            likelihood = -logps[:, 0] / jnp.maximum(lengths[:, 0], 1)
            values = values + self.sft_weight * likelihood
            metrics["loss/sft"] = weighted(likelihood, exists)
        return {
            "loss": weighted(values, exists),
            **metrics,
            **pair_metrics(logps, self.rewards(logps, ref, lengths), self.rewards(logps, jnp.zeros_like(ref), lengths), exists),
            **(pair_drift(logps - ref, lengths, exists) if self.needs_reference else {}),
            **(cancelled_pairs(logps, lengths, self.pull(*inputs), exists) if self.of_margin else {}),
        }

    def whole(self, values: jax.Array, batch: GroupLabels) -> jax.Array:
        """Log-probs or lengths of whole responses, `[G, 2]`, from those of the slots."""
        return values

    def rewards(self, logps: jax.Array, ref: jax.Array, lengths: jax.Array) -> jax.Array:
        """The implicit rewards `[G, 2]` that the metrics compare."""
        return self.beta * (logps - ref)

    def pull(self, *inputs: jax.Array) -> jax.Array:
        """How strongly each pair pulls, `|dL / d chosen|`, `[G]`; not differentiated."""
        chosen, *others = jax.lax.stop_gradient(inputs)
        return jnp.abs(jax.grad(lambda first: jnp.sum(self.loss(first, *others)))(chosen))

    def inputs(self, logps, ref, batch: GroupLabels):
        """The four arrays `[G]` of the pairwise losses."""
        return logps[:, 0], logps[:, 1], ref[:, 0], ref[:, 1]

    def loss(self, chosen, rejected, ref_chosen, ref_rejected) -> jax.Array:
        """The loss of each pair, `[G]`: of what `inputs` gives, and of the batch's statistic where the objective has one."""
        raise TypeError(f"{type(self).__name__} does not define a loss")


def pairs_of(batch: GroupLabels) -> jax.Array:
    """bool `[G]`, False for a padding group."""
    return jnp.all(jnp.asarray(batch.mask)[:, :2], axis=-1)


def per_token(values: jax.Array, batch: GroupLabels) -> jax.Array:
    """Sums over responses, `[G, K]`, as means over their tokens."""
    return values / jnp.maximum(jnp.asarray(batch.lengths), 1)


@dataclasses.dataclass(frozen=True)
class PairObjective(Pairwise):
    """Shared by the objectives of the DPO family, whose loss is a function of the margin `h` (or nearly)."""

    of_margin: ClassVar[bool] = True

    reference_free: bool = False  # True sets log pi_ref to 0

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free


@dataclasses.dataclass(frozen=True)
class WithDivergence(PairObjective):
    """Shared by losses of the margin that may take another divergence than the reverse KL.

    What pulls to the reference decides which reward a policy stands for: `beta f'(pi / pi_ref)`, up to a number of the prompt
    (f-DPO, arXiv 2309.16240). A loss of differences of rewards is then one of `f'`, which takes the place of log-ratios.
    """

    divergence: str = "reverse_kl"  # from the reference (f-DPO, arXiv 2309.16240): reverse_kl, forward_kl, js or alpha
    divergence_alpha: float = 0.5  # of divergence alpha: 1 is reverse_kl, 0 is forward_kl

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "divergence_alpha", low=0, high=1)
        if self.divergence not in losses.F_DIVERGENCES:
            raise UserError(f"objective.divergence: {self.divergence!r} is not one of {', '.join(losses.F_DIVERGENCES)}")
        if self.divergence_alpha != 0.5 and self.divergence != "alpha":
            raise UserError(
                f"objective.divergence_alpha={self.divergence_alpha} is used by divergence alpha only, not by {self.divergence}"
            )
        if self.divergence != "reverse_kl" and self.reference_free:
            raise UserError(
                f"objective.divergence: {self.divergence} is from the reference; leave out objective.reference_free"
            )

    @property
    def of_margin(self) -> bool:
        return self.divergence == "reverse_kl"

    def inputs(self, logps, ref, batch: GroupLabels):
        if self.divergence != "reverse_kl":
            logps = losses.f_divergence_score(logps - ref, divergence=self.divergence, alpha=self.divergence_alpha)
            ref = jnp.zeros_like(logps)
        return super().inputs(logps, ref, batch)


@dataclasses.dataclass(frozen=True)
class DPO(WithDivergence):
    """Direct Preference Optimization (arXiv 2305.18290); label_smoothing > 0 makes it conservative DPO, divergence f-DPO."""

    name: ClassVar[str] = "dpo"
    label_smoothing: float = 0.0  # probability that a preference was recorded the wrong way round

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "label_smoothing", low=0, high=0.5, open_high=True)

    def loss(self, *logps) -> jax.Array:
        return losses.dpo_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class RobustDPO(WithDivergence):
    """Robust DPO (arXiv 2403.00409): unbiased under preferences that were flipped with a known probability."""

    name: ClassVar[str] = "robust_dpo"
    label_smoothing: float = 0.1  # probability that a preference was recorded the wrong way round

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "label_smoothing", low=0, high=0.5, open_high=True)

    def loss(self, *logps) -> jax.Array:
        return losses.robust_dpo_loss(*logps, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class Hinge(WithDivergence):
    """Hinge loss on the reward margin (arXiv 2309.06657)."""

    name: ClassVar[str] = "hinge"

    def loss(self, *logps) -> jax.Array:
        return losses.hinge_loss(*logps, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class IPO(WithDivergence):
    """Identity Preference Optimization (arXiv 2310.12036)."""

    name: ClassVar[str] = "ipo"
    average_tokens: bool = False  # log-probs per token, as TRL does, instead of sums as in the paper

    def inputs(self, logps, ref, batch: GroupLabels):
        if not self.average_tokens:
            return super().inputs(logps, ref, batch)
        if self.divergence == "reverse_kl":
            return super().inputs(per_token(logps, batch), per_token(ref, batch), batch)
        tokens = jnp.maximum(jnp.asarray(batch.lengths), 1)  # as in TRL: the score of a response, by its tokens
        return tuple(x / tokens[:, i % 2] for i, x in enumerate(super().inputs(logps, ref, batch)))

    def loss(self, *logps) -> jax.Array:
        return losses.ipo_loss(*logps, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class SimPO(Objective):
    """SimPO (arXiv 2405.14734): no reference, log-probs averaged over tokens, a target margin."""

    name: ClassVar[str] = "simpo"
    arrangement: ClassVar[Pair] = Pair()

    beta: float = 2.0  # scale of the averaged log-probs
    gamma: float = 1.0  # target margin, in logit units
    label_smoothing: float = 0.0  # probability that a preference was recorded the wrong way round

    def __post_init__(self):
        check_fields("objective", self, "beta", low=0, open_low=True)
        check_fields("objective", self, "gamma", low=0)
        check_fields("objective", self, "label_smoothing", low=0, high=0.5, open_high=True)

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        exists = jnp.all(jnp.asarray(batch.mask), axis=-1)
        means = per_token(logps, batch)
        options = {"beta": self.beta, "gamma": self.gamma, "label_smoothing": self.label_smoothing}
        values = losses.simpo_loss(means[:, 0], means[:, 1], **options)
        return {"loss": weighted(values, exists), **pair_metrics(logps, self.beta * means, self.beta * means, exists)}
