"""Preference losses: pure maths on arrays, one value per group, nothing reduced.

Every function takes JAX or NumPy arrays, computes in float32 and returns the same values under `jit`, `vmap`, `pmap`,
`shard_map` and `grad`. What a mask leaves out never reaches a value or a gradient, whatever stands there.

Axes: `B` pairs or prompts, `G` groups (one prompt each), `K` responses of a group, `N` beliefs. The functions work
along the last axis (the pairwise ones elementwise), so that any leading axes will do. Log-probabilities are natural
logs. Scores, levels and target distributions are data: no gradient flows into them.
"""

from align_jax.losses.beliefs import belief_calibration_loss, belief_posterior, gdpo_loss, jensen_shannon_distance
from align_jax.losses.divergences import (
    belief_jensen_shannon_loss,
    belief_reverse_kl_loss,
    belief_total_variation_loss,
)
from align_jax.losses.kto import kto_kl, kto_loss
from align_jax.losses.levels import levels_by_quantiles, levels_by_range, levels_by_thresholds, levels_of_grades
from align_jax.losses.nca import infonca_loss, nca_loss
from align_jax.losses.pairs import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss, simpo_loss
from align_jax.losses.rewards import (
    bradley_terry_loss,
    bradley_terry_pairs_loss,
    bradley_terry_set_loss,
    score_center_loss,
)
from align_jax.losses.sets import mpo_loss, ordered_mpo_loss, partition

__all__ = [
    "belief_calibration_loss",
    "belief_jensen_shannon_loss",
    "belief_posterior",
    "belief_reverse_kl_loss",
    "belief_total_variation_loss",
    "bradley_terry_loss",
    "bradley_terry_pairs_loss",
    "bradley_terry_set_loss",
    "dpo_loss",
    "gdpo_loss",
    "hinge_loss",
    "infonca_loss",
    "ipo_loss",
    "jensen_shannon_distance",
    "kto_kl",
    "kto_loss",
    "levels_by_quantiles",
    "levels_by_range",
    "levels_by_thresholds",
    "levels_of_grades",
    "mpo_loss",
    "nca_loss",
    "ordered_mpo_loss",
    "partition",
    "robust_dpo_loss",
    "score_center_loss",
    "simpo_loss",
]
