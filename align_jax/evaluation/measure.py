"""From scored responses to a table of metrics, the same in training and in `align-jax evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from align_jax.evaluation.responses import Responses
from align_jax.evaluation.sets import set_metrics
from align_jax.evaluation.table import Table, table_of
from align_jax.objectives import DPO, GDPO, KTO, MPO, Objective
from align_jax.training.step import group_metrics

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
    """The objective whose metrics are measured: the one that is trained, or one that the format's data can answer."""
    if trained is not None and trained.head == "score":
        return trained
    objective = EVALUATED_AS[data_format](getattr(trained, "beta", 0.1))
    return trained if type(objective) is type(trained) else objective


def measure(
    responses: Responses,
    objective: Objective,
    clusters: np.ndarray,
    group_names: Sequence[str] = (),
    *,
    keep_loss: bool = True,
) -> Table:
    """Everything that log-probs alone say.

    Args:
      responses: of all groups, with the labels that the objective needs.
      objective: what reads them.
      clusters: int, the cluster of every row of the data set (`responses.rows` are its indices).
      group_names: of `responses.labels["group_id"]`.
      keep_loss: False leaves the losses out, where they are not those that were trained.
    """
    metrics = group_metrics(responses.logps, responses.as_batch(), objective)
    metrics = {name: pair for name, pair in metrics.items() if keep_loss or not name.startswith("loss")}
    if "scores" in responses.labels and "characters" in responses.labels:
        metrics |= set_metrics(responses, getattr(objective, "beta", 1.0))  # a reward model's scores are rewards
    return table_of(metrics, clusters[responses.rows], responses.labels.get("group_id"), group_names)
