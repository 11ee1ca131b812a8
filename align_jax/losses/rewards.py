"""Losses that train a reward model: scores of its own against recorded preferences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, as_mask, check_same_shape, check_set_axis
from align_jax.losses.sets import contrast_by_deviation, partition, score_deviations


def bradley_terry_loss(chosen_scores: ArrayLike, rejected_scores: ArrayLike) -> jax.Array:
    """Bradley-Terry: the negative log-probability that the chosen response beats the rejected one.

        L = - log sigmoid(s_c - s_r)

    Args:
      chosen_scores, rejected_scores: `[B]`, what the reward model says, in logit units.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> f"{losses.bradley_terry_loss(np.array([2.0]), np.array([1.0]))[0]:.4f}"
      '0.3133'

    Source: Bradley and Terry 1952; arXiv 2203.02155, Eq. 1.
    """
    chosen, rejected = as_floats(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return jax.nn.softplus(rejected - chosen)


def bradley_terry_set_loss(scores: ArrayLike, labels_scores: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Bradley-Terry over sets: responses labelled better than average against all, as MPO does with rewards.

        L = logsumexp_{i in Y} s_i - logsumexp_{i in Y+} s_i            Y+ = {i : label_i > mean label}

    With two unequal labels this is `bradley_terry_loss`. A group without contrast has loss and gradient exactly 0.

    Args:
      scores: `[G, K]`, what the reward model says, in logit units.
      labels_scores: `[G, K]`, the recorded scores, larger is better.
      mask: bool `[G, K]`, True for a response that exists.

    Returns:
      float32 `[G]`; NaN where a valid label is NaN or infinite.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> labels, mask = np.array([[9.0, 2.0, 1.0]]), np.ones((1, 3), bool)
      >>> f"{losses.bradley_terry_set_loss(np.zeros((1, 3)), labels, mask)[0]:.4f}"  # ln 3
      '1.0986'

    Source: arXiv 2412.04628, with the reward model's score in place of beta times the log-ratio.
    """
    check_same_shape(scores=scores, labels_scores=labels_scores, mask=mask)
    check_set_axis("scores", scores)
    scores, labels = as_floats(scores=scores, labels_scores=labels_scores)
    mask = as_mask(mask)
    return contrast_by_deviation(scores, score_deviations(labels, mask), mask)


def bradley_terry_pairs_loss(scores: ArrayLike, labels_scores: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Bradley-Terry over all pairs of an accepted and a rejected response, averaged over the pairs of a group.

        L = 1 / |P| sum_{(i, j) in P} - log sigmoid(s_i - s_j)       P = {(i, j) : label_i > mean label >= label_j}

    With two unequal labels this is `bradley_terry_loss`. A group without contrast has loss and gradient exactly 0.

    Args:
      scores: `[G, K]`, what the reward model says, in logit units.
      labels_scores: `[G, K]`, the recorded scores, larger is better.
      mask: bool `[G, K]`, True for a response that exists.

    Returns:
      float32 `[G]`; NaN where a valid label is NaN or infinite.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> labels, mask = np.array([[9.0, 2.0, 1.0]]), np.ones((1, 3), bool)
      >>> f"{losses.bradley_terry_pairs_loss(np.zeros((1, 3)), labels, mask)[0]:.4f}"  # ln 2
      '0.6931'

    Source: arXiv 2203.02155, Eq. 1, with the accepted and the rejected responses of arXiv 2412.04628.
    """
    return _mean_over_pairs(lambda accepted, rejected: jax.nn.softplus(rejected - accepted), scores, labels_scores, mask)


def score_center_loss(scores: ArrayLike, labels_scores: ArrayLike, mask: ArrayLike) -> jax.Array:
    """How far scores are from 0: the mean of `(s_i + s_j)^2` over the pairs of `bradley_terry_pairs_loss`.

    The Bradley-Terry loss knows differences only; a small weight on this fixes the mean.

    Args:
      scores, labels_scores: `[G, K]`. mask: bool `[G, K]`.

    Returns:
      float32 `[G]`; 0 for a group without contrast, NaN where a valid label is NaN or infinite.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> scores, labels, mask = np.array([[3.0, -1.0, 0.0]]), np.array([[9.0, 2.0, 1.0]]), np.ones((1, 3), bool)
      >>> f"{losses.score_center_loss(scores, labels, mask)[0]:.1f}"  # (2^2 + 3^2) / 2
      '6.5'

    Source: arXiv 2312.09244; TRL's `center_rewards_coefficient`.
    """
    return _mean_over_pairs(lambda accepted, rejected: jnp.square(accepted + rejected), scores, labels_scores, mask)


def _mean_over_pairs(f, scores: ArrayLike, labels_scores: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Mean of `f(accepted score, rejected score)` over the accepted-rejected pairs, `[..., K]` -> `[...]`."""
    check_same_shape(scores=scores, labels_scores=labels_scores, mask=mask)
    check_set_axis("scores", scores)
    scores, labels = as_floats(scores=scores, labels_scores=labels_scores)
    mask = as_mask(mask)
    accepted, rejected, _ = partition(labels, mask)
    pairs = accepted[..., :, None] & rejected[..., None, :]
    scores = jnp.where(mask, scores, 0.0)
    values = jnp.where(pairs, f(scores[..., :, None], scores[..., None, :]), 0.0)
    mean = jnp.sum(values, axis=(-2, -1)) / jnp.maximum(jnp.sum(pairs, axis=(-2, -1)), 1)
    bad = jnp.any(mask & ~jnp.isfinite(labels), axis=-1)
    return jnp.where(bad, jnp.nan, mean)
