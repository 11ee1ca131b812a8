"""Objectives over the whole set of scored responses to a prompt."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Group
from align_jax.errors import UserError, check_fields
from align_jax.objectives.base import Metrics, Objective, ref_logps, weighted
from align_jax.objectives.metrics import set_metrics
from align_jax.objectives.signature_metrics import loss_square, set_signatures


@dataclasses.dataclass(frozen=True)
class SetObjective(Objective):
    """Shared by the set objectives: beta, the reference, and the metrics of accepted and rejected responses."""

    arrangement: ClassVar[Group] = Group()
    needs_contrast: ClassVar[bool] = True

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
        contrast = self.contrast(scores, mask)
        metrics = set_metrics(logps, self.beta * (logps - ref), scores, mask, self.beta)
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

    def contrast(self, scores: jax.Array, mask: jax.Array) -> jax.Array:
        """Which groups have responses to set against one another, bool `[G]`."""
        return losses.partition(scores, mask)[2]

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
    """Plackett-Luce over ordered levels of responses, best first; `levels_by` says what a response's level is.

    `range`: which of the `levels` equal intervals between its group's lowest and highest score it is in. (Two levels are MPO's
    loss with the sets divided at the middle of the scores' range instead of at their mean.) `quantiles`: equally many
    responses of the group in each, ties in one. `thresholds`: how many of the `thresholds` its score does not reach. `given`:
    each different score of the group is a level; the worst beyond `levels` share the last.
    """

    name: ClassVar[str] = "ordered_mpo"
    levels: int | None = 3  # how many levels the scores of a group are cut into; null, for `given` alone: as many as there are
    levels_by: str = "range"  # range, quantiles, thresholds or given
    # scores that divide the levels, one less than there are levels; a score that equals one is above it
    thresholds: list[float] = dataclasses.field(default_factory=list, hash=False)

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "levels", low=2)
        if self.levels_by not in LEVELS_BY:
            raise UserError(f"objective.levels_by: {self.levels_by!r} is not one of {', '.join(LEVELS_BY)}")
        if self.levels is None and self.levels_by != "given":
            raise UserError(f"objective.levels: null, but levels_by {self.levels_by} needs a number; given alone does not")
        if (self.levels_by == "thresholds") != bool(self.thresholds):
            raise UserError(
                f"objective.thresholds: {list(self.thresholds)!r}, with levels_by {self.levels_by}; they are given for "
                "levels_by thresholds, and for no other"
            )
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        given = list(self.thresholds)
        if any(low >= high for low, high in itertools.pairwise(given)) or not all(map(math.isfinite, given)):
            raise UserError(f"objective.thresholds: {given!r} must be finite numbers that rise, such as [3, 7]")
        if given and len(given) != self.levels - 1:
            raise UserError(
                f"objective.thresholds: {given!r} divide scores into {len(given) + 1} levels, but objective.levels is "
                f"{self.levels}; set it to {len(given) + 1}"
            )

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        mask = jnp.asarray(batch.mask)
        levels = self.levels_of(jnp.asarray(batch.scores), mask)
        number = jnp.max(losses.levels_of_grades(-levels, mask), axis=-1) + 1.0
        return {**super().__call__(logps, batch), "groups/levels": weighted(number, jnp.any(mask, axis=-1))}

    def levels_of(self, scores: jax.Array, mask: jax.Array) -> jax.Array:
        """The level of each response, int32 `[G, K]`, 0 best."""
        return LEVELS_BY[self.levels_by](self, scores, mask)

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        return losses.ordered_mpo_loss(logps, ref, self.levels_of(scores, mask), mask, beta=self.beta)

    def contrast(self, scores: jax.Array, mask: jax.Array) -> jax.Array:
        """Unequal scores can be of one level, where others than they themselves divide them."""
        levels = self.levels_of(scores, mask)
        worst = jnp.max(jnp.where(mask, levels, 0), axis=-1)
        best = jnp.min(jnp.where(mask, levels, worst[..., None]), axis=-1)
        return super().contrast(scores, mask) & (best < worst)


# What `levels_by` can be: objective, scores `[G, K]`, mask -> int32 `[G, K]`.
LEVELS_BY: dict[str, Callable[[OrderedMPO, jax.Array, jax.Array], jax.Array]] = {
    "range": lambda how, scores, mask: losses.levels_by_range(scores, mask, how.levels),
    "quantiles": lambda how, scores, mask: losses.levels_by_quantiles(scores, mask, how.levels),
    "thresholds": lambda how, scores, mask: losses.levels_by_thresholds(scores, mask, how.thresholds),
    "given": lambda how, scores, mask: losses.levels_of_grades(scores, mask, how.levels),
}


@dataclasses.dataclass(frozen=True)
class InfoNCA(SetObjective):
    """InfoNCA (arXiv 2402.05369): cross-entropy to the softmax of the scores."""

    name: ClassVar[str] = "infonca"
    needs_contrast: ClassVar[bool] = False  # soft targets of equal scores say: no response above another
    temperature: float = 1.0  # of the soft targets, in score units

    def __post_init__(self):
        super().__post_init__()
        check_fields("objective", self, "temperature", low=0, open_low=True)

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        return losses.infonca_loss(logps, ref, scores, mask, beta=self.beta, temperature=self.temperature)

    def counted(self, exists: jax.Array, contrast: jax.Array) -> jax.Array:
        return exists


@dataclasses.dataclass(frozen=True)
class NCA(InfoNCA):
    """NCA (arXiv 2402.05369): InfoNCA's absolute relative, which also keeps likelihoods from falling."""

    name: ClassVar[str] = "nca"

    def loss(self, logps, ref, scores, mask) -> jax.Array:
        return losses.nca_loss(logps, ref, scores, mask, beta=self.beta, temperature=self.temperature)
