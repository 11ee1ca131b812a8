"""Metrics of scored responses: how the implicit rewards of a prompt's answers agree with their scores, and with length."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from align_jax import losses
from align_jax.evaluation.metrics.base import Metric
from align_jax.evaluation.responses import Responses
from align_jax.evaluation.table import Sums
from align_jax.objectives.metrics import wins


class SetAgreement(Metric):
    """Agreement of implicit rewards with scores, and with length; see `set_agreement`."""

    name: ClassVar[str] = "sets"
    labels: ClassVar[tuple[str, ...]] = ("scores", "characters")

    def measure(self, responses: Responses, beta: float) -> Sums:
        return set_agreement(responses, beta)


def set_agreement(responses: Responses, beta: float) -> Sums:
    """Agreement of the implicit rewards `beta r` with the scores; a (sum, weight) per group.

    With `Y+` the responses scored above their group's mean, `Y-` the others, `l` lengths in characters:

      sets/log_likelihood: `log P(Y+) = logsumexp_{Y+} beta r - logsumexp_Y beta r`; `log(|Y+| / |Y|)` at the reference.
      rewards/best_of_n: is the response with the highest reward one with the highest score? Of several that tie for the
        highest reward, the fraction.
      rewards/rank_correlation: Spearman's, reward and score, within a prompt (ties have their mean rank; 0 where all
        rewards tie).
      length/reward_correlation: the same of reward and length; length/score_correlation: of score and length, what the
        data itself does.
      length/accuracies_longer, _shorter: accuracy over the accepted-rejected pairs whose accepted response is the longer
        (the shorter) one; `table.derived` makes `length/controlled_accuracy` of them. A reward that only knows length has
        1 and 0, hence 0.5, whatever the data's lengths are.

    Groups of equal scores, and for length those of equal lengths, are left out.

    Args:
      responses: with labels `scores` and `characters`, both `[n, K]`. beta: the implicit reward's scale.
    """
    mask, scores, lengths = responses.mask, responses.labels["scores"], responses.labels["characters"]
    accepted, rejected, contrast = (np.asarray(part) for part in losses.partition(scores, mask))
    ratios, logps = responses.log_ratios, responses.logps
    likelihood = -np.asarray(losses.mpo_loss(ratios, np.zeros_like(ratios), scores, mask, beta=beta))
    beats = _between(lambda a, b, x, y: np.asarray(wins(a, b, x, y)), beta * ratios, beta * logps)
    beats_score, beats_length = (_between(_order, np.where(mask, values, 0)) for values in (scores, lengths))
    ranks, score_ranks, length_ranks = (_ranks(b, mask) for b in (beats, beats_score, beats_length))
    best = mask & ((beats_score >= 0.5) | ~mask[:, None, :]).all(-1)
    top = mask & ((beats >= 0.5) | ~mask[:, None, :]).all(-1)
    pairs = (accepted & contrast[:, None])[:, :, None] & (rejected & contrast[:, None])[:, None, :]
    longer = {"longer": pairs & (beats_length == 1), "shorter": pairs & (beats_length == 0)}
    return {
        "sets/log_likelihood": (np.where(contrast, likelihood, 0.0), contrast),
        "rewards/best_of_n": _weighted((top & best).sum(-1) / np.maximum(top.sum(-1), 1), contrast),
        "rewards/rank_correlation": _weighted(_correlation(ranks, score_ranks, mask), contrast),
        "length/reward_correlation": _weighted(_correlation(ranks, length_ranks, mask), _varies(length_ranks, mask)),
        "length/score_correlation": _weighted(
            _correlation(score_ranks, length_ranks, mask), contrast & _varies(length_ranks, mask)
        ),
        **{
            f"length/accuracies_{name}": (np.where(which, beats, 0).sum((-2, -1)), which.sum((-2, -1)))
            for name, which in longer.items()
        },
    }


def _weighted(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(weights, values, 0.0), weights


def _between(compare, *arrays: np.ndarray) -> np.ndarray:
    """`compare` of every two responses of a group: `[n, K]` each -> `[n, K, K]`."""
    first, second = ([a[:, :, None] for a in arrays], [a[:, None, :] for a in arrays])
    return compare(*(part for pair in zip(first, second, strict=True) for part in pair))


def _order(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a > b) + 0.5 * (a == b)


def _ranks(beats: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean ranks from 0.5 up, `[n, K]`: how many valid responses each beats, itself and ties counting half."""
    return np.where(mask[:, None, :], beats, 0.0).sum(-1)


def _varies(ranks: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return _centred(ranks, mask).any(-1)


def _centred(ranks: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mean = np.where(mask, ranks, 0).sum(-1, keepdims=True) / np.maximum(mask.sum(-1, keepdims=True), 1)
    return np.where(mask, np.round(ranks - mean, 6), 0.0)


def _correlation(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pearson's of two arrays of ranks within each group, `[n]`; 0 where one of them is constant."""
    a, b = _centred(a, mask), _centred(b, mask)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.where(scale > 0, (a * b).sum(-1) / np.where(scale > 0, scale, 1), 0.0)
