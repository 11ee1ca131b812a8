"""Preference losses: pure maths on arrays, one value per group, nothing reduced.

Every function takes JAX or NumPy arrays, computes in float32 and returns the same values under `jit`, `vmap`, `pmap`,
`shard_map` and `grad`. What a mask leaves out never reaches a value or a gradient, whatever stands there.

Axes: `B` pairs or prompts, `G` groups (one prompt each), `K` responses of a group, `N` beliefs. The functions work
along the last axis (the pairwise ones elementwise), so that any leading axes will do. Log-probabilities are natural
logs. Scores, levels and target distributions are data: no gradient flows into them.
"""

from align_jax.losses.anchored import apo_down_loss, apo_zero_loss, bco_pair_loss, nca_pair_loss, sppo_hard_loss
from align_jax.losses.beliefs import belief_calibration_loss, belief_posterior, gdpo_loss, jensen_shannon_distance
from align_jax.losses.divergences import (
    belief_jensen_shannon_loss,
    belief_reverse_kl_loss,
    belief_total_variation_loss,
)
from align_jax.losses.kto import kto_kl, kto_loss
from align_jax.losses.lengths import dpo_norm_loss, ld_dpo_loss, r_dpo_loss
from align_jax.losses.levels import levels_by_quantiles, levels_by_range, levels_by_thresholds, levels_of_grades
from align_jax.losses.likelihoods import cpo_loss, dpo_positive_loss, orpo_loss, wpo_weights
from align_jax.losses.margins import F_DIVERGENCES, discopop_loss, exo_pair_loss, f_divergence_score, f_dpo_loss
from align_jax.losses.nca import infonca_loss, nca_loss
from align_jax.losses.pairs import dpo_loss, hinge_loss, ipo_loss, robust_dpo_loss, simpo_loss
from align_jax.losses.rewards import (
    bradley_terry_loss,
    bradley_terry_pairs_loss,
    bradley_terry_set_loss,
    score_center_loss,
)
from align_jax.losses.sets import mpo_loss, ordered_mpo_loss, partition
from align_jax.losses.transport import aot_loss, aot_unpaired_loss

__all__ = [
    "F_DIVERGENCES",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_pair_loss",
    "belief_calibration_loss",
    "belief_jensen_shannon_loss",
    "belief_posterior",
    "belief_reverse_kl_loss",
    "belief_total_variation_loss",
    "bradley_terry_loss",
    "bradley_terry_pairs_loss",
    "bradley_terry_set_loss",
    "cpo_loss",
    "discopop_loss",
    "dpo_loss",
    "dpo_norm_loss",
    "dpo_positive_loss",
    "exo_pair_loss",
    "f_divergence_score",
    "f_dpo_loss",
    "gdpo_loss",
    "hinge_loss",
    "infonca_loss",
    "ipo_loss",
    "jensen_shannon_distance",
    "kto_kl",
    "kto_loss",
    "ld_dpo_loss",
    "levels_by_quantiles",
    "levels_by_range",
    "levels_by_thresholds",
    "levels_of_grades",
    "mpo_loss",
    "nca_loss",
    "nca_pair_loss",
    "ordered_mpo_loss",
    "orpo_loss",
    "partition",
    "r_dpo_loss",
    "robust_dpo_loss",
    "score_center_loss",
    "simpo_loss",
    "sppo_hard_loss",
    "wpo_weights",
]
