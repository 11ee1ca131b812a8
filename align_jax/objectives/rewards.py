"""The objective that trains a reward model."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Group
from align_jax.errors import UserError, check_fields
from align_jax.objectives.base import Metrics, Objective, weighted
from align_jax.objectives.metrics import reward_metrics

CONTRASTS = ("all_pairs", "set")


@dataclasses.dataclass(frozen=True)
class Reward(Objective):
    """A reward model from preferences, by the Bradley-Terry model; of a pair both contrasts are `-log sigmoid(s_c - s_r)`."""

    name: ClassVar[str] = "reward"
    arrangement: ClassVar[Group] = Group()
    head: ClassVar[str] = "score"
    learning_rate: ClassVar[float] = 1e-5
    needs_contrast: ClassVar[bool] = True

    contrast: str = "all_pairs"  # every accepted response against every rejected one, or set: all accepted against all
    center: float = 0.0  # weight of (s_i + s_j)^2, which keeps scores around 0 (TRL's center_rewards_coefficient)

    def __post_init__(self):
        check_fields("objective", self, "center", low=0)
        if self.contrast not in CONTRASTS:
            raise UserError(f"objective.contrast must be one of {', '.join(CONTRASTS)}, got {self.contrast!r}")

    @property
    def needs_reference(self) -> bool:
        return False

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        scores, labels, mask = logps, jnp.asarray(batch.scores), jnp.asarray(batch.mask)
        exists, contrast = jnp.any(mask, axis=-1), losses.partition(labels, mask)[2]
        loss = {"all_pairs": losses.bradley_terry_pairs_loss, "set": losses.bradley_terry_set_loss}[self.contrast]
        values = loss(scores, labels, mask)
        if self.center:
            values += self.center * losses.score_center_loss(scores, labels, mask)
        each = mask.astype(jnp.float32)
        return {
            "loss": weighted(values, contrast),
            "groups/no_contrast": weighted((exists & ~contrast).astype(jnp.float32), exists),
            "rewards/mean": (jnp.sum(jnp.where(mask, scores, 0.0), axis=-1), jnp.sum(each, axis=-1)),
            **reward_metrics(scores, labels, mask, scores),
        }
