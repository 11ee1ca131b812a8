"""From scored responses to a table of metrics, the same in training and in `align-jax evaluate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from align_jax.data.formats import find_format
from align_jax.errors import UserError
from align_jax.evaluation.metrics import Metric, find_metrics
from align_jax.evaluation.responses import Responses
from align_jax.evaluation.table import Table, table_of
from align_jax.objectives import Objective, find_objective
from align_jax.training.step import group_metrics

IN_TRAINING = ("gradients/", "loss/squared")  # metrics of a step, whose batches are drawn at random


def evaluated_as(trained: Objective | None, data_format: str) -> Objective:
    """The objective whose metrics are measured: the one that is trained, or one that the format's data can answer.

    Args:
      trained: None where there is none. data_format: the value of `data.format`.

    Raises:
      UserError: data without responses, or data that only the objective which is trained can read, and none is.
    """
    own = find_format(data_format)
    if own.responses == 0:
        raise UserError(f"data.format {data_format!r} has no responses to evaluate on")
    if trained is not None and (trained.head == "score" or own.evaluated_as is None):
        return trained
    if own.evaluated_as is None:
        raise UserError(f"data.format {data_format!r} is evaluated as what is trained on it; give the objective section")
    cls = find_objective(own.evaluated_as)
    if any(type(term) is cls for term in getattr(trained, "terms", (trained,))):
        return trained
    has_beta = any(field.name == "beta" for field in dataclasses.fields(cls))
    return cls(beta=getattr(trained, "beta", 0.1)) if has_beta else cls()


def measure(
    responses: Responses,
    objective: Objective,
    clusters: np.ndarray,
    group_names: Sequence[str] = (),
    *,
    keep_loss: bool = True,
    further: Sequence[Metric] | None = None,
    source_names: Sequence[str] = (),
) -> Table:
    """Everything that log-probs alone say.

    Args:
      responses: of all groups, with the labels that the objective needs.
      objective: what reads them.
      clusters: int, the cluster of every row of the data set (`responses.rows` are its indices).
      group_names: of `responses.labels["group_id"]`.
      keep_loss: False leaves the losses out, where they are not those that were trained.
      source_names: of `responses.labels["source_id"]`, the data sets of a mixture.
      further: metrics beside the objective's own; None is those of `evaluation/metrics/`.

    Raises:
      UserError: a label that a metric needs and the data does not have.
    """
    metrics = group_metrics(responses.logps, responses.group_labels, objective)
    left_out = IN_TRAINING if keep_loss else (*IN_TRAINING, "loss")
    metrics = {name: pair for name, pair in metrics.items() if not name.startswith(left_out)}
    beta = getattr(objective, "beta", 1.0)  # a reward model's scores are rewards
    for metric in find_metrics() if further is None else further:
        lacking = [name for name in metric.labels if name not in responses.labels]
        if not lacking:
            metrics |= metric.measure(responses, beta)
        elif type(metric).__module__.partition(".")[0] != __name__.partition(".")[0]:
            raise UserError(f"evaluate.metrics: {type(metric).__name__} needs the labels {lacking}, which this data has not")
    labels = responses.labels
    sources = {"source_ids": labels.get("source_id"), "source_names": source_names}
    return table_of(metrics, clusters[responses.rows], labels.get("group_id"), group_names, **sources)
