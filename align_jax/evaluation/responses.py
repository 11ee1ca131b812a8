"""What a model says of a data set: the log-prob of every response, in arrays over all groups; metrics are NumPy after that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.batch import GroupBatch, GroupLabels
from align_jax.scoring.reference import local_rows


@dataclasses.dataclass(frozen=True)
class Responses:
    """Scored responses of n groups, in the order of the data.

    Attributes:
      rows: int `[n]`, numbers of the groups in their data set.
      logps: float32 `[n, K]`, 0 where there is no response.
      mask: bool `[n, K]`. lengths: int `[n, K]`, scored tokens.
      labels: what the batches carried, each with leading axis n (`scores`, `ref_logps`, `target_probs`, ...).
    """

    rows: np.ndarray
    logps: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    labels: dict[str, np.ndarray]

    @property
    def log_ratios(self) -> np.ndarray:
        """`log pi - log pi_ref`, `[n, K]`, 0 where there is no response; `log pi` where there is no reference."""
        reference = self.labels.get("ref_logps", np.zeros_like(self.logps))
        return np.where(self.mask, self.logps - reference, 0.0)

    @property
    def group_labels(self) -> GroupLabels:
        """What an objective needs of all groups besides log-probs."""
        return GroupLabels(self.mask, self.lengths, self.labels)


Score = Callable[[GroupBatch], jax.Array | tuple[jax.Array, dict[str, jax.Array]]]


def collect(score: Score, batches: Iterable[GroupBatch]) -> Responses:
    """Scores host batches; every process gets the responses of all.

    Args:
      score: host batch -> log-probs `[G, K]`, or these and further labels `[G, K]` that the pass gives.
      batches: one pass over the data; padding groups have row -1.

    Raises:
      ValueError: no batch.
    """
    parts = []
    for batch in batches:
        real = np.asarray(batch.rows) >= 0
        mask = np.asarray(batch.mask)
        found = score(batch)
        logps, further = found if isinstance(found, tuple) else (found, {})
        table = {"rows": batch.rows, "logps": np.where(mask, local_rows(logps), 0.0), "mask": mask, "lengths": batch.lengths}
        labels = batch.labels | {name: np.where(mask, local_rows(value), 0.0) for name, value in further.items()}
        table |= {f"label {name}": value for name, value in labels.items()}
        parts.append({name: np.asarray(value)[real] for name, value in table.items()})
    if not parts:
        raise ValueError("no batches to evaluate")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole = _everywhere(whole)
    _, order = np.unique(whole["rows"], return_index=True)  # processes that hold the same shards have the same rows
    whole = {name: value[order] for name, value in whole.items()}
    labels = {name.removeprefix("label "): whole.pop(name) for name in list(whole) if name.startswith("label ")}
    return Responses(**whole, labels=labels)


def _everywhere(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tables of all processes as one."""
    if jax.process_count() == 1:
        return table
    # The last batch may leave processes with different numbers of groups: padded for the exchange.
    counts = multihost_utils.process_allgather(np.asarray(len(table["rows"])))
    longest = int(counts.max())

    def gather(array: np.ndarray) -> np.ndarray:
        padded = np.pad(array, [(0, longest - len(array)), *((0, 0),) * (array.ndim - 1)])
        parts = multihost_utils.process_allgather(padded)
        return np.concatenate([parts[p, :n] for p, n in enumerate(counts)])

    return jax.tree.map(gather, table)
