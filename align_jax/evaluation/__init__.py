"""Evaluation: log-probs of a data set first, then metrics as (sum, weight) per row, then intervals, tables and plots.

    responses = collect(score, batches)                            # one pass of the model
    table = measure(responses, objective, clusters)                # everything that log-probs say
    estimates(table, resamples=1000, seed=0)["rewards/accuracies"]  # value, low, high
"""

from align_jax.evaluation.intervals import Estimate, estimates, resampled_means
from align_jax.evaluation.judges import Classifier, Endpoint, Judge, Question, Verdicts
from align_jax.evaluation.measure import evaluated_as, measure
from align_jax.evaluation.report import as_json, joint_table, target_lines, text_table
from align_jax.evaluation.responses import Responses, collect
from align_jax.evaluation.table import Table, stack, table_of

__all__ = [
    "evaluated_as",
    "Classifier",
    "Endpoint",
    "Estimate",
    "Judge",
    "Question",
    "Responses",
    "Table",
    "Verdicts",
    "as_json",
    "collect",
    "estimates",
    "joint_table",
    "measure",
    "resampled_means",
    "stack",
    "table_of",
    "target_lines",
    "text_table",
]
