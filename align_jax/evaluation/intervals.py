"""Bootstrap confidence intervals of everything that a `Table` can say."""

from __future__ import annotations

import dataclasses

import numpy as np

from align_jax.evaluation.table import Table, derived

_CHUNK = 64  # resamples drawn at one time


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric and its interval; None where too few resamples know the metric."""

    value: float
    low: float | None
    high: float | None


def resampled_means(table: Table, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """The means of a table under resampling of its clusters, with replacement: name -> float64 `[resamples]`.

    The unit is the cluster, not the row: rows with the same prompt share what the model predicts for it, and counting them
    as independent would make intervals of such data several times too narrow. With n_c how often cluster c was drawn,

        mean = sum_c n_c sum_{i in c} s_i / sum_c n_c sum_{i in c} w_i,    n ~ Multinomial(C, 1/C)

    The same seed draws the same clusters for every model. NaN where a resample has nothing that counts.

    Source: Efron and Tibshirani 1993, chapter 8 (the cluster as the unit).
    """
    _, index = np.unique(table.clusters, return_inverse=True)
    count, names = int(index.max()) + 1, list(table.sums)

    def by_cluster(columns: dict[str, np.ndarray]) -> np.ndarray:
        return np.stack([np.bincount(index, columns[name], count) for name in names], axis=1)

    sums, weights = by_cluster(table.sums), by_cluster(table.weights)
    rng, parts = np.random.default_rng((seed, count)), []
    for start in range(0, resamples, _CHUNK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(_CHUNK, resamples - start)).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(np.where(drawn @ weights > 0, (drawn @ sums) / (drawn @ weights), np.nan))
    means = np.concatenate(parts)
    known = table.means()
    return derived({name: means[:, i] for i, name in enumerate(names) if name in known})


def estimates(table: Table, resamples: int, seed: int, coverage: float = 0.95) -> dict[str, Estimate]:
    """Every metric of a table with the percentile interval of its resamples.

    Args:
      resamples: 0 gives no intervals, and neither does a single cluster, which says nothing of others.
      seed: of the draws. coverage: of the intervals.
    """
    values = table.means()
    if not resamples or len(np.unique(table.clusters)) < 2:
        return {name: Estimate(float(value), None, None) for name, value in values.items()}
    drawn = resampled_means(table, resamples, seed)
    tail = 50 * (1 - coverage)
    return {name: _interval(float(value), drawn[name], tail) for name, value in values.items()}


def _interval(value: float, drawn: np.ndarray, tail: float) -> Estimate:
    known = drawn[np.isfinite(drawn)]
    if len(known) < len(drawn) / 2:
        return Estimate(value, None, None)
    low, high = np.percentile(known, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
