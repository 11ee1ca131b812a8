"""Evaluation: what a model says of a data set, one number a group, so that means and intervals come from the same table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.batch import GroupBatch
from align_jax.objectives import DPO, GDPO, KTO, MPO, Objective
from align_jax.reference import local_rows

# The questions that a format's data can answer, whatever the training objective is.
EVALUATED_AS: dict[str, Callable[[float], Objective]] = {
    "groups": lambda beta: MPO(beta=beta),
    "samples": lambda beta: MPO(beta=beta),
    "ultrafeedback": lambda beta: MPO(beta=beta),
    "pairs": lambda beta: DPO(beta=beta),
    "unpaired": lambda beta: KTO(beta=beta),
    "gdpo": lambda beta: GDPO(beta=beta),
}


def evaluated_as(trained: Objective | None, data_format: str) -> Objective:
    """The objective whose metrics are measured: a reward model's own, else the one that the format's data can answer."""
    if trained is not None and trained.head == "score":
        return trained
    return EVALUATED_AS[data_format](getattr(trained, "beta", 0.1))


@dataclasses.dataclass(frozen=True)
class Table:
    """Metrics of every evaluated group.

    Attributes:
      rows: int `[n]`, the data rows.
      sums, weights: metric name -> float64 `[n]`; a metric over any groups is `sum(sums) / sum(weights)`.
      labels: per-group labels that are not arrays over responses (`group_id` `[n]`), for splitting.
    """

    rows: np.ndarray
    sums: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def means(self, keep: np.ndarray | None = None) -> dict[str, float]:
        """The metrics over the groups where `keep` (bool `[n]`) is True, all by default; left out where nothing counts."""
        keep = np.ones(len(self.rows), bool) if keep is None else keep
        weights = {name: w[keep].sum() for name, w in self.weights.items()}
        return {name: float(s[keep].sum() / weights[name]) for name, s in self.sums.items() if weights[name] > 0}


def evaluate(step: Callable[[GroupBatch], dict], batches: Iterable[GroupBatch]) -> Table:
    """Runs an evaluation step over host batches and keeps one row a group.

    Args:
      step: host batch -> metrics of its groups (`step.eval_step`, jitted, with the weights given).
      batches: one pass over the data; padding groups have row -1.
    """
    rows, sums, weights, labels = [], [], [], []
    for batch in batches:
        real = np.asarray(batch.rows) >= 0
        metrics = jax.tree.map(local_rows, step(batch))
        rows.append(np.asarray(batch.rows)[real])
        sums.append({name: np.asarray(s, np.float64)[real] for name, (s, _) in metrics.items()})
        weights.append({name: np.asarray(w, np.float64)[real] for name, (_, w) in metrics.items()})
        labels.append({name: np.asarray(v)[real] for name, v in batch.labels.items() if np.ndim(v) == 1})
    if not rows:
        raise ValueError("no batches to evaluate")

    def join(parts: list[dict]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return _everywhere(Table(np.concatenate(rows), join(sums), join(weights), join(labels)))


def _everywhere(table: Table) -> Table:
    """The tables of all processes as one; every process gets it."""
    if jax.process_count() == 1:
        return table
    # The last batch may leave processes with different numbers of groups: padded for the exchange.
    counts = multihost_utils.process_allgather(np.asarray(len(table.rows)))
    longest = int(counts.max())

    def gather(array: np.ndarray) -> np.ndarray:
        padded = np.pad(array, (0, longest - len(array)))
        # float64 does not survive a transfer where JAX has 32 bits only: its bytes do.
        parts = multihost_utils.process_allgather(padded.view(np.uint8).reshape(longest, -1))
        return np.concatenate([parts[p, :n].copy().view(array.dtype)[:, 0] for p, n in enumerate(counts)])

    fields = (getattr(table, name) for name in ("rows", "sums", "weights", "labels"))
    return Table(*(jax.tree.map(gather, field) for field in fields))


def summary(table: Table, group_names: list[str] | tuple[str, ...] = (), keep_loss: bool = True) -> dict[str, float]:
    """The metrics of a table, with the Jensen-Shannon distance of each named group of people and of the worst one.

    Args:
      table: what `evaluate` returned.
      group_names: names of the values of `labels["group_id"]`.
      keep_loss: False leaves the losses out, where they are not those that were trained.
    """
    result = {name: value for name, value in table.means().items() if keep_loss or not name.startswith("loss")}
    ids = table.labels.get("group_id")
    distance = "beliefs/js_distance"
    if ids is None or distance not in result or len(group_names) < 2:
        return result
    by_group = {}
    for i, name in enumerate(group_names):
        means = table.means(ids == i)
        if distance in means:
            by_group[name] = means[distance]
    result |= {f"{distance}/{name}": value for name, value in by_group.items()}
    result[f"{distance}/worst_group"] = max(by_group.values())
    return result
