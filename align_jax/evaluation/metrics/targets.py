"""How well p* itself is known, and so how small a distance to it still says something."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np
from scipy.spatial.distance import jensenshannon

from align_jax.data.targets import BeliefPosterior
from align_jax.evaluation.metrics.base import Metric
from align_jax.evaluation.responses import Responses
from align_jax.evaluation.table import Sums

_DRAWS = 1000  # of the posterior of a prompt


class TargetKnowledge(Metric):
    """The distance of the predicted beliefs beside that of what p* could as well be; see `target_knowledge`."""

    name: ClassVar[str] = "targets"
    labels: ClassVar[tuple[str, ...]] = ("target_probs", "target_alpha")

    def measure(self, responses: Responses, beta: float) -> Sums:
        return target_knowledge(responses)


def target_knowledge(responses: Responses) -> Sums:
    """What the posterior of p* says of distances to its mean, the target; a (sum, weight) per group.

      beliefs/js_distance_of_target: the mean Jensen-Shannon distance of a draw from the posterior: what a model that is p*
        itself, whatever it is, would be measured at.
      beliefs/js_distance_of_target_q95: its 95% quantile.
      beliefs/within_target: is the model's distance within that quantile, so that the answers cannot tell it from p*?

    Nothing where no label says how many answers p* was counted from; groups that do not know it do not count.

    Args:
      responses: with the labels `target_probs` and `target_alpha`, `[n, N]`.
    """
    alpha, targets = (responses.labels[name].astype(np.float64) for name in ("target_alpha", "target_probs"))
    known = alpha.sum(axis=1) > 0
    if not known.any():
        return {}
    count = alpha.shape[1]
    exists = responses.mask[:, :count]
    logps = np.where(exists, responses.logps[:, :count], -np.inf).astype(np.float64)
    predicted = np.exp(logps - np.max(logps, axis=1, keepdims=True, where=exists, initial=-np.inf))
    distances = np.nan_to_num(jensenshannon(predicted, np.where(known[:, None], targets, 1.0), axis=1))
    mean, top = _of_posteriors(alpha, known)
    weight = known.astype(np.float64)
    values = {
        "js_distance_of_target": mean,
        "js_distance_of_target_q95": top,
        "within_target": (distances <= top).astype(np.float64),
    }
    return {f"beliefs/{name}": (np.where(known, value, 0.0), weight) for name, value in values.items()}


def _of_posteriors(alpha: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 95% quantile of the distance of draws to the posterior mean, `[n]` each, 0 where nothing is known."""
    found = np.zeros((len(alpha), 2))
    different, which = np.unique(alpha, axis=0, return_inverse=True)  # rows of one prompt have one posterior
    values = np.asarray([_of_posterior(tuple(parameters)) for parameters in different.tolist()])
    found[known] = values[which.reshape(-1)[known]]
    return found[:, 0], found[:, 1]


@functools.lru_cache(maxsize=100_000)  # every model of an evaluation, and every evaluation of a run, has the same prompts
def _of_posterior(parameters: tuple[float, ...]) -> tuple[float, float]:
    if not sum(parameters) > 0:
        return 0.0, 0.0
    known = BeliefPosterior(np.asarray(parameters))
    draws = known.draws(_DRAWS)
    distances = jensenshannon(draws, np.broadcast_to(known.mean, draws.shape), axis=1)
    distances = np.nan_to_num(distances)  # scipy's rounding can leave a root of -1e-17
    return float(distances.mean()), float(np.quantile(distances, 0.95))
