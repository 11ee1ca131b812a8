"""Metrics as a (sum, weight) per row: a metric over any rows is `sum(sums) / sum(weights)`, and so is every resample of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from align_jax.objectives.by_source import by_source

Sums = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (sums [n], weights [n])

# Metrics that are also given for each group of people, and which of the groups is the worst.
BY_GROUP = {
    "beliefs/js_distance": np.fmax,
    "beliefs/js_distance_sampled": np.fmax,
    "beliefs/within_target": np.fmin,
    "beliefs/mass": np.fmin,
    "rewards/accuracies": np.fmin,
    "consistency/accuracy": np.fmin,
}

_TAKEN = ("majority", "minority", "worst_group")  # what else stands behind a metric's name


@dataclasses.dataclass(frozen=True)
class Table:
    """Metrics of n rows.

    Attributes:
      clusters: int `[n]`; rows of one cluster are not independent of one another, and are resampled together.
      sums, weights: metric name -> float64 `[n]`.
    """

    clusters: np.ndarray
    sums: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]

    def means(self) -> dict[str, float]:
        """The metrics over all rows, with those derived from several; left out where nothing counts."""
        weights = {name: w.sum() for name, w in self.weights.items()}
        return derived({name: float(s.sum() / weights[name]) for name, s in self.sums.items() if weights[name] > 0})


def table_of(
    metrics: Mapping[str, tuple],
    clusters: np.ndarray,
    group_ids=None,
    group_names: Sequence[str] = (),
    *,
    source_ids=None,
    source_names: Sequence[str] = (),
) -> Table:
    """A table with the metrics of `BY_GROUP` repeated for each group of people, and others for each data set of a mixture.

    Args:
      metrics: name -> (sums `[n]`, weights `[n]`). clusters: int `[n]`.
      group_ids: int `[n]`, numbers of `group_names`, or None. source_ids: the same of `source_names`.
    """
    pairs: Sums = {n: (np.asarray(s, np.float64), np.asarray(w, np.float64)) for n, (s, w) in metrics.items()}
    if source_ids is not None:
        pairs |= by_source(pairs, np.asarray(source_ids), source_names, np.where)
    if group_ids is not None and len(group_names) > 1:
        for name in [name for name in BY_GROUP if name in pairs]:
            for i, group in enumerate(group_names):
                group = f"group {group}" if group in _TAKEN else group
                pairs[f"{name}/{group}"] = tuple(np.where(group_ids == i, part, 0.0) for part in pairs[name])
    sums, weights = ({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))
    return Table(np.asarray(clusters), sums, weights)


def stack(tables: Sequence[Table]) -> Table:
    """The rows of several tables as one; a metric has weight 0 in the rows that do not know it."""
    names = dict.fromkeys(name for table in tables for name in table.sums)

    def join(which: str) -> dict[str, np.ndarray]:
        parts = {name: [getattr(t, which).get(name, np.zeros(len(t.clusters))) for t in tables] for name in names}
        return {name: np.concatenate(columns) for name, columns in parts.items()}

    return Table(np.concatenate([t.clusters for t in tables]), join("sums"), join("weights"))


def derived(means: dict) -> dict:
    """The means and what follows from several of them; the values may be numbers or arrays over resamples.

    `length/controlled_accuracy` = (accuracy of pairs whose accepted response is the longer one
    + accuracy of pairs whose accepted response is the shorter one) / 2.
    `<metric>/worst_group` is the worst of `<metric>/<group>`, and `text/perplexity` is exp(`text/loss`).
    """
    result = dict(means)
    halves = [means.get(f"length/accuracies_{which}") for which in ("longer", "shorter")]
    if all(half is not None for half in halves):
        result["length/controlled_accuracy"] = sum(halves) / 2
    if "text/loss" in means:
        result["text/perplexity"] = np.exp(means["text/loss"])
    for name, worst in BY_GROUP.items():
        parts = [value for key, value in means.items() if key.startswith(f"{name}/") and _is_group(key, name)]
        if parts:
            result[f"{name}/worst_group"] = _reduce(worst, parts)
    return result


def _is_group(key: str, name: str) -> bool:
    return key[len(name) + 1 :] not in _TAKEN


def _reduce(function, parts):
    total = parts[0]
    for part in parts[1:]:
        total = function(total, part)
    return total
